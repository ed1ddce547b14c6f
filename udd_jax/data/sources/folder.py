"""A folder of images with their captions.

A list has a row for each caption or for each image. It may be in the folder, or in a subfolder for
the images below it:

    captions.jsonl .json .csv .tsv .parquet .txt, or metadata.* (Hugging Face's `imagefolder`)
    *.token, *.token.txt, results.csv (Flickr8k and Flickr30k)
    any other .jsonl .csv .tsv .parquet whose first row names a picture and a caption; one each
        for several splits, if their names say so, such as train.csv and test.csv

    {"file_name": "a.png", "caption": "a red circle"}      or "captions": ["...", "..."]

with an optional "split". Without a list, captions come from `name.txt`, `.text`, `.caption` or
`.json` next to `name.png`, by the rule of `captioning.py`. Without these, the captions are the
names of the subfolders. Subfolders are searched, also links. A subfolder named train, val or test
gives the split of its images, unless it is a class beside others; the name of an image never does.
Values of further modalities are files beside an image, or named by a field of a list (beside.py).

A path in a list must be inside the folder, also if it is absolute or has `..`; any other path is a
fault. A backslash counts as a slash. A file that is not at its path is searched in the whole
folder. Names that begin with a dot, and `__MACOSX`, are ignored.
"""

import collections
import dataclasses
import os
import pathlib
import re

from udd_jax.data import captions as texts
from udd_jax.data.sources import (
    beside,
    captioning,
    downloads,
    listing,
    split_names,
    stems,
    tables,
    walk,
)
from udd_jax.errors import UserError


def read(path: str) -> bytes:
    """The bytes of one file."""
    return pathlib.Path(path).read_bytes()


def items(
    path: str,
    caption_field: str | None = None,
    split_field: str = "split",
    further=None,
    incomplete: bool = False,
) -> list[listing.Item]:
    """The images of a folder, in the order of their names. ValueError if it has none.

    further: {modality: its `beside.Reader`}; incomplete: whether items may lack their image.
    """
    return _found(path, caption_field, split_field, further, incomplete)[0]


def _found(path, caption_field, split_field, further, incomplete) -> tuple[list, list[str]]:
    """(the items, lines that say how they were decided); the arguments are those of `items`."""
    root = pathlib.Path(path)
    if not root.is_dir():
        raise UserError(
            f"{path} is not a folder, expected one with images and captions{walk.MOVED}"
        )
    here = walk.Files(root, further or {}, incomplete)
    (lists, others), found = here.lists(), _downloads(here)
    if not lists:
        lists, others = here.lists_of_any_name(caption_field)
    tables_, left = {str(table) for table in (*lists, *others)}, []
    if lists:
        names = _flickr_splits(here)
        rows = (_listed(here, table, caption_field, split_field, names) for table in lists)
        found += _merged([item for items_ in rows for item in items_])
        left += _unlisted(here, found, tables_, names)
        second = "a list beside or below the one that is used"
        left += [(here.key(str(table)), second) for table in others]
    elif here.pictures or incomplete:
        found += stems.items(here, caption_field, split_field)
    used = [item for item in found if not isinstance(item.where, listing.Left)]
    tables_ |= {item.where for item in used if isinstance(item.where, str)}
    others = [place for place in here.others if place not in tables_]
    left += [(here.key(place), "a file that is not a picture, text or list") for place in others]
    found += [listing.Item(here.key(place), why, ()) for place, why in here.doubtful]
    found += [listing.Item(key, listing.Left(why), ()) for key, why in left]
    silent = all(
        isinstance(item.where, str) and not item.captions and not item.further for item in used
    )
    if silent and not lists:
        raise UserError(
            f"{path} holds no captioned images, expected captions.jsonl, .json, .csv, .tsv, .txt "
            "or .parquet, metadata.*, name.txt, name.text, name.caption or name.json beside "
            "name.png, or pictures in a folder for each class; there are "
            f"{len(here.pictures)} pictures"
            f"{here.hint()}"
        )
    return found, here.notes()


def _listed(here: walk.Files, table: pathlib.Path, field, split_field, flickr: dict):
    """The items of the rows of one table; `_merged` joins those of one image.

    flickr: of `_flickr_splits`.
    """
    name, folder, found, named = here.key(str(table)), table.parent, [], {}
    for number, row in enumerate(tables.rows(table), 1):
        where = f"{name}, row {number}"
        if isinstance(row, listing.Broken):
            found.append(listing.Item(where, row, ()))
            continue
        names = {str(key).strip().lower(): key for key in reversed(list(row))}
        files = [
            names[key] for key in tables.FILE_FIELDS if isinstance(row.get(names.get(key)), str)
        ]
        empty = [key for key in files if not row[key].strip()]
        files = [key for key in files if key not in empty]
        own_split = split_names.field(row, split_field)
        split = split_names.said(row.get(own_split), where) or here.list_splits.get(str(table))
        own = beside.places(row, here.further, lambda name: here.find(name, folder, False))
        known = {*(files[:1] or empty), field, own_split, *beside.fields(here.further)}
        known |= {key for name, key in names.items() if name in captioning.CAPTION_FIELDS}
        extra = {k: value for k, value in row.items() if k not in known}
        unused = tuple(captioning.not_used(row, field))
        try:
            captions = captioning.captions_of(row, field, where, here.incomplete)
            if not files and here.incomplete:
                found.append(listing.Item(where, None, captions, extra, split, own, unused))
                continue
            if empty and not files:
                raise UserError(f"{where} has an empty {empty[0]}, expected the name of a picture")
            if not files:
                has = sorted(map(str, row))
                raise UserError(f"{where} has the fields {has}, expected {tables.FILE_FIELDS[0]}")
        except ValueError as error:
            found.append(listing.Item(where, listing.Broken(str(error)), (), {}, split))
            continue
        file = row[files[0]]
        place = here.find(file, folder)
        if isinstance(place, listing.Broken) and re.search(r"#\w+$", file):  # Flickr's tokens
            file = file.rpartition("#")[0]
            place = here.find(file, folder)
        if isinstance(place, str):
            _, said = flickr.get(os.path.basename(place), (None, None))
            split = split or said or here.split(place)
            key = here.key(place)
        else:
            key = os.path.normpath(os.path.join(here.key(str(folder)), file))
        if isinstance(place, str):
            own = here.values_of(place) | own
            named[len(found)] = file, place
        found.append(listing.Item(key, place, captions, extra, split, own, unused))
    for number in walk.not_their_own(named):
        file, place = named[number]
        shown = listing.printable(repr(file))
        why = f"there is no file {shown}, and {here.key(place)} is that of another row"
        key = os.path.normpath(os.path.join(here.key(str(folder)), file))
        found[number] = dataclasses.replace(found[number], key=key, where=listing.Broken(why))
    return found


