"""Temperature and truncation: they sharpen p(x_0 | x_t) before tokens are drawn.

Both truncations keep the most likely classes: top-r until their mass reaches r (the class that
reaches it is kept), top-k the first k. Both are one search for the last kept class, without a sort.
"""

import jax
import jax.numpy as jnp
from jax import lax

from udd_jax.diffusion import random_words


def adjust(log_p: jax.Array, settings) -> jax.Array:
    """Temperature, then top-k, then top-r, each renormalised. float[..., K] -> float[..., K]."""
    if settings.on("temperature"):
        log_p = jax.nn.log_softmax(log_p / settings.temperature, axis=-1)
    if settings.on("top_k"):
        log_p = truncate(log_p, jnp.zeros_like(log_p), jnp.minimum(settings.top_k, log_p.shape[-1]))
    if settings.on("top_r"):
        log_p = truncate(log_p, log_p, settings.top_r)
    return log_p


def truncate(log_p: jax.Array, log_weight: jax.Array, target: float) -> jax.Array:
    """Keeps the most likely classes until their weight reaches `target`, and renormalises.

    The class that reaches it is kept; equally likely classes are kept in the order of their ids.
    The weight is p itself for top-r and 1 for top-k. log_p, log_weight: float[..., K]. Returns
    float[..., K]. Instead of a sort, bisection finds the last kept class: first its log p (31
    rounds over the ordered bits of a float32), then its id if several classes are equal.
    """
    bits = lax.bitcast_convert_type(0 - jnp.minimum(log_p, 0).astype(jnp.float32), jnp.int32)
    weight = jnp.exp(log_weight)
    index = lax.broadcasted_iota(jnp.int32, log_p.shape, log_p.ndim - 1)

    def reached(kept):
        return jnp.where(kept, weight, 0).sum(-1) >= target

    shape = log_p.shape[:-1]
    infinity = jnp.full(shape, 0x7F800000, jnp.int32)
    level = random_words.bisect(lambda v: reached(bits <= v[..., None]), infinity, 31)[..., None]
    tie = bits == level
    end = jnp.full(shape, log_p.shape[-1] - 1, jnp.int32)

    def among_equals():
        def so_far(i):
            return reached((bits < level) | (tie & (index <= i[..., None])))

        return random_words.bisect(so_far, end, log_p.shape[-1].bit_length())

    last = lax.cond((tie.sum(-1) > 1).any(), among_equals, lambda: end)[..., None]
    kept = (bits < level) | (tie & (index <= last))
    return jax.nn.log_softmax(jnp.where(kept, log_p, -jnp.inf), axis=-1)
