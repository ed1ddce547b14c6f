"""Values as a user of the Python interface passes them, one or many, and gets them: a Result.

A prompt is a string or a list of strings. A picture is uint8[S, S, C] with the channels of the run,
an image of Pillow or the path of an image file; several are uint8[n, S, S, C] or a list. A sound is
float[samples] or the path of a sound file, a layout int[rows, columns] or the path of its file, a
length a number of tokens, features are float[count, width] or the path of an `.npy` file. Nested
lists of numbers are arrays, except those of a picture. Everything else is one line.
"""

import dataclasses
import functools
import numbers
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from udd_jax.data import arrays, layouts, pixels, sounds
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError

SEEDS = 2**32  # a key of JAX has so many


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """The samples that a call generated.

    values: {modality: n values, such as images or strings}, without absent modalities; tokens:
    int32[n, L], global ids; calls: int32[n], network calls of each sample, with those of what came
    first (`begin_with`); states: int32[trace, n, L], intermediate tokens (`reverse.run`); branches:
    the inputs that the network is evaluated for in each call, where they are most
    (`sampling.guidance`); 0 if unknown.
    """

    values: dict[str, Any]
    tokens: np.ndarray
    calls: np.ndarray
    states: np.ndarray
    branches: int = 1

    @property
    def images(self) -> np.ndarray | None:
        """uint8[n, S, S, C], or None if the image is absent."""
        return self.values.get("image")

    @property
    def captions(self) -> list[str] | None:
        """n strings, or None if the text is absent."""
        return self.values.get("text")

    @property
    def pil(self) -> list[Image.Image] | None:
        """The images as images of Pillow, or None if the image is absent."""
        return None if self.images is None else list(map(pixels.to_pillow, self.images))

    @classmethod
    def of(cls, images: np.ndarray) -> "Result":
        """Images without tokens, such as those that are larger than the model's."""
        none = np.zeros((len(images), 0), np.int32)
        return cls({"image": images}, none, none.sum(1), none[:0, None])

    @classmethod
    def join(cls, parts: "list[Result]") -> "Result":
        """The samples of several results, one after the other."""
        arrays = {
            name: np.concatenate([getattr(part, name) for part in parts], axis=axis)
            for name, axis in (("tokens", 0), ("calls", 0), ("states", 1))
        }
        return cls(
            {n: _join([part.values[n] for part in parts]) for n in parts[0].values},
            **arrays,
            branches=parts[0].branches,
        )

    def rows(self, start: int, stop: int) -> "Result":
        """The samples start .. stop - 1."""
        part = slice(start, stop)
        found = {name: values[part] for name, values in self.values.items()}
        arrays = {"tokens": self.tokens[part], "calls": self.calls[part]}
        return dataclasses.replace(self, values=found, states=self.states[:, part], **arrays)

    def __repr__(self) -> str:
        return f"Result: {len(self.tokens)} samples of {', '.join(self.values)}"


def _join(parts: list):
    whole = isinstance(parts[0], np.ndarray)
    return np.concatenate(parts) if whole else [value for part in parts for value in part]


def texts(values, what: str = "prompt") -> list[str]:
    """A string, or some strings -> a list of strings."""
    values = [values] if isinstance(values, str) else values
    if isinstance(values, bytes | dict) or not np.iterable(values):
        raise UserError(f"{what}: {_type(values)}, expected a string or a list of strings")
    values = list(values)
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise UserError(f"{what} {i}: {_type(value)}, expected a string")
    return [str(value) for value in values]


def pictures(values, size: int | tuple[int, int], channels: int = 3) -> np.ndarray:
    """One or many pictures -> uint8[n, size, size, channels], or of a size (height, width).

    Images of Pillow and of files get the channels (`pixels.in_channels`), and are resized and cut
    to the size (`pixels.fit`). An array of another size, dtype or number of channels is a
    ValueError, since its meaning is unknown.
    """
    if isinstance(values, np.ndarray) and values.ndim == 4 and not len(values):
        return values
    rows = [pixels.fit(value, size) for value in originals(values, size, channels)]
    return np.stack(rows) if rows else np.zeros((0, *pixels.both(size), channels), np.uint8)


