"""Counts what a compiled program computes and moves, instruction by instruction, with loops multiplied out.

XLA's own ``cost_analysis()`` counts the body of a loop once, however often it runs, and returns nothing for a
GPU that is not present. So this module counts instructions by the rules of XLA's ``HloCostAnalysis``: two
operations for each multiply-add of a product, one for each element of an elementwise operation, and only the
accessed part of an array that is sliced or updated in place.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from transformer_jax.planning.attention_costs import kernel_products
from transformer_jax.planning.hlo import ArrayShape, Computation, Instruction, Program

MAIN_MEMORY = 0  # the memory space of HBM, outside the chip

_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "add-dependency"),
    *("partition-id", "replica-id", "opt-barrier", "while", "conditional", "call", "domain", "async-update"),
}
_FREE_TARGETS = {
    *("AllocateBuffer", "ConcatBitcast", "AssumeGatherIndicesInBound", "Sharding"),
    *("SPMDFullToShardShape", "SPMDShardToFullShape", "annotate_device_placement"),
}
_ELEMENTWISE = {
    *("abs", "add", "and", "ceil", "clamp", "compare", "convert", "divide", "floor", "is-finite", "maximum"),
    *("minimum", "multiply", "negate", "not", "or", "remainder", "round-nearest-afz", "round-nearest-even"),
    *("select", "shift-left", "shift-right-arithmetic", "shift-right-logical", "sign", "subtract", "xor"),
}
_SLICES = ("dynamic-slice", "slice", "gather")
_SAME_ELEMENTS = ("bitcast", "reshape", "transpose", "copy", "convert")
_CONTROL = ("while", "conditional", "call", "async-start")
_TRANSFERS = ("copy-start", "slice-start")  # moves between memories that run beside the computation


@dataclasses.dataclass(frozen=True)
class Cost:
    """Holds what one execution of an instruction computes and moves.

    Attributes:
      product_flops: operations of matrix products and convolutions, by the type of their operands; with a
        suffix ``_highest`` if they request more than the backend's default precision.
      other_flops: all other operations, one per element.
      bytes_accessed: bytes read and written in any memory, by XLA's own measure: starting a copy counts as
        reading, and waiting for a copy or concatenating slices counts as if it moved data.
      memory_bytes: bytes moved to or from the device's main memory.
    """

    product_flops: Mapping[str, int] = dataclasses.field(default_factory=dict)
    other_flops: int = 0
    bytes_accessed: int = 0
    memory_bytes: int = 0

    @property
    def flops(self) -> int:
        """Returns the sum of all operations."""
        return sum(self.product_flops.values()) + self.other_flops


@dataclasses.dataclass(frozen=True)
class Work:
    """Describes an instruction that takes time.

    Attributes:
      executions: number of executions in one run of the program.
      is_transfer: whether it moves data between memories while other instructions run.
      kernel: the target of a custom call; empty for instructions that XLA compiled itself.
      is_counted: False for a kernel whose number of operations is unknown.
    """

    name: str
    opcode: str
    op_name: str
    computation: str
    executions: int
    cost: Cost
    is_transfer: bool = False
    kernel: str = ""
    is_counted: bool = True


def read_work(program: Program) -> list[Work]:
    """Returns the instructions of a program that compute or move something, in the order of its text."""
    work = []
    for computation in scheduled_computations(program):
        lines = program.computations[computation]
        executions = program.executions[computation]
        for line in lines.values():
            target = line.attribute(r'custom_call_target="([^"]*)"') or ""
            if line.opcode in _FREE or target in _FREE_TARGETS - {"ConcatBitcast"}:
                continue
            if line.opcode == "async-start" or (line.opcode.endswith("-done") and line.opcode != "copy-done"):
                continue  # the computation that an async-start calls is counted by itself
            products, other, is_counted = _flops(program, lines, line)
            reads = list(_reads(program, lines, line))
            moved = [*reads, *_writes(program, lines, line)]
            is_transfer = line.opcode in _TRANSFERS
            only_counted = line.opcode == "copy-done" or target == "ConcatBitcast"
            cost = Cost(
                products,
                other,
                sum(size for size, _ in (reads if is_transfer else moved)),
                0 if only_counted else sum(size for size, space in moved if space == MAIN_MEMORY),
            )
            work.append(
                Work(
                    name=line.name,
                    opcode=line.opcode,
                    op_name=line.op_name or _inner_op_name(program, line),
                    computation=computation,
                    executions=executions,
                    cost=cost,
                    is_transfer=is_transfer,
                    kernel="" if target in _FREE_TARGETS else target,
                    is_counted=is_counted,
                )
            )
    return work


def scheduled_computations(program: Program) -> list[str]:
    """Returns the computations that run one instruction after the other: the entry and those of control flow.

    Computations of fusions, which are one instruction, and of reductions are not included.
    """
    scheduled = {program.entry}
    for name in program.executions:  # callers come first
        if name in scheduled:
            for line in program.computations[name].values():
                if line.opcode in _CONTROL:
                    scheduled.update(other for called in line.called.values() for other in called)
    return [name for name in program.computations if name in scheduled]


def total(work: list[Work]) -> Cost:
    """Returns the sum of the costs over all executions."""
    products: dict[str, int] = {}
    for one in work:
        for dtype, flops in one.cost.product_flops.items():
            products[dtype] = products.get(dtype, 0) + flops * one.executions
    return Cost(
        products,
        sum(one.cost.other_flops * one.executions for one in work),
        sum(one.cost.bytes_accessed * one.executions for one in work),
        sum(one.cost.memory_bytes * one.executions for one in work),
    )


def _inner_op_name(program: Program, line: Instruction) -> str:
    """Returns the name of the last instruction in a fusion that has a name."""
    for name in line.called.get("calls", ()):
        for inner in reversed(list(program.computations[name].values())):
            if inner.op_name:
                return inner.op_name
    return ""


# Operations.


def _flops(program: Program, lines: Computation, line: Instruction) -> tuple[dict[str, int], int, bool]:
    """Returns operations of products by type, other operations, and whether all operations are known."""
    if line.opcode in ("fusion", "call", "async-start"):
        products: dict[str, int] = {}
        other, is_counted = 0, True
        for name in line.called.get("calls", line.called.get("to_apply", ())):
            inner_lines = program.computations[name]
            for inner in inner_lines.values():
                more, rest, counted = _flops(program, inner_lines, inner)
                for dtype, flops in more.items():
                    products[dtype] = products.get(dtype, 0) + flops
                other, is_counted = other + rest, is_counted and counted
        return products, other, is_counted
    size = sum(array.size for array in line.arrays)
    if line.opcode == "dot":
        return {_operand_type(lines, line): _dot_flops(lines, line)}, 0, True
    if line.opcode == "convolution":
        return {_operand_type(lines, line): _convolution_flops(lines, line)}, 0, True
    if line.opcode == "custom-call":
        return _kernel_flops(lines, line)
    if line.opcode in _ELEMENTWISE or line.opcode in ("all-reduce", "reduce-scatter"):
        return {}, size, True
    if line.opcode == "reduce":
        read = sum(lines[name].arrays[0].size for name in line.operands[: len(line.arrays)])
        return {}, max(read - size, 0), True
    if line.opcode == "reduce-window":
        return {}, _windows_flops(lines, line), True
    return {}, 0, True


def _windows_flops(lines: Computation, line: Instruction) -> int:
    """Returns the operations of all windows, or of one if each spans the array, as in a TPU's sums."""
    array, extents = lines[line.operands[0]].arrays[0], _window(line)["size"]
    if all(extent in (1, max(1, 2 * size - 1)) for extent, size in zip(extents, array.dims, strict=True)):
        return array.size
    return line.arrays[0].size * (math.prod(extents) - 1)


