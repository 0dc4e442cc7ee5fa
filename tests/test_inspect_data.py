"""What `inspect` shows is what training gets: counts, lengths, rendered rows."""

import json
import re
import subprocess
import sys

import pytest

from gvm_jax.config import ConfigError
from gvm_jax.data import DataError, load_prompts, load_tokenizer
from gvm_jax.data.prompts import describe
from gvm_jax.inspect_data import inspect
from gvm_jax.rewards import Grader
from tests.test_train import ROOT, environment, small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [("1+2", 3), ("4+5", "="), ("6+7", 13), ("1+1+1+1+1+1+1+1+1+1+1+1+1", 13), ("2+2", 4)]
    for name, chosen in (("train", rows), ("test", rows[2:3])):
        lines = (json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in chosen)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    paths = {"data.path": str(folder / "train.jsonl"), "evaluation.path": str(folder / "test.jsonl")}
    return small_config(**paths, **{"data.exclude": (paths["evaluation.path"],), "data.max_prompt_tokens": 20})


def test_rows_are_counted_once_and_shown_as_the_model_gets_them(config):
    assert inspect(config, "data", [4, 1, 3]) == [
        f"data      {config.data.path}: 5 rows, 2 prompts",
        "dropped   1 (row 3): longer than data.max_prompt_tokens",
        "dropped   1 (row 2): problem of data.exclude",
        "dropped   1 (row 1): reference answer that the verifier cannot read",
        "tokens    0 %: 4, 50 %: 4, 90 %: 26, 99 %: 26, 100 %: 26 of all rows' prompts; data.max_prompt_tokens = 20",
        *("", "row 4: 4 tokens", "  | 2+2=", "  answer: '4' (the verifier reads it)", ""),
        "row 1: 4 tokens; dropped: reference answer that the verifier cannot read",
        *("  | 4+5=", "  answer: '=' (the verifier cannot read it)", ""),
        "row 3: 26 tokens; dropped: longer than data.max_prompt_tokens",
        *(f"  | {'+'.join('1' * 13)}=", "  answer: '13' (the verifier reads it)"),
    ]


def test_bad_and_repeated_rows_are_counted_as_in_training(tmp_path):
    rows = [("1+2", 3), (None, 9), ("1+2", "3.0"), ("1+2", 4), ("4+5", None)]
    rows += [(f"{number}+1", number + 1) for number in range(9) for _ in range(3)]
    records = (json.dumps({"problem": problem, "answer": answer}) + "\n" for problem, answer in rows)
    (tmp_path / "rows.jsonl").write_text("".join(records))
    config = small_config(**{"data.path": str(tmp_path / "rows.jsonl")})
    notes = [
        "dropped   1 (row 4): the answer is null",
        "dropped   1 (row 1): the problem is null",
        "note      20 (rows 2, 3, 6, ...): the problem of an earlier row again",
        "note      1 (row 3): the problem of an earlier row with another answer, so one of them is wrong",
    ]
    lines = inspect(config, "data", [1])
    assert lines[0].endswith("32 rows, 30 prompts") and [*lines[1:3], *lines[4:6]] == notes
    assert lines[3].startswith("tokens    0 %: 4, 50 %: 4, ")  # a row without a problem is no prompt of 0 tokens
    assert lines[6:] == [
        "",
        "row 1: 0 tokens; dropped: the problem is null",
        "  | ",
        "  answer: '' (the verifier cannot read it)",
    ]
    with Grader(**config.rewards) as grader:
        tokenizer = load_tokenizer(config.model.path)
        assert describe(load_prompts(config, "data", config.data.path, tokenizer, grader)) == notes


def test_the_first_rows_are_shown_and_a_row_that_is_not_there_is_an_error(config):
    shown = [line.split(":")[0] for line in inspect(config, "data", first=2) if line.startswith("row")]
    assert shown == ["row 0", "row 1"]
    assert inspect(config, "evaluation")[0] == f"data      {config.evaluation.path}: 1 rows, 1 prompts"
    with pytest.raises(ConfigError, match=r"--row=5: data.path = .* has the rows 0 to 4"):
        inspect(config, "data", [5])


@pytest.fixture
def tokenizer_folder(tmp_path):
    """The quickstart's tokenizer without a model."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((ROOT / "configs/quickstart_model" / file).read_bytes())
    return tmp_path


def test_a_prompt_that_the_model_has_no_row_for_is_an_error_as_in_a_run(config, tokenizer_folder):
    (tokenizer_folder / "config.json").write_text('{"vocab_size": 12}')
    small = config.copy_and_resolve_references()
    small.model.path = str(tokenizer_folder)
    with pytest.raises(DataError, match=r"Row 0 .* the token '=' has the id 12, .* 12 rows .* the chat template"):
        inspect(small, "data")


def test_the_command_needs_no_weights_and_no_device(tokenizer_folder):
    command = [sys.executable, "-m", "gvm_jax", "inspect", "--config=configs/quickstart.py", "--row=7"]
    done = subprocess.run(
        [*command, f"--config.model.path={tokenizer_folder}"],
        cwd=ROOT,
        env=environment() | {"JAX_PLATFORMS": "none_such"},  # an error as soon as a device is wanted
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "data      builtin:arithmetic: 256 rows, 256 prompts"
    assert re.fullmatch(r"row 7: \d+ tokens", lines[3]) and re.fullmatch(r"  \| [\d+]+=", lines[4])
