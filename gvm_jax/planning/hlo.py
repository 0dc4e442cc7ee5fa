"""A compiled program's text as instructions: what XLA's own cost analysis leaves out can be counted from it.

The text is HLO after all passes, scheduled, for one device. Only what the counts in `costs.py` need is read.
"""

import dataclasses
import functools
import math
import re

_BYTES = {"pred": 1, "token": 0, "c64": 8, "c128": 16, "bf16": 2, "tf32": 4}
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPCODE = re.compile(r"\s([a-z][a-z0-9-]*)\(")
_NAME = re.compile(r"%?([\w.-]+)\s*$")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: element type, dimensions, and whether it lies in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # False: on-chip memory, which costs no traffic

    @property
    def bytes(self) -> int:
        """Its size; sub-byte types count whole bytes."""
        width = _BYTES.get(self.dtype)
        if width is None:
            digits = re.search(r"\d+", self.dtype)
            width = max(1, int(digits.group()) // 8) if digits else 0
        return math.prod(self.dims) * width


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape's text, a tuple's in order."""
    shapes = []
    for dtype, dims, layout in _ARRAY.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        on_chip = space is not None and space.group(1) not in ("0",)
        shapes.append(Shape(dtype, tuple(int(d) for d in dims.split(",") if d), not on_chip))
    return tuple(shapes)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]  # names
    literal: str  # what stands in the parentheses, for constants
    attributes: str  # what follows them
    root: bool

    @property
    def shape(self) -> Shape:
        """Of the only result."""
        return self.shapes[0]

    def called(self, attribute: str) -> list[str]:
        """Names of the computations under an attribute such as "calls" or "body"."""
        match = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.-]+))", self.attributes)
        if not match:
            return []
        return [name.strip().lstrip("%") for name in (match.group(1) or match.group(2)).split(",")]


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in their order."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The one whose value the computation has."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    def resolve(self, name: str) -> Instruction | None:
        """The instruction of this name behind bitcasts, copies and converts."""
        instruction = self.by_name.get(name)
        while instruction and instruction.opcode in ("bitcast", "copy", "convert", "reshape") and instruction.operands:
            instruction = self.by_name.get(instruction.operands[0])
        return instruction


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name, and the one that is run."""

    computations: dict[str, Computation]
    entry: str


def parse(text: str) -> Program:
    """The program of `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation.
    """
    computations, entry, name, lines = {}, None, None, []
    for line in text.splitlines():
        if name is None:
            header = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{\s*$", line)
            if header:
                name, lines = header.group(2), []
                entry = name if header.group(1) else entry
        elif re.match(r"\}(?!\})", line):  # a kernel's attributes may go over several lines, the last of which is "}},"
            computations[name] = Computation(name, tuple(filter(None, map(_instruction, lines))))
            name = None
        else:
            lines.append(line)
    if entry is None:
        raise ValueError("no ENTRY computation in the text; pass what Compiled.as_text() gives")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    left, equals, right = line.strip().partition(" = ")
    if not equals:
        return None
    match = _OPCODE.search(f" {right}")
    if not match:
        return None
    begin, depth = match.end() - 1, 1
    end = begin
    while depth and end < len(right):
        depth += {"(": 1, ")": -1}.get(right[end], 0)
        end += 1
    inside = right[begin : end - 1]
    operands = tuple(m.group(1) for part in _split(inside) if (m := _NAME.search(part)))
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=match.group(1),
        shapes=shapes_of(right[: match.start()]),
        operands=operands,
        literal=inside,
        attributes=right[end:],
        root=left.startswith("ROOT "),
    )


def _split(text: str) -> list[str]:
    """At commas outside of all brackets."""
    parts, depth, begin = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append(text[begin:i])
            begin = i + 1
    return [part for part in [*parts, text[begin:]] if part.strip()]
