"""Compiles the real train step, or the sampler, for a TPU slice that is not there.

    python launch/compile_ahead.py --config=configs/t2i.py:coco --topology=v5e:8x8
    python launch/compile_ahead.py --config=configs/t2i.py:coco --topology=v5e:2x4 --program=sample

Needs only the `libtpu` wheel of `pip install -e ".[tpu]"`, and a CPU. It prints the memory of a
device against the chip's, FLOPs, bytes moved, collectives by kind and bytes, and a lower bound on
the time of a step from the chip's peak rates, with the utilisation (MFU) that it allows. The mesh
is the config's: `--config.mesh.model=4`.

How it counts is said in `udd_jax/runtime/costs.py`; a loop whose trips the program does not tell,
such as the sampler's, runs as often as the sampler calls the network: its numbers are those of a
whole chain. Where the training has several steps, which leave out other modalities
(`model.absent`), it is the largest. The bound takes the three rates as perfectly overlapped.
"""

import contextlib
import functools
import importlib.util
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
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import config_flags

from udd_jax import build
from udd_jax.diffusion import transition
from udd_jax.networks.denoiser import Denoiser
from udd_jax.runtime import config_files, costs, sharding
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings, readers
from udd_jax.training import optimiser, plan, train_diffusion, turns

# bytes/s to the memory of a chip, and of all its links to others, from the maker's data sheets.
RATES = {
    "v4": ("TPU v4", 1228e9, 300e9),
    "v5e": ("TPU v5e", 819e9, 200e9),
    "v5p": ("TPU v5p", 2765e9, 600e9),
    "v6e": ("TPU v6e", 1640e9, 448e9),
}
GIB = 2**30


# ---- The machine and the programs ---------------------------------------------------------------


def make_mesh(topology: str, data: int, model: int) -> Mesh:
    """The mesh of a slice; ValueError for an unknown chip, axes that do not fit, or no libtpu."""
    chip, _, shape = topology.partition(":")
    if chip not in RATES or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
        raise ValueError(f"--topology={topology}, expected one of {', '.join(RATES)}, then :4x4")
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise ValueError('libtpu, the compiler for TPUs, is not installed: pip install -e ".[tpu]"')
    options = {"chip_config_name": "megacore"} if chip == "v4" else {}
    if shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options)
    count = len(described.devices)
    data = count // model if data == -1 else data
    if data * model != count:
        raise ValueError(f"mesh of {data} x {model}, but {topology} has {count} devices")
    return sharding.arranged(described.devices, data, model)


def everywhere(mesh, tree):
    return sharding.place(tree, sharding.shardings(mesh, tree, sharding.REPLICATED))


def over_data(mesh, tree):
    return sharding.place(tree, jax.tree.map(lambda _: NamedSharding(mesh, P(sharding.DATA)), tree))


def largest(config, vocab) -> tuple[tuple[str, ...], dict]:
    """The most expensive step of a training: (names of what it leaves out, its mixture)."""
    parts = turns.parts(config, vocab)
    return max(parts.items(), key=lambda part: plan.forward_flops(config, vocab, part[0]))


def calls(config, vocab) -> int:
    """How often a chain for pairs calls the network. ValueError if the samples decide."""
    settings = Settings(**config.sample)
    if settings.kind != "order":
        return settings.steps or config.diffusion.steps
    if settings.sampler in readers("group"):
        return math.ceil(sum(m.length for m in vocab.modalities if not m.inputs) / settings.group)
    raise ValueError(
        f"sample.sampler = {settings.sampler!r} has no number of network calls that is known "
        "before, expected another: set --config.sample.sampler=ancestral"
    )


def train_program(config, mesh):
    """The jitted step, the largest of a training, and its abstract arguments."""
    vocab, c = plan.vocab_of(config), config.train
    without, mixture = largest(config, vocab)
    asked = {"mixture": mixture, "without": without}
    model, loss_fn = train_diffusion.make_objective(config, vocab, pad_id=0, **asked)
    tx, rate = optimiser.make_optimiser(config)
    create = functools.partial(train_diffusion.create_state, model, tx)
    terms = train_diffusion.terms_of(config, vocab, 0)
    state = jax.eval_shape(lambda: create(jax.random.key(0), terms=terms))
    batch = {
        m.name: jax.ShapeDtypeStruct((c.batch_size, m.length, m.inputs), jnp.float32)
        if m.inputs
        else jax.ShapeDtypeStruct((c.batch_size, m.length), jnp.int32)
        for m in vocab.modalities
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    places = sharding.shardings(mesh, state)
    step = train_diffusion.make_step(loss_fn, tx, rate, c.ema, vocab, c.accumulate)
    step = jax.jit(step, donate_argnums=0, out_shardings=(places, None))
    state = sharding.place(state, places)
    return step, (state, over_data(mesh, batch), everywhere(mesh, key))


def sample_program(config, mesh):
    """The jitted sampler for pairs, a batch of `evaluate.batch_size`, and its arguments."""
    vocab, size = plan.vocab_of(config), config.evaluate.batch_size
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    model = build.make_model(config, vocab)
    settings = Settings(**config.sample)

    def run(params, keys, x, free, absent):
        denoise_fn = Denoiser(model, params)
        return reverse.run(kernel, denoise_fn, keys, x, free, absent, settings).tokens

    params = jax.eval_shape(
        lambda: (
            train_diffusion.create_state(
                model, optimiser.make_optimiser(config)[0], jax.random.key(0)
            ).params
        )
    )
    shape = (size, vocab.length)
    inputs = (
        jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size)),
        jax.ShapeDtypeStruct(shape, jnp.int32),
        jax.ShapeDtypeStruct(shape, bool),
        jax.ShapeDtypeStruct((size, len(vocab.modalities)), bool),
    )
    params = sharding.place(params, sharding.shardings(mesh, params))
    return jax.jit(run), (params, *over_data(mesh, inputs))


