"""The text of a problem or of a reference answer, from whatever a row's column holds."""

import json
import re
from decimal import Decimal

MISSING = object()  # unlike null, which a column may hold
MOST_DIGITS = 40  # of a number that is written out without an exponent

_LOOKS_LIKE_A_CHAT = re.compile(r"""\s*\[\s*\{\s*['"](?:role|content)['"]\s*:""")
_KINDS = {bool: "true or false", int: "a number", float: "a number", Decimal: "a number", dict: "an object"}


class BadRowError(ValueError):
    """A row holds no problem or no answer; the message is the reason under which such rows are counted."""


def lookup(record: dict, column: str) -> object:
    """The value of a column, perhaps a nested one; `MISSING` if there is none.

    Dots lead into nested columns, numbers into lists. A column that has the whole name is taken first.
    """
    if column in record:
        return record[column]
    value: object = record
    for part in column.split("."):
        if isinstance(value, list) and part.isdecimal():
            value = dict(enumerate(value)).get(int(part), MISSING)
        else:
            value = value.get(part, MISSING) if isinstance(value, dict) else MISSING
    return value


def problem_text(value: object) -> str:
    """A text as it is, or what the user said last in a chat.

    A chat is a list of messages with `role` and `content`, also stored as JSON text; a content may be a list of text
    parts.

    Raises:
      BadRowError: there is no such text.
    """
    if (chat := _chat(value, "problem")) is not None:
        said = [message.get("content") for message in chat if message.get("role") == "user"]
        if not said:
            raise BadRowError("the problem is a chat without a message of the role 'user'")
        value = said[-1]
    return _checked(_joined(value, "problem"), "problem")


def answer_text(value: object, answer_after: str = "", whole_list: bool = False) -> str:
    """A text without the space around it; a number without exponent; true or false; a chat's last message.

    Args:
      value: one of these, or a list of which the first counts.
      answer_after: keep what follows the last such mark; "" = all of it.
      whole_list: of a list of texts all count, a line each.

    Raises:
      BadRowError: there is no such text, it lacks the mark, or a chat does not end with the assistant.
    """
    if (chat := _chat(value, "answer")) is not None:
        if chat[-1].get("role") != "assistant":
            raise BadRowError("the answer is a chat whose last message is not of the role 'assistant'")
        value = chat[-1].get("content")
    elif isinstance(value, list | tuple) and not _are_parts(value):
        if not value:
            raise BadRowError("the answer is empty")
        if not whole_list:
            value = value[0]
        elif all(isinstance(item, str) for item in value):
            value = "\n".join(value)
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, int | float | Decimal):
        value = number_text(value)
    text = _checked(_joined(value, "answer"), "answer")
    if answer_after:
        _, mark, text = text.rpartition(answer_after)
        if not mark:
            raise BadRowError(f"the answer lacks the mark of data.answer_after = {answer_after!r}")
    return _checked(text, "answer").strip()


def number_text(value: int | float | Decimal) -> str:
    """The number that the file wrote, without exponent and trailing zeros: 72.0 is 72, 1e-07 is 0.0000001.

    Numbers that would take more than `MOST_DIGITS` digits keep their exponent, as 1e-50.

    Raises:
      BadRowError: NaN or infinite.
    """
    number = Decimal(str(value))  # of a float the fewest digits that tell it from its neighbours
    if not number.is_finite():
        raise BadRowError("the answer is not a finite number")
    if not number:
        return "0"
    if abs(number.adjusted()) > MOST_DIGITS:
        return str(number).lower()
    text = f"{number:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _chat(value: object, what: str) -> list[dict] | None:
    """The messages of a chat; None if it is none."""
    if isinstance(value, str) and _LOOKS_LIKE_A_CHAT.match(value):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadRowError(f"the {what} looks like a chat, but it is no JSON") from None
    is_chat = isinstance(value, list | tuple) and value and all(isinstance(m, dict) and "role" in m for m in value)
    return list(value) if is_chat else None


def _are_parts(value: object) -> bool:
    """Whether this is a message's content in parts: [{"type": "text", "text": ...}, ...]."""
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "type" in part for part in value)


def _joined(value: object, what: str) -> str:
    if _are_parts(value):
        if others := {str(part["type"]) for part in value} - {"text"}:
            raise BadRowError(f"the {what} has parts that are no text: {', '.join(sorted(others))}")
        return "".join(_joined(part.get("text"), what) for part in value)
    if isinstance(value, str):
        return value
    if value is None or value is MISSING:
        raise BadRowError(f"the {what} is {'null' if value is None else 'missing'}")
    wanted = "no text" if what == "problem" else "neither text nor number"
    raise BadRowError(f"the {what} is {wanted} but {_KINDS.get(type(value), f'a {type(value).__name__}')}")


def _checked(text: str, what: str) -> str:
    if not text.strip():
        raise BadRowError(f"the {what} is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRowError(f"the {what} holds a lone surrogate (\\ud800 to \\udfff), which is no character") from None
    return text