def _merged(found: list[listing.Item]) -> list[listing.Item]:
    """One item for each image with the captions of all its rows."""
    rows = {}
    for item in found:
        before = rows.get(item.key)
        if before is None:
            rows[item.key] = item
            continue
        rows[item.key] = _joined(before, item)
    return list(rows.values())


def _joined(first: listing.Item, second: listing.Item) -> listing.Item:
    """One item of two rows for one picture. What the second says differently is counted; of two
    splits the later one is taken, so that no picture of a test is trained on."""
    splits = sorted(filter(None, (first.split, second.split)), key=listing.SPLITS.index)
    unused = [
        f"another value of the field {listing.printable(str(name))} in a further row of a picture"
        for name, value in second.extra.items()
        if name in first.extra and first.extra[name] != value
    ]
    unused += [
        f"another value of the {m} in a further row"
        for m in first.further
        if m in second.further and first.further[m] != second.further[m]
    ]
    if len(set(splits)) > 1:
        unused.append("another split in a further row of a picture")
    return dataclasses.replace(
        first,
        captions=first.captions + second.captions,
        extra=second.extra | first.extra,
        split=splits[-1] if splits else None,
        further=second.further | first.further,
        unused=(*first.unused, *second.unused, *unused),
    )


def _downloads(here: walk.Files) -> list[listing.Item]:
    """What the statistics of img2dataset count and is not there; its own files are taken out."""
    stems_ = [stem for stem in here.texts if f"{stem}.json".endswith(downloads.END)]
    files = {stem: here.texts[stem].get(".json", "") for stem in stems_}
    files = {s: file for s, file in files.items() if downloads.statistics(pathlib.Path(file))}
    if not files:
        return []
    inside = collections.Counter(map(os.path.dirname, (*here.pictures, *here.unread)))
    found, tables_ = [], set()
    gone = listing.Left("a picture that img2dataset stored is not there")
    for stem, file in files.items():
        place = f"{stem}.json".removesuffix(downloads.END)
        about = pathlib.Path(file), here.key(file)
        found += downloads.failed(*about) + downloads.lost(*about, inside[place], gone)
        tables_.add(f"{place}.parquet")  # it has what the `.json` files have
        del here.texts[stem][".json"]
    here.others = [place for place in here.others if place not in tables_]
    here.texts = {stem: own for stem, own in here.texts.items() if own}
    return found


def _unlisted(here: walk.Files, found: list[listing.Item], used: set[str], names: dict):
    """What a folder with lists does not use: (its key, why it is left).

    found: the items of the rows; used: the paths of all lists; names: of `_flickr_splits`.
    """
    listed = {
        place
        for item in found
        for place in (item.where, *item.further.values())
        if isinstance(place, str)
    }
    used = used | listed | {file for file, _ in names.values()}
    stems_ = {os.path.splitext(place)[0] for place in here.pictures} | set(here.pictures)
    for places, why in (
        ((*here.pictures, *here.unread), "a picture that is in no list"),
        ((p for own in here.texts.values() for p in own.values()), "a text that is in no list"),
        (
            (p for stem, own in here.values.items() if stem not in stems_ for p in own.values()),
            "a value without a picture of its name",
        ),
    ):
        yield from ((here.key(place), why) for place in places if place not in used)
    known = {os.path.basename(item.key) for item in found}
    for name, (file, _) in names.items():
        if listing.printable(name) not in known:
            yield (
                f"{here.key(file)}, {name}",
                "a name in a list of a split, and in no list of captions",
            )


def _flickr_splits(here: walk.Files) -> dict[str, tuple[str, str]]:
    """File name -> (the list that names it, split), of Flickr_8k.trainImages.txt and the like."""
    found = {}
    for folder, names in here.folders.items():
        for name in names:
            if re.search(r"(train|dev|val|test)_?images\.txt$", name, re.IGNORECASE):
                split = split_names.named(re.sub(r"(?i)_?images\.txt$", "", name))
                file = os.path.join(folder, name)
                rows = map(str.strip, texts.lines(read(file)))
                found |= {row: (file, split) for row in rows if row and split}
    return found


def source(
    path: str,
    split: str,
    *,
    caption_field=None,
    split_field="split",
    further=None,
    incomplete=False,
    **shares,
) -> listing.Listing:
    """The pictures of one split of a folder.

    further, incomplete: as in `items`; `shares` as in `listing.choose`.
    """
    found, notes = _found(path, caption_field, split_field, further, incomplete)
    about = {"further": further, "notes": notes, **shares}
    return listing.choose(f"folder {path}", found, read, split, **about)
