"""A finite set of items: a world whose p(x_0 | x_t) is found by enumeration.

If it replaces the network, the result of every sampler is known in advance: a sequence is one of
the items or it is not, and the items are equally likely. Tokens that are revealed in one call are
independent given x_t, so with few calls some sequences are not items. `chain` and `fill` say how
many: they simulate the samplers in float64 NumPy and share no code with them.
"""

import functools
import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from tests.helpers import dense
from udd_jax.diffusion import schedules, tasks, transition, vocab

FIXTURE = json.loads((pathlib.Path(__file__).parents[1] / "fixtures" / "items.json").read_text())
LAYOUT = vocab.image_text(
    tuple(FIXTURE["grid"]),
    FIXTURE["image_classes"],
    FIXTURE["text_classes"],
    FIXTURE["text_length"],
)
STEPS = FIXTURE["steps"]
ITEMS = np.array(FIXTURE["items"], np.int32)  # global ids, [24, 16]
IMPOSSIBLE = 1e-13  # in place of 0: after a step that no item explains, the nearest ones count

# Compiled in half the time, for what runs a few steps only.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def oracle(kernel: transition.Kernel):
    """The `denoise_fn` that knows the items."""
    one_hot = [
        (ITEMS[:, where, None] == offset + np.arange(m.classes)).astype(np.float32)
        for m, where, offset in zip(LAYOUT.modalities, LAYOUT.slices, LAYOUT.offsets, strict=True)
    ]

    def denoise_fn(xt, t, free):
        absent = [(t[:, m] == kernel.steps) & ~free[:, w].any(-1) for m, w in enumerate(SLICES)]
        silent = jnp.stack(absent, axis=1)[:, LAYOUT.modality_of] | (xt == LAYOUT.mask_id)
        at = transition.marginal(
            kernel, LAYOUT.modality_of[None], transition.free_times(LAYOUT, t, free)
        )
        equal = xt[:, None] == ITEMS[None]  # [B, items, L]
        stays = jnp.where(at.unmasked > 0, at.alpha + at.beta, 1)  # at T it cannot be visible
        chance = jnp.where(equal, stays[:, None], at.beta[:, None])
        evidence = jnp.log(jnp.maximum(chance, IMPOSSIBLE))
        weight = jax.nn.softmax(jnp.where(silent[:, None], 0, evidence).sum(-1), axis=-1)
        return tuple(jnp.log(jnp.einsum("bi,ink->bnk", weight, h) + 1e-30) for h in one_hot)

    return denoise_fn


SLICES = LAYOUT.slices
CLEAN = np.eye(LAYOUT.size)


def predict(tables, xt: np.ndarray, t: int, free: np.ndarray, silent=False) -> np.ndarray:
    """p(x_0 | x_t) over all V ids, float64[B, L, V]: the oracle from dense matrices.

    silent: bool[B, L], positions of absent modalities.
    """
    at_t = dense.cumulative(LAYOUT, tables, t)
    given = CLEAN[xt[:, None], ITEMS[None]]
    evidence = np.where(free[:, None], at_t[xt[:, None], ITEMS[None]], given)
    evidence = np.log(np.maximum(evidence, IMPOSSIBLE))
    weight = np.where((silent | (xt == LAYOUT.mask_id))[:, None], 0, evidence).sum(-1)
    weight = np.exp(weight - weight.max(1, keepdims=True))
    weight /= weight.sum(1, keepdims=True)
    return np.einsum("bi,ilv->blv", weight, CLEAN[ITEMS])


def draw(p: np.ndarray, rng) -> np.ndarray:
    """Draws a token for each row of p, float64[..., V]."""
    reached = np.cumsum(p / p.sum(-1, keepdims=True), axis=-1)
    drawn = (reached < rng.random(p.shape[:-1])[..., None]).sum(-1)
    return np.minimum(drawn, p.shape[-1] - 1)


