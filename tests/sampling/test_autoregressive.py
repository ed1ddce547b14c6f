"""The autoregressive sampler, its likelihood and its guidance, against full passes and sums."""

import functools
import itertools

import jax
import numpy as np
import pytest

from udd_jax import build
from udd_jax.diffusion import random_words, schedules, tasks, transition, vocab
from udd_jax.networks import autoregressive, transformer
from udd_jax.sampling.settings import Settings

VOCAB = vocab.image_text(grid=(1, 2), image_classes=3, text_classes=3, text_length=2)
T, L = 4, 4
KERNEL = transition.make_kernel(VOCAB, schedules.make("linear", T))
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PAIRS = np.array(list(itertools.product(range(3), range(3), range(3, 6), range(3, 6))), np.int32)
ORDER = [2, 3, 0, 1]
categorical = jit(random_words.categorical)


def draw(words, log_p, settings):
    """Temperature and top-r by a sort, then a draw: uint32[B, 1], float[B, K] -> int[B]."""
    log_p = np.asarray(jax.nn.log_softmax(log_p / settings.temperature, axis=-1))
    order = np.argsort(-log_p, axis=-1)
    mass = np.take_along_axis(np.exp(log_p.astype(np.float64)), order, axis=-1)
    kept = mass.cumsum(-1) - mass < settings.top_r
    kept = np.take_along_axis(kept, np.argsort(order, axis=-1), axis=-1)
    log_p = jax.nn.log_softmax(np.where(kept, log_p, -np.inf), axis=-1)
    return np.asarray(categorical(words[:, 0], log_p))


@pytest.fixture(scope="module")
def made():
    options = {"layers": 1, "width": 8, "heads": 2, "rezero": 1.0, "attention": "self"}
    model = autoregressive.Autoregressive(VOCAB, T, time="per_modality", **options)
    shapes = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda p: rng.normal(0, 0.5, p.shape).astype(np.float32), shapes)
    generator = build.GENERATORS["autoregressive"](KERNEL, model)
    options = {"trace": 2, "still": None, "guide": None, "scorers": ()}
    run = jit(functools.partial(generator.sample, params, **options))
    nats = jit(functools.partial(generator.bound, params, times=1, calls=0, still=None))
    return generator, run, nats, jit(autoregressive.Predictor(model, params))


def masks(task, count):
    return tasks.masks(VOCAB, task, count)


def bound(made, task, x):
    return np.asarray(made[2](None, x, masks(task, len(x)))).astype(np.float64)


def test_the_likelihood_is_exact(made):
    """It sums to one over all pairs, over the images of each text, and over images alone."""
    pair, t2i, text = (bound(made, task, PAIRS) for task in ("pair", "t2i", "text"))
    assert np.exp(-pair.sum(1)).sum() == pytest.approx(1, abs=1e-6)
    assert np.exp(-t2i.sum(1)).sum() == pytest.approx(9, abs=1e-5)  # one for each text
    assert (t2i[:, 1] == 0).all() and (text[:, 0] == 0).all()
    image = np.exp(-bound(made, "image", PAIRS)[::9].sum(1))
    assert image.sum() == pytest.approx(1, abs=1e-6)


def sample(made, task, x, settings, negative=None, seed=3):
    keys = jax.random.split(jax.random.key(seed), len(x))
    return made[1](keys, x, *masks(task, len(x)), settings, negative)


