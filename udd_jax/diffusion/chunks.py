"""Work on a few positions at a time, so that a large [B, n, K] exists for one chunk only."""

import jax
import jax.numpy as jnp
from jax import lax

PIECES = 4  # chunks of the positions


def in_pieces(function, *arrays):
    """Applies `function` to arrays [B, n, ...] in PIECES chunks of the n positions, one by one.

    Its intermediate arrays [B, n, K] exist for one chunk only. `function` must treat each position
    on its own. The results, [B, n, ...] each, equal those of one call. Fewer than 8 PIECES
    positions are one call.
    """
    n = arrays[0].shape[1]
    if n < 8 * PIECES:
        return function(*arrays)
    size = -(-n // PIECES)
    starts = jnp.minimum(jnp.arange(PIECES) * size, n - size)  # the last chunk may overlap

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
