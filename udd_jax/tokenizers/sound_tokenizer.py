"""The sound tokenizer: a spectrogram, and an image tokenizer of one channel for it.

    tokenizer.encode(sounds)      float[B, samples] in -1..1 -> int32[B, N], N = grid of the codes
    tokenizer.decode(codes)       int32[B, N] -> float32[B, samples]

The vocoder is a function (settings, pictures uint8[B, bands, frames, 1]) -> float32[B, samples];
`dataclasses.replace(tokenizer, vocoder=mine)` puts in another.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable

import numpy as np

from udd_jax.errors import UserError
from udd_jax.tokenizers import spectrogram
from udd_jax.tokenizers.image_tokenizer import ImageTokenizer

CHUNK = 64  # sounds at once


@dataclasses.dataclass(frozen=True, eq=False)
class SoundTokenizer:
    """A spectrogram's settings, the tokenizer of its pictures, and a vocoder."""

    settings: spectrogram.Spectrogram
    pictures: ImageTokenizer
    vocoder: Callable = spectrogram.griffin_lim

    def __post_init__(self):
        if self.pictures.shape != (*self.settings.shape, 1):
            raise UserError(
                f"sound: its spectrogram has {self.settings.shape} bands and frames, its tokenizer "
                f"is for pictures {self.pictures.shape}: expected the same, and one channel"
            )

    @property
    def grid(self) -> tuple[int, int]:
        return self.pictures.grid

    @property
    def codes(self) -> int:
        return self.pictures.codes

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits: equal hash, equal codes."""
        own = json.dumps(dataclasses.asdict(self.settings), sort_keys=True)
        return hashlib.sha256((own + self.pictures.hash).encode()).hexdigest()[:16]

    def encode(self, sounds) -> np.ndarray:
        """float[B, samples] -> int32[B, N]. ValueError for another shape or dtype, or what is not
        finite."""
        sounds = np.asarray(sounds)
        if sounds.shape[1:] != (self.settings.samples,) or sounds.dtype.kind != "f":
            raise UserError(
                f"sounds are {sounds.dtype}{list(sounds.shape)}, expected "
                f"float[B, {self.settings.samples}] at {self.settings.rate} Hz"
            )
        if not np.isfinite(sounds).all():
            raise UserError("sounds have numbers that are not finite: leave them out")
        return self.pictures.encode(_chunked(self.settings.picture, sounds))

    def decode(self, codes) -> np.ndarray:
        """int32[B, N] -> float32[B, samples]."""
        return _chunked(functools.partial(self.vocoder, self.settings), self.pictures.decode(codes))


def _chunked(function, rows: np.ndarray) -> np.ndarray:
    parts = [function(rows[i : i + CHUNK]) for i in range(0, max(len(rows), 1), CHUNK)]
    return np.concatenate(parts)
