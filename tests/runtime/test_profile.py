"""Traces of chosen steps."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from gvm_jax.config import ConfigError
from gvm_jax.runtime.profile import StepTrace, parse_steps


@pytest.mark.parametrize(
    ("text", "done", "steps"),
    [
        ("", 0, []),
        ("3-5", 0, [3, 4, 5]),
        ("3-5", 3, [4, 5]),
        ("3-5", 7, []),
        ("4-4", 0, [4]),
        ("3", 0, [2, 3, 4]),
        ("3", 5, [7, 8, 9]),
        ("3", 8, [10]),
        ("3", 9, [10]),
        ("3", 10, []),
        ("30", 0, list(range(2, 11))),
    ],
)
def test_steps_are_a_range_or_a_count_after_the_first(text, done, steps):
    assert list(parse_steps(text, done, last=10)) == steps


@pytest.mark.parametrize("text", ["0", "-1", "5-3", "0-3", "3-11", "3-", "x", "3,5", "1.5"])
def test_other_steps_are_refused(text):
    with pytest.raises(ConfigError, match=f"--profile={text}: must be steps"):
        parse_steps(text, 0, last=10)


def take(trace, steps, fail_in=None):
    for number in steps:
        with trace.step(number):
            jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
            if number == fail_in:
                raise KeyError


def traced(folder):
    """Numbers of the steps in the one trace of a folder."""
    (file,) = folder.glob("plugins/profile/*/*.trace.json.gz")
    assert list(file.parent.glob("*.xplane.pb"))
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return {int(event["args"]["step_num"]) for event in events if "step_num" in event.get("args", {})}


def test_the_chosen_steps_are_in_the_trace_and_no_others(tmp_path, capsys):
    take(StepTrace(range(3, 5), tmp_path), range(1, 7))
    assert traced(tmp_path) == {3, 4}
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"profile   {tmp_path}: " in said and f"xprof --logdir={tmp_path}" in said


def test_a_step_that_fails_leaves_the_trace_so_far(tmp_path):
    with pytest.raises(KeyError):
        take(StepTrace(range(1, 9), tmp_path), range(1, 9), fail_in=2)
    assert traced(tmp_path) == {1, 2}
