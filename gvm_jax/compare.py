"""Compare strategies: `python -m gvm_jax.compare --config=configs/quickstart.py --strategies=uniform,gvm --seeds=5`.

The first strategy is the baseline. All is equal but what an entry says: `gvm:allocation.options.alpha=1e-2` sets one,
`gvm+updates` switches a confound on (gvm_jax/lab/variants.py). `--sweep=allocation.options.alpha:1e-4,1e-3,1e-2` and
`--confounds=updates,clip` add such entries; `--config.section.field=value` is for all. Each run is an ordinary run's
folder, WORKDIR/VARIANT/seed-K. Seeds take turns over the variants, and the same command goes on where it was stopped.
"""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import sys
import time
from collections.abc import Callable, Sequence

from absl import flags, logging
from ml_collections import ConfigDict

from gvm_jax import command
from gvm_jax.config import ConfigError
from gvm_jax.lab import comparison_report
from gvm_jax.lab.comparison import read_curve, steps_done
from gvm_jax.lab.variants import CONFOUNDS, Variant, plan
from gvm_jax.rewards import VerifierFailure
from gvm_jax.runtime.compilation_cache import keep_programs
from gvm_jax.runtime.owner import Owner
from gvm_jax.runtime.preemption import EXIT_CODE, Preempted
from gvm_jax.runtime.workdir import check_workdir
from gvm_jax.train import train

_STRATEGIES = flags.DEFINE_list(
    "strategies", None, "Entries; the first is the baseline. Default: uniform and the config's.", allow_override=True
)  # of variance too
_SEEDS = flags.DEFINE_integer("seeds", 5, "Runs of each variant: the seeds from config.seed on.")
_SWEEP = flags.DEFINE_string("sweep", "", "FIELD:VALUE,VALUE,... for every entry but the baseline.")
_CONFOUNDS = flags.DEFINE_list("confounds", [], f"Some of {', '.join(CONFOUNDS)}: each alone, and all together.")
_TARGET = flags.DEFINE_float("target", None, "Held-out accuracy to reach. Default: 90 % of the baseline's gain.")


@dataclasses.dataclass(frozen=True)
class Job:
    """One run."""

    variant: Variant
    config: ConfigDict
    folder: pathlib.Path

    @property
    def done(self) -> bool:
        """Trained, evaluated and saved."""
        return steps_done(self.folder) == self.config.steps


def make_jobs(config: ConfigDict, variants: Sequence[Variant], seeds: int, workdir: pathlib.Path) -> list[Job]:
    """All runs in their order: every variant with the first seed, then every variant with the second, and so on.

    Raises:
      ConfigError: a config that cannot be run or compared, or a folder of the workdir that holds another run.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds={seeds}: must be an integer >= 1")
    if not config.evaluation.path:
        raise ConfigError("evaluation.path = '': a comparison needs held-out problems; name some")
    if (workdir / "config.json").exists():
        raise ConfigError(f"--workdir={workdir}: is the folder of a run; name another for the comparison")
    jobs = [
        Job(variant, variant.config(config, seed), workdir / variant.folder / f"seed-{seed}")
        for seed in range(config.seed, config.seed + seeds)
        for variant in variants
    ]
    for job in jobs:
        if (done := steps_done(job.folder)) > job.config.steps:
            raise ConfigError(
                f"{job.folder}: has {done} steps, more than steps = {job.config.steps}; use another --workdir"
            )
        if (job.folder / "config.json").exists():
            check_workdir(job.folder, job.config)
    return jobs


def train_all(
    jobs: Sequence[Job],
    train_run: Callable[[ConfigDict, pathlib.Path], None],
    after_run: Callable[[], object] = lambda: None,
) -> None:
    """Train what is not done, one run after the other: a line at its start and its end, the rest in its train.log."""
    left = sum(not job.done for job in jobs)
    spent: list[float] = []
    for number, job in enumerate(jobs, start=1):
        name = f"[{number}/{len(jobs)}] {job.variant.label}, seed {job.config.seed}"
        if job.done:
            print(f"{name}: done before", flush=True)
            continue
        print(f"{name}: training, its lines go to {job.folder / 'train.log'}", flush=True)
        job.folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with (job.folder / "train.log").open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
            train_run(job.config, job.folder)
        gc.collect()  # a run's objects form cycles; the next one needs its device memory
        spent.append(time.perf_counter() - start)
        left -= 1
        minutes = left * sum(spent) / len(spent) / 60
        gain = " -> ".join(f"{value:.3f}" for value in read_curve(job.folder).accuracy[[0, -1]])
        print(f"{name}: held-out {gain} in {spent[-1]:.0f} s; {minutes:.0f} min to go", flush=True)
        after_run()


def report(jobs: Sequence[Job], variants: Sequence[Variant], name: str, workdir: pathlib.Path, target) -> str | None:
    """Write the report on the seeds that every variant is done with; returns its tables, None without such a seed."""
    done = [job.config.seed for job in jobs if job.done]
    seeds = [seed for seed in dict.fromkeys(done) if done.count(seed) == len(variants)]
    if not seeds:
        return None
    curves = {
        variant.label: [
            read_curve(job.folder, variant.free_pilots)
            for job in jobs
            if job.variant is variant and job.config.seed in seeds
        ]
        for variant in variants
    }
    return comparison_report.write(workdir, name, variants, curves, seeds, target)


def main() -> None:
    """Parse flags, train, report."""
    config, name = command.config(), command.config_name()
    workdir = pathlib.Path(command.workdir("compare-"))
    logging.set_verbosity(logging.WARNING)
    with command.one_line(VerifierFailure, FloatingPointError):
        if "://" in (command.given_workdir() or ""):
            raise ConfigError(f"--workdir={command.given_workdir()}: a comparison's must be a local folder")
        if _TARGET.value is not None and not 0 < _TARGET.value <= 1:
            raise ConfigError(f"--target={_TARGET.value}: must be an accuracy, above 0 and at most 1")
        own = config.allocation.strategy
        entries = _STRATEGIES.value or ["uniform", "gvm" if own == "uniform" else own]
        variants = plan(config, entries, _SWEEP.value, _CONFOUNDS.value)
        jobs = make_jobs(config, variants, _SEEDS.value, workdir)
        print(f"{len(jobs)} runs: {len(variants)} variants x {_SEEDS.value} seeds, {config.steps} steps, in {workdir}")
        for variant in variants:
            print(f"  {variant.label}: {', '.join(f'{k}={v}' for k, v in variant.overrides.items())}", flush=True)
        write_report = functools.partial(report, jobs, variants, name, workdir, _TARGET.value)
        keep_programs()
        stopped = None
        with Owner(workdir) as owner:
            owner.take()
            try:
                train_all(jobs, train, after_run=write_report)
            except Preempted as request:
                stopped = request
            tables = write_report()
    if tables:
        print(f"\n{tables}\n\nreport      {workdir / 'comparison.md'}, .json and {workdir / 'plots'}")
    if stopped:
        print(stopped, file=sys.stderr)
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    command.run(main)
