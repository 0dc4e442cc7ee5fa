"""Extracts the final answer from the text of a response.

Pure functions that take linear time: a response is whatever the policy sampled, at any length.
"""

import re

# The lookbehind is for `\\boxed{5}`, as models write inside code: a pair of backslashes, and still a box.
_BOX = r"\\?(?<=\\)(?:boxed|fbox)"
_BRACES = re.compile(
    rf"(?P<box>{_BOX}\s*\{{)|{_BOX}(?P<bare>\s+[-+]?\w[\w.,/]*|[-+]?\d[\w.,/]*)|\\.|(?P<open>\{{)|(?P<close>\}})",
    re.DOTALL,
)
_FINAL = re.compile(r"\banswer(?: is\b|\*{0,2}:)|####", re.IGNORECASE)


def after_thinking(text: str) -> str:
    """The text after the last `</think>`, "" if a `<think>` is not closed, the whole text if there is none.

    A response that was cut off while it was thinking has no answer, whatever it considered.
    """
    rest = text.rpartition("</think>")[2]
    return "" if "<think>" in rest else rest


def extract_boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` or `\fbox{...}`, without the white space around it.

    The last is the one that opens last, so of nested boxes the inner one, as in math-verify. Escaped braces
    (`\{`) are text. `\boxed 7` is a box too. Boxes in a `<think>` do not count.

    Returns:
        The content, "" for an empty box, None without a box or if the last one is never closed: the response does not
        end on an earlier one.
    """
    text = after_thinking(text)
    open_braces: list[tuple[int, bool]] = []  # where the content starts, and whether the brace is a box's
    start, end = -1, -1
    for match in _BRACES.finditer(text):
        if match["box"] or match["open"]:
            open_braces.append((match.end(), match["box"] is not None))
        elif match["bare"]:
            start, end = match.span("bare")
        elif match["close"] and open_braces:
            content, is_box = open_braces.pop()
            if is_box and content > start:
                start, end = content, match.start()
    broken = max((content for content, is_box in open_braces if is_box), default=-1)
    return text[start:end].strip() if start > broken else None


def final_answer(text: str) -> str | None:
    r"""The last box's content; without a box what follows the last "answer is", "answer:" or "####" in its line.

    The phrases are those of zero-shot chains of thought (arXiv 2205.11916) and of GSM8K (arXiv 2110.14168). Where
    nothing follows in the line, the next one that holds something counts.

    Returns:
        The answer without white space around it, "" where nothing follows, None without a box or a phrase.
    """
    text = after_thinking(text)
    boxed = extract_boxed(text)
    if boxed is not None or r"\boxed" in text:
        return boxed
    end = max((match.end() for match in _FINAL.finditer(text)), default=None)
    if end is None:
        return None
    after = text[end:].lstrip(": \t\r\n*")
    return after.partition("\n")[0].strip()
