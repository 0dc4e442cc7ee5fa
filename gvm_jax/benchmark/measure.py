"""A workload measured on engines, from plain arguments: `measure("FOLDER", "grouped", {"gvm_jax": python}).show()`."""

import json
import sys
from collections.abc import Mapping, Sequence

from gvm_jax.benchmark.efficiency import PASSES, Yardstick
from gvm_jax.benchmark.engine_comparison import compare
from gvm_jax.benchmark.engine_process import INSTALL, TASKS
from gvm_jax.benchmark.tables import Result
from gvm_jax.benchmark.workloads import WORKLOADS, load_workload
from gvm_jax.errors import InputError
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.planner.topologies import chip_of

ITEMSIZE = {"bfloat16": 2, "float32": 4}  # the dtypes that every engine computes in
SECTIONS = {"rollout": "rollout", "norms": "gradient_norms", "update": "optimizer", "step": "allocation"}


def measure(
    model: str,
    workload: str = "grouped",
    engines: Sequence[str] = ("gvm_jax",),
    *,
    data: str = "openai/gsm8k",
    dtype: str = "bfloat16",
    repeats: int = 3,
    slots: int = 64,
    micro_batch: int = 4,
    prompts: int = 0,
    fields: Mapping[str, object] | None = None,
    pythons: Mapping[str, str] | None = None,
) -> Result:
    """Runs a workload on engines in turn.

    Args:
      model: Hugging Face folder or hub name of a Qwen2.5 model.
      workload: of `WORKLOADS`.
      engines: of `TASKS`; the first is compared with each of the others.
      data: hub name or file with columns `question` and `answer`.
      dtype: of `ITEMSIZE`.
      repeats: runs of each engine in a comparison.
      slots: sequences decoded at once.
      micro_batch: rows of a pass where something is trained or scored.
      prompts: of the workload; 0 = its own number.
      fields: of this project's config, by dotted name.
      pythons: interpreter of each engine; this one where none is named.

    Raises:
      InputError: an argument that cannot be.
      BenchmarkError: an engine that cannot be started, or failed.
    """
    task = WORKLOADS[workload][1]
    if not engines or len(set(engines)) < len(engines) or not set(engines) <= set(INSTALL):
        raise InputError(f"--engines={','.join(engines)}: must be some of {', '.join(INSTALL)}, each once")
    if missing := [name for name in engines if task not in TASKS[name]]:
        raise InputError(f"--workload={workload}: {', '.join(missing)} cannot run it; leave it out")
    folder = model_folder(model).resolve()
    made = load_workload(workload, str(folder), data, prompts)
    settings = {"model": str(folder), "dtype": dtype, "slots": slots, "micro_batch": micro_batch}
    settings["fields"] = dict(fields or {})
    started = {name: (TASKS[name][task], (pythons or {}).get(name, sys.executable)) for name in engines}
    about, comparisons = compare(made, started, repeats, settings)
    chip, yardstick = chip_of(about[engines[0]]["device"]), None
    if chip and task in PASSES:
        yardstick = Yardstick(Qwen2Config.from_folder(folder), chip, task, ITEMSIZE[dtype])
    return Result(made, settings, about, comparisons, yardstick)


def parse_fields(flag: str, pairs: Sequence[str]) -> dict[str, object]:
    """`--rollout=page_size=32` -> `{"rollout.page_size": 32}`; InputError for anything but FIELD=VALUE."""
    fields = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InputError(f"--{flag}={pair}: must be FIELD=VALUE, as in --rollout=page_size=32")
        of_model = name in ("remat", "attention") and flag != "rollout"  # the rollouts' attention is their own
        try:
            value = json.loads(value)
        except ValueError:  # no number: a text
            pass
        fields[f"{'model' if of_model else SECTIONS[flag]}.{name}"] = value
    return fields
