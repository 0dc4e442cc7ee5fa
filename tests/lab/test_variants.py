"""How the variants of a comparison are typed, what each sets, and what is refused before anything is trained."""

import pytest

from configs import quickstart
from gvm_jax.config import ConfigError
from gvm_jax.lab.variants import make_variants, parse

ALPHA = "allocation.options.alpha"


@pytest.fixture
def config():
    return quickstart.get_config()


def labels(variants):
    return [(variant.label, variant.baseline) for variant in variants]


def test_the_first_entry_is_the_baseline_of_the_others(config):
    variants = make_variants(config, ["uniform", "gvm", "gvm:allocation.alpha=1e-2:allocation.beta=1"])
    assert labels(variants) == [
        ("uniform", None),
        ("gvm", "uniform"),
        ("gvm:allocation.options.alpha=0.01:allocation.options.beta=1.0", "uniform"),
    ]
    assert [variant.folder for variant in variants] == [
        "uniform", "gvm", "gvm-allocation.options.alpha=0.01-allocation.options.beta=1.0"
    ]  # fmt: skip


def test_a_label_typed_again_is_the_same_variant(config):
    for entry in ("gvm+clip+updates:allocation.options.alpha=1e-5", "uniform:optimizer.learning_rate=3E-4"):
        variant = parse(config, entry)
        assert parse(config, variant.label) == variant


def test_a_variant_changes_what_it_says_and_the_seed_alone(config):
    (_, gvm) = make_variants(config, ["uniform", "gvm:allocation.alpha=0.5"])
    changed = gvm.config(config, seed=7)
    assert changed.allocation.options.alpha == 0.5 and changed.seed == 7
    changed.seed = config.seed
    del changed.allocation.options.alpha
    assert changed.to_dict() == config.to_dict()


def test_equal_counts_have_no_pilots_unless_they_are_asked_for(config):
    config.allocation.mode = "pilot"
    uniform, with_pilots, gvm = make_variants(config, ["uniform", "uniform:allocation.mode=pilot", "gvm"])
    modes = [variant.config(config, 0).allocation.mode for variant in (uniform, with_pilots, gvm)]
    assert modes == ["online", "pilot", "pilot"]


def test_a_sweep_trains_every_strategy_but_the_baseline_at_each_value(config):
    variants = make_variants(config, ["uniform", "gvm", "cures"], sweep="allocation.decay:0.5,1")
    assert labels(variants) == [
        ("uniform", None),
        ("gvm:allocation.decay=0.5", "uniform"),
        ("gvm:allocation.decay=1.0", "uniform"),
        ("cures:allocation.decay=0.5", "uniform"),
        ("cures:allocation.decay=1.0", "uniform"),
    ]


def test_a_sweep_of_what_equal_counts_depend_on_moves_the_baseline_too(config):
    variants = make_variants(config, ["uniform", "gvm"], sweep="rollouts_per_step:256,1024")
    assert labels(variants) == [
        ("uniform:rollouts_per_step=256", None),
        ("uniform:rollouts_per_step=1024", None),
        ("gvm:rollouts_per_step=256", "uniform:rollouts_per_step=256"),
        ("gvm:rollouts_per_step=1024", "uniform:rollouts_per_step=1024"),
    ]


def test_a_text_and_a_truth_value_can_be_swept(config):
    first, second = make_variants(config, ["uniform", "gvm"], sweep="allocation.cost:samples,tokens")[1:]
    assert [v.config(config, 0).allocation.cost for v in (first, second)] == ["samples", "tokens"]
    assert parse(config, "gvm:objective.mask_truncated=true").overrides["objective.mask_truncated"] is True


def test_a_strategy_of_ones_own_is_an_entry_too(config):
    entry = "gvm_jax.strategies.vip:Vip+clip:allocation.min_samples=3:allocation.options.group_baseline=mean"
    variant = parse(config, entry)
    assert variant.label == entry
    assert variant.config(config, 0).allocation.options.to_dict() == {"group_baseline": "mean"}
    (_, plain, clipped) = plan(config, ["uniform", "gvm_jax.allocation:Gvm"], confounds=["clip"])
    assert (plain.label, clipped.label) == ("gvm_jax.allocation:Gvm", "gvm_jax.allocation:Gvm+clip")


def test_confounds_come_alone_and_together(config):
    variants = make_variants(config, ["uniform", "gvm"], confounds=["clip", "token_mean"])
    assert labels(variants) == [
        ("uniform", None),
        ("gvm", "uniform"),
        ("gvm+clip", "uniform"),
        ("gvm+token_mean", "uniform"),
        ("gvm+clip+token_mean", "uniform"),
    ]
    assert labels(make_variants(config, ["uniform", "gvm"], confounds=["clip"]))[1:] == [
        ("gvm", "uniform"),
        ("gvm+clip", "uniform"),
    ]


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


def test_grpo_is_given_the_updates_that_the_reference_gives_it():
    config = quickstart.get_config("grpo")
    assert parse(config, "gvm+updates").overrides["optimizer.updates_per_step"] == 4


def test_micro_batches_shrink_to_what_divides_an_update(config):
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
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_compared_is_one_clear_line(config, entries, more, message):
    with pytest.raises(ConfigError) as raised:
        make_variants(config, entries, **more)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("gvm:rollouts_per_step=8", "gvm:rollouts_per_step=8: rollouts_per_step = 8: must be >= prompts_per_step"),
        ("gvm:optimizer.micro_batch=3", "optimizer.micro_batch = 3: must divide"),
        ("vip", "vip: allocation.min_samples = 1: must be >= "),
        ("dapo+pilots", "dapo+pilots: allocation.mode = 'pilot': allocation.strategy = 'dapo' samples in rounds"),
    ],
)
def test_a_variant_that_cannot_be_run_is_one_clear_line(config, entry, message):
    with pytest.raises(ConfigError) as raised:
        parse(config, entry).config(config, 0)
    assert message in str(raised.value) and "\n" not in str(raised.value)
