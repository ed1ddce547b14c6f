"""What a person asks for on the page, checked: a Request, which is rows of tokens with their keys.

Everything that is refused is refused here, in one line, before anything is computed.
"""

import dataclasses
import math
from collections.abc import Hashable

import jax
import numpy as np

from udd_jax import pipeline, values
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError

MOST = 16  # samples of one request
CHARACTERS = 2000  # of a text
PIXELS = 25_000_000  # of a picture
BYTES = 20_000_000  # of its file


@dataclasses.dataclass(frozen=True)
class Request:
    """Samples of one task. `given`, `negative`: {modality: ids int32[n, length]}; masks: n rows.

    settings: the settings of the sampler that differ from those of the run.
    """

    task: str
    given: dict
    negative: dict | None
    masks: tasks.Masks
    seed: int
    settings: dict
    still: str | None  # the modality that the chain computes once

    def __len__(self) -> int:
        return len(self.masks.free)

    @property
    def group(self) -> Hashable:
        """Requests of equal groups can be computed in one batch, without another result."""
        absent = tuple(np.asarray(self.masks.absent)[0].tolist())
        settings = tuple(sorted(self.settings.items()))
        return tuple(sorted(self.given)), absent, self.still, settings, self.negative is None

    @property
    def keys(self) -> jax.Array:
        return pipeline.sample_keys(self.seed, len(self))


def read_picture(data: bytes, size: int) -> np.ndarray:
    """A picture file of any size -> uint8[size, size, 3]. ValueError, one line, unless it is one.

    The size is read from the head of the file before anything is decoded.
    """
    if len(data) > BYTES:
        raise UserError(f"the file has {len(data):,} bytes, expected at most {BYTES:,}")
    try:
        shape = pixels.size(data)
    except UserError:
        raise UserError("the file is no picture of a format that is read, such as PNG") from None
    if math.prod(shape) > PIXELS:
        raise UserError(
            f"the picture is {shape[0]} x {shape[1]}, expected at most {PIXELS:,} pixels"
        )
    return pixels.fit(pixels.read(data), size)


def check_text(text: str, name: str) -> str:
    """The text; ValueError if it is longer than a person types."""
    if len(text) > CHARACTERS:
        raise UserError(f"{name} has {len(text)} characters, expected at most {CHARACTERS}")
    return text


def make(
    pipe,
    task: str,
    *,
    text: str = "",
    image: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    negative: str = "",
    blank_tokens: int = 1,
    count: int = 1,
    seed: int = 0,
    settings: dict | None = None,
) -> Request:
    """Checks what was typed and turns it into tokens.

    text, image uint8[S, S, 3], mask bool[S, S]: as the task needs them. Raises ValueError.
    """
    if values.whole("number of samples", count, 1) > MOST:
        raise UserError(f"number of samples = {count}, expected at most {MOST}")
    if values.whole("seed", seed, 0) >= values.SEEDS:
        raise UserError(f"seed = {seed}, expected 0 to {values.SEEDS - 1}")
    text, negative = check_text(text, "the text"), check_text(negative, "the negative prompt")
    settings = dict(settings or {})
    chosen = pipe.settings(**settings)
    settings = {name: value for name, value in settings.items() if not chosen.unread(name)}
    if task == "infill":
        captions = [text] if text.strip() else None
        images = None if image is None else image[None]
        given, masks = pipe.infilling(images, mask, captions, blank_tokens)
    else:
        needs = tasks.parse(pipe.vocab, task).given
        if "image" in needs and image is None:
            raise UserError("the picture is missing: choose one")
        have = {"text": [text], "image": None if image is None else image[None]}
        given = {name: pipe.codecs[name].encode(have[name], True) for name in needs}
        masks = tasks.masks(pipe.vocab, task, 1)
    against = None
    if negative.strip() and chosen.on("guidance") and "text" in given:
        against = {"text": pipe.codecs["text"].encode([negative], True)}
    repeat = lambda rows: np.repeat(np.asarray(rows), count, axis=0)  # noqa: E731
    return Request(
        task=task,
        given={name: repeat(ids) for name, ids in given.items()},
        negative=against and {name: repeat(ids) for name, ids in against.items()},
        masks=tasks.Masks(*map(repeat, masks)),
        seed=seed,
        settings=settings,
        still=pipe.still(masks),
    )
