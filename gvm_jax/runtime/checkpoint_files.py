"""A checkpoint on disk: the record of what it holds, and reading a part of it.

`STEP/state` has the arrays, as Orbax writes them, and `STEP/run` the record, since Orbax notices no altered values:
layout and checksum of every array, and whatever else the run resumes from.
"""

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from gvm_jax.config import ConfigError
from gvm_jax.errors import InputError
from gvm_jax.runtime.checksums import checksums
from gvm_jax.runtime.files import complete_lines
from gvm_jax.runtime.workdir import workdir_path


class NoCheckpoint(FileNotFoundError, InputError):  # noqa: N818
    """The folder or the step that was named has none."""


class CheckpointError(OSError):
    """A checkpoint that cannot be saved, or none that can be read; the message names it and says what to do."""


def layout(state: Any) -> dict[str, str]:
    """Path -> dtype and shape of every array of a pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _digest(record: dict[str, Any]) -> str:
    """SHA-256 of a checkpoint's record, the digest itself left out."""
    content = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def reason(error: BaseException) -> str:
    """The first cause of an error on one line: the layers above it do not name the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def differences(expected: dict[str, int], found: dict[str, int]) -> str:
    """Which arrays are not what was saved, by their checksums; "" if all are."""
    altered = [path for path, checksum in found.items() if expected[path] != checksum]
    return f"{len(altered)} arrays are not what was saved, among them state{altered[0]}" if altered else ""


def best_step(workdir: str | os.PathLike[str]) -> int:
    """Of the steps whose checkpoint is kept, the one with the best held-out accuracy; of equal ones the newest.

    Raises:
      NoCheckpoint: none of them was evaluated.
    """
    folder = workdir_path(workdir) / "checkpoints"
    kept, evaluations = finished_steps(folder), workdir_path(workdir) / "evaluation.jsonl"
    rows = [row for row, _ in complete_lines(evaluations)] if evaluations.exists() else []
    scored = [(row["accuracy"], row["step"]) for row in rows if row["step"] in kept]
    if not scored:
        raise NoCheckpoint(f"{folder}: no checkpoint has a known held-out accuracy; name a step")
    return max(scored)[1]


def restore_subtree(
    workdir: str | os.PathLike[str],
    name: str,
    abstract: Any,
    step: int | None = None,
    check_extra: Callable[[dict[str, Any]], None] = lambda extra: None,
) -> tuple[Any, int]:
    """One field of a checkpoint's state, without reading the others; for export.

    Args:
      workdir: folder of the run.
      name: the field.
      abstract: its pytree with `jax.ShapeDtypeStruct` leaves.
      step: of the checkpoint; None = the newest.
      check_extra: as for `Checkpointer.restore`.

    Returns:
      The field and the step it is from.

    Raises:
      NoCheckpoint: there is no such checkpoint.
      CheckpointError: it is damaged.
      ConfigError: of `check_extra`.
    """
    folder = workdir_path(workdir) / "checkpoints"
    steps = finished_steps(folder)
    if not steps:
        raise NoCheckpoint(f"{folder} holds no finished checkpoint; let the run save one first")
    step = max(steps) if step is None else step
    if step not in steps:
        raise NoCheckpoint(f"{folder}: no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    item = {name: abstract}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        record = read_record(folder / str(step))
        check_extra(record["extra"])
        restored = ocp.PyTreeCheckpointHandler().restore(folder / str(step) / "state", args=args)[name]
        found = {f".{name}{path}": checksum for path, checksum in checksums(restored).items()}
        if problem := differences(record["checksums"], found):
            raise ValueError(problem)
    except ConfigError:
        raise
    except Exception as error:
        raise CheckpointError(f"{folder}/{step}: cannot be read; name another step. {reason(error)}") from error
    return restored, step


def finished_steps(folder: epath.Path) -> list[int]:
    """The finished checkpoints, by the names of their folders."""
    return sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []


def make_record(step: int, state: Any, extra: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says it holds; a collective where arrays are spread over processes."""
    record = {"step": step, "extra": extra, "layout": layout(state), "checksums": checksums(state)}
    return record | {"digest": _digest(record)}


def read_record(checkpoint: epath.Path) -> dict[str, Any]:
    """The step, extra, layout and checksums that a checkpoint says it holds.

    Raises:
      ValueError: it was altered, or the folder was renamed.
    """
    record = ocp.JsonCheckpointHandler().restore(checkpoint / "run", args=ocp.args.JsonRestore())
    if record.get("digest") != _digest(record):
        raise ValueError(f"{checkpoint}/run/metadata is not what was saved")
    if str(record["step"]) != checkpoint.name:
        raise ValueError(f"{checkpoint} holds step {record['step']}; give the folder that name")
    return record
