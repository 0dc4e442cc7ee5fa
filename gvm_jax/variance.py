"""Measure gradient variances: `python -m gvm_jax.variance --config=configs/quickstart.py`.

Freezes a policy, draws a pool of its samples and measures the gradient of each. Then repeats a training step hundreds
of times from the pool, with each strategy at the same number of response tokens, pilots included, and says how far its
gradient estimates are from the gradient, beside equal counts and an oracle that knows the pool.

An entry of --strategies is one of `gvm_jax.compare`, such as `gvm:allocation.accept_rate_prior=8`; `gvm@told` is told
the truth about the prompts. The same command goes on where it was stopped, and takes the same pool for other entries.
"""

import functools
import pathlib

import jax
from absl import flags, logging

from gvm_jax import command
from gvm_jax.config import validate
from gvm_jax.lab import variance_report
from gvm_jax.lab.pool import PoolSettings, collect
from gvm_jax.lab.study import StudySettings, make_scenario, run_study
from gvm_jax.models.qwen2 import Params
from gvm_jax.rewards import VerifierFailure
from gvm_jax.runtime.checkpoint_files import restore_subtree
from gvm_jax.runtime.compilation_cache import keep_programs
from gvm_jax.runtime.owner import Owner
from gvm_jax.training.trainer import Trainer, describe_run

DEFAULT = (
    "uniform", "gvm", "gvm@told", "gvm_rates", "gvm:allocation.mode=pilot", "gvm+dropped", "gvm+dropped+pilots",
    "cures", "reinforce_ada_est", "reinforce_ada_seq", "vip:allocation.min_samples=3",
    "knapsack:allocation.min_samples=2", "cero", "dapo", "speed_rl", "pods",
)  # fmt: skip
SMALL = 10_000_000  # parameters of a model whose whole gradient is studied

_STRATEGIES = flags.DEFINE_list(
    "strategies", None, "Entries to compare. Default: all strategies, gvm in several ways.", allow_override=True
)  # of compare too
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a run whose newest policy is studied.")
_PROMPTS = flags.DEFINE_integer("prompts", None, "Prompts of the pool. Default: config.prompts_per_step.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 128, "Samples of each prompt in the pool.", 1)
_SKETCH = flags.DEFINE_integer("sketch", 4096, "Numbers that a sample's gradient is kept as; 0 = all of it.", 0)
_PARAMETERS = flags.DEFINE_string(
    "parameters", None, "Regular expression of the parameters whose gradient is studied. "
    "Default: all of a small model, config.gradient_norms.parameters of a larger one.",
)  # fmt: skip
_REPETITIONS = flags.DEFINE_integer("repetitions", 300, "Simulated steps of each strategy.", 1)
_VISITS = flags.DEFINE_integer("visits", 4, "Earlier visits of each prompt that the statistics are made of.", 0)


def study(config, workdir: pathlib.Path, entries: list[str]) -> None:
    """Collect the pool, simulate, print and draw.

    Raises:
      ConfigError, DataError, ModelError, FileNotFoundError: bad input.
      VerifierFailure: the grader failed on too many answers.
    """
    validate(config)
    show = functools.partial(print, flush=True)
    with Owner(workdir) as owner, Trainer(config) as run:
        prompts = _PROMPTS.value or config.prompts_per_step
        for entry in entries:  # errors before the pool is drawn
            make_scenario(run.step, config, entry, prompts, _VISITS.value)
        print(*describe_run(run)[:3], f"workdir   {workdir}", sep="\n", flush=True)
        params, step = load_policy(run, _CHECKPOINT.value)
        small = sum(leaf.size for leaf in jax.tree.leaves(params)) <= SMALL
        parameters = _PARAMETERS.value or ("." if small else config.gradient_norms.parameters)
        owner.take()
        settings = PoolSettings(prompts, _SAMPLES.value, _SKETCH.value, parameters, chunk=16 if small else 1)
        pool = collect(run, params, step, settings, workdir / "pool", show)
        simulated = StudySettings(_REPETITIONS.value, _VISITS.value, config.seed)
        result = run_study(run.step, pool, config, entries, simulated, show)
        title = f"{workdir.name}: {config.objective.algorithm}, {prompts} prompts, step {step}"
        print("", variance_report.write(workdir, title, pool, result), sep="\n")
    print(f"report      {workdir / 'variance.txt'}, .json and {workdir / 'plots' / 'variance.png'}")


def load_policy(run: Trainer, checkpoint: str | None) -> tuple[Params, int]:
    """Parameters and the step they are from: of `model.path`, or of the newest checkpoint of a run's folder."""
    if checkpoint is None:
        return run.initial_state().params, 0
    return restore_subtree(checkpoint, "params", run.step.abstract_state.params)


def main() -> None:
    """Parse flags, study, report."""
    logging.set_verbosity(logging.WARNING)
    with command.one_line(VerifierFailure):
        keep_programs()
        study(command.config(), pathlib.Path(command.workdir("variance-")), _STRATEGIES.value or list(DEFAULT))


if __name__ == "__main__":
    command.run(main)
