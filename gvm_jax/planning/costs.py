"""What a compiled program costs one device: operations, memory traffic and collectives, loops counted as they run.

XLA's own analysis counts a loop's body once. Here a body counts as often as its loop runs, which is read from the
loop's condition (`i < n`); a loop whose end depends on data gets the count that the caller gives. Of a conditional the
dearest branch counts. Operations are those of matrix products and convolutions, 2 a multiply-add. Positions of a
convolution that fall on padding or between dilated entries are left out: TPUs run batched products as such
convolutions. Custom calls (Pallas kernels) have none; their operations and the reads of a cache of keys and values are
counted by hand elsewhere.

Traffic is what the instructions read from and write to main memory: arrays that the compiler placed on the chip are
free, and of an array that is only sliced the slice counts.
"""

import collections
import dataclasses
import math
import re

import numpy as np

from gvm_jax.planning.hlo import Computation, Instruction, Program, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
    "while", "conditional", "call", "optimization-barrier",
}  # fmt: skip
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # which operand is written into the first


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind and size in a program."""

    kind: str
    shape: str  # of the larger side, on one device
    group: int  # devices that take part
    bytes: int  # of the larger side, of one run
    count: float  # runs

    @property
    def ring_bytes(self) -> float:
        """Bytes that a device passes on in all runs, round a ring."""
        share = (self.group - 1) / max(self.group, 1)
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(self.kind, share)
        return self.bytes * self.count * factor


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one run of a program on one device."""

    flops: float
    bytes: float
    collectives: tuple[Collective, ...]  # largest first
    unknown_loops: int  # loops whose trip count was given, not read

    @property
    def ring_bytes(self) -> float:
        """Of all collectives."""
        return sum(collective.ring_bytes for collective in self.collectives)


def program_costs(program: Program, devices: int, data_dependent_trips: int = 1, by_hand: Shape | None = None) -> Costs:
    """Counts a program.

    Args:
      program: parsed text.
      devices: in the mesh; the group of a collective that names none.
      data_dependent_trips: of a loop whose condition is not a comparison with a constant.
      by_hand: arrays of this type and size are left out of the operands of custom calls: the KV cache, of which a
        kernel reads what it needs.
    """
    counter = _Counter(program, devices, data_dependent_trips, by_hand)
    flops, traffic, collectives = counter.computation(program.entry)
    merged = [Collective(kind, shape, group, size, count) for (kind, shape, group, size), count in collectives.items()]
    merged.sort(key=lambda c: -c.ring_bytes)
    return Costs(flops, traffic, tuple(merged), counter.unknown_loops)


