"""Captions of a given length, or of one that is drawn first (DDCap).

A length is a modality of the run (`kind = "length"`), or comes from the length head. What lies
beyond it is given as padding. So the other tokens are drawn from the network's own
p(x | picture, length); DDCap hides the rest instead.
"""

import functools

import jax
import numpy as np

from udd_jax import values
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.training import length as heads

DRAWN = "drawn"


def inputs(
    pipe, images, length, num: int = 1, seed: int = 0, first: int = 0
) -> tuple[dict, tasks.Masks]:
    """`given` and `masks` of `Pipeline.generate`, for `num` captions of each picture.

    images: as of `image_to_text`. length: a number of tokens from 1 to M, or one for each picture,
    or "drawn" for each caption by itself. first: the number of the first caption, as of
    `Pipeline.stream`. UserError, one line: it is none of these, or the run has no way to draw one.
    """
    values.seed(seed)
    image = values.ids(pipe, "image", images)
    num, most = values.whole("num", num, 1), pipe.text_length
    if isinstance(length, str) and length == DRAWN:
        image = np.repeat(image, num, axis=0)
        lengths = draw(pipe, image, seed, first)
    else:
        lengths = np.repeat(_typed(length, len(image), most), num)
        image = np.repeat(image, num, axis=0)
    text = np.full((len(image), most), pipe.tokenizers["text"].pad_id, np.int32)
    given, free = {"image": image, "text": text}, np.zeros((len(image), pipe.vocab.length), bool)
    free[:, pipe.vocab.slices[pipe.vocab.index("text")]] = np.arange(most) < lengths[:, None]
    absent = [m.name not in pipe.vocab.parts(given) for m in pipe.vocab.modalities]
    return given, tasks.Masks(free, np.broadcast_to(absent, (len(image), len(absent))))


def _typed(length, count: int, most: int) -> np.ndarray:
    """int[count] of one length for all pictures, or of one for each."""
    try:
        each = values.counts(None if isinstance(length, bool) else length, None)
    except UserError:
        each = np.array([])
    if len(each) not in (1, count) or not ((each >= 1) & (each <= most)).all():
        raise UserError(
            f"length = {length!r}, expected 1 to {most} tokens, one number for all pictures or one "
            f"for each, or {DRAWN!r}"
        )
    return np.broadcast_to(each, (count,))


def modality(pipe) -> str | None:
    """The name of the run's length, a modality, or None."""
    return next((name for name, kind in pipe.kinds.items() if kind == "length"), None)


def cut(pipe, given: dict, masks: tasks.Masks) -> tuple[dict, tasks.Masks]:
    """`given` and `masks` with padding beyond a given length, where the text is generated.

    given: {modality: ids int32[n, length]}. At least one token of the text stays free.
    """
    name = modality(pipe)
    where = pipe.vocab.slices[pipe.vocab.index("text")]
    free = np.asarray(masks.free)
    if name not in given or not free[:, where].any():
        return given, masks
    beyond = np.arange(where.stop - where.start) >= np.maximum(given[name], 1)
    text = np.full(beyond.shape, pipe.tokenizers["text"].pad_id, np.int32)
    free = free.copy()
    free[:, where] &= ~beyond
    return given | {"text": text}, tasks.Masks(free, np.asarray(masks.absent))


def draw(pipe, image, seed: int, first: int = 0) -> np.ndarray:
    """A length for each picture int[n, N], drawn from the modality or the head: int[n], at least
    1. first: the number of the first sample, as of `Pipeline.stream`."""
    if (name := modality(pipe)) is not None:
        given = {"image": np.asarray(image)}
        made = pipe.generate(f"{name}|image", given=given, seed=seed, first=first)
        return np.maximum(made.values[name], 1)
    if not getattr(pipe.model, "length_head", False):
        raise UserError(
            "length = 'drawn': this run has no head, --config.model.length_head, and no modality "
            "of kind length"
        )
    image = np.asarray(image) + pipe.vocab.offsets[pipe.vocab.index("image")]
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))
    keys = keys(np.arange(first, first + len(image)))
    log_p = _log_p(pipe.model, pipe.kernel, pipe.params, image)
    return np.asarray(jax.vmap(jax.random.categorical)(keys, log_p[:, 1:])) + 1


@functools.partial(jax.jit, static_argnums=0)
def _log_p(model, kernel, params, image):
    absent = jax.numpy.zeros(len(image), bool)
    x, t, free = heads.asked(kernel, jax.random.key(0), image, absent)
    return jax.nn.log_softmax(model.apply({"params": params}, x, t, free, method="lengths"))
