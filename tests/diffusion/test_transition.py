"""The kernel and the objective against dense matrices, Bayes' rule and enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers import dense
from udd_jax.diffusion import objective, schedules, transition, vocab

LAYOUT = vocab.image_text((1, 2), image_classes=3, text_classes=4, text_length=3)
T = 7
NAMES = tuple(schedules.MAKERS)
PAIRS = [(s, t) for t in range(1, T + 1) for s in range(t)]


def two_schedules(name, steps=T):
    """The schedule for the image, another member of its family for the text."""
    other = {"mask_and_replace": {"replace": 0.4}, "hybrid": {"uniform_share": 0.3, "power": 2.0}}
    return [schedules.make(name, steps), schedules.make(name, steps, **other.get(name, {}))]


@functools.partial(jax.jit, static_argnums=1)
def everything(kernel, m, logits, x0, xt, s, t):
    """All functions of one modality, and the gradients of the loss terms by the logits."""
    log_p0 = jax.nn.log_softmax(logits, axis=-1)

    def terms(logits):
        kl, nll = objective.token_terms(kernel, m, logits, x0, xt, s, t)
        return (kl + nll).sum(), (kl, nll)

    gradient, (kl, nll) = jax.grad(terms, has_aux=True)(logits)
    return {
        "q": jnp.exp(transition.q_log_probs(kernel, m, x0, t)),
        "posterior": jnp.exp(transition.q_posterior(kernel, m, x0, xt, s, t)),
        "p": jnp.exp(transition.p_log_probs(kernel, m, log_p0, xt, s, t)),
        "kl": kl,
        "nll": nll,
        "gradient": gradient,
    }


def cases(classes):
    """All (s, t, x_0, x_t), int32[n] each, and logits for them."""
    grid = itertools.product(PAIRS, range(classes), range(classes + 1))
    s, t, i, j = np.array([(*pair, i, j) for pair, i, j in grid], np.int32).T
    logits = 2 * np.random.default_rng(1).normal(size=(len(s), classes))
    return s, t, i, j, logits


def expected(tables, m, s, t, i, j, logits, layout=LAYOUT):
    """The same by enumeration: posterior[n, k], p[n, k], kl[n], possible[n]."""
    classes, offset, times = layout.modalities[m].classes, layout.offsets[m], tables[m].steps + 1
    ids = np.array([*range(offset, offset + classes), layout.mask_id])
    bayes = np.zeros((times, times, classes + 1, classes + 1, classes))  # s, t, k, j, i
    for pair in {*zip(s.tolist(), t.tolist(), strict=True)}:
        full = dense.posterior(layout, tables, *pair)
        bayes[pair] = full[np.ix_(ids, ids, ids[:-1])]
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    posterior = bayes[s, t, :, j, i]
    possible = bayes[s, t, :, j].sum(1) > 0  # [n, i]: can x_0 = i lead to x_t = j?
    chances = np.where(possible, weights, 0)
    chances /= np.maximum(chances.sum(1, keepdims=True), 1e-300)
    p = np.einsum("ni,nki->nk", chances, bayes[s, t, :, j])
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(posterior > 0, posterior * np.log(posterior / p), 0).sum(1)
    return posterior, p, kl, possible[np.arange(len(i)), i]


# ---- Matrices -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_columns_sum_to_one_and_no_mass_crosses_between_modalities(name):
    tables = two_schedules(name)
    for s, t in PAIRS:
        for matrix in (dense.step(LAYOUT, tables, s, t), dense.cumulative(LAYOUT, tables, t)):
            np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-12)
            assert (matrix[:3, 3:-1] == 0).all() and (matrix[3:-1, :3] == 0).all()
            assert (matrix >= 0).all() and (matrix[:-1, -1] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_product_of_single_steps_is_the_closed_form(name):
    tables = two_schedules(name)
    for s, t in PAIRS:
        product = np.eye(LAYOUT.size)
        for u in range(s + 1, t + 1):
            product = dense.step(LAYOUT, tables, u - 1, u) @ product
        np.testing.assert_allclose(product, dense.step(LAYOUT, tables, s, t), atol=1e-12)
        whole = product @ dense.cumulative(LAYOUT, tables, s)
        np.testing.assert_allclose(whole, dense.cumulative(LAYOUT, tables, t), atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(2, 600).flatmap(
        lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(1, n))
    ),
    st.integers(2, 9000),
)
def test_float32_steps_are_right_to_a_ten_thousandth(name, times, classes):
    steps, s, t = times
    s, t = min(s, t - 1), max(s + 1, t) if s >= t else t
    layout = vocab.Vocab((vocab.Modality("text", 1, classes),))
    table = schedules.make(name, steps)
    with jax.default_device(jax.devices("cpu")[0]):
        kernel = transition.make_kernel(layout, table)
    at = [
        transition.Marginal(
            *(
                np.asarray(row)[0, u]
                for row in (kernel.alpha_bar, kernel.gamma_bar, kernel.unmasked, kernel.beta_bar)
            )
        )
        for u in (s, t)
    ]
    change = (table.alpha_bar[s] - table.alpha_bar[t]) / table.alpha_bar[s]
    replaced = table.uniform_bar[t] - table.uniform_bar[s] + change * table.uniform_bar[s]
    ours = [float(x) for x in transition.step(*at)]
    exact = [
        1 - change,
        replaced / table.unmasked[s] / classes,
        (table.gamma_bar[t] - table.gamma_bar[s]) / table.unmasked[s],
    ]
    np.testing.assert_allclose(ours[0], exact[0], rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(ours[1:], exact[1:], rtol=1e-4, atol=1e-12 / classes)


# ---- Distributions ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("m", (0, 1))
def test_every_function_equals_enumeration_for_every_pair_of_times(name, m):
    tables = two_schedules(name)
    classes, offset = LAYOUT.modalities[m].classes, LAYOUT.offsets[m]
    s, t, i, j, logits = cases(classes)
    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, tables, jnp.float64)
        ours = jax.tree.map(np.asarray, everything(kernel, m, logits, i, j, s, t))
    posterior, p, kl, possible = expected(tables, m, s, t, i, j, logits)
    reached = (posterior.sum(1) > 0) | ~possible

    ids = [*range(offset, offset + classes), LAYOUT.mask_id]
    columns = np.stack([dense.cumulative(LAYOUT, tables, u)[ids] for u in range(T + 1)])
    np.testing.assert_allclose(ours["q"], columns[t, :, offset + i], atol=1e-13)
    np.testing.assert_allclose(ours["posterior"][possible], posterior[possible], atol=1e-10)
    known = p.sum(1) > 0
    np.testing.assert_allclose(ours["p"][known], p[known], atol=1e-10)
    np.testing.assert_allclose(ours["kl"][possible], kl[possible], atol=1e-9)
    assert np.isfinite(ours["gradient"]).all() and reached.all()

    # The semigroup: sum over x_t of q(x_t | x_0) q(x_s | x_t, x_0) = q(x_s | x_0).
    joint = (
        np.where(possible[:, None], ours["posterior"], 0) * ours["q"][np.arange(len(j)), j, None]
    )
    back = joint.reshape(len(PAIRS), classes, classes + 1, classes + 1).sum(2)
    pairs = np.array(PAIRS)
    earlier = columns[pairs[:, 0]][:, :, offset : offset + classes].transpose(0, 2, 1)
    np.testing.assert_allclose(back, earlier, atol=1e-10)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(2, 6), st.integers(2, 6)),
    st.integers(1, 4),
    st.integers(2, 30),
)
def test_the_loss_of_a_layout_of_any_shape_is_the_enumerated_one(
    name, grid, classes, length, steps
):
    layout = vocab.image_text(grid, *classes, length)
    tables, rng = two_schedules(name, steps), np.random.default_rng(steps)
    parts = [rng.integers(0, m.classes, (3, m.length)) for m in layout.modalities]
    x0 = np.concatenate([p + o for p, o in zip(parts, layout.offsets, strict=True)], 1)
    t = rng.integers(1, steps + 1, (3, 2)).astype(np.int32)
    s, free = rng.integers(0, t).astype(np.int32), rng.random(x0.shape) < 0.7
    logits = [rng.normal(size=(3, m.length, m.classes)) for m in layout.modalities]

    def run(kernel, logits, x0, t, free, s):
        position_t = transition.free_times(layout, t, free)
        xt = transition.q_sample(kernel, jax.random.key(steps), x0, position_t)
        return xt, objective.loss_terms(kernel, logits, x0, xt, t, free, s)[0]

    with jax.enable_x64(True):
        kernel = transition.make_kernel(layout, tables, jnp.float64)
        xt, kl = map(np.asarray, jax.jit(run)(kernel, logits, x0.astype(np.int32), t, free, s))
    np.testing.assert_array_equal(xt[~free], x0[~free])
    for m, where in enumerate(layout.slices):
        i, j = (np.asarray(layout.local(m, x[:, where])).ravel() for x in (x0, xt))
        assert ((j >= 0) & (j <= layout.modalities[m].classes)).all()
        times = (np.broadcast_to(u[:, m : m + 1], parts[m].shape).ravel() for u in (s, t))
        rows = logits[m].reshape(len(i), -1)
        _, _, exact, possible = expected(tables, m, *times, i, j, rows, layout)
        here = free[:, where].ravel()
        assert possible[here].all()
        np.testing.assert_allclose(kl[:, where].ravel(), np.where(here, exact, 0), atol=1e-9)


def test_loss_terms_have_the_gradient_of_their_definition():
    kernel_tables = two_schedules("mask_and_replace")
    s, t, i, j, logits = cases(4)

    def direct(logits, kernel):
        log_p = transition.p_log_probs(kernel, 1, jax.nn.log_softmax(logits), j, s, t)
        log_q = transition.q_posterior(kernel, 1, i, j, s, t)
        q = jnp.exp(log_q)
        terms = jnp.where(q > 0, q * (jnp.where(q > 0, log_q, 0) - jnp.where(q > 0, log_p, 0)), 0)
        decode = -jnp.take_along_axis(jax.nn.log_softmax(logits), i[:, None], axis=1)
        return terms.sum() + decode.sum()

    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, kernel_tables, jnp.float64)
        ours = everything(kernel, 1, logits, i, j, s, t)["gradient"]
        np.testing.assert_allclose(ours, jax.jit(jax.grad(direct))(logits, kernel), atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_float32_agrees_with_float64_at_both_ends_of_time_and_for_many_classes(name):
    layout = vocab.Vocab((vocab.Modality("text", 8, 8192),))  # beta_bar of `linear`: 1.2e-10
    table, rng = schedules.make(name, 500), np.random.default_rng(0)
    t = np.array([1, 1, 2, 250, 250, 499, 500, 500], np.int32)
    s = np.array([0, 0, 1, 249, 200, 498, 499, 0], np.int32)
    xt = np.array([5, 8192, 7, 8192, 5, 5, 5, 8192], np.int32)
    x0 = np.full(8, 5, np.int32)
    logits = rng.normal(size=(8, 8192)).astype(np.float32)
    logits[1::2, 5] += 25  # sure of itself, where a visible token mostly is
    narrow = everything(transition.make_kernel(layout, table), 0, logits, x0, xt, s, t)
    with jax.enable_x64(True):
        kernel = transition.make_kernel(layout, table, jnp.float64)
        wide = everything(kernel, 0, logits.astype(np.float64), x0, xt, s, t)
    for key, value in jax.tree.map(np.asarray, narrow).items():
        assert np.isfinite(value).all(), key
        possible = (xt == x0) | (xt == 8192) | (not table.masks_only)
        possible &= (xt != 8192) | (table.gamma_bar[t] > 0)
        exact = np.asarray(wide[key])
        np.testing.assert_allclose(
            value[possible], exact[possible], rtol=2e-4, atol=3e-5, err_msg=key
        )


# ---- Draws --------------------------------------------------------------------------------------


def test_a_noised_token_follows_q_and_never_becomes_one_of_the_other_modality():
    tables = [schedules.mask_and_replace(T, 0.5), schedules.hybrid(T, 0.3)]
    kernel = transition.make_kernel(LAYOUT, tables)
    x0 = np.array([2, 0, 3, 6, 4], np.int32)
    times = np.array([3, 7, 1, 5, 0], np.int32)
    count = 40000
    tile = functools.partial(np.tile, reps=(count, 1))
    xt = jax.jit(transition.q_sample)(kernel, jax.random.key(0), tile(x0), tile(times))
    for position, (i, t) in enumerate(zip(x0, times, strict=True)):
        law = dense.cumulative(LAYOUT, tables, t)[:, i]
        seen = np.bincount(np.asarray(xt)[:, position], minlength=LAYOUT.size) / count
        assert (np.abs(seen - law) <= 4 * np.sqrt(law * (1 - law) / count)).all()


def test_the_prior_is_the_law_at_time_T():
    tables = [schedules.mask_and_replace(T, 0.5), schedules.linear(T)]
    kernel, count = transition.make_kernel(LAYOUT, tables), 20000
    x = np.asarray(
        jax.jit(transition.prior_sample, static_argnums=2)(kernel, jax.random.key(1), count)
    )
    law = np.array([0.5 / 3, 0.5 / 3, 0.5 / 3, 0, 0, 0, 0, 0.5])
    seen = np.bincount(x[:, :2].ravel(), minlength=LAYOUT.size) / x[:, :2].size
    assert (np.abs(seen - law) <= 4 * np.sqrt(law * (1 - law) / x[:, :2].size)).all()
    assert (x[:, 2:] == LAYOUT.mask_id).mean() > 0.9999
    for name in ("uniform", "absorbing"):  # q(x_T | x_0) is p(x_T)
        kernel = transition.make_kernel(LAYOUT, schedules.make(name, T))
        np.testing.assert_allclose(objective.prior_kl(kernel, 0), 0, atol=1e-6)


def test_prior_term_of_the_published_schedule_is_7e_5_nats():
    layout = vocab.image_text((32, 32), image_classes=2887, text_classes=8192, text_length=128)
    kernel = transition.make_kernel(layout, schedules.linear(500))
    terms = [float(objective.prior_kl(kernel, m)) for m in (0, 1)]
    table = schedules.linear(500)
    for term, classes in zip(terms, (2887, 8192), strict=True):
        a, u = table.alpha_bar[-1], table.uniform_bar[-1] / classes
        same = table.unmasked[-1] / classes
        exact = (a + u) * np.log((a + u) / same) + (classes - 1) * u * np.log(u / same)
        np.testing.assert_allclose(term, exact, rtol=1e-3)
    assert 6e-5 < terms[0] < 9e-5 and 6e-5 < terms[1] < 9e-5


# ---- The objective ------------------------------------------------------------------------------

TINY = vocab.image_text((1, 2), image_classes=2, text_classes=3, text_length=1)
TINY_T = 4
STATES = np.array(
    [  # all sequences with masks, global ids
        [*image, text] for image in itertools.product((0, 1, 5), repeat=2) for text in (2, 3, 4, 5)
    ],
    np.int32,
)
CLEAN = np.flatnonzero((STATES != 5).all(1))


def tiny_terms(tables, logits, times):
    """By the library: p(x_s | x_t) of each position, KL of each (x_0, x_t), and the prior's KL.

    logits: one float[T+1, states, length, K] a modality; times: T = t_0 > t_1 > ... > 0.
    """
    with jax.enable_x64(True):
        kernel = transition.make_kernel(TINY, tables, jnp.float64)
        x0 = np.repeat(STATES[CLEAN], len(STATES), 0)
        xt = np.tile(STATES, (len(CLEAN), 1))
        free = np.ones(x0.shape, bool)
        terms = jax.jit(objective.loss_terms)
        reverse = jax.jit(
            jax.vmap(transition.p_log_probs, (None, None, 0, 0, None, None)), static_argnums=1
        )
        steps = []
        for t, s in itertools.pairwise(times):
            tiled = [np.tile(y[t], (len(CLEAN), 1, 1)) for y in logits]
            full = np.full((len(x0), 2), t, np.int32)
            kl, _ = terms(kernel, tiled, x0, xt, full, free, full - t + s)
            parts = []
            for m, where in enumerate(TINY.slices):
                local = TINY.local(m, STATES[:, where])
                log_p0 = jax.nn.log_softmax(logits[m][t], axis=-1)
                parts.append(np.exp(reverse(kernel, m, log_p0, local, np.int32(s), np.int32(t))))
            steps.append((parts, np.asarray(kl).sum(1).reshape(len(CLEAN), len(STATES))))
        prior = sum(
            m.length * float(objective.prior_kl(kernel, i)) for i, m in enumerate(TINY.modalities)
        )
    return steps, prior


def places(m):
    """The local id of every state at the positions of modality m, int[states, length]."""
    return np.asarray(TINY.local(m, STATES[:, TINY.slices[m]]))


def joint_step(parts):
    """p(x_s | x_t) of whole sequences from that of the positions: float[states, states]."""
    matrix = np.ones((len(STATES), len(STATES)))  # [x_t, x_s]
    for m, part in enumerate(parts):
        for position in range(part.shape[1]):
            matrix *= part[:, position][:, places(m)[:, position]]
    return matrix


def joint_forward(tables, t):
    """q(x_t | x_0) of whole sequences, float[clean, states]."""
    q = dense.cumulative(TINY, tables, t)
    return np.prod(q[STATES[None], STATES[CLEAN][:, None]], axis=-1)


@pytest.mark.parametrize(
    "name, times",
    [
        ("linear", (4, 3, 2, 1, 0)),
        ("linear", (4, 2, 0)),
        ("mask_and_replace", (4, 3, 1, 0)),
        ("absorbing", (4, 3, 2, 1, 0)),
        ("uniform", (4, 3, 2, 1, 0)),
        ("hybrid", (4, 1, 0)),
    ],
)
def test_the_likelihood_is_never_above_the_bound_and_the_bound_is_the_enumerated_one(name, times):
    tables = two_schedules(name, TINY_T)
    rng = np.random.default_rng(3)
    logits = [
        rng.normal(size=(TINY_T + 1, len(STATES), m.length, m.classes)) for m in TINY.modalities
    ]
    steps, prior = tiny_terms(tables, logits, times)

    law = np.ones(len(STATES))  # p(x_T)
    for m, (modality, table) in enumerate(zip(TINY.modalities, tables, strict=True)):
        part = np.append(
            np.full(modality.classes, table.unmasked[-1] / modality.classes), table.gamma_bar[-1]
        )
        law *= np.prod(part[places(m)], axis=1)
    bound = np.full(len(CLEAN), prior)
    q_T = joint_forward(tables, TINY_T)
    with np.errstate(divide="ignore", invalid="ignore"):
        enumerated = np.where(q_T > 0, q_T * np.log(q_T / law), 0).sum(1)
    for (t, s), (parts, kl) in zip(itertools.pairwise(times), steps, strict=True):
        p, q_t = joint_step(parts), joint_forward(tables, t)
        bound += (np.where(q_t > 0, q_t * kl, 0)).sum(1)
        # The same KL from joint posteriors, q(x_s | x_t, x_0) ~ q(x_s | x_0) q(x_t | x_s).
        forward = np.prod(dense.step(TINY, tables, s, t)[STATES[:, None], STATES[None]], axis=-1)
        q = joint_forward(tables, s)[:, None] * forward[None]  # [x_0, x_t, x_s]
        q = np.divide(
            q, q.sum(-1, keepdims=True), out=np.zeros_like(q), where=q.sum(-1, keepdims=True) > 0
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(q > 0, q * np.log(q / p[None]), 0).sum(-1)
        enumerated += (q_t * each).sum(1)
        law = law @ p
    exact = -np.log(law[CLEAN])
    np.testing.assert_allclose(law[CLEAN].sum(), 1, atol=1e-9)
    np.testing.assert_allclose(bound, enumerated, atol=1e-8)
    assert (exact <= bound + 1e-9).all() and (bound - exact).max() > 1e-3


def test_the_bound_of_a_network_that_is_certain_is_what_noise_leaves_at_time_T():
    part = 0.6 * np.arange(T + 1) / T
    table = schedules.Schedule(1 - part, part, np.zeros(T + 1))  # 0.4 of the tokens are left
    kernel = transition.make_kernel(LAYOUT, table)
    x0 = np.array([[0, 1, 3, 4, 3], [2, 2, 4, 5, 6]], np.int32)

    def certain(xt, t, free):
        return tuple(
            jnp.where(transition.is_class(LAYOUT.local(m, x0[:, where]), modality.classes), 0, -1e4)
            for m, (modality, where) in enumerate(
                zip(LAYOUT.modalities, LAYOUT.slices, strict=True)
            )
        )

    keys, free = jax.random.split(jax.random.key(0), 2), np.ones(x0.shape, bool)
    ours = objective.bound(kernel, certain, keys, x0, free, np.zeros((2, 2), bool), times=3)
    theirs = [0.4 * m.length * np.log(m.classes) for m in LAYOUT.modalities]
    np.testing.assert_allclose(ours, [theirs] * 2, rtol=1e-5)


def test_given_and_absent_positions_carry_no_loss_and_pads_do():
    kernel = transition.make_kernel(LAYOUT, schedules.linear(T))
    rng = np.random.default_rng(0)
    logits = [
        rng.normal(size=(3, m.length, m.classes)).astype(np.float32) for m in LAYOUT.modalities
    ]
    x0 = np.array([[0, 1, 3, 3, 3], [2, 2, 4, 5, 6], [1, 0, 3, 4, 3]], np.int32)
    xt = np.full((3, 5), LAYOUT.mask_id, np.int32)
    free = np.array(
        [[True] * 5, [True, True, False, False, False], [False, True, False, True, False]]
    )
    t = np.array([[4, 4], [4, T], [2, 2]], np.int32)
    kl, nll = jax.jit(objective.loss_terms)(kernel, logits, x0, xt, t, free)
    assert ((np.asarray(kl) > 0) == free).all() and ((np.asarray(nll) > 0) == free).all()


def test_cross_entropy_at_a_mask_is_the_kl_over_its_chance_to_be_revealed():
    kernel = transition.make_kernel(LAYOUT, schedules.cosine(T))
    s, t, i, j, logits = cases(4)
    ours = everything(kernel, 1, logits.astype(np.float32), i, j, s, t)
    gamma = schedules.cosine(T).gamma_bar
    expected = np.where(j == 4, 1 - gamma[s] / gamma[t], 0) * ours["nll"]
    np.testing.assert_allclose(ours["kl"], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: transition.make_kernel(LAYOUT, [schedules.linear(3)]), "1 schedules for 2"),
        (
            lambda: transition.make_kernel(LAYOUT, [schedules.linear(3), schedules.linear(4)]),
            r"differ in T: \[3, 4\]",
        ),
    ],
)
def test_schedules_that_do_not_fit_are_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ---- Memory -------------------------------------------------------------------------------------


def loss_of(kernel, x0, xt, t, function):
    """(logits) -> the loss of a batch of free positions, by `loss_terms` or by `whole`."""

    def loss(logits):
        kl, nll = function(kernel, logits, x0, xt, t, jnp.ones(x0.shape, bool))
        return (kl * jnp.cos(jnp.arange(kl.shape[1]))[None] + 0.01 * nll).sum()

    return loss


def whole(kernel, logits, x0, xt, t, free):
    """`loss_terms` without pieces, differentiated by jax."""
    parts = []
    for m, where in enumerate(kernel.vocab.slices):
        at = jnp.broadcast_to(t[:, m : m + 1], x0[:, where].shape)
        local = (kernel.vocab.local(m, x[:, where]) for x in (x0, xt))
        parts.append(objective.token_terms(kernel, m, logits[m], *local, at - 1, at))
    return [jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True)]


def long_batch(grid, image_classes, text_classes, text_length):
    """Enough positions to be taken in pieces: kernel, x0, xt, t and sizes of the logits."""
    layout = vocab.image_text(grid, image_classes, text_classes, text_length)
    kernel = transition.make_kernel(layout, schedules.mask_and_replace(20, 0.2))
    t = jnp.asarray([[7, 12], [1, 20]])
    x0 = np.zeros((2, layout.length), np.int32)
    x0[:, layout.length - text_length :] = layout.offsets[1] + 1
    at = transition.free_times(layout, t, np.ones(x0.shape, bool))
    xt = jax.jit(transition.q_sample)(kernel, jax.random.key(0), x0, at)
    return kernel, x0, xt, t, [(2, m.length, m.classes) for m in layout.modalities]


def test_the_gradient_of_the_loss_in_pieces_is_that_of_the_loss():
    *batch, sizes = long_batch((5, 7), 6, 4, 33)
    keys = jax.random.split(jax.random.key(1))
    logits = [jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True)]
    ours, expected = (
        jax.jit(jax.value_and_grad(loss_of(*batch, function)))(logits)
        for function in (objective.loss_terms, whole)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), ours, expected
    )
    assert min(float(jnp.abs(y).max()) for y in ours[1]) > 0.01


def test_the_loss_holds_no_array_of_the_size_of_the_logits():
    """But for the gradient, which is its result."""
    *batch, sizes = long_batch((16, 16), 509, 1021, 64)
    size = 4 * sum(int(np.prod(s)) for s in sizes)
    held = []
    for function in (objective.loss_terms, whole):
        gradient = jax.jit(jax.grad(loss_of(*batch, function)))
        logits = [jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes]
        memory = gradient.lower(logits).compile().memory_analysis()
        assert memory.output_size_in_bytes >= size
        held.append(memory.temp_size_in_bytes / size)
    assert held[0] < 0.6 and held[1] > 1.5, held  # in quarters, and at once


# ---- Between the times --------------------------------------------------------------------------


def test_between_its_entries_gamma_is_on_a_straight_line_and_the_rate_is_its_slope_over_it():
    tables = [schedules.cosine(T), schedules.absorbing(T)]
    kernel = transition.make_kernel(LAYOUT, tables)
    found = transition.instant(kernel, jnp.array([[2.25, 4.5]]))
    (a, b), (c, d) = (table.gamma_bar[i : i + 2] for table, i in zip(tables, (2, 4), strict=True))
    gamma = np.array([[0.75 * a + 0.25 * b, (c + d) / 2]])
    np.testing.assert_array_equal(found.t, [[3, 5]])
    np.testing.assert_allclose(found.gamma, gamma, rtol=1e-6)
    np.testing.assert_allclose(found.rate, np.array([[b - a, d - c]]) / gamma, rtol=1e-5)


def test_the_continuous_bound_counts_masks_alone_at_the_rate_of_their_modality():
    kernel = transition.make_kernel(LAYOUT, [schedules.absorbing(T)] * 2)
    xt = jnp.array([[0, LAYOUT.mask_id, 3, LAYOUT.mask_id, 4]])
    nll, rate = jnp.array([[1.0, 2, 3, 4, 5]]), jnp.array([[10.0, 100.0]])
    found = objective.continuous_terms(kernel, nll, xt, rate)
    np.testing.assert_array_equal(found, [[0, 20, 0, 400, 0]])
