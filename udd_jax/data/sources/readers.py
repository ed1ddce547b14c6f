"""How stored data have the values of each kind of modality: its files, and what reads them.

`READERS` has for a kind a function of a row of `config.modalities` and the size of the pictures. A
kind that is not there has no values of its own in stored data. What a reader makes of a file has
the same shape for every record; a file that it cannot read is a `UserError`, and a fault of its
record.
"""

import functools

import numpy as np

from udd_jax.data import arrays, captions, layouts, pixels, reading, sounds
from udd_jax.data.sources.beside import Reader
from udd_jax.errors import UserError
from udd_jax.tokenizers.feature_tokenizer import FeatureTokenizer
from udd_jax.tokenizers.layout_tokenizer import LayoutTokenizer
from udd_jax.tokenizers.spectrogram import Spectrogram

TEXTS = (".txt", ".caption")
ARRAYS = (arrays.SUFFIX,)


def of_pictures(row: dict, image_size) -> Reader:
    """uint8[S, S, C], cut as the picture of the record; always with a name, as `a.first.png`."""
    read = functools.partial(_picture, image_size, row.get("channels", 3))
    return Reader(read, tuple(sorted(pixels.suffixes())), (), row.get("field", ""))


def _picture(image_size, channels: int, content) -> np.ndarray:
    found = pixels.read(_file(content, "picture"), channels)
    return found if image_size is None else pixels.fit(found, image_size)  # None: still open


def of_texts(row: dict, image_size) -> Reader:
    """A string, the first line of a file that is not blank; always with a name, as `a.second.txt`.

    The field of a table has the string itself.
    """
    return Reader(_text, TEXTS, (), row.get("field", ""), words=True)


def _text(content) -> str | None:
    if isinstance(content, bytes):
        content = next(iter(captions.lines(content)), "")
    text, cause = reading.clean(content)
    if text is None and cause != reading.EMPTY:
        raise UserError(cause)
    return text


def of_sounds(row: dict, image_size) -> Reader:
    """float32[samples], at the rate of the row."""
    read = functools.partial(_sound, Spectrogram.of(row))
    return Reader(read, sounds.SUFFIXES, sounds.SUFFIXES, row.get("field", ""))


def _sound(settings: Spectrogram, content) -> np.ndarray:
    return sounds.fit(*sounds.read(_file(content, "sound")), settings.rate, settings.samples)


def _file(content, what: str) -> bytes:
    """UserError for rows, which only some kinds can be."""
    if not isinstance(content, bytes):
        raise UserError(f"a {what} is {type(content).__name__}, expected a file or its bytes")
    return content


def of_layouts(row: dict, image_size) -> Reader:
    """int32[grid] from a file, rows of ids or one id, cut as the picture of the record."""
    tokenizer = LayoutTokenizer(tuple(row["grid"]), row["classes"])
    read = functools.partial(_layout, tokenizer, pixels.both(image_size or 1))
    alone = (".npy", ".seg.png")  # `a.json` has captions, `a.png` is the picture
    return Reader(read, layouts.SUFFIXES, alone, row.get("field", ""), labels=True)


def _layout(tokenizer: LayoutTokenizer, shape: tuple[int, int], content) -> np.ndarray:
    read = layouts.read if isinstance(content, bytes) else layouts.check
    found = layouts.fit(layouts.cut(read(content), shape), tokenizer.grid)
    tokenizer.encode(found[None])  # UserError for unknown ids
    return found


def of_features(row: dict, image_size) -> Reader:
    """float[count, width] from a file or rows of numbers."""
    read = functools.partial(_features, FeatureTokenizer(row["count"], row["width"]))
    return Reader(read, ARRAYS, ARRAYS, row.get("field", ""))


def _features(tokenizer: FeatureTokenizer, content) -> np.ndarray:
    found = _array((tokenizer.count, tokenizer.width), content)
    tokenizer.encode(found[None])  # UserError for numbers beyond half precision
    return found


def of_embeddings(row: dict, image_size) -> Reader:
    """float[dimensions] from a file or a row of numbers."""
    read = functools.partial(_array, (row["dimensions"],))
    return Reader(read, ARRAYS, ARRAYS, row.get("field", ""))


def _array(shape: tuple[int, ...], content) -> np.ndarray:
    if isinstance(content, bytes):
        content = arrays.read(content)
    try:
        found = np.asarray(content)
    except ValueError:  # rows of different lengths
        raise UserError(f"rows of different lengths, expected finite float{list(shape)}") from None
    if found.shape != shape or found.dtype.kind not in "fiu" or not np.isfinite(found).all():
        raise UserError(f"{found.dtype}{list(found.shape)}, expected finite float{list(shape)}")
    return found


READERS = {
    "image": of_pictures,  # of references
    "text": of_texts,  # of references
    "sound": of_sounds,
    "layout": of_layouts,
    "features": of_features,
    "embedding": of_embeddings,
}