class _Counter:
    """Walks the computations; each is counted once and remembered."""

    def __init__(self, program: Program, devices: int, trips: int, by_hand: Shape | None):
        self.program, self.devices, self.trips, self.by_hand = program, devices, trips, by_hand
        self.unknown_loops = 0
        self._known: dict[str, tuple[float, float, collections.Counter]] = {}

    def computation(self, name: str) -> tuple[float, float, collections.Counter]:
        """(operations, traffic, collectives) of one run."""
        if name not in self._known:
            self._known[name] = self._count(self.program.computations[name])
        return self._known[name]

    def _count(self, computation: Computation):
        flops, traffic, collectives = 0.0, 0.0, collections.Counter()
        for instruction in computation.instructions:
            for times, called in self._calls(computation, instruction):
                inner_flops, inner_traffic, inner = called
                flops, traffic = flops + times * inner_flops, traffic + times * inner_traffic
                for key, count in inner.items():
                    collectives[key] += times * count
            if instruction.opcode == "fusion":
                for name in instruction.called("calls"):
                    flops += self._fused(name, collectives, instruction.name.startswith("async-collective-start"))
            flops += _product_flops(computation, instruction)
            traffic += self._traffic(computation, instruction)
            self._collect(computation, instruction, collectives)
        return flops, traffic, collectives

    def _calls(self, computation: Computation, instruction: Instruction):
        """(times, counts) of the computations that an instruction runs as programs of their own."""
        if instruction.opcode == "while":
            times = self._trip_count(computation, instruction)
            return [(times, self.computation(name)) for name in instruction.called("body")]
        if instruction.opcode == "conditional":
            names = instruction.called("branch_computations") or [
                *instruction.called("true_computation"),
                *instruction.called("false_computation"),
            ]
            return [(1, max((self.computation(name) for name in names), key=lambda c: c[:2]))]
        if instruction.opcode in ("call", "async-start"):
            names = instruction.called("to_apply") or instruction.called("calls")
            return [(1, self.computation(name)) for name in names]
        return []

    def _fused(self, name: str, collectives, starts: bool) -> float:
        """Operations of a fused computation; its collectives are added.

        One that overlaps computation is spread over a chain of fusions, of which the first `starts` it.
        """
        computation, flops = self.program.computations[name], 0.0
        for instruction in computation.instructions:
            flops += _product_flops(computation, instruction)
            if starts or "chain_id" not in instruction.attributes:
                self._collect(computation, instruction, collectives)
            for called in instruction.called("calls") if instruction.opcode == "fusion" else ():
                flops += self._fused(called, collectives, starts)
        return flops

    def _trip_count(self, computation: Computation, loop: Instruction) -> int:
        known = re.search(r"known_trip_count[^\d]*(\d+)", loop.attributes)
        if known:
            return int(known.group(1))
        condition = self.program.computations[loop.called("condition")[0]]
        compare, start = condition.root, computation.by_name.get(loop.operands[0])
        while compare.opcode == "fusion":  # a comparison alone in a fusion
            inner = self.program.computations[compare.called("calls")[0]]
            compare, condition = inner.root, _Inlined(condition, compare, inner)
        values = [_loop_value(condition, name, start, computation) for name in compare.operands]
        if compare.opcode == "compare" and "direction=LT" in compare.attributes and len(values) == 2:
            (first_index, first), (_, last) = values
            if last is not None and first_index is not None:
                body = self.program.computations[loop.called("body")[0]]
                return max(math.ceil((last - (first or 0)) / _loop_step(body, first_index)), 0)
        self.unknown_loops += 1
        return self.trips

    def _collect(self, computation: Computation, instruction: Instruction, collectives) -> None:
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            return
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # the TPU's: every device keeps its slice
        shapes = instruction.shapes
        if instruction.opcode.endswith("-start"):
            shapes = tuple(shape for shape in shapes if shape.dims)
        if kind == "reduce-scatter" and instruction.opcode == "reduce-scatter":
            shapes = tuple(computation.by_name[name].shape for name in instruction.operands)
        for shape in shapes:
            if shape.bytes:
                text = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
                collectives[kind, text, _group_size(instruction.attributes, self.devices), shape.bytes] += 1

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith("-done"):
            return 0.0
        operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
        if opcode in ("dynamic-slice", "slice", "gather"):
            return 2.0 * _size(instruction.shapes)
        if opcode in _UPDATES:
            return 2.0 * _size(operands[_UPDATES[opcode]].shapes)
        if opcode in ("copy-start", "slice-start"):
            # Both sides stand in the result; a slice moves its smaller one.
            return _size(instruction.shapes[:2]) if opcode == "copy-start" else _size(instruction.shapes[1:2])
        if opcode == "fusion":
            return self._fusion_traffic(instruction, operands)
        if opcode == "custom-call" and self.by_hand is not None:
            operands = [o for o in operands if (o.shape.dtype, o.shape.dims) != (self.by_hand.dtype, self.by_hand.dims)]
        return sum(_size(operand.shapes) for operand in operands) + _size(instruction.shapes)

    def _fusion_traffic(self, fusion: Instruction, operands: list[Instruction]) -> float:
        inside = self.program.computations[fusion.called("calls")[0]]
        parameters = {int(i.literal): i for i in inside.instructions if i.opcode == "parameter" and i.literal.isdigit()}
        total, updated = 0.0, set()
        roots = [inside.root]
        if inside.root.opcode == "tuple":
            roots = [inside.by_name[name] for name in inside.root.operands]
        for root, shape in zip(roots, fusion.shapes, strict=False):
            source = inside.resolve(root.name)
            if source is not None and source.opcode in _UPDATES:
                target = inside.resolve(source.operands[0])
                updated.add(target.name if target else "")
                written = inside.by_name[source.operands[_UPDATES[source.opcode]]]
                total += 2.0 * written.shape.bytes * shape.in_hbm
            else:
                total += _size((shape,))
        for number, operand in enumerate(operands):
            parameter = parameters.get(number)
            if parameter is None or parameter.name in updated:
                continue
            if not _size(operand.shapes):
                continue
            users = self._users(inside, parameter.name)
            sliced = users and all(i.opcode in ("dynamic-slice", "slice", "gather") and first for i, first in users)
            total += sum(i.shape.bytes for i, _ in users) if sliced else _size(operand.shapes)
        return total

    def _users(self, computation: Computation, name: str) -> list[tuple[Instruction, bool]]:
        """What reads an array, seen through changes of its shape and fusions, and whether as first operand."""
        users = []
        for instruction in computation.instructions:
            if name not in instruction.operands:
                continue
            if instruction.opcode in ("bitcast", "reshape"):
                users += self._users(computation, instruction.name)
            elif instruction.opcode == "fusion":
                inside = self.program.computations[instruction.called("calls")[0]]
                number = str(instruction.operands.index(name))
                parameter = next(i for i in inside.instructions if i.opcode == "parameter" and i.literal == number)
                users += self._users(inside, parameter.name)
            else:
                users.append((instruction, instruction.operands[0] == name))
        return users