# ---- The report ---------------------------------------------------------------------------------


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


def compile_for(lowered, memory: int, smaller: str):
    """The compiled program. ValueError if it does not fit into the `memory` GiB of a device.

    smaller: the field to lower then."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        why = str(error).strip().splitlines()[0]
        raise ValueError(
            f"the program DOES NOT FIT into the {memory} GiB of a device: lower --config.{smaller} "
            f"or raise --config.mesh.model. The compiler says: {why}"
        ) from None


def report(config, topology: str, program: str, text: str | None = None) -> dict:
    """Compiles and measures; ValueError for settings that do not fit the slice.

    text: a file for the compiled program.
    """
    mesh = make_mesh(topology, **config.mesh)
    vocab, chain = plan.vocab_of(config), program == "sample"
    without, loops = ((), calls(config, vocab)) if chain else (largest(config, vocab)[0], 1)
    step, arguments = {"train": train_program, "sample": sample_program}[program](config, mesh)
    chip, memory_rate, link_rate = RATES[topology.split(":")[0]]
    peak, memory = plan.CHIPS[chip]
    start = time.time()
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        traced = step.trace(*arguments)
        lowered = traced.lower()
    with captured_stderr() as complaints:
        smaller = "evaluate.batch_size" if chain else "train.batch_size"
        compiled = compile_for(lowered, memory, smaller)
    seconds = time.time() - start
    sizes = compiled.memory_analysis()
    used = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    used += sizes.temp_size_in_bytes + sizes.generated_code_size_in_bytes
    hlo = compiled.as_text()
    if text:
        pathlib.Path(text).write_text(hlo)
    counted = costs.traffic(hlo, loops)
    batch = {"train": config.train.batch_size, "sample": config.evaluate.batch_size}[program]
    flops = costs.flops(traced.jaxpr.jaxpr, loops) / mesh.size
    forward = plan.forward_flops(config, vocab, without)
    useful = forward * batch * (loops if chain else 3)
    sent = sum(
        size * (2 if kind == "all-reduce" else 1) for kind, (_, size) in counted.collectives.items()
    )
    times = {
        "FLOPs": flops / peak,
        "memory": counted.moved / memory_rate,
        "links": sent / link_rate,
    }
    bound = max(times.values())
    return {
        "of": f"a chain of {loops} calls" if chain else "a step",
        "steps": 1 if chain else len(turns.parts(config, vocab)),
        "without": without,
        "devices": mesh.size,
        "batch": batch,
        "mesh": f"{mesh.shape[sharding.DATA]} x {mesh.shape[sharding.MODEL]}",
        "used": used / GIB,
        "state": sizes.argument_size_in_bytes / GIB,
        "memory": memory,
        "flops": flops,
        "moved": counted.moved,
        "collectives": counted.collectives,
        "largest": counted.largest[:3],
        "times": times,
        "bound": bound,
        "limit": max(times, key=times.get),
        "mfu": useful / (bound * peak * mesh.size),
        "rematerialised": sum("nvoluntary full remat" in line for line in complaints),
        "logits_gathered": [
            label
            for label, _ in counted.largest
            if gathers_logits(label, vocab, config.model.width)
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
    if result["steps"] > 1:
        lines.append(
            f"step          the largest of {result['steps']} kinds: without "
            + (", ".join(result["without"]) or "nothing")
        )
    for kind, (count, size) in sorted(result["collectives"].items()):
        lines.append(f"  {kind:20s} {count:6d} times, {size / GIB:8.3f} GiB a device")
    lines += [f"  largest: {label}, {size / 2**20:.1f} MiB" for label, size in result["largest"]]
    spent = ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in result["times"].items())
    lines += [
        f"at least      {1e3 * result['bound']:.1f} ms {result['of']} ({spent}), MFU at most"
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
    app.run(main, config_files.in_arguments(sys.argv))
