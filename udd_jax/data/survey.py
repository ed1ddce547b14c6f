"""A survey of the data, taken once before the training.

    survey     opens every image and caption of the splits and counts           -> dict
    asked      refuses an evaluation of items that the data do not have         ValueError
    check      refuses data if too much of them cannot be used                  ValueError
    texts      how the text tokenizer fits the captions                         -> dict

`described.py` has the results as text.

Every item of a data set is used, or counted here with its cause and the first example: "unusable"
items are skipped, "dropped" and "repaired" are captions, "left" are files that no split uses,
"unused" is what the data say of an item and that nothing uses, and "alone" are items that lack
something and are used as they are (`incomplete`).
"""

import collections
import concurrent.futures
import dataclasses
import json
import re

from udd_jax.data import pixels, reading, records
from udd_jax.data.sources import listing
from udd_jax.errors import UserError
from udd_jax.runtime import files

FILE = "data.json"  # in the folder of a run
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a piece of the tokenizer for one byte of a character
_REPAIRED = 0.5  # share of repaired captions above which the file has another encoding
_SHOWN = 3


class _Counts:
    """Counts by cause, with the first example of each."""

    def __init__(self):
        self._counts, self._first = collections.Counter(), {}

    def add(self, cause: str, what: str):
        self._counts[cause] += 1
        self._first.setdefault(cause, what)

    def found(self) -> dict:
        return {
            cause: {"count": count, "first": self._first[cause]}
            for cause, count in self._counts.items()
        }


def survey(
    data: dict, min_side: int = 8, max_characters: int = 10_000, threads: int = 4, incomplete=False
) -> dict:
    """Reads every image and caption of stored data.

    Args:
        data: {split: source}. An embedded world is not read, since it has no faults.
        min_side, max_characters, incomplete: as in `reading.Views`.
        threads: number of threads that decode images.

    Returns:
        JSON values: "splits", for each split its name, records, captions, unusable records and how
        it was decided; "notes", lines on how captions and splits were decided; "sizes", images by
        (width, height) as text; "clear", how many images are not opaque, and "channels" of the run,
        unless they are 0 and 3; "fitted", the [height, width] to which the run fits pictures, if
        the sources know it; "unusable", "dropped", "repaired", "alone", "unused" and "left", cause
        -> {"count", "first"}; "examples", some captions; "hash". A split of records with further
        modalities, or without some picture, has "having": {modality: usable items that have it}.
    """
    splits, sizes, examples, clear = {}, collections.Counter(), [], 0
    kinds = {
        kind: _Counts() for kind in ("unusable", "alone", "dropped", "repaired", "unused", "left")
    }
    for split, source in data.items():
        row = {"name": source.name, "records": len(source), "decided": "", "unusable": 0}
        splits[split] = row | {"captions": None, "dropped": 0, "repaired": 0}
        if not isinstance(source, listing.Listing):
            continue
        row = splits[split] | {"decided": source.decided, "captions": 0}
        having = collections.Counter()
        for item, fault, size, opaque, record in _looked_at(source, min_side, threads):
            usable = 0
            for what in item.unused:
                kinds["unused"].add(what, item.key)
            for caption in item.captions:
                text, cause = reading.clean(caption, max_characters)
                kind = "repaired" if text is not None else "dropped"
                if cause and not (incomplete and cause == reading.EMPTY):
                    kinds[kind].add(cause, f"{item.key}: {ascii(caption)[:60]}")
                    row[kind] += cause != "control characters removed"
                usable += text is not None
                if text is not None and len(examples) < _SHOWN:
                    examples.append(text)
            row["captions"] += usable
            lacking = reading.lacking(record, usable, source.further)
            fault = fault or _lacks_too_much(lacking, source, incomplete)
            if fault is None:
                for what, _ in lacking:
                    kinds["alone"].add(f"no {what}", item.key)
                gone = {reading.MODALITY.get(what, what) for what, _ in lacking}
                having.update(name for name in _names(source) if name not in gone)
            if fault is not None:
                row["unusable"] += 1
                cause, detail = fault
                shown = detail if item.key in detail else f"{item.key}: {detail}".rstrip(": ")
                kinds["unusable"].add(cause, shown)
            if size is not None:
                sizes["{} x {}".format(*size)] += 1
                clear += not opaque
        if source.further or any(item.where is None for item in source.items):
            row["having"] = {name: having[name] for name in _names(source)}
        for key, cause in source.left:
            if split == "train" or cause.startswith(("its pixels", "beyond")):  # else once a split
                kinds["left"].add(cause, key)
        splits[split] = row
    channels = max((getattr(source, "channels", 3) for source in data.values()), default=3)
    fitted = next((s.side for s in data.values() if getattr(s, "side", None)), None)
    fitted = fitted and list(map(int, pixels.both(fitted)))
    unusual = {"clear": (clear, 0), "channels": (channels, 3), "fitted": (fitted, None)}
    return {
        **{name: value for name, (value, usual) in unusual.items() if value != usual},
        "hash": identity(data),
        "splits": splits,
        "notes": list(dict.fromkeys(n for s in data.values() for n in getattr(s, "notes", ()))),
        "sizes": dict(sizes.most_common()),
        "examples": examples,
        **{kind: counts.found() for kind, counts in kinds.items()},
    }


