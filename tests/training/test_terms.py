"""A user's own loss terms: functions in a table. With weight 0 no bit of the loss changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import test_train_diffusion as plain
from udd_jax.training import train_diffusion


@functools.cache  # without terms it is asked three times
def value(**terms):
    """(loss, metrics, gradient) of a batch of pairs, with these terms."""
    _, kernel, model, tx, _, _ = plain.setting()
    state = train_diffusion.create_state(model, tx, jax.random.key(0), fan_in=True)
    loss_fn = plain.make_loss(kernel, model, mixture={"i2t": 1.0}, terms=terms)
    x0 = plain.VOCAB.fuse(plain.batch(0))
    run = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (metrics, _)), gradient = run(state.params, state.times, jax.random.key(3), x0)
    return float(loss), metrics, gradient


def wide(denoise_fn, outcome, key):
    """Twice the auxiliary loss, by another way: the network is called again."""
    logits = denoise_fn(outcome.xt, outcome.t, outcome.masks.free)
    np.testing.assert_array_equal(logits[1].shape, outcome.logits[1].shape)
    return 2 * outcome.nll, {"wide": outcome.nll.sum()}


def lengthy(denoise_fn, outcome, key):
    return jnp.full(len(outcome.x0), 3.0), {}


def test_a_term_of_weight_0_changes_no_bit():
    bare, with_none = value(), value(mine=(0.0, wide))
    assert bare[0] == with_none[0] and bare[1].keys() == with_none[1].keys()
    jax.tree.map(np.testing.assert_array_equal, bare[2], with_none[2])


def test_a_term_by_position_is_weighed_like_the_auxiliary_loss():
    """The auxiliary loss has weight .1 in both: .1 + 2 x .2 = .5."""
    mine, metrics, _ = value(mine=(0.2, wide))
    bare, _, _ = value()
    alone, _, _ = value(mine=(0.1, wide))
    np.testing.assert_allclose(mine - bare, 2 * (alone - bare), rtol=1e-5)
    assert metrics["wide"] > 0


def test_a_term_by_sample_enters_as_its_mean():
    np.testing.assert_allclose(value(mine=(0.5, lengthy))[0] - value()[0], 1.5, rtol=1e-5)


def test_a_term_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="loss term 'bad' has shape"):
        value(bad=(1.0, lambda f, outcome, key: (outcome.nll.sum(), {})))
