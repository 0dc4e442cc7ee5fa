"""Does it fit? `python -m gvm_jax.plan --config=configs/qwen25_math_1p5b.py --topology=v5e:4x4`.

Compiles every program of a config for TPUs that are not there, from the model's config.json alone, and says what each
takes of a chip's memory, what it costs, and what to change where it does not fit. Exit status: 0 fits, 1 does not,
2 the question is wrong. `--search` looks for the fastest mesh and micro-batch that fit. GPUs are estimated.
"""

import sys

import jax
from absl import flags, logging
from rich.console import Console

from gvm_jax import command
from gvm_jax.config import ConfigError, validate
from gvm_jax.errors import InputError
from gvm_jax.planning import report
from gvm_jax.planning.chips import Topology
from gvm_jax.planning.model_flops import Workload
from gvm_jax.planning.parts import build
from gvm_jax.planning.planner import make_plan
from gvm_jax.planning.search import search

FITS, DOES_NOT_FIT = 0, 1  # and 2 for wrong flags

_TOPOLOGY = flags.DEFINE_string("topology", None, "Devices to plan for, such as v5e:4x4, v5p:4x4x4 or h100:8.")
_SEARCH = flags.DEFINE_bool("search", False, "Look for the fastest mesh and micro-batch that fit.")
_ROWS = flags.DEFINE_integer("data_rows", 100_000, "Rows of the training data; the statistics have a row for each.", 1)
_PROMPT_TOKENS = flags.DEFINE_float(
    "prompt_tokens", None, "Mean tokens of a prompt. Default: a quarter of data.max_prompt_tokens.", 1
)
_RESPONSE_TOKENS = flags.DEFINE_float(
    "response_tokens", None, "Mean tokens of a response. Default: a third of rollout.max_new_tokens.", 1
)


def plan(config, topology: Topology, console: Console) -> int:
    """Plan, print, and say by the exit status whether it fits.

    Raises:
      ConfigError, ModelError: bad input.
    """
    validate(config)
    workload = Workload(
        _PROMPT_TOKENS.value or config.data.max_prompt_tokens / 4,
        _RESPONSE_TOKENS.value or config.rollout.max_new_tokens / 3,
    )

    def show(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    if not _SEARCH.value:
        made = make_plan(build(config, topology, _ROWS.value), workload, show)
        report.show(made, console)
        return FITS if made.fits else DOES_NOT_FIT
    if not topology.compiles:
        raise ConfigError(f"--search: compiles, which {topology.name} cannot be done for; plan single meshes instead")
    found = search(config, topology, _ROWS.value, workload, show)
    for candidate, made in found:
        console.print(
            f"{report.seconds(made.step_seconds):>8} s a step  {candidate.name}", highlight=False, soft_wrap=True
        )
    if not found:
        console.print("no mesh and micro-batch that was tried fits; use a larger topology, or fewer rollout.slots")
        return DOES_NOT_FIT
    report.show(found[0][1], console)
    console.print(f"fastest: {found[0][0].name}", highlight=False, soft_wrap=True)
    return FITS


def main() -> None:
    """Parse flags, plan, exit."""
    logging.set_verbosity(logging.ERROR)
    try:
        topology = Topology.parse(_TOPOLOGY.value)
        jax.config.update("jax_platforms", "cpu")  # a machine's own accelerators stay free
        if not topology.compiles:
            jax.config.update("jax_num_cpu_devices", topology.size)
        # A TPU's programs cannot be read back from a persistent cache without a TPU.
        jax.config.update("jax_enable_compilation_cache", False)
        status = plan(command.config(), topology, Console(width=max(160, Console().width)))
    except (InputError, OSError) as error:  # not 1, which says that it does not fit
        command.fail(str(error))
    sys.exit(status)


if __name__ == "__main__":
    command.run(main, required=["config", "topology"], shared=["config"])
