"""Strategies by name, their options, and the example of the README."""

import dataclasses
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict

import gvm_jax.allocation
from gvm_jax.allocation import STRATEGIES, Gvm, Strategy, load_strategy, make_strategy
from gvm_jax.config import ConfigError, get_config

PAGE = (Path(gvm_jax.allocation.__file__).parent / "README.md").read_text()


def section(**fields) -> ConfigDict:
    return ConfigDict(get_config().allocation.to_dict() | {"min_samples": 3} | fields)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_made_with_its_defaults_and_documented(name):
    made = make_strategy(section(strategy=name))
    assert type(made) is load_strategy(name) and made == load_strategy(name)()
    assert hash(made) == hash(load_strategy(name)())  # a static argument
    row = re.search(rf"^\| `{name}` \|.*\| (\d) \|", PAGE, flags=re.MULTILINE)
    assert int(row[1]) == max(made.minimum_samples, 1)


def test_options_are_fields_and_a_text_is_read_as_the_type_of_the_default():
    assert make_strategy(section(strategy="gvm", options={"alpha": 1, "beta": "3"})) == Gvm(1.0, 3.0)
    assert make_strategy(section(strategy="vip", options={"group_baseline": "mean"})).group_baseline == "mean"
    assert make_strategy(section(strategy="dapo", options={"groups": "5"})).groups == 5


@dataclasses.dataclass(frozen=True)
class Plain(Strategy):
    whole: int = 2
    flag: bool = False
    word: str = "a"


def test_a_plain_default_allows_values_of_its_type_alone():
    path = f"{__name__}:Plain"
    made = make_strategy(section(strategy=path, options={"whole": "-7", "flag": "true", "word": 3}))
    assert made == Plain(-7, True, "3")
    for options in ({"whole": 1.5}, {"whole": True}, {"flag": "maybe"}, {"flag": 1}, {"word": 1.5}):
        ((name, value),) = options.items()
        with pytest.raises(ConfigError, match=f"^allocation.options.{name} = {value!r}: must be "):
            make_strategy(section(strategy=path, options=options))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "gmv"}, "allocation.strategy = 'gmv': unknown; use one of uniform, gvm,.*did you mean gvm"),
        ({"strategy": "nowhere:X"}, "'nowhere:X': the module 'nowhere' cannot be imported .*working folder"),
        ({"strategy": "json:dumps"}, "'json:dumps': 'dumps' of the module 'json' must be a class that derives from"),
        ({"strategy": "vip", "min_samples": 1}, "allocation.min_samples = 1: must be >= 3 for .* = 'vip'"),
        ({"strategy": "dapo", "mode": "pilot"}, "allocation.mode = 'pilot': allocation.strategy = 'dapo' samples in"),
        ({"options": {"alhpa": 1.0}}, "allocation.options.alhpa: .*options are alpha, beta; did you mean alpha"),
        ({"strategy": "uniform", "options": {"alpha": 1.0}}, "allocation.options.alpha: Uniform has no options"),
        ({"options": {"alpha": -1e-3}}, "allocation.options.alpha = -0.001: must be a number >= 0"),
        ({"options": {"beta": 0.0}}, "allocation.options.beta = 0.0: must be a number > 0"),
        ({"options": {"beta": float("nan")}}, "allocation.options.beta = nan"),
        ({"options": {"beta": "two"}}, "allocation.options.beta = 'two'"),
        ({"strategy": "gvm_paper", "options": {"filter_threshold": 1.1}}, "must be a number >= 0 and <= 1"),
        ({"strategy": "gvm_paper", "options": {"filter_insufficient": -1.0}}, "must be a number >= 0"),
        ({"strategy": "vip", "options": {"group_baseline": "none"}}, "= 'none': must be 'leave_one_out' or 'mean'"),
        (
            {"strategy": "pods", "options": {"group_size": 1}},
            "options.group_size = 1: must be an integer >= 2",
        ),
        ({"strategy": "dapo", "options": {"groups": -1}}, "must be an integer >= 0"),
        ({"strategy": "speed_rl", "options": {"screen_samples": 1}}, "must be an integer >= 2"),
        ({"strategy": "reinforce_ada_seq", "options": {"round_size": 0}}, "must be an integer >= 1"),
        ({"strategy": "reinforce_ada_seq", "options": {"max_rounds": 0}}, "must be an integer >= 1"),
        ({"strategy": "reinforce_ada_seq", "options": {"accepted_wanted": 0}}, "must be an integer >= 1"),
        ({"strategy": "reinforce_ada_seq", "options": {"rejected_wanted": -1}}, "must be an integer >= 0"),
        ({"strategy": "cero", "options": {"saturation": 0.0}}, "must be a number > 0"),
    ],
    ids=str,
)
def test_settings_that_do_not_suit_a_strategy_are_one_clear_line(fields, message):
    with pytest.raises(ConfigError, match=message) as error:
        make_strategy(section(**fields))
    assert "\n" not in str(error.value)


def test_the_strategy_of_the_readme_works_from_the_working_folder(tmp_path, monkeypatch):
    example, use = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "my_strategy.py").write_text(example)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(use, names)
    counts = names["counts"]
    assert counts.sum() == 32 and counts[0] > counts[1]
