"""Compiles the real train step, or the sampler, for a TPU slice that is not there.

    python launch/compile_ahead.py --config=configs/t2i.py:coco --topology=v5e:8x8
    python launch/compile_ahead.py --config=configs/t2i.py:coco --topology=v5e:2x4 --program=sample

Needs only the `libtpu` wheel of `pip install -e ".[tpu]"`, and a CPU. It prints the memory of a
device against the chip's, FLOPs, bytes moved, collectives by kind and bytes, and a lower bound on
the time of a step from the chip's peak rates, with the utilisation (MFU) that it allows. The mesh
is the config's: `--config.mesh.model=4`.

How it counts. FLOPs: matrix products in the traced program, loops times their length. Bytes and
collectives: instructions of the compiled program, loops times their trip count (a loop whose text
does not say it, such as the sampler's, times `sample.steps`); an instruction reads its operands and
writes its result once, a fusion that slices an operand reads the slice. The bound takes the three
rates as perfectly overlapped.
"""

import collections
import contextlib
import math
import os
import pathlib
import re
import sys
import tempfile
import time

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.update(  # the compiler is not to look for a machine around it, nor to guard it
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",
    TPU_WORKER_HOSTNAMES="localhost",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    TPU_STDERR_LOG_LEVEL="1",  # its warnings are part of the report
)

import jax
import jax.numpy as jnp
from absl import app, flags
from jax.experimental import mesh_utils, topologies
from jax.extend import core as extend
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_flags

from udd_jax import diffusion, plan, sampling, sharding, train

# bytes/s to the memory of a chip, and of all its links to others, from the maker's data sheets.
RATES = {
    "v4": ("TPU v4", 1228e9, 300e9),
    "v5e": ("TPU v5e", 819e9, 200e9),
    "v5p": ("TPU v5p", 2765e9, 600e9),
    "v6e": ("TPU v6e", 1640e9, 448e9),
}
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
GIB = 2**30


# ---- The machine and the programs ---------------------------------------------------------------


def make_mesh(topology: str, data: int, model: int) -> Mesh:
    """The mesh of a slice; ValueError for an unknown chip or axes that do not fit."""
    chip, _, shape = topology.partition(":")
    if chip not in RATES or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(f"--topology={topology}, expected one of {', '.join(RATES)}, then :4x4")
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    count = len(described.devices)
    data = count // model if data == -1 else data
    if data * model != count:
        raise ValueError(f"mesh of {data} x {model}, but {topology} has {count} devices")
    devices = mesh_utils.create_device_mesh(
        (data, model), described.devices, allow_split_physical_axes=True
    )
    return Mesh(devices, (sharding.DATA, sharding.MODEL), axis_types=(AxisType.Auto,) * 2)


def place(mesh, tree, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def everywhere(mesh, tree):
    return place(mesh, tree, jax.tree.map(lambda _: NamedSharding(mesh, P()), tree))


def over_data(mesh, tree):
    return place(mesh, tree, jax.tree.map(lambda _: NamedSharding(mesh, P(sharding.DATA)), tree))


def train_program(config, mesh):
    """The jitted step and its abstract arguments."""
    vocab, c = plan.vocab_of(config), config.train
    kernel = diffusion.make_kernel(vocab, train.make_schedules(config, vocab))
    model = train.make_model(config, vocab)
    tx, rate = train.make_optimiser(config)
    loss_fn = train.make_loss(
        kernel,
        model,
        mixture=c.mixture.to_dict(),
        auxiliary=c.auxiliary,
        pad_id=0,
        pad_weight=c.pad_weight,
    )
    state = jax.eval_shape(lambda: train.create_state(model, tx, jax.random.key(0)))
    batch = {
        m.name: jax.ShapeDtypeStruct((c.batch_size, m.length), jnp.int32) for m in vocab.modalities
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    places = sharding.shardings(mesh, state)
    step = train.make_step(loss_fn, tx, rate, c.ema, vocab, c.get("accumulate", 1))
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    state = place(mesh, state, places)
    return step, (state, over_data(mesh, batch), everywhere(mesh, key))


def sample_program(config, mesh):
    """The jitted sampler for pairs, a batch of `evaluate.batch_size`, and its arguments."""
    vocab, size = plan.vocab_of(config), config.evaluate.batch_size
    kernel = diffusion.make_kernel(vocab, train.make_schedules(config, vocab))
    model = train.make_model(config, vocab)
    settings = sampling.Settings(**config.sample)

    def run(params, keys, x, free, absent):
        denoise_fn = lambda *inputs: model.apply({"params": params}, *inputs)  # noqa: E731
        return sampling.run(kernel, denoise_fn, keys, x, free, absent, settings).tokens

    params = jax.eval_shape(
        lambda: train.create_state(model, train.make_optimiser(config)[0], jax.random.key(0)).params
    )
    shape = (size, vocab.length)
    inputs = (
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size)),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, bool),
        jax.ShapeDtypeStruct((size, len(vocab.modalities)), bool),
    )
    params = place(mesh, params, sharding.shardings(mesh, params))
    return jax.jit(run), (params, *over_data(mesh, inputs))


