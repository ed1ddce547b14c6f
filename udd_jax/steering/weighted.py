"""Prompts with weights, from what a user types to branches (`sampling.prompts`)."""

import numpy as np

from udd_jax import values
from udd_jax.errors import UserError
from udd_jax.sampling import prompts


def read(pipe, asked, given: dict, guide) -> list:
    """[(ids by modality int32[1 or n, length], weight, schedule)] of weighted prompts."""
    if guide is not None:
        raise UserError("prompts and guide are both given, expected one of them")
    found = []
    for value, weight, schedule in prompts.parse(asked):
        ids = value if isinstance(value, dict) else {"text": value}
        twice = [name for name in ids if name in given]
        if twice:
            raise UserError(f"prompts and given both have {twice[0]!r}, expected one of them")
        ids = {name: values.ids(pipe, name, rows) for name, rows in ids.items()}
        found.append((ids, weight, schedule))
    return found


def branched(pipe, asked: list, count: int, free) -> prompts.Prompts | None:
    """The prompts as branches for `count` samples, or None for a single one of weight 1."""
    rows = [{n: np.repeat(r, count // len(r), axis=0) for n, r in ids.items()} for ids, *_ in asked]
    names = [m.name for m in pipe.vocab.modalities]
    rows = [pipe.vocab.parts(ids) for ids in rows]
    has = np.array([[name in ids for name in names] for ids in rows])
    for name, where, some in zip(names, pipe.vocab.slices, has.any(0), strict=True):
        if some and free[:, where].any():
            raise UserError(f"prompts have {name!r}, which is generated: leave it out")
    x = np.stack([values.fuse(pipe.vocab, ids, count, pipe.vocab.mask_id) for ids in rows])
    weights, schedules = zip(*(entry[1:] for entry in asked), strict=True)
    found = prompts.merge(x, has, weights, schedules, pipe.kernel.steps)
    if prompts.plain(found) and (found.has[0] == has.any(0)).all():
        return None
    if not pipe.guidable:
        raise UserError(
            "prompts with weights need a run that was trained with absent conditions: expected "
            "one prompt of weight 1"
        )
    return found
