"""A source as a list of items: the name of each, the place of its bytes, its captions and split.

Every format on disk becomes a list of `Item`s, by one pass over names, headers and captions. Images
are read later, on access. A fault of an item (a listed file that does not exist, a damaged line)
shows when it is read, so it is counted together with all other faults.

    split      given by the data (a column, or a folder or shard named train, val, test, ...)
    no split   a hash of the image's bytes decides, so equal files are never in two splits
    some       a split that the data lack is taken from their train items, by the same hash
    few        if the share of a split is less than one item, it stays empty; if it is at least one,
               and the hashes give it none, it gets the next one in their order

Two images are equal if their pixels are equal. An image that several splits share stays in the last
of train, validation, test that has it. `Listing.left` has the items that no split uses.
"""

import concurrent.futures
import dataclasses
import hashlib
import re
from collections.abc import Callable

from udd_jax.data import hashing
from udd_jax.data.records import Record
from udd_jax.data.sources import looks
from udd_jax.errors import UserError

SPLITS = ("train", "validation", "test")
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclasses.dataclass(frozen=True)
class Broken:
    """The `where` of an item without bytes: the reason, which is a fault."""

    cause: str


@dataclasses.dataclass(frozen=True)
class Left:
    """The `where` of an item that does not belong to the set: the reason, which is not a fault."""

    cause: str


@dataclasses.dataclass(frozen=True)
class Inline:
    """The place of a value that was in a table itself: bytes, or rows of ids."""

    content: object


@dataclasses.dataclass(frozen=True)
class Item:
    """One captioned image, not yet read.

    Attributes:
        key: its name, unique in the source; bytes that are not Unicode are escaped.
        where: the argument of the listing's `read`, or Broken, or Left; None if it has no image.
        captions: as in the data.
        extra: all other fields.
        split: train, validation, test, or None if the data do not say.
        further: {modality: the place of its value}, an argument of `read_value`, or Inline, or
            Broken.
        unused: what the data say of it that is not used, in words; counted.
    """

    key: str
    where: object
    captions: tuple[str, ...]
    extra: dict = dataclasses.field(default_factory=dict)
    split: str | None = None
    further: dict = dataclasses.field(default_factory=dict)
    unused: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "key", printable(self.key))


