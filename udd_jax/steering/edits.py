"""Edits of images: to a new caption without a mask, and beyond their sides."""

import dataclasses
import numbers

import jax.numpy as jnp
import numpy as np

from udd_jax import values
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import outpainting
from udd_jax.steering import stepwise

# Of `edit`, measured on shapes (benchmarks/RESULTS.md).
GUIDANCE, SHARE, ROUNDS = 2.0, 0.6, 24


def check(share, rounds) -> None:
    """UserError for a share or a number of rounds that makes no sense."""
    values.whole("rounds", rounds, 1)
    number = isinstance(share, numbers.Real) and not isinstance(share, bool)
    if not number or not 0 < share <= 1:
        raise UserError(f"share = {share!r}, expected a number in (0, 1]")


def edit(pipe, images, captions, share, rounds, num, seed, batch_size, trace=0, **settings):
    """The samples of `Pipeline.edit`."""
    check(share, rounds), values.whole("trace", trace, 0)
    num = values.whole("num", num, 1)
    given = {"image": images, "text": captions}
    given = {name: values.ids(pipe, name, rows) for name, rows in given.items()}
    count = values.count(None, {n: r for n, r in given.items() if len(r) != 1} or given)
    given = {n: np.repeat(r, count * num // len(r), axis=0) for n, r in given.items()}
    settings = stepwise.repeated(pipe, num, settings)
    given, coarse = pipe.vocab.parts(given), pipe.vocab.coarse
    levels = ["image"] if coarse is None else [coarse.name, "image"]
    keys = np.random.default_rng(values.seed(seed))  # of the rounds
    # Each sample has its own draws, so that it does not depend on how many others there are.
    draws = [np.random.default_rng((seed, number)) for number in range(count * num)]
    slices = [pipe.vocab.slices[pipe.vocab.index(name)] for name in levels]
    where = np.concatenate([np.arange(part.start, part.stop) for part in slices])
    absent = [m.name not in given for m in pipe.vocab.modalities]
    absent = np.tile(np.array(absent), (count * num, 1))
    if pipe.guidable:
        settings = {"guidance": GUIDANCE, **settings}
    drawn = max(1, round(share * len(where)))
    calls, states, kept = 0, [], {round((k + 1) * rounds / trace) - 1 for k in range(trace)}
    for number in range(rounds):
        free = np.zeros((count * num, pipe.vocab.length), bool)
        free[:, where] = np.stack([draw.permutation(len(where)) for draw in draws]) < drawn
        masks, options = tasks.Masks(free, absent), {"batch_size": batch_size, **settings}
        key = int(keys.integers(2**31))
        result = pipe.generate("infill", given=given, masks=masks, seed=key, **options)
        calls = calls + result.calls
        made = pipe.vocab.split(jnp.asarray(result.tokens))
        given |= {name: np.asarray(made[name]) for name in levels}
        states += [result.tokens] if number in kept else []
    states = np.stack(states) if states else result.states
    return dataclasses.replace(result, calls=calls, states=states)


def require_no_trace(what: str, settings: dict) -> None:
    """UserError for `trace` in a call whose pictures are drawn by windows."""
    if settings.get("trace"):
        raise UserError(
            f"trace = {settings['trace']!r}: {what} returns pictures alone, leave it out"
        )


def outpaint(pipe, images, captions, extend, num, seed, **settings) -> np.ndarray:
    """The images of `Pipeline.outpaint`."""
    tokenizer = pipe.tokenizers["image"]
    height, width = tokenizer.shape[:2]
    extend = outpainting.sides(extend, (height, width))
    num, seed = values.whole("num", num, 1), values.seed(seed)
    given = {"images": values.plain(pipe, "image", images)}
    if captions is not None:
        given["captions"] = values.plain(pipe, "text", captions)
    given = values.alike("outpaint", given)
    images = np.repeat(given["images"], num, axis=0)
    if captions is not None:
        captions = [caption for caption in given["captions"] for _ in range(num)]
    require_no_trace("outpaint", settings)
    settings = stepwise.repeated(pipe, num, settings)

    def infill(windows, mask, number):
        options = {"seed": values.later_seed(seed, number), **settings}
        return pipe.infill(windows, mask, captions, **options).images

    cell = height // tokenizer.grid[0]
    return outpainting.outpaint(infill, images, extend, cell)
