"""The parts of `python -m benchmarks card`: each makes {row: function that measures it}.

A row is a dict of numbers. The functions of a part are called one after another in one process, so
that they may share what is slow to make. What cannot be measured raises.
"""

import functools
import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import data, devices, sizes, training
from configs import t2i
from udd_jax import pipeline, stages
from udd_jax.data import reading
from udd_jax.diffusion import time_sampling
from udd_jax.evaluation.report import contact_sheet
from udd_jax.networks import layers, transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.runtime import files, provenance
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings
from udd_jax.tokenizers import image_tokenizer
from udd_jax.training import plan, train_diffusion, train_image_tokenizer

GIB = 2**30
CUDNN = "__cudnn$fmha"  # how the compiled program calls cuDNN's attention
LONGEST = 3.0  # seconds of repeats of one program, at least one repeat


class Scale(NamedTuple):
    """How large everything is."""

    config: Callable[[], Any]
    implementations: tuple[str, ...]  # of attention, the first is the one to train with
    batches: tuple[int, ...]  # of a train step, most wanted first
    sampled: tuple[int, ...]  # batches of a reverse step
    calls: int  # of a whole chain
    pictures: int  # that the input pipeline reads
    drawing: Callable[[Any], None]  # changes t2i.py:emoji
    reserve: float  # seconds of the part emoji for its sheet
    steps: int | None = None  # of its training; None: as many as there is time for


class Asked(NamedTuple):
    """What one call asks for."""

    size: str
    out: Any  # the folder
    data: str  # of the part emoji
    seconds: float = math.inf  # of the part

    @property
    def scale(self) -> Scale:
        return SCALES[self.size]


def larger(c):
    """`emoji` for a GPU: 12 layers of width 512, batch 128."""
    c.model.update({"layers": 12, "width": 512, "heads": 8, "unroll": 1, "dtype": "bfloat16"})
    c.model.implementation = "xla"
    c.vq.update({"steps": 3000, "batch_size": 32})
    c.train.update({"batch_size": 128, "warmup": 20, "log_every": 100, "save_every": 1000})
    c.train.prefix_steps = 0  # how many steps there are is not known yet


def toy():
    """`sizes.tiny` with an image tokenizer that is as small."""
    c = sizes.tiny()
    c.vq.model.update({"ch": 32, "num_res_blocks": 0, "attn_resolutions": ()})
    c.vq.model.update({"embed_dim": 8, "z_channels": 8})
    return c


def smallest(c):
    """Captioned shapes with the tokenizers of the packaged run: nothing but the way is tried."""
    c.data, c.image_size, assets = "shapes", 32, "udd_jax/assets/shapes"
    c.data_options = {"size": 64}
    c.vq.file, c.text.file = f"{assets}/vq/tokenizer", f"{assets}/text.model"
    c.model.update({"layers": 1, "width": 16, "heads": 1, "unroll": 1})
    c.train.update({"batch_size": 2, "warmup": 1, "prefix_steps": 0})
    c.sample.steps = 2


SCALES = {
    "paper": Scale(
        sizes.paper, ("cudnn", "xla"), (64, 128, 32, 96, 16), (64, 256), 25, 600, larger, 45.0
    ),
    "toy": Scale(toy, ("flat", "cudnn"), (2,), (2,), 2, 4, smallest, 0.0, steps=2),
}


def changed(config, implementation=None, dtype=None, batch=None):
    """A copy of a config with other settings."""
    c = config.copy_and_resolve_references()
    c.model.implementation = implementation or c.model.implementation
    c.model.dtype = dtype or c.model.dtype
    c.train.batch_size = batch or c.train.batch_size
    return c


def repeat(run: Callable[[], Any]) -> float:
    """The median seconds of calls that end when their work has ended, after one to warm."""
    jax.block_until_ready(run())
    times, end = [], time.perf_counter() + LONGEST
    while not times or (time.perf_counter() < end and len(times) < 30):
        started = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - started)
    return float(np.median(times))


