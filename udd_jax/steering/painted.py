"""Painted words, from what a user types to arrays (`sampling.painting`)."""

import math
import numbers
import re

import numpy as np
from PIL import Image

from udd_jax import build, values
from udd_jax.data import pixels
from udd_jax.errors import UserError
from udd_jax.sampling import painting


def read(pipe, asked, given: dict, masks, count: int, own: int) -> painting.Paint | None:
    """The painted phrases of `count` samples; None where no weight counts.

    asked: [(phrase, mask) or (phrase, mask, weight), ...]: one phrase, or a list with one for each
    of the `own` prompts, and one mask or as many, of the size of the run. given: {modality: ids},
    with a row for each sample. UserError, one line.
    """
    found = [_checked(pipe, i, entry) for i, entry in enumerate(asked)]
    image, text = (pipe.vocab.slices[pipe.vocab.index(name)] for name in ("image", "text"))
    free = np.asarray(masks.free)
    if "text" not in given or free[:, text].any() or not free[:, image].any():
        raise UserError("paint is for images of a given text: expected a task such as image|text")
    if not drawable(pipe):
        raise UserError("paint needs model.kind = 'diffusion' and a joint network")
    ids, offset = given["text"], pipe.vocab.offsets[pipe.vocab.index("text")]
    each = []
    for i, (phrases, where, weight) in enumerate(found):
        if any(len(rows) not in (1, own) for rows in (phrases, where)):
            counts = f"{len(phrases)} phrases and {len(where)} masks"
            raise UserError(f"paint {i}: {counts} for {own} prompts, expected one or as many")
        alone = pipe.codecs["text"].encode(phrases, True) + offset
        alone, where = (np.repeat(rows, count // len(rows), axis=0) for rows in (alone, where))
        phrases = [phrase for phrase in phrases for _ in range(count // len(phrases))]
        each.append((_words(pipe, phrases, ids), alone, where, np.float32(weight)))
    each = [entry for entry in each if entry[-1]]
    if not each:
        return None
    return painting.Paint(ids + offset, *map(np.stack, zip(*each, strict=True)), pipe.guidable)


def drawable(pipe) -> bool:
    """Whether words of a run can be painted."""
    return pipe.model.network == "joint" and build.diffuses(pipe.config)


def part(paint: painting.Paint, rows) -> painting.Paint:
    """The paint of some of the samples."""
    each = {name: getattr(paint, name)[:, rows] for name in ("words", "phrase", "where")}
    return paint.replace(prompt=paint.prompt[rows], **each)


def _checked(pipe, i: int, entry):
    """(phrases, codes under their masks bool[n, N], weight) of an entry."""
    if not isinstance(entry, tuple | list) or not 2 <= len(entry) <= 3:
        raise UserError(f"paint {i}: {entry!r}, expected (phrase, mask[, weight])")
    phrase, mask, weight = (*entry, 1.0)[:3]
    phrases = values.texts(phrase, f"paint {i}: the phrase")
    if not phrases or not all(phrase.strip() for phrase in phrases):
        raise UserError(f"paint {i}: the phrase {phrase!r}, expected some words of the prompt")
    number = isinstance(weight, numbers.Real) and not isinstance(weight, bool)
    if not number or not math.isfinite(weight) or weight < 0:
        raise UserError(f"paint {i}: weight {weight!r}, expected a finite number, at least 0")
    tokenizer = pipe.tokenizers["image"]
    masks = _masks(i, mask, pixels.both(tokenizer.image_size))
    if not masks.any(axis=(1, 2)).all():
        raise UserError(f"paint {i}: expected a mask with white where {phrases[0]!r} belongs")
    codes = np.stack([pixels.code_mask(mask, tokenizer.grid).reshape(-1) for mask in masks])
    return [phrase.strip() for phrase in phrases], codes, float(weight)


def _masks(i: int, given, size: tuple[int, int]) -> np.ndarray:
    """One mask or many of an entry -> bool[n, *size]; of an image of Pillow, what is white."""
    if isinstance(given, Image.Image):
        return pixels.fit_mask(pixels.white(pixels.as_read(given, 4)), size)[None]
    given = np.asarray(given)
    if given.dtype != bool or given.shape[-2:] != size or given.ndim not in (2, 3):
        raise UserError(
            f"paint {i}: the mask is {given.dtype}{list(given.shape)}, expected bool{list(size)}, "
            "one for each prompt, or an image of Pillow"
        )
    return given.reshape(-1, *size)


def _words(pipe, phrases: list[str], ids: np.ndarray) -> np.ndarray:
    """The tokens of a phrase in each prompt, bool[B, M]; the first of several places."""
    known = {}
    for phrase, row in zip(phrases, ids, strict=True):
        key = phrase, row.tobytes()
        if key not in known:
            known[key] = _span(pipe.codecs["text"].decode, phrase, row)
    return np.stack([known[p, row.tobytes()] for p, row in zip(phrases, ids, strict=True)])


def _span(decode, phrase: str, row: np.ndarray) -> np.ndarray:
    pattern = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
    says = lambda start, stop: pattern.search(decode([row[start:stop]])[0])  # noqa: E731
    stop = next((stop for stop in range(1, len(row) + 1) if says(0, stop)), None)
    if stop is None:
        prompt = decode([row])[0]
        raise UserError(f"paint: {phrase!r} is not in the prompt {prompt!r}: expected its words")
    start = max(start for start in range(stop) if says(start, stop))
    return (np.arange(len(row)) >= start) & (np.arange(len(row)) < stop)
