"""The sounds of shapes: how a scene is played, and how a sound is read back.

A sound is 8,192 samples at 8,000 Hz, in two halves: the first object in reading order, then the
second, or silence. An object is one tone. Its pitch is the colour, its timbre the shape, and its
loudness the size. A sound does not tell where the objects are.

The phase of each partial is random, so only the power of the partials tells anything. The reader
uses nothing else.
"""

import functools

import numpy as np

from udd_jax.data.sources.shapes import scenes
from udd_jax.data.sources.shapes.scenes import Scene
from udd_jax.errors import UserError

SAMPLE_RATE = 8000  # Hz
SAMPLES = 8192  # 1.024 s
ROW = {"kind": "sound", "rate": SAMPLE_RATE, "samples": SAMPLES}  # of `worlds.Sense`
HALF = SAMPLES // 2
RAMP = 128  # samples in which a tone rises and falls, 16 ms
# Hz, 4 semitones apart
PITCHES = dict(zip(scenes.COLOURS, 220.0 * 2 ** (np.arange(7) / 3), strict=True))
TIMBRES = {  # amplitudes of the partials 1..4, before they are scaled to the same loudness
    "circle": (1.0, 0.0, 0.0, 0.0),
    "square": (1.0, 0.0, 0.8, 0.0),
    "triangle": (1.0, 0.8, 0.0, 0.6),
}
LOUDNESS = {"small": 0.06, "large": 0.2}  # root mean square; full scale is 1
NOISE = 0.003

# A half is read as its nearest template (silence, or one of 42 tones) in the space of the
# amplitudes near the 20 possible partials, if the squared distance is at most AMBIGUITY_LIMIT
# times that from any other, and if at most STRAY_LIMIT of the power, above the power STRAY_FLOOR,
# lies elsewhere. Noise alone has a power of 9e-6, a small tone .0036.
WIDTH = 0.025  # relative distance from a partial that belongs to it; partials are 5 % apart
AMBIGUITY_LIMIT = 1 / 3
STRAY_LIMIT = 0.25
STRAY_FLOOR = 1e-4

Heard = tuple[tuple[str, str, str], ...]  # (size, colour, shape) of each object, in reading order


def told(scene: Scene) -> Heard:
    """What a sound tells of the scene: the kinds of its objects, in reading order."""
    return tuple(thing.kind for thing in scene.objects)


def _amplitudes(kind) -> np.ndarray:
    """The amplitudes of the partials 1..4 of a tone, float64[4]."""
    size, _, shape = kind
    timbre = np.array(TIMBRES[shape])
    return timbre * LOUDNESS[size] * np.sqrt(2 / (timbre**2).sum())


def render(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """Plays the scene as float32[8192] in -1..1, with random phases and noise if `rng` is given."""
    time = np.arange(HALF) / SAMPLE_RATE
    rise = np.minimum(np.arange(HALF) + 0.5, RAMP) / RAMP
    envelope = np.sin(np.pi / 2 * np.minimum(rise, rise[::-1])) ** 2
    sound = np.zeros((2, HALF))
    for half, thing in zip(sound, scene.objects, strict=False):
        phases = np.zeros(4) if rng is None else 2 * np.pi * rng.random(4)
        frequencies = PITCHES[thing.colour] * np.arange(1, 5)
        waves = np.sin(2 * np.pi * frequencies[:, None] * time + phases[:, None])
        half += envelope * (_amplitudes(thing.kind) @ waves)
    if rng is not None:
        sound += NOISE * rng.standard_normal(sound.shape)
    return sound.reshape(SAMPLES).astype(np.float32)


@functools.cache
def _bands() -> np.ndarray:
    """Which bins of the spectrum of a half belong to each possible partial, bool[20, 2049]."""
    partials = sorted({round(f * n, 6) for f in PITCHES.values() for n in (1, 2, 3, 4)})
    bins = np.fft.rfftfreq(HALF, 1 / SAMPLE_RATE)
    return abs(bins / np.array(partials)[:, None] - 1) <= WIDTH


def _spectra(halves: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Halves float[N, 4096] -> (amplitude near each partial [N, 20], power elsewhere [N])."""
    window = np.hanning(HALF)
    power = abs(np.fft.rfft(halves * window)) ** 2 * 2 / (HALF * (window**2).sum())
    return np.sqrt(power @ _bands().T), power[:, ~_bands().any(0)].sum(1)


@functools.cache
def templates() -> np.ndarray:
    """The amplitudes near each partial, float64[43, 20]: silence, then KINDS, without noise."""
    tones = [scenes.of_templates([k + 1, 0, 0, 0]) for k in range(len(scenes.KINDS))]
    halves = [np.zeros(HALF), *(render(scene)[:HALF] for scene in tones)]
    return _spectra(np.stack(halves))[0]


def read(sounds: np.ndarray) -> list[Heard | None]:
    """The kinds of the objects in sounds float[B, 8192], in reading order.

    None where a half is unclear (see the limits above), or where the first half is silent.
    ValueError for another shape.
    """
    if sounds.ndim != 2 or sounds.shape[1] != SAMPLES:
        raise UserError(f"sounds {sounds.shape}: expected [B, {SAMPLES}] at {SAMPLE_RATE} Hz")
    heard, stray = _spectra(np.asarray(sounds, np.float64).reshape(-1, HALF))
    known = templates()
    square = ((heard[:, None] - known[None]) ** 2).sum(-1)
    nearest = square.argmin(1).reshape(-1, 2)
    first, second = np.partition(square, 1, axis=1)[:, :2].T
    limit = STRAY_FLOOR + STRAY_LIMIT * (heard**2).sum(1)
    clear = (first <= AMBIGUITY_LIMIT * second) & (stray <= limit)
    good = clear.reshape(-1, 2).all(1) & (nearest[:, 0] > 0)
    return [
        tuple(scenes.KINDS[k - 1] for k in row if k) if ok else None
        for row, ok in zip(nearest, good, strict=True)
    ]
