"""Spellings of the same mathematics become one, and of different mathematics do not."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gvm_jax.rewards.canonical import canonical, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\dfrac 12", r"\frac{1}{2}"), ("½.", r"\frac{1}{2}"), (r"$\frac{1}{2}$", r"\frac{1}{2}"),
        (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}\text{degrees}"), (r"\left(\,2, \infty\right)", r"(2,\infty)"),
        (r"\left\{ 1,2 \right.", r"\{1,2"), ("(0,9)∪(9,∞)", r"(0,9)\cup(9,\infty)"), (r"106^{\circ}", r"106^\circ"),
        (r"\color{red}{90^\circ}", r"90^\circ"), (r"\textcolor{blue}{7}", "7"), ("x₁² + 10⁻³", "x_{1}^{2}+10^{-3}"),
        (r"11,\! 111,\! 100", "11,111,100"), (r"\mathbf{7}", "7"), (r"\mathrm{x} = 5", "x=5"),
        (r"\textbf{Answer:} 7.", "7"), ("Therefore, the final answer is: 7", "7"), (r"\[ 7 \]", "7"),
        (r"**7** \\", "7"), ("7...", "7"), (r"\approx 7", "7"), ("{7}", "7"), ("{1}{2}", "{1}{2}"),
        ("2πr", r"2\pi r"), ("√2 + √(x+1)", r"\sqrt{2}+\sqrt{x+1}"),
        (r"\begin{bmatrix} 1 \\ -2 \end{bmatrix}", r"\begin{pmatrix}1\\-2\end{pmatrix}"),
        (r"\text{ east }", r"\text{east}"), ("100, 200, 300", "100, 200, 300"), ("(1, -2)", "(1,-2)"),
        ("7 == 7", "7=7"), (r"\sqrt[3]4", r"\sqrt[3]{4}"), (r"{n \choose 2}", r"\binom{n}{2}"),
        (r"\pi\mathrm{i}", r"\pi i"), (r"\text{about } 7", "7"), (r"\text{Area: } 7", r"\text{Area}=7"),
        ("5 \u212b", r"5\AA"), (r"3\text{ or }7", r"3\text{or}7"), ("\u200b12\ufeff", "12"), ("5 m", "5 m"),
        ("1 234", "1 234"), (r"3:30 \text{ p.m.}", r"3:30\text{p.m.}"), (r"\\ . , ;", ""),
    ],
)  # fmt: skip
def test_one_spelling(text, expected):
    assert canonical(text) == expected


@given(st.text("x12 .,{}()\\frac^_$½²°−", max_size=16))
def test_one_spelling_is_its_own(text):
    assert canonical(canonical(text)) == canonical(text)


@given(st.text(max_size=30))
def test_any_text_is_taken(text):
    assert isinstance(canonical(text), str)


@pytest.mark.parametrize("text", ["^ ", r"\frac ", "{", r"\text{", "so ", r"\, ", "²", "sqrt(", r"\left", "answer "])
def test_long_texts_take_linear_time(text):
    start = time.process_time()
    canonical(text * 20_000)
    assert time.process_time() - start < 5  # about 0.2 s; quadratic time is minutes


def test_words_are_letters_that_are_no_command():
    assert words(r"7\text{or maybe not}\sin x AB") == ["or", "maybe", "not", "ab"]
