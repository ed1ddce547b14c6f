"""The train step by hand: what it noises, what it weighs, and how it averages the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.helpers import finite
from udd_jax.diffusion import objective, schedules, time_sampling, transition, vocab
from udd_jax.training import loss as losses
from udd_jax.training import train_diffusion

LAYOUT = vocab.image_text((1, 2), image_classes=3, text_classes=4, text_length=3)
IMAGE, TEXT = LAYOUT.slices
T = 6
KERNEL = transition.make_kernel(LAYOUT, schedules.mask_and_replace(T, 0.3))
SQUARE = jnp.broadcast_to(jnp.asarray([0, 1, 1, 4, 9, 16, 25], jnp.float32), (3, T + 1))
SAMPLER = time_sampling.TimeSampler(SQUARE, jnp.full((3, T + 1), 99, jnp.int32))
X0 = jnp.asarray([[0, 1, 3, 4, 5], [2, 2, 6, 6, 3], [1, 0, 3, 5, 4], [0, 0, 4, 4, 4]] * 8)
RNG = np.random.default_rng(0)
TABLE = [RNG.normal(size=(m.length, m.classes)).astype(np.float32) for m in LAYOUT.modalities]


class Table:
    """A network without parameters, whose logits are TABLE."""

    @staticmethod
    def apply(variables, xt, t, free):
        return tuple(jnp.broadcast_to(y[None], (len(xt), *y.shape)) for y in TABLE)


@finite.quick
def step_of(x0):
    """The training loss of a mixture, and its parts: the noise and the terms."""
    key, mixture = jax.random.key(0), {"pair": 1.0, "image": 1.0, "independent": 1.0}
    loss_fn = losses.make_loss(
        KERNEL, Table, mixture=mixture, auxiliary=0.5, pad_id=0, pad_weight=1.0
    )
    noised = losses.noised_batch(KERNEL, SAMPLER, key, x0, mixture)
    logits = Table.apply({}, noised.xt, noised.t, noised.masks.free)
    terms = objective.loss_terms(KERNEL, logits, x0, noised.xt, noised.t, noised.masks.free)
    return loss_fn({}, SAMPLER, key, x0), noised, terms


def test_the_loss_is_the_sum_of_both_terms_over_the_chance_of_the_time():
    (loss, (metrics, sampler)), noised, (kl, nll) = jax.tree.map(np.asarray, step_of(X0))
    p = noised.p[:, LAYOUT.modality_of]
    assert len(np.unique(p)) > 3
    np.testing.assert_allclose(loss, ((kl + 0.5 * nll) / p).sum() / X0.size, rtol=1e-5)
    bound = (kl / p).sum() / noised.masks.free.sum()
    np.testing.assert_allclose(metrics["bound"], bound, rtol=1e-5)

    # What is told of guesses is of hidden places alone.
    hidden = noised.masks.free & (noised.xt == LAYOUT.mask_id)
    for m, (name, where) in enumerate(zip(("image", "text"), LAYOUT.slices, strict=True)):
        local = np.asarray(X0)[:, where] - LAYOUT.offsets[m]
        here, right = hidden[:, where], local == TABLE[m].argmax(-1)
        assert 0 < here.sum() < noised.masks.free[:, where].sum()
        np.testing.assert_allclose(metrics[f"{name}_nll"], nll[:, where][here].mean(), rtol=1e-5)
        accuracy = right[here].mean()
        np.testing.assert_allclose(metrics[f"{name}_accuracy"], accuracy, rtol=1e-5)

    nothing = losses.guesses(LAYOUT, [y[None] for y in TABLE], X0, nll, jnp.zeros(X0.shape, bool))
    assert len(nothing) == 4 and all(np.isnan(v) for v in nothing.values())

    # Independent rows have a time a modality, and enter no history; absent ones have none.
    entered = ~noised.independent
    assert (noised.t[~entered, 0] != noised.t[~entered, 1]).any()
    clock = np.where(noised.masks.absent, 0, noised.t).max(1)
    assert (clock < noised.t.max(1)).any()
    seen = np.zeros((3, T + 1), int)
    np.add.at(seen, (noised.histories[entered], clock[entered]), 1)
    np.testing.assert_array_equal(sampler.seen - SAMPLER.seen, seen)


def test_an_absent_text_is_a_draw_of_the_prior():
    _, ours, _ = step_of(X0)
    _, other, _ = step_of(X0.at[:, TEXT].set(3))
    rows = np.asarray(ours.masks.absent)[:, 1]
    text = np.asarray(ours.xt)[rows]
    np.testing.assert_array_equal(text, np.asarray(other.xt)[rows])
    assert (np.asarray(ours.xt)[~rows] != np.asarray(other.xt)[~rows]).any()
    assert (ours.t[rows, 1] == T).all() and (ours.t[rows, 0] < T).any()
    assert (text[:, TEXT] != LAYOUT.mask_id).any()  # 0.3 of the prior


def test_a_step_has_noise_of_its_own_and_early_averages_follow_the_weights():
    def loss_fn(params, sampler, key, x0):
        noise = jax.random.normal(key)
        return params["w"].sum(), ({"loss": params["w"].sum(), "noise": noise}, sampler)

    tx = optax.sgd(1.0)
    step = finite.quick(
        train_diffusion.make_step(loss_fn, tx, optax.constant_schedule(1.0), 0.3, LAYOUT)
    )
    w = {"w": jnp.full(2, 5.0)}
    state = train_diffusion.TrainState(jnp.int32(0), w, tx.init(w), w, SAMPLER)
    batch = {"image": X0[:, IMAGE], "text": X0[:, TEXT] - 3}
    noises, average = [], 5.0
    for k in range(5):
        state, metrics = step(state, batch, jax.random.key(0))
        noises.append(float(metrics["noise"]))
        decay = min(0.3, (1 + k) / (10 + k))  # .1, .18, .25, .3, .3
        average = decay * average + (1 - decay) * (4.0 - k)
        np.testing.assert_allclose(state.params["w"], 4.0 - k)
        np.testing.assert_allclose(state.ema_params["w"], average, rtol=1e-5)
    assert len(set(noises)) == 5
    expected = jax.random.normal(jax.random.fold_in(jax.random.key(0), 0))
    np.testing.assert_allclose(noises[0], expected, rtol=1e-6)
