"""Operations, memory traffic and collectives of a compiled program on one device, loops counted as often as they run.

XLA's own analysis counts a loop's body once. Here a body counts as often as its loop runs, which is read from the
loop's condition (`i < n`); a loop whose end depends on data gets the count that the caller gives. Of a conditional the
dearest branch counts. Operations are those of matrix products and convolutions, 2 a multiply-add. Positions of a
convolution that fall on padding or between dilated entries are left out: TPUs run batched products as such
convolutions. Custom calls (Pallas kernels) have none; their operations and the reads of a cache of keys and values are
counted by hand elsewhere.

Traffic is the bytes that instructions read from and write to main memory: arrays that the compiler placed on the chip
are free, and of an array that is only sliced the slice counts.
"""

import collections
import dataclasses
import math
import re

import numpy as np

from gvm_jax.planner.hlo import Computation, Instruction, Program, Shape

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
    "while", "conditional", "call", "optimization-barrier",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")
_UPDATES = {"dynamic-update-slice": 1, "scatter": -1}  # -> the operand that is written into the first


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

    @property
    def ring_bytes(self) -> float:
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
    counts = dict(counter.computation(program.entry))
    flops, traffic = counts.pop("flops", 0.0), counts.pop("bytes", 0.0)
    collectives = (Collective(*key, count) for key, count in counts.items())
    return Costs(flops, traffic, tuple(sorted(collectives, key=lambda c: -c.ring_bytes)))


class _Counter:
    """Walks the computations; each is counted once and remembered.

    Counts have the keys "flops" and "bytes", and (kind, shape, group, bytes) of a collective.
    """

    def __init__(self, program: Program, devices: int, trips: int, by_hand: Shape | None):
        self.computations, self.devices, self.trips, self.by_hand = program.computations, devices, trips, by_hand
        self._known: dict[str, collections.Counter] = {}

    def computation(self, name: str) -> collections.Counter:
        if name not in self._known:
            counts, computation = collections.Counter(), self.computations[name]
            for instruction in computation.instructions:
                for times, called in self._called(computation, instruction):
                    _add(counts, called, times)
                if instruction.opcode == "fusion":
                    starts = instruction.name.startswith("async-collective-start")
                    for fused in instruction.called("calls"):
                        self._add_fused(counts, fused, starts)
                counts["flops"] += _product_flops(computation, instruction)
                counts["bytes"] += self._traffic(computation, instruction)
                self._add_collective(counts, computation, instruction)
            self._known[name] = counts
        return self._known[name]

    def _called(self, computation: Computation, instruction: Instruction) -> list[tuple[int, collections.Counter]]:
        """(times, counts) of the computations that an instruction runs as programs of their own."""
        if instruction.opcode == "while":
            times = self._trip_count(computation, instruction)
            return [(times, self.computation(name)) for name in instruction.called("body")]
        if instruction.opcode == "conditional":
            attributes = ("branch_computations", "true_computation", "false_computation")
            branches = [self.computation(name) for a in attributes for name in instruction.called(a)]
            return [(1, max(branches, key=lambda counts: (counts["flops"], counts["bytes"])))]
        if instruction.opcode in ("call", "async-start"):
            names = instruction.called("to_apply") or instruction.called("calls")
            return [(1, self.computation(name)) for name in names]
        return []

    def _add_fused(self, counts: collections.Counter, name: str, starts: bool) -> None:
        """Adds operations and collectives of a fused computation.

        A collective that overlaps computation is spread over a chain of fusions, of which the first `starts` it.
        """
        computation = self.computations[name]
        for instruction in computation.instructions:
            counts["flops"] += _product_flops(computation, instruction)
            if starts or "chain_id" not in instruction.attributes:
                self._add_collective(counts, computation, instruction)
            for called in instruction.called("calls") if instruction.opcode == "fusion" else ():
                self._add_fused(counts, called, starts)

    def _trip_count(self, computation: Computation, loop: Instruction) -> int:
        """ceil((end - begin) / step) of a loop `while i < end`; the caller's count where the condition is another."""
        condition, start = self.computations[loop.called("condition")[0]], computation.by_name[loop.operands[0]]
        compare, sides = condition.root, [condition.resolve(name) for name in condition.root.operands]
        if compare.opcode == "fusion":  # a comparison alone in a fusion
            inside = self.computations[compare.called("calls")[0]]
            inner = [inside.resolve(name) for name in inside.root.operands]
            sides = [sides[int(side.literal)] if side and side.opcode == "parameter" else side for side in inner]
            compare = inside.root
        if compare.opcode == "compare" and "direction=LT" in compare.attributes and None not in sides:
            index, end = _element(sides[0]), _integer(sides[1])
            if end is None and (held := _element(sides[1])) is not None:  # the end may be carried in the state
                end = _initial(computation, start, held)
            if index is not None and end is not None:
                step = _loop_step(self.computations[loop.called("body")[0]], index)
                return max(math.ceil((end - (_initial(computation, start, index) or 0)) / step), 0)
        return self.trips

    def _add_collective(self, counts: collections.Counter, computation: Computation, instruction: Instruction) -> None:
        kind, shapes = instruction.opcode.removesuffix("-start"), instruction.shapes
        if kind not in COLLECTIVES:
            return
        if kind == "reduce-scatter":
            shapes = tuple(computation.by_name[name].shape for name in instruction.operands)
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # the TPU's: every device keeps its slice
        if instruction.opcode.endswith("-start"):
            shapes = tuple(shape for shape in shapes if shape.dims)
        for shape in shapes:
            if shape.bytes:
                text = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
                counts[kind, text, _group_size(instruction.attributes, self.devices), shape.bytes] += 1

    def _traffic(self, computation: Computation, instruction: Instruction) -> float:
        opcode, results = instruction.opcode, instruction.shapes
        if opcode in _FREE or opcode.endswith("-done"):
            return 0.0
        operands = [computation.by_name[name] for name in instruction.operands if name in computation.by_name]
        if opcode in _SLICES:
            return 2.0 * _size(*results)
        if opcode in _UPDATES:
            return 2.0 * _size(*operands[_UPDATES[opcode]].shapes)
        if opcode == "copy-start":  # both sides stand in the result
            return _size(*results[:2])
        if opcode == "slice-start":  # likewise; it moves the smaller one
            return _size(*results[1:2])
        if opcode == "fusion":
            return self._fusion_traffic(instruction, operands)
        if opcode == "custom-call" and self.by_hand is not None:
            operands = [o for o in operands if (o.shape.dtype, o.shape.dims) != (self.by_hand.dtype, self.by_hand.dims)]
        return _size(*results) + sum(_size(*operand.shapes) for operand in operands)

    def _fusion_traffic(self, fusion: Instruction, operands: list[Instruction]) -> float:
        """Results and operands; of an array that is updated in place, or only sliced, the part that is touched."""
        inside = self.computations[fusion.called("calls")[0]]
        is_tuple = inside.root.opcode == "tuple"
        roots = [inside.by_name[name] for name in inside.root.operands] if is_tuple else [inside.root]
        total, updated = 0.0, set()
        for root, shape in zip(roots, fusion.shapes, strict=False):
            source = inside.resolve(root.name)
            if source is not None and source.opcode in _UPDATES:
                target = inside.resolve(source.operands[0])
                updated.add(target.name if target else "")
                written = inside.by_name[source.operands[_UPDATES[source.opcode]]]
                total += 2.0 * written.shape.bytes * shape.in_hbm
            else:
                total += _size(shape)
        for number, operand in enumerate(operands):
            parameter = inside.parameters.get(number)
            if parameter is None or parameter.name in updated or not _size(*operand.shapes):
                continue
            users = self._users(inside, parameter.name)
            sliced = users and all(user.opcode in _SLICES and first for user, first in users)
            total += sum(user.shape.bytes for user, _ in users) if sliced else _size(*operand.shapes)
        return total

    def _users(self, computation: Computation, name: str) -> list[tuple[Instruction, bool]]:
        """(reader, whether as first operand) of an array, seen through changes of its shape and fusions."""
        users = []
        for instruction in computation.instructions:
            if name not in instruction.operands:
                continue
            if instruction.opcode in ("bitcast", "reshape"):
                users += self._users(computation, instruction.name)
            elif instruction.opcode == "fusion":
                inside = self.computations[instruction.called("calls")[0]]
                users += self._users(inside, inside.parameters[instruction.operands.index(name)].name)
            else:
                users.append((instruction, instruction.operands[0] == name))
        return users


