"""Measure gradient variances: `python -m gvm_jax.variance --config=configs/quickstart.py`.

Freezes a policy, draws a pool of its samples and measures the gradient of each. Then repeats a training step hundreds
of times from the pool, with each strategy at the same number of response tokens, pilots included, and says how far its
gradient estimates are from the gradient, beside equal counts and an oracle that knows the pool.

An entry of --strategies is one of `gvm_jax.compare`, such as `gvm:allocation.accept_rate_prior=8`;
`gvm@true_statistics` knows the prompts' true accept rates, norms and lengths. The same command goes on where it was
stopped, and takes the same pool for other entries.
"""

import functools
import pathlib

from absl import flags, logging

from gvm_jax import command
from gvm_jax.lab.study import DEFAULT, study
from gvm_jax.rewards import VerifierFailure
from gvm_jax.runtime.compilation_cache import keep_programs
from gvm_jax.training.inputs import every_input_error

_STRATEGIES = flags.DEFINE_list(
    "strategies", None, "Entries to compare. Default: all strategies, gvm in several ways.", allow_override=True
)  # of compare too
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run whose newest policy is studied.", allow_override=True
)  # of evaluate too
_PROMPTS = flags.DEFINE_integer("prompts", None, "Prompts of the pool. Default: config.prompts_per_step.", 1)
_SAMPLES = flags.DEFINE_integer("samples", 128, "Samples of each prompt in the pool.", 1)
_SKETCH = flags.DEFINE_integer("sketch", 4096, "Numbers that a sample's gradient is kept as; 0 = all of it.", 0)
_PARAMETERS = flags.DEFINE_string(
    "parameters", None, "Regular expression of the parameters whose gradient is studied. "
    "Default: all of a small model, config.gradient_norms.parameters of a larger one.",
)  # fmt: skip
_REPETITIONS = flags.DEFINE_integer("repetitions", 300, "Simulated steps of each strategy.", 1)
_VISITS = flags.DEFINE_integer("visits", 4, "Earlier visits of each prompt, from which the statistics are.", 0)


def main() -> None:
    """Parse flags, study, report."""
    logging.set_verbosity(logging.WARNING)
    workdir = pathlib.Path(command.workdir("variance-"))
    with command.one_line(VerifierFailure), every_input_error(command.config()):
        keep_programs()
        study(
            command.config(), workdir, _STRATEGIES.value or DEFAULT, checkpoint=_CHECKPOINT.value,
            prompts=_PROMPTS.value, samples=_SAMPLES.value, sketch=_SKETCH.value, parameters=_PARAMETERS.value,
            repetitions=_REPETITIONS.value, visits=_VISITS.value, show=functools.partial(print, flush=True),
        )  # fmt: skip
    print(f"report      {workdir / 'variance.txt'}, .json and {workdir / 'plots' / 'variance.png'}")


if __name__ == "__main__":
    command.run(main)
