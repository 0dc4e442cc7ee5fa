"""This project beside its peers: `python -m gvm_jax.benchmark --model=FOLDER --engines=gvm_jax,hf,vllm`.

The first engine is compared with each of the others: same weights, same prompts, taking turns on the same machine, each
in a process and an interpreter of its own. README.md beside this file says how to install the peers and what counts.
"""

import json
import pathlib
import sys
from collections.abc import Sequence

from absl import flags

from gvm_jax import command
from gvm_jax.benchmark import report
from gvm_jax.benchmark.comparison import compare
from gvm_jax.benchmark.efficiency import PASSES, Yardstick
from gvm_jax.benchmark.process import ENGINES, INSTALL, BenchmarkError
from gvm_jax.benchmark.workload import (
    PREFILL_SAMPLES,
    Workload,
    agreement,
    gradient_norms,
    grouped,
    gsm8k,
    logprobs,
    prefill,
    step,
    update,
    update_lengths,
)
from gvm_jax.data import check_ids, find_endings, load_rows, load_tokenizer
from gvm_jax.errors import InputError
from gvm_jax.models.config import Qwen2Config, model_folder
from gvm_jax.planning.chips import chip_of

_MODEL = flags.DEFINE_string("model", None, "Hugging Face folder or hub name of a Qwen2.5 model.")
TASKS = {  # workload -> what an engine is asked for: the end of its script's name
    "grouped": "engine",
    "gsm8k": "engine",
    "prefill": "engine",
    "gradient_norms": "norms",
    "logprobs": "logprobs",
    "update": "update",
    "update_lengths": "update",
    "agreement": "agreement",
    "step": "step",
}
_WORKLOAD = flags.DEFINE_enum(
    "workload", "grouped", list(TASKS), "What is sampled, measured, trained on or held together."
)
_ENGINES = flags.DEFINE_list("engines", ["gvm_jax"], f"Of {', '.join(INSTALL)}; the first is compared with the others.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Every engine computes in it.")
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
_ROLLOUT = flags.DEFINE_multi_string("rollout", [], "FIELD=VALUE of config.rollout, for gvm_jax; may be repeated.")
_NORMS = flags.DEFINE_multi_string(
    "norms", [], "FIELD=VALUE of config.gradient_norms, or remat, for gvm_jax; may be repeated."
)
_UPDATE = flags.DEFINE_multi_string(
    "update",
    [],
    "remat=NAME, attention=NAME, logprob_chunk=TOKENS or samples_per_row=N of an update, for gvm_jax; may be repeated.",
)
_STEP = flags.DEFINE_multi_string(
    "step", [], "mode=pilot (default) or mode=online, or remat=NAME of a step, for gvm_jax; may be repeated."
)
_JSON = flags.DEFINE_string("json", None, "File that takes everything measured.")
_PYTHON = {
    name: flags.DEFINE_string(f"{name}_python", sys.executable, f"Interpreter with {name} installed.")
    for name in INSTALL
}


def make_workload(name: str, model: str, data: str, prompts: int = 0) -> tuple[Workload, list[list[int]]]:
    """The workload of this name, tokenised with the model's tokenizer, and the counts to run it with.

    Args:
      name: a key of `TASKS`.
      model: folder.
      data: questions and answers.
      prompts: 0 = the workload's own number.

    Raises:
      InputError: no tokenizer or config.json, tokens that the model's embedding table has no row for, or no or too few
        questions.
    """
    tokenizer, vocab_size = load_tokenizer(model), Qwen2Config.from_folder(pathlib.Path(model)).vocab_size
    answers = "question" if TASKS[name] == "engine" else "answer"
    columns = {"problem_column": "question", "answer_column": answers}
    rows = load_rows(data, subset="main", split="test", bad_rows="error", **columns)
    questions, sizes = [row.problem for row in rows], {"prompts": prompts} if prompts else {}
    stops = find_endings(tokenizer, model, vocab_size).stop_ids
    if name == "step":
        from gvm_jax.config import get_config

        asked = get_config().data
        workload = step(
            tokenizer, questions, [row.answer for row in rows], stops, asked.system_prompt, asked.user_template, **sizes
        )
    elif TASKS[name] != "engine":
        given = (gradient_norms, logprobs, update, update_lengths, agreement)
        make = next(function for function in given if function.__name__ == name)
        workload = make(tokenizer, questions, [row.answer for row in rows], **sizes)
    elif name == "gsm8k":
        workload = gsm8k(tokenizer, questions, stops, **sizes)
    else:
        workload = (grouped if name == "grouped" else prefill)(tokenizer, questions, **sizes)
    ids = sorted({token_id for tokens in (*workload.prompts, *workload.responses) for token_id in tokens})
    check_ids(ids, tokenizer, vocab_size, f"--data={data}, as the model's tokenizer reads it", "Use other data.")
    cases = [[n] * len(workload.prompts) for n in PREFILL_SAMPLES] if name == "prefill" else [workload.counts]
    return workload, cases


def parse_settings(flag: str, pairs: Sequence[str]) -> dict[str, str | float]:
    """`["page_size=32"]` -> `{"page_size": 32}`; InputError for anything but FIELD=VALUE."""
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals and value):
            raise InputError(f"--{flag}={pair}: must be FIELD=VALUE, as in --rollout=page_size=32")
        try:
            settings[name] = json.loads(value)
        except ValueError:  # no number: a text
            settings[name] = value
    return settings


def main() -> None:
    """Parse flags, measure, report."""
    names = _ENGINES.value
    if not names or len(set(names)) < len(names) or not set(names) <= set(INSTALL):
        command.fail(f"--engines={','.join(names)}: must be some of {', '.join(INSTALL)}, each once")
    engines = {name: (ENGINES / f"{name}_{TASKS[_WORKLOAD.value]}.py", _PYTHON[name].value) for name in names}
    missing = [name for name, (script, _) in engines.items() if not script.is_file()]
    if missing:
        command.fail(f"--workload={_WORKLOAD.value}: {', '.join(missing)} cannot run it; leave it out")
    if _JSON.value and not pathlib.Path(_JSON.value).absolute().parent.is_dir():  # told now, not after hours
        command.fail(f"--json={_JSON.value}: its folder does not exist; make it first")
    with command.one_line(BenchmarkError):
        model = str(model_folder(_MODEL.value).resolve())
        workload, cases = make_workload(_WORKLOAD.value, model, _DATA.value, _PROMPTS.value)
        settings = {
            "model": model,
            "dtype": _DTYPE.value,
            "slots": _SLOTS.value,
            "micro_batch": _MICRO_BATCH.value,
            "rollout": parse_settings("rollout", _ROLLOUT.value),
            "norms": parse_settings("norms", _NORMS.value),
            "update": parse_settings("update", _UPDATE.value),
            "step": parse_settings("step", _STEP.value),
        }
        about, comparisons = compare(workload, cases, engines, _REPEATS.value, settings)
    chip, task = chip_of(about[names[0]]["device"]), TASKS[_WORKLOAD.value]
    yardstick = None
    if chip and task in PASSES:
        network, itemsize = Qwen2Config.from_folder(pathlib.Path(model)), {"bfloat16": 2, "float32": 4}[_DTYPE.value]
        yardstick = Yardstick(network, chip, task, itemsize)
    measured = workload, about, comparisons, yardstick
    if _JSON.value:
        result = json.dumps({"settings": settings, **report.describe(*measured)}, indent=1)
        pathlib.Path(_JSON.value).write_text(result + "\n", encoding="utf-8")
    report.show(*measured)


if __name__ == "__main__":
    command.run(main, required=["model"], shared=[])
