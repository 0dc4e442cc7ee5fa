"""Each rule refuses the values that break it and names the field; JSON gives the same config back."""

import json
import re
import subprocess
import sys

import pytest

from gvm_jax.config import (
    FIELDS,
    ConfigError,
    diff,
    flat,
    from_json,
    from_text,
    get_config,
    nearest_field,
    to_json,
    validate,
)
from gvm_jax.config import __main__ as listing


def changed(**fields):
    """A config that can be run, with fields set by name, `__` for the dot; no type is checked here."""
    config = get_config()
    config.model.path, config.data.path = "Qwen/Qwen2.5-0.5B", "openai/gsm8k"
    with config.ignore_type():
        for name, value in fields.items():
            section, _, field = name.rpartition("__")
            setattr(getattr(config, section) if section else config, field, value)
    return config


def problems(config) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        validate(config)
    header, *lines = str(raised.value).splitlines()
    assert "--config." in header
    return [line.strip() for line in lines]


def test_defaults_need_only_a_model_and_data():
    validate(changed())
    assert [line.split(" = ")[0] for line in problems(get_config())] == ["data.path", "model.path"]


def test_every_default_keeps_its_rule_and_every_field_says_what_it_is_for():
    without = {name for name, field in FIELDS.items() if not field.holds(field.default)}
    assert without == {"model.path", "data.path"}
    assert all(field.help and field.allowed for field in FIELDS.values())


BROKEN = {
    "seed": [-1, 2**32],
    "steps": [0, 1.0, True],
    "prompts_per_step": [0],
    "rollouts_per_step": ["8192"],
    "model": {"path": ["", None], "compute_dtype": ["float16"], "remat": [1], "attention": ["flash"]},
    "data": {
        "path": [""], "subset": [None], "split": [None], "problem_column": [None], "answer_column": [0],
        "answer_from": ["text"], "answer_after": [4], "bad_rows": ["keep"], "exclude": ["math500", ("math500,gsm8k",)],
        "system_prompt": [None], "user_template": ["{question}"], "max_prompt_tokens": [0],
    },
    "evaluation": {
        "path": [None], "subset": [None], "split": [None], "prompts": [0], "samples": [0], "every": [0],
        "temperature": [-0.1],
    },
    "rollout": {
        "max_new_tokens": [0], "temperature": [0.0, float("nan"), float("inf")], "top_p": [0.0, 1.1], "top_k": [-1],
        "stop_tokens": ["<|im_end|>", ("",), (151645,)], "slots": [0], "page_size": [0, 96, 256], "pages": [-1],
        "block_steps": [0], "prefill_tokens": [0], "tensor": [-1], "attention": ["flash"], "weight_dtype": ["int4"],
    },
    "rewards": {
        "function": ["maths", "my-rewards:score", ":score", None], "workers": [-1], "deadline_seconds": [0.0],
        "memory_mib": [0], "max_failure_rate": [1.5],
    },
    "allocation": {
        "strategy": [""], "mode": ["offline"], "pilot_samples": [0], "pilot_weight": [-0.1, 1.0], "min_samples": [0],
        "max_samples": [-1], "cost": ["seconds"], "prompt_pool": [0], "prompt_temperature": [0.0],
        "accept_rate_prior": [-1.0], "gradient_norm_prior": [-1.0], "decay": [1.1],
    },
    "gradient_norms": {"method": ["autograd"], "parameters": ["(", ""], "chunk": [0], "max_samples": [-1]},
    "objective": {
        "algorithm": ["ppo"], "weighting": ["mean"], "clip_low": [1.1], "clip_high": [-0.1], "dual_clip": [1.0],
        "mask_truncated": [1], "importance_cap": [0.0], "kl_coefficient": [-0.1], "kl_estimator": ["k4"],
    },
    "optimizer": {
        "updates_per_step": [0], "micro_batch": [0], "samples_per_row": [0], "learning_rate": [0.0],
        "warmup_updates": [-1], "b1": [1.0], "b2": [1.0], "weight_decay": [-0.1], "max_gradient_norm": [0.0],
        "max_skipped_updates": [0], "logprob_chunk": [0],
    },
    "mesh": {"data": [0], "fsdp": [-2], "tensor": [1.0]},
    "distributed": {"start_seconds": [0.0], "peer_seconds": [float("inf")]},
    "journal": {"samples": [-1]},
    "wandb": {"project": [None]},
    "checkpoint": {"every": [0], "keep": [0], "keep_best": [-1]},
}  # fmt: skip


