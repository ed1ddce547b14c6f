"""The reverse process: one loop for all samplers. Read this third.

    x ~ p(x_T) on the free positions, given tokens elsewhere
    repeat:  log p = sum of denoise_fn(x, t, free) over branches, plus scorers, renormalised
             a sampler makes x at an earlier time: temperature and truncation, then its rule
             the given tokens are restored

`free: bool[B, L]` marks the positions to generate. `absent: bool[B, M]` marks the modalities that
are missing: they hold a draw from the prior, at time T. Both are arrays, so that all tasks share
one compiled function and a batch may mix them. The draws of a sample depend only on its own key
and inputs, not on the batch or the mesh.

The variable parts are functions: samplers in `samplers.SAMPLERS`, guides and scorers in `guidance`.

The published samplers differ: they apply a one-step posterior across a stride, and each call of
the sampler wraps the network in one more truncation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from udd_jax.diffusion import random_words, schedules, tasks, transition
from udd_jax.diffusion.denoiser import DenoiseFn
from udd_jax.diffusion.transition import Kernel
from udd_jax.sampling import guidance, rules, samplers
from udd_jax.sampling.settings import Settings


class Sample(NamedTuple):
    """The result of `run`."""

    tokens: jax.Array  # int32[B, L]
    calls: jax.Array  # int32[B], steps of the loop until the sample was finished
    states: jax.Array  # int32[trace, B, L], the tokens after 1/trace, 2/trace, ... of the chain


def sample(
    kernel: Kernel,
    denoise_fn: DenoiseFn,
    key: jax.Array,
    x: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    settings: Settings,
    negative: jax.Array | None = None,
) -> jax.Array:
    """Generates the free positions of x. Returns int32[B, L]. Arguments and errors as in `run`."""
    return run(kernel, denoise_fn, key, x, free, absent, settings, negative).tokens


def run(
    kernel: Kernel,
    denoise_fn: DenoiseFn,
    key: jax.Array,
    x: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    settings: Settings,
    negative: jax.Array | None = None,
    trace: int = 0,
    guide: guidance.Guide | None = None,
    scorers: tuple[guidance.Scorer, ...] = (),
) -> Sample:
    """Draws from the reverse process. The caller should jit it.

    Args:
        kernel, denoise_fn: the noise and the network.
        key: one key (sample b uses fold_in(key, b)) or one key for each sample, [B].
        x: int32[B, L], global ids: tokens at the given positions, any values elsewhere. The result
            has the given tokens bit for bit. A position that is not free and holds the mask stays
            masked (such as positions beyond a known length).
        free: bool[B, L], the positions to generate.
        absent: bool[B, M], the absent modalities. Their tokens in x are ignored.
        settings: a `Settings`.
        negative: int32[B, L], a negative prompt for guidance, used instead of an absent condition.
            A modality without one holds the mask id everywhere.
        trace: the number of intermediate states to return.
        guide: replaces classifier-free guidance (`guidance.Guide`).
        scorers: functions whose values are added to log p (`guidance.Scorer`).

    Raises:
        ValueError: the settings do not fit the kernel (`Settings.check`).
    """
    settings.check(kernel)
    sampler = samplers.SAMPLERS[settings.sampler]
    vocab, steps = kernel.vocab, settings.steps if settings.on("steps") else kernel.steps
    by_time = sampler.kind == "time"
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    absent_at = absent[:, vocab.modality_of]
    free = free & ~absent_at
    prior = transition.prior_sample(kernel, _fold(key, 0), x.shape[0])
    start = prior if by_time else jnp.where(absent_at, prior, vocab.mask_id)
    start = jnp.where(free | absent_at, start, x)
    scene = guidance.Scene(kernel, settings, tasks.Masks(free, absent), prior, negative)
    predict = guidance.predictor(denoise_fn, scene, start, guide, scorers)
    total = free.sum(-1)

    def masked(state):
        return free & (state.x == vocab.mask_id)

    def going(state):  # the samples that are not finished, bool[B]
        return total > 0 if by_time else masked(state).any(-1)

    def body(state):
        words = random_words.words(_fold(key, 1 + state.step), (vocab.length, 4 if by_time else 2))
        if by_time:
            t, s = (schedules.chain_time(kernel.steps, steps, state.step + k) for k in (0, 1))
            new = _by_time(kernel, settings, sampler, predict, words, state, free, s, t)
            done = jnp.full(total.shape, (state.step + 1) / steps)
        else:
            new = _reveal(kernel, settings, sampler, predict, words, state, free, steps)
            done = 1 - masked(new).sum(-1) / jnp.maximum(total, 1)
        new = new._replace(
            x=jnp.where(free, new.x, start),
            step=state.step + 1,
            calls=state.calls + going(state),
        )
        if trace:
            late = jnp.arange(1, trace + 1)[:, None] >= done[None] * trace - 1e-4
            new = new._replace(states=jnp.where(late[..., None], new.x[None], state.states))
        return new

    def more(state):
        return (state.step < steps) & going(state).any() if by_time else going(state).any()

    first = _State(
        x=start,
        step=jnp.int32(0),
        calls=jnp.zeros_like(total),
        psi=jnp.zeros(x.shape),
        clock=jnp.full(total.shape, kernel.steps, jnp.float32),
        states=jnp.broadcast_to(start, (trace, *start.shape)),
    )
    last = lax.while_loop(more, body, first)
    return Sample(last.x, last.calls, last.states)


class _State(NamedTuple):
    """The carry of the loop."""

    x: jax.Array  # int32[B, L]
    step: jax.Array  # int32, network calls so far
    calls: jax.Array  # int32[B]
    psi: jax.Array  # float[B, L], for remdm_confidence: the probability of each token when drawn
    clock: jax.Array  # float[B], for first_hitting: its continuous time
    states: jax.Array  # int32[trace, B, L]


def _fold(key, data):
    """`fold_in` on the keys of all samples, [B]."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)


