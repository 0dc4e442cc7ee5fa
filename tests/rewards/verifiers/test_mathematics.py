"""Right answers in every ordinary spelling are accepted, wrong ones in none, and hostile ones cost little."""

import time

import pytest

from gvm_jax.rewards import Grader, Status
from gvm_jax.rewards.canonical import canonical
from gvm_jax.rewards.size_limits import is_too_large
from gvm_jax.rewards.verifiers.mathematics import decide, number_with_unit
from tests.rewards.spellings import others, spellings

# Of every kind that MATH, GSM8K and Minerva have.
REFERENCES = [
    *("7", "0", "-3", "42", "1,450,000", "58500", r"10,\!080", r"11,\! 111,\! 100", "2000", "4.5", "0.15"),
    *(".35625", "-0.8"),
    *(r"\$36", r"\$18.90", r"\$32,\!348", "50\\%", "3e8", "1.6e-19", "4.5e33", "52_8", "4210_{5}", "1010_2"),
    *("1-2i", "6 - 5i"),
    *(r"\frac43", r"\frac 59", r"\frac{3}{56}", r"-\frac{35}{9}", r"\dfrac{17}{50}", r"1\frac{4}{5}"),
    r"137 \frac{1}{2}",
    *(r"\pi", r"8 \pi", r"-\frac{\pi}{6}", r"\frac{20000}{\pi}", r"18+2\pi", r"\sqrt{51}", r"11\sqrt2"),
    *(r"-\sqrt{3}", r"3 \sqrt{5}"),
    *(r"\frac{\sqrt{3}}{3}", r"1+2\sqrt{3}", r"1 \pm \sqrt{19}", r"\cot x", "x=5", "y = -2x", "y = 2x + 3"),
    "5x - 7y + 11z + 4 = 0",
    *("2k", "3R^2", "5r^5", "p - q", "x^3+3x-6", "6r^2-4r-24", "(a+5)(b+2)", r"\frac{11+9a}{20}", "1,-2"),
    *("3, 5, 7", "(2,4)"),
    *("(8,-2)", "(6,31,-1)", "(3,4]", r"(2,\infty)", r"(-\infty, 0]", r"x \in [-2,7]", r"(2,12) \cup (12,102)"),
    r"\{1\pm\sqrt{5},-2\}",
    *(r"(-\infty, 2) \cup (3, \infty)", r"\left( 3, \frac{\pi}{2} \right)", r"\left(\frac{3}{5},\frac{8}{3}\right]"),
    *(r"90^\circ", r"145^\circ", r"\frac{270}7\text{ degrees}", r"15\mbox{ cm}^2", r"864 \mbox{ inches}^2"),
    r"5.4 \text{ cents}",
    *(r"\text{(C)}", r"\text{even}", r"\text{Evelyn}", "3:30", r"\begin{pmatrix} -7 \\ 16 \\ 5 \end{pmatrix}"),
    *(r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\frac{1}{2^{99}}", r"\frac{1}{2004!}", "2^{2006}"),
    "10^{2007}-1",
]  # fmt: skip


@pytest.fixture(scope="module")
def grader():
    with Grader("math", workers=2, deadline_seconds=5.0, memory_mib=1024, max_failure_rate=1.0) as grader:
        yield grader


def boxed(answer: str) -> str:
    return rf"Thus \(x = 1\), and the answer is \boxed{{{answer}}}."


def test_every_spelling_of_every_reference_is_accepted(grader):
    cases = [(name, text, reference) for reference in REFERENCES for name, text in spellings(reference).items()]
    verdicts = grader.grade([boxed(text) for _, text, _ in cases], [reference for *_, reference in cases])
    refused = [case for case, verdict in zip(cases, verdicts, strict=True) if verdict.status is not Status.CORRECT]
    assert len(cases) > 2500 and not refused


def test_every_reference_can_be_checked(grader):
    assert grader.parses(REFERENCES).all()


def test_no_spelling_of_another_reference_is_accepted(grader):
    pairs = others(REFERENCES, 300)
    verdicts = grader.grade([boxed(text) for text, _ in pairs], [reference for _, reference in pairs])
    equal = {frozenset(pair) for pair in [("42", "52_8")]}
    paid = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.score > 0]
    assert not [
        (text, reference) for text, reference in paid if not any({canonical(text), reference} >= both for both in equal)
    ]
    assert {verdict.status for verdict in verdicts} <= {Status.WRONG, Status.CORRECT}


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("21", "25_8"), ("1010_2", "10"), (r"0.\overline{3}", r"\frac13"), (r"x \ge 2", r"[2,\infty)"),
        (r"[2,\infty)", r"x \ge 2"), (r"-2 \le x \le 7", r"x \in [-2,7]"),
        (r"x \in (2,12) \cup (12,102)", r"(2,12) \cup (12,102)"), (r"\sqrt{8}", r"2\sqrt{2}"),
        ("(x+1)^2", "x^2+2x+1"), (r"3 \text{ and } 7", "7,3"), ("3 or 7", "3,7"), (r"\pm 2", "-2,2"),
        (r"\log_2 8", "3"), (r"\binom{5}{2}", "10"), ("4!", "24"), ("2(3+4) = 14", "14"), ("x = 3 + 4 = 7", "7"),
        ("x + 1 = 8", "x+1=8"), ("f(2) = 5", "5"), (r"\angle ABC = 30^\circ", "30"),
        (r"\text{Area} = 12 \text{ cm}^2", "12"), (r"\frac{AB}{CD} = \frac{1}{2}", "0.5"), ("r^2 + R^2", "R^2+r^2 "),
        (r"\text{Base} = (R+r)(R-r)", "R^2-r^2"), ("ab", "ba"), (r"5 \frac{\text{m}}{\text{s}}", "5"),
        ("5 m/s^2", "5"), ("7 cubic meters per second", "7"), (r"1.5 \text{ million dollars}", "1,500,000"),
        ("C) 15", r"\text{(C)}"), (r"\text{(C)}", "C"), ("Monday", r"\text{monday}"),
        (r"10^{-16}\sqrt{2}", r"\sqrt{2}\cdot 10^{-16}"), ("(3e8, 2)", "(300000000,2)"),
        (r"\frac{\pi}{6}", "0.523599"), ("3t", "t \\cdot 3"), ("v = 3t", "3t"), (r"\frac{1}{2}ah", r"\frac{ah}{2}"),
        (r"\sqrt{12} \text{ m}", r"2\sqrt{3}"), (r"\sqrt{12} m", r"2\sqrt{3}"), ("1+2i", r"2i + 1"),
        (r"1 + 2\mathrm{i}", "1+2i"), (r"1 + 2 \mathrm{i}", "1+2i"),
        (r"-2 < x < 1 \text{ or } x > 3", r"(-2,1)\cup(3,\infty)"), ("200, 100", "100, 200"), ("100,200", "100, 200"),
        ("12, 345", "12,345"), ("(4,3), (5,2)", "(5,2),(4,3)"),
        (r"x = \frac{-1 \pm \sqrt5}{2}", r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}"),
        (r"\frac{-1+\sqrt5}{2}, \frac{-1-\sqrt5}{2}", r"\frac{-1\pm\sqrt5}{2}"),
        (r"x < 2 \text{ or } x > 3", r"(-\infty,2)\cup(3,\infty)"),
        (r"(-\infty,2)\cup(3,\infty)", r"x < 2 \text{ or } x > 3"), (r"\text{all real numbers}", r"\mathbb{R}"),
        (r"\text{infinity}", r"\infty"), (r"\cos 60^\circ", r"\frac12"), (r"{10 \choose 3}", "120"),
        (r"\sqrt[3]4", r"\sqrt[3]{4}"), ("f(1) + f(2) = 25", "25"), (r"1 \text{ to } 2", "1:2"),
        (r"\text{Total cost: } \$25", "25"), (r"\text{25 dollars}", "25"), (r"25 \text{ times}", "25"),
        (r"25 \text{ other students}", "25"), (r"12 \text{ five-dollar bills}", "12"),
        (r"25 \text{ cm squared}", "25"), ("25 \u00b5m", "25"), (r"25 \, \mu\text{m}", "25"), (r"25 \, \Omega", "25"),
        ("25 \u00c5", "25"), (r"25 M_{\odot}", "25"),
        (r"\begin{bmatrix} 0.2 \\ -3.6 \end{bmatrix}", r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}"),
    ],
)  # fmt: skip
def test_other_ways_to_say_the_same_are_accepted(grader, answer, reference):
    assert grader.grade([boxed(answer)], [reference])[0].status is Status.CORRECT


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("8e3", "3e8"), ("e - 5", "1e-5"), ("1011_3", "1011_2"), ("25_9", "25_8"),
        (r"\frac{1}{2^{98}}", r"\frac{1}{2^{99}}"), (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
        (r"\sqrt{3}\cdot 10^{-16}", r"\sqrt{2}\cdot 10^{-16}"), ("(0.0000001, 1)", "(0.0000002, 1)"),
        (r"\{0.0000001, 1\}", r"\{0.0000002, 1\}"), (r"[0, 10^{-9}]", r"[0, 10^{-8}]"),
        (r"\begin{pmatrix} 10^{-9} \\ 1 \end{pmatrix}", r"\begin{pmatrix} 10^{-8} \\ 1 \end{pmatrix}"),
        ("1=2=7", "7"), ("3=7", "7"), ("x=3=7", "7"), ("3+3=7", "7"), (r"\sqrt{4}=7", "7"), ("3=5", "x=5"),
        ("7=", "7"), (r"7 \text{ or maybe not}", "7"), (r"7 \text{ if not wrong}", "7"), (r"3 \text{ or } 7", "7"),
        (r"7 \text{ or } 8", "7"), ("7 or 8", "7"), (r"\text{not } 7", "7"), (r"\text{less than } 7", "7"),
        ("the number 7 is wrong", "7"), (r"7 \text{ thousand}", "7"), (r"\{7, 8\}", "7"), ("1,2,3,4,5,6,7,8,9", "7"),
        ("7x", "7"), ("5 xy", "5"), (r"7\pi", "7"), ("7!", "7"), ("7^2", "7"), (r"7 \bmod 5", "7"),
        ("x + 1", "x + 2"), ("3r^2", "3R^2"), ("0", "R^2-r^2"), ("r^2-R^2", "R^2-r^2"), ("[1, 2)", "[1, 2]"),
        ("(2, 1)", "(1, 2)"), (r"x > 2", r"[2,\infty)"), (r"|\infty|", r"2\pi"), (r"\infty", "7"),
        (r"\text{seat}", r"\text{east}"), ("seat", r"\text{east}"), (r"\text{(B)}", r"\text{(C)}"), ("2.5", "2,5"),
        ("2 3", "23"), ("no idea", "7"), ("7", "7t"), ("7t", "7"), ("x + 3", "x+3t"), (r"3\pi", r"3\pi t"),
        ("7", "7ab"), ("v = 3", "v=3t"), ("3", r"1+2\mathrm{i}"), (r"7 \text{ ft } 8 \text{ in}", "7"),
        (r"7 \text{ hours } 8 \text{ minutes}", "7"), (r"7 \text{ to 8}", "7"), ("7_a", "7"),
        (r"7 \text{ squared}", "7"), ("7 over two", "7"), (r"7 \text{ divided by two}", "7"),
        (r"7 \text{ tenths}", "7"), (r"7 \text{ eight}", "7"), (r"7 \text{ isn't right}", "7"),
        (r"7 \text{ wait eight}", "7"), (r"7 \text{ pi}", "7"), (r"7 \text{ x}", "7"), ("7 millions", "7"),
        ("8 == 7", "7"), ("(1,234)", "1234"), ("1,234", "100, 234"),
        (r"\frac{-1+\sqrt5}{2}", r"\frac{-1\pm\sqrt5}{2}"), ("x < 3 or x > 2", r"(-\infty,2)\cup(3,\infty)"),
        (r"\cos 60", r"\cos 60^\circ"), (r"2(\frac12)", r"2\frac12"), ("(1,2), (3,4)", "(1,2),(4,3)"),
        (r"\Pi", r"\pi"), (r"\phi", r"\Phi"), ("x", "X"), ("A, B", r"\text{(A)}"), ("(A)(B)", "A"),
        (r"\text{7 or 8}", "7"),
    ],
)  # fmt: skip
def test_wrong_answers_are_rejected(grader, answer, reference):
    assert grader.grade([boxed(answer)], [reference])[0].status is Status.WRONG


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (r"First \boxed{7}. So the answer is \boxed{7", Status.NO_ANSWER),
        (r"\boxed{7} Then \boxed{}", Status.NO_ANSWER), (r"<think>\boxed{7}", Status.NO_ANSWER),
        (r"<think>\boxed{3}</think> \boxed{7}", Status.CORRECT), (r"\boxed{3} and \boxed{7}", Status.CORRECT),
        (r"\boxed{7} and \boxed{3}", Status.WRONG), (r"\boxed 7", Status.CORRECT),
        ("The answer is 7.", Status.NO_ANSWER),
    ],
)  # fmt: skip
def test_the_last_box_is_the_answer(grader, text, status):
    assert grader.grade([text], ["7"])[0].status is status


