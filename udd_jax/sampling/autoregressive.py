"""Sampling of the autoregressive baseline: one token a call, with a cache of keys and values.

    log p = log p(x_i | given, x before i), guided; temperature and truncation; x_i ~ p

The network is a predictor with two methods: `start(x, t, free) -> cache` and
`next(cache, x, at int32[B]) -> (logits [B, 1, K_m] a modality, cache)`. Guidance is that of
`guidance.classifier_free`, with a cache for each branch. The clock of its schedule is the share of
free positions that are not filled yet.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion import random_words, tasks, transition
from udd_jax.diffusion.transition import Kernel
from udd_jax.errors import UserError
from udd_jax.sampling import guidance, reverse, truncation


def run(
    kernel: Kernel,
    predictor,
    sequence: np.ndarray,
    keys: jax.Array,
    x: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    settings,
    negative: jax.Array | None = None,
    trace: int = 0,
    guide: guidance.Guide | None = None,
    scorers: tuple[guidance.Scorer, ...] = (),
) -> reverse.Sample:
    """Fills the free positions of x in the order `sequence`, int[L]. The caller should jit it.

    The other arguments are those of `reverse.run`. Of the settings, `guidance`, its schedule,
    `temperature`, `top_r` and `top_k` are read. ValueError for a guide or scorers.
    """
    if guide is not None or scorers:
        raise UserError("guides and scorers do not go with one token after another: expected none")
    vocab, steps = kernel.vocab, kernel.steps
    absent_at = absent[:, vocab.modality_of]
    free = free & ~absent_at
    fold = jax.vmap(jax.random.fold_in, (0, None))
    prior = transition.prior_sample(kernel, fold(keys, 0), len(x))
    start = jnp.where(absent_at, prior, jnp.where(free, vocab.mask_id, x))
    scene = guidance.Scene(kernel, settings, tasks.Masks(free, absent), prior, negative)
    total = free.sum(-1)
    # The free positions first, in the order of generation.
    places = jnp.asarray(sequence)[jnp.argsort(~free[:, sequence], axis=1, stable=True)]
    inputs = _branches(scene, start, jnp.full(total.shape, steps))
    caches = lax.map(lambda branch: predictor.start(*branch[:3]), inputs)
    kinds = range(len(vocab.modalities))

    def body(state):
        x, caches, step, states = state
        at = places[:, step]
        left = steps * (total - step) // jnp.maximum(total, 1)

        def add(total, inputs):
            """Adds the weighted log p of a branch; nothing is computed where none is free."""
            branch, weight, cache = inputs

            def term(total, cache):
                logits, cache = predictor.next(cache, jnp.where(free, x, branch.x), at)
                wide = [y.astype(jnp.promote_types(jnp.float32, y.dtype)) for y in logits]
                logs = [jnp.maximum(jax.nn.log_softmax(y), guidance.FLOOR) for y in wide]
                return [total[m] + weight[:, m, None, None] * logs[m] for m in kinds], cache

            here = jnp.take_along_axis(branch.free, at[:, None], axis=1)
            return lax.cond(here.any(), term, lambda *same: same, total, cache)

        zeros = [
            jnp.zeros((len(x), 1, m.classes), kernel.alpha_bar.dtype) for m in vocab.modalities
        ]
        weights = _branches(scene, start, left).weight
        logs, caches = lax.scan(add, zeros, (inputs, weights, caches))
        words = random_words.words(fold(keys, 1 + step), (1,))
        token = x[:, :1]
        for m in kinds:
            log_p = truncation.adjust(jax.nn.log_softmax(logs[m]), settings)
            drawn = random_words.categorical(words, log_p)
            mine = (jnp.asarray(vocab.modality_of)[at] == m)[:, None]
            token = jnp.where(mine, vocab.globalise(m, drawn), token)
        rows = jnp.arange(len(x))
        new = x.at[rows, at].set(token[:, 0])
        new = jnp.where(free, new, start)
        done = (step + 1) / jnp.maximum(total, 1)
        late = jnp.arange(1, trace + 1)[:, None] >= done[None] * trace - 1e-4
        states = jnp.where(late[..., None], new[None], states)
        return new, caches, step + 1, states

    states = jnp.broadcast_to(start, (trace, *start.shape))
    first = start, caches, jnp.int32(0), states
    tokens, _, _, states = lax.while_loop(lambda state: state[2] < total.max(), body, first)
    return reverse.Sample(tokens, total, states)


def _branches(scene, x, t) -> guidance.Branch:
    """The branches of a step, stacked on a leading axis."""
    kernel, (free, absent) = scene.kernel, scene.masks
    now = tasks.times(kernel.vocab, scene.masks, t, kernel.steps)
    branches = [guidance.Branch(x, now, free, jnp.ones(absent.shape))]
    if scene.settings.on("guidance"):
        branches = guidance.classifier_free(scene, x, t)
    return jax.tree.map(lambda *parts: jnp.stack(parts), *branches)
