"""Rules that every field of a run's configuration must keep, and its form in `config.json`.

`gvm_jax/config/defaults.py` says what a field means; `RULES` says what it may hold. Nothing here touches a device.
"""

import difflib
import enum
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from gvm_jax.errors import InputError
from gvm_jax.rewards.domains import DOMAINS, is_path


class ConfigError(InputError):
    """A config that cannot be run; the message names each field, what it holds and what it may hold."""


class OnResume(enum.Enum):
    """Whether a field may change when a run is resumed, by what it decides."""

    KEPT = "the algorithm"  # may not change
    FREE = "the run's length, its record and its limits"
    ROUNDING = "how a step is computed"  # float results may differ in their last bits, and what follows from them
    CONTENT = "where an input is found"  # what is found there may not change: checkpoints hold its fingerprint


class Rule(NamedTuple):
    """What one field may hold, in words and as a test; with choices, the nearest one is named where none is held."""

    allowed: str
    holds: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    on_resume: OnResume = OnResume.KEPT


def _free(rule: Rule) -> Rule:
    return rule._replace(on_resume=OnResume.FREE)


def _rounding(rule: Rule) -> Rule:
    return rule._replace(on_resume=OnResume.ROUNDING)


def _content(rule: Rule) -> Rule:
    return rule._replace(on_resume=OnResume.CONTENT)


def _integer(at_least: int, at_most: float = math.inf) -> Rule:
    allowed = f"an integer >= {at_least}" + (f" and <= {at_most}" if at_most < math.inf else "")
    # bool is an int in Python, but `steps = True` is a mistake.
    return Rule(allowed, lambda value: type(value) is int and at_least <= value <= at_most)


def _number(above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf, at_most=math.inf) -> Rule:
    bounds = ((">", above), (">=", at_least), ("<", below), ("<=", at_most))
    allowed = "a number " + " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
    return Rule(
        allowed,
        lambda value: type(value) in (int, float) and above < value < below and at_least <= value <= at_most,
    )


def _choice(*choices: str) -> Rule:
    return Rule(" or ".join(map(repr, choices)), lambda value: value in choices, choices)


def _text(allowed: str, holds: Callable[[str], bool] = bool) -> Rule:
    return Rule(allowed, lambda value: isinstance(value, str) and holds(value))


