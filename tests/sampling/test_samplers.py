"""Every sampler in a world of 24 items (finite.py): how often its sequence is one of the items.

Tokens that are revealed in one call are independent given x_t, so with few calls the expected share
is below 1. It must equal the share of the same chain in NumPy: recorded in the fixture for the
ancestral chain, simulated here for the others.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.helpers import finite
from udd_jax.diffusion import objective, schedules, time_sampling, transition
from udd_jax.sampling import reverse, samplers
from udd_jax.sampling.settings import Settings

COUNT, ABSORBING = 512, schedules.absorbing(finite.STEPS)
SLOW = pytest.mark.slow
FREE = np.ones((COUNT, finite.LAYOUT.length), bool)


def _run(kernel, key, x, free, settings):
    absent = jnp.zeros((len(x), 2), bool)
    return reverse.run(kernel, finite.oracle(kernel), key, x, free, absent, settings)


compiled = finite.quick(_run)


def run(schedule, x=None, free=None, seed=0, **settings):
    """The item of each sample (or -1), its calls, and its tokens."""
    if isinstance(schedule, str):
        schedule = schedules.make(schedule, finite.STEPS)
    kernel = transition.make_kernel(finite.LAYOUT, schedule)
    free = FREE if free is None else free
    x = np.zeros_like(FREE, np.int32) if x is None else x
    drawn = compiled(kernel, jax.random.key(seed), x, free, Settings(**settings))
    return finite.which(drawn.tokens), np.asarray(drawn.calls), np.asarray(drawn.tokens)


def agree(hits, of, others, of_others):
    """Two counts of one chance, within 3 sigma of their difference."""
    chance = (hits + others) / (of + of_others)
    sigma = np.sqrt(chance * (1 - chance) * (1 / of + 1 / of_others))
    assert abs(hits / of - others / of_others) <= 3 * sigma, (hits / of, others / of_others)


def same_law(items, others=None):
    """Chi-square: two samples of items are of one law; without `others` the law is even."""
    seen = np.bincount(items[items >= 0], minlength=24)
    if others is None:
        chance = stats.chisquare(seen).pvalue
    else:
        table = np.stack([seen, np.bincount(others[others >= 0], minlength=24)])
        chance = stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue
    assert chance > 1e-3


# ---- The ancestral chain ------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [pytest.param(1, marks=SLOW), pytest.param(4, marks=SLOW), 10])
@pytest.mark.parametrize(
    "name", ("linear", pytest.param("mask_and_replace", marks=SLOW), "absorbing")
)
def test_the_ancestral_chain_is_the_factorised_chain_at_every_stride(name, stride):
    items, calls, _ = run(name, steps=finite.STEPS // stride)
    agree((items >= 0).sum(), COUNT, *finite.FIXTURE["shares"][name][str(stride)])
    same_law(items)
    assert (calls == finite.STEPS // stride).all()


@pytest.mark.slow
@pytest.mark.parametrize("name, stride", [("absorbing", 4), ("uniform", 4), ("hybrid", 20)])
def test_the_factorised_chain_simulated_again_has_the_same_share(name, stride):
    table = schedules.make(name, finite.STEPS)
    times = range(finite.STEPS, -1, -stride)
    x, free = np.zeros((600, 16), int), np.ones((600, 16), bool)
    rng = np.random.default_rng(0)
    others = finite.which(finite.chain([table, table], times, x, free, rng))
    items, _, _ = run(name, steps=finite.STEPS // stride)
    agree((items >= 0).sum(), COUNT, (others >= 0).sum(), 600)
    same_law(items, others)


@SLOW
def test_more_steps_of_time_are_needed_where_nothing_is_corrected():
    few = run("absorbing", steps=10)[0]
    many = run(schedules.absorbing(400), steps=200)[0]
    assert (few >= 0).mean() < 0.5 and (many >= 0).mean() > 0.94


@SLOW
def test_the_corrector_finds_the_wrong_token_and_the_others_tell_the_right_one():
    kernel = transition.make_kernel(finite.LAYOUT, schedules.mask_and_replace(finite.STEPS))
    truth = np.arange(48) % 24
    wrong = finite.ITEMS[truth].copy()
    place = np.arange(48) % 12
    wrong[np.arange(48), place] = (wrong[np.arange(48), place] + 1) % 6
    t, free = jnp.int32(20), jnp.ones(wrong.shape, bool)
    log_p = jax.nn.log_softmax(finite.oracle(kernel)(wrong, jnp.full((48, 2), t), free)[0])
    p, fresh = samplers.doubtful(kernel, 0, log_p, wrong[:, :12], t, free[:, :12], 1)
    np.testing.assert_array_equal(np.argmax(fresh, axis=1), place)
    assert (np.asarray(fresh).sum(1) == 1).all()
    again = np.argmax(p, axis=-1)[np.arange(48), place]
    np.testing.assert_array_equal(again, finite.ITEMS[truth, place])


def test_the_corrected_chain_is_its_simulation():
    table, times = schedules.uniform(finite.STEPS), schedules.chain_times(finite.STEPS, 3)
    x, free, rng = np.zeros((400, 16), int), np.ones((400, 16), bool), np.random.default_rng(0)
    others = finite.which(finite.chain([table, table], times, x, free, rng, correct=1))
    items, calls, _ = run(table, steps=3, correct=1)
    agree((items >= 0).sum(), COUNT, (others >= 0).sum(), 400)
    same_law(items, others)
    assert (calls == 3).all()


@SLOW
def test_the_corrector_mends_what_an_unsure_network_draws_together():
    # Five calls of a network whose probabilities are the roots of the true ones, renormalised.
    kernel = transition.make_kernel(finite.LAYOUT, schedules.uniform(finite.STEPS))
    oracle, present = finite.oracle(kernel), jnp.zeros((COUNT, 2), bool)

    def unsure(xt, t, free):
        return tuple(y / 2 for y in oracle(xt, t, free))

    def share(correct):
        settings = Settings(steps=5, correct=correct)
        draw = finite.quick(
            lambda key: reverse.run(kernel, unsure, key, 0 * FREE, FREE, present, settings).tokens
        )
        made = np.concatenate([draw(jax.random.key(seed)) for seed in range(3)])
        return (finite.which(made) >= 0).mean()

    assert share(2) > share(0) + 3 * np.sqrt(2 * 0.25 / (3 * COUNT))


@pytest.mark.parametrize("rule, eta", [("cap", 0.05), pytest.param("rescale", 0.5, marks=SLOW)])
def test_masking_again_is_its_simulation_and_mends_what_was_drawn_together(rule, eta):
    times, rng = schedules.chain_times(finite.STEPS, 25), np.random.default_rng(0)
    others = finite.which(finite.remask(rule, eta, ABSORBING.gamma_bar, times, 400, rng))
    items, calls, _ = run(ABSORBING, sampler=f"remdm_{rule}", eta=eta, steps=25)
    agree((items >= 0).sum(), COUNT, (others >= 0).sum(), 400)
    same_law(items, others)
    plain, of = finite.FIXTURE["shares"]["absorbing"]["4"]
    assert (items >= 0).mean() > plain / of + 0.03 and (calls == 25).all()


@SLOW
def test_masking_the_least_confident_again_mends_too():
    plain = (run("absorbing", steps=25)[0] >= 0).mean()
    items, _, _ = run("absorbing", sampler="remdm_confidence", steps=25)
    assert (items >= 0).mean() > plain + 0.03


# ---- Tau-leaping --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, steps",
    [
        ("absorbing", 10),
        pytest.param("mask_and_replace", 5, marks=SLOW),
        pytest.param("linear", 10, marks=SLOW),
        pytest.param("hybrid", 5, marks=SLOW),
    ],
)
def test_leaps_are_their_simulation_by_scores(name, steps):
    table, rng = schedules.make(name, finite.STEPS), np.random.default_rng(0)
    times = schedules.chain_times(finite.STEPS, steps)
    x, free = np.zeros((600, 16), int), np.ones((600, 16), bool)
    others = finite.which(finite.leap([table, table], times, x, free, rng))
    items, calls, _ = run(table, sampler="tau_leaping", steps=steps)
    agree((items >= 0).sum(), COUNT, (others >= 0).sum(), 600)
    same_law(items, others)
    assert (calls == steps).all()


@pytest.mark.parametrize(
    "name",
    (
        "mask_and_replace",
        pytest.param("absorbing", marks=SLOW),
        pytest.param("linear", marks=SLOW),
    ),
)
def test_with_a_hundred_leaps_every_item_is_made_equally_often_as_by_the_chain(name):
    items, calls, tokens = run(name, sampler="tau_leaping", steps=100)
    same_law(items)
    hits, of = finite.FIXTURE["shares"][name]["1"]
    assert abs((items >= 0).mean() - hits / of) < 0.08 and (calls == 100).all()
    assert (tokens != finite.LAYOUT.mask_id).all()


# ---- Orders of reveal ---------------------------------------------------------------------------

ORDERS = {
    "maskgit": {"steps": 8, "noise": 2.0},
    "halton": {"steps": 6},
    "fixed": {"steps": 8},
    "purity": {"steps": 6, "purity": 1.0},
    "threshold": {"threshold": 0.9},
    "entropy_bounded": {"bound": 0.5},
    "first_hitting": {"group": 3},
}


@pytest.mark.parametrize(
    "name", [n if n in ("maskgit", "threshold") else pytest.param(n, marks=SLOW) for n in ORDERS]
)
def test_every_order_makes_items_as_often_as_its_simulation(name):
    numbers, rng = ORDERS[name], np.random.default_rng(1)
    x, others_calls = finite.fill(name, 300, rng, [ABSORBING] * 2, **numbers)
    items, calls, _ = run(ABSORBING, sampler=name, **numbers)
    others = finite.which(x)
    agree((items >= 0).sum(), COUNT, (others >= 0).sum(), 300)
    same_law(items, others)
    sigma = np.sqrt(calls.var() / COUNT + others_calls.var() / 300)
    assert abs(calls.mean() - others_calls.mean()) <= 3 * sigma + 1e-9


@SLOW
def test_one_position_a_call_makes_every_item_equally_often():
    items, calls, _ = run(ABSORBING, sampler="first_hitting")
    assert (items >= 0).all() and (calls == 16).all()
    same_law(items)


@SLOW
def test_best_first_makes_items_and_mostly_so_with_half_as_many_calls():
    # Two tokens are given: from nothing argmax always makes the same sequence.
    places = np.random.default_rng(0).permuted(np.tile(np.arange(16), (COUNT, 1)), axis=1)
    x = np.where(places < 2, finite.ITEMS[np.arange(COUNT) % 24], 0).astype(np.int32)
    shares = []
    for group, calls in ((1, 14), (2, 7), (7, 2)):
        items, made, _ = run(ABSORBING, x, places >= 2, sampler="best_first", group=group)
        assert (made == calls).all()
        shares.append((items >= 0).mean())
    assert shares[0] == 1 and shares[1] > 0.9 and shares[2] < 0.6


@SLOW
def test_the_sure_first_beat_a_random_order_at_equal_calls():
    random = (run(ABSORBING, sampler="fixed", steps=8)[0] >= 0).mean()
    for confidence in ("probability", "margin", "entropy"):
        items = run(ABSORBING, sampler="maskgit", steps=8, noise=0.5, confidence=confidence)[0]
        assert (items >= 0).mean() > 0.55 > 0.3 > random, confidence


# ---- Conditions ---------------------------------------------------------------------------------


def given_corner():
    """x, free and the items that fit: each of 4 starts of two tokens that several items share."""
    starts, counts = np.unique(finite.ITEMS[:, :2], axis=0, return_counts=True)
    starts = starts[np.argsort(-counts)][:2]
    x = np.zeros((COUNT, 16), np.int32)
    x[:, :2] = np.repeat(starts, COUNT // len(starts), axis=0)
    fits = (x[:, None, :2] == finite.ITEMS[None, :, :2]).all(-1)
    return x, np.broadcast_to(np.arange(16) >= 2, x.shape), fits


@pytest.mark.parametrize(
    "name, settings",
    [
        ("linear", {"steps": 25}),
        pytest.param("mask_and_replace", {"steps": 25}, marks=SLOW),
        pytest.param("absorbing", {"sampler": "first_hitting"}, marks=SLOW),
    ],
)
def test_conditional_frequencies_are_those_of_enumeration(name, settings):
    x, free, fits = given_corner()
    items, _, tokens = run(name, x, free, **settings)
    np.testing.assert_array_equal(tokens[:, :2], x[:, :2])
    assert (items >= 0).all() and fits[np.arange(COUNT), items].all()
    for rows in np.split(np.arange(COUNT), 2):
        chance = fits[rows[0]] / fits[rows[0]].sum()
        seen = np.bincount(items[rows], minlength=24) / len(rows)
        assert (abs(seen - chance) <= 3 * np.sqrt(chance * (1 - chance) / len(rows))).all()


@pytest.mark.parametrize(
    "sampler", ("ancestral", "maskgit", pytest.param("best_first", marks=SLOW))
)
def test_infilling_with_half_given_finds_the_item(sampler):
    truth = np.arange(COUNT) % 24
    free = np.random.default_rng(0).permuted(np.tile(np.arange(16) < 8, (COUNT, 1)), axis=1)
    x = np.where(free, 0, finite.ITEMS[truth]).astype(np.int32)
    items, _, _ = run("linear", x, free, sampler=sampler, steps=10)
    np.testing.assert_array_equal(items, truth)


# ---- Likelihood ---------------------------------------------------------------------------------


def cross_entropies(item):
    """-log p(x_0 | visible) summed over the masked places, mean over all sets of m, float64[17]."""
    differ = finite.ITEMS[item] != finite.ITEMS
    hidden = np.arange(2**16)
    bits = 1 << np.arange(16)
    clash = (differ * bits).sum(1)
    fits = (clash[:, None] & ~hidden[None]) == 0  # [24, sets]
    total, count = np.zeros(len(hidden)), fits.sum(0)
    for place in range(16):
        agreeing = fits[~differ[:, place]].sum(0)
        total += np.where(hidden & bits[place], np.log(count) - np.log(agreeing), 0)
    sizes = np.bitwise_count(hidden)
    return np.bincount(sizes, total) / np.bincount(sizes)


def bound_of(curve, gamma):
    """The bound of a mask-only chain with these gamma_bar, by enumeration, nats."""
    masked = stats.binom.pmf(np.arange(17)[None], 16, gamma[1:, None])
    return ((1 - gamma[:-1] / gamma[1:]) * (masked @ curve)).sum()


@pytest.mark.parametrize("calls", (0, pytest.param(10, marks=SLOW)))
def test_the_bound_with_the_oracle_is_the_enumerated_one_and_falls_to_the_likelihood(calls):
    item, count, strata = 5, 192, 25
    curve = cross_entropies(item)
    through = schedules.chain_times(finite.STEPS, calls or finite.STEPS)[::-1]
    exact = bound_of(curve, ABSORBING.gamma_bar[through])
    bounds = [bound_of(curve, schedules.absorbing(t).gamma_bar) for t in (10, 100, 10_000)]
    assert bounds[0] > bounds[1] > bounds[2] > np.log(24)
    np.testing.assert_allclose(bounds[2], np.log(24), atol=1e-2)

    kernel = transition.make_kernel(finite.LAYOUT, ABSORBING)
    estimate = finite.quick(
        lambda keys: objective.bound(
            kernel,
            finite.oracle(kernel),
            keys,
            jnp.broadcast_to(jnp.asarray(finite.ITEMS[item]), (count, 16)),
            jnp.ones((count, 16), bool),
            jnp.zeros((count, 2), bool),
            strata,
            calls,
        ).sum(1)
    )
    nats = np.asarray(estimate(jax.random.split(jax.random.key(0), count)))
    assert abs(nats.mean() - exact) < 3 * nats.std() / np.sqrt(count)


@pytest.mark.parametrize("name", ("absorbing", "cosine"))
def test_the_continuous_bound_of_the_oracle_is_the_likelihood(name):
    # p(x) = prod p(x_i | those before) in any order, so with a perfect network nothing is lost.
    kernel = transition.make_kernel(finite.LAYOUT, schedules.make(name, finite.STEPS))
    free, x0 = FREE, jnp.asarray(finite.ITEMS[np.arange(COUNT) % 24])

    @finite.quick
    def estimate(time, key):
        t, gamma, rate = transition.instant(kernel, jnp.stack([time, time], 1))
        xt = transition.mask_sample(kernel, key, x0, gamma[:, finite.LAYOUT.modality_of])
        logits = finite.oracle(kernel)(xt, t, free)
        _, nll = objective.loss_terms(kernel, logits, x0, xt, t, free)
        return kernel.steps * objective.continuous_terms(kernel, nll, xt, rate).sum(1)

    means = []
    for seed in range(64):
        key = jax.random.key(seed)
        spread = time_sampling.spread(key, np.zeros(COUNT, bool), 1)[:, 0]
        means.append(float(estimate(finite.STEPS * spread, jax.random.fold_in(key, 1)).mean()))
    assert abs(np.mean(means) - np.log(24)) < 3 * np.std(means) / 8
    assert np.std(means) < 0.3
