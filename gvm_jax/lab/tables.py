"""Tables of the lab's reports."""

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, which reads as well in a terminal; the first row has the titles."""
    first, *others = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    line = f"| {{:{first}}} |" + "".join(f" {{:>{width}}} |" for width in others)
    rule = ["-" * first, *("-" * (width - 1) + ":" for width in others)]
    return "\n".join(line.format(*row) for row in (rows[0], rule, *rows[1:]))
