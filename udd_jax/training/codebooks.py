"""The codebooks of an image tokenizer in its training: one, or one for each level of a picture.

    begin     the moving averages of fresh codebooks
    found     k-means on the encoder's vectors of each codebook, coarse ones first
    follow    moving averages and restarts after a step

With one codebook all states are single values, and with several they are tuples (`each`, `whole`).
"""

import math

import jax
import jax.numpy as jnp

from udd_jax.tokenizers import codebook, vqgan
from udd_jax.training import finish


def each(model, value) -> tuple:
    """One value for each codebook of `model`."""
    return value if len(model.codebooks) > 1 else (value,)


def whole(model, values):
    """The inverse of `each`."""
    return tuple(values) if len(model.codebooks) > 1 else values[0]


def _key(key, level: int):
    return key if level == 0 else jax.random.fold_in(key, level)


def begin(model, params, batch_size: int):
    """Averages that leave the codebooks unchanged, with all rows equally used."""
    sizes = [batch_size * math.prod(grid) for grid, _ in model.levels]
    books = [vqgan.rows(params, name) for name in model.codebooks]
    return whole(model, [codebook.averages(*pair) for pair in zip(books, sizes, strict=True)])


def found(model, params, images, batch_size: int, key):
    """(parameters, averages) with codebooks that are k-means of vectors of uint8[n, S, S, 3].

    A finer level gets its vectors with the codebooks above it in place.
    """
    averages = []
    for level, name in enumerate(model.codebooks):
        key_pool, key_means = jax.random.split(_key(key, level))
        grid, size = model.levels[level]
        vectors = finish.pool_vectors(model, params, images, key_pool, level)
        rows, distance = codebook.kmeans(key_means, vectors, size)
        averages.append(codebook.averages(rows, batch_size * math.prod(grid)))
        params = vqgan.with_rows(params, rows, distance / model.embed_dim, name)
    return params, whole(model, averages)


def follow(c, model, averages, params, out: vqgan.Output, key, now):
    """(averages, parameters, restarted rows int32[]) after a step with the output `out`.

    c: `config.vq`; now: bool[], whether unused rows are restarted.
    """
    new, total = [], 0
    values = (each(model, v) for v in (averages, out.z, out.codes))
    parts = zip(model.codebooks, *values, strict=True)
    for level, (name, state, z, codes) in enumerate(parts):
        state, rows = codebook.ema_update(state, z, codes, c.decay)
        rows = rows if model.quantiser == "ema" else vqgan.rows(params, name)
        limits = c.restart.threshold, c.restart.factor
        moved = codebook.restart(_key(key, level), state, rows, z, codes, *limits)
        state, rows, restarted = jax.tree.map(
            lambda changed, old: jnp.where(now, changed, old), moved, (state, rows, 0)
        )
        params = params | {name: {"embedding": rows}}
        new.append(state)
        total += restarted
    return whole(model, new), params, total
