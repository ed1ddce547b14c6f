"""Sounds as pictures of one channel, and back: spectrograms and Griffin-Lim.

    sound float[n] --frames, Hann, FFT--> |S|^2 [frames, bins] --triangles W--> M = |S|^2 W'
    picture = 1 - 10 log10(M) / floor           uint8, 0 at `floor` dB, 255 at full scale

A sine of amplitude 1 has the power 1, so the decibels are those of full scale. The bands are
triangles, evenly spaced on the mel scale, 2595 log10(1 + f / 700), or in the logarithm of the
frequency. The way back looks for a power |S|^2 >= 0 with these M (the multiplicative updates of
non-negative least squares), then for phases that fit it: Griffin and Lim (1984), with the momentum
of Perraudin et al. (2013). Any other function (settings, pictures) -> sounds can take its place.
"""

import dataclasses
import functools

import numpy as np
from scipy import fft, signal

from udd_jax.errors import UserError

POWER_STEPS, PHASE_STEPS, MOMENTUM = 30, 16, np.float32(0.5)
TINY = np.float32(1e-9)
SCALES = {
    "mel": (lambda f: 2595 * np.log10(1 + f / 700), lambda m: 700 * (10 ** (m / 2595) - 1)),
    "log": (np.log2, np.exp2),
}


@dataclasses.dataclass(frozen=True)
class Spectrogram:
    """The settings of a spectrogram.

    Attributes:
        rate: samples a second, Hz.
        samples: of a sound, a multiple of `hop`.
        bands: from `low` Hz to `high` Hz, evenly spaced on `scale`, "mel" or "log".
        hop: samples between two frames. window: samples of a frame.
        floor: dB of full scale, below which nothing is told.
    """

    rate: int = 8000
    samples: int = 8192
    bands: int = 64
    hop: int = 256
    window: int = 1024
    scale: str = "mel"
    low: float = 0.0
    high: float = 4000.0
    floor: float = -60.0

    def __post_init__(self):
        for name in ("rate", "samples", "bands", "hop", "window"):
            if getattr(self, name) < 1:
                raise UserError(f"sound: {name} = {getattr(self, name)}, expected at least 1")
        if self.scale not in SCALES:
            raise UserError(f"sound: scale = {self.scale!r}, expected one of {', '.join(SCALES)}")
        if self.samples % self.hop or self.window % 2 or self.window < 2 * self.hop:
            raise UserError(
                f"sound: samples = {self.samples}, hop = {self.hop}, window = {self.window}: "
                "expected samples a multiple of hop, and an even window of 2 hop at least"
            )
        least = 0 if self.scale == "mel" else 1
        if not least <= self.low < self.high <= self.rate / 2 or not self.floor < 0:
            raise UserError(
                f"sound: low = {self.low:g}, high = {self.high:g}, floor = {self.floor:g}: "
                f"expected {least} <= low < high <= {self.rate / 2:g} Hz, and a floor below 0 dB"
            )
        empty = self.bands - int(self._bands.any(0).sum())
        if empty:
            raise UserError(
                f"sound: {empty} of {self.bands} bands lie between two bins of the window "
                f"{self.window}: choose fewer bands, a longer window or a higher low"
            )

    @classmethod
    def of(cls, row: dict) -> "Spectrogram":
        """The settings of a row of `config.modalities`, which may have others as well."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: row[name] for name in names if name in row})

    @property
    def shape(self) -> tuple[int, int]:
        """(bands, frames) of a picture."""
        return self.bands, self.samples // self.hop

    def picture(self, sounds) -> np.ndarray:
        """float[n, samples] in -1..1 -> uint8[n, bands, frames, 1], the lowest band first.

        ValueError for sounds of another length.
        """
        if np.shape(sounds)[1:] != (self.samples,):
            raise UserError(
                f"sounds have the shape {np.shape(sounds)}, expected {self.samples} samples each"
            )
        mel = abs(self._transform(np.asarray(sounds, np.float32))) ** 2 @ self._bands
        share = np.clip(1 - 10 * np.log10(np.maximum(mel, TINY)) / self.floor, 0, 1)
        return np.round(255 * share).astype(np.uint8).swapaxes(1, 2)[..., None]

    def magnitude(self, pictures) -> np.ndarray:
        """uint8[n, bands, frames, 1] -> |S|, float32[n, frames, bins]."""
        share = np.asarray(pictures, np.float32)[..., 0].swapaxes(1, 2) / 255
        mel = np.where(share > 0, 10 ** (self.floor * (1 - share) / 10), 0).astype(np.float32)
        wanted = mel @ self._bands.T
        found = wanted.copy()
        for _ in range(POWER_STEPS):
            found *= wanted / np.maximum(found @ self._bands @ self._bands.T, TINY)
        return np.sqrt(found)

    @functools.cached_property
    def _bands(self) -> np.ndarray:
        """The triangles W', float32[bins, bands]; each is 1 at its middle."""
        there, back = SCALES[self.scale]
        edges = back(np.linspace(there(self.low), there(self.high), self.bands + 2))
        low, middle, high = (edges[i : i + self.bands][None] for i in range(3))
        bins = np.fft.rfftfreq(self.window, 1 / self.rate)[:, None]
        sides = (bins - low) / (middle - low), (high - bins) / (high - middle)
        return np.maximum(0, np.minimum(*sides)).astype(np.float32)

    @functools.cached_property
    def _hann(self) -> np.ndarray:
        return signal.windows.hann(self.window, sym=False).astype(np.float32)

    @functools.cached_property
    def _places(self) -> np.ndarray:
        """The samples of each frame in a padded sound, int[frames, window]; frame i has its middle
        at sample (i + 1/2) hop of the sound itself."""
        return np.arange(self.shape[1])[:, None] * self.hop + np.arange(self.window)[None]

    def _transform(self, sounds) -> np.ndarray:
        """float32[n, samples] -> complex64[n, frames, bins]."""
        padded = np.zeros((len(sounds), self._places[-1, -1] + 1), np.float32)
        padded[:, self._own] = sounds
        return fft.rfft(padded[:, self._places] * self._hann) * (2 / self._hann.sum())

    def _invert(self, spectra) -> np.ndarray:
        """The sounds whose transform is the nearest to complex64[n, frames, bins]."""
        frames = fft.irfft(spectra * (self._hann.sum() / 2), n=self.window) * self._hann
        sounds = np.zeros((len(frames), self._places[-1, -1] + 1), np.float32)
        weight = np.zeros(sounds.shape[1], np.float32)
        for i, place in enumerate(self._places):
            sounds[:, place] += frames[:, i]
            weight[place] += self._hann**2
        return (sounds / np.maximum(weight, 1e-3)[None])[:, self._own]

    @property
    def _own(self) -> slice:
        """Where a sound lies in its padded form."""
        start = (self.window - self.hop) // 2
        return slice(start, start + self.samples)


def griffin_lim(settings: Spectrogram, pictures, seed: int = 0) -> np.ndarray:
    """The vocoder: uint8[n, bands, frames, 1] -> float32[n, samples] in -1..1.

    The first phases are random, the same for every sound of any call.
    """
    magnitude = settings.magnitude(pictures)
    turn = np.random.default_rng(seed).random(magnitude.shape[1:], np.float32)[None]
    phase, before = np.exp(2j * np.pi * turn).astype(np.complex64), 0
    for _ in range(PHASE_STEPS):
        fits = settings._transform(settings._invert(magnitude * phase))
        phase = fits - MOMENTUM * before
        phase /= np.maximum(abs(phase), TINY)
        before = fits
    return np.clip(settings._invert(magnitude * phase), -1, 1).astype(np.float32)