def _is_regular_expression(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return bool(text)


def _are_texts(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def _are_data_sets(value: Any) -> bool:
    return _are_texts(value) and not any("," in text for text in value)  # a list without quotes would be one text


_ANY_TEXT = _text("a text, or '' for none", lambda _: True)
_NAME = _text("a name that is not empty")
_DATA_SET = "a .json/.jsonl/.parquet/.csv file or a folder of them, a hub path, builtin:arithmetic or a name as gsm8k"
_MESH_AXIS = Rule(
    "an integer >= 1, or -1 for the devices that the other axes leave",
    lambda value: type(value) is int and (value == -1 or value >= 1),
)

# A field is the algorithm's, so kept on resume, unless it is marked.
RULES: dict[str, Rule] = {
    "seed": _integer(at_least=0, at_most=2**32 - 1),
    "steps": _free(_integer(at_least=1)),
    "prompts_per_step": _integer(at_least=1),
    "rollouts_per_step": _integer(at_least=1),
    "model.path": _content(_text("a Hugging Face folder or hub name of a Qwen2.5 model")),
    "model.compute_dtype": _choice("auto", "bfloat16", "float32"),
    "model.remat": _rounding(_choice("full", "dots", "none")),
    "model.attention": _rounding(_choice("auto", "xla", "splash", "cudnn")),
    "data.path": _content(_text(_DATA_SET)),
    "data.subset": _content(_ANY_TEXT),
    "data.split": _content(_ANY_TEXT),
    "data.problem_column": _content(_ANY_TEXT),
    "data.answer_column": _content(_ANY_TEXT),
    "data.answer_from": _content(_choice("", "column", "list", "boxed")),
    "data.answer_after": _content(_ANY_TEXT),
    "data.bad_rows": _content(_choice("drop", "error")),
    "data.exclude": _content(
        Rule("a tuple of data sets: \"('math500', 'aime24')\" on the command line", _are_data_sets)
    ),
    "data.system_prompt": _ANY_TEXT,
    "data.user_template": _text("a text with {problem} in it", lambda text: "{problem}" in text),
    "data.max_prompt_tokens": _integer(at_least=1),
    "evaluation.path": _content(_text(f"{_DATA_SET}, or '' for no evaluation", lambda _: True)),
    "evaluation.subset": _content(_ANY_TEXT),
    "evaluation.split": _content(_ANY_TEXT),
    "evaluation.prompts": _integer(at_least=1),
    "evaluation.samples": _integer(at_least=1),
    "evaluation.every": _free(_integer(at_least=1)),
    "evaluation.temperature": _number(at_least=0),
    "rollout.max_new_tokens": _integer(at_least=1),
    "rollout.temperature": _number(above=0),
    "rollout.top_p": _number(above=0, at_most=1),
    "rollout.top_k": _integer(at_least=0),
    "rollout.stop_tokens": Rule("a tuple of texts that are not empty", _are_texts),
    "rollout.slots": _rounding(_integer(at_least=1)),
    "rollout.page_size": _rounding(
        Rule("a power of two from 1 to 128", lambda value: type(value) is int and value in {2**i for i in range(8)})
    ),
    "rollout.pages": _rounding(_integer(at_least=0)),
    "rollout.block_steps": _rounding(_integer(at_least=1)),
    "rollout.prefill_tokens": _rounding(_integer(at_least=1)),
    "rollout.attention": _rounding(_choice("auto", "xla", "tpu", "tpu_shared", "gpu")),
    "rollout.tensor": _rounding(_integer(at_least=0)),
    "rollout.weight_dtype": _choice("compute", "int8"),
    "rewards.function": Rule(
        f"{' or '.join(map(repr, DOMAINS))}, or module:function",
        lambda value: isinstance(value, str) and (value in DOMAINS or is_path(value)),
        tuple(DOMAINS),
    ),
    "rewards.workers": _free(_integer(at_least=0)),
    "rewards.deadline_seconds": _free(_number(above=0)),
    "rewards.memory_mib": _free(_integer(at_least=1)),
    "rewards.max_failure_rate": _free(_number(at_least=0, at_most=1)),
    "allocation.strategy": _NAME,  # the registry in allocation/strategies knows the names
    "allocation.mode": _choice("online", "pilot"),
    "allocation.pilot_samples": _integer(at_least=1),
    "allocation.pilot_weight": _number(at_least=0, below=1),
    "allocation.min_samples": _integer(at_least=1),
    "allocation.max_samples": _integer(at_least=0),
    "allocation.cost": _choice("samples", "tokens"),
    "allocation.prompt_pool": _integer(at_least=1),
    "allocation.prompt_temperature": _number(above=0),
    "allocation.alpha": _number(at_least=0),
    "allocation.beta": _number(above=0),
    "allocation.filter_threshold": _number(at_least=0, at_most=1),
    "allocation.filter_insufficient": _number(at_least=0),
    "allocation.group_baseline": _choice("leave_one_out", "mean"),
    "allocation.group_size": _integer(at_least=2),
    "allocation.groups": _integer(at_least=0),
    "allocation.screen_samples": _integer(at_least=2),
    "allocation.round_size": _integer(at_least=1),
    "allocation.max_rounds": _integer(at_least=1),
    "allocation.accepted_wanted": _integer(at_least=1),
    "allocation.rejected_wanted": _integer(at_least=0),
    "allocation.saturation": _number(above=0),
    "allocation.accept_rate_prior": _number(at_least=0),
    "allocation.gradient_norm_prior": _number(at_least=0),
    "allocation.decay": _number(at_least=0, at_most=1),
    "gradient_norms.method": _choice("gram", "vmap", "lm_head", "update"),
    "gradient_norms.parameters": _text("a regular expression", _is_regular_expression),
    "gradient_norms.chunk": _rounding(_integer(at_least=1)),
    "gradient_norms.max_samples": _integer(at_least=0),
    "objective.algorithm": _choice("raft", "raft_pp", "reinforce", "rloo", "grpo", "dr_grpo", "dapo", "gspo"),
    "objective.weighting": _choice("log_likelihood", "reward", "sequence_mean", "token_mean", "auto"),
    "objective.clip_low": _number(at_least=0, at_most=1),
    "objective.clip_high": _number(at_least=0),
    "objective.dual_clip": Rule(
        "0 for none, or a number > 1",
        lambda value: type(value) in (int, float) and (value == 0 or 1 < value < math.inf),
    ),
    "objective.mask_truncated": Rule("True or False", lambda value: isinstance(value, bool)),
    "objective.importance_cap": _number(above=0),
    "objective.kl_coefficient": _number(at_least=0),
    "objective.kl_estimator": _choice("k1", "k2", "k3"),
    "optimizer.updates_per_step": _integer(at_least=1),
    "optimizer.micro_batch": _rounding(_integer(at_least=1)),
    "optimizer.samples_per_row": _rounding(_integer(at_least=1)),
    "optimizer.learning_rate": _number(above=0),
    "optimizer.warmup_updates": _integer(at_least=0),
    "optimizer.b1": _number(at_least=0, below=1),
    "optimizer.b2": _number(at_least=0, below=1),
    "optimizer.weight_decay": _number(at_least=0),
    "optimizer.max_gradient_norm": _number(above=0),
    "optimizer.max_skipped_updates": _free(_integer(at_least=1)),
    "optimizer.logprob_chunk": _rounding(_integer(at_least=1)),
    "mesh.data": _rounding(_MESH_AXIS),
    "mesh.fsdp": _rounding(_MESH_AXIS),
    "mesh.tensor": _rounding(_MESH_AXIS),
    "distributed.start_seconds": _free(_number(above=0)),
    "distributed.peer_seconds": _free(_number(above=0)),
    "journal.samples": _free(_integer(at_least=0)),
    "wandb.project": _free(_ANY_TEXT),
    "checkpoint.every": _free(_integer(at_least=1)),
    "checkpoint.keep": _free(_integer(at_least=1)),
    "checkpoint.keep_best": _free(_integer(at_least=0)),
}


def _rollouts_reach_the_floor(rollouts, prompts, mode, pilots, floor) -> str | None:
    pilots = pilots if mode == "pilot" else 0
    if rollouts >= prompts * (pilots + floor):
        return None
    share = "(allocation.pilot_samples + allocation.min_samples)" if pilots else "allocation.min_samples"
    return (
        f"rollouts_per_step = {rollouts}: must be >= prompts_per_step × {share} = "
        f"{prompts * (pilots + floor)}; raise it or lower one of those"
    )


def _rollouts_fit_the_cap(rollouts, prompts, mode, pilots, cap) -> str | None:
    pilots = pilots if mode == "pilot" else 0
    if cap == 0 or rollouts <= prompts * (pilots + cap):
        return None
    share = "(allocation.pilot_samples + allocation.max_samples)" if pilots else "allocation.max_samples"
    return (
        f"rollouts_per_step = {rollouts}: must be <= prompts_per_step × {share} = {prompts * (pilots + cap)}; "
        "lower it, raise the cap, or set allocation.max_samples to 0 for none"
    )


def _rollouts_split_evenly(rollouts, updates, micro_batch) -> str | None:
    if rollouts % updates:
        return (
            f"rollouts_per_step = {rollouts}: must be divisible by optimizer.updates_per_step = {updates}, "
            "so that every update sees an equal share; change either"
        )
    if (rollouts // updates) % micro_batch:
        return (
            f"optimizer.micro_batch = {micro_batch}: must divide the rollouts of one update, "
            f"rollouts_per_step / optimizer.updates_per_step = {rollouts // updates}; set it to a divisor"
        )
    return None


def _weighting_suits_the_algorithm(algorithm, weighting) -> str | None:
    if weighting != "log_likelihood" or algorithm in ("raft", "raft_pp"):
        return None
    return (
        "objective.weighting = 'log_likelihood': weighs accepted samples only, but objective.algorithm = "
        f"{algorithm!r} learns from rejected ones too; use 'reward', 'sequence_mean', 'token_mean' or 'auto'"
    )


def _the_update_can_give_norms(method, mode, kl_coefficient, weight_dtype) -> str | None:
    if method != "update" or (mode, kl_coefficient, weight_dtype) == ("online", 0, "compute"):
        return None
    return (
        f"gradient_norms.method = 'update': wants allocation.mode = 'online' (is {mode!r}), objective.kl_coefficient "
        f"= 0 (is {kl_coefficient}) and rollout.weight_dtype = 'compute' (is {weight_dtype!r}), so that the loss has "
        "the gradient of the log-probability; use 'gram'"
    )


def _one_axis_fills_the_mesh(*sizes) -> str | None:
    if sizes.count(-1) <= 1:
        return None
    shown = ", ".join(f"mesh.{axis} = {size}" for axis, size in zip(("data", "fsdp", "tensor"), sizes, strict=True))
    return f"{shown}: at most one axis may be -1; give the others their number of devices"


# Each is called with the values of its fields, in this order, once these keep their own rules.
_CROSS_RULES: dict[Callable[..., str | None], tuple[str, ...]] = {
    _rollouts_reach_the_floor: (
        "rollouts_per_step",
        "prompts_per_step",
        "allocation.mode",
        "allocation.pilot_samples",
        "allocation.min_samples",
    ),
    _rollouts_fit_the_cap: (
        "rollouts_per_step",
        "prompts_per_step",
        "allocation.mode",
        "allocation.pilot_samples",
        "allocation.max_samples",
    ),
    _rollouts_split_evenly: ("rollouts_per_step", "optimizer.updates_per_step", "optimizer.micro_batch"),
    _weighting_suits_the_algorithm: ("objective.algorithm", "objective.weighting"),
    _the_update_can_give_norms: (
        "gradient_norms.method",
        "allocation.mode",
        "objective.kl_coefficient",
        "rollout.weight_dtype",
    ),
    _one_axis_fills_the_mesh: ("mesh.data", "mesh.fsdp", "mesh.tensor"),
}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The fields of a nested config by dotted name."""
    fields = {}
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            fields |= flat(value, f"{prefix}{name}.")
        else:
            fields[prefix + name] = value
    return fields


def nearest_field(name: str) -> str | None:
    """The field or section that a mistyped name most likely means; None if none comes near.

    By the letters of the whole name, or of its last part in any section; initials count (`optimizer.lr`).
    """
    name = name.lower()
    section, _, last = name.rpartition(".")
    # Fields of the same section first.
    by_last = {field.rpartition(".")[2]: field for field in reversed(RULES)}
    by_last |= {field.rpartition(".")[2]: field for field in RULES if section and field.startswith(f"{section}.")}
    for word, field in by_last.items():
        if len(last) > 1 and last == "".join(part[:1] for part in word.split("_")):
            return field
    sections = {field.rpartition(".")[0] for field in RULES} - {""}
    if near := difflib.get_close_matches(name, [*RULES, *sorted(sections)], n=1):
        return near[0]
    near = difflib.get_close_matches(last, by_last, n=1)
    return by_last[near[0]] if near else None


def hint(name: str, prefix: str = "") -> str:
    """What to do about an unknown field."""
    near = nearest_field(name)
    return f"did you mean {prefix}{near}?" if near else "gvm_jax/config/defaults.py lists the known ones"


def validate(config: ConfigDict) -> None:
    """Checks every field and what fields must hold together; touches no file and no device.

    Raises:
      ConfigError: with all problems, one a line.
    """
    fields = flat(config)
    broken = {name: f"{name}: missing; must be {rule.allowed}" for name, rule in RULES.items() if name not in fields}
    for name, value in fields.items():
        if name not in RULES:
            broken[name] = f"{name} = {value!r}: unknown field; {hint(name)}"
        elif not RULES[name].holds(value):
            near = difflib.get_close_matches(str(value), RULES[name].choices, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            broken[name] = f"{name} = {value!r}: must be {RULES[name].allowed}{meant}"
    across = [
        problem
        for rule, names in _CROSS_RULES.items()
        if broken.keys().isdisjoint(names) and (problem := rule(*(fields[name] for name in names)))
    ]
    problems = [*broken.values(), *across]
    if problems:
        raise ConfigError("\n  ".join(["the config cannot be run (set a field with --config.FIELD=VALUE):", *problems]))


ABSENT = "(absent)"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields that differ between two resolved configs, as (old, new) by name; `ABSENT` where one lacks it."""
    old, new = flat(old), flat(new)
    pairs = {name: (old.get(name, ABSENT), new.get(name, ABSENT)) for name in sorted(old.keys() | new.keys())}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def shown(name: str, before: Any, after: Any) -> str:
    """A difference as "field: old -> new"."""
    before, after = (value if value is ABSENT else repr(value) for value in (before, after))
    return f"{name}: {before} -> {after}"


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`differences`, each as it is `shown`."""
    return [shown(name, *values) for name, values in differences(old, new).items()]


def to_json(config: ConfigDict) -> str:
    """The config as JSON text; equal configs give equal texts."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> ConfigDict:
    """The locked config that `to_json` wrote. JSON's arrays become the tuples they were.

    Raises:
      ValueError: for another text.
    """

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(item) for name, item in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is wanted, found {text[:40]!r}")
    return ConfigDict(tuples(fields)).lock()
