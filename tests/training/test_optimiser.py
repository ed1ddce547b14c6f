"""The optimisers: what they clip and decay, how large their steps are, and at which rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import t2i
from tests.training.test_train_diffusion import fresh
from udd_jax.training import optimiser, train_image_tokenizer


def test_weight_decay_is_for_matrices():
    decays = optimiser._decays(fresh().params)
    assert decays["blocks"]["mlp"]["in"] == {"kernel": True, "bias": False}
    assert decays["embedding"]["token"] and not decays["embedding"]["text_position"]
    assert not decays["rezero"]
    assert not decays["norm"]["scale"]


def shrunk(name):
    """{path: how far a step without a gradient moves it}, of parameters that are all 2; the rate
    times the decay is 1/100."""
    config = t2i.get_config("smoke")
    config.train.update({"optimiser": name, "warmup": 0, "learning_rate": 0.04})
    config.train.weight_decay = 0.25
    tx, _ = optimiser.make_optimiser(config)
    full = functools.partial(jnp.full, fill_value=2.0)
    params = {
        "blocks": {"in": {"kernel": full((2, 4, 3)), "bias": full((2, 3))}},  # Muon has the kernel
        "head": {"kernel": full((3, 5)), "bias": full(5)},
        "norm": {"scale": full(3)},
        "rezero": full(()),
    }
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    return {jax.tree_util.keystr(path): u for path, u in jax.tree.leaves_with_path(updates)}


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_step_without_a_gradient_shrinks_matrices_by_the_rate_times_the_decay(name):
    found = [update for path, update in shrunk(name).items() if "kernel" in path]
    assert len(found) == 2
    for update in found:
        np.testing.assert_allclose(update, np.full(update.shape, -0.02), rtol=1e-5)


@pytest.mark.parametrize("name, moved", [("adamw", 0.0), ("muon", -0.02)])
def test_a_step_without_a_gradient_leaves_biases_and_norms_but_beside_muon(name, moved):
    found = {path: update for path, update in shrunk(name).items() if "kernel" not in path}
    assert len(found) == 4
    for path, update in found.items():
        np.testing.assert_allclose(update, np.full(update.shape, moved), rtol=1e-5, err_msg=path)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_learning_rate_warms_up_and_decays(decay):
    config = t2i.get_config("smoke")
    config.train.update({"decay": decay, "final_rate": 0.1})
    _, rate = optimiser.make_optimiser(config)
    c = config.train
    assert float(rate(0)) == 0
    np.testing.assert_allclose(rate(c.warmup), c.learning_rate, rtol=1e-6)
    np.testing.assert_allclose(rate(c.steps), 0.1 * c.learning_rate, rtol=1e-5)
    quarter = {"cosine": 0.1 + 0.9 * (1 + np.sqrt(0.5)) / 2, "linear": 1 - 0.9 / 4}[decay]
    down = rate(c.warmup + (c.steps - c.warmup) / 4)
    np.testing.assert_allclose(down, quarter * c.learning_rate, rtol=1e-5)


def test_the_length_of_the_whole_gradient_is_clipped_and_its_direction_stays():
    """AdamW by hand: of the first step, 50 long, a vector of length 1 enters its moments."""
    config = t2i.get_config("smoke")
    config.train.update({"optimiser": "adamw", "warmup": 0, "clip": 1.0, "weight_decay": 0.0})
    tx, rate = optimiser.make_optimiser(config)
    c, params = config.train, {"w": jnp.zeros(2)}
    state = tx.init(params)
    first, second = np.array([30.0, 40.0]), np.array([0.3, -0.4])
    _, state = tx.update({"w": jnp.asarray(first)}, state, params)
    ours, _ = tx.update({"w": jnp.asarray(second)}, state, params)
    mean, square = 0.0, 0.0
    for g in (first / 50, second):
        mean, square = c.beta1 * mean + (1 - c.beta1) * g, c.beta2 * square + (1 - c.beta2) * g**2
    mean, square = mean / (1 - c.beta1**2), square / (1 - c.beta2**2)
    expected = -float(rate(1)) * mean / (np.sqrt(square) + 1e-8)
    np.testing.assert_allclose(ours["w"], expected, rtol=1e-4)


def moved(tx):
    """Matrices of two blocks and a head: how far a second step moves them."""
    rng = np.random.default_rng(0)
    shapes = {"blocks": {"mlp": {"in": {"kernel": (2, 8, 6)}}}, "head": {"kernel": (6, 5)}}
    draw = functools.partial(jax.tree.map, is_leaf=lambda x: isinstance(x, tuple))
    params, grads = (
        draw(lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32), shapes)
        for _ in range(2)
    )
    state = tx.init(params)
    for _ in range(2):  # ours warms up: the first is at rate 0
        updates, state = tx.update(grads, state, params)
    return updates


def test_muon_turns_the_blocks_by_even_steps_of_adamws_size_and_leaves_the_rest_to_adamw():
    config = t2i.get_config("smoke")
    config.train.update({"optimiser": "muon", "warmup": 1, "learning_rate": 1e-2})
    config.train.update({"weight_decay": 0.0, "clip": 1e9})
    ours = moved(optimiser.make_optimiser(config)[0])
    adamw = moved(optax.nadamw(1e-2, b1=config.train.beta1, b2=config.train.beta2, weight_decay=0))
    np.testing.assert_allclose(ours["head"]["kernel"], adamw["head"]["kernel"], rtol=1e-4)
    matrices = np.asarray(ours["blocks"]["mlp"]["in"]["kernel"])
    for matrix in matrices:
        sizes = np.linalg.svd(matrix, compute_uv=False)
        assert sizes.max() < 2 * sizes.min()  # so far come three Newton-Schulz steps
    assert 0.5 < np.sqrt(np.mean(matrices**2)) / (0.2 * 1e-2) < 1.5
    config.train.optimiser = "sgd"
    with pytest.raises(ValueError, match=r"optimiser = 'sgd', expected 'adamw' or 'muon'"):
        optimiser.make_optimiser(config)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_a_training_may_warm_up_to_its_end(decay):
    config = t2i.get_config("smoke")
    config.train.update({"decay": decay, "warmup": 7, "steps": 7})
    _, rate = optimiser.make_optimiser(config)
    np.testing.assert_allclose(rate(6), 6 / 7 * config.train.learning_rate, rtol=1e-5)
    config.vq.update({"warmup": 5, "steps": 5})
    train_image_tokenizer.make_optimisers(config)
