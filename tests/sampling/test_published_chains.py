"""Whole chains and the whole loss against the recorded ones: every part of the library at once.

The loop here is the published one, with the recorded noise: the library's network, `p_log_probs`
and `truncate`, and a draw over all V classes. Its own samplers draw in another way (mask or not
first), strided with the exact kernel, and are tested elsewhere. The recording's precisions give
the same tokens, so that one run in float32 is compared with both.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import recorded
from udd_jax.convert import names
from udd_jax.diffusion import objective, schedules, transition
from udd_jax.sampling import truncation

VOCAB, CONFIG = recorded.VOCAB, recorded.CONFIG
MASK, N = VOCAB.mask_id, VOCAB.slices[0].stop
UNKNOWN = 999999


def stored(name):
    """An array that is the same in both files: tokens, masks, noise."""
    array, other = (recorded.arrays(f"sampling_{p}")[name] for p in recorded.PRECISIONS)
    np.testing.assert_array_equal(array, other)
    return array


@functools.cache
def network(name):
    model = recorded.model("f32", network=name)
    weights = recorded.params("f32")

    @recorded.jit
    def run(weights, x, t):
        times = jnp.full((x.shape[0], 2), t)
        logits = model.apply({"params": weights}, x, times, jnp.ones(x.shape, bool))
        return tuple(jax.nn.log_softmax(y, axis=-1) for y in logits)

    return lambda x, t: run(weights, x.astype(np.int32), jnp.int32(t))


@functools.cache
def reverse(steps):
    """(log p_0 a modality, x_t, s, t, r) -> log p(x_s | x_t) over all classes, [B, V, L].

    r: how much of p_0 is kept; 1 is all.
    """
    kernel = transition.make_kernel(VOCAB, schedules.linear(steps))

    @recorded.jit
    def run(log_ps, x, s, t, rate):
        parts = []
        for m, where in enumerate(VOCAB.slices):
            xt = VOCAB.local(m, x[:, where])
            cut = truncation.truncate(log_ps[m], log_ps[m], rate)
            log_p0 = jnp.where(rate < 1, cut, log_ps[m])
            now, then = jnp.full(xt.shape, t), jnp.full(xt.shape, s)
            parts.append(transition.p_log_probs(kernel, m, log_p0, xt, then, now))
        return parts

    def dense(log_ps, x, s, t, rate):
        return recorded.to_dense(run(log_ps, x.astype(np.int32), jnp.int32(s), jnp.int32(t), rate))

    return dense


def chain(name, x, steps, *, net="joint", known=None, where=slice(None), strided=0):
    """All sampled sequences in the order drawn, and what they became after the known were set back.

    The times of the network are `steps`..1, or every `strided`-th; the published strided rule then
    takes the one-step posterior of an earlier time.
    """
    start, states, kept = x, [], []
    noise = stored(f"u_{name}_steps")
    published_times = range(0, steps, strided or 1)[::-1]
    assert len(noise) == len(published_times)
    for u, i in zip(noise, published_times, strict=True):
        log_ps = network(net)(x, i + 1)
        at = i - strided if i > strided else i
        log_p = reverse(steps)(log_ps, x, at, at + 1, CONFIG["truncation"][name])
        drawn = np.array(x)
        drawn[:, where] = recorded.gumbel_argmax(log_p[..., where], u)
        states.append(drawn)
        x = drawn if known is None else np.where(known, start, drawn)
        kept.append(x)
    return np.stack(states), np.stack(kept)


def masked(batch):
    return np.full((batch, VOCAB.length), MASK)


def by_time(kept):
    """The recording's row i is the state after published time i."""
    return kept[::-1]


def test_joint_chain_equals_the_recorded_one_token_for_token():
    states, kept = chain("joint", masked(stored("joint_states").shape[1]), CONFIG["sample_T"])
    np.testing.assert_array_equal(states, stored("joint_states"))
    np.testing.assert_array_equal(by_time(kept), stored("joint_out"))


def test_strided_chain_with_the_published_rule_equals_the_recorded_one():
    T, delta = CONFIG["T"], CONFIG["fast_delta"]
    states, _ = chain("fast", masked(stored("fast_states").shape[1]), T, strided=delta)
    np.testing.assert_array_equal(states, stored("fast_states"))
    out = np.zeros_like(stored("fast_out"))
    out[np.arange(0, T, delta)] = states[::-1]
    np.testing.assert_array_equal(out, stored("fast_out"))


def test_text_to_image_chain_equals_the_recorded_one():
    text = stored("t2i_text")
    start = np.concatenate([masked(len(text))[:, :N], text + CONFIG["K_img"]], axis=1)
    _, kept = chain("t2i", start, CONFIG["sample_T"], net="image_from_text", where=VOCAB.slices[0])
    np.testing.assert_array_equal(kept[..., :N], stored("t2i_states"))
    np.testing.assert_array_equal(by_time(kept)[..., :N], stored("t2i_out"))


