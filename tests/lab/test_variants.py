"""How the variants of a comparison are typed, what each sets, and what is refused before anything is trained."""

import pytest

from configs import quickstart
from gvm_jax.config import ConfigError, flat
from gvm_jax.lab.variants import make_variants, parse

ALPHA = "allocation.options.alpha"


@pytest.fixture
def config():
    return quickstart.get_config()


GVM, BASE = ("gvm", "uniform"), ("uniform", None)


@pytest.mark.parametrize(
    ("entries", "more", "expected"),
    [
        (
            ["uniform", "gvm", "gvm:allocation.options.alpha=1e-2:allocation.options.beta=1"],
            {},
            [BASE, GVM, ("gvm:allocation.options.alpha=0.01:allocation.options.beta=1.0", "uniform")],
        ),
        (
            ["uniform", "gvm", "cures"],
            {"sweep": "allocation.decay:0.5,1"},
            [
                BASE,
                *((f"{name}:allocation.decay={value}", "uniform") for name in ("gvm", "cures") for value in (0.5, 1.0)),
            ],
        ),
        (  # equal counts depend on it: the baseline moves too
            ["uniform", "gvm"],
            {"sweep": "rollouts_per_step:256,1024"},
            [(f"uniform:rollouts_per_step={n}", None) for n in (256, 1024)]
            + [(f"gvm:rollouts_per_step={n}", f"uniform:rollouts_per_step={n}") for n in (256, 1024)],
        ),
        (
            ["uniform", "gvm"],
            {"confounds": ["clip", "token_mean"]},
            [BASE, GVM, *((f"gvm{names}", "uniform") for names in ("+clip", "+token_mean", "+clip+token_mean"))],
        ),
        (
            ["uniform", "gvm:allocation.options.alpha=0.5"],
            {"confounds": ["clip"]},
            [BASE, *((f"gvm{names}:allocation.options.alpha=0.5", "uniform") for names in ("", "+clip"))],
        ),
    ],
)
def test_entries_sweeps_and_confounds_name_the_variants(config, entries, more, expected):
    variants = make_variants(config, entries, **more)
    assert [(variant.label, variant.baseline) for variant in variants] == expected
    for variant in variants:  # a label typed again is the same variant
        assert parse(config, variant.label, variant.baseline) == variant
    assert len({variant.folder for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    "entry", ["gvm:allocation.options.alpha=0.5", "gvm:allocation.cost=tokens", "gvm:model.remat=none"]
)
def test_a_variant_changes_what_it_says_and_the_seed_alone(config, entry):
    changed = flat(parse(config, entry).config(config, seed=7).to_dict())
    field, value = entry.removeprefix("gvm:").split("=")
    assert str(changed[field]) == value and changed["seed"] == 7
    assert changed == flat(config.to_dict()) | {field: changed[field], "seed": 7}
    assert parse(config, "gvm:objective.mask_truncated=true").overrides["objective.mask_truncated"] is True


def test_a_strategy_of_ones_own_is_an_entry_too(config):
    entry = "gvm_jax.strategies.vip:Vip+clip:allocation.min_samples=3:allocation.options.group_baseline=mean"
    variant = parse(config, entry)
    assert variant.label == entry
    assert variant.config(config, 0).allocation.options.to_dict() == {"group_baseline": "mean"}
    (_, plain, clipped) = make_variants(config, ["uniform", "gvm_jax.allocation:Gvm"], confounds=["clip"])
    assert (plain.label, clipped.label) == ("gvm_jax.allocation:Gvm", "gvm_jax.allocation:Gvm+clip")


def test_equal_counts_have_no_pilots_unless_they_are_asked_for(config):
    config.allocation.mode = "pilot"
    modes = {"uniform": "online", "uniform:allocation.mode=pilot": "pilot", "gvm": "pilot"}
    assert {entry: parse(config, entry).config(config, 0).allocation.mode for entry in modes} == modes


def test_what_the_confounds_set(config):
    everything = parse(config, "gvm+updates+token_mean+clip+pilots+dropped")
    changed = everything.config(config, 0)
    assert changed.optimizer.updates_per_step == 8 * config.optimizer.updates_per_step
    assert (changed.objective.weighting, changed.objective.clip_high) == ("token_mean", 0.4)
    assert (changed.allocation.strategy, changed.allocation.decay) == ("gvm_paper", 0.0)
    pilots = config.prompts_per_step * config.allocation.pilot_samples
    assert everything.free_pilots == pilots and changed.allocation.mode == "pilot"
    assert changed.rollouts_per_step == config.rollouts_per_step + pilots  # the budget is left for fresh samples
    assert parse(config, "gvm+clip").free_pilots == 0
    dropped = parse(config, "gvm+dropped")  # its pilots are counted, and paid from the same budget
    assert dropped.free_pilots == 0 and dropped.config(config, 0).rollouts_per_step == config.rollouts_per_step
    assert dropped.config(config, 0).allocation.mode == "pilot"


def test_updates_and_micro_batches_follow_the_algorithm(config):
    grpo = quickstart.get_config("grpo")  # the reference gives it 8 for 4
    assert parse(grpo, "gvm+updates").overrides["optimizer.updates_per_step"] == 4
    config.optimizer.micro_batch = 64  # 512 rollouts / 16 updates = 32
    assert parse(config, "gvm+updates").config(config, 0).optimizer.micro_batch == 32
    assert parse(config, "gvm+clip").config(config, 0).optimizer.micro_batch == 64


@pytest.mark.parametrize(
    ("entries", "more", "message"),
    [
        (["uniform", "gvn"], {}, "gvn: allocation.strategy = 'gvn': unknown; use one of uniform, gvm"),
        ([], {}, "--strategies=: must name strategies"),
        (["uniform", ""], {}, "--strategies=uniform,: must name strategies"),
        (["uniform", "uniform"], {}, "uniform: the same as uniform"),
        (
            ["gvm:allocation.options.alpha=.01", "gvm:allocation.options.alpha=1e-2"],
            {},
            "the same as gvm:allocation.options.alpha=.01",
        ),
        (["uniform", "gvm:alpha=1"], {}, "gvm:alpha=1: unknown field 'alpha'"),
        (["uniform", "gvm:allocation.options.alpha"], {}, "'allocation.options.alpha' must be FIELD=VALUE"),
        (["uniform", "gvm:allocation.min_samples=1.5"], {}, "allocation.min_samples = 1.5: must be an integer >= 1"),
        (["uniform", "gvm:objective.mask_truncated=0"], {}, "objective.mask_truncated = 0: must be True or False"),
        (["uniform", "gvm:seed=3"], {}, "seed cannot be set here: the comparison sets it"),
        (["uniform", "gvm:allocation.strategy=cures"], {}, "allocation.strategy cannot be set here"),
        (["uniform", "gvm:rollout.stop_tokens=x"], {}, "rollout.stop_tokens cannot be set here"),
        (
            ["uniform:allocation.options.alpha=1", "gvm"],
            {},
            "allocation.options.alpha: Uniform has no options",
        ),
        (["uniform", "gvm:allocation.pilot_samples=2"], {}, "add --config.allocation.mode=pilot"),
        (["uniform", "gvm+magic"], {}, "unknown confound 'magic'; use some of updates"),
        (["uniform", "cures+dropped"], {}, "cures+dropped: confound 'dropped' turns gvm into gvm_paper"),
        (["uniform", "gvm+clip:objective.clip_high=0.3"], {}, "a confound sets objective.clip_high too"),
        (
            ["uniform", "gvm"],
            {"sweep": "allocation.options.alpha"},
            "--sweep=allocation.options.alpha: must be FIELD:VALUE",
        ),
        (["uniform", "gvm"], {"sweep": "allocation.options.alpha:1,,2"}, "must be FIELD:VALUE"),
        (["uniform", "gvm"], {"sweep": "allocation.gamma:1"}, "unknown field 'allocation.gamma'"),
        (["uniform", "gvm"], {"sweep": "allocation.options.alpha:1,1.0"}, "name each variant once"),
        (["uniform"], {"sweep": "allocation.options.alpha:1"}, "names the baseline alone"),
        (["uniform"], {"confounds": ["clip"]}, "names the baseline alone"),
        (["uniform", "gvm"], {"sweep": "allocation.options.alpha:1", "confounds": ["clip"]}, "one at a time"),
        (
            ["gvm:rollouts_per_step=8"],
            {},
            "gvm:rollouts_per_step=8: rollouts_per_step = 8: must be >= prompts_per_step",
        ),
        (["gvm:optimizer.micro_batch=3"], {}, "optimizer.micro_batch = 3: must divide"),
        (["vip"], {}, "vip: allocation.min_samples = 1: must be >= "),
        (["dapo+pilots"], {}, "dapo+pilots: allocation.mode = 'pilot': allocation.strategy = 'dapo' samples in rounds"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_compared_is_one_clear_line(config, entries, more, message):
    with pytest.raises(ConfigError) as raised:
        for variant in make_variants(config, entries, **more):
            variant.config(config, 0)
    assert message in str(raised.value) and "\n" not in str(raised.value)
