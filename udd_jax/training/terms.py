"""Terms that a loss is made of besides the objective: small functions in a table.

A term sees what one pass of the network came to, and may call the network again:

    def repulsion(denoise_fn, outcome, key):
        return outcome.nll.sum(axis=1), {"repulsion": ...}

    train_diffusion.train(..., terms={"repulsion": (0.1, repulsion)})

It returns its value and a dict of scalars to log. A value float[B, L], in nats a position, is
treated like the KL: weighed by kind of token, divided by p(t) and by B L. A value float[B] enters
as its mean over the batch. With weight 0 a term is not called, so that the loss is bit for bit
the one without it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from udd_jax.diffusion import tasks
from udd_jax.diffusion.denoiser import DenoiseFn


class Outcome(NamedTuple):
    """A noised batch and the network's answer to it."""

    x0: jax.Array  # int32[B, L]
    xt: jax.Array  # int32[B, L]
    t: jax.Array  # int32[B, M], as the network was fed them
    masks: tasks.Masks
    logits: tuple[jax.Array, ...]  # float[B, length_m, K_m] a modality
    kl: jax.Array  # float[B, L], the objective; 0 where a position is not free
    nll: jax.Array  # float[B, L], -log p(x_0 | x_t); 0 likewise


Term = Callable[[DenoiseFn, Outcome, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def auxiliary(denoise_fn: DenoiseFn, outcome: Outcome, key: jax.Array):
    """-log p(x_0 | x_t) at all free positions, masked or visible (D3PM, arXiv 2107.03006)."""
    return outcome.nll, {}
