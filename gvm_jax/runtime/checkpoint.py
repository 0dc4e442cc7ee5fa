"""Where a run stands: `checkpoints/` of its workdir, each checked when it is restored."""

import contextlib
import dataclasses
import hashlib
import json
import logging as standard_logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from gvm_jax.config import ConfigError, diff
from gvm_jax.errors import InputError
from gvm_jax.runtime.checksums import checksums
from gvm_jax.runtime.workdir import workdir_path


class NoCheckpoint(FileNotFoundError, InputError):  # noqa: N818
    """The folder or the step that was named has none."""


class CheckpointError(OSError):
    """A checkpoint that cannot be saved, or none that can be read; the message names it and says what to do."""


def _is_news(record: standard_logging.LogRecord) -> bool:
    """Whether a line of the log is not what Orbax's threads say, traceback and all, of an error raised here later."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


_former_hook = sys.unraisablehook


def _print_news(unraisable: Any) -> None:
    """The former hook, but for the writes that TensorStore ends after Orbax has given up on one of them."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _former_hook(unraisable)


def _layout(state: Any) -> dict[str, str]:
    """Path -> dtype and shape of every array of a pytree."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def _digest(run: dict[str, Any]) -> str:
    """SHA-256 of what a checkpoint says of its run, the digest itself left out."""
    content = {name: value for name, value in run.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason(error: BaseException) -> str:
    """The first cause of an error on one line: the layers above it do not name the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"


def _differences(expected: dict[str, int], found: dict[str, int]) -> str:
    """What is to be said of arrays that are not, bit for bit, what was saved; nothing if they are."""
    altered = [path for path, checksum in found.items() if expected[path] != checksum]
    return f"{len(altered)} arrays are not what was saved, among them state{altered[0]}" if altered else ""


def _agreed(here: bool) -> bool:
    """Whether something holds in every process; a collective."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).all())


@dataclasses.dataclass
class _Best:
    """Keeps the checkpoints with the best scores; of equal ones the newest."""

    keep: int
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)  # by step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Orbax's PreservationPolicy."""
        scored = [checkpoint.step for checkpoint in checkpoints if checkpoint.step in self.scores]
        best = sorted(scored, key=lambda step: (self.scores[step], step), reverse=True)[: self.keep]
        return [checkpoint.step in best for checkpoint in checkpoints]


