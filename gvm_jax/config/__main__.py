"""Prints the fields of a config: `gvm-jax config` all of them, `gvm-jax config optimizer` those of a section."""

import difflib
import sys
import textwrap

from gvm_jax.config.fields import OPTIONS, SECTIONS
from gvm_jax.config.rules import OnResume

_MARKS = {
    OnResume.KEPT: "",
    OnResume.FREE: " May change on resume.",
    OnResume.ROUNDING: " May change on resume: float results may differ in their last bits.",
    OnResume.CONTENT: " May change on resume if its content stays.",
}


def describe(section: str) -> str:
    """The fields of a section with their defaults, allowed values and meanings."""
    lines = []
    for name, field in SECTIONS[section].items():
        meaning = f"{field.help}. Must be {field.allowed}.{_MARKS[field.on_resume]}"
        lines.append(f"{section}.{name} = {field.default!r}".removeprefix("."))
        lines += textwrap.wrap(meaning, 110, initial_indent="    ", subsequent_indent="    ")
    if OPTIONS.startswith(f"{section}."):
        lines += [f"{OPTIONS}.NAME", "    a field of the strategy itself; gvm_jax/allocation/README.md lists them."]
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Prints the sections that the arguments name, or all."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    for name in arguments:
        if name not in SECTIONS:
            near = difflib.get_close_matches(name, SECTIONS, n=1)
            advice = f"did you mean {near[0]}?" if near else f"must be one of {', '.join(filter(None, SECTIONS))}"
            print(f"error: {name!r} is no section of the config; {advice}", file=sys.stderr)
            sys.exit(2)
    print("\n\n".join(map(describe, arguments or SECTIONS)))


if __name__ == "__main__":
    main(sys.argv[1:])
