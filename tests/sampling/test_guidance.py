"""Guidance against the enumerated tilt."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import finite
from udd_jax.diffusion import schedules, tasks, transition
from udd_jax.sampling import guidance
from udd_jax.sampling.settings import Settings

LAYOUT, ITEMS = finite.LAYOUT, finite.ITEMS


def by_block(p):
    """float[B, L, V] -> one float[B, n, K] a modality."""
    return [
        p[:, where, offset : offset + m.classes]
        for m, where, offset in zip(LAYOUT.modalities, LAYOUT.slices, LAYOUT.offsets, strict=True)
    ]


def tilted(with_all, without, s):
    """log p of the tilt, normalised."""
    with np.errstate(divide="ignore"):
        log_p = s * np.log(with_all + 1e-30) + (1 - s) * np.log(without + 1e-30)
    return log_p - np.log(np.exp(log_p).sum(-1, keepdims=True))


@pytest.mark.parametrize("task", ("t2i", "pair", "infill", "negative"))
def test_guided_log_p_is_the_enumerated_tilt(task):
    t, s, tables = 60, 2.5, [schedules.absorbing(finite.STEPS)] * 2
    rng = np.random.default_rng(1)
    x, free, absent = finite.batch_of([{"negative": "t2i"}.get(task, task)] * 8)
    # Little is visible, and what is given is of no item: else every branch is certain of one.
    hidden = free & (rng.random(x.shape) < np.linspace(0.8, 1, 8)[:, None])
    classes = np.array([m.classes for m in LAYOUT.modalities])[LAYOUT.modality_of]
    some = rng.integers(0, classes, x.shape) + np.array(LAYOUT.offsets)[LAYOUT.modality_of]
    xt = np.where(hidden, LAYOUT.mask_id, np.where(free, x, some)).astype(np.int32)
    negative = None
    if task == "negative":
        negative = np.concatenate([np.full((8, 12), LAYOUT.mask_id), ITEMS[8:16, 12:]], axis=1)

    with jax.enable_x64(True):
        kernel = transition.make_kernel(LAYOUT, tables, jnp.float64)
        prior = transition.prior_sample(kernel, jax.random.key(0), 8)
        scene = guidance.Scene(
            kernel,
            Settings(guidance=s),
            tasks.Masks(jnp.asarray(free), jnp.asarray(absent)),
            prior,
            None if negative is None else jnp.asarray(negative, jnp.int32),
        )
        predict = guidance.predictor(finite.oracle(kernel), scene, jnp.asarray(xt))
        ours = [np.asarray(y) for y in finite.quick(predict)(xt, jnp.full(8, t, jnp.int32))]

    everything = by_block(finite.predict(tables, xt, t, free))
    for m, where in enumerate(LAYOUT.slices):
        here = LAYOUT.modality_of == m
        if negative is None:
            other = finite.predict(tables, xt, t, free, silent=~here[None])
        else:
            instead = np.where(here, xt, negative)
            other = finite.predict(tables, instead, t, free & here)
        scale = s if free[:, where].any() else 1
        expected = tilted(everything[m], by_block(other)[m], scale)
        likely = expected > np.log(1e-12)
        if free[:, where].any():
            plain = tilted(everything[m], everything[m], 1)
            assert np.abs(expected - plain)[likely].max() > 0.1
        assert (ours[m][~likely] < np.log(1e-9)).all()
        np.testing.assert_allclose(ours[m][likely], expected[likely], atol=1e-6)


def test_the_guidance_weight_follows_its_schedule():
    t = jnp.asarray([0, 25, 50, 100])
    weight = functools.partial(guidance.strength, t=t, steps=100)
    np.testing.assert_allclose(weight(Settings(guidance=3)), 3)
    linear = Settings(guidance=3, guidance_schedule="linear")
    np.testing.assert_allclose(weight(linear), [3, 2.5, 2, 1])
    inside = Settings(guidance=3, guidance_schedule="interval", guidance_interval=(0.2, 0.5))
    np.testing.assert_allclose(weight(inside), [1, 3, 3, 1])


@pytest.mark.parametrize("schedule", ["mask_and_replace", "absorbing"])
def test_a_scorer_sees_what_is_known_as_it_is_and_the_rest_as_the_network_says(schedule):
    """Known: given tokens, and those that are shown of noise that only masks; not absent ones."""
    tables = [schedules.MAKERS[schedule](finite.STEPS)] * 2
    x, free, absent = finite.batch_of(["infill"] * 4 + ["image"] * 4)
    hidden = free & (np.random.default_rng(0).random(x.shape) < 0.5)
    beyond = ~free & (np.random.default_rng(1).random(x.shape) < 0.3)  # of a length: masked
    xt = jnp.asarray(np.where(hidden | beyond, LAYOUT.mask_id, x), jnp.int32)
    kernel = transition.make_kernel(LAYOUT, tables)
    masks = tasks.Masks(jnp.asarray(free), jnp.asarray(absent))
    prior = transition.prior_sample(kernel, jax.random.key(0), 8)
    scene, seen = guidance.Scene(kernel, Settings(), masks, prior, None), []

    def denoise_fn(x, t, free):  # it knows nothing
        return tuple(jnp.zeros((len(x), m.length, m.classes)) for m in LAYOUT.modalities)

    def scorer(x, t, log_p):
        seen.append(log_p)
        return (None,) * len(log_p)

    predict = guidance.predictor(denoise_fn, scene, xt, scorers=[scorer])
    untouched = predict(xt, jnp.full(8, 60, jnp.int32))
    known = ~free & ~absent[:, LAYOUT.modality_of] & ~beyond
    if schedule == "absorbing":
        known |= free & ~hidden
    assert known.any() and (free & ~known).any()
    for m, where in enumerate(LAYOUT.slices):
        p, here = np.exp(seen[0][m]), known[:, where]
        right = LAYOUT.offsets[m] + p.argmax(-1) == np.asarray(xt)[:, where]
        assert right[here].all() and (p.max(-1)[here] == 1).all()
        np.testing.assert_allclose(p[~here], 1 / p.shape[-1], rtol=1e-6)
        np.testing.assert_allclose(np.exp(untouched[m]), 1 / p.shape[-1], rtol=1e-6)
