"""The bound against its definition: the sum over the steps of a chain, by enumeration.

Two networks have a known bound. `told` divides a number of nats, another one for each step, evenly
among the masks in its input, so that a term is this number for any noise. `TABLE` holds random
logits for every sequence and every pair of times, so that each input token and each time changes
the result.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import dense, finite
from udd_jax.diffusion import objective, schedules, tasks, transition, vocab

# ---- Which steps an estimate is made of ---------------------------------------------------------

LONG = vocab.Vocab((vocab.Modality("text", 128, 2),))
T = 4
ABSORBING = transition.make_kernel(LONG, schedules.absorbing(T))
NATS = 10.0 ** np.arange(T)  # of t = 1, 2, ...: the digits of a sum tell its terms


def told(chain):
    """A network for which the term of the step that leads to t is NATS[t - 1], whatever the noise.

    chain: the times T > ... > 0. The truth is class 0.
    """
    share = np.ones(T + 1)  # 1 - gamma_s / gamma_t, of `absorbing`
    for t, s in itertools.pairwise(chain):
        share[t] = 1 - s / t

    def denoise_fn(xt, t, free):
        each = jnp.asarray(NATS)[t[:, 0] - 1] / jnp.asarray(share)[t[:, 0]]
        nats = each / (xt == LONG.mask_id).sum(-1)
        log_p = jnp.stack([-nats, jnp.log(-jnp.expm1(-nats))], axis=-1)
        return (jnp.broadcast_to(log_p[:, None], (len(xt), LONG.length, 2)),)

    return denoise_fn


@pytest.mark.parametrize("times, calls", [(1, 4), (2, 4), (4, 4), (2, 2), (3, 1)])
def test_an_estimate_is_one_step_of_each_stratum_and_exact_with_a_stratum_a_step(times, calls):
    count, chain = 600, schedules.chain_times(T, calls)
    bound = finite.quick(objective.bound, static_argnums=(1, 6, 7))
    ours = bound(
        ABSORBING,
        told(chain),
        jax.random.split(jax.random.key(0), count),
        jnp.zeros((count, LONG.length), jnp.int32),
        jnp.ones((count, LONG.length), bool),
        jnp.zeros((count, 1), bool),
        times,
        0 if calls == T else calls,
    )
    drawn = np.asarray(ours)[:, 0] * times / calls  # the sum of as many steps as there are strata
    seen = np.array([[int(d) for d in f"{round(x):04}"[::-1]] for x in drawn])  # [count, t - 1]
    np.testing.assert_allclose(drawn, seen @ NATS, rtol=2e-5)
    steps = np.sort(chain)[1:] - 1
    assert (seen.sum(1) == times).all() and (np.delete(seen, steps, axis=1) == 0).all()
    # A step is drawn times / calls times on average, and in no estimate more than once more.
    mean = times / calls
    np.testing.assert_allclose(seen[:, steps].mean(0), mean, atol=4 * np.sqrt(0.25 / count))
    assert (seen[:, steps] <= np.ceil(mean)).all() and (seen[:, steps] >= np.floor(mean)).all()
    if (times, calls) == (2, 4):  # each stratum draws on its own: all four pairs are there
        assert len(np.unique(seen, axis=0)) == 4
    if times == calls:
        np.testing.assert_allclose(ours[:, 0], NATS[steps].sum(), rtol=2e-5)


# ---- Given and absent modalities ----------------------------------------------------------------

PAIR = vocab.image_text((1, 2), image_classes=2, text_classes=3, text_length=1)
LENGTH = 5  # T
PART = np.arange(LENGTH + 1) / LENGTH
SCHEDULES = [  # something is left of the token at time T, so that the prior's term is not 0
    schedules.Schedule(1 - 0.9 * PART, 0.6 * PART, 0.3 * PART),
    schedules.Schedule(1 - 0.8 * PART**2, 0.5 * PART**2, 0.3 * PART**2),
]
STATES = np.array([[a, b, c] for a in (0, 1, 5) for b in (0, 1, 5) for c in (2, 3, 4, 5)])
RNG = np.random.default_rng(0)
TABLE = [
    1.5 * RNG.normal(size=(3, 3, 4, LENGTH + 1, LENGTH + 1, m.length, m.classes))
    for m in PAIR.modalities
]
TRUTH = np.array([1, 0, 3])


def lookup(xt, t, free):
    """The network that is TABLE."""
    a, b, c = (PAIR.local(m, xt[:, i]) for i, m in enumerate((0, 0, 1)))
    return tuple(jnp.asarray(y, jnp.float32)[a, b, c, t[:, 0], t[:, 1]] for y in TABLE)


def enumerated(free, absent, chain):
    """The bound of a chain, nats, float64[M]: all x_t, dense matrices, and Bayes' rule."""
    prior = np.stack([dense.cumulative(PAIR, SCHEDULES, LENGTH)[:, x] for x in TRUTH])
    for position, m in enumerate(PAIR.modality_of):  # p(x_T) from q(x_T | x_0)
        offset, classes = PAIR.offsets[m], PAIR.modalities[m].classes
        block = slice(offset, offset + classes)
        prior[position, block] = prior[position, block].sum() / classes
    given = np.eye(PAIR.size)[TRUTH]
    total = np.zeros(2)
    for position in np.flatnonzero(free):
        q = dense.cumulative(PAIR, SCHEDULES, LENGTH)[:, TRUTH[position]]
        q, p = q[q > 0], prior[position][q > 0]
        total[PAIR.modality_of[position]] += (q * np.log(q / p)).sum()
    for t, s in itertools.pairwise(chain):
        noise = dense.cumulative(PAIR, SCHEDULES, t)
        bayes = dense.posterior(PAIR, SCHEDULES, s, t)  # [k, j, i]
        law = np.where(free[:, None], noise[:, TRUTH].T, given)
        law = np.where(absent[PAIR.modality_of][:, None], prior, law)
        has_free = [free[where].any() for where in PAIR.slices]
        fed = np.where(absent, LENGTH, np.where(has_free, t, 0))
        for xt in STATES:
            chance = np.prod(law[np.arange(3), xt])
            place = tuple(min(x, 2) for x in xt[:2]), min(xt[2] - 2, 3)
            for position in np.flatnonzero(free) if chance > 0 else ():
                m = PAIR.modality_of[position]
                y = TABLE[m][(*place[0], place[1], *fed)][position - PAIR.starts[m]]
                p0 = np.exp(y) / np.exp(y).sum()
                ids = PAIR.offsets[m] + np.arange(len(p0))
                q = bayes[:, xt[position], TRUTH[position]]
                p = bayes[:, xt[position]][:, ids] @ p0
                total[m] += chance * (q[q > 0] * np.log(q[q > 0] / p[q > 0])).sum()
    return total


