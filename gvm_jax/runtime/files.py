"""Files that a run writes and a reader or a crash may meet half done: lines of JSON, and files replaced as a whole."""

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from gvm_jax.config import ConfigError, differences, shown
from gvm_jax.errors import InputError


class RecordError(InputError):
    """A file of a run's record has a line that is not JSON; the message names it."""


@contextlib.contextmanager
def naming(path: os.PathLike[str]) -> Iterator[None]:
    """Makes an error of the disk name the file and say what to do."""
    try:
        yield
    except OSError as error:
        problem = f"{path}: cannot be written; free space or use another --workdir. {error.strerror or error}"
        raise OSError(problem) from error


def write_atomically(path: pathlib.Path | epath.Path, content: str | bytes) -> None:
    """Writes a file of which a reader, or a crash, sees the old or the new content; text in UTF-8.

    The folder is made if it is missing. Several processes may write the same file.

    Raises:
      OSError: with the file's name and what to do.
    """
    partial = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        partial.replace(path)


def claim(path: pathlib.Path, identity: Mapping[str, Any], what: str, not_compared: tuple[str, ...] = ()) -> None:
    """Says in a file what a folder's results were made from, so that others are not mixed with them.

    Args:
      path: the file, made if it is missing.
      identity: what the results depend on, as JSON holds it, sections within sections.
      what: the results with their verb, for the message: "this pool is".
      not_compared: fields that may differ, named as `section.field`.

    Raises:
      ConfigError: the file says something else; the message has the fields that differ.
    """
    identity = json.loads(json.dumps(identity))
    if not path.exists():
        write_atomically(path, json.dumps(identity, indent=2, ensure_ascii=False) + "\n")
        return
    changes = differences(json.loads(path.read_text(encoding="utf-8")), identity)
    if changed := [shown(name, *values) for name, values in changes.items() if name not in not_compared]:
        problem = f"{path}: {what} of something else. Use another --workdir, or delete the folder. Fields:"
        raise ConfigError("\n  ".join([problem, *changed]))


def complete_lines(path: pathlib.Path) -> Iterator[tuple[dict[str, Any], int]]:
    """The complete lines of a file, each with the offset of its end; a torn last line is left out.

    Raises:
      RecordError: for a line that is not JSON.
    """
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                values = json.loads(line)
            except ValueError as error:
                raise RecordError(f"{path}, line {number}: not JSON; remove or repair the line") from error
            yield values, end


def append_line(file: io.FileIO, values: Mapping[str, Any]) -> None:
    """Writes a line of JSON to a file that was opened for appending, without a buffer.

    Raises:
      OSError: with the file's name and what to do.
    """
    line = json.dumps(values, allow_nan=False).encode() + b"\n"
    with naming(file.name):
        while line:  # a disk that fills up takes a part first
            line = line[file.write(line) :]
