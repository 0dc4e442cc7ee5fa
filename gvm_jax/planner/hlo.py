"""A compiled program's text as instructions: HLO after all passes, scheduled, for one device.

XLA's own cost analysis knows a whole program only, with the body of each loop once, so `hlo_costs.py` counts from this.
"""

import dataclasses
import functools
import math
import re

_BYTES = {"pred": 1, "token": 0, "c64": 8, "c128": 16, "tf32": 4}
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
_OPCODE = re.compile(r"\s([a-z][a-z0-9-]*)\(")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array: element type, dimensions, and whether it lies in the device's main memory."""

    dtype: str
    dims: tuple[int, ...]
    in_hbm: bool = True  # False: on-chip memory, which costs no traffic

    @property
    def bytes(self) -> int:
        """Its size; sub-byte types count whole bytes."""
        digits = re.search(r"\d+", self.dtype)
        width = _BYTES.get(self.dtype, max(1, int(digits.group()) // 8) if digits else 0)
        return math.prod(self.dims) * width


def shapes_of(text: str) -> tuple[Shape, ...]:
    """The arrays of a shape's text, a tuple's in order."""
    return tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), not re.search(r"S\([1-9]", layout))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    shapes: tuple[Shape, ...]  # of its results
    operands: tuple[str, ...]  # names
    literal: str  # the text in the parentheses: a constant's value, a parameter's number
    attributes: str  # the text behind them
    root: bool

    @property
    def shape(self) -> Shape:
        return self.shapes[0]

    def called(self, attribute: str) -> list[str]:
        """Names of the computations under an attribute such as "calls" or "body"."""
        match = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|%?([\w.-]+))", self.attributes)
        return [name.strip().lstrip("%") for name in (match[1] or match[2]).split(",")] if match else []


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in their order."""

    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @functools.cached_property
    def root(self) -> Instruction:
        """The instruction whose result is the computation's."""
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> dict[int, Instruction]:
        return {int(i.literal): i for i in self.instructions if i.opcode == "parameter" and i.literal.isdigit()}

    def resolve(self, name: str) -> Instruction | None:
        """The instruction of this name behind bitcasts, copies and converts."""
        instruction = self.by_name.get(name)
        while instruction and instruction.opcode in ("bitcast", "copy", "convert", "reshape") and instruction.operands:
            instruction = self.by_name.get(instruction.operands[0])
        return instruction


@dataclasses.dataclass(frozen=True)
class Program:
    """All computations by name, and the name of the one that is run."""

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
                name, lines = header[2], []
                entry = name if header[1] else entry
        elif re.match(r"\}(?!\})", line):  # a kernel's attributes may go over several lines, the last of which is "}},"
            computations[name] = Computation(name, tuple(filter(None, map(_instruction, lines))))
            name = None
        else:
            lines.append(line)
    if entry is None:
        raise ValueError("no ENTRY computation in the text; pass what Compiled.as_text() gives")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    left, _, right = line.strip().partition(" = ")
    match = _OPCODE.search(f" {right}")
    if not match:
        return None
    begin = end = match.end() - 1
    depth = 1
    while depth and end < len(right):
        depth += {"(": 1, ")": -1}.get(right[end], 0)
        end += 1
    inside = right[begin : end - 1]
    return Instruction(
        name=left.removeprefix("ROOT ").lstrip("%"),
        opcode=match[1],
        shapes=shapes_of(right[: match.start()]),
        operands=tuple(re.findall(r"%([\w.-]+)", inside)),
        literal=inside,
        attributes=right[end:],
        root=left.startswith("ROOT "),
    )