def test_every_field_refuses_a_value_that_breaks_its_rule():
    broken = flat(BROKEN)
    assert broken.keys() == FIELDS.keys()
    for name, values in broken.items():
        for value in values:
            (problem,) = problems(changed(**{name.replace(".", "__"): value}))
            assert problem.partition("; did you mean ")[0] == f"{name} = {value!r}: must be {FIELDS[name].allowed}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollout__top_p", 1),
        ("evaluation__temperature", 0.0),
        ("rollout__stop_tokens", ("<|im_end|>", "<|endoftext|>")),
        ("rollout__page_size", 128),
        ("seed", 2**32 - 1),
        ("allocation__decay", 0.0),
        ("allocation__max_samples", 8),
        ("mesh__data", 4),
        ("rewards__function", "my_package.rewards:Scorer.score"),
    ],
)
def test_the_edge_of_a_rule_is_allowed(name, value):
    validate(changed(**{name: value}))


SMALL = {"prompts_per_step": 4, "optimizer__updates_per_step": 1, "optimizer__micro_batch": 1}
PILOTS = SMALL | {"allocation__mode": "pilot"}


@pytest.mark.parametrize(
    ("fields", "least", "most"),
    [
        (SMALL | {"allocation__min_samples": 2}, 8, None),
        (PILOTS | {"allocation__min_samples": 2, "allocation__pilot_samples": 3}, 20, None),
        (SMALL | {"allocation__max_samples": 3}, None, 12),
        (PILOTS | {"allocation__max_samples": 3, "allocation__pilot_samples": 2}, None, 20),
    ],
)
def test_rollouts_reach_every_prompts_floor_and_fit_under_its_cap(fields, least, most):
    edge, beyond, sign = (least, least - 1, ">=") if least else (most, most + 1, "<=")
    validate(changed(**fields, rollouts_per_step=edge))
    (problem,) = problems(changed(**fields, rollouts_per_step=beyond))
    assert problem.startswith(f"rollouts_per_step = {beyond}: must be {sign} ") and f"= {edge};" in problem


SHARES = {"prompts_per_step": 4, "optimizer__updates_per_step": 4, "optimizer__micro_batch": 3}


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        (SHARES | {"rollouts_per_step": 26}, ["rollouts_per_step = 26: ", "optimizer.updates_per_step = 4"]),
        (SHARES | {"rollouts_per_step": 20}, ["optimizer.micro_batch = 3: ", "= 5;"]),
        ({"mesh__fsdp": -1}, ["mesh.data = -1, mesh.fsdp = -1, mesh.tensor = 1: "]),
        (
            {"objective__algorithm": "grpo", "objective__weighting": "log_likelihood"},
            ["objective.weighting = 'log_likelihood': ", "'grpo'"],
        ),
    ],
)
def test_fields_that_do_not_suit_each_other_are_refused(fields, parts):
    (problem,) = problems(changed(**fields))
    assert problem.startswith(parts[0]) and all(part in problem for part in parts)


def test_all_problems_are_reported_at_once():
    config = changed(steps=0, rollout__top_p=2.0, mesh__fsdp=-1, rewards__function="maths").unlock()
    config.rollout.page_sise = 64
    del config.rollout.page_size
    lines = {re.match(r"[\w.]+", line)[0]: line for line in problems(config)}
    rollout = {"rollout.top_p", "rollout.page_sise", "rollout.page_size"}
    assert lines.keys() == {"steps", "mesh.data", "rewards.function", *rollout}
    assert lines["rewards.function"].endswith("or 'python_tests', or module:function; did you mean 'math'?")
    assert lines["rollout.page_sise"].endswith("= 64: unknown field; did you mean rollout.page_size?")
    assert "missing; must be a power of two" in lines["rollout.page_size"]


