"""The contrastive terms: their value by dense matrices, their negatives, and nothing when off."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import t2i
from tests.helpers import dense, finite
from udd_jax.diffusion import schedules, tasks, time_sampling, transition, vocab
from udd_jax.training import contrastive, loss, terms, train_diffusion

VOCAB = vocab.image_text((2, 4), image_classes=3, text_classes=5, text_length=5)
T, BATCH, J = 7, 6, 3
KEY = jax.random.key(3)


class Table(NamedTuple):
    """A network whose logits are its parameters."""

    def apply(self, variables, xt, t, free):
        return variables["params"]


def x0():
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, m.classes, (BATCH, m.length)) for m in VOCAB.modalities]
    return np.concatenate([parts[0], parts[1] + 3], axis=1).astype(np.int32)


def by_hand(table, kind, noised, wrong, logits, form):
    """The term's part of the loss: the mean over samples, from dense matrices, of InfoNCE or of
    minus the mean of the wrong ones, where no token here is near the limit."""
    xt, t, free, p = (np.asarray(y) for y in (noised.xt, noised.t, noised.masks.free, noised.p))
    total = 0.0
    for b in range(BATCH):
        for m, where in enumerate(VOCAB.slices):
            if not free[b, where].any():
                continue
            now, first = int(t[b, m]), VOCAB.offsets[m]
            before = dense.posterior(VOCAB, [table] * 2, now - 1, now)  # [x_s, x_t, x_0]

            def value(z, b=b, m=m, where=where, now=now, first=first, before=before):
                nats = 0.0
                for n in range(where.start, where.stop):
                    if not free[b, n]:
                        continue
                    law = np.zeros(VOCAB.size)
                    y = np.asarray(logits[m], float)[b, n - where.start]
                    law[first : first + len(y)] = np.exp(y) / np.exp(y).sum()
                    if kind.startswith("sample") or now == 1:
                        nats -= np.log(law[z[n]])
                        continue
                    q, ours = before[:, xt[b, n], z[n]], before[:, xt[b, n]] @ law
                    nats += (q[q > 0] * np.log(q[q > 0] / ours[q > 0])).sum()
                return nats

            right, others = value(x0()[b]), [value(z[b]) for z in wrong]
            nce = np.log(1 + sum(np.exp(right - other) for other in others))
            found = nce if form == "bounded" else -np.mean(others)
            total += (now / T + 1) * found / p[b, m]
    return total / (BATCH * VOCAB.length)


def setting():
    """(schedule, noise, logits, (kind, form) -> its loss function), all in float64."""
    table, mixture = schedules.mask_and_replace(T, 0.3), {"pair": 0.5, "independent": 0.5}
    kernel = transition.make_kernel(VOCAB, table, jnp.float64)
    rng = np.random.default_rng(1)
    logits = tuple(rng.normal(size=(BATCH, m.length, m.classes)) for m in VOCAB.modalities)
    sampler = time_sampling.create(T, 2)
    sampler = jax.tree.map(
        lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x, sampler
    )

    def loss_of(kind, form="bounded"):
        weight, kind = (0.5, kind) if kind else (0.0, "step_intra")
        term = (weight, functools.partial(contrastive.contrast, kernel, kind, J, form=form))
        usual = {"mixture": mixture, "auxiliary": 0.0, "pad_id": 0, "pad_weight": 1.0}
        loss_fn = loss.make_loss(kernel, Table(), **usual, terms={"contrastive": term})
        return lambda logits: loss_fn(logits, sampler, KEY, jnp.asarray(x0()))[0]

    noised = finite.quick(lambda x0: loss.noised_batch(kernel, sampler, KEY, x0, mixture))(x0())
    return table, noised, logits, loss_of


@pytest.mark.parametrize(
    ("kinds", "form"),
    [
        (("step_intra", "sample_inter"), "bounded"),
        pytest.param(("step_inter", "sample_intra"), "bounded", marks=pytest.mark.slow),
        pytest.param(contrastive.KINDS, "released", marks=pytest.mark.slow),
    ],
)
def test_a_term_adds_its_mean_by_dense_matrices(kinds, form):
    with jax.enable_x64(True):
        table, noised, logits, loss_of = setting()
        every = [loss_of(None), *(loss_of(kind, form) for kind in kinds)]
        off, *on = finite.quick(lambda logits: [loss_fn(logits) for loss_fn in every])(logits)
        key = jax.random.fold_in(KEY, loss.TERM_KEYS + 1)
        for kind, value in zip(kinds, on, strict=True):
            wrong = contrastive.negatives(key, VOCAB, jnp.asarray(x0()), kind.split("_")[1], J)
            expected = 0.5 * by_hand(table, kind, noised, np.asarray(wrong), logits, form)
            assert expected > 0.01 if form == "bounded" else expected < -0.01
            np.testing.assert_allclose(value - off, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", contrastive.KINDS)
def test_its_gradient_raises_x_0_and_lowers_the_negatives(kind):
    """A step down the gradient of the term alone lowers the term."""
    with jax.enable_x64(True):
        *_, logits, loss_of = setting()
        off, on = loss_of(None), loss_of(kind)
        run = finite.quick(jax.value_and_grad(lambda logits: on(logits) - off(logits)))
        before, gradient = run(logits)
        after, _ = run(tuple(y - 0.1 * g for y, g in zip(logits, gradient, strict=True)))
        size = float(sum((g**2).sum() for g in gradient))
    assert size > 1e-6
    np.testing.assert_allclose(before - after, 0.1 * size, rtol=0.1)


def test_intra_negatives_move_chunks_as_a_whole():
    tokens = np.tile(np.arange(13, dtype=np.int32), (BATCH, 1))
    wrong = np.asarray(contrastive.negatives(KEY, VOCAB, jnp.asarray(tokens), "intra", 20))
    for where in VOCAB.slices:
        np.testing.assert_array_equal(np.sort(wrong[..., where], -1) - tokens[0, where], 0)
    assert len(np.unique(wrong.reshape(-1, 13), axis=0)) > 100
    grid = vocab.Vocab((vocab.Modality("image", 32, 40, (4, 8)),))
    blocks = np.arange(32).reshape(2, 2, 4, 2).transpose(0, 2, 1, 3).reshape(8, 4)
    moved = contrastive.negatives(KEY, grid, jnp.arange(32)[None], "intra", 5)
    for z in np.asarray(moved)[:, 0]:
        now = z.reshape(2, 2, 4, 2).transpose(0, 2, 1, 3).reshape(8, 4)
        assert sorted(map(tuple, now)) == sorted(map(tuple, blocks)) and (now != blocks).any()


def test_a_line_has_eight_chunks_of_neighbours_and_a_grid_two_rows_of_four():
    line, grid = vocab.Modality("text", 16, 5), vocab.Modality("image", 32, 5, (4, 8))
    np.testing.assert_array_equal(contrastive.chunk_of(line), np.arange(16) // 2)
    rows, columns = np.indices((4, 8))
    np.testing.assert_array_equal(
        contrastive.chunk_of(grid), (rows // 2 * 4 + columns // 2).ravel()
    )


def test_inter_negatives_are_other_samples_and_each_one_once():
    rows = np.broadcast_to(np.arange(BATCH, dtype=np.int32)[:, None], (BATCH, 13))
    wrong = np.asarray(contrastive.negatives(KEY, VOCAB, jnp.asarray(rows), "inter", BATCH - 1))
    assert (wrong == wrong[..., :1]).all()
    for b in range(BATCH):
        assert sorted(wrong[:, b, 0]) == [i for i in range(BATCH) if i != b]
    with pytest.raises(ValueError, match=r"negatives = 6 other samples in a batch of 6, expected"):
        contrastive.negatives(KEY, VOCAB, jnp.asarray(rows), "inter", BATCH)


def test_the_config_has_no_term_unless_its_weight_is_set(monkeypatch):
    config, seen = t2i.get_config("smoke"), []
    monkeypatch.setitem(train_diffusion.LOSSES, "diffusion", lambda *a, **k: seen.append(k))
    train_diffusion.make_objective(config, VOCAB, 0)
    assert seen.pop()["terms"] == {}
    config.train.contrastive.sample_intra = 0.25
    train_diffusion.make_objective(config, VOCAB, 0, {"mine": (1.0, None)})
    asked = seen.pop()["terms"]
    assert list(asked) == ["contrastive_sample_intra", "mine"]
    assert asked["contrastive_sample_intra"][0] == 0.25
    config.train.contrastive.step_inter = 0.1
    config.train.objective = "continuous"
    with pytest.raises(ValueError, match=r"contrastive\.step_inter = 0\.1 with train\.objective"):
        train_diffusion.make_objective(config, VOCAB, 0)
    config.train.contrastive.negatives = 0
    config.train.objective = "discrete"
    with pytest.raises(ValueError, match=r"contrastive\.negatives = 0, expected at least 1"):
        train_diffusion.make_objective(config, VOCAB, 0)
    del config.train.contrastive  # a run that began before there was one
    train_diffusion.make_objective(config, VOCAB, 0)
    assert seen.pop()["terms"] == {}


def test_the_released_form_subtracts_the_mean_of_the_negatives():
    """A token counts for at most 70 nats. By hand, for the loss -log p of two wrong x_0."""
    kernel = transition.make_kernel(VOCAB, schedules.make("linear", T))
    rng = np.random.default_rng(1)
    logits = [rng.normal(size=(BATCH, m.length, m.classes)) * 40 for m in VOCAB.modalities]
    logits = tuple(y.astype(np.float32) for y in logits)
    free, t = np.arange(VOCAB.length)[None] >= 6, np.full((BATCH, 2), 3, np.int32)
    free = np.broadcast_to(free, (BATCH, VOCAB.length))
    xt = np.where(free, VOCAB.mask_id, x0())
    masks = tasks.Masks(free, np.zeros((BATCH, 2), bool))
    zeros = np.zeros(xt.shape, np.float32)
    outcome = terms.Outcome(x0(), xt, t, masks, logits, zeros, zeros)
    asked = (kernel, "sample_inter", 2, None, outcome, KEY)
    value, _ = contrastive.contrast(*asked, form="released")
    wrong = np.asarray(contrastive.negatives(KEY, VOCAB, x0(), "inter", 2))
    high = 0
    for b in range(BATCH):
        sums = np.zeros(2)
        for z in wrong:
            for n in range(6, VOCAB.length):
                m, place = (0, n) if n < 8 else (1, n - 8)
                y = logits[m][b, place].astype(float)
                nats = np.log(np.exp(y - y.max()).sum()) + y.max() - y[z[b, n] - (0, 3)[m]]
                sums[m] -= min(nats, 70) / 2
                high += nats > 70
        parts = [value[b, where].sum() for where in VOCAB.slices]
        np.testing.assert_allclose(parts, (3 / T + 1) * sums, rtol=1e-5)
    assert high


def test_a_large_weight_of_the_released_form_is_refused():
    c = t2i.get_config("smoke")
    c.train.contrastive.update({"form": "released", "sample_intra": 0.01})
    with pytest.raises(ValueError, match=r"sample_intra = 0.01 with the form 'released'"):
        contrastive.from_config(c, None)
    c.train.contrastive.sample_intra = 5e-5
    assert list(contrastive.from_config(c, None)) == ["contrastive_sample_intra"]
    c.train.contrastive.form = "odd"
    with pytest.raises(ValueError, match="expected one of bounded, released"):
        contrastive.from_config(c, None)
