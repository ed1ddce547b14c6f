"""The contract between a network and everything else: a network is a function.

    denoise_fn(xt int32[B, L], t int32[B, M], free bool[B, L]) -> logits over x_0,
        one float[B, length_m, K_m] a modality

`t` has one time for each of the M modalities: 0 for a given one and T for an absent one. The
objective, the bound and the samplers know nothing else about networks. Tests pass a table instead.

A network that can save work in a chain has one more method:

    denoise_fn.prepare(x, t, free) -> denoise_fn

It is called once, with the first inputs of the chain. It precomputes what stays constant during
the chain, such as the keys and values of a fully given modality. The result is a pytree, so that
several can be stacked and scanned over.
"""

from collections.abc import Callable

import jax

DenoiseFn = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]


def prepare(denoise_fn: DenoiseFn, x: jax.Array, t: jax.Array, free: jax.Array) -> DenoiseFn:
    """Returns `denoise_fn` as a pytree, prepared for a chain that begins with these inputs."""
    own = getattr(denoise_fn, "prepare", None)
    return own(x, t, free) if own else jax.tree_util.Partial(denoise_fn)
