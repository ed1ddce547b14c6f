"""Scores and rates against enumeration: the finite world knows q(x_t) of every sequence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import dense, finite
from udd_jax.diffusion import concrete_score, schedules, transition

LAYOUT, ITEMS, T = finite.LAYOUT, finite.ITEMS, finite.STEPS
NAMES = ("linear", "mask_and_replace", "absorbing", "uniform", "cosine", "hybrid")
MASK = 6  # the local id of the image's mask
ALL = np.ones((8, LAYOUT.length), bool)


def noised(table, t, rng):
    """x_t of eight items, int[8, L]."""
    at_t = dense.cumulative(LAYOUT, [table] * 2, t)
    return finite.draw(at_t.T[ITEMS[:8]], rng)


def log_q(table, t, x):
    """log q(x_t) of sequences int[..., L], by the sum over all items."""
    at_t = dense.cumulative(LAYOUT, [table] * 2, t)
    with np.errstate(divide="ignore"):
        each = np.log(at_t[x[..., None, :], ITEMS]).sum(-1)
    return np.logaddexp.reduce(each, axis=-1) - np.log(len(ITEMS))


@pytest.mark.parametrize("t", (1, 37, 90))
@pytest.mark.parametrize("name", NAMES)
def test_the_score_is_the_ratio_of_the_enumerated_probabilities_of_neighbours(name, t):
    table = schedules.make(name, T)
    xt = noised(table, t, np.random.default_rng(t))
    p = finite.predict([table] * 2, xt, t, ALL)
    neighbours = np.broadcast_to(xt[:, None, None], (8, 16, LAYOUT.size, 16)).copy()
    place = np.arange(16)
    neighbours[:, place, :, place] = np.arange(LAYOUT.size)
    expected = np.exp(log_q(table, t, neighbours) - log_q(table, t, xt)[:, None, None])
    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, table, jnp.float64)
        for m, where in enumerate(LAYOUT.slices):
            first, classes = LAYOUT.offsets[m], LAYOUT.modalities[m].classes
            log_p = transition.safe_log(jnp.asarray(p[:, where, first : first + classes]))
            local = LAYOUT.local(m, jnp.asarray(xt[:, where], jnp.int32))
            score = concrete_score.concrete_score(kernel, m, log_p, local, jnp.int32(t))
            theirs = expected[:, where][..., [*range(first, first + classes), LAYOUT.mask_id]]
            if table.masks_only:  # a visible token is the truth
                own = np.arange(classes + 1)[None, None] == local[..., None]
                theirs = np.where((local < classes)[..., None], own, theirs)
            np.testing.assert_allclose(score, theirs, rtol=1e-8, atol=1e-8)


def test_the_score_at_a_mask_of_a_schedule_that_only_masks_is_p_times_the_odds():
    table, p = schedules.cosine(T), np.random.default_rng(0).dirichlet(np.ones(6), 3)
    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, table, jnp.float64)
        masked = jnp.full(3, MASK, jnp.int32)
        score = concrete_score.concrete_score(kernel, 0, jnp.log(p), masked, jnp.int32(30))
    odds = (1 - table.gamma_bar[30]) / table.gamma_bar[30]
    np.testing.assert_allclose(score, np.c_[odds * p, np.ones(3)], rtol=1e-12)


@pytest.mark.parametrize(
    "name, xt",
    [(name, xt) for name in NAMES for xt in (MASK, 2) if (name, xt) != ("uniform", MASK)],
)
def test_a_leap_is_the_step_of_the_chain_up_to_the_square_of_its_length(name, xt):
    table = schedules.make(name, 4096)
    p = np.random.default_rng(0).dirichlet(np.ones(6))
    if xt == 2 and table.masks_only:
        p = np.eye(6)[2]
    t, errors = 1500, []
    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, table, jnp.float64)
        for step in (64, 32, 16):
            args = (transition.safe_log(jnp.asarray(p)), jnp.int32(xt), t - step, jnp.int32(t))
            rates = np.asarray(concrete_score.reverse_rates(kernel, 0, *args))
            assert (rates[np.arange(6) == xt] == 0).all()  # a token does not jump to itself
            exact = np.exp(transition.p_log_probs(kernel, 0, *args))[:6]
            if table.masks_only and xt == 2:
                np.testing.assert_array_equal([rates, exact], [np.zeros(6), np.eye(6)[2]])
                continue
            jump = rates * (1 - np.exp(-rates.sum())) / rates.sum()
            jumped = np.arange(6) != xt
            errors.append(np.abs(jump - exact)[jumped].max())
            assert errors[-1] < 0.1 * exact[jumped].max()
    if errors:
        np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.15)


def test_the_rate_from_a_time_that_masks_everything_is_finite_and_draws_from_p():
    p = np.random.default_rng(0).dirichlet(np.ones(6), 1)
    for name in ("absorbing", "cosine"):
        kernel = transition.make_kernel(LAYOUT, schedules.make(name, T))
        args = (jnp.log(p), jnp.full(1, MASK), jnp.int32(T - 10), jnp.int32(T))
        rates = concrete_score.reverse_rates(kernel, 0, *args)
        gone = 1 - kernel.gamma_bar[0, T - 10]
        np.testing.assert_allclose(rates, gone * p, rtol=1e-5)