def rated(flops: float, seconds: float) -> dict:
    """FLOP/s, and the share of the device's peak (None for an unknown device)."""
    peak = devices.peak_of(jax.devices()[0])
    return {"tflops_a_second": flops / seconds / 1e12, "mfu": peak and flops / seconds / peak}


# ---- The parts ----------------------------------------------------------------------------------


def machine(asked: Asked) -> dict:
    def found():
        return devices.surroundings(jax.devices()[0]) | {"found": provenance.machine()}

    return {"surroundings": found}


def numerics(asked: Asked) -> dict:
    """Logits, loss and gradient of new weights, against float32 with exact products."""
    config = changed(asked.scale.config(), batch=2)
    config.model.rezero = 1.0  # or all logits would be 0

    def pass_(dtype, precision, implementation):
        p = sizes.parts(changed(config, implementation, dtype))
        params = transformer.init(p.model, jax.random.key(0), fan_in=True)
        _, loss_fn = train_diffusion.make_objective(p.config, p.vocab, pad_id=0)
        sampler = time_sampling.create(p.model.steps, len(p.vocab.modalities))
        x, t, free = sizes.network_inputs(p)

        @jax.jit
        def everything(params, key):
            logits = p.model.apply({"params": params}, x, t, free)
            both = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, _), gradient = both(params, sampler, key, p.vocab.fuse(p.batch))
            return logits, loss, gradient

        with jax.default_matmul_precision(precision):
            return everything(params, jax.random.key(1))

    reference = functools.cache(lambda: pass_("float32", "highest", "xla"))

    def row(*how):
        logits, loss, gradient = pass_(*how)
        true_logits, true_loss, true_gradient = reference()
        off, true = _dot(_less(logits, true_logits)), _dot(true_logits)
        errors, size = _dot(_less(gradient, true_gradient)), _dot(true_gradient)
        pairs = zip(logits, true_logits, strict=True)
        same = [(a.argmax(-1) == b.argmax(-1)).mean() for a, b in pairs]
        return {
            "loss": float(loss),
            "loss_difference": float(loss - true_loss),
            "logits_relative_rms": math.sqrt(off / true),
            "argmax_agrees": float(np.mean(same)),
            "gradient_relative": math.sqrt(errors / size),
            "gradient_cosine": _dot(gradient, true_gradient) / math.sqrt(_dot(gradient) * size),
        }

    ways = {"float32, default products": ("float32", "default", "xla")}
    for name in asked.scale.implementations:
        ways[f"bfloat16, {name}"] = ("bfloat16", "default", name)
    return {name: functools.partial(row, *how) for name, how in ways.items()}


def _less(a, b):
    return jax.tree.map(jnp.subtract, a, b)


def _dot(a, b=None) -> float:
    """The sum of the products of two trees, or of the squares of one."""
    products = jax.tree.map(lambda x, y: jnp.vdot(x, y), a, a if b is None else b)
    return float(sum(map(float, jax.tree.leaves(products))))


def train(asked: Asked) -> dict:
    """The compiled step of the trainer over batch sizes, and with the other attentions."""
    scale = asked.scale
    first, *others = scale.implementations
    ways = [(first, batch) for batch in scale.batches]
    ways[1:1] = [(name, scale.batches[0]) for name in others]

    def row(implementation, batch):
        config = changed(scale.config(), implementation, batch=batch)
        p = sizes.parts(config)
        step, state = training.make_step(p)
        count, tokens, key = transformer.count_parameters(state.params), p.batch, jax.random.key(1)
        started = time.perf_counter()
        compiled = step.lower(state, tokens, key).compile()
        compiling, held = time.perf_counter() - started, [state]
        del state  # the step takes it

        def once():
            held[0], metrics = compiled(held[0], tokens, key)
            return metrics

        seconds, memory = repeat(once), compiled.memory_analysis()
        used = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        used += memory.output_size_in_bytes - memory.alias_size_in_bytes
        flops = 3.0 * plan.forward_flops(config, p.vocab) * batch
        return (
            {"ms": 1e3 * seconds, "pairs_a_second": batch / seconds}
            | rated(flops, seconds)
            | {
                "cudnn_calls": compiled.as_text().count(f'custom_call_target="{CUDNN}'),
                "compile_s": compiling,
                "program_gib": used / GIB,
                "plan_gib": sum(plan.memory(config, p.vocab, count).values()) / GIB,
                "peak_so_far_gib": provenance.peak_gib(),
            }
        )

    return {f"{name}, batch {b}": functools.partial(row, name, b) for name, b in ways}