class _Inlined:
    """A condition's names seen from inside of a fusion in it."""

    def __init__(self, outer, fusion: Instruction, inner: Computation):
        parameters = {i.name: fusion.operands[int(i.literal)] for i in inner.instructions if i.opcode == "parameter"}
        self._outer, self._inner, self._parameters = outer, inner, parameters

    def resolve(self, name: str) -> Instruction | None:
        """As `Computation.resolve`."""
        found = self._inner.resolve(name)
        return self._outer.resolve(self._parameters[found.name]) if found and found.opcode == "parameter" else found


def _loop_value(condition, name: str, start: Instruction | None, outside: Computation) -> tuple[int | None, int | None]:
    """(index in the loop's state or None, value at the start or None) of what a condition compares."""
    found = condition.resolve(name)
    if found is None:
        return None, None
    if found.opcode == "constant":
        return None, _integer(found)
    if found.opcode != "get-tuple-element":
        return None, None
    index = int(re.search(r"index=(\d+)", found.attributes).group(1))
    initial = outside.resolve(start.operands[index]) if start is not None and start.opcode == "tuple" else None
    return index, _integer(initial) if initial is not None and initial.opcode == "constant" else None


def _loop_step(body: Computation, index: int) -> int:
    """What a loop adds to its counter; 1 where it cannot be read. The TPU's compiler unrolls some loops by two."""
    added = body.resolve(body.root.operands[index]) if body.root.opcode == "tuple" else None
    constants = [body.by_name[name] for name in added.operands] if added and added.opcode == "add" else []
    return next((_integer(c) for c in constants if c.opcode == "constant"), None) or 1


def _integer(constant: Instruction) -> int | None:
    return int(constant.literal) if re.fullmatch(r"-?\d+", constant.literal.strip()) else None


def _size(shapes: tuple[Shape, ...]) -> float:
    return float(sum(shape.bytes for shape in shapes if shape.in_hbm))


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one group, in any of the three forms that HLO writes groups in."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota.group(2))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh.group(2)))
    return devices


def _product_flops(computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "dot":
        left = computation.by_name[instruction.operands[0]].shape.dims
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes).group(1)
        depth = math.prod(left[int(d)] for d in contracted.split(",") if d)
        return 2.0 * math.prod(instruction.shape.dims) * depth
    if instruction.opcode == "convolution":
        return _convolution_flops(computation, instruction)
    return 0.0


def _convolution_flops(computation: Computation, instruction: Instruction) -> float:
    lhs, rhs = (computation.by_name[name].shape.dims for name in instruction.operands[:2])
    result = instruction.shape.dims
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    in_labels, kernel_labels, out_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    total = 2.0 * result[out_labels.index("b")] * result[out_labels.index("f")] * rhs[kernel_labels.index("i")]
    spatial = sorted(label for label in kernel_labels if label.isdigit())
    for axis, label in enumerate(spatial):

        def field(name, default, axis=axis):
            return int(fields[name].split("x")[axis]) if name in fields else default

        low = int(fields["pad"].split("x")[axis].split("_")[0]) if "pad" in fields else 0
        total *= _valid_positions(
            lhs[in_labels.index(label)], rhs[kernel_labels.index(label)], result[out_labels.index(label)],
            field("stride", 1), low, field("lhs_dilate", 1), field("rhs_dilate", 1),
        )  # fmt: skip
    return total


def _valid_positions(size: int, window: int, results: int, stride: int, low: int, dilation: int, spread: int) -> int:
    """Pairs of a result and a window entry that meet an entry of the input, along one axis."""
    at = np.arange(results)[:, None] * stride - low + np.arange(window) * spread
    return int(np.count_nonzero((at >= 0) & (at <= (size - 1) * dilation) & (at % dilation == 0)))