def test_image_to_text_chain_equals_the_recorded_one():
    image = stored("i2t_image")
    start = np.concatenate([image, masked(len(image))[:, N:]], axis=1)
    known = (np.arange(VOCAB.length) < N)[None]
    states, kept = chain("i2t", start, CONFIG["sample_T"], known=known)
    np.testing.assert_array_equal(states, stored("i2t_states"))
    np.testing.assert_array_equal(by_time(kept), stored("i2t_out"))


def test_infilling_chain_equals_the_recorded_one():
    image, text = stored("inp_img_tokens"), stored("inp_txt_tokens")
    text = np.where(text == UNKNOWN, UNKNOWN, text + CONFIG["K_img"])
    start = np.concatenate([image, text], axis=1)
    start = np.where(start == UNKNOWN, MASK, start)
    known = np.concatenate([stored("inp_mask_img"), stored("inp_mask_txt")], axis=1) == 1
    batch = stored("inpaint_states").shape[1]
    start, known = (np.repeat(y, batch // len(y), axis=0) for y in (start, known))
    states, kept = chain("inpaint", start, CONFIG["sample_T"], known=known)
    np.testing.assert_array_equal(states, stored("inpaint_states"))
    np.testing.assert_array_equal(kept[-1], stored("inpaint_out"))


def test_one_step_without_truncation_equals_the_recorded_one():
    x, t = (recorded.arrays("transformer_f32")[k] for k in "xt")
    drawn = []
    for row, time in enumerate(t):
        pair = np.repeat(x[row : row + 1], 2, axis=0)  # the batch size of the chains
        log_p = reverse(CONFIG["T"])(network("joint")(pair, time + 1), pair, time, time + 1, 1.0)
        drawn.append(recorded.gumbel_argmax(log_p[:1], stored("u_single")[row : row + 1])[0])
    np.testing.assert_array_equal(drawn, stored("single_out"))


def test_the_noise_of_the_first_draw_changes_nothing():
    """The published chains draw once from all-mask (or from given tokens) before the first step."""
    names = [k for k in recorded.arrays("sampling_f32") if "_init" in k]
    assert names
    texts = np.concatenate([np.zeros_like(stored("t2i_text")), stored("t2i_text")])
    for name in names:
        u = stored(name)
        tokens = np.full((len(u), u.shape[-1]), MASK)
        if name == "u_t2i_init0":
            tokens = texts[-len(u) :] + CONFIG["K_img"]
        log_onehot = np.where(np.arange(VOCAB.size)[:, None] == tokens[:, None], 0, -69.0)
        np.testing.assert_array_equal(recorded.gumbel_argmax(log_onehot, u), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("precision", recorded.PRECISIONS)
def test_the_whole_loss_and_its_gradients_equal_the_recorded_ones(precision):
    arrays = recorded.arrays(f"transformer_{precision}")
    T, weight = CONFIG["T"], CONFIG["aux_weight"]
    x0, t = arrays["e2e_x0"].astype(np.int32), arrays["t"]
    model = recorded.model(precision)
    tolerance = {"f32": 1e-4, "f64": 1e-5}[precision]  # what the recording's leak leaves in float64

    @recorded.jit
    def noisy(kernel):
        parts = []
        for m, where in enumerate(VOCAB.slices):
            local = VOCAB.local(m, x0[:, where])
            now = jnp.broadcast_to(t[:, None] + 1, local.shape)
            parts.append(transition.q_log_probs(kernel, m, local, now))
        return parts

    @recorded.jit
    def run(weights, kernel, xt):
        free = jnp.ones(x0.shape, bool)
        clock = jnp.repeat(jnp.asarray(t[:, None] + 1, jnp.int32), 2, axis=1)

        def mean(weights):
            logits = model.apply({"params": weights}, xt, clock, free)
            kl, nll = objective.loss_terms(kernel, logits, x0, xt, clock, free)
            total = (kl + weight * nll).sum(axis=1) * T  # p(t) = 1/T
            return total.mean() / VOCAB.length, total

        return jax.grad(mean, has_aux=True)(weights)

    with jax.enable_x64(precision == "f64"):
        kernel = transition.make_kernel(VOCAB, schedules.linear(T), recorded.dtype(precision))
        xt = recorded.gumbel_argmax(recorded.to_dense(noisy(kernel)), arrays["u_e2e"]).astype(
            np.int32
        )
        grads, total = jax.tree.map(np.asarray, run(recorded.params(precision), kernel, xt))
    np.testing.assert_allclose(total, arrays["e2e_total"], rtol=tolerance)
    grads = names.write(grads, names.network_name)
    stored = [name.removeprefix("_denoise_fn.") for name in recorded.json_of("e2e_grad_names")]
    assert sorted(stored) == sorted(grads)
    largest = arrays["e2e_gradnorm"].max()
    for name, theirs in zip(stored, arrays["e2e_gradnorm"], strict=True):
        ours = np.linalg.norm(grads[name])
        if name.endswith("key.bias"):
            assert max(ours, theirs) < 1e-5 * largest
        else:
            assert abs(ours - theirs) <= max(tolerance * theirs, 1e-6 * largest), name
