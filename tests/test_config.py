"""Each rule refuses what breaks it and names the field; JSON gives the same config back."""

import json
import subprocess
import sys

import pytest

from gvm_jax import command
from gvm_jax.config import RULES, ConfigError, diff, from_json, get_config, nearest_field, to_json, validate


def runnable():
    config = get_config()
    config.model.path = "Qwen/Qwen2.5-0.5B"
    config.data.path = "openai/gsm8k"
    return config


def changed(**fields):
    """A runnable config with fields set by name, `__` for the dot; ConfigDict checks no type here."""
    config = runnable()
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
    validate(runnable())
    assert [line.split(" = ")[0] for line in problems(get_config())] == ["data.path", "model.path"]


def test_every_default_field_has_a_rule_and_no_rule_is_left_over():
    fields = {line.split(":")[0] for line in diff(runnable(), {})}
    assert fields == RULES.keys()


BROKEN = [
    ("seed", -1),
    ("seed", 2**32),
    ("steps", 0),
    ("steps", 1.0),
    ("steps", True),
    ("prompts_per_step", 0),
    ("rollouts_per_step", "8192"),
    ("model__path", ""),
    ("model__path", None),
    ("model__compute_dtype", "float16"),
    ("model__remat", 1),
    ("model__attention", "flash"),
    ("data__path", ""),
    ("data__subset", None),
    ("data__split", None),
    ("data__problem_column", None),
    ("data__answer_column", 0),
    ("data__answer_from", "text"),
    ("data__answer_after", 4),
    ("data__bad_rows", "keep"),
    ("data__exclude", "math500"),
    ("data__exclude", ("math500,gsm8k",)),
    ("data__system_prompt", None),
    ("data__user_template", "{question}"),
    ("data__max_prompt_tokens", 0),
    ("evaluation__path", None),
    ("evaluation__subset", None),
    ("evaluation__split", None),
    ("evaluation__prompts", 0),
    ("evaluation__samples", 0),
    ("evaluation__every", 0),
    ("evaluation__temperature", -0.1),
    ("rollout__max_new_tokens", 0),
    ("rollout__temperature", 0.0),
    ("rollout__temperature", float("nan")),
    ("rollout__temperature", float("inf")),
    ("rollout__top_p", 0.0),
    ("rollout__top_p", 1.1),
    ("rollout__top_k", -1),
    ("rollout__stop_tokens", "<|im_end|>"),
    ("rollout__stop_tokens", ("",)),
    ("rollout__stop_tokens", (151645,)),
    ("rollout__slots", 0),
    ("rollout__page_size", 0),
    ("rollout__pages", -1),
    ("rollout__block_steps", 0),
    ("rollout__prefill_tokens", 0),
    ("rollout__tensor", -1),
    ("rollout__attention", "flash"),
    ("rollout__weight_dtype", "int4"),
    ("rewards__function", "maths"),
    ("rewards__function", "my-rewards:score"),
    ("rewards__function", ":score"),
    ("rewards__function", None),
    ("rewards__workers", -1),
    ("rewards__deadline_seconds", 0.0),
    ("rewards__memory_mib", 0),
    ("rewards__max_failure_rate", 1.5),
    ("allocation__strategy", ""),
    ("allocation__mode", "offline"),
    ("allocation__pilot_samples", 0),
    ("allocation__pilot_weight", -0.1),
    ("allocation__pilot_weight", 1.0),
    ("allocation__min_samples", 0),
    ("allocation__max_samples", -1),
    ("allocation__cost", "seconds"),
    ("allocation__prompt_pool", 0),
    ("allocation__prompt_temperature", 0.0),
    ("allocation__alpha", -1e-3),
    ("allocation__filter_threshold", 1.1),
    ("allocation__filter_insufficient", -1.0),
    ("allocation__group_baseline", "none"),
    ("allocation__group_size", 1),
    ("allocation__groups", -1),
    ("allocation__screen_samples", 1),
    ("allocation__round_size", 0),
    ("allocation__max_rounds", 0),
    ("allocation__accepted_wanted", 0),
    ("allocation__rejected_wanted", -1),
    ("allocation__saturation", 0.0),
    ("allocation__beta", 0.0),
    ("allocation__accept_rate_prior", -1.0),
    ("allocation__gradient_norm_prior", -1.0),
    ("allocation__decay", 1.1),
    ("gradient_norms__method", "autograd"),
    ("gradient_norms__parameters", "("),
    ("gradient_norms__parameters", ""),
    ("gradient_norms__chunk", 0),
    ("gradient_norms__max_samples", -1),
    ("objective__algorithm", "ppo"),
    ("objective__weighting", "mean"),
    ("objective__clip_low", 1.1),
    ("objective__clip_high", -0.1),
    ("objective__dual_clip", 1.0),
    ("objective__mask_truncated", 1),
    ("objective__importance_cap", 0.0),
    ("objective__kl_coefficient", -0.1),
    ("objective__kl_estimator", "k4"),
    ("optimizer__updates_per_step", 0),
    ("optimizer__micro_batch", 0),
    ("optimizer__samples_per_row", 0),
    ("optimizer__learning_rate", 0.0),
    ("optimizer__warmup_updates", -1),
    ("optimizer__b1", 1.0),
    ("optimizer__b2", 1.0),
    ("optimizer__weight_decay", -0.1),
    ("optimizer__max_gradient_norm", 0.0),
    ("optimizer__max_skipped_updates", 0),
    ("optimizer__logprob_chunk", 0),
    ("mesh__data", 0),
    ("mesh__fsdp", -2),
    ("mesh__tensor", 1.0),
    ("distributed__start_seconds", 0.0),
    ("distributed__peer_seconds", float("inf")),
    ("journal__samples", -1),
    ("wandb__project", None),
    ("checkpoint__every", 0),
    ("checkpoint__keep", 0),
    ("checkpoint__keep_best", -1),
]


