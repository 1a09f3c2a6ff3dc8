"""Parses the text of a compiled XLA program into computations and instructions, and counts their executions.

``Compiled.as_text()`` is the only form in which every backend shows its compiled program. Only the needed
parts of the syntax are parsed; the rest of a line is kept as text.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*-> .*\{$")
_LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_END = re.compile(r"^\}(?!\})")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,<=]*)\](\{[^}]*\})?")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = re.compile(
    r"\b(calls|body|condition|to_apply|branch_computations|true_computation|false_computation|"
    r"called_computations)=(\{[^}]*\}|%[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SPACE = re.compile(r"S\((\d+)\)")
_SAME_VALUE = ("copy", "copy-done", "bitcast", "convert", "reshape", "opt-barrier")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """Describes an array of a program: element type in XLA's spelling, dimensions, memory space.

    Attributes:
      space: 0 is the device's main memory; a TPU's other spaces are on the chip itself.
    """

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def size(self) -> int:
        """Returns the number of elements."""
        return math.prod(self.dims)

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of the elements, without the padding of a tiled layout."""
        return -(-self.size * _bits(self.dtype) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """Holds one line of a computation."""

    name: str
    opcode: str
    shape: str  # text of an array's shape, or of a tuple of shapes
    operands: tuple[str, ...]  # names of instructions of the same computation
    argument: str  # text in the parentheses: the operands, or a constant's value
    attributes: str  # text after the parentheses
    is_root: bool = False

    @property
    def arrays(self) -> tuple[ArrayShape, ...]:
        """Returns the arrays of the result, with nested tuples flattened."""
        return read_arrays(self.shape)

    @property
    def num_bytes(self) -> int:
        """Returns the bytes of the result."""
        return sum(array.num_bytes for array in self.arrays)

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Returns the names of called computations, by the attribute that names them, such as ``body``."""
        return {key: tuple(_NAME.findall(value)) for key, value in _CALLS.findall(self.attributes)}

    @property
    def op_name(self) -> str:
        """Returns its place in the traced function, such as ``jit(f)/layers/self_attention/dot_general``."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match[1] if match else ""

    def attribute(self, pattern: str) -> str | None:
        """Returns the first group of a regular expression found in the attributes; None if not found."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None


Computation = Mapping[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Program:
    """Holds a compiled program.

    Attributes:
      computations: instructions by name and computation, in the order in which they are scheduled.
      entry: name of the computation that is the program.
    """

    computations: Mapping[str, Computation]
    entry: str

    @functools.cached_property
    def executions(self) -> dict[str, int]:
        """Returns how often one run of the program executes each computation that it reaches.

        Every branch of a conditional counts as executed, and a loop whose trip count is unknown
        (``unknown_loops``) as one trip.
        """
        counts = dict.fromkeys(self._callers_first(), 0)
        counts[self.entry] = 1
        for name in counts:
            for instruction in self.computations[name].values():
                trips = self.trip_count(name, instruction) if instruction.opcode == "while" else 1
                for key, called in instruction.called.items():
                    times = 1 if trips is None else trips + (key == "condition" and trips > 0)
                    for other in called:
                        counts[other] += counts[name] * times
        return counts

    @functools.cached_property
    def unknown_loops(self) -> tuple[str, ...]:
        """Returns the names of the loops whose trip count depends on data or cannot be determined."""
        return tuple(
            instruction.name
            for name in self.executions
            for instruction in self.computations[name].values()
            if instruction.opcode == "while" and self.trip_count(name, instruction) is None
        )

    def root(self, computation: str) -> Instruction:
        """Returns the instruction whose result is that of the computation."""
        return next(line for line in self.computations[computation].values() if line.is_root)

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Returns how often a loop's body runs, or None if that cannot be determined.

        XLA's CPU and GPU compilers state it. In TPU programs it follows from the constants that the loop's
        counter starts at, is compared with, and is incremented by.

        Args:
          computation: name of the computation that contains ``loop``.
          loop: a ``while`` instruction.
        """
        known = _TRIPS.search(loop.attributes)
        if known:
            return int(known[1])
        (condition,), (body,) = loop.called["condition"], loop.called["body"]
        limit = self._limit(condition)
        if limit is None:
            return None
        index, last = limit
        first = self._constant(computation, loop.operands[0], index)
        step = self._step(body, index)
        if first is None or not step:
            return None
        return max(0, -(-(last - first) // step))

    def _callers_first(self) -> list[str]:
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str) -> None:
            seen.add(name)
            for instruction in self.computations[name].values():
                for called in instruction.called.values():
                    for other in called:
                        if other not in seen:
                            visit(other)
            order.append(name)

        visit(self.entry)
        return order[::-1]

    def _limit(self, condition: str) -> tuple[int, int] | None:
        """Returns the counter's index in the loop's tuple and the number that it stays below, or None."""
        root, operands = self._unwrapped(condition, self.root(condition))
        direction = root.attribute(r"\bdirection=(\w+)")
        if root.opcode != "compare" or direction not in ("LT", "LE"):
            return None
        last = self._constant(*operands[1])
        counter = self._line(*operands[0]).attribute(r"\bindex=(\d+)")
        if last is None or counter is None:
            return None
        return int(counter), last + (direction == "LE")

    def _step(self, body: str, index: int) -> int | None:
        """Returns what one trip adds to the element ``index`` of the loop's tuple, or None."""
        root = self.root(body)
        if root.opcode != "tuple":
            return None
        line = self._line(body, root.operands[index])
        while line.opcode in _SAME_VALUE:
            line = self._line(body, line.operands[0])
        line, operands = self._unwrapped(body, line)
        if line.opcode != "add":
            return None
        steps = [self._constant(*operand) for operand in operands]
        return next((step for step in steps if step is not None), None)

    def _unwrapped(self, computation: str, line: Instruction) -> tuple[Instruction, list[tuple[str, str]]]:
        """Returns the instruction, or the last one of a fusion, and its operands as (computation, name)."""
        if line.opcode != "fusion":
            return line, [(computation, name) for name in line.operands]
        inner = line.called["calls"][0]
        root = self.root(inner)
        operands = []
        for name in root.operands:
            operand = self._line(inner, name)
            is_parameter = operand.opcode == "parameter"
            operands.append(
                (computation, line.operands[int(operand.argument)]) if is_parameter else (inner, name)
            )
        return root, operands

    def _line(self, computation: str, name: str) -> Instruction:
        return self.computations[computation][name]

    def _constant(self, computation: str, name: str, element: int | None = None) -> int | None:
        """Returns the constant integer value of an instruction or of a tuple's element; None if it varies."""
        line = self._line(computation, name)
        if line.opcode == "tuple" and element is not None:
            return self._constant(computation, line.operands[element])
        if line.opcode in _SAME_VALUE or line.opcode == "copy-start":
            return self._constant(computation, line.operands[0], element)
        if line.opcode == "get-tuple-element" and element is None:
            place = int(line.attribute(r"\bindex=(\d+)") or 0)
            return self._constant(computation, line.operands[0], place)
        if line.opcode == "constant" and re.fullmatch(r"-?\d+", line.argument):
            return int(line.argument)
        return None


def read_program(text: str) -> Program:
    """Parses the text from ``Compiled.as_text()``.

    Raises:
      ValueError: it is not the text of a compiled program.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry = ""
    current: dict[str, Instruction] | None = None
    last = ""
    for line in text.splitlines():
        if current is None:
            header = _HEADER.match(line)
            if header:
                current = computations[header[2]] = {}
                entry = header[2] if header[1] else entry
        elif _END.match(line):
            current = None
        elif match := _LINE.match(line):
            last = match[2]
            current[last] = _read_instruction(line[match.end() :], last, bool(match[1]))
        elif last in current:  # the metadata of a Pallas kernel continues on lines of its own
            whole = current[last].attributes + line
            current[last] = dataclasses.replace(current[last], attributes=whole)
    if not entry:
        raise ValueError("this is not the text of a compiled program: it has no ENTRY computation")
    return Program(computations, entry)


def read_arrays(shape: str) -> tuple[ArrayShape, ...]:
    """Returns the arrays in the text of a shape, with nested tuples flattened."""
    return tuple(
        ArrayShape(
            dtype,
            tuple(int(size.lstrip("<=")) for size in dims.split(",") if size),
            int(space[1]) if layout and (space := _SPACE.search(layout)) else 0,
        )
        for dtype, dims, layout in _ARRAY.findall(_COMMENT.sub("", shape))
    )


def tuple_elements(shape: str) -> list[str]:
    """Returns the elements of a tuple's shape as texts; the shape of an array is its only element."""
    shape = _COMMENT.sub("", shape).strip()
    if not shape.startswith("("):
        return [shape]
    return list(_split(shape[1 : _closing(shape, 0)]))


def _read_instruction(text: str, name: str, is_root: bool) -> Instruction:
    """Parses the text to the right of ``name = ``."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing]
    operands = () if rest.startswith("constant(") else tuple(_NAME.findall(argument))
    return Instruction(name, rest[:opening], shape, operands, argument, rest[closing + 1 :], is_root)


def _closing(text: str, opening: int) -> int:
    """Returns the index of the parenthesis that closes the one at ``opening``."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"a parenthesis is not closed: {text[opening : opening + 80]}")


def _split(text: str) -> Iterator[str]:
    """Yields the parts of a list between commas that are not inside brackets."""
    depth, start = 0, 0
    for place, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            yield text[start:place].strip()
            start = place + 1
    if text[start:].strip():
        yield text[start:].strip()


@functools.cache
def _bits(dtype: str) -> int:
    """Returns the bits of one element; 0 for tokens and opaque values."""
    if dtype == "pred":
        return 8
    match = re.match(r"(?:bf|[fsuc])(\d+)", dtype)
    return int(match[1]) if match else 0