def identity(data: dict) -> dict:
    """{split: [name, hash]}, which changes when the data change."""
    return {s: [source.name, getattr(source, "hash", None)] for s, source in data.items()}


def stored(path, data: dict) -> dict | None:
    """The survey that a file has, if it is there and is one of these data."""
    found = files.read_json(path) if path.exists() else {"hash": None}
    return found if found["hash"] == json.loads(json.dumps(identity(data))) else None


def same(found: dict, data: dict) -> bool:
    """Whether stored data, maybe at another place, are those of an earlier survey.

    found: of `survey`, as written down. The names and captions of all items decide.
    """
    then, now = (
        {split: part for split, (_, part) in hashes.items()}
        for hashes in (found["hash"], identity(data))
    )
    return then == now and None not in now.values()


def _looked_at(source, min_side: int, threads: int):
    """(item, (cause, detail) or None, (width, height) or None, whether it is opaque, Record) of
    each item, in order.

    The record has no pixels, only whether there is a picture, and its further values.
    """

    def of(index):
        item = source.items[index]
        bare = records.Record(item.key, b"" if item.where is not None else None, item.captions)
        if isinstance(item.where, listing.Broken):
            return item, ("unreadable record", item.where.cause), None, True, bare
        fault, size, opaque = None, None, True
        if item.where is not None:
            found = source.look(item)
            fault, size, opaque = found.fault, found.size, not found.clear
        if size is not None and min(size) < min_side:
            fault = "tiny image", "{} x {} pixels".format(*size)
        values, broken = source.values(index)
        record = dataclasses.replace(bare, extra=dict.fromkeys(values), faults=broken)
        return item, next(iter(broken), fault), size, opaque, record

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        yield from pool.map(of, range(len(source)))


def usable(found: dict, skip_limit: float) -> bool:
    """Whether `check` has nothing to say."""
    try:
        check(found, skip_limit)
    except UserError:
        return False
    return True


