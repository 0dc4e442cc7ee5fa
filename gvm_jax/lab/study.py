"""`study`: from a config to the report of a variance study."""

import pathlib
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from gvm_jax.config import validate
from gvm_jax.lab import variance_study_report
from gvm_jax.lab.frozen_step import FrozenPolicy, Trainer
from gvm_jax.lab.pool import PoolSettings, collect
from gvm_jax.lab.variance_study import TRUE_STATISTICS, Study, make_scenario, simulate_study
from gvm_jax.runtime.owner import Owner

SMALL = 10_000_000  # parameters of a model whose whole gradient is studied
DEFAULT = (
    "uniform", "gvm", f"gvm{TRUE_STATISTICS}", "gvm_rates", "gvm:allocation.mode=pilot", "gvm+dropped",
    "gvm+dropped+pilots", "cures", "reinforce_ada_est", "reinforce_ada_seq", "vip:allocation.min_samples=3",
    "knapsack:allocation.min_samples=2", "cero", "dapo", "speed_rl", "pods",
)  # fmt: skip


def study(
    config: ConfigDict,
    workdir: pathlib.Path,
    entries: Sequence[str] = DEFAULT,
    *,
    checkpoint: str | None = None,
    prompts: int | None = None,
    samples: int = 128,
    sketch: int = 4096,
    parameters: str | None = None,
    repetitions: int = 300,
    visits: int = 4,
    show: Callable[[str], None] = print,
) -> Study:
    """Collects a pool of samples, simulates each entry from it, and writes variance.txt, variance.json and a plot.

    Args:
      config: of a run; its policy, prompts, objective and allocation are studied.
      workdir: local folder of the study; a pool that is there already is taken.
      entries: as for `simulate_study`.
      checkpoint: folder of a run whose newest policy is studied; None = the weights of `model.path`.
      prompts: of the pool; None = `prompts_per_step`.
      samples: of each prompt in the pool.
      sketch: numbers that a sample's gradient is kept as; 0 = all of it.
      parameters: regular expression of the parameters whose gradient is studied; None = all of a model of at most
        `SMALL` parameters, `gradient_norms.parameters` of a larger one.
      repetitions: simulated steps of each strategy.
      visits: earlier visits of each prompt, from which a strategy has its statistics.
      show: called with each line of progress, and with the report.

    Raises:
      ConfigError, DataError, ModelError, FileNotFoundError: bad input.
      VerifierFailure: the grader failed on too many answers.
    """
    validate(config)
    prompts = prompts or config.prompts_per_step
    for entry in entries:  # errors before the pool is drawn
        make_scenario(config, entry, prompts, visits)
    with Owner(workdir) as owner, Trainer(config) as run:
        policy = FrozenPolicy(run, checkpoint)
        show("\n".join([*policy.describe(), f"workdir   {workdir}"]))
        small = sum(leaf.size for leaf in jax.tree.leaves(policy.params)) <= SMALL
        parameters = parameters or ("." if small else config.gradient_norms.parameters)
        owner.take()
        settings = PoolSettings(prompts, samples, sketch, parameters, chunk=16 if small else 1)
        pool = collect(policy, settings, workdir / "pool", show)
        result = simulate_study(config, pool, entries, repetitions, visits, show)
        title = f"{workdir.name}: {config.objective.algorithm}, {prompts} prompts, step {policy.step}"
        show("\n" + variance_study_report.write(workdir, title, pool, result))
    return result