def chain(tables, times, x: np.ndarray, free: np.ndarray, rng, correct=0) -> np.ndarray:
    """The factorised reverse chain through `times`, from the prior at the free positions of x.

    correct: so many tokens a modality, the least likely given the others, are drawn afresh.
    """
    law = np.zeros((2, LAYOUT.size))
    for row, modality, offset, table in zip(
        law, LAYOUT.modalities, LAYOUT.offsets, tables, strict=True
    ):
        row[offset : offset + modality.classes] = table.unmasked[-1] / modality.classes
        row[-1] = table.gamma_bar[-1]
    xt = np.where(free, draw(np.broadcast_to(law[LAYOUT.modality_of], (*x.shape, 12)), rng), x)
    for t, s in itertools.pairwise(times):
        posterior = dense.posterior(LAYOUT, tables, s, t).transpose(1, 0, 2)  # [x_t, x_s, x_0]
        p = predict(tables, xt, t, free)
        xs = draw(np.einsum("blkv,blv->blk", posterior[xt], p), rng)
        if correct:
            # Without its own token x_t = j: p(i) / q(j | i). Shown in x_s for sure.
            chance = dense.cumulative(LAYOUT, tables, t)[xt]
            alone = np.divide(p, chance, out=np.zeros_like(p), where=chance > 0)
            alone /= alone.sum(-1, keepdims=True)
            law = np.einsum("kv,blv->blk", dense.cumulative(LAYOUT, tables, s)[:-1], alone)
            own = np.take_along_axis(alone, xt[..., None], axis=-1)[..., 0]
            doubt = np.where(free & (xt != LAYOUT.mask_id), -own, -np.inf)
            for where in SLICES:
                worst = np.sort(doubt[:, where], axis=1)[:, -correct, None]
                again = np.isfinite(doubt[:, where]) & (doubt[:, where] >= worst)
                xs[:, where] = np.where(again, draw(law[:, where], rng), xs[:, where])
        xt = np.where(free, xs, x)
    return xt


def leap(tables, times, x: np.ndarray, free: np.ndarray, rng) -> np.ndarray:
    """Tau-leaping through `times` by scores from dense matrices; all masked at the start."""
    xt, ids = np.where(free, LAYOUT.mask_id, x), np.arange(LAYOUT.size)
    classes = [m.classes for m in LAYOUT.modalities]
    for t, s in itertools.pairwise(times):
        p, masked = predict(tables, xt, t, free), xt == LAYOUT.mask_id  # p of x_0, [B, L, V]
        at_t, move = dense.cumulative(LAYOUT, tables, t), dense.step(LAYOUT, tables, s, t)
        chance = at_t[xt]  # q(x_t | i)
        if s == 0:  # a token that only one x_0 explains stays
            return np.where(free & (masked | ((chance > 0).sum(-1) > 1)), draw(p, rng), xt)
        ratio = np.divide(p, chance, out=np.zeros_like(p), where=chance > 0)
        forward = move[xt] * (ids != xt[..., None])  # from every y to x_t, times tau
        rates = forward * np.einsum("yi,bli->bly", at_t, ratio)
        # The step has the rate of masking per token that is left at s; the rate at t is per token
        # that is left at t. Where none is left, the rate is that of a moment before.
        left_s, left_t = (np.repeat([a.unmasked[k] for a in tables], classes) for k in (s, t))
        early = np.where(left_t > 0, left_t, left_s)
        shown = dense.cumulative(LAYOUT, tables, t if left_t.all() else s)[:-1]
        hidden = move[-1, :-1] * left_s * np.einsum("yi,bli->bly", shown / early[:, None], p)
        gamma = np.repeat([a.gamma_bar[t] for a in tables], classes)
        hidden = np.pad(hidden / np.where(gamma > 0, gamma, 1), ((0, 0), (0, 0), (0, 1)))
        rates = np.where(masked[..., None], hidden, rates)
        total = rates.sum(-1)
        jumps = free & (rng.random(xt.shape) < 1 - np.exp(-total))
        xt = np.where(jumps, draw(np.where(total[..., None] > 0, rates, 1), rng), xt)
    return xt


def remask(rule: str, eta: float, gamma, times, count: int, rng) -> np.ndarray:
    """ReMDM (arXiv 2503.00307) through `times` from nothing: sigma masks what was revealed again.

    rule: "cap" or "rescale"; gamma: float[T+1], of `absorbing`.
    """
    tables = [schedules.absorbing(len(gamma) - 1)] * 2
    xt = np.full((count, LAYOUT.length), LAYOUT.mask_id)
    free = np.ones(xt.shape, bool)
    for t, s in itertools.pairwise(times):
        p, shown = predict(tables, xt, t, free), xt != LAYOUT.mask_id
        tokens, share_t, share_s = draw(p, rng), 1 - gamma[t], 1 - gamma[s]
        limit = min(1, (1 - share_s) / share_t) if share_t > 0 else 1.0
        sigma = min(eta, limit) if rule == "cap" else eta * limit
        stay = (1 - share_s - sigma * share_t) / (1 - share_t)
        u = rng.random(xt.shape)
        again, reveal = shown & (u < sigma), ~shown & (u >= stay)
        xt = np.where(again, LAYOUT.mask_id, np.where(reveal, tokens, xt))
    return xt