@pytest.mark.parametrize(("name", "value"), BROKEN, ids=lambda item: str(item))
def test_a_value_out_of_its_rule_is_refused_by_name(name, value):
    field = name.replace("__", ".")
    (problem,) = problems(changed(**{name: value}))
    assert problem.partition("; did you mean ")[0] == f"{field} = {value!r}: must be {RULES[field].allowed}"


def test_every_rule_has_a_value_that_breaks_it():
    assert {name.replace("__", ".") for name, _ in BROKEN} == RULES.keys()


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
    ],
)
def test_the_edge_of_a_rule_is_allowed(name, value):
    validate(changed(**{name: value}))


SMALL = {"prompts_per_step": 4, "optimizer__updates_per_step": 1, "optimizer__micro_batch": 1}


@pytest.mark.parametrize(
    ("field", "fewest", "fields"),
    [
        ("rollouts_per_step", 8, {"allocation__min_samples": 2}),
        (
            "rollouts_per_step",
            20,
            {"allocation__min_samples": 2, "allocation__mode": "pilot", "allocation__pilot_samples": 3},
        ),
    ],
    ids=["online", "pilot"],
)
def test_rollouts_reach_every_prompts_floor(field, fewest, fields):
    validate(changed(**SMALL, **fields, rollouts_per_step=fewest))
    (problem,) = problems(changed(**SMALL, **fields, rollouts_per_step=fewest - 1))
    assert problem.startswith(f"{field} = {fewest - 1}: must be >= ")
    assert f"= {fewest};" in problem


def test_rollouts_fit_under_every_prompts_cap():
    validate(changed(**SMALL, allocation__max_samples=3, rollouts_per_step=12))
    (problem,) = problems(changed(**SMALL, allocation__max_samples=3, rollouts_per_step=13))
    assert problem.startswith("rollouts_per_step = 13: must be <= ") and "allocation.max_samples" in problem
    pilots = {"allocation__mode": "pilot", "allocation__pilot_samples": 2}
    validate(changed(**SMALL, **pilots, allocation__max_samples=3, rollouts_per_step=20))
    (problem,) = problems(changed(**SMALL, **pilots, allocation__max_samples=3, rollouts_per_step=21))
    assert problem.startswith("rollouts_per_step = 21: must be <= ")