def sampling(asked: Asked) -> dict:
    """A reverse step with truncation and without, a whole chain, and decoding to pixels."""
    scale = asked.scale

    @functools.cache
    def parts(batch):
        p = sizes.parts(changed(scale.config(), scale.implementations[0], batch=batch))
        params = transformer.init(p.model, jax.random.key(0), fan_in=True)
        return p, params

    def row(batch, top_r, calls):
        p, params = parts(batch)
        x, t, free = sizes.network_inputs(p)
        settings, absent = Settings(steps=calls, top_r=top_r), jnp.zeros(t.shape, bool)

        @jax.jit
        def chain(params, key):
            denoise_fn = Denoiser(p.model, params)
            return reverse.sample(p.kernel, denoise_fn, key, x, free, absent, settings)

        seconds = repeat(lambda: chain(params, jax.random.key(2)))
        flops = float(plan.forward_flops(p.config, p.vocab) * batch * calls)
        return {"ms": 1e3 * seconds, "pairs_a_second": batch / seconds} | rated(flops, seconds)

    def decoding(batch):
        config = scale.config()
        model = train_image_tokenizer.make_model(config)
        blank = jnp.zeros((1, config.image_size, config.image_size, 3))
        key = jax.random.key(0)
        params = jax.jit(model.init)(key, blank, key)["params"]  # the second key is Gumbel's
        tokenizer = image_tokenizer.ImageTokenizer(model, params)
        codes = np.zeros((batch, math.prod(model.grid)), np.int32)
        seconds = repeat(lambda: tokenizer.decode(codes))
        return {"ms": 1e3 * seconds, "pairs_a_second": batch / seconds}

    top_r, rows = scale.config().sample.top_r, {}
    for batch in scale.sampled:
        for name, r in ((f"top_r {top_r}", top_r), ("not truncated", 1.0)):
            rows[f"reverse step, {name}, batch {batch}"] = functools.partial(row, batch, r, 1)
    few, calls = scale.sampled[0], scale.calls
    chain = functools.partial(row, few, top_r, calls)
    rows[f"chain of {calls} calls, top_r {top_r}, batch {few}"] = chain
    return rows | {f"decoding, batch {few}": functools.partial(decoding, few)}


def attention(asked: Asked) -> dict:
    """Attention alone, bfloat16, forwards and with gradients, against float32."""
    p = sizes.parts(asked.scale.config())
    heads, batch = p.model.heads, asked.scale.sampled[0]
    size = p.model.width // heads
    image, text = (m.length for m in p.vocab.modalities)
    shapes = {"self": (image + text,) * 2, "image from text": (image, text)}

    def row(implementation, n, m):
        keys = jax.random.split(jax.random.key(0), 3)
        q, k, v = (
            jax.random.normal(key, (batch, length, heads, size), jnp.bfloat16)
            for key, length in zip(keys, (n, m, m), strict=True)
        )
        attend = functools.partial(layers.dot_product_attention, implementation=implementation)
        forward = jax.jit(attend)
        both = jax.jit(jax.grad(lambda *x: attend(*x).astype(jnp.float32).sum(), (0, 1, 2)))
        exact = [x[:1].astype(jnp.float32) for x in (q, k, v)]
        with jax.default_matmul_precision("highest"):
            true = layers.dot_product_attention(*exact)
        off = jnp.abs(forward(q, k, v)[:1].astype(jnp.float32) - true).max()
        seconds, flops = repeat(lambda: both(q, k, v)), 4.0 * batch * n * m * heads * size
        return {
            "forward_ms": 1e3 * repeat(lambda: forward(q, k, v)),
            "both_ms": 1e3 * seconds,
            "largest_error": float(off),
        } | rated(3.5 * flops, seconds)  # with the scores computed again, as flash attention does

    ways = dict.fromkeys((*asked.scale.implementations, "flat"))
    return {
        f"{name}, {where}": functools.partial(row, name, *shape)
        for where, shape in shapes.items()
        for name in ways
    }


