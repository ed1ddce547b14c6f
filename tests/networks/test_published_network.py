"""The transformer against arrays recorded from the published one, in float32 and float64.

Hidden states and gradients are in the published set only.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import published_twin, recorded
from udd_jax.convert import names
from udd_jax.networks import layers, transformer
from udd_jax.runtime import trees

TOLERANCE = {"f32": 1e-5, "f64": 1e-10}
NOISE = {"f32": 1e-4, "f64": 1e-12}  # gradients that are nothing but rounding


def inputs(recording, precision):
    """x_t, our times and free positions of the recorded pass."""
    stored = recording.arrays(f"transformer_{precision}")
    t = np.repeat(stored["t"][:, None] + 1, 2, axis=1)
    return (
        stored,
        stored["x"].astype(np.int32),
        t.astype(np.int32),
        np.ones(stored["x"].shape, bool),
    )


# What each network has logits of, by their recorded names.
LOGITS = {
    "joint": ("logits_img", "logits_txt"),
    "image_from_text": ("logits_img_cond_txt", None),
    "text_from_image": (None, "logits_txt_cond_img"),
}


@functools.cache
def joint_pass(precision):
    """Every hidden state of the joint network, and the gradients of sum(logits w)."""
    stored, x, t, free = inputs(recorded.PUBLISHED, precision)
    model = recorded.PUBLISHED.model(precision)

    @recorded.jit
    def run(params, w):
        def loss(params):
            logits, states = model.apply(
                {"params": params}, x, t, free, capture_intermediates=True, mutable="intermediates"
            )
            return sum((a * b).sum() for a, b in zip(logits, w, strict=True)), states

        grads, states = jax.grad(loss, has_aux=True)(params)
        return states["intermediates"], grads

    with jax.enable_x64(precision == "f64"):
        w = tuple(jnp.asarray(stored[f"w_{m}"], recorded.dtype(precision)) for m in ("img", "txt"))
        return jax.tree.map(np.asarray, run(recorded.PUBLISHED.params(precision), w))


@recorded.precision
@recorded.both_sets
@pytest.mark.parametrize("network", LOGITS)
def test_logits_of_all_three_networks_equal_the_recorded_ones(recording, precision, network):
    stored, x, t, free = inputs(recording, precision)
    model = recording.model(precision, network=network)
    with jax.enable_x64(precision == "f64"):
        logits = recorded.jit(model.apply)({"params": recording.params(precision)}, x, t, free)
    for ours, name in zip(logits, LOGITS[network], strict=True):
        if name is None:
            assert not np.asarray(ours).any()
        else:
            assert ours.dtype == np.dtype(recorded.dtype(precision))
            recorded.assert_close(ours, stored[name], TOLERANCE[precision], name)


@recorded.both_sets
@pytest.mark.parametrize("network", LOGITS)
def test_logits_of_the_twin_of_the_network_equal_the_recorded_ones(recording, network):
    stored = recording.arrays("transformer_f64")
    params = recording.under("transformer_f32", "param/")
    given = {"joint": None, "image_from_text": "txt", "text_from_image": "img"}[network]
    logits = published_twin.network(params, recording.config, stored["x"], stored["t"], given)
    for theirs, name in zip(logits, LOGITS[network], strict=True):
        assert (theirs is None) == (name is None)
        if name is not None:
            recorded.assert_close(theirs, stored[name], 1e-12, name)


@recorded.precision
def test_every_hidden_state_equals_the_recorded_one(precision):
    states, _ = joint_pass(precision)
    parts = {
        "ln1": "self_norm",
        "attn1": "self_attention",
        "ln1_1": "image_from_text_norm",
        "image_attn": "image_from_text",
        "ln1_2": "text_from_image_norm",
        "text_attn": "text_from_image",
        "instnorm_img": "image_from_text_result",
        "instnorm_txt": "text_from_image_result",
        "ln2": "mlp_norm",
    }
    for name, theirs in recorded.PUBLISHED.under(f"transformer_{precision}", "h/").items():
        if name == "emb":
            ours = states["embedding"]["__call__"][0]
        elif name == "final_norm":
            ours = states["norm"]["__call__"][0]
        else:
            block, _, part = name.removeprefix("block").partition("_")
            inner = states["blocks"][parts[part]] if part else states["blocks"]
            ours = inner["__call__"][0]
            ours = (ours if part else ours[0])[int(block)]
        recorded.assert_close(ours, theirs, TOLERANCE[precision], name)


@recorded.precision
def test_every_gradient_equals_the_recorded_one(precision):
    _, grads = joint_pass(precision)
    ours = names.write(grads, names.network_name)
    theirs = recorded.PUBLISHED.under(f"transformer_{precision}", "grad/")
    assert ours.keys() == theirs.keys()
    for name in ours:
        if name.endswith("key.bias"):  # a shift of all scores of a query: softmax ignores it
            assert max(np.abs(ours[name]).max(), np.abs(theirs[name]).max()) < NOISE[precision]
        else:
            recorded.assert_close(ours[name], theirs[name], TOLERANCE[precision], name)
    tables = [
        g for leaf, g in trees.flatten(grads).items() if leaf.endswith("time/table/embedding")
    ]
    assert tables and not any(table[:, 0].any() for table in tables)  # our row of t = 0


def test_all_three_networks_have_the_same_parameters():
    recording = recorded.PUBLISHED
    shapes = trees.flatten(recording.example("f32"))
    for network in ("image_from_text", "text_from_image"):
        model = recording.model(network=network)
        other = jax.eval_shape(functools.partial(transformer.init, model), jax.random.key(0))
        assert {k: v.shape for k, v in trees.flatten(other).items()} == {
            k: v.shape for k, v in shapes.items()
        }


@recorded.both_sets
def test_published_parameters_come_back_bit_for_bit(recording):
    state = recording.under("transformer_f32", "param/")
    ours = recording.params("f32")
    again = names.write(ours, names.network_name)
    assert {k for k in state if not names.NETWORK_DEAD.match(k)} == again.keys()
    for name, array in again.items():
        assert array.dtype == state[name].dtype and array.flags.c_contiguous
        np.testing.assert_array_equal(array, state[name])
    tables = [p for leaf, p in trees.flatten(ours).items() if leaf.endswith("time/table/embedding")]
    assert len(tables) == 3 and not any(table[:, 0].any() for table in tables)


def test_sinusoids_equal_the_recorded_ones():
    theirs = recorded.PUBLISHED.arrays("transformer_f64")["sinusoidal"]
    steps, width = theirs.shape
    module = layers.TimeEmbedding(steps, width, sinusoidal=True)
    eye, zero = np.eye(width), np.zeros(width)
    weights = {"in": {"kernel": eye, "bias": zero}, "out": {"kernel": eye, "bias": zero}}
    for precision, tolerance in (("f32", 5e-4), ("f64", 1e-12)):  # angles go up to 4000
        theirs = recorded.PUBLISHED.arrays(f"transformer_{precision}")["sinusoidal"]
        with jax.enable_x64(precision == "f64"):
            cast = jax.tree.map(lambda p: jnp.asarray(p, recorded.dtype(precision)), weights)  # noqa: B023
            run = recorded.jit(functools.partial(module.apply, capture_intermediates=True))
            _, states = run({"params": cast}, jnp.arange(steps))
            inner = states["intermediates"]["in"]["__call__"][0]
            recorded.assert_close(inner, theirs, tolerance, precision)
