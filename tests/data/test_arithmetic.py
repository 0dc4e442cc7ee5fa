import collections
import itertools
import json
import math
import pathlib
import re

import pytest
import transformers

from gvm_jax.data import DataError, arithmetic_rows, build_prompts, demonstrations, load_rows, load_tokenizer
from gvm_jax.data.arithmetic import DIFFICULTIES, GIVE_UP_RATE, SLIP_RATE, SPLIT_SIZES, write_tokenizer

SHIPPED = pathlib.Path(__file__).parents[2] / "configs" / "quickstart_model"
DEMONSTRATIONS = list(demonstrations(seed=1, n=6000))


def difficulty_of(terms):
    (difficulty,) = [d for d in DIFFICULTIES if d.min_terms <= len(terms) <= d.max_terms]
    return difficulty


def parse(problem, response):
    """The terms, the running sums after the first term, and the boxed answer."""
    *sums, boxed = response.split(";")
    answer = re.fullmatch(r"\\boxed\{(\d+)\}", boxed)[1]
    return [int(term) for term in problem.split("+")], [int(total) for total in sums], int(answer)


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_answers_are_the_sums_of_distinct_problems(split):
    rows = arithmetic_rows(split)
    assert len({row["problem"] for row in rows}) == len(rows) == SPLIT_SIZES[split]
    for row in rows:
        terms = [int(term) for term in row["problem"].split("+")]
        assert all(1 <= term <= 9 for term in terms)
        assert (sum(terms), len(terms)) == (row["answer"], row["terms"])


def test_no_test_problem_is_in_the_training_split_or_the_demonstrations():
    test = {row["problem"] for row in arithmetic_rows("test")}
    assert not test & {row["problem"] for row in arithmetic_rows("train")}
    assert not test & {problem for problem, _ in DEMONSTRATIONS}


@pytest.mark.parametrize("split", SPLIT_SIZES)
def test_both_splits_hold_the_same_uneven_mix(split):
    rows = arithmetic_rows(split)
    counts = collections.Counter(difficulty_of(range(row["terms"])) for row in rows)
    for difficulty in DIFFICULTIES:
        sigma = math.sqrt(difficulty.fraction * (1 - difficulty.fraction) / len(rows))
        assert counts[difficulty] / len(rows) == pytest.approx(difficulty.fraction, abs=4 * sigma)
    assert {row["terms"] for row in rows} == {
        terms for d in DIFFICULTIES for terms in range(d.min_terms, d.max_terms + 1)
    }


def test_demonstrations_give_up_and_slip_at_their_rates():
    steps = stops = slips = 0
    for problem, response in DEMONSTRATIONS:
        terms, sums, answer = parse(problem, response)
        taken = itertools.pairwise([terms[0], *sums])
        errors = {after - before - term for (before, after), term in zip(taken, terms[1:], strict=False)} - {0}
        gave_up = len(sums) < len(terms) - 1
        assert answer == (sums[-1] if sums else terms[0])
        assert errors <= {-1}
        assert (answer == sum(terms)) == (not errors and not gave_up)
        steps += len(sums) + gave_up
        stops += gave_up
        slips += len(sums) - sum(
            b - a == t for (a, b), t in zip(itertools.pairwise([terms[0], *sums]), terms[1:], strict=False)
        )
    for found, tries, rate in ((stops, steps, GIVE_UP_RATE), (slips, steps - stops, SLIP_RATE)):
        assert found / tries == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / tries))


def test_a_right_demonstration_is_the_running_sums_and_the_boxed_answer():
    right = [(p, r) for p, r in DEMONSTRATIONS if r.endswith(f"\\boxed{{{eval(p)}}}")]
    assert len(right) > len(DEMONSTRATIONS) / 4
    for problem, response in right:
        sums = list(itertools.accumulate(int(term) for term in problem.split("+")))[1:]
        assert response == ";".join(map(str, sums)) + f";\\boxed{{{sums[-1]}}}"


def test_equal_seeds_give_equal_demonstrations():
    assert list(demonstrations(seed=1, n=50)) == DEMONSTRATIONS[:50]
    assert list(demonstrations(seed=2, n=50)) != DEMONSTRATIONS[:50]


def test_rows_load_as_a_data_set():
    rows = load_rows("builtin:arithmetic", split="test")
    assert all(eval(row.problem) == int(row.answer) for row in rows)
    with pytest.raises(DataError, match=r"data.split = 'dev'.*train, test"):
        load_rows("builtin:arithmetic", split="dev")
    with pytest.raises(DataError, match="builtin:arithmetic"):
        load_rows("builtin:algebra")


def test_the_shipped_folder_is_what_write_tokenizer_writes(tmp_path):
    write_tokenizer(tmp_path)
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    for name in written:
        assert json.loads((SHIPPED / name).read_text()) == json.loads((tmp_path / name).read_text()), name


def test_decoding_is_the_inverse_of_encoding():
    tokenizer = load_tokenizer(str(SHIPPED))
    for problem, response in DEMONSTRATIONS[:200]:
        text = f"{problem}={response}<|im_end|><|endoftext|>"
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode(ids, skip_special_tokens=True) == f"{problem}={response}"
        assert len(ids) == len(text.replace("\\boxed{", "B").replace("<|im_end|><|endoftext|>", "EP"))


def test_prompts_and_responses_are_short():
    tokenizer = load_tokenizer(str(SHIPPED))
    prompts = build_prompts(load_rows("builtin:arithmetic"), tokenizer, "", "{problem}", max_prompt_tokens=34)
    assert len(prompts) == SPLIT_SIZES["train"]
    assert tokenizer.decode(prompts.tokens[0]) == prompts.problems[0] + "="
    most_terms = max(difficulty.max_terms for difficulty in DIFFICULTIES)
    longest = ";".join(str(9 * k) for k in range(2, most_terms + 1)) + f";\\boxed{{{9 * most_terms}}}<|im_end|>"
    assert len(tokenizer(longest)["input_ids"]) <= 4 * most_terms + 2 <= 70


def test_the_model_config_is_qwen2_and_fits_the_tokenizer():
    config = transformers.AutoConfig.from_pretrained(SHIPPED)
    tokenizer = load_tokenizer(str(SHIPPED))
    assert isinstance(config, transformers.Qwen2Config)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert len(tokenizer) <= config.vocab_size < len(tokenizer) + 8 and config.vocab_size % 8 == 0
    assert config.hidden_size % config.num_attention_heads == 0
