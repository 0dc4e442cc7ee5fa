"""The package's one exception, and how messages list many things in few words."""

from collections.abc import Collection, Iterable, Mapping

from gvm_jax.errors import InputError

_NAMES, _NUMBERS = 10, 3  # listed at most


class DataError(InputError):
    """Data, a tokenizer or a config field that names them cannot be used; the message says what to do."""


def names(items: Iterable[object]) -> str:
    """The first few: "a, b" or "a, b, ..., j, ... (200 in all)"."""
    shown = [str(item) for item in items]
    return ", ".join(shown[:_NAMES]) + (f", ... ({len(shown)} in all)" if len(shown) > _NAMES else "")


def counted(numbers: Collection[int]) -> str:
    """The number of rows, and the first of them: "1 (row 8)" or "1,200 (rows 3, 4, 7, ...)"."""
    first = ", ".join(str(number) for number in list(numbers)[:_NUMBERS])
    more = ", ..." if len(numbers) > _NUMBERS else ""
    return f"{len(numbers):,} (row{'s' * (len(numbers) != 1)} {first}{more})"


def by_reason(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    """The numbers of the rows of each reason, in order of the reasons."""
    numbers: dict[str, list[int]] = {}
    for number, reason in reasons.items():
        numbers.setdefault(reason, []).append(number)
    return dict(sorted(numbers.items()))


def describe_reasons(numbers: Mapping[str, Collection[int]]) -> str:
    """The number of rows of each reason, and the first of them."""
    return "; ".join(f"{counted(rows)}: {reason}" for reason, rows in numbers.items())
