"""Temperature and truncation: p(x_0 | x_t) made sharper before tokens are drawn from it.

Top-r keeps the smallest prefix of classes by p whose mass reaches r, the class that crosses it
included; top-k keeps k. Both are one search for the last class that is kept, without a sort.
"""

import jax
import jax.numpy as jnp
from jax import lax

from udd_jax.diffusion import random_words


def adjust(log_p: jax.Array, settings) -> jax.Array:
    """Temperature, then truncation, each renormalised. float[..., K] -> float[..., K]."""
    if settings.on("temperature"):
        log_p = jax.nn.log_softmax(log_p / settings.temperature, axis=-1)
    if settings.on("top_k"):
        log_p = truncate(log_p, jnp.zeros_like(log_p), jnp.minimum(settings.top_k, log_p.shape[-1]))
    if settings.on("top_r"):
        log_p = truncate(log_p, log_p, settings.top_r)
    return log_p


def truncate(log_p: jax.Array, log_weight: jax.Array, target: float) -> jax.Array:
    """Keeps the smallest prefix of classes by p whose weight reaches `target`, renormalised.

    The class that crosses it is included; of equal classes the first come first. The weight is p
    itself for top-r, 1 for top-k. float[..., K] each. No sort: the last class that is kept is found
    by bisection, first its log p (31 rounds over the ordered bits of a float32), then its index,
    where several are equal.
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
