"""Guidance: a weighted sum of the network's log p for several inputs, plus scorers, renormalised.

    log p = sum over branches b of w_b(t) log p(x_0 | branch b)  +  sum of scorers

A *branch* is an input of the network with a weight for each sample and modality. The weights of a
modality add up to 1. A *guide* makes the branches of a step. Classifier-free guidance is a guide:

    log p = log p_u + s(t) (log p_c - log p_u),  s = 1 + w

The conditional branch sees everything and has weight s. Each modality also has an unconditional
branch: it sees that modality only, the others are absent (or replaced by a negative prompt), and
its weight is 1 - s. A task with one condition has one such term; a pair has two, one for each of
its modalities.

A *scorer* is any function of (x, t, log_p) that returns a term to add to log p.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion import denoiser, tasks
from udd_jax.diffusion.transition import Kernel

FLOOR = -1e4  # lower log-probabilities are raised to it, so that no sum has inf - inf


class Scene(NamedTuple):
    """The constants of a chain."""

    kernel: Kernel
    settings: Any  # a `Settings`
    masks: tasks.Masks  # free bool[B, L], absent bool[B, M]
    prior: jax.Array  # int32[B, L], a draw from the prior, the tokens of absent modalities
    negative: jax.Array | None  # int32[B, L], see `reverse.run`


class Branch(NamedTuple):
    """One input of the network, and the weight of its log p."""

    x: jax.Array  # int32[B, L]
    t: jax.Array  # int32[B, M]
    free: jax.Array  # bool[B, L]
    weight: jax.Array  # float[B, M]; a branch whose weights are all 0 is not evaluated


# (scene, x int32[B, L], t int32[B]) -> branches, the same number at every step.
Guide = Callable[[Scene, jax.Array, jax.Array], list[Branch]]
# (x int32[B, L], t int32[B], log_p: float[B, n, K] a modality) -> the same shapes, or None.
Scorer = Callable[[jax.Array, jax.Array, tuple[jax.Array, ...]], tuple[jax.Array | None, ...]]


def strength(settings, t: jax.Array, steps: int) -> jax.Array:
    """s(t) = 1 + w(t) for t, int32[...]: constant, w (1 - t/T), or w inside an interval of t/T."""
    w, schedule = settings.guidance - 1, settings.guidance_schedule
    if schedule == "constant":
        return jnp.full(t.shape, 1 + w)
    if schedule == "interval":
        schedule = settings.guidance_interval
    return 1 + w * share(schedule, t / steps)


def share(schedule, part):
    """The factor of a weight at the time `part` = t/T, of the same shape: "linear", 1 - t/T, or an
    interval (low, high) of t/T in which it is 1, and 0 elsewhere."""
    if schedule == "linear":
        return 1 - part
    low, high = schedule
    return (part >= low) & (part <= high)


def instead(scene: Scene) -> tuple[jax.Array, jax.Array]:
    """What stands in place of a condition: (the modalities of the negative prompt bool[B, M],
    tokens int32[B, L] of it, and of the prior elsewhere)."""
    vocab, negative = scene.kernel.vocab, scene.negative
    if negative is None:
        return jnp.zeros_like(scene.masks.absent), scene.prior
    known = vocab.any_of(negative != vocab.mask_id)
    return known, jnp.where(known[:, vocab.modality_of], negative, scene.prior)


def classifier_free(scene: Scene, x: jax.Array, t: jax.Array) -> list[Branch]:
    """Classifier-free guidance (arXiv 2207.12598) of each modality by all the others.

    x: int32[B, L]; t: int32[B]. Returns 1 + M branches: the conditional one, then one a modality.
    """
    vocab, steps = scene.kernel.vocab, scene.kernel.steps
    now = tasks.times(vocab, scene.masks, t, steps)
    return by_the_others(scene, x, now, strength(scene.settings, t, steps)[:, None])


def by_the_others(scene: Scene, x: jax.Array, now: jax.Array, s: jax.Array) -> list[Branch]:
    """`classifier_free` at the times now, int32[B, M], with strengths s, float[B or 1, M or 1]."""
    kernel, (free, absent) = scene.kernel, scene.masks
    vocab, modalities = kernel.vocab, np.arange(len(kernel.vocab.modalities))
    at = vocab.modality_of
    known, instead_of_it = instead(scene)
    has_free = vocab.any_of(free)
    others = [((~absent | known) & (modalities != m)[None]).any(-1) for m in modalities]
    guided = has_free & jnp.stack(others, axis=1)  # [B, M]
    s = jnp.where(guided, s, 1)
    branches = [Branch(x, now, free, s)]
    for m in modalities:
        own, here = (at == m)[None], (modalities == m)[None]
        then = jnp.where(here, now, jnp.where(known, 0, kernel.steps))
        weight = jnp.where(here, 1 - s, 0)
        branches.append(Branch(jnp.where(own, x, instead_of_it), then, free & own, weight))
    return branches


def predictor(denoise_fn, scene: Scene, start, guide: Guide | None = None, scorers=()):
    """Returns the function (x, t int32[B]) -> guided log p(x_0 | x_t), float[B, n, K] a modality.

    The results are normalised. start: int32[B, L], x at the beginning of the chain. If `guide` is
    None, the settings decide: `classifier_free` if they ask for guidance, otherwise the network
    without guidance.
    """
    if guide is None and scene.settings.on("guidance"):
        guide = classifier_free
    if guide is None:
        answer = _alone(denoise_fn, scene, start)
    else:
        answer = _sum_of_branches(denoise_fn, scene, start, guide)

    def predict(x, t):
        log_p = answer(x, t)
        for scorer in scorers:
            added = scorer(x, t, _as_known(scene, x, log_p))
            log_p = tuple(
                y if more is None else jax.nn.log_softmax(y + more, axis=-1)
                for y, more in zip(log_p, added, strict=True)
            )
        return log_p

    return predict


def _as_known(scene, x, log_p):
    """Makes log p certain at given tokens and, if the noise only masks, at all visible ones. The
    network was not trained to predict these."""
    kernel, vocab, (free, absent) = scene.kernel, scene.kernel.vocab, scene.masks
    found = []
    for m, (where, y) in enumerate(zip(vocab.slices, log_p, strict=True)):
        tokens = x[:, where]
        known = (tokens != vocab.mask_id) & ~absent[:, m, None]
        if not kernel.masks_only[m]:
            known &= ~free[:, where]
        right = jax.nn.one_hot(vocab.local(m, tokens), y.shape[-1], dtype=bool)
        found.append(jnp.where(known[..., None], jnp.where(right, 0.0, FLOOR).astype(y.dtype), y))
    return tuple(found)


def _alone(denoise_fn, scene, start):
    kernel, vocab, free = scene.kernel, scene.kernel.vocab, scene.masks.free
    first = tasks.times(vocab, scene.masks, jnp.full(len(start), kernel.steps), kernel.steps)
    prepared = denoiser.prepare(denoise_fn, start, first, free)

    def answer(x, t):
        logits = prepared(x, tasks.times(vocab, scene.masks, t, kernel.steps), free)
        return tuple(jax.nn.log_softmax(_wide(y), axis=-1) for y in logits)

    return answer


def _sum_of_branches(denoise_fn, scene, start, guide):
    first = guide(scene, start, jnp.full(len(start), scene.kernel.steps))
    prepared = prepare(denoise_fn, first)
    return lambda x, t: total(scene.kernel, prepared, guide(scene, x, t))


def prepare(denoise_fn, branches: list[Branch]):
    """`denoiser.prepare` for each branch, stacked."""
    return _stacked([denoiser.prepare(denoise_fn, *branch[:3]) for branch in branches])


def total(kernel: Kernel, prepared, branches: list[Branch]) -> tuple[jax.Array, ...]:
    """The normalised sum of the branches' log p, float[B, n, K] a modality.

    prepared: of `prepare`, for as many branches.
    """

    def add(sums, prepared_branch):
        denoise, (*inputs, weight) = prepared_branch

        def term(sums):
            logs = [jax.nn.log_softmax(_wide(y), -1) for y in denoise(*inputs)]
            return tuple(
                so_far + weight[:, m, None, None] * jnp.maximum(log_p, FLOOR)
                for m, (so_far, log_p) in enumerate(zip(sums, logs, strict=True))
            )

        return lax.cond((weight != 0).any(), term, lambda sums: sums, sums), None

    branches = _stacked(branches)
    batch, modalities = branches.x.shape[1], kernel.vocab.modalities
    zeros = tuple(
        jnp.zeros((batch, m.length, m.classes), kernel.alpha_bar.dtype) for m in modalities
    )
    sums, _ = lax.scan(add, zeros, (prepared, branches))
    return tuple(jax.nn.log_softmax(y, axis=-1) for y in sums)


def _stacked(trees: list):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _wide(y: jax.Array) -> jax.Array:
    return y.astype(jnp.promote_types(jnp.float32, y.dtype))
