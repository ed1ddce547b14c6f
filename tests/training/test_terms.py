"""A user's own loss terms: functions in a table. With weight 0 no bit of the loss changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import test_train_diffusion as plain
from udd_jax.runtime import trees
from udd_jax.training import loss, train_diffusion
from udd_jax.training import terms as loss_terms


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


def test_what_a_term_learns_is_saved_and_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """Of a loss that is no more than its terms, and a network of one number, for speed."""

    def make_loss(kernel, model, terms, **options):
        def loss_fn(params, sampler, key, x0):
            network, own = loss_terms.split(params)
            nothing = jnp.zeros(x0.shape)
            outcome = loss_terms.Outcome(x0, None, None, None, None, nothing, nothing)
            _, value, metrics = loss.add(terms, None, outcome, key, own)
            value += sum((p**2).sum() for p in jax.tree.leaves(network))
            return value, (metrics | {"loss": value}, sampler)

        return loss_fn

    def distance(own, denoise_fn, outcome, key):
        apart = ((own["place"] - jax.random.normal(key, (2,))) ** 2).sum()
        return jnp.full(len(outcome.x0), apart), {"apart": apart}

    mine = loss_terms.Learned(lambda key: {"place": jnp.array([3.0, -2.0])}, distance)
    monkeypatch.setitem(train_diffusion.LOSSES, "diffusion", make_loss)
    config = plain.setting()[0].copy_and_resolve_references()
    config.train.update({"steps": 4, "warmup": 0, "prefix_steps": 0, "save_every": 1})

    def train(where, fails=None):
        def batch_at(step):
            if step == fails:
                raise ZeroDivisionError
            return plain.batch(step)

        options = {"terms": {"mine": (0.5, mine)}, "start": {"rezero": np.float32(1)}}
        return train_diffusion.train(config, where, plain.VOCAB, 0, batch_at, **options)

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    params = train(whole)
    with pytest.raises(ZeroDivisionError):
        train(parts, fails=2)
    jax.tree.map(np.testing.assert_array_equal, train(parts), params)
    found, again = (trees.load_tree(where / loss_terms.OWN)[0] for where in (whole, parts))
    jax.tree.map(np.testing.assert_array_equal, found, again)
    assert found.keys() == {"mine"}
    moved = np.abs(found["mine"]["place"] - [3, -2])
    assert moved.min() > 0 and moved.max() < 0.5
    assert params.keys() == {"rezero"} and params["rezero"] != 1
