"""A run's checkpoints: `checkpoints/STEP` of its workdir, each checked when it is restored.

Orbax writes and reads the arrays, in the background and from all processes, and deletes old steps. It does not notice
altered values, casts to another dtype in silence and does not fall back to an earlier step. So each checkpoint has a
record of what it holds (`checkpoint_files.py`), with which it is compared here.
"""

import contextlib
import dataclasses
import json
import logging as standard_logging
import os
import sys
import time
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
from gvm_jax.runtime.checkpoint_files import CheckpointError, differences, layout, make_record, read_record, reason
from gvm_jax.runtime.checksums import checksums
from gvm_jax.runtime.workdir import workdir_path


def _not_from_orbax_threads(record: standard_logging.LogRecord) -> bool:
    """False for the tracebacks that Orbax's threads log of an error that is raised here later."""
    return not (record.exc_info and f"{os.sep}orbax{os.sep}" in record.pathname)


_former_hook = sys.unraisablehook


def _ignore_closed_loops(unraisable: Any) -> None:
    """The former hook, but for writes that TensorStore ends after Orbax has given up on one of them."""
    if str(unraisable.exc_value) != "Event loop is closed":
        _former_hook(unraisable)


def _agreed(here: bool) -> bool:
    """Whether something holds in every process; a collective."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).all())


def _remove(folder: epath.Path) -> None:
    """Removes a checkpoint that failed, to which other threads may still be writing."""
    for _ in range(10):
        with contextlib.suppress(OSError):
            folder.rmtree(missing_ok=True)
        time.sleep(0.1)
        if not folder.exists():
            return


@dataclasses.dataclass
class _Best:
    """Keeps the checkpoints with the best scores; of equal ones the newest.

    Orbax's own BestN wants a score when a checkpoint is saved; here it is known only after the next evaluation.
    """

    keep: int
    scores: Mapping[int, float] = dataclasses.field(default_factory=dict)  # by step

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        scored = sorted((self.scores[found.step], found.step) for found in checkpoints if found.step in self.scores)
        best = {step for _, step in scored[::-1][: self.keep]}
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
        logging.get_absl_logger().addFilter(_not_from_orbax_threads)
        sys.unraisablehook = _ignore_closed_loops
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
            self.wait()  # raises at the next step, not at the next save, if a save has failed
        if step == self._manager.latest_step() or not (force or self._manager.should_save(step)):
            return False
        if json.loads(json.dumps(extra, allow_nan=False)) != extra:
            raise ValueError(f"extra of step {step}: must be what JSON gives back (text keys, lists), found {extra!r}")
        self._before_save()
        self._best.scores = scores or {}
        record = ocp.args.JsonSave(make_record(step, state, extra))
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), run=record)
        with self._explained():
            return self._manager.save(step, args=args, force=force)

    def restore(
        self, abstract_state: Any, check_extra: Callable[[dict[str, Any]], None] = lambda extra: None
    ) -> tuple[Any, dict[str, Any], int] | None:
        """The newest good checkpoint as (state, extra, step); None where there is none at all. Waits for running saves.

        Every array is compared with its checksum. A checkpoint that is damaged, incomplete or of another step than its
        folder's name is logged as an error and moved to `workdir/broken/STEP`, and the one before it is taken.

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
        broken: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            problem = ""
            try:
                state, record = self._read(step, abstract_state, check_extra)
            except ConfigError:
                raise
            except Exception as error:  # whatever Orbax and TensorStore make of a damaged file
                problem = reason(error)
            if _agreed(not problem):  # the checksums are a collective: all processes compute them, or none does
                problem = differences(record["checksums"], checksums(state))
                if not problem:
                    self._set_aside(broken, step)
                    return state, record["extra"], step
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
        record = read_record(self._folder / str(step))
        check_extra(record["extra"])
        if changes := diff(record["layout"], layout(abstract_state)):
            more = [f"... and {len(changes) - 10} more"] if len(changes) > 10 else []
            problem = (
                f"{self._folder}/{step}: not a state of this config, data and code (saved -> expected). Use "
                "another --workdir, or the code and versions that saved it:"
            )
            raise ConfigError("\n  ".join([problem, *changes[:10], *more]))
        args = ocp.args.StandardRestore(abstract_state)
        return ocp.StandardCheckpointHandler().restore(self._folder / str(step) / "state", args=args), record

    def _set_aside(self, broken: Mapping[int, str], good: int) -> None:
        """Moves broken checkpoints away, since their steps will be saved again."""
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
        _agreed(True)  # no process looks into the folder before the first has moved them
        self._manager.reload()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what Orbax raises for a save that failed into a CheckpointError."""
        try:
            yield
        except Exception as error:
            if jax.process_index() == 0:  # makes room: removes what was written so far
                whole = set(map(str, ocp.utils.checkpoint_steps(self._folder)))
                for part in self._folder.iterdir():
                    if ".orbax-checkpoint-tmp" in part.name or (part.name.isdecimal() and part.name not in whole):
                        _remove(part)
            self._manager.reload()
            step = self._manager.latest_step()
            last = "there is no earlier one" if step is None else f"that of step {step} is whole"
            raise CheckpointError(
                f"{self._folder}: a checkpoint could not be saved; {last}. If the disk is full, free space or lower "
                f"checkpoint.keep; the same command goes on from the last whole checkpoint. {reason(error)}"
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