def originals(values, size: int | tuple[int, int], channels: int = 3) -> Iterator[np.ndarray]:
    """One or many pictures as `pictures` takes them, before they are cut: uint8[H, W, channels],
    one after the other, since photographs are large."""
    if isinstance(values, str | os.PathLike | Image.Image) or getattr(values, "ndim", 0) == 3:
        values = [values]
    if isinstance(values, bytes | dict) or not np.iterable(values):
        raise UserError(
            f"image: {_type(values)}, expected uint8[n, {_sides(size)}, {channels}], an image of "
            "Pillow, a path, or a list of these"
        )
    return (_original(value, size, channels) for value in values)


def _sides(size) -> str:
    """A size in a shape: "32, 32"."""
    return ", ".join(map(str, pixels.both(size)))


def _original(value, size: int | tuple[int, int], channels: int) -> np.ndarray:
    if isinstance(value, str | os.PathLike):
        return pixels.read(value, channels)
    if isinstance(value, Image.Image):
        return pixels.as_read(value, channels)
    if not hasattr(value, "dtype"):
        raise UserError(f"image: {_type(value)}, expected an array, an image of Pillow or a path")
    value = np.asarray(value)
    if value.dtype != np.uint8 or value.shape != (*pixels.both(size), channels):
        raise UserError(
            f"image: {value.dtype}{list(value.shape)}, expected uint8[{_sides(size)}, {channels}], "
            "values 0 to 255: resize it (pixels.fit), or pass an image of Pillow"
        )
    return pixels.in_channels(value, channels)


def whole(name: str, value, least: int | None = None) -> int:
    """A whole number, at least `least`."""
    good = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not good or (least is not None and value < least):
        expected = "a whole number" if least is None else f"a whole number, at least {least}"
        raise UserError(f"{name} = {value!r}, expected {expected}")
    return int(value)


def seed(value, name: str = "seed") -> int:
    """A whole number from 0 to SEEDS - 1: two others would be one key of JAX, or none."""
    if not 0 <= whole(name, value) < SEEDS:
        raise UserError(f"{name} = {value!r}, expected 0 to {SEEDS - 1}")
    return int(value)


def later_seed(first: int, number: int = 1) -> int:
    """The seed so many after `first`; after the last one comes 0."""
    return (first + number) % SEEDS


def by_name(what: str, value, example: str) -> None:
    """UserError unless `value` is {modality: ...}, or None. example: such a value, as typed."""
    if value is not None and not isinstance(value, dict):
        shown = " ".join(repr(value).split())[:60]
        raise UserError(f"{what} = {shown}, expected {example}")


def _type(value) -> str:
    return f"{type(value).__name__} {str(value)[:40]!r}"


def plain(pipe, name: str, given):
    """Values of any usual type as the codec of the modality takes them."""
    take = PLAIN.get(pipe.kinds[name])
    return (
        take(given, pipe.tokenizers[name], pipe.tokenizers["image"].image_size) if take else given
    )


def _rows(given, axes: int, one) -> np.ndarray:
    """One value, or many -> an array of many. axes: of one; one: a value -> its array.

    Nested lists of numbers stand for an array.
    """
    if isinstance(given, str | os.PathLike) or _axes(given) == axes:
        given = [given]
    if isinstance(given, bytes | dict) or not np.iterable(given):
        raise UserError(f"given {_type(given)}, expected an array, a path, or a list of these")
    return given if isinstance(given, np.ndarray) else arrays.stack([one(v) for v in given])


def _axes(value) -> int:
    """The number of axes of an array, or of nested lists of numbers; 0 for all else."""
    if isinstance(value, list | tuple):
        first = value[0] if value else None
        inner = isinstance(first, list | tuple | numbers.Real) or hasattr(first, "ndim")
        return 1 + _axes(first) if inner else 0
    return getattr(value, "ndim", 0)


