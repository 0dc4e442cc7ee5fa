"""Extraction of boxed answers against brute force."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvm_jax.rewards import extract_boxed


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"), (r"\boxed{1}, no: \boxed{2}", "2"), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{ x = \sqrt{ \frac{a}{b} } }", r"x = \sqrt{ \frac{a}{b} }"), (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"), (r"\\boxed{5}", "5"), ("\\boxed{\n5\n}", "5"), (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed{\{ x \right.}", r"\{ x \right."),
        (r"\boxed{a \\{b} c}", r"a \\{b} c"), (r"\boxed{8} and then \boxed{9", None),
        (r"\boxed{8} and then \boxed", "8"), (r"\boxed{\boxed{8}", "8"), (r"\boxed{8 \boxed{9} ", "9"),
        (r"\boxed{8} and \boxed{", None), (r"} {\boxed{5}", "5"), (r"\boxed{}", ""), (r"\boxed{5} not \boxed{ }", ""),
        (r"\boxed 7", "7"), (r"$\boxed -7.5$.", "-7.5"), (r"\boxed7", "7"), (r"\boxed7}", "7"),
        (r"\boxed{1}, no: \boxed 2", "2"), (r"\boxedx", None), (r"\boxed (7)", None),
        (r"<think>\boxed{3}</think> \boxed{7}", "7"), (r"<think>\boxed{3}</think> seven", None),
        (r"\boxed{3}</think>\boxed{7}", "7"), (r"<think>\boxed{7}", None), (r"\boxed{7}<think>\boxed{7}", None),
        (r"<think>\boxed{3}</think>\boxed{7}<think>", None), (r"\boxed{7", None), (r"\boxed{7\}", None),
        (r"boxed{7}", None), (r"\unboxed{7}", None), ("42", None), ("", None),
    ],
)  # fmt: skip
def test_extract_boxed_gives_the_content_of_the_last_complete_box(text, content):
    assert extract_boxed(text) == content


def brute_force_boxed(text: str) -> str | None:
    """The content of the last box, which must be closed; braces are counted after each box afresh."""
    escaped, brace = False, []
    for character in text:
        brace.append(0 if escaped else {"{": 1, "}": -1}.get(character, 0))
        escaped = character == "\\" and not escaped
    for start in reversed(range(len(text))):
        for command in (r"\boxed{", r"\fbox{"):
            content = start + len(command)
            if text.startswith(command, start):
                depth = 1
                for end in range(content, len(text)):
                    depth += brace[end]
                    if depth == 0:
                        return text[content:end].strip()
                return None
    return None


@given(st.lists(st.sampled_from([r"\boxed{", r"\fbox{", "{", "}", r"\{", r"\}", "\\\\", "x", " "]), max_size=24))
@settings(max_examples=500, deadline=None)
def test_extract_boxed_agrees_with_brute_force(pieces):
    text = "".join(pieces)
    assert extract_boxed(text) == brute_force_boxed(text)


@given(st.text(), st.recursive(st.text("ab1 ,\\\\^_", max_size=4), lambda inner: inner.map("{{{}}}".format)))
@settings(deadline=None)
def test_extract_boxed_ignores_everything_around_the_box(around, content):
    content = content.replace("\\", "")
    around = around.replace("box", "").rstrip("\\")
    assert extract_boxed(rf"{around} \boxed{{{content}}} {around.replace('{', '')}") == content.strip()


@pytest.mark.parametrize(
    "text",
    [
        "\\" * 10**6,
        "{" * 10**6,
        "}" * 10**6,
        r"\boxed{" * 150_000,
        r"\boxed" + " " * 10**6,
        r"\boxed " * 150_000,
        "x" * 10**6,
    ],
    ids=["backslashes", "open", "close", "boxes", "spaces", "braceless", "text"],
)
def test_extract_boxed_of_a_megabyte_takes_linear_time(text):
    start = time.process_time()
    assert extract_boxed(text) is None
    assert time.process_time() - start < 10  # about 1 s; quadratic time is hours


def test_extract_boxed_matches_a_hundred_thousand_nested_braces():
    content = "{" * 10**5 + "1" + "}" * 10**5
    assert extract_boxed(rf"\boxed{{{content}}}") == content
