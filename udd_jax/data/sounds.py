"""Sound files: WAV, FLAC and others, read by libsndfile, through the package soundfile.

A sound is float32[n] in -1..1, of one channel. `fit` gives it the rate and length of a run.
"""

import base64
import io
import math
import os

import numpy as np
from scipy import signal
from scipy.io import wavfile

from udd_jax.errors import UserError
from udd_jax.runtime import files

SUFFIXES = (".wav", ".flac", ".ogg")
MOST_SECONDS = 600  # of a file; a longer one is a mistake


def _library():
    try:
        import soundfile
    except ImportError:
        raise UserError('sound files need the package soundfile: pip install ".[sound]"') from None
    return soundfile


def read(source: str | os.PathLike | bytes) -> tuple[np.ndarray, int]:
    """A file, or its bytes -> (float32[n], its rate in Hz); channels are averaged.

    ValueError, one line, for a file that is not a sound; OSError if it cannot be read.
    """
    library = _library()
    if isinstance(source, bytes):
        what = f"a file of {len(source)} bytes"
    else:
        what = str(source)
        with open(source, "rb") as file:
            source = file.read()
    try:
        with library.SoundFile(io.BytesIO(source)) as file:
            rate, long = file.samplerate, file.frames > MOST_SECONDS * file.samplerate
            found = None if long else file.read(dtype="float32", always_2d=True)
    except (library.LibsndfileError, ValueError) as error:  # ValueError: a stream without an end
        cause = getattr(error, "error_string", error)
        raise UserError(f"{what} is not a sound that can be read: {cause}") from None
    if long:
        raise UserError(f"{what} is longer than {MOST_SECONDS} seconds")
    if not len(found) or not np.isfinite(found).all():
        raise UserError(f"{what} has no samples, or samples that are not numbers")
    return found.mean(1), rate


def fit(sound: np.ndarray, rate: int, wanted: int, samples: int) -> np.ndarray:
    """float[n] at `rate` Hz -> float32[samples] at `wanted` Hz, cut or filled up with silence."""
    if rate != wanted:
        common = math.gcd(rate, wanted)
        sound = signal.resample_poly(sound, wanted // common, rate // common)
    sound = np.asarray(sound[:samples], np.float32)
    return np.pad(sound, (0, samples - len(sound)))


def encode_wav(sound: np.ndarray, rate: int) -> bytes:
    """float[n] in -1..1 -> the bytes of a WAV file of 16 bits."""
    file = io.BytesIO()
    wavfile.write(file, rate, np.rint(32767 * np.clip(sound, -1, 1)).astype(np.int16))
    return file.getvalue()


def write_wav(path: str | os.PathLike, sound: np.ndarray, rate: int) -> None:
    """Writes a WAV file, atomically."""
    files.write_bytes(path, encode_wav(sound, rate))


def data_uri(sound: np.ndarray, rate: int) -> str:
    """The sound as a `data:` address."""
    return "data:audio/wav;base64," + base64.b64encode(encode_wav(sound, rate)).decode()
