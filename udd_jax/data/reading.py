"""From a record to pixels and clean captions, in order. Every fault is counted.

    record --pixels.read--> pixels --views--> uint8[views, S, S, C]
           --clean--------> captions without control characters, none of them empty or huge

View 0 is the picture fitted to S x S as it is. The others are square crops of random size and
place, mirrored half of the time unless a caption names a side. The random numbers are a hash of
(seed, position, view): the same for any number of processes, in any order.

Nothing is dropped silently. A record that cannot be used becomes an `Example` without views. Its
faults and repairs are in `faults` as (cause, detail).
"""

import dataclasses
import functools
import re

import grain
import numpy as np

from udd_jax.data import hashing, pixels
from udd_jax.errors import UserError

# Causes for skipping a record, and causes for dropping a caption. Other causes, in `clean`, are
# repairs.
SKIPPED = ("unreadable record", "broken image", "tiny image", "no caption", "empty record")
NOTHING = SKIPPED[-1], "nothing in it can be used"
BROKEN, LACKS = "broken ", "no "  # with what is, or is not there, such as "no sound": skipped too
WITHOUT = "without "  # with what an incomplete record lacks; not a fault
MODALITY = {"picture": "image", "caption": "text"}  # of what causes name; others by their own name
EMPTY = "caption empty"
DROPPED = ("caption is no text", "caption too long", EMPTY)
_CHUNK = 16  # examples in one element of Grain, whose cost is per element
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # those that are not white space
# Left and right: English, German, French, Spanish, Italian, Portuguese, Dutch, Russian, Chinese.
_SIDES = re.compile(
    r"\b(left|right)(most|wards?|hand|-hand)?\b|\b(links|rechts|(linke|rechte)[rnsm]?|gauche|droite?"
    r"|izquierd[ao]s?|derech[ao]s?|sinistr[aoei]|destr[aoei]|esquerd[ao]s?|direit[ao]s?)\b"
    r"|\b(слева|справа|налево|направо|лев|прав)(ый|ая|ое|ом|ой|ую|ее)?\b|[左右]",
    re.IGNORECASE,
)
_MIRROR, _SCALE, _TOP, _LEFT = range(4)  # the purpose of a draw


@dataclasses.dataclass(frozen=True)
class Views:
    """How pictures are cut: the settings that the token cache records.

    Attributes:
        size: S, the side of the result, in pixels, or (height, width).
        count: views of an image; the first one is the plain view.
        smallest: least share of the largest square in the picture that a crop keeps, (0, 1].
        flip: whether random views may be mirrored.
        seed: of the crops.
        min_side: pictures with a shorter side than this are skipped.
        max_characters: captions longer than this are dropped.
        incomplete: whether a record without a caption, a picture or a value of another modality is
            an example; else it is a fault.
        channels: C, of the result: 1, 3 or 4 (`pixels.in_channels`).
    """

    size: int | tuple[int, int]
    count: int = 1
    smallest: float = 0.6
    flip: bool = True
    seed: int = 0
    min_side: int = 8
    max_characters: int = 10_000
    incomplete: bool = False
    channels: int = 3

    def __post_init__(self):
        for name, least in (("size", 1), ("count", 1), ("min_side", 1), ("max_characters", 1)):
            if min(pixels.both(getattr(self, name))) < least:
                raise UserError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.channels not in pixels.CHANNELS:
            known = ", ".join(map(str, pixels.CHANNELS))
            raise UserError(f"channels is {self.channels}, expected one of {known}")
        if not 0 < self.smallest <= 1:
            raise UserError(f"smallest is {self.smallest}, expected a share in (0, 1]")

    @property
    def recorded(self) -> dict:
        """The settings that a token cache has: those that came later only if they are not as
        before. The plain view alone has no crops, so that its seed is 0."""
        later = {"incomplete": False, "channels": 3}
        own = dataclasses.asdict(self) | ({"seed": 0} if self.count == 1 else {})
        return {name: v for name, v in own.items() if name not in later or v != later[name]}