# ---- Counting -----------------------------------------------------------------------------------


def count_flops(jaxpr, loops: int) -> float:
    """FLOPs of the matrix products of a jaxpr; a while loop runs `loops` times."""
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
        total += times * sum(count_flops(j, loops) for j in extend.jaxprs_in_params(params))
    return total


SIZES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2}
SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+)\[([\d,]*)\]")
INSTRUCTION = re.compile(
    r"^\s+(?:ROOT )?%?(?P<name>[\w.-]+) = (?P<type>\(.*?\)|\S+) (?P<op>[a-z][\w-]*)\((?P<rest>.*)$"
)
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while"}
FREE |= {"conditional", "call", "partition-id", "replica-id", "iota", "opt-barrier"}


def shapes_in(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [(d, tuple(int(n) for n in s.split(",") if n)) for d, s in SHAPE.findall(text)]


def bytes_of(text: str) -> list[float]:
    """Bytes of each array in the text of a type."""

    def size(dtype):
        return SIZES.get(dtype) or (1 if dtype.startswith("f8") else int(dtype[1:]) / 8)

    return [size(dtype) * math.prod(shape) for dtype, shape in shapes_in(text)]


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
    """How often a while loop runs: as its text or the bound in its condition says, else `loops`."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', rest):
        return int(known[1])

    def bounds(name):
        for match in computations.get(name, []):
            if match["op"] == "constant" and match["type"].startswith("s32[]"):
                yield int(re.match(r"-?\d+", match["rest"])[0])
            yield from (
                b for n in re.findall(r"calls=%?([\w.-]+)", match["rest"]) for b in bounds(n)
            )

    found = [b for b in bounds(re.search(r"condition=%?([\w.-]+)", rest)[1]) if b > 0]
    return found[0] if len(found) == 1 else loops


def count_compiled(hlo: str, loops: int):
    """(bytes moved, {kind: [count, bytes]}, [(collective, bytes), largest first]) of a program."""
    computations, entry = parse(hlo)
    moved, kinds, largest = 0.0, collections.defaultdict(lambda: [0, 0.0]), {}
    channels = set()  # a collective that runs beside others stands in the text several times

    def fusion_bytes(name, sizes, out):
        """Operands that are only sliced count as their slices, an update in place as its update."""
        body = computations.get(name, [])
        users = collections.defaultdict(list)
        for match in body:
            for operand in re.findall(r"%([\w.-]+)", match["rest"]):
                users[operand].append(match)
        for match in body:
            if match["op"] == "parameter":
                index = int(re.match(r"(\d+)", match["rest"])[1])
                used = users[match["name"]]
                if used and all(u["op"] == "dynamic-slice" for u in used) and index < len(sizes):
                    sizes[index] = sum(sum(bytes_of(u["type"])) for u in used)
                if any(u["op"] == "dynamic-update-slice" for u in used) and index < len(sizes):
                    sizes[index] = 0
            if match["op"] == "dynamic-update-slice":
                names = {m["name"]: m for m in body}
                update = re.findall(r"%([\w.-]+)", match["rest"])[1]
                whole = sum(bytes_of(match["type"]))
                out += sum(bytes_of(names[update]["type"])) - whole if update in names else 0
        return sum(sizes) + max(out, 0)

    def visit(name, times, fused):
        nonlocal moved
        types = {match["name"]: match["type"] for match in computations.get(name, [])}
        for match in computations.get(name, []):
            op, rest = match["op"], match["rest"]
            kind = op.removesuffix("-start")
            channel = re.search(r"channel_id=(\d+)", rest)
            if kind in COLLECTIVES and not (channel and channel[1] in channels):
                channels.update(channel.groups() if channel else ())
                size = max(bytes_of(match["type"]), default=0)
                kinds[kind][0] += times
                kinds[kind][1] += times * size
                label = f"{kind} of {max(shapes_in(match['type']), key=lambda s: math.prod(s[1]))}"
                largest[label] = max(largest.get(label, 0), size)
            called = dict(re.findall(r"(calls|body|to_apply)=%?([\w.-]+)", rest))
            branches = re.findall(r"branch_computations=\{(.*?)\}", rest)
            if op == "while":
                visit(called["body"], times * trips(rest, computations, loops), fused)
            elif op in ("fusion", "call", "async-start") and "calls" in called:
                visit(called["calls"], times, True)
            elif op == "call" and "to_apply" in called:
                visit(called["to_apply"], times, fused)
            for branch in branches:
                visit(re.findall(r"%([\w.-]+)", branch)[0], times, fused)
            if not fused and op not in FREE and not op.endswith("-done"):
                operands = re.findall(r"%([\w.-]+)", rest.split("), ")[0])
                sizes = [sum(bytes_of(types.get(operand, ""))) for operand in operands]
                out = sum(bytes_of(match["type"]))
                if op == "fusion":
                    moved += times * fusion_bytes(called.get("calls"), sizes, out)
                elif op == "dynamic-slice":
                    moved += times * 2 * out
                elif op == "dynamic-update-slice":
                    moved += times * 2 * (sizes[1] if len(sizes) > 1 else 0)
                else:
                    moved += times * (sum(sizes) + out)

    visit(entry, 1, False)
    return moved, dict(kinds), sorted(largest.items(), key=lambda item: -item[1])


@contextlib.contextmanager
def captured_stderr():
    """A list that gets what the compiler writes to file descriptor 2."""
    lines, saved = [], os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()


# ---- The report ---------------------------------------------------------------------------------


def report(config, topology: str, program: str, text: str | None = None) -> dict:
    """Compiles and measures; ValueError for settings that do not fit the slice.

    text: a file for the compiled program.
    """
    mesh = make_mesh(topology, **config.mesh)
    step, arguments = {"train": train_program, "sample": sample_program}[program](config, mesh)
    chip, memory_rate, link_rate = RATES[topology.split(":")[0]]
    peak, memory = plan.CHIPS[chip]
    loops = config.sample.steps or config.diffusion.steps
    start = time.time()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = step.trace(*arguments)
        lowered = traced.lower()
    with captured_stderr() as complaints:
        compiled = lowered.compile()
    seconds = time.time() - start
    sizes = compiled.memory_analysis()
    used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    used += sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
    hlo = compiled.as_text()
    if text:
        pathlib.Path(text).write_text(hlo)
    moved, kinds, largest = count_compiled(hlo, loops)
    batch = {"train": config.train.batch_size, "sample": config.evaluate.batch_size}[program]
    flops = count_flops(traced.jaxpr.jaxpr, loops) / mesh.size
    vocab = plan.vocab_of(config)
    forward = plan.forward_flops(config, vocab)
    useful = {
        "train": 3 * forward * batch,
        "sample": forward * batch * loops,
    }[program]
    traffic = sum(size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in kinds.items())
    times = {"FLOPs": flops / peak, "memory": moved / memory_rate, "links": traffic / link_rate}
    bound = max(times.values())
    return {
        "devices": mesh.size,
        "batch": batch,
        "mesh": f"{mesh.shape[sharding.DATA]} x {mesh.shape[sharding.MODEL]}",
        "used": used / GIB,
        "state": sizes.argument_size_in_bytes / GIB,
        "memory": memory,
        "flops": flops,
        "moved": moved,
        "collectives": kinds,
        "largest": largest[:3],
        "times": times,
        "bound": bound,
        "limit": max(times, key=times.get),
        "mfu": useful / (bound * peak * mesh.size),
        "rematerialised": sum("nvoluntary full remat" in line for line in complaints),
        "logits_gathered": [
            label for label, _ in largest if gathers_logits(label, vocab, config.model.width)
        ],
        "seconds": seconds,
    }


def gathers_logits(label: str, vocab, width: int) -> bool:
    """Whether a collective brings together all classes of a modality, and not in a head's weights.

    Those are [width, classes] and [classes]; logits are [..., classes] for many positions.
    """
    numbers = [int(n) for n in re.findall(r"\d+", label.rpartition("(")[2])]
    return "all-gather" in label and any(
        m.classes in numbers and math.prod(numbers) // m.classes not in (1, width)
        for m in vocab.modalities
    )


def describe(result: dict) -> str:
    """The report as text."""
    lines = [
        f"mesh          {result['mesh']} (data x model), {result['devices']} devices,"
        f" a batch of {result['batch']}",
        f"memory        {result['used']:.2f} of {result['memory']} GiB a device"
        f" ({result['state']:.2f} arguments): "
        + ("fits" if result["used"] < result["memory"] else "DOES NOT FIT"),
        f"FLOPs         {result['flops']:.3e} a device",
        f"bytes moved   {result['moved']:.3e} a device",
    ]
    for kind, (count, size) in sorted(result["collectives"].items()):
        lines.append(f"  {kind:20s} {count:6d} times, {size / GIB:8.3f} GiB a device")
    lines += [f"  largest: {label}, {size / 2**20:.1f} MiB" for label, size in result["largest"]]
    spent = ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in result["times"].items())
    lines += [
        f"at least      {1e3 * result['bound']:.1f} ms a step ({spent}), MFU at most"
        f" {result['mfu']:.0%}",
        f"complaints    {result['rematerialised']} involuntary full rematerialisations, "
        f"{len(result['logits_gathered'])} all-gathers of logits",
        f"compiled in   {result['seconds']:.0f} s",
    ]
    return "\n".join(lines)


def row(result: dict, topology: str, program: str) -> str:
    cells = (
        topology,
        program,
        result["batch"],
        result["mesh"],
        f"{result['used']:.2f} / {result['memory']}",
        f"{result['flops'] / 1e12:.2f}",
        f"{result['moved'] / 1e9:.1f}",
        ", ".join(
            f"{k} {size / 1e9:.2f}" for k, (_, size) in sorted(result["collectives"].items())
        ),
        f"{1e3 * result['bound']:.1f} ({result['limit']})",
        f"{result['mfu']:.0%}",
        f"{result['rematerialised']} / {len(result['logits_gathered'])}",
        f"{result['seconds']:.0f}",
    )
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main(argv) -> None:
    del argv
    config, topology, program = flags.FLAGS.config, flags.FLAGS.topology, flags.FLAGS.program
    if config is None:
        sys.exit("error: --config is missing, expected a file such as configs/t2i.py:coco")
    try:
        result = report(config, topology, program, flags.FLAGS.text)
    except ValueError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(describe(result))
    if result["logits_gathered"]:
        print(f"gathered      {', '.join(result['logits_gathered'])}")
    if flags.FLAGS.row:
        print(row(result, topology, program))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "settings, such as configs/t2i.py:coco")
    flags.DEFINE_string("topology", "v5e:2x4", "chip and shape of the slice, such as v5p:4x4x4")
    flags.DEFINE_enum("program", "train", ("train", "sample"), "what to compile")
    flags.DEFINE_string("text", None, "file for the compiled program")
    flags.DEFINE_bool("row", False, "print a row of the table in launch/README.md as well")
    app.run(main)
