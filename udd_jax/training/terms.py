"""Loss terms that are added to the objective: small functions in a table.

A term gets the results of one pass of the network, and may call the network again:

    def repulsion(denoise_fn, outcome, key):
        return outcome.nll.sum(axis=1), {"repulsion": ...}

    train_diffusion.train(..., terms={"repulsion": (0.1, repulsion)})

It returns its value and a dict of scalars to log. A value float[B, L], in nats a position, is
treated like the KL: weighted by the kind of token, divided by p(t) and by B L. The mean of a value
float[B] over the batch is added. A term with weight 0 is not called, so the loss is bit for bit the
loss without it.

A `Learned` term has parameters of its own, which are trained with the network. They lie next to
those of the network, in the entry OWN of the trainer's parameters, and never enter the file of
weights; `train_diffusion.train` writes them to a file of their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from udd_jax.diffusion import tasks
from udd_jax.diffusion.denoiser import DenoiseFn


class Outcome(NamedTuple):
    """A noised batch and the network's output for it."""

    x0: jax.Array  # int32[B, L]
    xt: jax.Array  # int32[B, L]
    t: jax.Array  # int32[B, M], the input of the network
    masks: tasks.Masks
    logits: tuple[jax.Array, ...]  # float[B, length_m, K_m] a modality
    kl: jax.Array  # float[B, L], the objective, nats; 0 where a position is not free
    nll: jax.Array  # float[B, L], -log p(x_0 | x_t), nats; 0 where a position is not free


Term = Callable[[DenoiseFn, Outcome, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]
OWN = "terms"  # the name of what learned terms learn; also that of its file


class Learned(NamedTuple):
    """A term with parameters: create(key) -> own, and term(own, denoise_fn, outcome, key)."""

    create: Callable[[jax.Array], Any]
    term: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]


def learned(terms: dict) -> dict[str, Learned]:
    """{name: term} of the learned ones of {name: (weight, term)}, without weights of 0."""
    return {n: term for n, (weight, term) in terms.items() if weight and isinstance(term, Learned)}


def own(terms: dict, key: jax.Array) -> dict:
    """{name: parameters} of the `learned` ones of {name: (weight, term)}."""
    keys = enumerate(learned(terms).items())
    return {name: term.create(jax.random.fold_in(key, n)) for n, (name, term) in keys}


def split(params: dict) -> tuple[dict, dict]:
    """The trainer's parameters -> (those of the network, those of the terms)."""
    if not isinstance(params, dict) or OWN not in params:
        return params, {}
    return {name: tree for name, tree in params.items() if name != OWN}, params[OWN]


def auxiliary(denoise_fn: DenoiseFn, outcome: Outcome, key: jax.Array):
    """-log p(x_0 | x_t) at all free positions, masked or visible (D3PM, arXiv 2107.03006)."""
    return outcome.nll, {}
