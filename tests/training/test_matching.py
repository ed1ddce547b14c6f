"""Matching: its value by hand, and which part of the loss teaches which network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from udd_jax.diffusion import schedules, tasks, transition, vocab
from udd_jax.networks import dual_encoder
from udd_jax.training import matching, terms

VOCAB = vocab.image_text(grid=(1, 3), image_classes=4, text_classes=5, text_length=2)
KERNEL = transition.make_kernel(VOCAB, schedules.make("absorbing", 4))
MODEL = dual_encoder.DualEncoder(VOCAB, 4, padding=0, width=8, layers=1, heads=2)
# An image given a text, a text given an image, an image alone, both.
FREE = np.array([[1, 1, 0, 0, 0], [0, 0, 0, 1, 1], [1, 1, 1, 0, 0], [0, 1, 0, 0, 1]], bool)
ABSENT = np.array([[0, 0], [0, 0], [0, 1], [0, 0]], bool)
X0 = np.array([[0, 1, 2, 5, 6], [3, 3, 1, 8, 6], [2, 0, 0, 7, 4], [1, 2, 3, 5, 5]], np.int32)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def tables(own, logits):
    """Scores of (predicted images, real texts), (real images, predicted texts), real pairs."""
    encode = functools.partial(MODEL.apply, {"params": own}, method="encode")
    clean, real, made = jnp.zeros(4, jnp.int32), [], []
    for m, (name, where) in enumerate(zip(("image", "text"), VOCAB.slices, strict=True)):
        ids = VOCAB.local(m, X0[:, where])
        one_hot = jax.nn.one_hot(ids, logits[m].shape[-1])
        soft = jnp.where(FREE[:, where, None], jax.nn.softmax(logits[m]), one_hot)
        real.append(encode(name, ids, clean))
        made.append(encode(name, soft, clean))
    pairs = functools.partial(dual_encoder.pairs, dual_encoder.both)
    return pairs(made[0], real[1]), pairs(real[0], made[1]), pairs(*real)


@pytest.fixture(scope="module")
def made():
    """(value, logged), gradients for (own, logits), tables, the encoder's own gradient."""
    rng = np.random.default_rng(0)
    logits = tuple(
        jnp.asarray(rng.normal(size=(4, m.length, m.classes)), jnp.float32)
        for m in VOCAB.modalities
    )
    learned = matching.make(KERNEL, 0, width=8, layers=1, heads=2)

    def value(own, logits):
        masks = tasks.Masks(jnp.asarray(FREE), jnp.asarray(ABSENT))
        outcome = terms.Outcome(jnp.asarray(X0), None, None, masks, logits, None, None)
        value, logged = learned.term(own, None, outcome, None)
        return value.sum(), (value, logged)

    def learns(own):
        log_p = [jax.nn.log_softmax(10 * tables(own, logits)[2], axis) for axis in (0, 1)]
        return -sum(jnp.trace(y) for y in log_p) / 2

    @jit
    def all_of(key):
        own = learned.create(key)
        gradients, out = jax.grad(value, (0, 1), has_aux=True)(own, logits)
        return out, gradients, tables(own, logits), jax.grad(learns)(own)

    return all_of(jax.random.key(0))


def test_its_value_is_the_surprise_at_the_own_pair_of_what_is_asked(made):
    (value, _), _, (images, texts, real), _ = made
    surprise = lambda table, axis: -np.diag(jax.nn.log_softmax(10 * table, axis))  # noqa: E731
    wanted = (surprise(real, 0) + surprise(real, 1)) / 2
    wanted = wanted + surprise(images, 1) * [1, 0, 0, 1] + surprise(texts, 0) * [0, 1, 0, 1]
    np.testing.assert_allclose(value, wanted, rtol=1e-5)


def test_predictions_teach_the_network_only_and_real_pairs_the_encoder_only(made):
    _, (own, logits), _, alone = made
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), own, alone)
    for m, where in enumerate(VOCAB.slices):
        moved = np.abs(np.asarray(logits[m])).sum(-1) > 0
        asked = FREE[:, where] & ~ABSENT[:, 1 - m][:, None]
        np.testing.assert_array_equal(moved, asked)


def test_it_is_off_at_0_and_its_parameters_lie_apart_from_the_networks():
    c = t2i.get_config("smoke")
    assert matching.from_config(c, KERNEL, 0) == {}
    c.train.matching = 0.5
    found = matching.from_config(c, KERNEL, 0)
    assert found["matching"][0] == 0.5
    shapes = jax.eval_shape(lambda: terms.own(found, jax.random.key(0)))
    assert {"image", "text", "tau"} <= shapes["matching"].keys()
    network, again = terms.split({"blocks": 1, terms.OWN: shapes})
    assert network == {"blocks": 1} and again is shapes
    assert terms.own({"matching": (0.0, found["matching"][1])}, jax.random.key(0)) == {}
