"""What the text of a compiled program tells: bytes between devices, bytes to and from memory, the
compiler's own cycles.

XLA's `cost_analysis` counts the body of a loop once. Here the program is walked computation by
computation, from its entry down, and everything inside a loop counts as often as the loop runs.
Called by child."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "token": 0, "opaque": 0}
FREE = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "add-dependency",
}
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a program. `shape`, `arguments` and `attributes` are its text; `operands` are
    names."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str

    @property
    def operands(self) -> list[str]:
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as `body` names, or ""."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found.group(1) if found else ""


@dataclasses.dataclass
class Computation:
    """A named block of instructions, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]
    root: str = ""

    def parameter(self, index: int) -> str:
        return next(
            i.name
            for i in self.instructions.values()
            if i.opcode == "parameter" and i.arguments == str(index)
        )


@dataclasses.dataclass
class Totals:
    """Sums over one run of the program on one device, loops multiplied.

    `sent`: bytes that the device sends, by collective. `memory`: bytes to and from HBM; `outside`:
    those of operations without a matrix product, and `operations` how many those are. `cycles`: the
    compiler's estimates; `product_cycles`: of operations with a matrix product. `guessed`: loops
    whose length only the running program knows."""

    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    memory: float = 0.0
    outside: float = 0.0
    cycles: float = 0.0
    product_cycles: float = 0.0
    operations: float = 0.0
    guessed: float = 0.0

    def add(self, other: Totals, times: float = 1.0) -> None:
        for name, value in other.sent.items():
            self.sent[name] = self.sent.get(name, 0.0) + times * value
        for field in ("memory", "outside", "cycles", "product_cycles", "operations"):
            setattr(self, field, getattr(self, field) + times * getattr(other, field))
        self.guessed += other.guessed


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Computations by name, and the entry's name."""
    found: dict[str, Computation] = {}
    entry, current = "", None
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line)
        if head:
            current = found[head.group(2)] = Computation(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (parts := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)):
            current.instructions[parts.group(2)] = _instruction(parts.group(2), parts.group(3))
            current.root = parts.group(2) if parts.group(1) else current.root
    return found, entry


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    rest = text[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    return Instruction(
        name, text[:end], rest[:start], rest[start + 1 : stop].strip(), rest[stop + 1 :]
    )


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    raise ValueError(f"no closing bracket: {text[start : start + 80]}")


def leaves(shape: str) -> Iterator[tuple[int, int, bool]]:
    """(bytes, bytes as laid out in tiles, whether in HBM) of each array of a shape, tuples
    flattened."""
    for dtype, sizes, layout in re.findall(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?", shape):
        dims = [int(size.lstrip("<=")) for size in sizes.split(",") if size]
        digits = re.search(r"\d+", dtype)  # bf16, s32, f8e4m3fn
        bits = BITS.get(dtype, int(digits.group()) if digits else 0)
        order, _, tiles = layout.partition(":")
        padded = list(dims)
        tile = re.search(r"T\(([\d,]+)\)", tiles)
        if tile and order:
            widths = [int(width) for width in tile.group(1).split(",")]
            for axis, width in zip((int(axis) for axis in order.split(",")), reversed(widths)):
                padded[axis] = -(-padded[axis] // width) * width
        space = re.search(r"S\((\d+)\)", tiles)
        yield (
            math.prod(dims) * bits // 8,
            math.prod(padded) * bits // 8,
            space is None or space.group(1) == "0",
        )


def size(shape: str) -> int:
    """Bytes of all arrays of a shape, without the padding of tiles."""
    return sum(plain for plain, _, _ in leaves(shape))


def in_memory(shape: str) -> int:
    """Bytes that a shape takes up in HBM, padding included; what lies in the chip's own memory is
    not counted."""
    return sum(padded for _, padded, in_hbm in leaves(shape) if in_hbm)


class Program:
    """A compiled program and how often its loops run.

    `devices`: of the whole program. `mean_trips`: for a loop whose length the text does not say.
    `branch_share`: how often the dearest branch of a condition is taken."""

    def __init__(
        self, text: str, devices: int, mean_trips: float = 1.0, branch_share: float = 1.0
    ) -> None:
        self.computations, self.entry = parse(text)
        self.devices, self.mean_trips, self.branch_share = devices, mean_trips, branch_share
        self._known: dict[str, Totals] = {}

    def totals(self) -> Totals:
        """What one run of the program does on one device."""
        return self._of(self.entry)

    def _of(self, name: str) -> Totals:
        if name not in self._known:
            total = Totals()
            computation = self.computations[name]
            begun: set[str] = set()
            for instruction in computation.instructions.values():
                self._add(total, computation, instruction, begun)
            self._known[name] = total
        return self._known[name]

    def _add(
        self, total: Totals, computation: Computation, one: Instruction, begun: set[str]
    ) -> None:
        base = one.opcode.removesuffix("-start")
        if base in COLLECTIVES:
            total.sent[base] = total.sent.get(base, 0.0) + bytes_sent(base, one, self.devices)
        elif one.opcode == "while":
            trips = self.trips(computation, one)
            total.guessed += trips is None
            total.add(self._of(one.called("body")), self.mean_trips if trips is None else trips)
        elif one.opcode == "conditional":
            self._add_branches(total, one)
        elif one.opcode in ("call", "async-start"):
            total.add(self._of(one.called("to_apply") or one.called("calls")))
        elif one.opcode not in FREE and not one.opcode.endswith("-done"):
            self._add_operation(total, computation, one, begun)

    def _add_branches(self, total: Totals, one: Instruction) -> None:
        group = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        names = (
            re.findall(r"[\w.\-]+", group.group(1))
            if group
            else [one.called("true_computation"), one.called("false_computation")]
        )
        branches = sorted(
            (self._of(name) for name in names),
            key=lambda t: (t.cycles, t.memory, sum(t.sent.values())),
        )
        total.add(branches[-1], self.branch_share)
        for cheaper in branches[:-1]:
            total.add(cheaper, (1 - self.branch_share) / (len(branches) - 1))

    def _add_operation(
        self, total: Totals, computation: Computation, one: Instruction, begun: set[str]
    ) -> None:
        body = one.called("calls") if one.opcode == "fusion" else ""
        moved = self._moved(computation, one)
        estimate = re.search(r'"estimated_cycles":"(\d+)"', one.attributes)
        cycles = float(estimate.group(1)) if estimate else 0.0
        product = one.opcode in ("convolution", "dot") or (body and self._has_product(body))
        total.memory += moved
        total.cycles += cycles
        if product and cycles:
            total.product_cycles += cycles
        else:
            total.outside += moved
            total.operations += cycles > 0
        for channel, name, value in self._fused(body) if body else ():
            if channel not in begun:
                begun.add(channel)
                total.sent[name] = total.sent.get(name, 0.0) + value

    def _fused(self, name: str) -> Iterator[tuple[str, str, float]]:
        """(channel, kind, bytes) of the collectives in a fusion, which makes or takes their data.
        One that runs under other work is written in each operation that it runs under, from the one
        that begins it to the one that ends it."""
        for one in self.computations[name].instructions.values():
            base = one.opcode.removesuffix("-start")
            if base in COLLECTIVES:
                channel = re.search(r"channel_id=\d+", one.attributes)
                yield (
                    channel.group() if channel else f"{name}/{one.name}",
                    base,
                    bytes_sent(base, one, self.devices),
                )
            elif one.opcode == "fusion":
                yield from self._fused(one.called("calls"))

    def _has_product(self, name: str) -> bool:
        return any(
            i.opcode in ("convolution", "dot")
            or (i.opcode == "fusion" and self._has_product(i.called("calls")))
            for i in self.computations[name].instructions.values()
        )

    def _moved(self, computation: Computation, one: Instruction) -> float:
        """Bytes that one operation moves to and from HBM; of a slice of an array only the slice."""
        shapes = [
            computation.instructions[name].shape
            for name in one.operands
            if name in computation.instructions
        ]
        if one.opcode in (
            "copy-start",
            "slice-start",
        ):  # between HBM and the chip's own memory, under other work
            first, second = list(leaves(one.shape))[:2]
            return min(first[1], second[1]) * (first[2] + second[2])
        if one.opcode in SLICES:
            return 2 * in_memory(one.shape)
        if one.opcode == "dynamic-update-slice":
            return 2 * in_memory(shapes[1])
        if one.opcode != "fusion":
            return in_memory(one.shape) + sum(map(in_memory, shapes))
        body = self.computations[one.called("calls")]
        read = sum(
            min(in_memory(shape), self._read(body, body.parameter(i))) if in_memory(shape) else 0
            for i, shape in enumerate(shapes)
        )
        return read + self._written(body, one)

    def _read(self, body: Computation, name: str) -> float:
        """Bytes that a fused computation reads of its value `name`."""
        whole = sum(padded for _, padded, _ in leaves(body.instructions[name].shape))
        total = 0.0
        for user in body.instructions.values():
            if name not in user.operands:
                continue
            if user.opcode in SLICES and user.operands[0] == name:
                total += sum(padded for _, padded, _ in leaves(user.shape))
            elif user.opcode == "bitcast":
                total += self._read(body, user.name)
            elif user.opcode == "fusion":
                inner = self.computations[user.called("calls")]
                total += sum(
                    self._read(inner, inner.parameter(i))
                    for i, n in enumerate(user.operands)
                    if n == name
                )
            elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == name):
                return whole
        return min(total, whole)

    def _written(self, body: Computation, one: Instruction) -> float:
        """Bytes that a fusion writes to HBM: of an array updated in place only the update."""
        root = body.instructions[body.root]
        while root.opcode == "bitcast":
            root = body.instructions[root.operands[0]]
        results = (
            [body.instructions[name] for name in root.operands]
            if root.opcode == "tuple"
            else [root]
        )
        total = 0.0
        for result, (_, padded, in_hbm) in zip(results, leaves(one.shape)):
            while result.opcode == "bitcast":
                result = body.instructions[result.operands[0]]
            if result.opcode == "dynamic-update-slice":
                padded = sum(p for _, p, _ in leaves(body.instructions[result.operands[1]].shape))
            total += padded if in_hbm else 0
        return total

    def trips(self, computation: Computation, loop: Instruction) -> float | None:
        """How often a `while` runs its body; None if only the running program knows.

        The text says it, or the condition compares the counter with a constant, of the condition or
        of the loop's first values. A counter whose first value is not in the text begins at 0, as
        every loop of JAX does."""
        said = re.search(r'known_trip_count[^}]*?"?n"?:\s*"?(\d+)', loop.attributes)
        if said:
            return float(said.group(1))
        condition = self.computations[loop.called("condition")]
        first = computation.instructions[loop.operands[0]]
        sides, direction = self._comparison(condition)
        values = [self._first_value(condition, side, computation, first) for side in sides]
        if len(values) != 2 or direction not in ("LT", "GT", "LE", "GE", "NE"):
            return None
        if direction in ("GT", "GE"):
            values.reverse()
        (_, start), (is_counter, end) = values
        if end is None or (is_counter and self._changes(loop, condition, sides, direction)):
            return None
        return max(0.0, end - (start or 0) + (direction in ("LE", "GE")))

    def _comparison(self, condition: Computation) -> tuple[list[str], str]:
        """(the names that a condition compares, "LT" or another direction)."""
        root = condition.instructions[condition.root]
        names = root.operands
        if root.opcode == "fusion":
            body = self.computations[root.called("calls")]
            inner = body.instructions[body.root]
            order = [body.instructions[name] for name in inner.operands]
            names = [root.operands[int(i.arguments)] for i in order if i.opcode == "parameter"]
            root = inner
        found = re.search(r"direction=(\w+)", root.attributes)
        return (names, found.group(1)) if root.opcode == "compare" and found else ([], "")

    def _first_value(
        self, condition: Computation, name: str, outside: Computation, first: Instruction
    ) -> tuple[bool, int | None]:
        """(whether it is one of the loop's values, what it is when the loop begins or None)."""
        one = condition.instructions[name]
        if one.opcode == "constant":
            return False, int(one.arguments)
        index = re.search(r"index=(\d+)", one.attributes)
        if one.opcode != "get-tuple-element" or index is None or first.opcode != "tuple":
            return True, None
        value = outside.instructions[first.operands[int(index.group(1))]]
        while value.opcode in ("copy", "bitcast") and value.operands[0] in outside.instructions:
            value = outside.instructions[value.operands[0]]
        whole = value.opcode == "constant" and re.fullmatch(r"-?\d+", value.arguments)
        return True, int(value.arguments) if whole else None

    def _changes(
        self, loop: Instruction, condition: Computation, sides: list[str], direction: str
    ) -> bool:
        """Whether the bound, one of the loop's values, is something else after a turn."""
        bound = condition.instructions[sides[0] if direction in ("GT", "GE") else sides[1]]
        index = re.search(r"index=(\d+)", bound.attributes)
        body = self.computations[loop.called("body")]
        root = body.instructions[body.root]
        if index is None or root.opcode != "tuple":
            return True
        value = body.instructions[root.operands[int(index.group(1))]]
        while value.opcode in ("copy", "bitcast"):
            value = body.instructions[value.operands[0]]
        return not (
            value.opcode == "get-tuple-element"
            and f"index={index.group(1)}" in re.split(r",\s*", value.attributes)
        )


def bytes_sent(kind: str, one: Instruction, devices: int) -> float:
    """Bytes that one device sends in a collective, by a ring over its group of n devices.

    All-reduce 2 (n - 1) / n of the array; all-gather and all-to-all (n - 1) / n of the whole
    result; reduce-scatter n - 1 times the result; a permutation the array itself."""
    n = group_size(one.attributes, devices)
    sizes = [plain for plain, _, _ in leaves(one.shape)]
    whole: float = sum(sizes)
    if one.opcode.endswith("-start") and kind in (
        "all-gather",
        "collective-permute",
        "reduce-scatter",
        "all-to-all",
    ):
        arrays = [plain for plain in sizes if plain > 8] or sizes[
            :2
        ]  # operands, then results; flags beside them
        whole = sum(arrays[len(arrays) // 2 :])
    factors: dict[str, Callable[[int], float]] = {
        "all-reduce": lambda n: 2 * (n - 1) / n,
        "all-gather": lambda n: (n - 1) / n,
        "all-to-all": lambda n: (n - 1) / n,
        "reduce-scatter": lambda n: n - 1,
        "collective-permute": lambda n: 1,
    }
    return whole * factors[kind](n)


def group_size(attributes: str, devices: int) -> int:
    """How many devices take part in one group of a collective, in any of the ways in which XLA
    writes groups."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", attributes)
    if listed:
        return len(listed.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes)
    if iota:
        return int(iota.group(2))
    named = re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes)
    if named:
        sizes: dict[str, Any] = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2))
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices
