"""Whole chains and the whole loss against the recording: all parts of the library together.

The loop here is the published one with the recorded noise. It calls the library's network,
`p_log_probs` and `truncate`, and draws over all V classes. The published chain from a text has the
swapped beta of the conditional modes, so the twin computes its posterior; another test compares the
library's posterior with the twin's without the swap.

The library's own samplers draw differently (mask or not first, strides with the exact kernel) and
are tested elsewhere. Both precisions of the recording have the same tokens, so one run in float32
is compared with both.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import published_twin, recorded
from udd_jax.convert import names
from udd_jax.diffusion import objective, schedules, transition
from udd_jax.sampling import truncation

UNKNOWN = 999999


def stored(recording, name):
    """An array that is the same in both files: tokens, masks, noise."""
    array, other = (recording.arrays(f"sampling_{p}")[name] for p in recorded.PRECISIONS)
    np.testing.assert_array_equal(array, other)
    return array


@functools.cache
def network(recording, name):
    model = recording.model("f32", network=name)
    weights = recording.params("f32")

    @recorded.jit
    def run(weights, x, t):
        times = jnp.full((x.shape[0], 2), t)
        logits = model.apply({"params": weights}, x, times, jnp.ones(x.shape, bool))
        return tuple(jax.nn.log_softmax(y, axis=-1) for y in logits)

    return lambda x, t: run(weights, x.astype(np.int32), jnp.int32(t))


@functools.cache
def reverse(recording, steps):
    """(log p_0 a modality, x_t, s, t, r) -> log p(x_s | x_t) over all classes, [B, V, L].

    r: how much of p_0 is kept; 1 is all.
    """
    vocab = recording.vocab
    kernel = transition.make_kernel(vocab, schedules.linear(steps))

    @recorded.jit
    def run(log_ps, x, s, t, rate):
        parts = []
        for m, where in enumerate(vocab.slices):
            xt = vocab.local(m, x[:, where])
            cut = truncation.truncate(log_ps[m], log_ps[m], rate)
            log_p0 = jnp.where(rate < 1, cut, log_ps[m])
            now, then = jnp.full(xt.shape, t), jnp.full(xt.shape, s)
            parts.append(transition.p_log_probs(kernel, m, log_p0, xt, then, now))
        return parts

    def dense(log_ps, x, s, t, rate):
        x, s, t = x.astype(np.int32), jnp.int32(s), jnp.int32(t)
        return recording.to_dense(run(log_ps, x, s, t, rate))

    return dense


def image_by_twin(recording, *, errors):
    """The same of the image's positions with the text given, [B, V, N], in float64 by the twin.

    errors: with those of the published code, the leak and the swapped beta, or without. What is
    kept of p_0 is not renormalised, as published: with the swap p(x_s | x_t) can exceed 1 and is
    clamped, so that its scale matters.
    """
    vocab = recording.vocab
    twin = dataclasses.replace(recording.twin, steps=recording.config["sample_T"])
    image, classes = vocab.slices[0], vocab.modalities[0].classes

    def dense(log_ps, x, s, t, rate):
        assert s == t - 1
        p0 = np.zeros((len(x), vocab.size - 1, image.stop))
        p0[:, :classes] = np.moveaxis(np.exp(np.asarray(log_ps[0], float)), -1, 1)
        p0 = published_twin.truncate(p0, rate)
        times = np.full(len(x), s)  # the published time
        p = twin.posterior(p0, x[:, image], times, leak=errors, swapped=errors)
        return np.log(np.maximum(p, 1e-30))

    return dense


def chain(recording, name, x, steps, *, net="joint", step=None, known=None, strided=0):
    """All sampled sequences in the order of drawing, and the same after restoring given tokens.

    step: what `reverse` returns, of the first positions or all. The times of the network are
    `steps`..1, or every `strided`-th; the published strided rule then takes the one-step posterior
    of an earlier time.
    """
    start, states, kept = x, [], []
    step = step or reverse(recording, steps)
    noise = stored(recording, f"u_{name}_steps")
    published_times = range(0, steps, strided or 1)[::-1]
    assert len(noise) == len(published_times)
    for u, i in zip(noise, published_times, strict=True):
        log_ps = network(recording, net)(x, i + 1)
        at = i - strided if i > strided else i
        log_p = step(log_ps, x, at, at + 1, recording.config["truncation"][name])
        drawn = np.array(x)
        drawn[:, : u.shape[-1]] = recorded.gumbel_argmax(log_p[..., : u.shape[-1]], u)
        states.append(drawn)
        x = drawn if known is None else np.where(known, start, drawn)
        kept.append(x)
    return np.stack(states), np.stack(kept)


def masked(recording, batch):
    return np.full((batch, recording.vocab.length), recording.vocab.mask_id)


def by_time(kept):
    """The recording's row i is the state after published time i."""
    return kept[::-1]


