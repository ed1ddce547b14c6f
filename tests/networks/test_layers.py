"""The layers against NumPy, and the masks of the network against loops."""

import math

import jax
import numpy as np
import pytest

from udd_jax.diffusion import vocab
from udd_jax.networks import layers, transformer

VOCAB = vocab.image_text(grid=(2, 3), image_classes=5, text_classes=4, text_length=4)
N, L, T = 6, 10, 7
RNG = np.random.default_rng(0)


def random(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def filled(module, *inputs, **options):
    """Random parameters of a module."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))["params"]
    return jax.tree.map(lambda p: random(*p.shape), shapes)


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def erf(x):
    return np.vectorize(math.erf)(x)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gelu", lambda x: x * (1 + erf(x / np.sqrt(2))) / 2),
        ("gelu_tanh", lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2),
        ("silu", silu),
        ("relu", lambda x: np.maximum(x, 0)),
    ],
)
def test_an_activation_is_that_of_its_formula(name, formula):
    x = np.linspace(-4, 4, 81)
    np.testing.assert_allclose(layers.ACTIVATIONS[name](np.float32(x)), formula(x), atol=2e-6)


def test_every_activation_has_its_formula_here():
    (mark,) = test_an_activation_is_that_of_its_formula.pytestmark
    assert {name for name, _ in mark.args[1]} == layers.ACTIVATIONS.keys()


def test_the_angles_are_coordinates_by_frequencies_and_0_on_the_axes_of_others():
    """Two pairs of channels for each of rows, columns and places: frequencies 1 and 1/10."""
    expected = np.zeros((L, 6))
    for i in range(N):
        row, column = divmod(i, 3)
        expected[i] = [row, row / 10, column, column / 10, 0, 0]
    for i in range(4):
        expected[N + i] = [0, 0, 0, 0, i, i / 10]
    np.testing.assert_allclose(layers.rotary_angles(VOCAB, 6), expected, rtol=1e-6)


def test_attention_rotates_queries_and_keys_and_not_values():
    x, angles = random(1, 5, 8), random(5, 2)
    attend = layers.Attention(width=8, heads=2)
    params = filled(attend, x, layers.KeysValues(*random(2, 1, 5, 2, 4)), method="__call__")
    params["key"] = params["value"] = params["query"]  # `project` has not been called

    def both(attend, x):
        return attend(x, attend.project(x, angles), None, angles)

    ours = attend.apply({"params": params}, x, method=both)
    q = v = dense(params["query"], x[0]).reshape(5, 2, 4)
    turned = (q[..., :2] + 1j * q[..., 2:]) * np.exp(1j * angles)[:, None]
    scores = np.einsum("qhd,khd->hqk", turned, turned.conj()).real / 2
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(5, 8)
    np.testing.assert_allclose(ours[0], dense(params["out"], mixed), atol=1e-4)


@pytest.mark.parametrize("steps", [7, 100])
def test_sinusoids_of_a_time_are_sines_and_cosines_of_4000_t_by_T(steps):
    t = np.array([0, 1, steps])
    embed = layers.TimeEmbedding(steps, 8, sinusoidal=True)
    params = filled(embed, t)
    frequencies = 10_000 ** (-np.arange(4) / 3)
    angles = 4000 * t[:, None] / steps * frequencies
    y = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    expected = dense(params["out"], silu(dense(params["in"], y)))
    np.testing.assert_allclose(embed.apply({"params": params}, t), expected, atol=5e-3)


def test_each_modality_is_scaled_and_shifted_by_its_own_time():
    h, time = random(1, 5, 4), random(1, 2, 4)
    norm = layers.AdaLayerNorm(T)
    params = filled(norm, h, time, (3, 2))
    scale, shift = np.split(dense(params["modulation"], silu(time)), 2, axis=-1)
    own = [0, 0, 0, 1, 1]
    plain = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    expected = plain * (1 + scale[:, own]) + shift[:, own]
    ours = norm.apply({"params": params}, h, time, (3, 2))
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_gains_begin_at_their_value_and_norms_with_a_bias_at_one():
    for affine, gain, start in ((True, 0.0, 1.0), (False, 0.25, 0.25)):
        norm = layers.layer_norm(affine, np.float32, gain=gain)
        params = norm.init(jax.random.key(0), np.ones((1, 3)))["params"]
        assert (params["scale"] == start).all() and ("bias" in params) == affine
    assert "params" not in layers.layer_norm(False, np.float32).init(jax.random.key(0), np.ones(3))


def test_a_token_is_given_if_it_is_not_free_and_its_modality_is_there():
    """Also at time T, if other places of its modality are free: the first call of an infilling."""
    model = transformer.Transformer(VOCAB, T, layers=1, width=8, heads=2)
    free = np.zeros((4, L), bool)
    free[0] = free[1, :N] = free[2, :N] = free[3, N] = True
    t = np.int32([[T, T], [3, 0], [3, T], [0, T]])  # pair; given text; absent text; a word is asked
    given = np.asarray(model._given(t, free))
    assert not given[0].any() and not given[:3, :N].any() and given[3, :N].all()
    assert given[1, N:].all() and not given[2, N:].any()
    assert given[3, N:].tolist() == [False, True, True, True]
