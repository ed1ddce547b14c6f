"""A train step and its parts: network forward and backward, loss arithmetic, optimiser, data.

The parts in the middle are differences of programs that were timed in the same rounds: the
network's backward pass is its gradient by a fixed cotangent less its forward pass; the loss
arithmetic is the gradient of the objective, with its drawing of tasks, times and noise, less that.
"""

import functools
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import data, sizes, timing
from udd_jax import build
from udd_jax.data import batches
from udd_jax.diffusion import transition
from udd_jax.training import end_to_end, optimiser, plan, train_diffusion, turns

WARM, TIMED = 3, 8  # steps of `step_seconds`


def make_step(p: sizes.Parts, terms=None, prefixes: bool = False, **options):
    """The compiled step as `train_diffusion.train` makes it, and the state that it starts from.

    prefixes: whether it has the loss of prefixes. options: of `train_diffusion.make_objective`."""
    if prefixes:
        _, loss_fn = train_diffusion.make_prefix_objective(p.config, p.vocab, 0, **options)
    else:
        _, loss_fn = train_diffusion.make_objective(p.config, p.vocab, 0, terms, **options)
    (tx, rate), c = optimiser.make_optimiser(p.config), p.config.train
    step = train_diffusion.make_step(loss_fn, tx, rate, c.ema, p.vocab, c.accumulate)
    terms = train_diffusion.terms_of(p.config, p.vocab, 0, terms)
    make = functools.partial(
        train_diffusion.create_state, p.model, tx, fan_in=c.fan_in, terms=terms
    )
    return jax.jit(step, donate_argnums=0), make(jax.random.key(0))


def step_seconds(config, shared) -> tuple[float, float]:
    """The median seconds of a later train step and of a first one, which is on prefixes where the
    training begins with them. On random tokens of the tokenizers in the folder `shared`.

    Of the later steps a share may keep the loss of prefixes (`train.prefix_share`). Where steps
    leave modalities out, it is the mean over the parts of the mixture.
    """
    tokenizers = build.load_tokenizers(shared)
    layout = build.make_vocab(config, tokenizers)
    kernel = transition.make_kernel(layout, build.make_schedules(config, layout))
    p = sizes.Parts(config, layout, kernel, build.make_model(config, layout))
    terms = end_to_end.from_config(config, layout, tokenizers["image"])
    parts, share = turns.parts(config, layout), turns.prefix_share(config)

    def mean(prefixes: bool) -> float:
        asked = [{"mixture": part, "without": names} for names, part in parts.items()]
        seconds = [_median(*make_step(p, terms, prefixes, **a), p.batch) for a in asked]
        return float(np.average(seconds, weights=[sum(part.values()) for part in parts.values()]))

    later = mean(prefixes=False)
    first = mean(prefixes=True) if turns.prefix_steps(config) or share else later
    return (1 - share) * later + share * first, first


def _median(step, state, batch) -> float:
    """Seconds of a step, after some to warm up."""
    times, key = [], jax.random.key(1)
    for _ in range(WARM + TIMED):
        start = time.perf_counter()
        state, _ = step(state, batch, key)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - start)
    return float(np.median(times[WARM:]))


def programs(p: sizes.Parts, cache) -> dict:
    """Functions without arguments, by name."""
    step, state = make_step(p)
    params, sampler = jax.tree.map(jnp.copy, (state.params, state.times))  # the step takes its own
    key, batch = jax.random.key(1), p.batch
    x0, inputs = p.vocab.fuse(batch), sizes.network_inputs(p)
    apply = functools.partial(p.model.apply, {"params": params})
    _, loss_fn = train_diffusion.make_objective(p.config, p.vocab, pad_id=0)
    (tx, _), held = optimiser.make_optimiser(p.config), [state]
    weights = [jnp.ones(y.shape) for y in jax.eval_shape(apply, *inputs)]

    def network(params, weights):
        logits = p.model.apply({"params": params}, *inputs)
        return sum((y * w).sum() for y, w in zip(logits, weights, strict=True))

    def update(grads, opt_state, params, average):
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        average = jax.tree.map(lambda e, p: 0.99 * e + 0.01 * p, average, params)
        return opt_state, params, average

    def whole():
        held[0], _ = step(held[0], batch, key)
        jax.block_until_ready(held[0])

    def ready(function, *arguments):
        compiled = jax.jit(function)
        return lambda: jax.block_until_ready(compiled(*arguments))

    batch_size = p.config.train.batch_size
    return {
        "step": whole,
        "forward": ready(lambda params: p.model.apply({"params": params}, *inputs), params),
        "network": ready(jax.grad(network), params, weights),
        "loss": ready(jax.grad(loss_fn, has_aux=True), params, sampler, key, x0),
        "optimiser": ready(update, params, tx.init(params), params, params),
        "data": lambda: batches.make(cache, 0, 0, batch_size),
    }


def analysed_flops(p: sizes.Parts) -> float:
    """FLOPs of forward and backward by JAX's `cost_analysis()` of what was traced, not compiled.

    It counts the body of a loop once, so that the layers are unrolled, and nothing is recomputed.
    Unlike the plan's count it has everything that is not a matrix product too.
    """
    model = p.model.clone(unroll=p.model.layers, remat="none")
    inputs = sizes.network_inputs(p)

    def network(params):
        return sum(y.sum() for y in model.apply({"params": params}, *inputs))

    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    return float(jax.jit(jax.grad(network)).lower(params).cost_analysis()["flops"])


def rows(p: sizes.Parts, multiply, product_flops: float, peak: float | None, repeats: int):
    """The rows of a train step: seconds, each part's share of the step, FLOPs."""
    with tempfile.TemporaryDirectory() as directory:
        lengths = [m.length for m in p.vocab.modalities]
        cache = data.write_cache(directory, *lengths, items=4 * p.config.train.batch_size)
        times = timing.rounds(programs(p, cache), multiply, repeats)
    split = {
        "network forward": times["forward"],
        "network backward": times["network"] - times["forward"],
        "loss arithmetic": times["loss"] - times["network"],
        "optimiser": times["optimiser"],
        "data": times["data"],
    }
    flops = 3.0 * plan.forward_flops(p.config, p.vocab) * p.config.train.batch_size
    whole = timing.row("train step", times["step"], flops=flops, analysed_flops=analysed_flops(p))
    whole["utilisation"] = flops / product_flops / whole["products"]  # of the product's own rate
    if peak:
        whole["mfu"] = flops / whole["seconds"] / peak
    yield whole
    for name, part in split.items():
        yield timing.row(f"  {name}", part, share=_share(part, times["step"]))


def _share(part: timing.Times, whole: timing.Times) -> float:
    """Of processor time, each as a ratio to its own product: the steadier of the two clocks."""
    return timing.row("", part)["processor_products"] / timing.row("", whole)["processor_products"]