@recorded.both_sets
def test_joint_chain_equals_the_recorded_one_token_for_token(recording):
    states, kept = chain(
        recording,
        "joint",
        masked(recording, stored(recording, "joint_states").shape[1]),
        recording.config["sample_T"],
    )
    np.testing.assert_array_equal(states, stored(recording, "joint_states"))
    np.testing.assert_array_equal(by_time(kept), stored(recording, "joint_out"))


@recorded.both_sets
def test_strided_chain_with_the_published_rule_equals_the_recorded_one(recording):
    T, delta = recording.config["T"], recording.config["fast_delta"]
    states, _ = chain(
        recording,
        "fast",
        masked(recording, stored(recording, "fast_states").shape[1]),
        T,
        strided=delta,
    )
    np.testing.assert_array_equal(states, stored(recording, "fast_states"))
    out = np.zeros_like(stored(recording, "fast_out"))
    out[np.arange(0, T, delta)] = states[::-1]
    np.testing.assert_array_equal(out, stored(recording, "fast_out"))


def from_text(recording, **options):
    """Image tokens of the chain from the recorded texts, [steps, B, N], in the order drawn."""
    text, n = stored(recording, "t2i_text"), recording.vocab.slices[0].stop
    start = [masked(recording, len(text))[:, :n], text + recording.config["K_img"]]
    _, kept = chain(
        recording,
        "t2i",
        np.concatenate(start, axis=1),
        recording.config["sample_T"],
        net="image_from_text",
        **options,
    )
    return kept[..., :n]


@recorded.both_sets
def test_text_to_image_chain_with_the_published_errors_equals_the_recorded_one(recording):
    kept = from_text(recording, step=image_by_twin(recording, errors=True))
    np.testing.assert_array_equal(kept, stored(recording, "t2i_states"))
    np.testing.assert_array_equal(by_time(kept), stored(recording, "t2i_out"))


@recorded.both_sets
def test_our_text_to_image_chain_has_no_swapped_beta(recording):
    """It is the twin's without the errors, at every step; where the sizes show it, not the recorded
    one."""
    ours = reverse(recording, recording.config["sample_T"])
    twin, n = image_by_twin(recording, errors=False), recording.vocab.slices[0].stop

    def step(*state):
        mine, theirs = ours(*state)[..., :n], twin(*state)
        theirs -= np.log(np.exp(theirs).sum(axis=1, keepdims=True))
        np.testing.assert_allclose(np.maximum(mine, -30), np.maximum(theirs, -30), atol=1e-4)
        return mine

    kept = from_text(recording, step=step)
    if recording is recorded.TWIN:
        assert (kept != stored(recording, "t2i_states")).any()


@recorded.both_sets
def test_image_to_text_chain_equals_the_recorded_one(recording):
    image = stored(recording, "i2t_image")
    n = recording.vocab.slices[0].stop
    start = np.concatenate([image, masked(recording, len(image))[:, n:]], axis=1)
    known = (np.arange(recording.vocab.length) < n)[None]
    states, kept = chain(recording, "i2t", start, recording.config["sample_T"], known=known)
    np.testing.assert_array_equal(states, stored(recording, "i2t_states"))
    np.testing.assert_array_equal(by_time(kept), stored(recording, "i2t_out"))