def test_json_gives_the_same_config_back():
    config = changed(rollout__stop_tokens=("<|im_end|>", "é"), data__answer_after="####")
    config.allocation.options.power = 2.0  # a strategy of one's own
    text = to_json(config)
    again = from_json(text)
    assert again == config and to_json(again) == text
    assert type(again.rollout.stop_tokens) is tuple and type(again.allocation.options.power) is float
    assert json.loads(text)["rollout"]["stop_tokens"] == ["<|im_end|>", "é"]
    validate(again)


def test_no_field_can_be_added_but_the_strategys_options():
    for config in (get_config(), from_json(to_json(get_config()))):
        config.allocation.options.power = 0.5
        for section in (config, config.allocation, config.optimizer):
            with pytest.raises(AttributeError, match="locked"):
                section.power = 0.5


def test_diff_names_what_changed():
    assert diff(changed(), changed()) == []
    assert diff(changed(), changed(steps=7, rollout__top_p=0.5)) == ["rollout.top_p: 1.0 -> 0.5", "steps: 100 -> 7"]
    assert diff({"a": {"b": 1}}, {"a": {"c": (1,)}}) == ["a.b: 1 -> (absent)", "a.c: (absent) -> (1,)"]


@pytest.mark.parametrize(
    ("text", "like", "value"),
    [
        ("3", 1, 3), ("3", 1.0, 3.0), ("1e-3", 1.0, 1e-3), ("True", False, True), ("false", True, False),
        ("3", "", "3"), ("('a', 'b')", (), ("a", "b")), ("a", (), ("a",)), ("x", 1, "x"), ("0.5", None, 0.5),
        ("4", None, 4), ("true", None, True), ("mean", None, "mean"),
    ],
)  # fmt: skip
def test_a_text_of_the_command_line_is_a_value_of_the_fields_type(text, like, value):
    assert from_text(text, like) == value and type(from_text(text, like)) is type(value)


def test_every_field_is_the_nearest_to_its_own_name():
    assert all(nearest_field(name) == name for name in FIELDS)


@pytest.mark.parametrize(
    ("mistyped", "field"),
    [
        ("lr", "optimizer.learning_rate"), ("optimizer.lr", "optimizer.learning_rate"),
        ("Optimizer.LR", "optimizer.learning_rate"), ("learning_rate", "optimizer.learning_rate"),
        ("optimzer.learning_rate", "optimizer.learning_rate"), ("rollouts_per_stp", "rollouts_per_step"),
        ("rollout.max_tokens", "rollout.max_new_tokens"), ("max_new_tokens", "rollout.max_new_tokens"),
        ("data.pth", "data.path"), ("evaluation.pth", "evaluation.path"), ("xyzzy.plugh", None), ("qwertyuiop", None),
    ],
)  # fmt: skip
def test_a_mistyped_field_is_told_the_nearest(mistyped, field):
    assert nearest_field(mistyped) == field


def test_every_field_is_listed_for_people(capsys):
    listing.main([])
    shown = capsys.readouterr().out
    assert all(f"{name} = {field.default!r}\n" in shown for name, field in FIELDS.items())
    listing.main(["mesh"])
    shown = capsys.readouterr().out
    assert shown.startswith("mesh.data = -1\n    devices of the batch axis. Must be an integer >= 1, or -1")
    with pytest.raises(SystemExit) as end:
        listing.main(["optimzer"])
    assert end.value.code == 2 and "did you mean optimizer?" in capsys.readouterr().err


def test_importing_the_config_imports_no_jax():
    code = "import sys, gvm_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