def reading_data(asked: Asked) -> dict:
    """Pictures against Pillow alone, and batches from the token cache."""
    count = asked.scale.pictures

    @functools.cache
    def rows():
        return {row["name"]: row for row in data.rows(repeats=1, count=count, items=30 * count)}

    def one(name):
        return {
            key: x for key, x in rows()[name].items() if key not in ("name", "rounds", "spread")
        }

    names = ["Pillow alone, images", "reading.examples, images"]
    names += [f"batches of {n}, pairs" for n in (64, 256, 1024)]
    return {name: functools.partial(one, name) for name in names}


def published(asked: Asked) -> dict:
    def step():
        if importlib.util.find_spec("torch") is None:
            raise ModuleNotFoundError("PyTorch is not there")
        raise NotImplementedError("the published code is not part of this repository")

    return {"train step": step}


def emoji(asked: Asked) -> dict:
    """The main job at a larger size, as many steps as the time allows, and its sheet."""
    config, folder = t2i.get_config("emoji"), asked.out / "emoji"
    config.data = asked.data
    asked.scale.drawing(config)
    end, pace = time.monotonic() + asked.seconds - asked.scale.reserve, folder / "pace.json"

    def tokens():
        stages.run(config, folder, until="token cache")
        return {}

    def affordable():
        started = time.monotonic()
        seconds, _ = training.step_seconds(config, folder)
        now = time.monotonic()
        left = end - now - (now - started)  # the trainer compiles as long once more
        return max(config.train.warmup, int(left / seconds))

    def steps():
        if not pace.exists():
            files.write_json(pace, {"steps": asked.scale.steps or affordable()})
        config.train.steps = files.read_json(pace)["steps"]
        started = time.perf_counter()
        stages.run(config, folder, until="diffusion")
        return files.read_json(pace) | {"seconds": time.perf_counter() - started}

    def sheet():
        pipe, views = pipeline.Pipeline.load(folder), reading.Views(config.image_size)
        source = stages.open_data(config)["test"]
        captions = [e.captions[0] for e in reading.examples(source, 0, 16, views)]
        drawn = pipe.text_to_image(captions, seed=0)
        picture = Image.fromarray(contact_sheet.sheet(drawn.images, captions))
        picture.save(asked.out / "emoji.png")
        return {"file": "emoji.png", "captions": len(captions)}

    return {"tokenizers and tokens": tokens, "training": steps, "sheet, text to image": sheet}


class Part(NamedTuple):
    make: Callable[[Asked], dict]
    share: float  # of the minutes
    about: str


PARTS = {
    "machine": Part(machine, 0.02, "what everything ran on"),
    "numerics": Part(numerics, 0.10, "bfloat16 against float32 with exact products"),
    "train": Part(train, 0.30, "a train step over batch sizes"),
    "sampling": Part(sampling, 0.15, "reverse steps, a chain, decoding"),
    "attention": Part(attention, 0.08, "attention alone, bfloat16"),
    "published": Part(published, 0.02, "the published PyTorch code"),
    "data": Part(reading_data, 0.06, "the input pipeline"),
    "emoji": Part(emoji, 0.27, "a short training on drawings"),
}


def begin(part: str, asked: Asked) -> dict[str, Callable[[], dict]]:
    """The rows of a part: {name: function}. Here JAX starts."""
    return PARTS[part].make(asked)