@recorded.both_sets
def test_infilling_chain_equals_the_recorded_one(recording):
    image, text = stored(recording, "inp_img_tokens"), stored(recording, "inp_txt_tokens")
    text = np.where(text == UNKNOWN, UNKNOWN, text + recording.config["K_img"])
    start = np.concatenate([image, text], axis=1)
    start = np.where(start == UNKNOWN, recording.vocab.mask_id, start)
    known = [stored(recording, f"inp_mask_{m}") for m in ("img", "txt")]
    known = np.concatenate(known, axis=1) == 1
    batch = stored(recording, "inpaint_states").shape[1]
    start, known = (np.repeat(y, batch // len(y), axis=0) for y in (start, known))
    states, kept = chain(recording, "inpaint", start, recording.config["sample_T"], known=known)
    np.testing.assert_array_equal(states, stored(recording, "inpaint_states"))
    np.testing.assert_array_equal(kept[-1], stored(recording, "inpaint_out"))


@recorded.both_sets
def test_one_step_without_truncation_equals_the_recorded_one(recording):
    x, t = (recording.arrays("transformer_f32")[k] for k in "xt")
    u, drawn = stored(recording, "u_single"), []
    step = reverse(recording, recording.config["T"])
    for row, time in enumerate(t):
        pair = np.repeat(x[row : row + 1], 2, axis=0)  # the batch size of the chains
        log_ps = network(recording, "joint")(pair, time + 1)
        log_p = step(log_ps, pair, time, time + 1, 1.0)
        drawn.append(recorded.gumbel_argmax(log_p[:1], u[row : row + 1])[0])
    np.testing.assert_array_equal(drawn, stored(recording, "single_out"))


def test_the_noise_of_the_first_draw_changes_nothing():
    """The published chains draw once from all-mask (or from given tokens) before the first step."""
    recording, vocab = recorded.PUBLISHED, recorded.PUBLISHED.vocab
    names = [k for k in recording.arrays("sampling_f32") if "_init" in k]
    assert names
    texts = np.concatenate(
        [np.zeros_like(stored(recording, "t2i_text")), stored(recording, "t2i_text")]
    )
    for name in names:
        u = stored(recording, name)
        tokens = np.full((len(u), u.shape[-1]), vocab.mask_id)
        if name == "u_t2i_init0":
            tokens = texts[-len(u) :] + recording.config["K_img"]
        log_onehot = np.where(np.arange(vocab.size)[:, None] == tokens[:, None], 0, -69.0)
        np.testing.assert_array_equal(recorded.gumbel_argmax(log_onehot, u), tokens)


@pytest.mark.slow
@pytest.mark.parametrize("precision", recorded.PRECISIONS)
def test_the_whole_loss_and_its_gradients_equal_the_recorded_ones(precision):
    recording, vocab = recorded.PUBLISHED, recorded.PUBLISHED.vocab
    arrays = recording.arrays(f"transformer_{precision}")
    T, weight = recording.config["T"], recording.config["aux_weight"]
    x0, t = arrays["e2e_x0"].astype(np.int32), arrays["t"]
    model = recording.model(precision)
    tolerance = {"f32": 1e-4, "f64": 1e-5}[precision]  # what the recording's leak leaves in float64

    @recorded.jit
    def noisy(kernel):
        parts = []
        for m, where in enumerate(vocab.slices):
            local = vocab.local(m, x0[:, where])
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
            return total.mean() / vocab.length, total

        return jax.grad(mean, has_aux=True)(weights)

    with jax.enable_x64(precision == "f64"):
        kernel = transition.make_kernel(vocab, schedules.linear(T), recorded.dtype(precision))
        xt = recorded.gumbel_argmax(recording.to_dense(noisy(kernel)), arrays["u_e2e"]).astype(
            np.int32
        )
        grads, total = jax.tree.map(np.asarray, run(recording.params(precision), kernel, xt))
    np.testing.assert_allclose(total, arrays["e2e_total"], rtol=tolerance)
    grads = names.write(grads, names.network_name)
    published = [name.removeprefix("_denoise_fn.") for name in recording.json_of("e2e_grad_names")]
    assert sorted(published) == sorted(grads)
    largest = arrays["e2e_gradnorm"].max()
    for name, theirs in zip(published, arrays["e2e_gradnorm"], strict=True):
        ours = np.linalg.norm(grads[name])
        if name.endswith("key.bias"):
            assert max(ours, theirs) < 1e-5 * largest
        else:
            assert abs(ours - theirs) <= max(tolerance * theirs, 1e-6 * largest), name
