"""A run's workdir, a local folder or one of an object store (`gs://bucket/folder`)."""

import importlib.util
import os
import pathlib
import shutil
import tempfile

from etils import epath
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError, diff, from_json, to_json

# What may change when a run is resumed: the length, the record and the graders' limits, not the algorithm.
RESUMABLE_FIELDS = (
    "steps",
    "checkpoint.",
    "evaluation.every",
    "rewards.workers",
    "rewards.deadline_seconds",
    "rewards.memory_mib",
    "rewards.max_failure_rate",
    "optimizer.max_skipped_updates",
    "mesh.",  # other devices round otherwise, no more
    "rollout.tensor",
    "distributed.",
    "journal.",
    "wandb.",
)
_UPLOADED = ("*.jsonl", "tensorboard/*", "skipped/*", "plots/*", "profile/*/*/*/*", "wandb/offline-run-*/*.wandb")


def workdir_path(workdir: str | os.PathLike[str]) -> epath.Path:
    """The workdir as an absolute path.

    Raises:
      ConfigError: for a store that is not known.
    """
    text = os.fspath(workdir)
    if "://" not in text:
        return epath.Path(os.path.abspath(text))
    if not text.startswith("gs://"):
        raise ConfigError(f"--workdir={text}: must be a folder of the file system, or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"--workdir={text}: needs a package that is not installed; pip install gcsfs")
    return epath.Path(text)


class Workdir:
    """Where a run keeps its files. Those that grow line by line cannot be appended to in an object store.

    So metrics, TensorBoard's files, plots and skipped batches are written to a local folder: the workdir itself, or for
    `gs://` a temporary one that starts as a copy of what the store has and goes there with each `upload`.
    Checkpoints and `config.json` are read and written in place.

    Args:
      workdir: path or URL.
      active: False on all processes but the first: nothing is uploaded.

    Attributes:
      path: the workdir.
      local: folder of the files that grow.
    """

    def __init__(self, workdir: str | os.PathLike[str], active: bool = True) -> None:
        self.path = workdir_path(workdir)
        self._remote = "://" in os.fspath(self.path)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="gvm_jax-")) if self._remote else pathlib.Path(self.path)
        self._active = active and self._remote
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}  # size and time of the files as the store has them
        if self._remote:
            for pattern in _UPLOADED:
                for file in self.path.glob(pattern):
                    copy = self.local / file.relative_to(self.path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(file.read_bytes())

    def upload(self) -> None:
        """Brings the store's copies of the local files up to date; before a checkpoint, which must not be ahead."""
        if not self._active:
            return
        for pattern in _UPLOADED:
            for file in self.local.glob(pattern):
                status = file.stat()
                if self._uploaded.get(file) != (known := (status.st_size, status.st_mtime_ns)):
                    (self.path / str(file.relative_to(self.local))).write_bytes(file.read_bytes())
                    self._uploaded[file] = known

    def close(self) -> None:
        """Uploads, and removes the temporary folder."""
        self.upload()
        if self._remote:
            shutil.rmtree(self.local, ignore_errors=True)


def claim_workdir(workdir: str | os.PathLike[str], config: ConfigDict) -> None:
    """Makes a workdir this run's own, or checks that it is, before anything else is written to it.

    A fresh workdir gets `config.json`, the resolved config. Where one is there, this run resumes that one:
    only `RESUMABLE_FIELDS` may differ, and `config.json` takes their new values. Every process may call this.

    Raises:
      ConfigError: for another run's workdir, with the fields that differ.
    """
    path = workdir_path(workdir) / "config.json"
    if path.exists():
        try:
            claimed = from_json(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path}: not a run's config ({error}); use another --workdir") from error
        changes = diff(claimed, config)
        refused = [change for change in changes if not change.startswith(RESUMABLE_FIELDS)]
        if refused:
            problem = f"{path}: this workdir is another run's. Use another --workdir, or that run's config. Fields:"
            raise ConfigError("\n  ".join([problem, *refused]))
        if not changes:
            return
    elif (path.parent / "checkpoints").exists():
        raise ConfigError(
            f"{path}: missing, but there are checkpoints beside it, of an unknown run; use another --workdir"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # A reader, or a crash, sees the old file or the new one. The name is this process's own.
    temporary = path.with_name(f"{path.name}.{os.uname().nodename}.{os.getpid()}")
    temporary.write_text(to_json(config))
    temporary.replace(path)
