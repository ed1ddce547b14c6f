"""Several prompts with weights, as branches of the guidance (`guidance.Branch`).

    log p = log p_absent + s(t) sum over prompts c of w_c(t) (log p_c - log p_absent)

s is the guidance scale (1 if it is off). Weights need no sum of 1: the branch without a prompt (or
with the negative prompt) has what is missing, 1 - s sum w_c, and is left out where that is 0. A
negative weight repels. For independent conditions this is their product, as in Composable Diffusion
(arXiv 2206.01714); for this use in discrete diffusion it is ours.

Each weight has a schedule over time: "constant", "linear" (w (1 - t/T)), or an interval (low, high)
of t/T outside of which it is 0. Equal inputs are one branch, whose weights add up.
"""

import math
import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import guidance

SLIGHT = 1e-6  # of a weight: a smaller rest of 1 - sum is rounding


class Prompts(NamedTuple):
    """P different prompts of a batch."""

    x: jax.Array  # int32[P, B, L], global ids at the modalities that a prompt has
    has: jax.Array  # bool[P, M], whether it has them
    weight: jax.Array  # float32[P, T + 1], w(t)


def parse(asked) -> list[tuple[Any, float, Any]]:
    """[(value, weight) or (value, weight, schedule)] -> [(value, weight, schedule)], checked.

    value: a text, or {modality: value}. UserError, one line: no prompts, a weight that is not a
    finite number, weights that sum to 0, or an unknown schedule.
    """
    found = []
    for i, entry in enumerate(asked):
        if not isinstance(entry, tuple | list) or not 2 <= len(entry) <= 3:
            raise UserError(f"prompts {i}: {entry!r}, expected (prompt, weight[, schedule])")
        value, weight, schedule = (*entry, "constant")[:3]
        number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
        if not number or not math.isfinite(weight):
            raise UserError(f"prompts {i}: weight {weight!r}, expected a finite number")
        shares(schedule, 1)
        found.append((value, float(weight), schedule))
    total = math.fsum(weight for _, weight, _ in found)
    if abs(total) < SLIGHT:
        said = ", ".join(f"{weight:g}" for _, weight, _ in found) or "none"
        raise UserError(f"the weights of the prompts ({said}) sum to 0: expected another sum")
    return found


def shares(schedule, steps: int) -> np.ndarray:
    """The schedule as a table float64[T + 1], by which a weight is multiplied at each time."""
    part = np.arange(steps + 1) / steps
    if schedule == "constant":
        return np.ones_like(part)
    if schedule == "linear":
        return guidance.share(schedule, part)
    try:
        low, high = map(float, schedule)
        good = 0 <= low <= high <= 1
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(
            f"the schedule {schedule!r} of a prompt: expected 'constant', 'linear', or (low, high) "
            "with 0 <= low <= high <= 1, shares of T"
        )
    return guidance.share((low, high), part).astype(float)


def merge(x: np.ndarray, has: np.ndarray, weights, schedules, steps: int) -> Prompts:
    """Equal prompts become one, and those whose weight is always 0 are left out.

    x: int32[P, B, L]; has: bool[P, M]; weights, schedules: of `parse`. Returns arrays of NumPy.
    """
    found = {}
    for tokens, own, weight, schedule in zip(x, has, weights, schedules, strict=True):
        table = weight * shares(schedule, steps)
        key = (tokens.tobytes(), own.tobytes())
        found[key] = (tokens, own, found[key][2] + table if key in found else table)
    kept = [entry for entry in found.values() if entry[2].any()]
    if not kept:
        raise UserError(f"prompts: none has a weight at any of the T = {steps} times")
    tokens, own, tables = zip(*kept, strict=True)
    return Prompts(np.stack(tokens), np.stack(own), np.stack(tables).astype(np.float32))


def together(asked: list) -> dict[str, np.ndarray]:
    """{modality: ids} of the prompts that count: of each modality, the first whose weight is not 0.

    asked: [(ids by modality, weight, schedule)], whose ids have one row, or one for each sample.
    """
    found, count = {}, max((len(rows) for ids, *_ in asked for rows in ids.values()), default=0)
    if not count:
        raise UserError("prompts: no values are given, expected one at least")
    for ids, *_ in sorted(asked, key=lambda entry: entry[1] == 0):
        for name, rows in ids.items():
            if len(rows) not in (1, count):
                raise UserError(f"prompts: {len(rows)} and {count} of {name!r}, expected as many")
            found.setdefault(name, np.repeat(rows, count // len(rows), axis=0))
    return found


def plain(prompts: Prompts) -> bool:
    """Whether this is one prompt of weight 1, which needs no branches."""
    return len(prompts.x) == 1 and bool((prompts.weight == 1).all())


def calls(prompts: Prompts, scale: float = 1.0) -> int:
    """The network calls of a step: the branches whose weight is not 0, where they are most.

    scale: the guidance scale.
    """
    rest = np.abs(1 - scale * prompts.weight.sum(0)) > SLIGHT
    return int(((prompts.weight != 0).sum(0) + rest)[1:].max())


def branches(prompts: Prompts, scene: guidance.Scene, x, t) -> list[guidance.Branch]:
    """The guide: one branch a prompt, then one with none, in which the negative prompt may stand.

    x: int32[B, L]; t: int32[B]. Returns 1 + P branches.
    """
    kernel, free = scene.kernel, scene.masks.free
    vocab, steps = kernel.vocab, kernel.steps
    at, now = vocab.modality_of, tasks.times(vocab, scene.masks, t, steps)
    asked = prompts.has.any(0)  # bool[M], modalities that some prompt has
    has_free = vocab.any_of(free)
    s, rest, found = guidance.strength(scene.settings, t, steps), 1.0, []

    def branch(tokens, has, weight):
        seen = jnp.where(asked[at][None], tokens, x)
        then = jnp.where(has, 0, jnp.where(asked[None], steps, now))
        return guidance.Branch(seen, then, free, jnp.where(has_free, weight[:, None], 0))

    for tokens, has, table in zip(*prompts, strict=True):
        weight = s * table[t]
        rest = rest - weight
        found.append(branch(jnp.where(has[at][None], tokens, scene.prior), has[None], weight))
    known, instead = guidance.instead(scene)
    rest = jnp.where(jnp.abs(rest) > SLIGHT, rest, 0)
    return [*found, branch(instead, known & asked[None], rest)]
