"""Train a reasoner: `python -m gvm_jax.train --config=configs/quickstart.py --workdir=runs/quickstart`.

Without --config it trains the quickstart. The same command resumes an interrupted run. Fields are overridden as
`--config.section.field=value`. With `--profile=3-5` these steps are traced into WORKDIR/profile, with `--profile=3` as
many after the first.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
import shlex
import sys

import jax
import numpy as np
from absl import flags, logging
from etils import epath

from gvm_jax import command, report
from gvm_jax.config import ConfigError, validate
from gvm_jax.rewards import VerifierFailure
from gvm_jax.rewards.verifiers import is_path
from gvm_jax.runtime import collectives, distributed
from gvm_jax.runtime.about import record_about
from gvm_jax.runtime.checkpoint import Checkpointer
from gvm_jax.runtime.compilation_cache import keep_programs
from gvm_jax.runtime.compilations import compilations
from gvm_jax.runtime.live import LiveLine, plain_warnings
from gvm_jax.runtime.owner import Owner
from gvm_jax.runtime.preemption import EXIT_CODE, Preempted, StopSignal
from gvm_jax.runtime.profile import StepTrace, parse_steps
from gvm_jax.runtime.progress import ProgressPrinter
from gvm_jax.runtime.tracking import Tracker, load_wandb
from gvm_jax.runtime.workdir import Workdir, check_workdir, record_config
from gvm_jax.training import fingerprints
from gvm_jax.training.inputs import every_input_error
from gvm_jax.training.journal import Journal, Totals
from gvm_jax.training.samples import SampleTexts
from gvm_jax.training.trainer import Trainer, describe_resume, describe_run


def train(config, workdir: os.PathLike[str], profile: str = "") -> None:
    """Train until `config.steps` steps are done, from the workdir's newest checkpoint if it has one.

    Args:
      config: of the run.
      workdir: its folder.
      profile: steps to trace, as `parse_steps` reads them.

    Raises:
      ConfigError, DataError, ModelError: bad input, before any device work, or another process holds the workdir.
      VerifierFailure: the grader failed on too many answers.
      FloatingPointError: the loss or its gradient was not finite too often.
      Preempted: on SIGTERM or Ctrl-C.
      CheckpointError: the state cannot be saved, or none that was saved can be read.
      OwnerError: another run took over the workdir, in an object store.
    A checkpoint is saved before VerifierFailure, FloatingPointError and Preempted.
    """
    validate(config)
    parse_steps(profile, 0, config.steps)
    wandb = load_wandb(config.wandb.project)
    with contextlib.ExitStack() as stack:  # what is opened is closed in the end, the last first
        stop = stack.enter_context(StopSignal())
        owner = stack.enter_context(Owner(workdir))
        check_workdir(workdir, config)
        live = LiveLine(config.steps, collectives.is_first(), compiling=compilations().compiling)
        stack.enter_context(live).phase("reading model and data")
        trainer = stack.enter_context(Trainer(config, stop.check, live))
        owner.take()  # not before: a run that cannot start leaves no trace
        check_workdir(workdir, config)  # another run may have made it meanwhile
        first = jax.process_index() == 0
        if first:
            print(*describe_run(trainer), f"workdir   {workdir}", sep="\n", flush=True)
        files = Workdir(workdir, owner.check if first else None)
        checkpointer = Checkpointer(workdir, **config.checkpoint, before_save=files.upload)
        stack.callback(checkpointer.close)
        stack.callback(files.close)
        check = functools.partial(fingerprints.check, trainer.fingerprints, config=config, workdir=workdir)
        saved = checkpointer.restore(trainer.step.abstract_state, check)
        state, extra, resume_step = saved or (trainer.initial_state(), {}, None)
        totals = Totals(**extra.get("totals", {}))
        if totals.steps > config.steps:
            raise ConfigError(f"steps = {config.steps}: {totals.steps} are done in {workdir}; set more, or as many")
        if first:
            changes = record_config(files, config, totals.steps)
            record_about(files.path)
            print(*describe_resume(resume_step, changes), "", sep="\n", flush=True)
            if totals.steps == config.steps:
                print(f"complete: {totals.steps} steps are done; raise --config.steps or use another --workdir")
        tracker = Tracker(wandb, workdir, files.local, config) if wandb and first else None
        if tracker:
            stack.callback(lambda: tracker.close(complete=totals.steps >= config.steps))
        limit = config.optimizer.max_skipped_updates
        samples = SampleTexts(trainer.prompts, trainer.sampler.endings, config.journal.samples)
        progress = ProgressPrinter(config.steps, first, scores=is_path(config.rewards.function), live=live)
        journal = Journal(files.local, progress, totals, limit, resume_step, first, tracker, samples)
        stack.callback(journal.close)
        steps = parse_steps(profile, totals.steps, config.steps) if first else range(0)
        trace = StepTrace(steps, files.local / "profile", f"{workdir}/profile")
        loop(config, trainer, state, journal, checkpointer, stop, trace)


def loop(config, trainer: Trainer, state, journal: Journal, checkpointer: Checkpointer, stop, trace) -> None:
    """The algorithm. Between two lines of it the state is whole, so it can be saved wherever a run is stopped."""

    def save(force: bool) -> None:
        extra = {"totals": dataclasses.asdict(journal.totals), **trainer.fingerprints}
        checkpointer.save(journal.totals.steps, state, extra, journal.accuracy, force=force)

    try:
        for step in range(journal.totals.steps, config.steps + 1):
            if trainer.held_out and (step % config.evaluation.every == 0 or step == config.steps):
                if not journal.evaluated(step):
                    trainer.timer.reset()
                    journal.evaluation(step, trainer.evaluate(state), trainer.timer.seconds)
            journal.show()
            if step == config.steps:
                break
            trainer.timer.reset()
            prompt_ids = np.asarray(state.prompt_ids)
            with trace.step(step + 1):
                state, rollouts = trainer.collect(state)  # counts -> rollouts -> rewards
                with trainer.timer("update"):  # -> new state, with the next prompts' counts
                    state, metrics = trainer.update(state, rollouts, trainer.stream[step + 1])
                    metrics = jax.device_get(metrics)
            stop.nothing_to_lose = False
            journal.step(prompt_ids, rollouts, metrics, config.optimizer.updates_per_step, trainer.timer.seconds)
            save(force=step + 1 == config.steps)
    except (Preempted, VerifierFailure, FloatingPointError):
        save(force=True)
        raise


def next_command(config_path: str, given_workdir: str | None) -> str:
    """What to run now: the same config with or without variance-minimising counts, or a report of both once it was."""
    path, _, argument = config_path.partition(":")
    others = {"": "raft", "gvm_raft": "raft", "raft": "gvm_raft", "grpo": "gvm_grpo", "gvm_grpo": "grpo"}
    if argument not in others:  # a config of its own kind
        this = given_workdir or f"runs/{command.name_of(config_path)}"
        return shlex.join([sys.executable, "-m", "gvm_jax.report", this])
    other = others[argument]
    if given_workdir:
        given_workdir = given_workdir.rstrip("/")
        workdir, base = f"{given_workdir}-{other}", given_workdir.removesuffix(f"-{argument}")
        base = base if base != given_workdir else workdir
    else:
        workdir, base = (f"runs/{command.name_of(name)}" for name in (f"{path}:{other}", path))
    # A config's own default is gvm_raft, whose run has a name without an argument.
    for folder in (workdir, base) if other == "gvm_raft" else (workdir,):
        if (epath.Path(folder) / "config.json").exists():
            this = given_workdir or f"runs/{command.name_of(config_path)}"
            return shlex.join([sys.executable, "-m", "gvm_jax.report", folder, this])
    overrides = []
    for flag, following in zip(sys.argv[1:], [*sys.argv[2:], "--"], strict=True):
        # The method is what the argument changes.
        if re.match(r"--?(no)?config\.(?!allocation\.(strategy|options)|objective\.algorithm)", flag):
            overrides += [flag] if "=" in flag or following.startswith("-") else [flag, following]
    if given_workdir:
        overrides.append(f"--workdir={workdir}")
    script = pathlib.Path("tpu_scripts/train.sh")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "gvm_jax.train"]
    return shlex.join([*start, f"--config={path}:{other}", *overrides])


def main() -> None:
    """Parse flags, train, report."""
    config = command.config()
    logging.set_verbosity(logging.WARNING)
    plain_warnings()
    # Errors of the start; the others are caught inside, where all processes hear them.
    with command.one_line(), distributed.start(config.distributed):
        run_and_report(config, epath.Path(command.workdir()), flags.FLAGS.profile)


def run_and_report(config, workdir: os.PathLike[str], profile: str) -> None:
    """Train and show what came of it; errors that a user can mend end with one line."""
    try:
        with command.one_line(VerifierFailure, FloatingPointError):
            keep_programs()
            with every_input_error(config):
                train(config, workdir, profile)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)
    if jax.process_index() == 0:
        report.show(workdir)
        print(f"next        {next_command(command.config_path(), command.given_workdir())}")


if __name__ == "__main__":
    # Here, since `compare` trains too, and has no such flag.
    flags.DEFINE_string("profile", "", "Steps to trace into WORKDIR/profile, such as 3-5, or how many, such as 3.")
    command.run(main, required=[], default_config=command.QUICKSTART)
