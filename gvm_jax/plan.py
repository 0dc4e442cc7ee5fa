"""Does it fit? `python -m gvm_jax.plan --config=configs/qwen25_math_1p5b.py --topology=v5e:4x4`.

Compiles every program of a config for TPUs that are not there, from the model's config.json alone, and says what each
takes of a chip's memory, what it costs, and what to change where it does not fit. Exit status: 0 fits, 1 does not,
2 the question is wrong. `--search` looks for the fastest mesh and micro-batch that fit. GPUs are estimated.
"""

import sys

import jax
from absl import flags, logging

from gvm_jax import command, planner
from gvm_jax.errors import InputError
from gvm_jax.planner.tables import render, seconds
from gvm_jax.planner.topologies import Topology

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


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Parse flags, plan, print, and say by the exit status whether it fits."""
    logging.set_verbosity(logging.ERROR)
    try:
        topology = Topology.parse(_TOPOLOGY.value)
        jax.config.update("jax_platforms", "cpu")  # a machine's own accelerators stay free
        if not topology.compiles:
            jax.config.update("jax_num_cpu_devices", topology.size)
        # A TPU's programs cannot be read back from a persistent cache without a TPU.
        jax.config.update("jax_enable_compilation_cache", False)
        assumptions = planner.Assumptions(_ROWS.value, _PROMPT_TOKENS.value, _RESPONSE_TOKENS.value)
        arguments = {"topology": topology, "assumptions": assumptions, "progress": _progress}
        if not _SEARCH.value:
            plan = planner.plan(command.config(), **arguments)
            print(render(plan))
            sys.exit(FITS if plan.fits else DOES_NOT_FIT)
        plans = planner.search(command.config(), **arguments)
    except (InputError, OSError) as error:  # not 1, which says that it does not fit
        command.fail(str(error))
    if not plans:
        print("no mesh and micro-batch that was tried fits; use a larger topology, or fewer rollout.slots")
        sys.exit(DOES_NOT_FIT)
    for plan in plans:
        print(f"{seconds(plan.step_seconds):>8} s a step  {plan.run.flags}")
    print(render(plans[0]))
    print(f"fastest: {plans[0].run.flags}")


if __name__ == "__main__":
    command.run(main, required=["config", "topology"], shared=["config"])