@dataclasses.dataclass(frozen=True)
class Listing:
    """A source of listed items; `read(where)` returns an encoded image or uint8[H, W, C].

    Attributes:
        name, items, read: as above.
        left: (key, cause) of each item in the data that this split does not use; not a fault.
        decided: how the split was decided, in words.
        side: pixels of a side at which pictures count as equal; None compares whole pictures.
        channels: in which they are compared.
        further: {modality: its `beside.Reader`}, for those besides image and text.
        read_value: the place of a value -> bytes or rows of ids, or None if it is empty.
        notes: lines that say how captions and splits were decided.
    """

    name: str
    items: tuple[Item, ...]
    read: Callable
    left: tuple[tuple[str, str], ...] = ()
    decided: str = ""
    side: int | None = None
    further: dict = dataclasses.field(default_factory=dict)
    read_value: Callable | None = None
    channels: int = 3
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Record:
        item = self.items[index]
        if isinstance(item.where, Broken):
            raise UserError(f"{item.key}: {item.where.cause}")
        image = None if item.where is None else self.read(item.where)
        if not self.further:
            return Record(item.key, image, item.captions, item.extra)
        values, faults = self.values(index)
        return Record(item.key, image, item.captions, item.extra | values, faults)

    def values(self, index: int) -> tuple[dict, tuple]:
        """({modality: array} of the values that an item has, (cause, detail) of broken ones)."""
        found, faults, places = {}, [], self.items[index].further
        for name, reader in self.further.items():
            try:
                content = self._content(places.get(name))
                value = None if content is None else reader.read(content)
                if value is not None:
                    found[name] = value
            except (OSError, ValueError) as error:
                faults.append((f"broken {name}", str(error)))
        return found, tuple(faults)

    def _content(self, where):
        if isinstance(where, Broken):
            raise UserError(where.cause)
        if where is None or isinstance(where, Inline):
            return where and where.content
        return (self.read_value or self.read)(where)

    def look(self, item: Item) -> looks.Look:
        """The facts about the image of an item that has one."""
        return looks.look(self.read, item.where, self.side, self.channels)

    @property
    def hash(self) -> str:
        """A hash of the items' names and captions; the token cache compares it."""
        digest = hashlib.sha256()
        for item in self.items:
            told = item.key, item.captions
            if self.further or item.where is None:
                told += (item.where is None, *sorted(item.further))
            digest.update(repr(told).encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an item, without reading its image."""
        return self.items[index].captions


def printable(name: str) -> str:
    """`name` as one line of UTF-8; control characters and invalid characters are escaped."""
    name = name.encode("utf-8", "backslashreplace").decode()
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], name)


def choose(
    name: str,
    items,
    read,
    split: str,
    validation=0.05,
    test=0.05,
    trust_splits=False,
    ignore_splits=False,
    size=None,
    side=None,
    channels=3,
    further=None,
    read_value=None,
    notes=(),
) -> Listing:
    """The items of one split.

    Args:
        name: of the source; the split is appended.
        items: of all splits.
        read: where -> the image of an item.
        split: "train", "validation" or "test".
        validation, test: shares of the train items, chosen by hash, if the data lack the split.
        trust_splits: True: do not check whether splits share images. False: every image is decoded
            once, and an image that is also in test (or, for train, in validation) is left out. The
            name of the source says how many are.
        ignore_splits: True: the splits that the data name are not used; the hash decides.
        size: keep only the first `size` items; None keeps all.
        side, channels: pictures that are equal when they are fitted to this size and have so many
            channels count as equal; None as the size compares all pixels.
        further, read_value, notes: as in `Listing`.

    Returns:
        The listing; "validation" and "test" may be empty.

    Raises:
        ValueError: unknown split, no items, or shares that leave nothing for the training.
    """
    if split not in SPLITS:
        raise UserError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if not (min(validation, test) >= 0 and validation + test < 1):
        raise UserError(
            f"shares are {validation} and {test}, expected a sum in [0, 1): set "
            "--config.data_options.validation= and .test="
        )
    left = [(item.key, item.where.cause) for item in items if isinstance(item.where, Left)]
    items = [item for item in items if not isinstance(item.where, Left)]
    causes = [item.where.cause for item in items if isinstance(item.where, Broken)]
    if items and len(causes) == len(items):
        raise UserError(f"{name}: none of {len(items)} items can be used; the first: {causes[0]}")
    if ignore_splits:
        items = [dataclasses.replace(item, split=None) for item in items]
    given = {item.split for item in items}
    held_out = {"validation": validation, "test": test}
    free = sum(item.split in (None, "train") for item in items)
    lacking = {
        name: share for name, share in held_out.items() if name not in given and share * free >= 1
    }
    parts = {part: [] for part in SPLITS}
    seen = lambda item: looks.look(read, item.where, side, channels)  # noqa: E731
    for item in items:
        own = item.split if item.split in held_out else _hashed(item, seen, lacking)
        parts[own].append(item)
    for part in lacking:
        if not parts[part]:
            _fill(parts, part, seen)
    if not parts["train"] and not given & set(held_out):  # too few to hold any out
        parts, lacking = {"train": items, "validation": [], "test": []}, {}
    chosen, name = parts[split], f"{name}, {split}"
    if split in given:
        decided = "given by the data"
    elif split in lacking:
        decided = f"{lacking[split]:.1%} by a hash of the picture"
    elif split == "train":
        decided = "what no other split takes"
    elif held_out[split]:
        decided = f"none: {held_out[split]:.1%} of {free} pictures is less than one"
    else:
        decided = f"none: --config.data_options.{split}= is 0"
    others = [part for part in SPLITS[SPLITS.index(split) + 1 :] if parts[part]]
    if others and not trust_splits:
        held = set(_pixels([item for part in others for item in parts[part]], seen))
        pairs = list(zip(chosen, _pixels(chosen, seen), strict=True))
        chosen = [item for item, content in pairs if content not in held]
        if len(chosen) < len(parts[split]):
            shared = f"in {' or '.join(others)}"
            name += f", without {len(parts[split]) - len(chosen)} that are {shared}"
            left += [(item.key, f"its pixels are {shared}") for item, c in pairs if c in held]
    if size is not None and len(chosen) > size:
        cause = f"beyond the first {size} (--config.data_options.size={size})"
        left += [(item.key, cause) for item in chosen[size:]]
        chosen, name = chosen[:size], f"{name}, the first {size}"
    if not chosen and split == "train":
        raise UserError(f"{name} has no items: {_why_none(items, parts, left)}")
    about = tuple(left), decided, side, dict(further or {}), read_value, channels, tuple(notes)
    return Listing(name, tuple(chosen), read, *about)


def _why_none(items: list, parts: dict, left: list) -> str:
    """Why no item is of the training, and the flag that mends it."""
    if not items:
        some = f"{len(left)} are left out, the first: {left[0][0]}, {left[0][1]}" if left else ""
        return f"nothing there can be used{some and f' ({some})'}: name others with --config.data="
    if parts["train"]:
        return (
            f"all {len(parts['train'])} that it had are in validation or test, too: "
            "--config.data_options.trust_splits=True keeps them"
        )
    where = " and ".join(f"{len(parts[s])} of {s}" for s in SPLITS if parts[s])
    if any(item.split in (None, "train") for item in items):
        return f"the shares make them {where}: lower --config.data_options.validation= and .test="
    return (
        f"the data name the split of each, {where}: --config.data_options.ignore_splits=True lets "
        "a hash decide, or name data that have training pictures with --config.data="
    )


def _hashed(item: Item, seen, shares: dict) -> str:
    """The split of an item by the hash of its image. seen: item -> its `Look`."""
    place = _place(item, seen) if shares else 1.0
    for split, share in shares.items():
        if place < share:
            return split
        place -= share
    return "train"


def _place(item: Item, seen) -> float:
    """The hash of an item's image file, in [0, 1)."""
    return int.from_bytes(_content(item, seen)[:8], "little") / 2**64


def _fill(parts: dict, split: str, seen):
    """Moves the picture with the smallest hash from train to an empty split, unless it is all."""
    placed = [(_place(item, seen), item) for item in parts["train"]]
    first = min((place for place, _ in placed), default=None)
    rest = [item for place, item in placed if place > first]
    if rest:
        parts[split] = [item for place, item in placed if place == first]
        parts["train"] = rest


def _content(item: Item, seen) -> bytes:
    """The hash of an item's image file, or of its key if it has no file.

    Without an image it is that of its captions, so that equal ones are in one split.
    """
    if item.where is None and item.captions:
        return hashing.content_hash(repr(item.captions).encode(errors="surrogateescape"))
    if item.where is None or isinstance(item.where, Broken):
        return hashing.content_hash(item.key.encode())
    return seen(item).file


def _pixels(items, seen) -> list[bytes]:
    """The hash of each item's pixels, or of its file or key if it cannot be decoded."""

    def of(item):
        if item.where is None or isinstance(item.where, Broken):
            return hashing.content_hash(item.key.encode())
        found = seen(item)
        return found.pixels or found.file

    with concurrent.futures.ThreadPoolExecutor(4) as threads:  # Pillow decodes outside the lock
        return list(threads.map(of, items))
