"""`compare_strategies`: from a config and entries to trained runs and a report."""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import time
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from gvm_jax.config import ConfigError
from gvm_jax.lab import training_comparison_report
from gvm_jax.lab.learning_curves import read_curve, steps_done
from gvm_jax.lab.variants import Variant, make_variants
from gvm_jax.runtime.owner import Owner
from gvm_jax.runtime.preemption import Preempted
from gvm_jax.runtime.workdir import check_workdir

Train = Callable[[ConfigDict, pathlib.Path], None]


def compare_strategies(
    config: ConfigDict,
    workdir: pathlib.Path,
    train: Train,
    entries: Sequence[str] = (),
    *,
    seeds: int = 5,
    sweep: str = "",
    confounds: Sequence[str] = (),
    target: float | None = None,
    title: str = "comparison",
) -> str | None:
    """Trains each entry with each seed and writes comparison.md and comparison.json.

    Each run is an ordinary run's folder, WORKDIR/VARIANT/seed-K. Seeds take turns over the variants. Runs that are done
    are not trained again.

    Args:
      config: shared by all runs.
      workdir: local folder of the comparison.
      train: trains a config in a folder, as `gvm_jax.train.train`.
      entries: as for `make_variants`; the first is the baseline. None given = uniform and the config's strategy.
      seeds: runs of each variant: the seeds from `config.seed` on.
      sweep: as for `make_variants`.
      confounds: as for `make_variants`.
      target: held-out accuracy to reach; None = 90 % of the baseline's gain.
      title: of the report.

    Returns:
      The report's tables; None where no seed is done by all variants.

    Raises:
      ConfigError: a config that cannot be run or compared, or a folder of the workdir that holds another run.
      Preempted: asked to stop; the report on the seeds so far is written.
    """
    if target is not None and not 0 < target <= 1:
        raise ConfigError(f"--target={target}: must be an accuracy, above 0 and at most 1")
    own = config.allocation.strategy
    entries = entries or ["uniform", "gvm" if own == "uniform" else own]
    variants = make_variants(config, entries, sweep, confounds)
    jobs = make_jobs(config, variants, seeds, workdir)
    print(f"{len(jobs)} runs: {len(variants)} variants x {seeds} seeds, {config.steps} steps, in {workdir}")
    for variant in variants:
        print(f"  {variant.label}: {', '.join(f'{k}={v}' for k, v in variant.overrides.items())}", flush=True)
    write_report = functools.partial(report, jobs, variants, title, workdir, target)
    with Owner(workdir) as owner:
        owner.take()
        try:
            train_all(jobs, train, after_run=write_report)
        except Preempted:
            write_report()
            raise
        return write_report()


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


def train_all(jobs: Sequence[Job], train: Train, after_run: Callable[[], object] = lambda: None) -> None:
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
            train(job.config, job.folder)
        gc.collect()  # a run's objects form cycles; the next one needs its device memory
        spent.append(time.perf_counter() - start)
        left -= 1
        minutes = left * sum(spent) / len(spent) / 60
        gain = " -> ".join(f"{value:.3f}" for value in read_curve(job.folder).accuracy[[0, -1]])
        print(f"{name}: held-out {gain} in {spent[-1]:.0f} s; {minutes:.0f} min to go", flush=True)
        after_run()


def report(
    jobs: Sequence[Job], variants: Sequence[Variant], title: str, workdir: pathlib.Path, target: float | None
) -> str | None:
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
    return training_comparison_report.write(workdir, title, variants, curves, seeds, target)