def _array(value) -> np.ndarray:
    """An array, or nested lists of numbers -> an array."""
    try:
        return np.asarray(value)
    except ValueError:
        raise UserError(f"given {_type(value)}, expected rows of one length") from None


def waves(given, tokenizer, size=None) -> np.ndarray:
    """One or many sounds -> float[n, samples]. Files get the rate and length of the run."""
    s = tokenizer.settings

    def one(value):
        if isinstance(value, str | os.PathLike):
            return sounds.fit(*sounds.read(value), s.rate, s.samples)
        return _array(value)

    return _rows(given, 1, one)


def maps(given, tokenizer, size) -> np.ndarray:
    """One or many layouts -> int[n, rows, columns]. Those of files are cut as pictures of `size`
    are, and get the grid of the run."""

    def one(value):
        if isinstance(value, str | os.PathLike):
            found = layouts.cut(layouts.read(value), pixels.both(size))
            return layouts.fit(found, tokenizer.grid)
        return _array(value)

    return _rows(given, 2, one)


def counts(given, tokenizer, size=None) -> np.ndarray:
    """One or many lengths -> int[n]. A length may be typed, such as "7"."""
    rows = [given] if isinstance(given, str) or np.ndim(given) == 0 else list(given)
    try:
        found = np.array([float(value) for value in rows])
    except (TypeError, ValueError):
        found = np.array([np.nan])
    if not np.isfinite(found).all() or (found % 1).any() or bool in map(type, rows):
        raise UserError(f"length {_type(given)}, expected whole numbers of tokens")
    return found.astype(int)


def vectors(given, tokenizer, size, axes=2) -> np.ndarray:
    """One or many arrays of numbers, or paths of `.npy` files -> float[n, ...]; axes: of one."""

    def one(value):
        return arrays.read(value) if isinstance(value, str | os.PathLike) else _array(value)

    return np.asarray(_rows(given, axes, one))


def seen(given, tokenizer, size) -> np.ndarray:
    """One or many pictures -> uint8[n, height, width, C], with the channels of the run."""
    return pictures(given, size, tokenizer.shape[-1])


# {kind: (values of any usual type, tokenizer, size of pictures) -> as the codec takes them}
PLAIN = {
    "text": lambda given, tokenizer, size: texts(given),
    "image": seen,
    "sound": waves,
    "layout": maps,
    "length": counts,
    "features": vectors,
    "embedding": functools.partial(vectors, axes=1),
    "coarse": seen,
}


# {kind: tokenizer -> the array of one value}
ONE = {
    "image": lambda tokenizer: f"uint8{list(tokenizer.shape)}",
    "sound": lambda tokenizer: f"float[{tokenizer.settings.samples}]",
    "layout": lambda tokenizer: f"int{list(tokenizer.grid)}",
    "embedding": lambda tokenizer: f"float[{tokenizer.codebooks.shape[2]}]",
    "coarse": lambda tokenizer: f"uint8{list(tokenizer.shape)}",
}


def ids(pipe, name: str, given) -> np.ndarray:
    """The ids int32[n, length] of a modality, from values or ids.

    Those of a picture of two levels are of both, as `Vocab.parts` takes them.
    """
    length = {m.name: m.length for m in pipe.vocab.modalities}
    if name not in length:
        raise UserError(f"given {name!r} is not a modality, expected some of {', '.join(length)}")
    shape = np.shape(given) if isinstance(given, np.ndarray | jax.Array) else ()
    grid = getattr(pipe.tokenizers[name], "grid", None) if pipe.kinds[name] == "layout" else None
    if pipe.kinds[name] == "features" and shape[1:] != (pipe.tokenizers[name].size,):
        shape = ()
    elif pipe.kinds[name] == "features":
        length[name] = shape[1]
    coarse = pipe.vocab.coarse
    whole = coarse.length + length[name] if coarse and coarse.level_of == name else None
    if len(shape) == 2 and shape != grid and jnp.issubdtype(given.dtype, jnp.integer):
        grey = pipe.kinds[name] in ("image", "coarse") and given.dtype == np.uint8  # not ids
        if shape[1] not in (length[name], whole) or grey:
            if (one := ONE.get(pipe.kinds[name])) is None:
                found = f"has {shape[1]} ids a sample, expected {length[name]}"
            else:
                found = f"is {given.dtype}{list(shape)}, expected {one(pipe.tokenizers[name])}"
                found += f", or ids int[n, {length[name]}]"
            raise UserError(f"given {name!r} {found}")
        return _in_range(pipe.vocab, name, np.asarray(given))
    return pipe.codecs[name].encode(plain(pipe, name, given), strict=True)