# ---- One step -----------------------------------------------------------------------------------


def _by_time(kernel, settings, sampler, predict, words, state, free, s, t):
    """x_t -> x_s, independently at every position. words: uint32[B, L, 4]."""
    vocab = kernel.vocab
    log_ps = predict(state.x, jnp.full(state.calls.shape, t))
    new, psi = [], []
    for m, where in enumerate(vocab.slices):
        move = samplers.Move(
            kernel=kernel,
            settings=settings,
            m=m,
            words=words[:, where],
            log_p=log_ps[m],
            xt=vocab.local(m, state.x[:, where]),
            s=s,
            t=t,
            free=free[:, where],
            psi=state.psi[:, where],
        )
        xs, psi_m = sampler.rule(move)
        new.append(vocab.globalise(m, xs))
        psi.append(psi_m)
    return state._replace(x=jnp.concatenate(new, axis=1), psi=jnp.concatenate(psi, axis=1))


def _reveal(kernel, settings, sampler, predict, words, state, free, steps):
    """Fills some of the masked positions with tokens drawn from p. words: uint32[B, L, 2]."""
    vocab = kernel.vocab
    masked = free & (state.x == vocab.mask_id)
    log_ps = predict(state.x, _masked_time(kernel, free, masked))
    looks = []
    for m, where in enumerate(vocab.slices):
        look = sampler.look(words[:, where, 0], log_ps[m], masked[:, where], settings)
        looks.append(look._replace(token=vocab.globalise(m, look.token)))
    seen = samplers.Reveal(
        kernel=kernel,
        settings=settings,
        words=words[..., 1],
        look=jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *looks),
        masked=masked,
        free=free,
        step=state.step,
        steps=steps,
        clock=state.clock,
    )
    shown, clock = sampler.rule(seen), state.clock
    if sampler.kind == "count":
        shown = _highest(sampler, seen, shown)
    elif isinstance(shown, tuple):
        shown, clock = shown
    return state._replace(x=jnp.where(shown, seen.look.token, state.x), clock=clock)


def _highest(sampler, seen: samplers.Reveal, score):
    """The positions to reveal, bool[B, L]: the sampler's table says how many stay masked."""
    shown, vocab = [], seen.kernel.vocab
    for modality, where in zip(vocab.modalities, vocab.slices, strict=True):
        masked, unknown = seen.masked[:, where], seen.free[:, where].sum(-1)
        stay = jnp.asarray(sampler.counts(seen.steps, modality.length))[seen.step, unknown]
        if sampler.one_a_call:
            stay = jnp.maximum(1, jnp.minimum(masked.sum(-1) - 1, stay))
            stay = jnp.where(seen.step + 1 < seen.steps, stay, 0)
        shown.append(rules.by_count(score[:, where], masked, stay))
    return jnp.concatenate(shown, axis=1)


def _masked_time(kernel, free, masked):
    """The time that fits the number of masked positions, int32[B].

    It is the first t >= 1 at which the forward process masks as many free positions on average.
    """
    expected = sum(
        free[:, where].sum(-1)[:, None] * gamma[None]
        for gamma, where in zip(kernel.gamma_bar, kernel.vocab.slices, strict=True)
    )
    before = (expected < masked.sum(-1)[:, None] - 1e-3).sum(-1)
    return jnp.clip(before, 1, kernel.steps)
