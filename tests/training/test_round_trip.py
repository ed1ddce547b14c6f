"""The round trip: its mean by enumeration, and a gradient that goes through the drawn tokens."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from udd_jax.diffusion import schedules, tasks, transition, vocab
from udd_jax.networks import transformer
from udd_jax.training import round_trip, terms

VOCAB = vocab.image_text(grid=(1, 2), image_classes=2, text_classes=3, text_length=2)
T, MASK = 4, VOCAB.mask_id
KERNEL = transition.make_kernel(VOCAB, schedules.make("absorbing", T))
# A text given an image, an image given a text, an image alone, half of a text.
FREE = np.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]], bool)
ABSENT = np.array([[0, 0], [0, 0], [0, 1], [0, 0]], bool)
X0 = np.array([[0, 1, 2, 4], [1, 1, 3, 2], [0, 0, 2, 2], [1, 0, 3, 4]], np.int32)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def made():
    options = {"layers": 1, "width": 8, "heads": 2, "rezero": 1.0, "attention": "self"}
    model = transformer.Transformer(VOCAB, T, time="per_modality", **options)
    params = transformer.init(model, jax.random.key(0), fan_in=True)
    rng = np.random.default_rng(1)
    logits = tuple(
        jnp.asarray(rng.normal(size=(4, 2, m.classes)), jnp.float32) for m in VOCAB.modalities
    )

    def value(logits, key):
        def denoise_fn(xt, t, free, **soft):
            return model.apply({"params": params}, xt, t, free, **soft)

        xt = jnp.where(FREE, MASK, X0)
        masks = tasks.Masks(jnp.asarray(FREE), jnp.asarray(ABSENT))
        t = jnp.where(ABSENT, T, 2)
        outcome = terms.Outcome(jnp.asarray(X0), xt, t, masks, logits, xt * 0.0, xt * 0.0)
        return round_trip.trip(KERNEL, denoise_fn, outcome, key)[0]

    network = jit(lambda x, t, free: model.apply({"params": params}, x, t, free))
    grad = jit(jax.grad(lambda logits, key: value(logits, key).sum()))
    return logits, jit(jax.vmap(value, (None, 0))), grad, network


def expected(logits, network):
    """Each row's mean over all tokens that can be drawn, by sums; the way back starts masked."""
    total = np.zeros(4)
    for row, m in ((0, 1), (1, 0), (3, 1)):
        laws = np.asarray(jax.nn.softmax(logits[m][row], axis=-1), float)
        places = np.flatnonzero(FREE[row])
        for drawn in itertools.product(range(laws.shape[1]), repeat=len(places)):
            x, free = X0[row].copy(), VOCAB.modality_of != m
            x[places] = np.array(drawn) + VOCAB.offsets[m]
            weight = np.prod([laws[i % 2, k] for i, k in zip(places, drawn, strict=True)])
            t = np.where(np.arange(2) == m, 0, T).astype(np.int32)
            y = network(np.where(free, MASK, x)[None], t[None], free[None])[1 - m][0]
            log_p = np.asarray(jax.nn.log_softmax(y, axis=-1), float)
            asked = X0[row, free] - VOCAB.offsets[1 - m]
            total[row] -= weight * log_p[np.arange(2), asked].sum() / VOCAB.length
    return total


def test_its_mean_is_the_sum_over_all_that_can_be_drawn(made):
    """Within four standard errors of 4000 draws; 0 where the other modality is absent."""
    logits, value, _, network = made
    draws = np.asarray(value(logits, jax.random.split(jax.random.key(1), 4000)), float)
    right = expected(logits, network)
    assert (draws[:, 2] == 0).all() and right[2] == 0
    error = draws.std(0) / np.sqrt(len(draws))
    assert (error[[0, 1, 3]] > 0).all()
    assert (abs(draws.mean(0) - right) <= 4 * error + 1e-7).all()


def test_the_first_direction_learns_where_it_is_free_only(made):
    logits, _, grad, _ = made
    image, text = (np.abs(np.asarray(g)).sum(-1) > 0 for g in grad(logits, jax.random.key(2)))
    np.testing.assert_array_equal(image, [[False, False], [True, True], *[[False, False]] * 2])
    np.testing.assert_array_equal(text, [[True, True], *[[False, False]] * 2, [False, True]])


def test_it_is_off_at_0_and_needs_times_of_modalities():
    c = t2i.get_config("smoke")
    assert round_trip.from_config(c, KERNEL) == {}
    c.train.round_trip = 1.0
    assert list(round_trip.from_config(c, KERNEL)) == ["round_trip"]
    c.model.time = "shared"
    with pytest.raises(ValueError, match=r"round_trip = 1.0 with model.time = 'shared'"):
        round_trip.from_config(c, KERNEL)
