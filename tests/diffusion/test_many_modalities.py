"""Three and five modalities: the unified matrix, an absent modality, and exact samplers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.helpers import dense, finite
from udd_jax.diffusion import objective, schedules, tasks, transition
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings

T = 6
FIVE = (
    Modality("image", 4, 5, (2, 2)),
    Modality("text", 3, 4),
    Modality("sound", 2, 3, (1, 2)),
    Modality("layout", 1, 2),
    Modality("length", 1, 6),
)


def tables(count):
    """Another schedule for each modality."""
    makers = (
        schedules.mask_and_replace(T, 0.5),
        schedules.absorbing(T),
        schedules.hybrid(T, 0.3),
        schedules.uniform(T),
        schedules.linear(T),
    )
    return list(makers[:count])


@pytest.mark.parametrize("count", (3, 5))
def test_columns_sum_to_one_and_the_code_has_no_mass_outside_a_block(count):
    vocab, chosen = Vocab(FIVE[:count]), tables(count)
    grids = [np.divmod(np.arange((T + 1) * m.classes), m.classes) for m in vocab.modalities]

    @finite.quick
    def laws():  # q(x_t | x_0) of each modality at each time and class, float64[T+1, K, K+1]
        kernel = transition.make_kernel(vocab, chosen, jnp.float64)
        rows = [transition.q_log_probs(kernel, m, i, t) for m, (t, i) in enumerate(grids)]
        return [jnp.exp(row).reshape(T + 1, -1, row.shape[-1]) for row in rows]

    with jax.enable_x64(True):
        q = [np.asarray(law) for law in laws()]
    for t in range(1, T + 1):
        full = np.zeros((vocab.size, vocab.size))
        full[-1, -1] = 1  # the mask stays
        for m, (modality, offset) in enumerate(zip(vocab.modalities, vocab.offsets, strict=True)):
            block = np.arange(offset, offset + modality.classes)
            full[np.ix_([*block, vocab.mask_id], block)] = q[m][t].T
        np.testing.assert_allclose(full.sum(0), 1, atol=1e-12)
        np.testing.assert_allclose(full, dense.cumulative(vocab, chosen, t), atol=1e-13)
        np.testing.assert_allclose(dense.step(vocab, chosen, 0, t), full, atol=1e-12)


def test_noise_keeps_every_token_in_its_own_modality():
    vocab = Vocab(FIVE)
    kernel = transition.make_kernel(vocab, tables(5))
    first = np.repeat(vocab.offsets, [m.length for m in FIVE])
    classes = np.repeat([m.classes for m in FIVE], [m.length for m in FIVE])
    x0 = np.tile(first, (500, 1)).astype(np.int32)
    times = np.full(x0.shape, T - 1, np.int32)
    xt = np.asarray(finite.quick(transition.q_sample)(kernel, jax.random.key(0), x0, times))
    inside = (first <= xt) & (xt < first + classes)
    assert (inside | (xt == vocab.mask_id)).all()
    changed = ((xt != x0) & inside).any(0)
    assert changed[:4].all() and not changed[4:7].any()  # absorbing: text is masked, never replaced


def test_an_absent_modality_leaves_the_losses_of_the_others_bit_for_bit():
    two, three = Vocab(FIVE[:2]), Vocab(FIVE[:3])
    rng = np.random.default_rng(0)
    tokens = {m.name: rng.integers(0, m.classes, (6, m.length)) for m in FIVE[:3]}
    noisy = {m.name: rng.integers(0, m.classes + 1, (6, m.length)) for m in FIVE[:3]}
    noisy["text"] = np.where(rng.random((6, 3)) < 0.5, tokens["text"], FIVE[1].classes)
    logits = [rng.normal(size=(6, m.length, m.classes)).astype(np.float32) for m in FIVE[:3]]

    def terms(vocab):
        count = len(vocab.modalities)
        kernel = transition.make_kernel(vocab, tables(count))
        masks = tasks.masks(vocab, "image,text", 6)
        t = tasks.times(vocab, masks, jnp.arange(1, 7), T)
        rows = [vocab.globalise(m, noisy[of.name]) for m, of in enumerate(vocab.modalities)]
        batch = vocab.fuse(tokens), jnp.concatenate(rows, axis=1), t, masks.free
        return finite.quick(objective.loss_terms)(kernel, logits[:count], *batch)

    for small, large in zip(terms(two), terms(three), strict=True):
        assert np.asarray(small).any()
        np.testing.assert_array_equal(small, large[:, : two.length])
        assert not np.asarray(large[:, two.length :]).any()


# ---- Exact samplers -----------------------------------------------------------------------------

WORLD = Vocab((Modality("a", 2, 2), Modality("b", 1, 3), Modality("c", 2, 2)))
STATES = np.array(
    list(itertools.product(*(range(m.classes) for m in WORLD.modalities for _ in range(m.length))))
)
SHIFT = np.array(WORLD.offsets)[WORLD.modality_of]
LAW = np.random.default_rng(3).dirichlet(np.full(len(STATES), 0.5))
COUNT = 1000
# One token a call, in an order that hangs on nothing but what is visible, is exact; so is a chain
# whose steps seldom reveal two tokens.
EXACT = {
    "first_hitting": (T, Settings(sampler="first_hitting")),
    "entropy_bounded": (T, Settings(sampler="entropy_bounded", bound=0.0)),
    "threshold": (T, Settings(sampler="threshold", threshold=1.0)),
    "ancestral": (400, Settings(sampler="ancestral")),
    "tau_leaping": (400, Settings(sampler="tau_leaping")),
}


def denoise_fn(xt, t, free):
    """p(x_0 | what is visible), exactly. An absent modality is masked, so it tells nothing."""
    fits = ((xt[:, None] == (STATES + SHIFT)[None]) | (xt[:, None] == WORLD.mask_id)).all(-1)
    weight = jnp.where(fits, LAW.astype(np.float32)[None], 0)
    parts = zip(WORLD.modalities, WORLD.slices, strict=True)
    hot = [STATES[:, where, None] == np.arange(m.classes) for m, where in parts]
    return tuple(jnp.log(jnp.einsum("bi,ink->bnk", weight, h * 1.0) + 1e-30) for h in hot)


@functools.cache
def sample(name):
    steps, settings = EXACT[name]
    kernel = transition.make_kernel(WORLD, schedules.absorbing(steps))

    def run(key, x, free, absent):
        return reverse.run(kernel, denoise_fn, key, x, free, absent, settings).tokens

    return finite.quick(run)


@pytest.mark.parametrize("rule", ("a,b,c", "b|a,c", "a,c|b", "c|a", "a,b", "b"))
@pytest.mark.parametrize("sampler", EXACT)
def test_any_from_any_others_has_the_conditional_law(rule, sampler):
    masks = tasks.masks(WORLD, rule, COUNT)
    truth = np.random.default_rng(0).choice(len(STATES), COUNT, p=LAW)
    kept = np.asarray(~masks.free & ~masks.absent[:, WORLD.modality_of])
    x = (np.where(kept, STATES[truth], 0) + SHIFT).astype(np.int32)  # the rest tells nothing
    drawn = sample(sampler)(jax.random.key(1), x, masks.free, masks.absent)
    tokens = np.asarray(drawn)
    absent = np.asarray(masks.absent[0])[WORLD.modality_of]
    np.testing.assert_array_equal(tokens[kept], x[kept])

    # Where the given part follows its law, given and generated together follow theirs.
    law, seen = {}, {}
    for state, p in zip((STATES + SHIFT)[:, ~absent].tolist(), LAW, strict=True):
        law[tuple(state)] = law.get(tuple(state), 0) + p
    for row in tokens[:, ~absent].tolist():
        seen[tuple(row)] = seen.get(tuple(row), 0) + 1
    assert set(seen) <= set(law)
    often = [key for key, p in law.items() if p * COUNT >= 5]
    found, expected = [seen.get(k, 0) for k in often], [law[k] * COUNT for k in often]
    rest = COUNT - sum(expected)
    if rest > 1:
        found, expected = [*found, COUNT - sum(found)], [*expected, rest]
    assert len(found) > 2 and stats.chisquare(found, expected).pvalue > 1e-3
