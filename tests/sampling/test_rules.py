"""The rules of reveal, each against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.helpers import dense, finite
from udd_jax.diffusion import random_words, schedules, transition, vocab
from udd_jax.sampling import rules

LAYOUT = vocab.image_text((1, 2), image_classes=3, text_classes=4, text_length=3)
T = 8
ROWS = st.lists(
    st.tuples(st.floats(-3, 3, width=32), st.booleans()), min_size=6, max_size=6
).filter(lambda rows: any(masked for _, masked in rows))


def arrays(rows):
    """Scores float32[1, 6] and masks bool[1, 6]."""
    score, masked = zip(*rows, strict=True)
    return jnp.asarray([score], jnp.float32), jnp.asarray([masked])


# ---- By time ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("linear", "mask_and_replace", "absorbing", "uniform"))
def test_drawing_in_two_stages_has_the_law_of_the_reverse_step(name):
    kernel, count, m = transition.make_kernel(LAYOUT, schedules.make(name, T)), 20_000, 1
    log_p = jax.nn.log_softmax(jnp.asarray([0.3, -1.0, 1.2, -4.0]))
    rule = finite.quick(rules.ancestral, static_argnums=1)
    words = random_words.words(jax.random.key(0), (1, count, 4))
    for s, t, j in ((3, 4, 4), (3, 4, 2), (1, 7, 4), (1, 7, 3), (0, 5, 1)):
        if j == 4 and name == "uniform":
            continue
        full = jnp.broadcast_to(log_p, (1, count, 4))
        xt = jnp.full((1, count), j, jnp.int32)
        drawn = rule(kernel, m, words, full, xt, jnp.int32(s), jnp.int32(t))
        law = np.exp(transition.p_log_probs(kernel, m, log_p, jnp.int32(j), s, t), dtype=float)
        seen = np.bincount(np.asarray(drawn)[0], minlength=5)
        rare = law * count < 5
        assert seen[rare].sum() <= 2 * law[rare].sum() * count + 5
        if (~rare).sum() > 1:
            even = law[~rare] / law[~rare].sum() * seen[~rare].sum()
            assert stats.chisquare(seen[~rare], even).pvalue > 1e-3


@pytest.mark.parametrize("name", ("mask_and_replace", "absorbing"))
def test_a_leap_jumps_once_in_proportion_to_the_rates_and_the_last_one_draws_from_p(name):
    """The rates by hand, from the tables in float64."""
    table, count, m, classes = schedules.make(name, T), 20_000, 1, 4
    kernel, p = transition.make_kernel(LAYOUT, table), np.array([0.5, 0.1, 0.3, 0.1])
    full = jnp.broadcast_to(jnp.log(jnp.asarray(p)), (1, count, classes))
    rule = finite.quick(rules.tau_leaping, static_argnums=1)
    words = random_words.words(jax.random.key(0), (1, count, 4))
    for s, t, j in ((3, 4, 4), (1, 7, 4), (1, 7, 3), (5, 8, 4), (0, 5, 4), (0, 5, 2)):
        xt = jnp.full((1, count), j, jnp.int32)
        drawn = rule(kernel, m, words, full, xt, jnp.int32(s), jnp.int32(t))
        at = t if table.unmasked[t] else s  # the limit at T
        alpha, beta = table.alpha_bar[at], table.uniform_bar[at] / classes
        if j == classes:
            q = np.full(classes, table.gamma_bar[t])
            forward = (table.gamma_bar[t] - table.gamma_bar[s]) / table.unmasked[at]
        else:
            q = alpha * np.eye(classes)[j] + beta
            forward = dense.step(LAYOUT, [table] * 2, s, t)[3 + j, 3 + (j + 1) % classes]
        w = np.divide(p, q, out=np.zeros(classes), where=q > 0)
        rates = forward * (alpha * w + beta * w.sum()) * (np.arange(classes) != j)
        jump = 1 - np.exp(-rates.sum())
        law = jump * rates / max(rates.sum(), 1e-9)
        law = np.append(law, 0) + (1 - jump) * np.eye(classes + 1)[j]
        if s == 0:
            certain = name == "absorbing" and j < classes
            law = np.eye(classes + 1)[j] if certain else np.append(p, 0)
        seen = np.bincount(np.asarray(drawn)[0], minlength=classes + 1)
        assert seen[law == 0].sum() == 0
        if (law > 0).sum() > 1:
            assert stats.chisquare(seen[law > 0], law[law > 0] * count).pvalue > 1e-3, (s, t, j)


def test_a_prediction_without_its_own_token_is_that_of_the_others():
    tables = [schedules.mask_and_replace(finite.STEPS, 0.5)] * 2
    t, rng = 30, np.random.default_rng(0)
    noise = dense.cumulative(finite.LAYOUT, tables, t)[:, finite.ITEMS[:4]]  # [to, 4, L]
    xt = finite.draw(np.moveaxis(noise, 0, -1), rng)
    free = np.ones(xt.shape, bool)
    p = finite.predict(tables, xt, t, free)
    with jax.enable_x64(True):
        kernel = transition.make_kernel(finite.LAYOUT, tables, jnp.float64)
        for m, where in enumerate(finite.SLICES):
            offset, classes = finite.LAYOUT.offsets[m], finite.LAYOUT.modalities[m].classes
            block = slice(offset, offset + classes)
            local = finite.LAYOUT.local(m, xt[:, where])
            with np.errstate(divide="ignore"):
                log_p = jnp.asarray(np.log(p[:, where, block]))
            ours = np.exp(rules.left_out(kernel, m, log_p, local, jnp.int32(t)))
            for n in range(where.start, where.stop):
                others = finite.predict(tables, xt, t, free, np.arange(16)[None] == n)
                np.testing.assert_allclose(ours[:, n - where.start], others[:, n, block], atol=1e-9)


@pytest.mark.parametrize("rule, eta", [("cap", 0.3), ("rescale", 0.7)])
def test_masking_again_keeps_the_share_of_masks(rule, eta):
    kernel, count = transition.make_kernel(LAYOUT, schedules.cosine(T)), 40_000
    words = random_words.words(jax.random.key(2), (1, count))
    log_p = jnp.full((1, count, 4), -jnp.log(4.0))
    look = rules.look(words[..., ::-1], log_p)
    ones = jnp.ones((1, count), bool)
    for s, t in ((7, 8), (3, 4), (2, 7), (0, 1)):
        gamma = schedules.cosine(T).gamma_bar
        xt = jnp.where(np.random.default_rng(t).random((1, count)) < gamma[t], 4, 1)
        xs, psi = rules.remdm(
            kernel, 1, words, look, xt, jnp.int32(s), jnp.int32(t), ones, 0.5 * ones, rule, eta
        )
        sigma = np.sqrt(gamma[s] * (1 - gamma[s]) / count)
        assert abs((xs == 4).mean() - gamma[s]) <= 4 * sigma
        both = (xt != 4) & (xs != 4)
        np.testing.assert_array_equal(xs[both], xt[both])  # masked again or left, never replaced
        again = (xt != 4) & (xs == 4)
        assert (psi[again] == 0).all() and (psi[both] == 0.5).all()
        assert bool(again.any()) == (s > 0 and t < T)


def test_the_least_confident_tokens_are_masked_again_most_often():
    kernel, n = transition.make_kernel(LAYOUT, schedules.absorbing(T)), 3
    words = random_words.words(jax.random.key(3), (20_000, n))
    look = rules.look(words, jnp.full((20_000, n, 4), -jnp.log(4.0)))
    psi = jnp.broadcast_to(jnp.asarray([0.9, 0.5, 0.1]), (20_000, n))
    xt, free = jnp.zeros((20_000, n), jnp.int32), jnp.ones((20_000, n), bool)
    args = (jnp.int32(3), jnp.int32(4), free, psi, "confidence", 0.0)
    xs, _ = rules.remdm(kernel, 1, words, look, xt, *args)
    weights = np.exp([-0.9, -0.5, -0.1])
    expected = min(1, (3 / 8) / (4 / 8)) * weights / weights.sum()
    np.testing.assert_allclose((xs == 4).mean(0), expected, atol=0.012)


# ---- By order -----------------------------------------------------------------------------------


def test_maskgit_reveals_the_published_numbers_of_256_in_24_steps():
    stay = rules.cosine_counts(24, 256)[:, 256]
    shown = -np.diff([256, *stay])
    expected = [1, 2, 2, 4, 5, 6, 7, 8, 9, 9, 11, 11, 13, 13, 13, 14, 15, 16, 15, 16, 17, 16, 17]
    np.testing.assert_array_equal(shown, [*expected, 16])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60))
def test_counts_never_rise_and_end_with_nothing_masked(length, steps):
    for counts in (rules.cosine_counts(steps, length), rules.linear_counts(steps, length)):
        assert (counts[-1] == 0).all() and (np.diff(counts, axis=0) <= 0).all()
        assert (counts[0] <= np.arange(length + 1)).all() and (counts >= 0).all()


@settings(max_examples=25, deadline=None)
@given(ROWS, st.integers(0, 6))
def test_all_but_so_many_of_the_highest_score_are_shown(rows, stay):
    score, masked = arrays(rows)
    shown = np.asarray(rules.by_count(score, masked, jnp.asarray([stay])))[0]
    score, masked = np.asarray(score)[0], np.asarray(masked)[0]
    assert shown.sum() == max(masked.sum() - stay, 0) and not shown[~masked].any()
    hidden = masked & ~shown
    assert not shown.any() or not hidden.any() or score[shown].min() >= score[hidden].max()


@settings(max_examples=25, deadline=None)
@given(ROWS, st.floats(0.05, 0.95))
def test_what_is_sure_enough_is_shown_and_one_at_least(rows, threshold):
    score, masked = arrays(rows)
    log_best = -jnp.abs(score)
    shown = np.asarray(rules.above(log_best, masked, threshold))[0]
    log_best, masked = np.asarray(log_best)[0], np.asarray(masked)[0]
    sure = masked & (log_best > np.float32(np.log(threshold)))
    best = np.flatnonzero(masked)[log_best[masked].argmax()]
    np.testing.assert_array_equal(np.flatnonzero(shown), np.union1d(np.flatnonzero(sure), best))


@settings(max_examples=25, deadline=None)
@given(ROWS, st.floats(0, 4, width=32))
def test_the_prefix_by_entropy_is_the_longest_within_the_bound(rows, bound):
    score, masked = arrays(rows)
    entropy = jnp.abs(score)
    shown = np.asarray(rules.within(entropy, masked, bound))[0]
    left = np.asarray(entropy)[0].astype(float)
    order = [i for i in np.argsort(left, kind="stable") if masked[0, i]]
    sums = np.cumsum(left[order]) - left[order]  # sum less maximum, of each prefix
    if np.abs(sums - bound).min() > 1e-5:
        number = max((sums <= bound).sum(), 1)
        assert shown.sum() == number
        np.testing.assert_allclose(np.sort(left[shown]), left[order[:number]])


@pytest.mark.parametrize("length, grid", [(12, (3, 4)), (5, None), (16, (4, 4)), (6, (1, 6))])
def test_the_halton_order_is_that_of_the_sequence_by_hand(length, grid):
    order = rules.halton(length, grid)
    np.testing.assert_array_equal(np.sort(order), np.arange(length))
    np.testing.assert_array_equal(order, finite.halton(length, grid))


def test_the_next_hit_is_where_the_masked_share_falls_by_the_nth_root_of_u():
    kernel = transition.make_kernel(LAYOUT, schedules.cosine(T))
    words = random_words.words(jax.random.key(4), (4000, 5))
    masked = jnp.broadcast_to(jnp.asarray([True, False, True, True, True]), words.shape)
    clock = jnp.full(4000, 6.5)
    shown, time = rules.first_hitting(kernel, words, clock, masked, 1)
    gamma = schedules.cosine(T).gamma_bar
    ratio = np.interp(time, np.arange(T + 1), gamma) / np.interp(6.5, np.arange(T + 1), gamma)
    assert stats.kstest(ratio**4, "uniform").pvalue > 1e-3
    assert (shown.sum(1) == 1).all() and not shown[:, 1].any()
    np.testing.assert_allclose(shown.mean(0)[np.array([0, 2, 3, 4])], 0.25, atol=0.03)


def test_purity_sharpens_most_where_p_is_surest():
    p = np.array([[[0.7, 0.2, 0.1], [0.4, 0.3, 0.3], [0.9, 0.05, 0.05]]], np.float32)
    masked = np.array([[True, True, False]])
    sharp, purity = rules.sharpen(jnp.log(p), masked, 2.0)
    np.testing.assert_allclose(np.exp(purity), [[1, 0.4 / 0.7, 1]], rtol=1e-5)
    power = p[0] ** (1 + 2 * np.array([1, 0.4 / 0.7, 1])[:, None])
    np.testing.assert_allclose(np.exp(sharp[0]), power / power.sum(1, keepdims=True), rtol=1e-4)


def test_how_sure_p_is_has_its_three_measures():
    p = np.array([[[0.5, 0.2, 0.3], [0.0, 1.0, 0.0]]], np.float32)
    words = random_words.words(jax.random.key(0), (1, 2))
    with np.errstate(divide="ignore"):
        look = rules.look(words, jnp.asarray(np.log(p)))
    np.testing.assert_array_equal(look.best, [[0, 1]])
    np.testing.assert_allclose(np.exp(look.log_best), [[0.5, 1]], rtol=1e-6)
    np.testing.assert_allclose(look.margin, [[0.2, 1]], rtol=1e-6)
    entropy = -(0.5 * np.log(0.5) + 0.2 * np.log(0.2) + 0.3 * np.log(0.3))
    np.testing.assert_allclose(look.entropy, [[entropy, 0]], rtol=1e-5)
    assert int(look.token[0, 1]) == 1 and float(look.log_prob[0, 1]) == 0


def test_how_sure_p_is_comes_from_before_truncation():
    """The token is drawn from what is left; the confidence is that of the whole."""
    p = jnp.log(jnp.asarray([[[0.5, 0.3, 0.2]]]))
    words = random_words.words(jax.random.key(0), (1, 1))
    look = rules.look(words, jnp.log(jnp.asarray([[[1.0, 0, 0]]])), p)
    assert int(look.token[0, 0]) == 0
    for found, expected in ((look.log_best, 0.5), (look.log_prob, 0.5)):
        np.testing.assert_allclose(np.exp(found), [[expected]], rtol=1e-6)
    np.testing.assert_allclose(look.margin, [[0.2]], rtol=1e-5)
