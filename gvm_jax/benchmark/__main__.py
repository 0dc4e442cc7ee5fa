"""This project beside its peers: `python -m gvm_jax.benchmark --model=FOLDER --engines=gvm_jax,hf,vllm`.

The first engine is compared with each of the others: same weights, same prompts, taking turns on the same machine, each
in a process and an interpreter of its own. README.md beside this file says how to install the peers and what counts.
"""

import json
import pathlib
import sys

from absl import flags

from gvm_jax import command
from gvm_jax.benchmark.engine_process import INSTALL, BenchmarkError
from gvm_jax.benchmark.measure import ITEMSIZE, SECTIONS, measure, parse_fields
from gvm_jax.benchmark.workloads import WORKLOADS

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder or hub name of a Qwen2.5 model.")
_WORKLOAD = flags.DEFINE_enum(
    "workload", "grouped", list(WORKLOADS), "What is sampled, measured, trained on or held together."
)
_ENGINES = flags.DEFINE_list("engines", ["gvm_jax"], f"Of {', '.join(INSTALL)}; the first is compared with the others.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", list(ITEMSIZE), "Every engine computes in it.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of each engine in a comparison.", lower_bound=1)
_SLOTS = flags.DEFINE_integer(
    "slots", 64, "Sequences decoded at once; rows of a batch for hf and tunix.", lower_bound=1
)
_PROMPTS = flags.DEFINE_integer(
    "prompts", 0, "Of the workload: an accelerator wants more than a CPU; 0 = its own number.", lower_bound=0
)
_MICRO_BATCH = flags.DEFINE_integer(
    "micro_batch", 4, "Rows of a pass of an update, a step, of logprobs and of agreement.", lower_bound=1
)
_DATA = flags.DEFINE_string("data", "openai/gsm8k", "Hub name or file with columns `question` and `answer`.")
_JSON = flags.DEFINE_string("json", None, "File that takes everything measured.")
_FIELDS = {
    flag: flags.DEFINE_multi_string(
        flag, [], f"FIELD=VALUE of config.{section}, or remat or attention of the model, for gvm_jax; may be repeated."
    )
    for flag, section in SECTIONS.items()
}
_PYTHON = {
    name: flags.DEFINE_string(f"{name}_python", sys.executable, f"Interpreter with {name} installed.")
    for name in INSTALL
}


def main() -> None:
    """Parse flags, measure, report."""
    out = pathlib.Path(_JSON.value) if _JSON.value else None
    if out and not out.absolute().parent.is_dir():  # now, not after hours
        command.fail(f"--json={out}: its folder does not exist; make it first")
    with command.one_line(BenchmarkError):
        fields = {}
        for flag, pairs in _FIELDS.items():
            fields |= parse_fields(flag, pairs.value)
        result = measure(
            _MODEL.value,
            _WORKLOAD.value,
            _ENGINES.value,
            data=_DATA.value,
            dtype=_DTYPE.value,
            repeats=_REPEATS.value,
            slots=_SLOTS.value,
            micro_batch=_MICRO_BATCH.value,
            prompts=_PROMPTS.value,
            fields=fields,
            pythons={name: python.value for name, python in _PYTHON.items()},
        )
        if out:
            out.write_text(json.dumps(result.describe(), indent=1) + "\n", encoding="utf-8")
    result.show()


if __name__ == "__main__":
    command.run(main, required=["model"], shared=[])