@pytest.mark.parametrize("times, calls", [(2, 0), (3, 2)])
def test_the_bound_of_every_task_is_the_enumerated_expectation(times, calls):
    names, count = ("pair", "t2i", "i2t", "image", "text"), 6000
    kernel = transition.make_kernel(PAIR, SCHEDULES)
    rows = [tasks.masks(PAIR, name, 1) for name in names]
    free, absent = (np.concatenate(part) for part in zip(*rows, strict=True))
    many = [np.repeat(part, count, axis=0) for part in (free, absent)]
    keys = jax.random.split(jax.random.key(1), len(many[0]))
    x0 = np.broadcast_to(TRUTH, many[0].shape).astype(np.int32)
    bound = finite.quick(objective.bound, static_argnums=(1, 6, 7))
    ours = np.asarray(bound(kernel, lookup, keys, x0, *many, times, calls))

    chain = schedules.chain_times(LENGTH, calls or LENGTH)
    for i, row in enumerate(ours.reshape(len(names), count, 2)):
        exact, sigma = enumerated(free[i], absent[i], chain), row.std(0) / np.sqrt(count)
        assert (np.abs(row.mean(0) - exact) <= 4 * sigma).all(), (names[i], row.mean(0), exact)
        assert (sigma <= 0.02 * exact).all()  # so that an error of a few percent shows
        assert ((row != 0).any(0) == [free[i, where].any() for where in PAIR.slices]).all()

    # What the caller holds at an absent modality means nothing.
    others = np.where(many[1][:, PAIR.modality_of], [0, 1, 4], x0).astype(np.int32)
    np.testing.assert_array_equal(ours, bound(kernel, lookup, keys, others, *many, times, calls))