@dataclasses.dataclass(frozen=True)
class Example:
    """A prepared record.

    pixels: uint8[views, S, S, C], or None if there are none. extra: of the record, with the values
    of further modalities that it has. `usable` is False for one that has to be skipped.
    """

    position: int
    key: str
    pixels: np.ndarray | None
    captions: tuple[str, ...]
    faults: tuple[tuple[str, str], ...] = ()
    extra: dict = dataclasses.field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return self.pixels is not None or bool(self.captions or self.extra)


def skipping(causes) -> list[str]:
    """Those of some causes that skip a record, in the order of SKIPPED, then of the alphabet."""
    others = (c for c in causes if c.startswith((BROKEN, LACKS)) and c not in SKIPPED)
    return [*(c for c in SKIPPED if c in causes), *sorted(others)]


def too_many(bad: int, of: int, limit: float) -> bool:
    """Whether a share is above a limit; as shares, so that the limit which a message names is one
    that holds (29 > .29 * 100)."""
    return bad / max(of, 1) > limit


def clean(caption, max_characters: int = 10_000) -> tuple[str | None, str | None]:
    """A caption fit for a tokenizer, and its fault.

    Returns:
        (text, None) if the caption is fine; (text, cause) if it was repaired: control characters
        become spaces, lone surrogates U+FFFD; (None, cause) if it cannot be used.
    """
    if not isinstance(caption, str):
        return None, DROPPED[0]
    if len(caption) > max_characters:
        return None, DROPPED[1]
    repaired = _SURROGATES.sub("\ufffd", caption)
    cause = None if repaired == caption else "surrogates replaced"
    printable = _CONTROLS.sub(" ", repaired)
    cause = cause if printable == repaired else "control characters removed"
    caption = " ".join(printable.split())
    visible = any(letter.isprintable() and letter != " " for letter in caption)
    return (caption, cause) if visible else (None, EMPTY)