def check(found: dict, skip_limit: float = 0.01) -> None:
    """ValueError, one line, if too much of the training split, or of all splits, is unusable.

    Args:
        found: of `survey`.
        skip_limit: largest share of records, and of captions, that may be unusable.
    """
    rows = {split: row for split, row in found["splits"].items() if row["captions"] is not None}
    fields = ("records", "captions", "unusable", "dropped", "repaired")
    whole = {field: sum(row[field] for row in rows.values()) for field in fields}
    causes = ", ".join(
        f"{cause} {row['count']}, the first: {row['first']}"
        for kind in ("unusable", "dropped")
        for cause, row in found[kind].items()
    )
    refused, needed = [], 0.0
    for where, row in (("split train", rows.get("train")), ("all splits", whole if rows else None)):
        if row is None:
            continue
        captions = max(row["captions"] + row["dropped"], row["records"])
        for kind, bad, of in (
            ("records", row["unusable"], row["records"]),
            ("captions", row["dropped"], captions),
        ):
            if reading.too_many(bad, of, skip_limit):
                refused.append(f"{bad} of {of} {kind} ({where})")
                needed = max(needed, -(-1000 * bad // of) / 1000)
    if refused:
        alone = "--config.incomplete=True trains each record on what it has"
        raise UserError(
            f"data: {refused[0]} cannot be used ({causes}), expected at most {skip_limit:.1%}: "
            f"mend them, or set --config.skip_limit={needed}"
            + ("; " + alone if any(c.startswith(reading.LACKS) for c in found["unusable"]) else "")
        )
    replaced = found["repaired"].get("surrogates replaced", {"count": 0})
    if replaced["count"] > _REPAIRED * max(1, whole["captions"]):
        raise UserError(
            f"data: {replaced['count']} of {whole['captions']} captions are not UTF-8 (the first: "
            f"{replaced['first']}), expected UTF-8, or UTF-16 with its mark: save them as UTF-8"
        )


def asked(
    data: dict, split: str, only: str = "", category: str = "", incomplete=False, rules=()
) -> int:
    """The number of items of stored data that the evaluation will measure; 0 for an empty split.

    Args:
        data: {split: source}.
        split, only, category: `evaluate.split`, `.only` ("field=value") and `.category`.
        incomplete: whether records that lack something are no fault.
        rules: the modalities that each rule of `evaluate.rules` names. Where no record is whole,
            these are measured alone, each on the records that have what it names.

    Raises:
        ValueError: the split has items, but none matches `only`, none has the field `category`, or
            all of them lack something, and something that a rule names.
    """
    source = data.get(split)
    if not isinstance(source, listing.Listing) or not len(source):
        return 0 if source is None else len(source)
    fields = sorted({str(name) for item in source.items for name in item.extra})
    known = f"the fields are {', '.join(fields)}" if fields else "its records have no such fields"
    if category and category not in fields:
        raise UserError(
            f"evaluate.category is {category!r}, which no item of the split {split} has, expected "
            f"one of its fields ({known}): name one, or set --config.evaluate.category= to nothing"
        )
    if incomplete and not whole(source):
        for names in rules or (_names(source),):
            if not any(has(item, names) for item in source.items):
                raise UserError(
                    f"no record of the split {split} has all of {', '.join(names)}, {len(source)} "
                    "in all, and only such records are measured: complete some, name other "
                    "evaluate.rules, or evaluate another split with --config.evaluate.split="
                )
    field, _, value = only.partition("=")
    count = sum(not only or str(item.extra.get(field)) == value for item in source.items)
    if not count:
        raise UserError(
            f"evaluate.only is {only!r}, which is true of none of the {len(source)} items of the "
            f"split {split} ({known}): name another, or set --config.evaluate.only= to nothing"
        )
    return count


def _lacks_too_much(lacking: list, source, incomplete: bool) -> tuple[str, str] | None:
    """(cause, detail) if an item is not used because of what it lacks, of `reading.lacking`."""
    if lacking and not incomplete:
        what, detail = lacking[0]
        return f"no {what}", detail
    return reading.NOTHING if len(lacking) == len(_names(source)) else None


def whole(source) -> bool:
    """Whether any record of a source may have a value of every modality."""
    if not isinstance(source, listing.Listing):
        return True
    return any(has(item, _names(source)) for item in source.items)


def pictured(source) -> bool:
    """Whether any record of a source may have a picture."""
    if not isinstance(source, listing.Listing):
        return True
    return any(has(item, ("image",)) for item in source.items)


def has(item: listing.Item, names) -> bool:
    """Whether an item may have a value of each of some modalities."""
    own = {"image": item.where is not None, "text": bool(item.captions)}
    return all(own.get(name, name in item.further) for name in names)


def _names(source) -> tuple[str, ...]:
    return "image", "text", *source.further


def texts(data: dict, tokenizer, length: int) -> dict:
    """How a text tokenizer fits the captions of stored data.

    Args:
        data: {split: source}.
        tokenizer: has `pieces(text)`, `piece(index)` and `decode`.
        length: `text.length`, the number of pieces that are kept of a caption.

    Returns:
        JSON values: "captions", their number; "cut", how many of them have more pieces than
        `length`; "longest", in pieces; "covers", the length that keeps 98 % of them whole;
        "lacking", the characters that become bytes or are lost, with counts, most frequent first;
        "characters", how many all captions have.
    """
    counts, lengths = collections.Counter(), []
    for source in data.values():
        if isinstance(source, listing.Listing):
            for caption in reading.captions(source):
                lengths.append(len(tokenizer.pieces(caption)))
                counts.update(caption)
    lacking = {letter: n for letter, n in counts.most_common() if _lacks(tokenizer, letter)}
    lengths.sort()
    return {
        "length": length,
        "captions": len(lengths),
        "cut": sum(n > length for n in lengths),
        "longest": lengths[-1] if lengths else 0,
        "covers": lengths[-(-98 * len(lengths) // 100) - 1] if lengths else 0,
        "lacking": lacking,
        "characters": counts.total(),
    }


def _lacks(tokenizer, letter: str) -> bool:
    if letter.isspace():
        return False
    pieces = tokenizer.pieces(letter)
    if not pieces or any(_BYTE.fullmatch(tokenizer.piece(piece)) for piece in pieces):
        return True
    return not any(character.strip("\ufffd ") for character in tokenizer.decode([pieces])[0])