def fill(name: str, count: int, rng, tables, **numbers) -> tuple[np.ndarray, np.ndarray]:
    """`count` sequences filled from nothing by the order `name`, one at a time, and their calls.

    numbers: what the order needs of `sampling.settings.Settings`.
    """
    done = [_fill_one(name, rng, tables, **numbers) for _ in range(count)]
    return np.array([x for x, _ in done]), np.array([calls for _, calls in done])


def _fill_one(name, rng, tables, steps=0, noise=0, purity=0, group=1, threshold=1, bound=0):
    x, calls = np.full(LAYOUT.length, LAYOUT.mask_id), 0
    free = np.ones((1, LAYOUT.length), bool)
    while (x == LAYOUT.mask_id).any():
        p = predict(tables, x[None], STEPS // 2, free)[0]  # of absorbing, any t < T
        masked = np.flatnonzero(x == LAYOUT.mask_id)
        tokens, best = draw(p, rng), p.max(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_p, entropy = np.log(p), -np.where(p > 0, p * np.log(p), 0).sum(1)
        if name in ("maskgit", "fixed", "purity", "halton"):
            shown = []
            for where, modality in zip(SLICES, LAYOUT.modalities, strict=True):
                here = masked[(masked >= where.start) & (masked < where.stop)]
                if not len(here):
                    continue
                k, n = calls + 1, modality.length
                if name in ("maskgit", "halton"):
                    stay = int(np.floor(n * np.cos(np.pi / 2 * k / steps) + 1e-9))
                    stay = 0 if k == steps else max(1, min(len(here) - 1, stay))
                else:
                    stay = n * (steps - k) // steps
                if name == "maskgit":
                    chance = rng.gumbel(size=len(here)) * noise * (1 - k / steps)
                    score = log_p[here, tokens[here]] + chance
                elif name == "halton":
                    score = -halton(modality.length, modality.grid)[here - where.start]
                elif name == "fixed":
                    score = rng.permutation(len(here))
                else:
                    weights = best[here] / best[here].max()
                    sharp = p[here] ** (1 + purity * weights[:, None])
                    tokens[here] = draw(sharp, rng)
                    number = len(here) - stay
                    chosen = rng.choice(here, number, replace=False, p=weights / weights.sum())
                    shown += list(chosen)
                    continue
                shown += list(here[np.argsort(-score)][: len(here) - stay])
        elif name == "best_first":
            tokens = p.argmax(1)
            shown = masked[np.argsort(-best[masked], kind="stable")][:group]
        elif name == "threshold":
            shown = masked[best[masked] > threshold]
            shown = shown if len(shown) else masked[[best[masked].argmax()]]
        elif name == "entropy_bounded":
            order, number = masked[np.argsort(entropy[masked])], 1
            while number < len(order) and entropy[order[:number]].sum() <= bound:
                number += 1
            shown = order[:number]
        else:
            shown = rng.permutation(masked)[:group]  # first hitting: uniform, one by one
        x[shown] = tokens[shown]
        calls += 1
    return x, calls


@functools.cache
def halton(length: int, grid) -> np.ndarray:
    """The place of each position in the Halton order, by hand: digits as text."""

    def inverse(n, base):
        return sum(int(d) * base ** -(i + 1.0) for i, d in enumerate(np.base_repr(n, base)[::-1]))

    rows, columns = grid or (1, length)
    cells = [
        (int(inverse(n, 3) * rows), int(inverse(n, 2) * columns)) for n in range(1, 50 * length)
    ]
    order = list(dict.fromkeys(cells))
    return np.array([order.index(divmod(i, columns)) for i in range(length)])


def which(x: np.ndarray) -> np.ndarray:
    """The item that each sequence is, or -1: int[B]."""
    equal = (np.asarray(x)[:, None] == ITEMS[None]).all(-1)
    return np.where(equal.any(1), equal.argmax(1), -1)


def batch_of(names):
    """x, free and absent for a batch with a task a row."""
    rows = [tasks.masks(LAYOUT, name, 1) for name in names]
    free = np.concatenate([row.free for row in rows])
    free[[name == "infill" for name in names]] = np.arange(16) % 3 > 0
    return ITEMS[: len(names)], free, np.concatenate([row.absent for row in rows])
