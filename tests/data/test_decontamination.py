r"""Planted duplicates are found under another spelling, and what only looks alike is kept."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.data.decontamination import contaminated, words

PROBLEM = (
    r"Let $x$ and $y$ be positive integers with $\frac{1}{x} + \frac{1}{y} = \frac{1}{12}$. "
    "What is the least possible value of the sum of all three sides, if the third one is 1,250 centimetres long?"
)
TOKENS = st.sampled_from([*"abxy+-=*/<>", r"\frac", "12", "3.5", "What", "of", r"\sqrt", "naïve", "Δ"])
GAPS = st.sampled_from([" ", "  ", "\n", r"\, ", r"\quad ", r" \! ", " $", "{ ", " }", ", ", " \\left( ", " . "])


@given(st.lists(st.tuples(TOKENS, GAPS), min_size=1), st.data())
@settings(max_examples=150, deadline=None)
def test_space_case_and_layout_change_no_word(pairs, data):
    plain = " ".join(token for token, _ in pairs)
    spelled = "".join(
        (token.upper() if data.draw(st.booleans()) and not token.startswith("\\") else token) + gap
        for token, gap in pairs
    )
    assert words(spelled) == words(plain) != ()


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_words_of_words_are_the_same(text):
    once = words(text)
    assert words(" ".join(once)) == once


@pytest.mark.parametrize(
    ("text", "same"),
    [
        (r"$\dfrac{1}{2}$", r"\frac{1}{2}"),
        (r"$x^{2}$", "x^2"),
        (r"\text{What is } 1,000?", "what is 1000"),
        (r"\left(a, b\right)", "(a,b)"),
        ("ｘ＝１", "x=1"),
    ],
)
def test_one_problem_in_two_spellings(text, same):
    assert words(text) == words(same)


@pytest.mark.parametrize(
    ("text", "other"), [("x+1", "x-1"), ("3.5", "35"), ("1,2", "12"), ("x^2", "x2"), ("a<b", "a>b")]
)
def test_what_has_another_meaning_has_other_words(text, other):
    assert words(text) != words(other)


@pytest.mark.parametrize(
    ("problem", "found"),
    [
        (PROBLEM, True),
        (PROBLEM.upper().replace("\\FRAC", "\\dfrac").replace(" ", "\n"), True),
        ("Here is a question of last year's paper. " + PROBLEM + " Explain every step of your answer.", True),
        (PROBLEM.replace("least", "greatest"), True),  # 8 of its 33 8-grams are others
        (PROBLEM[: len(PROBLEM) // 2], False),
        (" ".join(sorted(PROBLEM.split())), False),
        ("What is the sum of 3 and 4?", False),
        ("", False),
    ],
    ids=["itself", "spelling", "inside", "a word", "half", "shuffled", "another", "empty"],
)
def test_a_planted_problem_is_found(problem, found):
    assert contaminated([problem], ["An unrelated question.", PROBLEM, ""]).tolist() == [found]


def test_a_short_problem_is_found_whole_only():
    problems = ["what is 1 + 1 + 1", "What is 1 + 1 + 2?", "So what is 1 + 1 + 1?"]
    assert contaminated(problems, ["What is $1+1+1$?"]).tolist() == [True, False, False]  # 7 words
    assert contaminated(["So what now is 1 + 1 + 1?"], ["What now is $1+1+1$?"]).tolist() == [True]  # 8 words


@pytest.mark.parametrize(("changed", "found"), [(3, True), (4, False)])
def test_seventy_percent_of_the_8_grams_is_the_bound(changed, found):
    """A run of 17 words has 10 8-grams: with its last k words others it has 10 - k of them."""
    benchmark = [f"w{'abcdefghijklmnopq'[i]}" for i in range(17)]
    problem = benchmark[: 17 - changed] + ["other"] * changed
    assert contaminated([" ".join(problem)], [" ".join(benchmark)]).tolist() == [found]


def test_grams_of_several_benchmark_problems_do_not_add_up():
    halves = [" ".join(f"{part}{c}" for c in "abcdefghijklmnopqrst") for part in "xy"]
    both = halves[0][:30] + " " + halves[1][:30]
    assert contaminated([both], halves).tolist() == [False]


def test_planted_rows_of_many_are_found_and_no_other():
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "bcdfghjklm" for b in "aeiou"]
    problems = [" ".join(rng.choices(vocabulary, k=rng.randint(10, 60))) for _ in range(500)]
    benchmark = [" ".join(rng.choices(vocabulary, k=rng.randint(10, 60))) for _ in range(200)]
    planted = sorted(rng.sample(range(500), 40))
    for number, copied in zip(planted, rng.sample(benchmark, 40), strict=True):
        problems[number] = f"{copied.title()}?"
    assert [i for i, found in enumerate(contaminated(problems, benchmark)) if found] == planted