def _add(total: collections.Counter, counts: collections.Counter, times: float) -> None:
    for key, count in counts.items():
        total[key] += times * count


def _size(*shapes: Shape) -> float:
    return float(sum(shape.bytes for shape in shapes if shape.in_hbm))


def _integer(instruction: Instruction | None) -> int | None:
    """The value of an integer constant; None of anything else."""
    constant = instruction is not None and instruction.opcode == "constant"
    return int(instruction.literal) if constant and re.fullmatch(r"-?\d+", instruction.literal.strip()) else None


def _element(instruction: Instruction) -> int | None:
    """The index of a loop's state that an instruction takes; None where it takes none."""
    taken = instruction.opcode == "get-tuple-element"
    return int(re.search(r"index=(\d+)", instruction.attributes)[1]) if taken else None


def _initial(computation: Computation, start: Instruction, index: int) -> int | None:
    """The value that a loop's state begins with, where it is a constant."""
    return _integer(computation.resolve(start.operands[index])) if start.opcode == "tuple" else None


def _loop_step(body: Computation, index: int) -> int:
    """The number that a loop adds to its counter; 1 where it cannot be read. TPU compilers unroll some loops by two."""
    added = body.resolve(body.root.operands[index]) if body.root.opcode == "tuple" else None
    operands = added.operands if added and added.opcode == "add" else ()
    return next(filter(None, (_integer(body.by_name[name]) for name in operands)), 1)


def _group_size(attributes: str, devices: int) -> int:
    """Devices of one group, in any of the three forms that HLO writes groups in."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return listed[1].count(",") + 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return devices


def _product_flops(computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (computation.by_name[name].shape.dims for name in instruction.operands[:2])
    result = instruction.shape.dims
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)[1]
        return 2.0 * math.prod(result) * math.prod(lhs[int(d)] for d in contracted.split(",") if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    input_labels, kernel_labels, result_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    total = 2.0 * result[result_labels.index("b")] * result[result_labels.index("f")] * rhs[kernel_labels.index("i")]
    for axis, label in enumerate(sorted(filter(str.isdigit, kernel_labels))):

        def field(name, default, axis=axis):
            return int(fields[name].split("x")[axis].split("_")[0]) if name in fields else default

        # Pairs of a result and a window entry that meet an entry of the input, along this axis.
        positions = np.arange(result[result_labels.index(label)])[:, None] * field("stride", 1) - field("pad", 0)
        at = positions + np.arange(rhs[kernel_labels.index(label)]) * field("rhs_dilate", 1)
        dilation = field("lhs_dilate", 1)
        inside = (at >= 0) & (at <= (lhs[input_labels.index(label)] - 1) * dilation) & (at % dilation == 0)
        total *= int(np.count_nonzero(inside))
    return total