HOSTILE = [
    *("9^{9^{9^{9}}}", "9^9^9^9", "(10^9)!", "1000000!", "((5!)!)!", r"\binom{10^9}{10^8}", r"\binom{99}{\pi}"),
    "2^{100000000}",
    *("1e9999999999", "(x+y)^{1000}", r"\sin(10^{10^{10}})", r"\prod_{n=1}^{10000000} n", r"\sum_{i=1}^{10^9} i"),
    "x_" * 30,
    *(r"\int_0^1 \frac{\sin x}{x^2+1} dx", "=".join("7" * 1000), " " * 10**6 + "8"),
    *("(" * 1000 + "7" + ")" * 1000, "x" * 10**6),
    *("{" * 10**5 + "7" + "}" * 10**5, r"\sqrt{" * 100 + "2" + "}" * 100, r"\cos(" * 20 + "x" + ")" * 20),
    "9" * 10**6,
    *("\\" * 1001, "5\x00", "\ud800", "\\ud800 \\x00 %s {0}", ",".join(map(str, range(1000))), "+".join("x" * 500)),
]  # fmt: skip


def test_hostile_answers_are_wrong_at_once(grader):
    """Each took seconds, or the whole deadline, once it reached computer algebra."""
    cases = [(answer, reference) for answer in HOSTILE for reference in ("7", r"\sqrt{2}", r"\{1,2\}", "x^2+1")]
    start = time.monotonic()
    verdicts = grader.grade([boxed(answer) for answer, _ in cases], [reference for _, reference in cases])
    assert {verdict.score for verdict in verdicts} == {0.0}
    assert {verdict.status for verdict in verdicts} <= {Status.WRONG, Status.NO_ANSWER}
    assert time.monotonic() - start < 30  # about 2 s