def _operand_type(lines: Computation, line: Instruction) -> str:
    dtype = lines[line.operands[0]].arrays[0].dtype
    precision = line.attribute(r"operand_precision=\{([\w,]*)\}") or ""
    return dtype + "_highest" if "high" in precision else dtype


def _dot_flops(lines: Computation, line: Instruction) -> int:
    left = lines[line.operands[0]].arrays[0].dims
    contracted = _integers(line.attribute(r"lhs_contracting_dims=\{([\d,]*)\}"))
    return 2 * line.arrays[0].size * math.prod(left[place] for place in contracted)


def _convolution_flops(lines: Computation, line: Instruction) -> int:
    """Returns two operations for each input element that meets a kernel element, without padding and holes.

    A TPU's compiler turns batched products into convolutions that consist mostly of holes.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.attributes)
    if labels is None:
        return 0
    left, kernel = (lines[name].arrays[0].dims for name in line.operands[:2])
    out = line.arrays[0].dims
    window = _window(line)
    places = sorted(label for label in labels[1] if label.isdigit())
    spatial = math.prod(
        _pairs(
            left[labels[1].index(label)],
            out[labels[3].index(label)],
            *(values[number] for values in window.values()),
        )
        for number, label in enumerate(places)
    )
    # The kernel's input features are those of one group, and each batch group has its own part of the batch.
    groups = int(line.attribute(r"batch_group_count=(\d+)") or 1)
    batch, features = left[labels[1].index("b")] // groups, out[labels[3].index("f")]
    return 2 * batch * features * kernel[labels[2].index("i")] * spatial


def _window(line: Instruction) -> dict[str, list[int]]:
    """Returns size, stride, lower padding, and dilations of input and kernel in each window dimension."""
    text = line.attribute(r"window=\{([^}]*)\}") or ""
    given = dict(part.split("=") for part in text.split())
    count = len(given["size"].split("x")) if "size" in given else 0
    read: dict[str, list[int]] = {}
    defaults = {"size": "1", "stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
    for key, default in defaults.items():
        values = given[key].split("x") if key in given else [default] * count
        read[key] = [int(value.split("_")[0]) for value in values]
    return read


def _pairs(
    size: int, out: int, kernel: int, stride: int, padding: int, dilation: int, kernel_dilation: int
) -> int:
    """Returns how many pairs of output and kernel positions meet an input element, in one dimension."""
    last = (size - 1) * dilation
    count = 0
    for place in range(kernel):
        offset = place * kernel_dilation - padding
        # offset + stride * output must be a multiple of the dilation, from 0 to the last element.
        low = max(0, -(offset // stride) if offset < 0 else 0)
        high = min(out - 1, (last - offset) // stride)
        if high < low:
            continue
        if dilation == 1:
            count += high - low + 1
        else:
            count += sum((offset + stride * output) % dilation == 0 for output in range(low, high + 1))
    return count


def _kernel_flops(lines: Computation, line: Instruction) -> tuple[dict[str, int], int, bool]:
    """Returns the operations that a custom call states; those of cuBLAS and attention follow from shapes."""
    target = line.attribute(r'custom_call_target="([^"]*)"') or ""
    if target in _FREE_TARGETS:
        return {}, 0, True
    dtype = lines[line.operands[0]].arrays[0].dtype if line.operands else ""
    if target.startswith("__cublas"):
        left = lines[line.operands[0]].arrays[0].dims
        contracted = line.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]') or ""
        places = _integers(contracted.replace('"', ""))
        return {dtype: 2 * line.arrays[0].size * math.prod(left[place] for place in places)}, 0, True
    operands = [array for name in line.operands for array in lines[name].arrays[:1]]
    if products := kernel_products(line.op_name, operands, line.arrays):
        return dict([products]), 0, True
    stated = line.attribute(r'"flops":"?(\d+)')
    return ({dtype: int(stated)} if stated else {}), 0, stated is not None


def _integers(text: str | None) -> tuple[int, ...]:
    return tuple(int(number) for number in (text or "").split(",") if number.strip())


# Bytes, each number paired with its memory space.


def _reads(program: Program, lines: Computation, line: Instruction) -> Iterator[tuple[int, int]]:
    operands = [lines[name] for name in line.operands]
    if line.opcode == "fusion":
        inner = program.computations[line.called["calls"][0]]
        for place, parameter in _parameters(inner):
            for array in operands[place].arrays:
                yield min(array.num_bytes, _read_of(program, inner, parameter, array)), array.space
        return
    if line.opcode in _TRANSFERS or line.opcode in _SLICES:
        array = operands[0].arrays[0]
        yield min(array.num_bytes, _moved(line)), array.space
        operands = operands[1:]
    elif line.opcode in ("dynamic-update-slice", "scatter"):
        operands = operands[1:]  # the first operand is updated in place
    for operand in operands:
        for array in operand.arrays:
            yield array.num_bytes, array.space


def _writes(program: Program, lines: Computation, line: Instruction) -> Iterator[tuple[int, int]]:
    if line.opcode == "fusion":
        inner = program.computations[line.called["calls"][0]]
        root = program.root(line.called["calls"][0])
        parts = [inner[name] for name in root.operands] if root.opcode == "tuple" else [root]
        for array, part in zip(line.arrays, parts, strict=False):
            yield min(array.num_bytes, _written_of(program, inner, part, array)), array.space
    elif line.opcode in _TRANSFERS:
        yield _moved(line), _destination(line).space
    elif line.opcode in ("dynamic-update-slice", "scatter"):
        update = lines[line.operands[-1 if line.opcode == "scatter" else 1]]
        yield update.num_bytes, line.arrays[0].space
    elif line.opcode in ("all-gather-start", "collective-permute-start"):
        for array in line.arrays[len(line.operands) : 2 * len(line.operands)]:
            yield array.num_bytes, array.space
    else:
        for array in line.arrays:
            yield array.num_bytes, array.space


def _destination(line: Instruction) -> ArrayShape:
    """Returns the destination of a transfer: a copy is (to, from, state), a slice (from, to, state)."""
    return line.arrays[0 if line.opcode == "copy-start" else 1]


def _moved(line: Instruction) -> int:
    """Returns the number of bytes that a transfer or a slice moves."""
    return _destination(line).num_bytes if line.opcode in _TRANSFERS else line.num_bytes


def _parameters(inner: Computation) -> Iterator[tuple[int, Instruction]]:
    for line in inner.values():
        if line.opcode == "parameter":
            yield int(line.argument), line


def _read_of(program: Program, inner: Computation, value: Instruction, array: ArrayShape) -> int:
    """Returns the bytes that a fusion reads of a parameter ``array``; ``value`` has the same elements."""
    if value.is_root:
        return array.num_bytes
    read = 0
    for user in inner.values():
        if value.name not in user.operands:
            continue
        is_first_only = user.operands.index(value.name) == 0 and user.operands.count(value.name) == 1
        if user.opcode in _SLICES and is_first_only:
            read += user.arrays[0].size * array.num_bytes // max(array.size, 1)
        elif user.opcode == "dynamic-update-slice" and is_first_only:
            continue
        elif user.opcode in _SAME_ELEMENTS:
            read += _read_of(program, inner, user, array)
        elif user.opcode == "fusion":
            nested = program.computations[user.called["calls"][0]]
            for place, parameter in _parameters(nested):
                if user.operands[place] != value.name:
                    continue
                is_passed_on = _is_passed_on(nested, parameter)
                read += _read_of(program, *((inner, user) if is_passed_on else (nested, parameter)), array)
        elif user.opcode != "tuple":
            return array.num_bytes
    return min(read, array.num_bytes)


def _is_passed_on(inner: Computation, parameter: Instruction) -> bool:
    """Returns whether a fusion only gives its parameter other dimensions."""
    root = next(line for line in inner.values() if line.is_root)
    while root.opcode in _SAME_ELEMENTS:
        root = inner[root.operands[0]]
    return root.name == parameter.name


def _written_of(program: Program, inner: Computation, part: Instruction, array: ArrayShape) -> int:
    """Returns the bytes that a fusion writes of a result ``array``, which is ``part`` in the fusion."""
    while part.opcode in ("bitcast", "convert", "copy"):
        part = inner[part.operands[0]]
    if part.opcode == "fusion":
        name = part.called["calls"][0]
        return _written_of(program, program.computations[name], program.root(name), array)
    if part.opcode == "dynamic-update-slice":
        whole = inner[part.operands[0]]
        while whole.opcode in _SAME_ELEMENTS:
            whole = inner[whole.operands[0]]
        if whole.opcode == "parameter":
            return inner[part.operands[1]].arrays[0].size * array.num_bytes // max(array.size, 1)
    return array.num_bytes
