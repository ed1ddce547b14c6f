"""The cost of a program: FLOPs from its jaxpr, bytes from the text of the compiled program.

FLOPs are those of the matrix products of a jaxpr; a loop counts as often as its length. Bytes and
collectives come from the text of the compiled program; a loop counts as often as its text says. An
instruction reads its operands from the memory of the device and writes its result there, once,
with two exceptions:

- for a slice, in a fusion or alone, only the slice is read; for an update in place, only the update
  is written;
- arrays in the memory of the core itself cost nothing (the text of a TPU marks them with `S(1)`).

The numbers are lower bounds, good for comparing programs: the hardware does not move less.
"""

import collections
import math
import re
from typing import NamedTuple

from jax.extend import core as extend

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"}
FREE |= {"conditional", "call", "partition-id", "replica-id", "iota", "opt-barrier", "async-start"}
SLICES = {"slice", "dynamic-slice", "gather", "slice-start", "dynamic-slice-start"}
BUFFERS = ("AllocateBuffer", "ConcatBitcast")  # names for memory: nothing moves
SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}

ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)"
    r"\((?P<rest>.*)$"
)
NAME = re.compile(r"%([\w.-]+)")


def flops(jaxpr, loops: int) -> float:
    """FLOPs of the matrix products of a jaxpr.

    A while loop runs `loops` times. A conditional counts as its most expensive branch.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            left, right = (v.aval.shape for v in equation.invars[:2])
            if name == "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                inner = math.prod(left[i] for i in contracted)
            else:
                inner = math.prod(right) // max(right)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
        times = {"scan": params.get("length"), "while": loops}.get(name, 1)
        if name == "pallas_call":
            times = math.prod(params["grid_mapping"].grid)
        if name == "shard_map":  # its body is the work of one device
            times = params["mesh"].size
        inside = [flops(j, loops) for j in extend.jaxprs_in_params(params)]
        total += times * (max(inside) if name == "cond" else sum(inside))
    return total


class Traffic(NamedTuple):
    """The bytes that a compiled program moves on one device."""

    moved: float  # bytes to and from its memory
    collectives: dict  # kind -> [how many, bytes]
    largest: list  # (text of a collective, bytes), largest first


def traffic(hlo: str, loops: int = 1) -> Traffic:
    """Counts in the text of a compiled program; `loops`: trips of a loop with an unknown count."""
    computations, entry = parse(hlo)
    moved, kinds, largest = 0.0, collections.defaultdict(lambda: [0, 0.0]), {}
    channels = set()  # a collective that overlaps with others appears in the text several times

    def visit(name, times, fused):
        nonlocal moved
        instructions = computations.get(name, [])
        types = {match["name"]: match["type"] for match in instructions}
        for match in instructions:
            op, rest = match["op"], match["rest"]
            channel = re.search(r"channel_id=(\d+)", rest)
            if _kind(op) in COLLECTIVES and not (channel and channel[1] in channels):
                channels.update(channel.groups() if channel else ())
                size = _collective_bytes(match, types)
                kinds[_kind(op)][0] += times
                kinds[_kind(op)][1] += times * size
                label = _label(match)
                largest[label] = max(largest.get(label, 0), size)
            called = dict(re.findall(r"(calls|body|to_apply)=%?([\w.-]+)", rest))
            if op == "while":
                visit(called["body"], times * trips(rest, computations, loops), fused)
            elif op in ("fusion", "call", "async-start"):
                inner = called.get("calls", called.get("to_apply"))
                visit(inner, times, fused or op == "fusion")
            for branch in re.findall(r"branch_computations=\{(.*?)\}", rest):
                visit(NAME.findall(branch)[0], times, fused)
            if not fused:
                moved += times * _moved(match, types, computations)

    visit(entry, 1, False)
    return Traffic(moved, dict(kinds), sorted(largest.items(), key=lambda item: -item[1]))


def parse(hlo: str) -> tuple[dict, str]:
    """Computation name -> its instructions (match objects), and the name of the entry."""
    computations, entry, current = {}, "", []
    for line in hlo.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif match := INSTRUCTION.match(line):
            current.append(match)
    return computations, entry


def trips(rest: str, computations: dict, loops: int) -> int:
    """How often a while loop runs, from its text or from its condition; else `loops`."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', rest):
        return int(known[1])
    condition, body = (
        computations.get(re.search(rf"{part}=%?([\w.-]+)", rest)[1], [])
        for part in ("condition", "body")
    )
    found = [bound for bound in _constants(condition, computations) if bound > 0]
    return math.ceil(found[0] / _stride(condition, body)) if len(found) == 1 else loops


def _constants(instructions, computations):
    """The integer constants in instructions and in the computations that they call."""
    for match in instructions:
        if match["op"] == "constant" and re.match(r"[su]32\[\]", match["type"]):
            yield int(re.match(r"-?\d+", match["rest"])[0])
        for name in re.findall(r"calls=%?([\w.-]+)", match["rest"]):
            yield from _constants(computations.get(name, []), computations)