class Checkpointer:
    """Saves a run's state under `workdir/checkpoints` while it goes on, and restores the newest good one.

    A checkpoint that was being written at a crash is not seen by `restore`. With several processes, all of
    them call the same methods at the same points, on a workdir that all of them see.

    Args:
      workdir: folder of the run.
      every: steps between two saves.
      keep: newest checkpoints kept.
      keep_best: checkpoints with the best scores kept beside them.
      before_save: called before each save: for what must be stored no later than the checkpoint.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        every: int,
        keep: int,
        keep_best: int = 0,
        before_save: Callable[[], None] = lambda: None,
    ) -> None:
        self._before_save = before_save
        self._workdir = workdir_path(workdir)
        self._folder = self._workdir / "checkpoints"
        self._best = _Best(keep_best)
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=checkpoint_managers.FixedIntervalPolicy(every),
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [checkpoint_managers.LatestN(keep), self._best]
            ),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        logging.get_absl_logger().addFilter(_is_news)
        sys.unraisablehook = _print_news
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(
        self, step: int, state: Any, extra: dict[str, Any], scores: Mapping[int, float] | None = None, force=False
    ) -> bool:
        """Starts to save a step if it is due; returns once the state is copied, so that it may be donated.

        Args:
          step: steps done.
          state: pytree of arrays (dicts, dataclasses, optax and nnx states); no PRNG keys.
          extra: what else the run resumes from, as JSON holds it: text keys, no tuples.
          scores: of the steps known so far, larger = better; `keep_best` goes by them.
          force: save although the step is not due.

        Returns:
          Whether this call saves: False for a step that is not due or is saved already.

        Raises:
          TypeError, ValueError: for an `extra` that JSON does not hold as it is.
          CheckpointError: this or an earlier save failed, the disk being full for instance.
        """
        if not self._manager.is_saving_in_progress():
            self.wait()  # a save that failed is told of at the next step, not at the next save
        if step == self._manager.latest_step() or not (force or self._manager.should_save(step)):
            return False
        if json.loads(json.dumps(extra, allow_nan=False)) != extra:
            raise ValueError(f"extra of step {step}: must be what JSON gives back (text keys, lists), found {extra!r}")
        self._before_save()
        self._best.scores = scores or {}
        run = {"step": step, "extra": extra, "layout": _layout(state), "checksums": checksums(state)}
        run["digest"] = _digest(run)
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run))
        with self._explained():
            return self._manager.save(step, args=args, force=force)

    def restore(
        self, abstract_state: Any, check_extra: Callable[[dict[str, Any]], None] = lambda extra: None
    ) -> tuple[Any, dict[str, Any], int] | None:
        """The newest good checkpoint as (state, extra, step); None where there is none at all. Waits for running saves.

        Every array is compared with its checksum. A checkpoint that is damaged or incomplete is logged as an
        error and moved to `workdir/broken/STEP`, and the one before it is taken. A folder that was renamed gets the
        name of the step that it holds.

        Args:
          abstract_state: the state's pytree with `jax.ShapeDtypeStruct` leaves; each array is restored onto
            its leaf's sharding, whichever mesh it was saved from.
          check_extra: called with a checkpoint's `extra` before its arrays are looked at; raises ConfigError where
            the run may not go on from it.

        Raises:
          ConfigError: of `check_extra`, or where the checkpoint's arrays are not those of `abstract_state`. Orbax
            would cast another dtype in silence.
          CheckpointError: there are checkpoints, but none is good; they stay where they are. Or a save failed.
        """
        self.wait()  # the manager lists a checkpoint while it is being written
        self._correct_names()
        broken: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            problem = ""
            try:
                state, run = self._read(step, abstract_state, check_extra)
            except ConfigError:
                raise
            except Exception as error:  # whatever Orbax and TensorStore make of a damaged file
                problem = _reason(error)
            if _agreed(not problem):  # the checksums are a collective: all processes compute them, or none does
                problem = _differences(run["checksums"], checksums(state))
                if not problem:
                    self._set_aside(broken, step)
                    return state, run["extra"], step
            broken[step] = problem or "another process could not read it; its own log says why"
        if not broken:
            return None
        problems = [f"step {step}: {problem}" for step, problem in broken.items()]
        raise CheckpointError(
            "\n  ".join([f"{self._folder}: no checkpoint can be read; repair them or use another --workdir", *problems])
        )

    def _read(
        self, step: int, abstract_state: Any, check_extra: Callable[[dict[str, Any]], None]
    ) -> tuple[Any, dict[str, Any]]:
        # Not by the manager, in whose `restore` the others would wait for a process that could not read its part.
        run = _read_run(self._folder / str(step))
        check_extra(run["extra"])
        if differences := diff(run["layout"], _layout(abstract_state)):
            shown = [
                *differences[:10],
                *([f"... and {len(differences) - 10} more"] if len(differences) > 10 else []),
            ]
            problem = (
                f"{self._folder}/{step}: not a state of this config, data and code (saved -> expected). Use "
                "another --workdir, or the code and versions that saved it:"
            )
            raise ConfigError("\n  ".join([problem, *shown]))
        args = ocp.args.StandardRestore(abstract_state)
        return ocp.StandardCheckpointHandler().restore(self._folder / str(step) / "state", args=args), run

    def _correct_names(self) -> None:
        """Names every checkpoint by the step that it holds; one whose name another has is moved to `broken/`."""
        if jax.process_index() == 0:
            folders = {folder: step for step, folder in _steps_with_copies(self._folder) if folder.name != str(step)}
            while folders:
                held = min(
                    folders, key=lambda folder: ((self._folder / str(folders[folder])).exists(), folders[folder])
                )
                target = self._folder / str(folders.pop(held))
                if target.exists():
                    target = self._workdir / "broken" / held.name
                    target.rmtree(missing_ok=True)
                    target.parent.mkdir(exist_ok=True)
                held.rename(target)
                logging.warning("%s: holds another step than its name says; it is %s now", held, target)
        _agreed(True)  # none looks into the folder before it is in order
        self._manager.reload()

    def _set_aside(self, broken: Mapping[int, str], good: int) -> None:
        """Moves broken checkpoints away: their steps will be saved again."""
        if not broken:
            return
        target = self._workdir / "broken"
        for step, problem in broken.items():
            logging.error(
                "CHECKPOINT OF STEP %d IS BROKEN, GOING ON FROM STEP %d. %s (moved to %s): %s",
                step, good, self._folder / str(step), target / str(step), problem,
            )  # fmt: skip
            if jax.process_index() == 0:
                (target / str(step)).rmtree(missing_ok=True)
                target.mkdir(exist_ok=True)
                (self._folder / str(step)).rename(target / str(step))
        _agreed(True)  # none looks into the folder before it is in order
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what Orbax raises for a save that failed into a CheckpointError."""
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:  # what was written so far, whose room is needed
                whole = set(map(str, ocp.utils.checkpoint_steps(self._folder)))
                for part in self._folder.iterdir():
                    if ".orbax-checkpoint-tmp" in part.name or (part.name.isdecimal() and part.name not in whole):
                        with contextlib.suppress(OSError):
                            part.rmtree(missing_ok=True)
            self._manager.reload()
            step = self._manager.latest_step()
            last = "there is no earlier one" if step is None else f"that of step {step} is whole"
            raise CheckpointError(
                f"{self._folder}: a checkpoint could not be saved; {last}. If the disk is full, free space or lower "
                f"checkpoint.keep; the same command goes on from the last whole checkpoint. {_reason(error)}"
            ) from error

    def wait(self) -> None:
        """Returns when all saves are on disk.

        Raises:
          CheckpointError: one of them failed.
        """
        with self._explained():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for all saves and releases the background threads."""
        try:
            self.wait()
        finally:
            self._manager.close()


def best_step(workdir: str | os.PathLike[str]) -> int:
    """Of the steps whose checkpoint is kept, the one with the best held-out accuracy; of equal ones the newest.

    Raises:
      NoCheckpoint: none of them was evaluated.
    """
    folder = workdir_path(workdir) / "checkpoints"
    kept = _steps(folder)
    evaluations = workdir_path(workdir) / "evaluation.jsonl"
    lines = evaluations.read_text().splitlines(keepends=True) if evaluations.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    scored = [(row["accuracy"], row["step"]) for row in rows if row["step"] in kept]
    if not scored:
        raise NoCheckpoint(f"{folder}: of no checkpoint the held-out accuracy is known; name a step")
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
    steps = _steps(folder)
    if not steps:
        raise NoCheckpoint(f"{folder} holds no finished checkpoint; let the run save one first")
    step = max(steps) if step is None else step
    if step not in steps:
        there = ", ".join(map(str, sorted(steps)))
        raise NoCheckpoint(f"{folder}: no checkpoint of step {step}; there are {there}")
    item = {name: abstract}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    try:
        run = _read_run(steps[step])
        check_extra(run["extra"])
        restored = ocp.PyTreeCheckpointHandler().restore(steps[step] / "state", args=args)[name]
        found = {f".{name}{path}": checksum for path, checksum in checksums(restored).items()}
        if problem := _differences(run["checksums"], found):
            raise ValueError(problem)
    except ConfigError:
        raise
    except Exception as error:
        raise CheckpointError(f"{steps[step]}: cannot be read; name another step. {_reason(error)}") from error
    return restored, step


def _steps_with_copies(folder: epath.Path) -> list[tuple[int, epath.Path]]:
    """The finished checkpoints as (step, folder), by the step inside, or by name where that cannot be read."""
    found = []
    for name in sorted(ocp.utils.checkpoint_steps(folder)) if folder.exists() else []:
        try:
            step = _read_run(folder / str(name)).get("step", name)
        except Exception:  # as in `restore`, which says what is wrong
            step = name
        found.append((step, folder / str(name)))
    return found


def _steps(folder: epath.Path) -> dict[int, epath.Path]:
    """The finished checkpoints by the step inside; of copies, the one with the step's name."""
    return dict(sorted(_steps_with_copies(folder), key=lambda found: found[1].name == str(found[0])))


def _read_run(checkpoint: epath.Path) -> dict[str, Any]:
    """What a checkpoint says of its run; ValueError if it was altered."""
    run = ocp.JsonCheckpointHandler().restore(checkpoint / "run", args=ocp.args.JsonRestore())
    if run.get("digest") != _digest(run):
        raise ValueError(f"{checkpoint}/run/metadata is not what was saved")
    return run
