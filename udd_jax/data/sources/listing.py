"""A source as a list: what each item is called, where its bytes lie, what is said about it.

Every format on disk becomes a list of `Item`s, made by one pass over names, headers and captions;
pictures are read when they are asked for. What is wrong with an item (a file that is listed and not
there, a damaged line) is found when it is read, so that it is counted with all other faults.

    split      given by the data (a column, a folder or file called train, val, test, ...)
    no split   by a hash of the image's bytes, so that the same picture is never in two of them
    some       a split that the data lack is taken from their train items, by the same hash

A picture that given splits share stays in the last of train, validation, test that has it.
"""

import dataclasses
import functools
import hashlib
import pathlib
import re
from collections.abc import Callable

import numpy as np

from udd_jax.data import hashing
from udd_jax.data.records import Record

SPLITS = ("train", "validation", "test")
_SPLIT_NAMES = {"train": "train", "training": "train", "restval": "train", "test": "test"} | {
    name: "validation" for name in ("validation", "valid", "val", "dev")
}
_WORDS = re.compile(r"[a-z]+")
CAPTION_FIELDS = ("captions", "caption", "sentences", "text", "texts")


@dataclasses.dataclass(frozen=True)
class Broken:
    """In place of where an item's bytes lie: why there are none."""

    cause: str


@dataclasses.dataclass(frozen=True)
class Item:
    """One captioned image, not yet read.

    Attributes:
        key: its name, unique in the source.
        where: what `read` of the listing takes, or Broken.
        captions: as they stand in the data.
        extra: what else is known.
        split: train, validation, test, or None where the data do not say.
    """

    key: str
    where: object
    captions: tuple[str, ...]
    extra: dict = dataclasses.field(default_factory=dict)
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Listing:
    """A source of listed items; `read(where)` gives an encoded image or uint8[H, W, 3]."""

    name: str
    items: tuple[Item, ...]
    read: Callable

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        item = self.items[index]
        if isinstance(item.where, Broken):
            raise ValueError(f"{item.key}: {item.where.cause}")
        return Record(item.key, self.read(item.where), item.captions, item.extra)

    @property
    def hash(self) -> str:
        """Changes with the items' names and captions; the token cache compares it."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(repr((item.key, item.captions)).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an item, without reading its image."""
        return self.items[index].captions


def split_named(name: str) -> str | None:
    """The split that a folder's or file's name speaks of: "val2014" -> "validation"."""
    found = {_SPLIT_NAMES[word] for word in _WORDS.findall(name.lower()) if word in _SPLIT_NAMES}
    return found.pop() if len(found) == 1 else None


def split_of_path(path: pathlib.Path, root: pathlib.Path) -> str | None:
    """The split of the outermost part of `path` below `root` that names one."""
    splits = map(split_named, path.relative_to(root).parts)
    return next((split for split in splits if split), None)


def choose(
    name: str, items, read, split: str, validation=0.05, test=0.05, trust_splits=False
) -> Listing:
    """The items of one split.

    Args:
        name: of the source; the split is added.
        items: of all splits.
        read: reads an item's image.
        split: "train", "validation" or "test".
        validation, test: shares by hash, of the train items, where the data give none.
        trust_splits: whether the splits that the data give are known to share no picture. If not,
            every image is read once to make sure, and one that is also in test (or, for train, in
            validation) is left out; the name of the source says how many are.

    Raises:
        ValueError: no such split, no items, or shares that leave nothing to train on.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if not (min(validation, test) >= 0 and validation + test < 1):
        raise ValueError(f"shares are {validation} and {test}, expected a sum in [0, 1)")
    causes = [item.where.cause for item in items if isinstance(item.where, Broken)]
    if items and len(causes) == len(items):
        raise ValueError(f"{name}: none of {len(items)} items can be used; the first: {causes[0]}")
    given = {item.split for item in items}
    shares = {"validation": validation, "test": test}
    lacking = {name: share for name, share in shares.items() if name not in given and share}
    parts = {part: [] for part in SPLITS}
    for item in items:
        held_out = item.split in ("validation", "test")
        parts[item.split if held_out else _hashed(item, read, lacking)].append(item)
    chosen, name = parts[split], f"{name}, {split}"
    others = SPLITS[SPLITS.index(split) + 1 :]
    if given & set(others) and not trust_splits:
        held_out = {_content(read, item) for part in others for item in parts[part]}
        chosen = [item for item in chosen if _content(read, item) not in held_out]
        if len(chosen) < len(parts[split]):
            name += f", without {len(parts[split]) - len(chosen)} that are in {' or '.join(others)}"
    if not chosen:
        raise ValueError(f"{name} has no items of {len(items)} in all; check path and shares")
    return Listing(name, tuple(chosen), read)


def _hashed(item: Item, read, shares: dict) -> str:
    """The split of an item by the hash of its image."""
    place = int.from_bytes(_content(read, item)[:8], "little") / 2**64 if shares else 1.0
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _content(read, item: Item) -> bytes:
    """The hash of an item's image, of its key where there is none."""
    if isinstance(item.where, Broken):
        return hashing.content_hash(item.key.encode(errors="surrogateescape"))
    return _content_at(read, item.where)


@functools.cache
def _content_at(read, where) -> bytes:
    try:
        return hashing.content_hash(read(where))
    except (OSError, ValueError):
        return hashing.content_hash(repr(where).encode(errors="surrogateescape"))


def captions_of(row: dict, field: str | None, where: str) -> tuple[str, ...]:
    """The captions in a row of a table or a JSON object.

    Args:
        row: field names and values; a caption field holds a text, a list of texts, or a list of
            objects with "raw" or "caption" (Karpathy's files).
        field: the caption field, or None for the usual names.
        where: for the message.

    Raises:
        ValueError: there is no such field.
    """
    fields = [field] if field else [name for name in CAPTION_FIELDS if name in row]
    if not fields or fields[0] not in row:
        wanted = field or " or ".join(CAPTION_FIELDS)
        raise ValueError(
            f"{where} has the fields {sorted(row)}, expected {wanted}; name it with caption_field"
        )
    value = row[fields[0]]
    values = (
        []
        if value is None
        else list(value)
        if isinstance(value, list | tuple | np.ndarray)
        else [value]
    )
    return tuple(v.get("raw", v.get("caption")) if isinstance(v, dict) else v for v in values)