def one_by_one(made, task, x, settings, negative=None):
    """The sampler as a Python loop of full passes: tokens int32[B, L]."""
    network, (free, absent) = made[3], masks(task, len(x))
    keys = jax.random.split(jax.random.key(3), len(x))
    free, x = np.asarray(free), np.where(free, VOCAB.mask_id, x)
    t = np.where(np.asarray(absent), T, np.where([[free[0, w].any() for w in VOCAB.slices]], 1, 0))

    def log_p(x, t, free, i):
        logits = network(x, t, free)[int(i >= 2)][:, i % 2]
        return jax.nn.log_softmax(logits, axis=-1)

    for step, i in enumerate(i for i in ORDER if free[0, i]):
        words = random_words.words(jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + step), (1,))
        guided, m = log_p(x, t, free, i), int(i >= 2)
        if settings.on("guidance"):
            mine = (VOCAB.modality_of == m)[None]
            known = (negative != VOCAB.mask_id).any(1, keepdims=True)
            away = np.where(np.arange(2)[None] == m, t, np.where(known, 0, T))
            other = np.where(known, negative, x)
            plain = log_p(np.where(mine, x, other), away, free & mine, i)
            strength = settings.guidance
            if settings.guidance_schedule == "linear":  # from 1 at the first token
                left = T * (free[0].sum() - step) // free[0].sum()
                strength = 1 + (settings.guidance - 1) * (1 - left / T)
            guided = plain + strength * (guided - plain)
            guided = jax.nn.log_softmax(guided, axis=-1)
        x = x.copy()
        x[:, i] = draw(words, guided, settings) + VOCAB.offsets[m]
    return x


@pytest.mark.parametrize("task", ["pair", "t2i", "i2t"])
def test_cached_sampling_equals_a_loop_of_full_passes(made, task):
    """With temperature and top-r, and it makes one call for each free token."""
    settings, x = Settings(temperature=1.3, top_r=0.8), PAIRS
    result = sample(made, task, x, settings)
    np.testing.assert_array_equal(result.tokens, one_by_one(made, task, x, settings))
    assert (result.calls == (4 if task == "pair" else 2)).all()
    first = np.asarray(result.states[0]) == VOCAB.mask_id
    hidden = {"pair": [0, 1], "t2i": [1], "i2t": [3]}[task]
    assert first[:, hidden].all() and first.sum() == len(hidden) * len(x)
    np.testing.assert_array_equal(result.states[1], result.tokens)


def test_guidance_is_the_weighted_sum_of_two_full_passes(made):
    """With an absent condition and with a negative prompt; it changes some samples."""
    settings, x = Settings(guidance=3.0), PAIRS
    nothing = np.full_like(PAIRS, VOCAB.mask_id)
    negative = np.where(np.arange(L)[None] >= 2, PAIRS[::-1], VOCAB.mask_id)
    plain = sample(made, "t2i", x, Settings()).tokens
    for task, away in (("t2i", nothing), ("t2i", negative), ("pair", nothing)):
        guided = sample(made, task, x, settings, away).tokens
        np.testing.assert_array_equal(guided, one_by_one(made, task, x, settings, away))
        assert task == "pair" or (guided != plain).any()


def test_linear_guidance_grows_with_the_share_of_filled_tokens(made):
    settings = Settings(guidance=5.0, guidance_schedule="linear")
    nothing = np.full_like(PAIRS, VOCAB.mask_id)
    even = sample(made, "t2i", PAIRS, Settings(guidance=5.0), nothing).tokens
    guided = sample(made, "t2i", PAIRS, settings, nothing).tokens
    np.testing.assert_array_equal(guided, one_by_one(made, "t2i", PAIRS, settings, nothing))
    assert (guided != even).any()


def test_samples_have_the_frequencies_of_the_likelihood(made):
    """729 samples of pairs: the mean of -log p is the entropy, within four standard errors."""
    drawn = [sample(made, "pair", PAIRS, Settings(), seed=seed).tokens for seed in range(9)]
    surprise = np.concatenate([bound(made, "pair", part).sum(1) for part in drawn])
    drawn = np.concatenate(drawn)
    each = bound(made, "pair", PAIRS).sum(1)
    entropy = (np.exp(-each) * each).sum()
    assert abs(surprise.mean() - entropy) < 4 * surprise.std() / 27
    counts = np.array([(drawn == pair[None]).all(1).sum() for pair in PAIRS])
    expected = 729 * np.exp(-each)
    chi = ((counts - expected) ** 2 / expected).sum()
    assert chi < 80 + 4 * np.sqrt(2 * 80)


@pytest.mark.parametrize("asked", [{"guide": max}, {"scorers": (max,)}])
def test_a_guide_and_scorers_are_refused(made, asked):
    asked = {"trace": 0, "still": None, "guide": None, "scorers": ()} | asked
    with pytest.raises(ValueError, match="guides and scorers do not go with"):
        made[0].sample({}, None, PAIRS, *masks("pair", 81), Settings(), None, **asked)
