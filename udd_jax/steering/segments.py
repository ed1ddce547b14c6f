"""Weights of given modalities, from what a user types to an array (`sampling.weights`)."""

import math

import numpy as np

from udd_jax import build
from udd_jax.errors import UserError


def read(pipe, asked: dict, masks, count: int, own: int) -> np.ndarray | None:
    """The weights float32[count, M] of `count` samples; None where all of them are 1.

    asked: {modality: a weight, or one for each of the `own` given values}; of a picture, those of
    both levels. UserError, one line: a modality that the task does not give, a bad number, or a
    network that would attend to nothing.
    """
    names = [m.name for m in pipe.vocab.modalities]
    weights = np.ones((count, len(names)), np.float32)
    free, absent = np.asarray(masks.free), np.asarray(masks.absent)
    given = [
        name
        for m, name in enumerate(names)
        if not absent[:, m].any() and not free[:, pipe.vocab.slices[m]].any()
    ]
    for name, value in asked.items():
        if name not in given:
            expected = ", ".join(given) or "nothing"
            raise UserError(f"weigh {name!r}: it is not given in the task, expected {expected}")
        row = np.atleast_1d(_numbers(name, value))
        if row.ndim > 1 or len(row) not in (1, own):
            many = "1 is given" if own == 1 else f"{own} values are given"
            raise UserError(f"weigh {name!r}: {len(row)} weights, and {many}: expected 1 or {own}")
        for part in pipe.vocab.levels([name]):
            weights[:, names.index(part)] = np.repeat(row, count // len(row))
    if (weights == 1).all():
        return None
    if not build.diffuses(pipe.config):
        raise UserError("weigh needs model.kind = 'diffusion'")
    if pipe.model.attention == "mutual":
        left_out = pipe.config.model.get("absent") == "left_out"
        seen = np.where(absent, 0, weights) if left_out else weights
        for m, name in enumerate(names):
            blind = (np.delete(seen, m, axis=1) == 0).all(axis=1) & ~absent[:, m]
            if blind.any():
                others = ", ".join(n for n in names if n != name)
                raise UserError(
                    f"weigh: {others} all have weight 0, and mutual attention of the {name} would "
                    "see nothing: leave one out of the task instead"
                )
    return weights


def _numbers(name: str, value) -> np.ndarray:
    try:
        row = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        row = np.float32("nan")
    if isinstance(value, str | bool) or not all(math.isfinite(w) and w >= 0 for w in row.flat):
        raise UserError(f"weigh {name!r}: {value!r}, expected finite numbers, at least 0")
    return row
