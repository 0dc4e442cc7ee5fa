import dataclasses
import json

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from gvm_jax.data import DataError, Row, build_prompts, load_tokenizer
from tests.data.conftest import CHATML

ROWS = [Row("1+1?", "2"), Row("What is {x} if x = 3? " * 5, "3"), Row("Sum \\frac{1}{2}", "1/2")]
BYTE_IDS = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


@pytest.fixture
def tokenizer(chat_folder):
    return load_tokenizer(str(chat_folder))


def by_hand(text):
    """The ids of ASCII text: printable bytes are their own symbols, space and newline have others."""
    return [BYTE_IDS[{" ": "Ġ", "\n": "Ċ"}.get(character, character)] for character in text]


def user_turn(text):
    return [257, *by_hand(f"user\n{text}"), 258, *by_hand("\n"), 257, *by_hand("assistant\n")]


def test_prompts_are_the_chat_template_with_no_special_token_twice(tokenizer):
    prompts = build_prompts(ROWS, tokenizer, "Be brief.", "{problem} Think.", 1000)
    system = [257, *by_hand("system\nBe brief."), 258, *by_hand("\n")]
    for position, row in enumerate(ROWS):
        assert prompts.tokens[position].dtype == np.int32
        assert prompts.tokens[position].tolist() == system + user_turn(row.problem + " Think.")
    assert (
        prompts.reference_answers == ["2", "3", "1/2"] and prompts.ids.tolist() == [0, 1, 2] and prompts.num_rows == 3
    )


def test_an_empty_system_prompt_gives_no_system_message_and_braces_are_kept(tokenizer):
    prompts = build_prompts(ROWS, tokenizer, "", "Put {problem} in \\boxed{}.", 1000)
    assert prompts.tokens[2].tolist() == user_turn("Put Sum \\frac{1}{2} in \\boxed{}.")


def test_long_prompts_are_dropped_counted_and_leave_ids_alone(tokenizer):
    limit = len(user_turn(ROWS[2].problem))
    prompts = build_prompts(ROWS, tokenizer, "", "{problem}", limit)
    assert prompts.ids.tolist() == [0, 2] and len(prompts) == 2
    assert (prompts.problems, prompts.reference_answers) == ([ROWS[0].problem, ROWS[2].problem], ["2", "1/2"])
    assert prompts.num_rows == 3 and prompts.dropped == {"longer than data.max_prompt_tokens": [1]}
    assert len(build_prompts(ROWS, tokenizer, "", "{problem}", limit - 1)) == 1


def test_positions_are_looked_up_by_prompt_id(tokenizer):
    prompts = build_prompts(ROWS, tokenizer, "", "{problem}", 1000).drop([True, False, False], "unparsable")
    assert prompts.positions_of(np.array([2, 1, 2])).tolist() == [1, 0, 1]
    for missing in (0, 3, -1):
        with pytest.raises(KeyError, match=str(missing)):
            prompts.positions_of(np.array([1, missing]))


def test_drop_adds_up_reasons_and_refuses_to_drop_all(tokenizer):
    prompts = build_prompts(ROWS, tokenizer, "", "{problem}", 1000)
    assert prompts.drop(np.zeros(3, bool), "nothing").dropped == {}
    fewer = prompts.drop(np.array([False, True, False]), "unparsable")
    assert prompts.ids.tolist() == [0, 1, 2]  # the first set is as it was
    fewer = fewer.drop(np.array([False, True]), "unparsable")
    assert fewer.ids.tolist() == [0] and fewer.dropped == {"unparsable": [1, 2]}
    with pytest.raises(DataError, match=r"3 rows.*2 \(rows 1, 2\): unparsable; 1 \(row 0\): other"):
        fewer.drop(np.array([True]), "other")
    with pytest.raises(ValueError, match="shape"):
        prompts.drop(np.array([True]), "other")


@pytest.mark.parametrize(
    ("template", "user", "limit", "words"),
    [
        (CHATML, "{problem}", 5, rf"max_prompt_tokens = 5.*{len(user_turn('1+1?'))} tokens"),
        (None, "{problem}", 1000, r"no chat template.*chat_template.jinja"),
        (CHATML, "Solve {question}", 1000, r"data.user_template = 'Solve \{question\}'"),
        ("{{ raise_exception('no roles here') }}", "{problem}", 1000, r"no roles here.*data.system_prompt"),
        ("{{ messages[0].content[:1] }}", "{problem}", 1000, r"Row 0 .*1 tokens; at least 2"),
    ],
)
def test_prompts_that_cannot_be_made_are_errors_that_say_what_to_do(tokenizer, template, user, limit, words):
    tokenizer.chat_template = template
    with pytest.raises(DataError, match=words):
        build_prompts(ROWS, tokenizer, "", user, limit)


def test_characters_outside_the_vocabulary_are_an_error_not_a_shorter_prompt(chat_folder):
    file = chat_folder / "tokenizer.json"
    content = json.loads(file.read_text())
    del content["model"]["vocab"]["?"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"Row 0 .*loses characters.*1\+1\?"):
        build_prompts(ROWS, load_tokenizer(str(chat_folder)), "", "{problem}", 1000)


def test_dropped_rows_are_not_rendered(tokenizer):
    rows = [Row("", "", "the problem is null"), *ROWS, Row("Häuser", "", "no box"), Row("", "", "the problem is null")]
    prompts = build_prompts(rows, tokenizer, "", "{problem}", 1000)
    assert prompts.ids.tolist() == [1, 2, 3] and prompts.tokens[0].tolist() == user_turn("1+1?")
    assert prompts.num_rows == 6 and prompts.dropped == {"no box": [4], "the problem is null": [0, 5]}
    with pytest.raises(DataError, match=r"2 rows is left .* 2 \(rows 0, 1\): no box"):
        build_prompts([Row("?", "", "no box")] * 2, tokenizer, "", "{problem}", 1000)


def test_a_template_that_holds_the_time_is_noted_and_gives_equal_sets(tokenizer):
    def build(now):
        tokenizer.chat_template = now + "{{ strftime_now('%Y') }}: {{ messages[0].content }}"
        return build_prompts(ROWS, tokenizer, "", "{problem}", 1000)

    prompts = build("")
    (note,) = prompts.notes
    assert "strftime_now" in note
    # As at another time.
    later = dataclasses.replace(prompts, tokens=[np.append(tokens, 7) for tokens in prompts.tokens])
    assert later.fingerprint() == prompts.fingerprint() != build("Now ").fingerprint()


def test_a_fingerprint_tells_problems_answers_rows_and_templates_apart(tokenizer):
    def build(rows, system="", user="{problem}"):
        return build_prompts(rows, tokenizer, system, user, 1000).fingerprint()

    others = [
        build(ROWS),
        build(ROWS[::-1]),
        build(ROWS[:2]),
        build([Row("1+2?", "2"), *ROWS[1:]]),
        build([Row("1+1?", "3"), *ROWS[1:]]),
        build([ROWS[0], Row("?", "", "no box"), *ROWS[1:]]),
        build(ROWS, system="Be brief."),
        build(ROWS, user="{problem}!"),
    ]
    assert len(set(others)) == len(others) and build(ROWS) == others[0]