def cut(image: np.ndarray, views: Views, position: int, mirror: bool, numbers) -> np.ndarray:
    """Some views of one picture: uint8[H, W, C] -> uint8[len(numbers), S, S, C].

    `numbers` name the views, also beyond `views.count`; number 0 is the plain view.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = pixels.middle((height, width), pixels.both(views.size))
    whole, cuts = (bottom - top, right - left), []
    for view in numbers:
        if view == 0:
            cuts.append(pixels.fit(image, views.size))
            continue
        chance = hashing.uniform(views.seed, position, view, np.arange(4))
        share = views.smallest + (1 - views.smallest) * chance[_SCALE]
        tall, wide = (max(1, round(side * float(np.sqrt(share)))) for side in whole)
        top = int(chance[_TOP] * (height - tall + 1))
        left = int(chance[_LEFT] * (width - wide + 1))
        crop = pixels.fit(image[top : top + tall, left : left + wide], views.size)
        cuts.append(crop[:, ::-1] if mirror and chance[_MIRROR] < 0.5 else crop)
    return np.stack(cuts)


def example(source, position: int, views: Views, numbers=None) -> Example:
    """Reads and decodes item `position` of `source`; never raises because of bad data.

    `numbers` are the wanted views, by default the first `views.count`.
    """
    try:
        record = source[position]
    except (OSError, ValueError) as error:
        return Example(position, str(position), None, (), (("unreadable record", str(error)),))
    faults, captions, skip = [], [], functools.partial(Example, position, record.key, None, ())
    for caption in record.captions:
        text, cause = clean(caption, views.max_characters)
        if cause and not (views.incomplete and cause == EMPTY):
            faults.append((cause, repr(caption)[:80]))
        if text is not None:
            captions.append(text)
    further = getattr(source, "further", ())
    gone = lacking(record, captions, further)
    kind = WITHOUT if views.incomplete else LACKS
    faults += [*record.faults, *((kind + what, detail) for what, detail in gone)]
    if skipping([cause for cause, _ in faults]):
        return skip(tuple(faults))
    if len(gone) == 2 + len(further):
        return skip((*faults, NOTHING))
    if record.image is None:
        return Example(position, record.key, None, tuple(captions), tuple(faults), record.extra)
    try:
        picture = record.image
        if isinstance(picture, bytes):
            picture, _ = pixels.read_for(picture, views.size, views.channels)
        picture = pixels.in_channels(picture, views.channels)
    except (OSError, ValueError) as error:
        return skip((*faults, ("broken image", str(error))))
    height, width = picture.shape[:2]
    if min(height, width) < views.min_side:
        return skip((*faults, ("tiny image", f"{width} x {height} pixels")))
    mirror = views.flip and not any(_SIDES.search(caption) for caption in captions)
    numbers = range(views.count) if numbers is None else numbers
    cuts = cut(picture, views, position, mirror, numbers)
    return Example(position, record.key, cuts, tuple(captions), tuple(faults), record.extra)


def lacking(record, captions, further) -> list[tuple[str, str]]:
    """(what, detail) of each part that a record lacks: "picture", "caption", or one of `further`.

    captions: those that can be used.
    """
    broken = [cause.removeprefix(BROKEN) for cause, _ in record.faults]
    gone = [] if captions else [("caption", f"{len(record.captions)} given")]
    gone += [("picture", "")] if record.image is None else []
    return gone + [(n, "") for n in further if n not in record.extra and n not in broken]


def examples(source, start: int, stop: int, views: Views, *, threads=4, workers=0):
    """Examples of `source` at start..stop - 1, in order, decoded ahead of time by Grain.

    Args:
        source: a source (with `workers`, one that can be pickled).
        start, stop: positions in the source; items outside are not read.
        views: how pictures are cut.
        threads, workers: as in `in_order`.

    Yields:
        stop - start `Example`s; the same whatever `threads` and `workers` are.
    """

    def chunk(first):
        return [example(source, at, views) for at in range(first, min(first + _CHUNK, stop))]

    for done in in_order(chunk, range(start, stop, _CHUNK), threads=threads, workers=workers):
        yield from done


def in_order(function, numbers: range, *, threads=4, workers=0):
    """Yields function(n) for each n, in order, computed ahead of time by Grain.

    A trainer reads pictures with it: `in_order(batch_at, range(step, steps))`, where `batch_at` is
    a pure function of the step, such as `batches.make_images`.

    Args:
        function: takes an integer; with `workers`, it must be picklable.
        numbers: the arguments of its calls.
        threads: number in each process; Pillow decodes outside Python's lock.
        workers: number of processes; the caller then needs parsed absl flags and a `__main__`
            guard.
    """
    dataset = grain.MapDataset.range(numbers.start, numbers.stop, numbers.step).map(function)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    dataset = dataset.to_iter_dataset(options)
    if workers:
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    yield from dataset


def values(source, name: str):
    """Every value of a modality besides image and text that can be read, in order.

    If the source has a method `values(index)`, no picture is read; otherwise its records are read.
    """
    listed = getattr(source, "values", lambda index: (source[index].extra, ()))
    for index in range(len(source)):
        try:
            found, _ = listed(index)
        except (OSError, ValueError):
            continue  # counted when its picture is read
        if name in found:
            yield found[name]


def texts(source, names=()):
    """Every usable caption of a source, then every text of the modalities `names`, such as
    references, as `values` has them."""
    yield from captions(source)
    for name in names:
        yield from values(source, name)


def captions(source):
    """Every usable caption of a source, cleaned, in order.

    If the source has a method `captions(index)`, no picture is read; otherwise its records are
    read.
    """
    listed = getattr(source, "captions", lambda index: source[index].captions)
    for index in range(len(source)):
        try:
            found = listed(index)
        except (OSError, ValueError):
            continue  # counted when its picture is read
        yield from filter(None, (clean(caption)[0] for caption in found))
