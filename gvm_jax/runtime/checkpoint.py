"""A run's workdir: whose it is (`config.json`) and where it stands (`checkpoints/`)."""

import json
import os
import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from gvm_jax.config import ConfigError, diff, from_json, to_json

# What may change when a run is resumed: the length, the record and the graders' limits, not the algorithm.
RESUMABLE_FIELDS = (
    "steps",
    "checkpoint.",
    "evaluation.every",
    "rewards.workers",
    "rewards.deadline_seconds",
    "rewards.max_failure_rate",
)


def claim_workdir(workdir: str | os.PathLike[str], config: ConfigDict) -> None:
    """Makes a workdir this run's own, or checks that it is, before anything else is written to it.

    A fresh workdir gets `config.json`, the resolved config. Where one is there, this run resumes that one:
    only `RESUMABLE_FIELDS` may differ, and `config.json` takes their new values. Every process may call this.

    Raises:
      ConfigError: for another run's workdir, with the fields that differ.
    """
    if "://" in os.fspath(workdir):
        raise ConfigError(
            f"--workdir={workdir}: must be a path of the file system; mount the bucket, with gcsfuse, and "
            "name its mount point"
        )
    path = pathlib.Path(workdir) / "config.json"
    if path.exists():
        try:
            claimed = from_json(path.read_text(encoding="utf-8"))
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
    temporary.write_text(to_json(config), encoding="utf-8")
    temporary.replace(path)


def _layout(state: Any) -> dict[str, str]:
    """Path -> dtype and shape of every array of a pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


class Checkpointer:
    """Saves a run's state under `workdir/checkpoints` while it goes on, and restores the newest one.

    A checkpoint that was being written at a crash is not seen by `restore`. With several processes, all of
    them call the same methods at the same points, on a workdir that all of them see.

    Args:
      workdir: folder of the run.
      every: steps between two saves.
      keep: newest checkpoints kept.
    """

    def __init__(self, workdir: str | os.PathLike[str], every: int, keep: int) -> None:
        self._folder = os.path.join(os.path.abspath(workdir), "checkpoints")
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(every),
            preservation_policy=checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, state: Any, extra: dict[str, Any], force: bool = False) -> bool:
        """Starts to save a step if it is due; returns once the state is copied, so that it may be donated.

        Args:
          step: steps done.
          state: pytree of arrays (dicts, dataclasses, optax and nnx states); no PRNG keys.
          extra: what else the run resumes from, as JSON holds it: text keys, no tuples.
          force: save although the step is not due.

        Returns:
          Whether this call saves: False for a step that is not due or is saved already.

        Raises:
          TypeError, ValueError: for an `extra` that JSON does not hold as it is.
          Exception: whatever made an earlier save fail in the background.
        """
        if step == self._manager.latest_step() or not (force or self._manager.should_save(step)):
            return False
        if json.loads(json.dumps(extra, allow_nan=False)) != extra:
            raise ValueError(f"extra of step {step}: must be what JSON gives back (text keys, lists), found {extra!r}")
        saved = {
            "state": ocp.args.StandardSave(state),
            "run": ocp.args.JsonSave({"extra": extra, "layout": _layout(state)}),
        }
        return self._manager.save(step, args=ocp.args.Composite(**saved), force=force)

    def restore(self, abstract_state: Any) -> tuple[Any, dict[str, Any], int] | None:
        """The newest checkpoint as (state, extra, step); None where there is none.

        Args:
          abstract_state: the state's pytree with `jax.ShapeDtypeStruct` leaves; each array is restored onto
            its leaf's sharding, whichever mesh it was saved from.

        Raises:
          ConfigError: where the checkpoint's arrays are not those of `abstract_state`. Orbax would cast
            another dtype in silence.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        run = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore())).run
        if differences := diff(run["layout"], _layout(abstract_state)):
            shown = [
                *differences[:10],
                *([f"... and {len(differences) - 10} more"] if len(differences) > 10 else []),
            ]
            problem = (
                f"{self._folder}/{step}: not a state of this config and code (saved -> expected). Use "
                "another --workdir, or the code and versions that saved it:"
            )
            raise ConfigError("\n  ".join([problem, *shown]))
        args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract_state))
        return self._manager.restore(step, args=args).state, run["extra"], step

    def wait(self) -> None:
        """Returns when all saves are on disk; raises what made one fail."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for all saves and releases the background threads."""
        self.wait()
        self._manager.close()


def restore_subtree(workdir: str | os.PathLike[str], name: str, abstract: Any) -> tuple[Any, int]:
    """One field of the newest checkpoint's state, without reading the others; for export.

    Args:
      workdir: folder of the run.
      name: the field.
      abstract: its pytree with `jax.ShapeDtypeStruct` leaves.

    Returns:
      The field and the step it is from.

    Raises:
      FileNotFoundError: there is no checkpoint.
    """
    folder = os.path.join(os.path.abspath(workdir), "checkpoints")
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(create=False, read_only=True)) as manager:
        step = manager.latest_step()
        if step is None:
            raise FileNotFoundError(f"{folder} holds no finished checkpoint; let the run save one first")
        item = {name: abstract}
        restore_args = ocp.checkpoint_utils.construct_restore_args(item)
        args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
        return manager.restore(step, args=ocp.args.Composite(state=args)).state[name], step
