"""Positions in pieces: what is made of [B, n, K] on the way is held for one of them only."""

import jax
import jax.numpy as jnp
from jax import lax

PIECES = 4  # parts of the positions


def in_pieces(function, *arrays):
    """`function` of arrays [B, n, ...] in PIECES parts of the n positions, one after the other.

    What it makes of [B, n, K] on the way is held for one part only. It must take every position on
    its own; its results, [B, n, ...] each, are those of one call. Few positions are taken at once.
    """
    n = arrays[0].shape[1]
    if n < 8 * PIECES:
        return function(*arrays)
    size = -(-n // PIECES)
    starts = jnp.minimum(jnp.arange(PIECES) * size, n - size)  # the last part may overlap

    def part(i):
        def cut(a):
            return lax.dynamic_slice_in_dim(a, starts[i], size, axis=1)

        return function(*jax.tree.map(cut, arrays))

    def put(i, whole):
        return jax.tree.map(
            lambda w, p: lax.dynamic_update_slice_in_dim(w, p, starts[i], axis=1), whole, part(i)
        )

    shapes = jax.eval_shape(part, 0)
    empty = jax.tree.map(lambda y: jnp.zeros((y.shape[0], n, *y.shape[2:]), y.dtype), shapes)
    return lax.fori_loop(0, PIECES, put, empty)
