"""One run at a time writes into a workdir.

On a file system a run holds a POSIX lock on the workdir's file `lock`. The kernel releases it with the process, however
that ends, and children do not inherit it. All processes of a machine see it, whatever path they use. Over NFS all
machines see it where the server keeps locks: always with version 4, with version 3 unless mounted with `nolock` or
`local_lock`. The server drops the lock of a lost machine after its lease, mostly 90 s. A file system without locks
(Lustre without `flock`) gives a warning.

An object store releases nothing by itself, and a preempted run must be able to start again on another machine at once.
So there the last run to start owns the workdir: it puts its name into the object `lock`, and the run before it ends at
its next write.
"""

import fcntl
import json
import os
import secrets
import time
from types import TracebackType
from typing import IO

from absl import logging

from gvm_jax.config import ConfigError
from gvm_jax.runtime import collectives
from gvm_jax.runtime.files import naming
from gvm_jax.runtime.workdir import workdir_path

_FILE = "lock"


class OwnerError(OSError):
    """The workdir was taken over by another run."""


class Owner:
    """Holds a workdir for a run; with several processes the first one does it for all.

    A context manager that holds an existing folder from its beginning, so that a second run is refused before any work.
    `take` makes and holds a folder that does not exist yet, once the run is known to be able to start.

    Args:
      workdir: path or URL.

    Raises:
      ConfigError: another process holds it; the message says which, where and since when.
      OSError: the folder cannot be written.
    """

    def __init__(self, workdir: str | os.PathLike[str]) -> None:
        self._folder = workdir_path(workdir)
        self._remote = "://" in os.fspath(self._folder)
        self._active = collectives.is_first()
        self._file: IO[str] | None = None
        self._name = ""  # the content of `lock` while this run holds it

    def __enter__(self) -> "Owner":
        if not self._remote and self._folder.is_dir():
            self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
        elif self._name and self._stored() == self._name:
            (self._folder / _FILE).unlink()
        self._file, self._name = None, ""

    def take(self) -> None:
        """Makes the folder and holds it, if this process does not yet."""
        if not self._active or self._name:
            return
        name = {"host": os.uname().nodename, "pid": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %Z")}
        if self._remote:
            if before := self._stored():
                logging.warning(
                    "%s: was held by %s, which has not ended by itself. If it still runs it ends when it is to store "
                    "something next", self._folder, _shown(before),
                )  # fmt: skip
            self._name = json.dumps(name | {"id": secrets.token_hex(8)})
            (self._folder / _FILE).write_text(self._name)
            return
        with naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            file = open(self._folder / _FILE, "a+", encoding="utf-8")
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            file.seek(0)
            holder = _shown(file.read())
            file.close()
            raise ConfigError(
                f"--workdir={self._folder}: is held by {holder}; wait for its end, end it, or use another --workdir"
            ) from error
        except OSError as error:
            logging.warning(
                "%s: this file system has no locks (%s): nothing keeps a second process from writing into it",
                self._folder, error.strerror,
            )  # fmt: skip
        self._file, self._name = file, json.dumps(name)
        with naming(self._folder / _FILE):
            file.truncate(0)
            file.write(self._name)
            file.flush()

    def check(self) -> None:
        """Raises OwnerError where another run has taken over, as it may in an object store."""
        if self._remote and self._name and (now := self._stored()) != self._name:
            taken = f"was taken over by {_shown(now)}" if now else "lost its object `lock`"
            raise OwnerError(f"--workdir={self._folder}: {taken}; so this run ends without storing more")

    def _stored(self) -> str:
        path = self._folder / _FILE
        return path.read_text() if path.exists() else ""


def _shown(name: str) -> str:
    try:
        return "process {pid} on {host} since {since}".format(**json.loads(name))
    except (ValueError, KeyError, TypeError):  # it is just being written
        return "another process"
