"""A reverse step, network and the rest; and whole generations, with decoding, in pairs a second."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import sizes, timing
from udd_jax import pipeline
from udd_jax.diffusion import denoiser
from udd_jax.networks import transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings
from udd_jax.training import plan

PAIRS = ("ancestral:25", "ancestral:100", "maskgit:12", "maskgit:25", "first_hitting", "threshold")


def reverse_rows(p: sizes.Parts, multiply, product_flops: float, peak: float | None, repeats: int):
    """One step of the ancestral sampler, with the config's truncation and without."""
    x, t, free = sizes.network_inputs(p)
    params = transformer.init(p.model, jax.random.key(0), fan_in=True)
    absent = jnp.zeros(t.shape, bool)

    def step(top_r, params):  # the loop's body, once
        settings = Settings(steps=1, top_r=top_r)
        denoise_fn = Denoiser(p.model, params)
        return reverse.sample(p.kernel, denoise_fn, jax.random.key(2), x, free, absent, settings)

    def ready(function):
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(params))

    top_r = p.config.sample.top_r
    programs = {
        "network": ready(lambda params: p.model.apply({"params": params}, x, t, free)),
        "plain": ready(functools.partial(step, 1.0)),
        "truncated": ready(functools.partial(step, top_r)),
    }
    times = timing.rounds(programs, multiply, repeats)
    flops = float(plan.forward_flops(p.config, p.vocab) * len(x))
    network = timing.row("  network", times["network"])
    for name, label in (
        ("truncated", f"reverse step, top_r {top_r}"),
        ("plain", "reverse step, not truncated"),
    ):
        whole = timing.row(label, times[name], flops=flops)
        whole["utilisation"] = flops / product_flops / whole["products"]
        if peak:
            whole["mfu"] = flops / whole["seconds"] / peak
        yield whole
        rest = timing.row("  the rest", times[name] - times["network"])
        rest["share"] = 1 - network["processor_products"] / whole["processor_products"]
        yield rest
        yield network | {"share": 1 - rest["share"]}


def kept_rows(p: sizes.Parts, multiply, repeats: int):
    """A call of the network with block attention: all of it, and with what is given kept."""
    x, t, _ = sizes.network_inputs(p)
    model = p.model.clone(block_attention=True, time="per_modality")
    params, programs = transformer.init(model, jax.random.key(0), fan_in=True), {}
    for m, modality in enumerate(p.vocab.modalities):
        free = np.tile(p.vocab.modality_of != m, (len(x), 1))
        inputs = x, np.where(np.arange(t.shape[1]) == m, 0, t).astype(np.int32), free
        denoise_fn = Denoiser(model, params, modality.name)
        begun = jax.jit(functools.partial(denoiser.prepare, denoise_fn))(*inputs)
        for name, function in (("given", jax.tree_util.Partial(denoise_fn)), ("kept", begun)):
            run = functools.partial(jax.jit(lambda f, *inputs: f(*inputs)), function)
            programs[name, modality.name] = lambda f=run, i=inputs: jax.block_until_ready(f(*i))
    times = timing.rounds(programs, multiply, repeats)
    for modality in p.vocab.modalities:
        given, kept = (times[how, modality.name] for how in ("given", "kept"))
        whole = timing.row(f"network, {modality.name} given", given)
        part = timing.row(f"  the same, {modality.name} kept", kept)
        yield whole
        yield part | {"share": part["processor_products"] / whole["processor_products"]}


def pair_rows(run: str, settings: list[str], count: int, multiply, repeats: int):
    """Pairs from a finished run: "" is its own way, "NAME" or "NAME:STEPS" a sampler, one chain."""
    pipe = pipeline.Pipeline.load(run)
    programs = {}
    for text in settings:
        name, _, steps = text.partition(":")
        changes = {"sampler": name, "begin_with": ()} if name else {}
        changes |= {"steps": int(steps)} if steps else {}
        label = f"{count} pairs, {text or 'as the run does it'}"
        programs[label] = functools.partial(pipe.pairs, count, batch_size=count, **changes)
    calls = {label: float(generate().calls.mean()) for label, generate in programs.items()}
    for label, times in timing.rounds(programs, multiply, repeats).items():
        row = timing.row(label, times, calls=calls[label])
        yield row | {"pairs_a_second": count / row["seconds"]}