@pytest.mark.parametrize("reference", REFERENCES)
def test_no_reference_is_too_large_an_answer(reference):
    wanted = canonical(reference)
    assert not is_too_large(wanted, wanted)


@pytest.mark.parametrize(
    ("answer", "reference", "known"),
    [
        ("1,234", "1234", True), (r"7 \text{ apples}", "7", True), ("8", "7", False),
        (r"\text{East}", r"\text{east}", True), (r"\frac{\sqrt{4}}{2}", "1", None), ("x", "1", None),
    ],
)  # fmt: skip
def test_texts_alone_decide_what_needs_no_computer_algebra(answer, reference, known):
    assert decide(answer, reference) is known


def test_letters_after_a_number_are_a_unit_in_an_answer_alone():
    assert number_with_unit("3m").value == 3
    assert number_with_unit("3m", attached=False) is None
    assert number_with_unit(r"3\text{m}", attached=False).value == 3
    assert number_with_unit("12 cubic meters", attached=False).value == 12


def test_words_are_not_read_as_products_of_their_letters(grader):
    words = ["Paris", "no number here, sorry about that", "", r"\frac{1}{", "1/0", "x" * 10**6]
    words += ["there were 2 of them, and with 3 more from somewhere that makes five apples"]
    assert not grader.parses(words).any()
    mathematics = [r"\text{Tuesday}", "12 cubic meters", r"\sin x", "sqrt(2)", "ABCD", "xyz", r"x \in \mathbb{R}"]
    assert grader.parses([*mathematics, "arctan(y)"]).all()


def test_votes_are_by_value(grader):
    pairs = [("3e8", r"3 \times 10^8"), (r"\frac12", "0.5"), (r"2\sqrt{2}", r"\sqrt{8}"), ("1e-7", "2e-7"), ("x", "y")]
    assert grader.equivalent(pairs) == [True, True, True, False, False]
