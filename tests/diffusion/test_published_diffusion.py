"""The process and the objective against recorded arrays, in float32 and float64.

The published code differs from the paper in two points, a leak between the modalities and a swapped
beta. `published_twin` has both as switches: switched on it equals the recording, switched off it
equals this library.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import published_twin, recorded
from udd_jax.diffusion import objective, schedules, time_sampling, transition
from udd_jax.sampling import truncation

FLOOR = -45.0  # logs below it are the recording's zeros: 1e-30, over a beta or two
LOG = {"f32": 2e-5, "f64": 1e-7}  # absolute; beta is a cancelled difference in the recording
PRECISE = (("f32", 1e-4), ("f64", 1e-10))  # of the twin: what the recording itself has
STEP = {"f32": 1e-4, "f64": 1e-6}  # relative: of a step, with differences in float32 too


def kernel(recording, precision, steps=None):
    schedule = schedules.linear(steps or recording.config["T"])
    return transition.make_kernel(recording.vocab, schedule, recorded.dtype(precision))


def assert_logs(ours, theirs, tolerance, what=""):
    error = np.abs(np.maximum(ours, FLOOR) - np.maximum(theirs, FLOOR)).max()
    assert error <= tolerance, f"{what}: off by {error:.2e}"


def log(p):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(p))


# Schedules


def lengths(recording):
    return sorted({int(name.split("_")[0][1:]) for name in recording.arrays("schedule_f64")})


every_length = pytest.mark.parametrize(
    ("recording", "steps"),
    [(r, n) for r in recorded.SETS.values() for n in lengths(r)],
    ids=[f"{name}-{n}" for name, r in recorded.SETS.items() for n in lengths(r)],
)


@every_length
def test_schedule_tables_equal_the_recorded_ones(recording, steps):
    schedule = schedules.linear(steps)
    order = [*range(1, steps + 1), 0]  # the recording ends with clean
    for precision in recorded.PRECISIONS:  # float64 in both files
        stored = recording.under(f"schedule_{precision}", f"T{steps}_")
        recorded.assert_close(schedule.alpha_bar[order], stored["att"], 1e-14)
        recorded.assert_close(schedule.gamma_bar[order], stored["ctt"], 1e-14)
        for modality in recording.vocab.modalities:
            ours = schedule.uniform_bar[order] / modality.classes
            theirs = stored[f"btt_{recorded.SHORT[modality.name]}"]
            np.testing.assert_allclose(ours, theirs, rtol=1e-9)


@recorded.jit
def tables_at(kernel, now):
    """For each modality the marginals at times `now` and `now` - 1, and the step between them."""
    parts = []
    for m in range(len(kernel.vocab.modalities)):
        at_t = transition.marginal(kernel, m, now)
        at_s = transition.marginal(kernel, m, jnp.maximum(now - 1, 0))
        parts.append((at_s, at_t, transition.step(at_s, at_t)))
    return parts


@recorded.precision
@every_length
def test_steps_and_log_tables_equal_the_recorded_ones(recording, precision, steps):
    stored = recording.under(f"schedule_{precision}", f"T{steps}_")
    now = np.array([*range(1, steps + 1), 0])  # the recording ends with clean
    with jax.enable_x64(precision == "f64"):
        parts = jax.tree.map(np.asarray, tables_at(kernel(recording, precision, steps), now))
    for modality, (at_s, at_t, step) in zip(recording.vocab.modalities, parts, strict=True):
        short = recorded.SHORT[modality.name]
        for mine, name in ((step.alpha, "at"), (step.gamma, "ct"), (step.beta, f"bt_{short}")):
            np.testing.assert_allclose(mine[:-1], stored[name], rtol=STEP[precision])
        ours = {
            "log_at": step.alpha,
            "log_ct": step.gamma,
            "log_1_min_ct": at_t.unmasked / at_s.unmasked,
            f"log_bt_{short}": step.beta,
            "log_cumprod_at": at_t.alpha,
            "log_cumprod_ct": at_t.gamma,
            "log_1_min_cumprod_ct": at_t.unmasked,
            f"log_cumprod_bt_{short}": at_t.beta,
        }
        for name, table in ours.items():
            theirs = stored[name]
            tolerance = (LOG if "cumprod" in name else STEP)[precision]
            np.testing.assert_allclose(log(table)[: len(theirs)], theirs, rtol=0, atol=tolerance)


# Distributions


@functools.cache
def ours(recording, precision):
    """All that the library computes from the recorded tokens, times and logits: a part a modality.

    The published strided rule evaluates the one-step posterior at t - delta; so does "skip" here.
    """
    stored = recording.arrays(f"diffusion_{precision}")
    logits = [stored[f"logits_{recorded.SHORT[m.name]}"] for m in recording.vocab.modalities]
    delta = recording.config["skip_delta"]
    t = stored["t"][:, None].astype(np.int32)

    @recorded.jit
    def run(kernel, x0, xt, t, logits):
        parts, vocab = [], kernel.vocab
        for m, where in enumerate(vocab.slices):
            local_x0, local_xt = vocab.local(m, x0[:, where]), vocab.local(m, xt[:, where])
            now = jnp.broadcast_to(t + 1, local_x0.shape)
            early = jnp.where(now - 1 >= delta, now - delta, now)
            log_p0 = jax.nn.log_softmax(logits[m], axis=-1)
            parts.append(
                {
                    "xt_given_x0": transition.q_log_probs(kernel, m, local_x0, now),
                    "x0_wrap": transition.q_log_probs(kernel, m, local_x0, now * 0),
                    "posterior": transition.q_posterior(
                        kernel, m, local_x0, local_xt, now - 1, now
                    ),
                    "p_x0": log_p0,
                    "p_xtm1": transition.p_log_probs(kernel, m, log_p0, local_xt, now - 1, now),
                    "p_xtm1_skip": transition.p_log_probs(
                        kernel, m, log_p0, local_xt, early - 1, early
                    ),
                }
            )
        return parts

    with jax.enable_x64(precision == "f64"):
        logits = [jnp.asarray(y, recorded.dtype(precision)) for y in logits]
        x0, xt = (stored[k].astype(np.int32) for k in ("x0", "xt"))
        return jax.tree.map(np.asarray, run(kernel(recording, precision), x0, xt, t, logits))


@recorded.precision
@pytest.mark.parametrize(
    "name",
    [
        "log_q_xt_given_x0",
        "log_q_x0_wrap",
        "log_q_posterior",
        "log_p_x0",
        "log_p_xtm1",
        "log_p_xtm1_skip",
    ],
)
@recorded.both_sets
def test_distributions_within_a_modality_equal_the_recorded_ones(recording, precision, name):
    stored = recording.arrays(f"diffusion_{precision}")
    for m, part in enumerate(ours(recording, precision)):
        mine = part[name.removeprefix("log_").removeprefix("q_")]
        theirs = recording.of_modality(stored[name], m)[..., : mine.shape[-1]]
        assert_logs(mine, theirs, LOG[precision], name)


@pytest.mark.parametrize("precision", recorded.PRECISIONS)
@recorded.both_sets
def test_the_dense_twin_with_the_leak_equals_every_recorded_distribution(recording, precision):
    stored = recording.arrays(f"diffusion_{precision}")
    dense = recording.twin.distributions(stored, recording.config["skip_delta"])
    for name, p in dense.items():
        assert_logs(log(p), stored[f"log_{name}"], LOG[precision], f"log_{name}")


@pytest.mark.slow
@recorded.both_sets
def test_the_dense_twin_without_the_leak_equals_ours(recording):
    twin, vocab, mine = recording.twin, recording.vocab, ours(recording, "f64")
    stored = recording.arrays("diffusion_f64")
    t, xt = stored["t"], stored["xt"]
    p0 = twin.p_x0([stored["logits_img"], stored["logits_txt"]])
    truth = twin.one_hot(stored["x0"])[:, :-1]
    n = vocab.slices[0].stop
    whole = {
        "posterior": twin.posterior(truth, xt, t, leak=False),
        "p_xtm1": twin.posterior(p0, xt, t, leak=False),
    }
    for name, p in whole.items():
        assert_logs(
            log(p),
            recording.to_dense([part[name] for part in mine]),
            LOG["f64"],
            name,
        )
    for m, where in enumerate((slice(0, n), slice(n, None))):  # the conditional modes, mended
        p = twin.posterior(truth[..., where], xt[:, where], t, leak=False, swapped=False)
        assert_logs(recording.of_modality(log(p), m), mine[m]["posterior"], LOG["f64"])
        swapped = twin.posterior(truth[..., where], xt[:, where], t, leak=False, swapped=True)
        assert np.abs(swapped - p).max() > 1e-3  # the switch does something
    with jax.enable_x64(True):
        tables = kernel(recording, "f64")
        q_log_probs = recorded.jit(transition.q_log_probs, static_argnums=1)
        for k in stored["mat_t"]:
            dense = twin.cumulative_matrix(k, leak=False)
            np.testing.assert_allclose(dense.sum(0), 1, atol=1e-12)
            for m, modality in enumerate(vocab.modalities):
                x0 = np.arange(modality.classes)
                columns = q_log_probs(tables, m, x0, np.full_like(x0, k + 1))
                theirs = dense[:, vocab.offsets[m] + x0]
                np.testing.assert_allclose(
                    np.exp(columns).T, theirs[recording.classes(m)], atol=1e-14
                )
                others = np.setdiff1d(np.arange(vocab.size), recording.classes(m))
                assert not theirs[others].any()


@pytest.mark.slow
def test_ours_equals_the_paper_by_brute_force():
    recording = recorded.PUBLISHED
    stored = recording.arrays("paper_exact_f64")
    for name in ("x0", "xt", "t"):
        np.testing.assert_array_equal(stored[name], recording.arrays("diffusion_f64")[name])
    dense = {
        "q_xt_given_x0": "xt_given_x0",
        "q_posterior": "posterior",
        "p_xtm1": "p_xtm1",
    }
    for theirs, mine in dense.items():
        p = np.exp(recording.to_dense([part[mine] for part in ours(recording, "f64")]))
        valid = stored["valid"] if theirs == "q_posterior" else np.ones_like(stored["valid"])
        error = np.abs(p - stored[theirs]) * valid[:, None]
        assert error.max() <= 1e-8, theirs


@recorded.precision
@recorded.both_sets
def test_recorded_noise_draws_the_recorded_tokens(recording, precision):
    stored = recording.arrays(f"diffusion_{precision}")
    log_q = recording.to_dense([part["xt_given_x0"] for part in ours(recording, precision)])
    np.testing.assert_array_equal(
        recorded.gumbel_argmax(log_q, stored["u_q_sample"]), stored["x_q_sample"]
    )


@recorded.precision
@recorded.both_sets
def test_truncation_keeps_the_recorded_classes(recording, precision):
    stored = recording.under(f"diffusion_{precision}", "log_p_x0_top")
    assert stored
    run = recorded.jit(truncation.truncate)
    for rate, theirs in stored.items():
        for m, part in enumerate(ours(recording, precision)):
            log_p0 = part["p_x0"].astype(np.float32)
            mine = np.asarray(run(log_p0, log_p0, float(rate)))
            wanted = recording.of_modality(theirs, m)[..., :-1]
            kept = wanted > FLOOR
            np.testing.assert_array_equal(mine > FLOOR, kept)
            mass = np.where(kept, np.exp(wanted), 0).sum(-1, keepdims=True)
            assert_logs(mine, np.where(kept, wanted - np.log(mass), -70), 2e-5)


# The objective


MODES = {  # the modalities that are predicted, and those that are there at all
    "joint": ((0, 1), (0, 1)),
    "txt": ((0,), (0,)),
    "img": ((1,), (1,)),
    "txt_full": ((0,), (0, 1)),
    "img_full": ((1,), (0, 1)),
}


def batch(recording, precision, mode):
    """x0, x_t, t, p(t), logits and the recorded arrays of a mode; given tokens are clean in x_t."""
    stored = recording.arrays(f"loss_{precision}")
    predicted, there = MODES[mode]
    free = np.isin(recording.vocab.modality_of, predicted)
    x0 = stored["x0"].astype(np.int32)
    xt = np.where(free, stored["xt"], x0).astype(np.int32)
    logits = [stored["logits_img"], stored["logits_txt"]]
    logits = [y if m in there else None for m, y in enumerate(logits)]
    return (
        x0,
        xt,
        stored["t"],
        stored["pt"],
        logits,
        recording.under(f"loss_{precision}", f"{mode}_"),
    )


@functools.cache
def loss_function(recording):
    """All modes are one function of which positions are free and which count for the auxiliary."""

    @recorded.jit
    def run(kernel, logits, x0, xt, t, pt, free, counted):
        everywhere = jnp.ones(x0.shape, bool)
        first = t[:, :1] == 1

        def total(logits):
            kl, nll = objective.loss_terms(kernel, logits, x0, xt, t, everywhere)
            kl = jnp.where(free, kl, 0)
            # At the first step the published code takes the decoder's term for the auxiliary one.
            aux = jnp.where(free | (counted & ~first), nll, 0)
            weighted = kl + recording.config["aux_weight"] * aux
            return (weighted / pt[:, None]).sum(), (kl, nll)

        grads, (kl, nll) = jax.grad(total, has_aux=True)(logits)
        parts = []
        for m, where in enumerate(recording.vocab.slices):
            local = recording.vocab.local(m, xt[:, where])
            now = jnp.broadcast_to(t[:, m : m + 1], local.shape)
            log_p0 = jax.nn.log_softmax(logits[m], axis=-1)
            parts.append(transition.p_log_probs(kernel, m, log_p0, local, now - 1, now))
        return kl, nll, parts, grads

    return run


@functools.cache
def our_terms(recording, precision, mode):
    """kl, nll and log p(x_{t-1} | x_t) a position, and the gradient of the published total."""
    x0, xt, t, pt, _, _ = batch(recording, precision, mode)
    stored = recording.arrays(f"loss_{precision}")
    predicted, there = MODES[mode]
    with jax.enable_x64(precision == "f64"):
        cast = functools.partial(jnp.asarray, dtype=recorded.dtype(precision))
        out = loss_function(recording)(
            kernel(recording, precision),
            [cast(stored["logits_img"]), cast(stored["logits_txt"])],
            x0,
            xt,
            np.repeat(t[:, None] + 1, 2, axis=1).astype(np.int32),
            cast(pt),
            np.isin(recording.vocab.modality_of, predicted)[None],
            np.isin(recording.vocab.modality_of, there)[None],
        )
        return jax.tree.map(np.asarray, out)


def assert_terms(kl, decode, aux, t, pt, weight, stored, tolerance, sums):
    """Positions to `tolerance` of the largest, sums over positions to `sums` of each."""
    for name, mine in (("kl", kl), ("nll", decode), ("aux", aux)):
        recorded.assert_close(mine, stored[f"{name}_pos"], tolerance, name)
        np.testing.assert_allclose(mine.sum(1), stored[name], rtol=sums)
    kl_loss = np.where(t == 0, decode.sum(1), kl.sum(1))
    np.testing.assert_allclose(kl_loss, stored["kl_loss"], rtol=sums)
    np.testing.assert_allclose(kl_loss / pt, stored["eval"], rtol=sums)
    total = published_twin.combine(kl, decode, aux, t, pt, weight).sum(1)
    np.testing.assert_allclose(total, stored["total"], rtol=sums)


@recorded.precision
@pytest.mark.parametrize("mode", ["joint", "txt_full", "img_full"])
@recorded.both_sets
def test_loss_terms_and_gradients_equal_the_recorded_ones(recording, precision, mode):
    x0, _, t, pt, _, stored = batch(recording, precision, mode)
    kl, nll, parts, grads = our_terms(recording, precision, mode)
    free = np.isin(recording.vocab.modality_of, MODES[mode][0])
    log_p = recording.to_dense(parts)
    here = np.take_along_axis(log_p, x0[:, None], axis=1)[:, 0]
    decode = np.where(free, -here, 0)
    # The library's own first step is the decoder's term, where the recording also has the KL.
    kl = np.where((t == 0)[:, None], stored["kl_pos"], kl)
    assert_terms(kl, decode, nll, t, pt, recording.config["aux_weight"], stored, 1e-4, 1e-4)
    np.testing.assert_allclose(
        our_terms(recording, precision, mode)[0][t == 0], decode[t == 0], rtol=1e-4
    )
    for grad, short in zip(grads, ("img", "txt"), strict=True):
        recorded.assert_close(grad, stored[f"dtotal_dlogits_{short}"], 1e-4, short)
    if mode == "joint":
        for m, part in enumerate(parts):
            assert_logs(part, recording.of_modality(stored["log_model_prob"], m), LOG[precision])


@pytest.mark.parametrize("mode", ["joint", "txt", "img"])
@recorded.both_sets
def test_the_twin_with_the_published_errors_equals_every_recorded_loss(recording, mode):
    twin, weight = recording.twin, recording.config["aux_weight"]
    for precision, tolerance in PRECISE:
        x0, xt, t, pt, logits, stored = batch(recording, precision, mode)
        where = np.isin(recording.vocab.modality_of, MODES[mode][1])
        args = (x0[:, where], xt[:, where], t)
        switches = {"leak": True, "swapped": mode != "joint"}
        kl, decode, aux = twin.terms(logits, *args, **switches)
        assert_terms(kl, decode, aux, t, pt, weight, stored, tolerance, tolerance)

    def total(logits):
        return published_twin.combine(*twin.terms(logits, *args, **switches), t, pt, weight)

    for grad, short in zip(published_twin.by_logits(total, logits), ("img", "txt"), strict=True):
        if grad is not None:
            for precision, tolerance in PRECISE:
                theirs = batch(recording, precision, mode)[-1][f"dtotal_dlogits_{short}"]
                recorded.assert_close(grad, theirs, tolerance, f"{precision} {short}")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["txt", "img"])
@recorded.both_sets
def test_the_twin_without_them_equals_our_conditional_losses(recording, mode):
    twin, weight = recording.twin, recording.config["aux_weight"]
    x0, xt, t, pt, logits, stored = batch(recording, "f64", mode)
    where = np.isin(recording.vocab.modality_of, MODES[mode][1])
    args = (x0[:, where], xt[:, where], t)
    switches = {"leak": False, "swapped": False}
    theirs_kl, theirs_decode, theirs_nll = twin.terms(logits, *args, **switches)
    kl, nll, _, grads = our_terms(recording, "f64", mode)
    first = (t == 0)[:, None]
    recorded.assert_close(kl[:, where], np.where(first, theirs_decode, theirs_kl), 1e-9)
    recorded.assert_close(nll[:, where], theirs_nll, 1e-12)
    assert np.abs(stored["kl"] - theirs_kl.sum(1)).max() > 0.01  # the recorded error shows

    def total(logits):
        return published_twin.combine(*twin.terms(logits, *args, **switches), t, pt, weight)

    for mine, theirs in zip(grads, published_twin.by_logits(total, logits), strict=True):
        if theirs is not None:
            recorded.assert_close(mine, theirs, 1e-9)


# Which time is drawn


@pytest.mark.parametrize("precision", recorded.PRECISIONS)
@pytest.mark.parametrize("mode", MODES)
@recorded.both_sets
def test_the_memory_of_losses_equals_the_recorded_one_where_a_time_is_alone(
    recording, precision, mode
):
    steps = recording.config["T"]
    _, _, t, _, _, stored = batch(recording, precision, mode)
    if np.array_equal(stored["Lt_history"], recording.arrays("loss_f64")["imp_Lt_history"]):
        pytest.skip("the recording shows this buffer as a later call filled it: imp_Lt_history")
    once = np.flatnonzero(np.bincount(t, minlength=steps) == 1)
    assert once.size
    sampler = time_sampling.create(steps, 2)
    which = np.full(t.shape, 2)
    after = time_sampling.update(
        sampler, which, t + 1, stored["kl_loss"].astype(np.float32), t >= 0
    )
    mine = np.asarray(after.square)[2, 1:]
    np.testing.assert_allclose(mine[once], stored["Lt_history"][once], rtol=1e-5)
    unseen = np.setdiff1d(np.arange(steps), t)
    assert not mine[unseen].any() and not stored["Lt_history"][unseen].any()


@pytest.mark.parametrize("precision", recorded.PRECISIONS)
@recorded.both_sets
def test_importance_sampling_of_time_equals_the_recorded_one(recording, precision):
    stored, steps = recording.arrays(f"loss_{precision}"), recording.config["T"]
    sampler = time_sampling.create(steps, 2)
    memory = np.zeros(sampler.square.shape, np.float32)
    memory[2, 1:] = stored["imp_Lt_history"]
    sampler = time_sampling.TimeSampler(jnp.asarray(memory), sampler.seen + 11)
    mine = np.asarray(time_sampling.probabilities(sampler))[2]
    assert mine[0] == 0
    recorded.assert_close(mine[1:], stored["imp_pt_all"], 1e-5)