def test_updates_get_equal_shares_of_whole_micro_batches():
    shares = {"prompts_per_step": 4, "optimizer__updates_per_step": 4, "optimizer__micro_batch": 3}
    validate(changed(**shares, rollouts_per_step=24))
    (problem,) = problems(changed(**shares, rollouts_per_step=26))
    assert problem.startswith("rollouts_per_step = 26: ") and "optimizer.updates_per_step = 4" in problem
    (problem,) = problems(changed(**shares, rollouts_per_step=20))
    assert problem.startswith("optimizer.micro_batch = 3: ") and "= 5;" in problem


def test_at_most_one_mesh_axis_takes_the_rest():
    (problem,) = problems(changed(mesh__fsdp=-1))
    assert problem.startswith("mesh.data = -1, mesh.fsdp = -1, mesh.tensor = 1: ")


def test_grpo_does_not_weigh_accepted_samples_only():
    (problem,) = problems(changed(objective__algorithm="grpo", objective__weighting="log_likelihood"))
    assert problem.startswith("objective.weighting = 'log_likelihood': ")


def test_all_problems_are_reported_at_once():
    lines = problems(changed(steps=0, rollout__top_p=2.0, mesh__fsdp=-1))
    assert [line.split(" = ")[0] for line in lines] == ["rollout.top_p", "steps", "mesh.data"]


def test_a_reward_may_be_a_function_of_the_users_own():
    validate(changed(rewards__function="my_package.rewards:Scorer.score"))


def test_the_nearest_choice_is_named():
    (problem,) = problems(changed(rewards__function="maths"))
    assert problem.startswith(
        "rewards.function = 'maths': must be 'exact' or 'math' or 'math_verify' or 'python_tests', or module:function"
    )
    assert problem.endswith("; did you mean 'math'?")


def test_unknown_and_missing_fields_are_reported():
    config = runnable().unlock()
    config.rollout.page_sise = 64
    del config.rollout.page_size
    lines = problems(config)
    assert any(line.startswith("rollout.page_sise = 64: unknown field") for line in lines)
    assert any(line.startswith("rollout.page_size: missing; must be a power of two") for line in lines)


def test_json_gives_the_same_config_back():
    config = changed(rollout__stop_tokens=("<|im_end|>", "é"), data__answer_after="####")
    text = to_json(config)
    again = from_json(text)
    assert again == config and type(again.rollout.stop_tokens) is tuple
    assert to_json(again) == text
    assert json.loads(text)["rollout"]["stop_tokens"] == ["<|im_end|>", "é"]
    validate(again)


def test_diff_names_what_changed():
    assert diff(runnable(), runnable()) == []
    assert diff(runnable(), changed(steps=7, rollout__top_p=0.5)) == [
        "rollout.top_p: 1.0 -> 0.5",
        "steps: 100 -> 7",
    ]
    assert diff({"a": {"b": 1}}, {"a": {"c": (1,)}}) == ["a.b: 1 -> (absent)", "a.c: (absent) -> (1,)"]


def test_importing_the_rules_imports_no_jax():
    code = "import sys, gvm_jax.config; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_norms_from_the_update_want_a_loss_that_is_the_log_probability():
    validate(changed(gradient_norms__method="update"))
    for field, value in [
        ("allocation__mode", "pilot"),
        ("objective__kl_coefficient", 0.1),
        ("rollout__weight_dtype", "int8"),
    ]:
        (problem,) = problems(changed(gradient_norms__method="update", **{field: value}))
        assert problem.startswith("gradient_norms.method = 'update'") and field.replace("__", ".") in problem


@pytest.mark.parametrize(
    ("mistyped", "meant"),
    [
        ("optimzer.learning_rate", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("rollouts_per_stp", "rollouts_per_step"),
        ("xyzzy.plugh", None),
    ],
)
def test_the_nearest_field_is_named(mistyped, meant):
    assert nearest_field(mistyped) == meant


def test_a_config_file_that_python_cannot_read_is_told_by_its_line(tmp_path, monkeypatch, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return (\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        command._parse(lambda: None, ("config",), ["train", f"--config={file}"])
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert f"{file}, line 2: " in error and error.count("\n") == 1
