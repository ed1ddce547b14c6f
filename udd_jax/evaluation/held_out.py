"""The held-out items of an evaluation, in the order of their split."""

import dataclasses
import hashlib

import numpy as np

from udd_jax.data import reading, sources
from udd_jax.data.sources.worlds import World


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Held-out items in the order of their source.

    name: of the source; images: uint8[n, S, S, 3]; captions: the first of each, as the text
    tokenizer gives it back; codes: int32[n, N], ids: int32[n, M]; extra: the records' own;
    hash: of keys, pictures and captions; keys: the records'; references: all captions of each, as
    they were written; world: by which what is generated can be judged, None where there is none.
    """

    name: str
    images: np.ndarray
    captions: list[str]
    codes: np.ndarray
    ids: np.ndarray
    extra: list[dict]
    hash: str
    keys: list[str]
    references: list[tuple[str, ...]]
    world: World | None = None

    @property
    def scenes(self) -> list:
        """What the items of an embedded world show."""
        return [extra["scene"] for extra in self.extra]

    def __len__(self) -> int:
        return len(self.captions)


def read(pipe, count: int, split: str = "") -> Items:
    """The first `count` items of a split that can be read, of that which is measured on unless
    another is named; fewer where there are not so many.

    With `evaluate.only`, "field=value", those alone whose record says so.

    Raises:
        ValueError: there is none.
    """
    digest, found = hashlib.sha256(), []
    for example, extra in stream(pipe, count, split):
        found.append((example.key, example.pixels[0], example.captions, extra))
        digest.update(f"{example.key}\0{example.captions[0]}\0".encode() + found[-1][1].tobytes())
    keys, pixels, references, extra = map(list, zip(*found, strict=True))
    pixels = np.stack(pixels)
    text, image = pipe.codecs["text"], pipe.codecs["image"]
    ids, codes = text.encode([texts[0] for texts in references], strict=False), image.encode(pixels)
    captions = text.decode(ids)
    found, digest = source(pipe, split or split_of(pipe)), digest.hexdigest()[:16]
    world = getattr(found, "world", None)
    if world and world.image_size != pipe.config.image_size:
        world = None  # it reads its own size only
    return Items(found.name, pixels, captions, codes, ids, extra, digest, keys, references, world)


def split_of(pipe) -> str:
    """What is measured on. A config of before there was a choice has no word for it."""
    return pipe.config.evaluate.get("split", "test")


def source(pipe, split: str, **options):
    """A split of the run's data, with these options instead of the config's."""
    return sources.open_source(pipe.config.data, split, **{**pipe.config.data_options, **options})


def stream(pipe, count: int, split: str = ""):
    """Yields (example, the record's own fields) of the items of `read`, one in memory."""
    split = split or split_of(pipe)
    records, views = source(pipe, split), reading.Views(pipe.config.image_size)
    field, _, value = pipe.config.evaluate.get("only", "").partition("=")
    left = count
    for position in range(len(records)):
        if left == 0:
            return
        if field and str(records[position].extra.get(field)) != value:
            continue
        example = reading.example(records, position, views)
        if example.pixels is not None:
            left -= 1
            yield example, records[position].extra
    if left == count:
        only = f" with {field} = {value}" if field else ""
        raise ValueError(f"data {pipe.config.data!r} has no readable item{only} in split {split!r}")
