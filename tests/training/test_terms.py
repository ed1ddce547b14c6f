"""A user's own loss terms: functions in a table. With weight 0 no bit of the loss changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import test_train_diffusion as plain


@functools.cache  # without terms it is asked several times
def value(of=lambda f: f, **terms):
    """`of` the loss of a batch of pairs with these terms: (loss, (metrics, time sampler))."""
    _, kernel, model, *_ = plain.setting()
    state = plain.fresh()
    loss_fn = plain.make_loss(kernel, model, mixture={"i2t": 1.0}, terms=terms)
    x0 = plain.VOCAB.fuse(plain.batch(0))
    return jax.jit(of(loss_fn))(state.params, state.times, jax.random.key(3), x0)


def wide(denoise_fn, outcome, key):
    """Twice the auxiliary loss, by another way: the network is called again."""
    logits = denoise_fn(outcome.xt, outcome.t, outcome.masks.free)
    np.testing.assert_array_equal(logits[1].shape, outcome.logits[1].shape)
    return 2 * outcome.nll, {"wide": outcome.nll.sum()}


def lengthy(denoise_fn, outcome, key):
    return jnp.full(len(outcome.x0), 3.0), {}


def test_a_term_of_weight_0_changes_no_bit():
    gradient = functools.partial(jax.value_and_grad, has_aux=True)
    bare, with_none = value(gradient), value(gradient, mine=(0.0, wide))
    jax.tree.map(np.testing.assert_array_equal, bare, with_none)


def test_a_term_by_position_is_weighed_like_the_auxiliary_loss():
    """The auxiliary loss has weight .1 in both: .1 + 2 x .2 = .5."""
    mine, (metrics, _) = value(mine=(0.2, wide))
    bare, alone = value()[0], value(mine=(0.1, wide))[0]
    np.testing.assert_allclose(mine - bare, 2 * (alone - bare), rtol=1e-5)
    assert metrics["wide"] > 0


def test_a_term_by_sample_enters_as_its_mean():
    np.testing.assert_allclose(value(mine=(0.5, lengthy))[0] - value()[0], 1.5, rtol=1e-5)


def test_a_term_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="loss term 'bad' has shape"):
        value(bad=(1.0, lambda f, outcome, key: (outcome.nll.sum(), {})))


def test_each_term_has_a_key_of_its_own():
    def drawn(name):
        return lambda f, outcome, key: (outcome.nll, {name: jax.random.uniform(key)})

    _, (metrics, _) = value(a=(0.1, drawn("a")), b=(0.1, drawn("b")))
    assert len({float(metrics["a"]), float(metrics["b"])}) == 2
