"""A run's workdir: a local folder, or one of an object store (`gs://bucket/folder`)."""

import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from gvm_jax.config import ConfigError, OnResume, differences, flat, from_json, on_resume, shown, to_json
from gvm_jax.runtime.files import complete_lines, write_atomically

_UPLOADED = ("*.jsonl", "tensorboard/*", "skipped/*", "plots/*", "profile/*/*/*/*", "wandb/offline-run-*/*.wandb")


def workdir_path(workdir: str | os.PathLike[str]) -> epath.Path:
    """The workdir as an absolute path.

    Raises:
      ConfigError: for a file, or a store that is not known.
    """
    text = os.fspath(workdir)
    if "://" not in text:
        if os.path.exists(text) and not os.path.isdir(text):
            raise ConfigError(f"--workdir={text}: is a file; name a folder")
        return epath.Path(os.path.abspath(text))
    if not text.startswith("gs://"):
        raise ConfigError(f"--workdir={text}: must be a folder of the file system, or gs://BUCKET/FOLDER")
    if importlib.util.find_spec("gcsfs") is None:
        raise ConfigError(f"--workdir={text}: needs a package that is not installed; pip install gcsfs")
    return epath.Path(text)


class Workdir:
    """A run's files. Object stores cannot append, so files that grow line by line are written to a local folder.

    That folder is the workdir itself, or for `gs://` a temporary copy that each `upload` brings back. It holds metrics,
    TensorBoard's files, plots and skipped batches. Checkpoints, `config.json` and `lock` are read and written in place.

    Args:
      workdir: path or URL.
      before_upload: called before an upload; raises where this run may not write. None = never upload: for readers,
        and for all processes but the first.

    Attributes:
      path: the workdir.
      local: folder of the files that grow.
    """

    def __init__(self, workdir: str | os.PathLike[str], before_upload: Callable[[], None] | None = None) -> None:
        self.path = workdir_path(workdir)
        self._remote = _is_remote(self.path)
        self.local = pathlib.Path(tempfile.mkdtemp(prefix="gvm_jax-")) if self._remote else pathlib.Path(self.path)
        self._before_upload = before_upload
        self._uploaded: dict[pathlib.Path, tuple[int, int]] = {}  # size and time of the files as the store has them
        if self._remote:
            for pattern in _UPLOADED:
                for file in self.path.glob(pattern):
                    copy = self.local / file.relative_to(self.path)
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    copy.write_bytes(file.read_bytes())

    def upload(self) -> None:
        """Brings the store's copies of the local files up to date; before a checkpoint, which must not be ahead."""
        if not self._remote or self._before_upload is None:
            return
        self._before_upload()
        for pattern in _UPLOADED:
            for file in self.local.glob(pattern):
                status = file.stat()
                if self._uploaded.get(file) != (known := (status.st_size, status.st_mtime_ns)):
                    (self.path / str(file.relative_to(self.local))).write_bytes(file.read_bytes())
                    self._uploaded[file] = known

    def close(self) -> None:
        """Uploads, and removes the temporary folder."""
        try:
            self.upload()
        finally:
            if self._remote:
                shutil.rmtree(self.local, ignore_errors=True)


def check_workdir(workdir: str | os.PathLike[str], config: ConfigDict) -> None:
    """Checks that a run with this config may begin in a workdir, or resume the run that is there; writes nothing.

    Only fields whose rule in `gvm_jax.config` allows it may differ. The checkpoints' fingerprints tell later whether
    data and model are the same under another name.

    Raises:
      ConfigError: for a file, another run's workdir (with the fields that differ), or one whose checkpoints are lost.
    """
    folder = workdir_path(workdir)
    claimed = _read_config(folder / "config.json")
    checkpoints = folder / "checkpoints"
    saved = checkpoints.is_dir() and any(child.name.isdecimal() for child in checkpoints.iterdir())
    if claimed is not None:
        changes = differences(claimed, config)
        if refused := [shown(name, *values) for name, values in changes.items() if not _may_change(name, *values)]:
            problem = (
                f"{folder}/config.json: this workdir is another run's. Use another --workdir, or that run's config."
            )
            raise ConfigError("\n  ".join([f"{problem} Fields:", *refused]))
    elif saved:
        raise ConfigError(
            f"{folder}/config.json: missing, but there are checkpoints beside it, of an unknown run; use another "
            "--workdir"
        )
    recorded = _last_step(folder / "metrics.jsonl")
    # A run makes the folder first, and records a step before it saves it. It saves while it goes on, but waits for a
    # save when the next one is due.
    may_be_unsaved = 2 * (config if claimed is None else claimed).checkpoint.every
    is_file = checkpoints.exists() and not checkpoints.is_dir()
    missing = not (checkpoints.exists() or _is_remote(folder))
    if is_file or (recorded and not saved and (missing or recorded > may_be_unsaved)):
        state = "is a file" if is_file else "no checkpoint is there"
        raise ConfigError(
            f"{checkpoints}: {state}, yet metrics.jsonl tells of {recorded} steps. Bring the checkpoints back, or use "
            "another --workdir; to begin again, empty this one"
        )


def record_config(files: Workdir, config: ConfigDict, step: int) -> dict[str, tuple[Any, Any]]:
    """Writes a run's config into its workdir once it is known where it goes on; for the first process.

    `config.json` takes the new values. `config_changes.jsonl` has a line for each resume that changed some, with the
    first step that they count for: {"step": 31, "changes": {"rollout.slots": [64, 32]}}.

    Args:
      files: the workdir; `check_workdir` found it in order.
      config: of the run from now on.
      step: steps that are done; those recorded after it are done again.

    Returns:
      What changed at this step, as (old, new) by field.
    """
    before = _read_config(files.path / "config.json")
    history = files.local / "config_changes.jsonl"
    lines = [line for line, _ in complete_lines(history)] if history.exists() else []
    changes = {}
    if before is not None and step > 0:
        then = flat(before)
        for line in reversed(lines):  # a change at a step that is to be done again has not counted yet
            if line["step"] > step:
                then |= {name: values[0] for name, values in line["changes"].items()}
        then = {name: tuple(value) if isinstance(value, list) else value for name, value in then.items()}
        changes = differences(then, config)
    kept = [line for line in lines if line["step"] <= step] if step else []
    if changes:
        kept.append({"step": step + 1, "changes": changes})
    if lines or kept:
        write_atomically(history, "".join(json.dumps(line) + "\n" for line in kept))
    write_atomically(files.path / "config.json", to_json(config))
    return changes


def _may_change(name: str, before: Any, after: Any) -> bool:
    when = on_resume(name)
    if when is OnResume.CONTENT and name.endswith(".path"):
        return bool(before and after)  # an evaluation that there was not, or no more, is another run's
    return when is not OnResume.KEPT


def _read_config(path: epath.Path) -> ConfigDict | None:
    """The config of a run; None where there is none.

    Raises:
      ConfigError: the file is something else.
    """
    if not path.exists():
        return None
    try:
        return from_json(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path}: not a run's config ({error}); use another --workdir") from error


def _last_step(path: epath.Path) -> int:
    """The last step of a record, by its last complete line; 0 where it is missing or empty."""
    if not path.exists():
        return 0
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: its last line is no step of a record; remove or repair the line") from error


def _is_remote(path: epath.Path) -> bool:
    return "://" in os.fspath(path)