def _stride(condition, body) -> int:
    """The step of the counter that the condition compares; 1 if the text does not show it."""
    elements = {m["name"]: re.search(r"index=(\d+)", m["rest"]) for m in condition}
    compared = [m for m in condition if m["op"] == "compare"]
    roots = [m for m in body if m["root"] and m["op"] == "tuple"]
    for name in NAME.findall(compared[0]["rest"]) if len(compared) == 1 and roots else ():
        if index := elements.get(name):
            by_name = {m["name"]: m for m in body}
            result = by_name.get(NAME.findall(roots[0]["rest"])[int(index[1])])
            if result is not None and result["op"] == "add":
                terms = [by_name.get(term) for term in NAME.findall(result["rest"])]
                steps = [int(re.match(r"\d+", m["rest"])[0])
                         for m in terms if m is not None and m["op"] == "constant"]  # fmt: skip
                return steps[0] if steps else 1
    return 1


# ---- Bytes --------------------------------------------------------------------------------------


def shapes_in(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of each array in the text of a type."""
    return [(d, tuple(int(n) for n in s.split(",") if n)) for d, s, _ in ARRAY.findall(text)]


def bytes_of(text: str, outside: bool = False) -> list[float]:
    """Bytes of each array in the text of a type; with `outside`, 0 for the core's own memory."""

    def size(dtype):
        return SIZES.get(dtype) or (1 if dtype.startswith("f8") else int(dtype[1:]) / 8)

    return [
        0.0 if outside and "S(" in layout else size(dtype) * math.prod(shape)
        for (dtype, shape), (_, _, layout) in zip(shapes_in(text), ARRAY.findall(text), strict=True)
    ]


def _kind(op: str) -> str:
    return op.removesuffix("-start")


def _label(match) -> str:
    return f"{_kind(match['op'])} of {max(shapes_in(match['type']), key=lambda s: math.prod(s[1]))}"


def _operands(match) -> list[str]:
    return NAME.findall(match["rest"].split("), ")[0])


def _collective_bytes(match, types) -> float:
    """Bytes of the whole array that is gathered, exchanged or summed, on whichever side it is."""
    if match["op"].endswith("-start"):  # its type has both sides
        return max(bytes_of(match["type"]), default=0)
    given = sum(sum(bytes_of(types.get(name, ""))) for name in _operands(match))
    return max(given, sum(bytes_of(match["type"])))


def _moved(match, types, computations) -> float:
    """Bytes that an instruction moves between the memory of the device and its core."""
    op, rest = match["op"], match["rest"]
    if op in FREE or op.endswith("-done") or any(f'"{name}"' in rest for name in BUFFERS):
        return 0.0
    result = sum(bytes_of(match["type"], outside=True))
    sizes = [sum(bytes_of(types.get(name, ""), outside=True)) for name in _operands(match)]
    if op in SLICES:
        # The type of an asynchronous slice is (source, piece, ...).
        piece = match["type"]
        if op.endswith("-start"):
            piece = [m[0] for m in ARRAY.finditer(match["type"])][1]
        inside = sum(bytes_of(piece)) if sizes and sizes[0] else 0.0
        return inside + sum(bytes_of(piece, outside=True)) + sum(sizes[1:])
    if op.endswith("-start"):
        return result
    if op == "dynamic-update-slice":
        return 2 * sizes[1]
    if op == "fusion":
        called = re.search(r"calls=%?([\w.-]+)", rest)[1]
        return _fusion_bytes(computations.get(called, []), sizes, result)
    return sum(sizes) + result


def _updated(match) -> str | None:
    """The array that an update in place changes."""
    return NAME.findall(match["rest"])[0] if match["op"] == "dynamic-update-slice" else None


def _fusion_bytes(body, sizes, result) -> float:
    """An operand that is only sliced counts as its slices; an update in place as the update."""
    users, by_name = collections.defaultdict(list), {match["name"]: match for match in body}
    for match in body:
        for operand in NAME.findall(match["rest"]):
            users[operand].append(match)
    for match in body:
        if match["op"] == "parameter":
            index = int(re.match(r"\d+", match["rest"])[0])
            used = users[match["name"]]
            if index >= len(sizes) or not sizes[index]:
                continue
            if used and all(u["op"] in SLICES for u in used):
                sizes[index] = min(sizes[index], sum(sum(bytes_of(u["type"])) for u in used))
            if any(match["name"] == _updated(u) for u in used):
                sizes[index] = 0
        elif match["op"] == "dynamic-update-slice" and result:
            update = NAME.findall(match["rest"])[1]
            if update in by_name:
                whole = sum(bytes_of(match["type"]))
                result += sum(bytes_of(by_name[update]["type"])) - whole
    return sum(sizes) + max(result, 0)