def _in_range(vocab, name: str, rows: np.ndarray) -> np.ndarray:
    """The ids int32[n, length] of a modality, without the mask. UserError if there are others."""
    for part, ids in vocab.parts({name: rows}).items():
        m = vocab.modalities[vocab.index(part)]
        most = 2**16 if m.inputs else m.classes  # features are bits of half precision
        if ids.size and not 0 <= ids.min() <= ids.max() < most:
            raise UserError(
                f"given {name!r} has ids {ids.min()} to {ids.max()}, expected 0 to {most - 1}"
            )
    return rows.astype(np.int32)


def check_given(vocab, task: str, given: dict) -> None:
    """UserError, one line, unless `given` has the modalities that the rule gives, and no others."""
    rule = tasks.parse(vocab, task)
    for name in rule.given:
        if name not in vocab.parts(given):
            raise UserError(f"task {task!r}: given {name!r} is missing")
    for name in given:
        if name not in rule.given:
            expected = ", ".join(tasks.typed(vocab, task).given) or "nothing"
            raise UserError(f"task {task!r}: {name!r} is not given in it, expected {expected}")


def alike(what: str, given: dict) -> dict:
    """`together`, for a call `what` that takes as many of each name, or one. UserError if not."""
    counts = {name: len(rows) for name, rows in given.items()}
    if not all(counts.values()) or len({*counts.values()} - {1}) > 1:
        said = ", ".join(f"{number} {name}" for name, number in counts.items())
        raise UserError(f"{what}: {said} are given, expected as many of each, or one")
    return together(given)


def together(given: dict) -> dict:
    """{name: rows}, where the only row of one is repeated for the several of the others."""
    most = max(map(len, given.values()), default=1)
    repeat = lambda rows: rows * most if isinstance(rows, list) else np.repeat(rows, most, axis=0)  # noqa: E731
    return {n: repeat(rows) if len(rows) == 1 else rows for n, rows in given.items()}


def count(asked, given: dict) -> int:
    """The number of samples, from `asked` and the given values. ValueError if they differ."""
    counts = {name: len(ids) for name, ids in given.items()}
    counts |= {} if asked is None else {"count": whole("count", asked)}
    said = ", ".join(f"{name} {n}" for name, n in counts.items())
    if not counts:
        raise UserError("count is missing: say how many samples, as in generate('pair', 4)")
    if len(set(counts.values())) > 1:
        raise UserError(f"different numbers of samples: {said}")
    if not min(counts.values()) > 0:
        raise UserError(f"{said}: expected at least 1 sample")
    return next(iter(counts.values()))


def fuse(vocab, local: dict, count: int, elsewhere: int) -> np.ndarray:
    """{modality: local ids} -> x, int32[count, L]. A single row is repeated; other modalities
    get the token `elsewhere`."""
    x = np.full((count, vocab.length), elsewhere, np.int32)
    for name, rows in vocab.parts(local).items():
        m = vocab.index(name)
        if rows.shape[1] != vocab.modalities[m].length:
            raise UserError(f"{name!r} are features, expected them in `given` alone")
        x[:, vocab.slices[m]] = rows + vocab.offsets[m]
    return x
