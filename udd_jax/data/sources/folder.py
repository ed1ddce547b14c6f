"""A folder of images with their captions.

A list has a row for each caption or for each image. It may be in the folder, or in a subfolder for
the images below it:

    captions.jsonl .json .csv .tsv .parquet .txt, or metadata.* (Hugging Face's `imagefolder`)
    *.token, *.token.txt, results.csv (Flickr8k and Flickr30k)
    any other .jsonl .csv .tsv .parquet whose first row names a picture and a caption

    {"file_name": "a.png", "caption": "a red circle"}      or "captions": ["...", "..."]

with an optional "split". Without a list, captions come from `name.txt`, `name.caption` (one caption
a line) or `name.json` next to `name.png`. Without these, the captions are the names of the
subfolders. Subfolders are searched, also links. A subfolder named train, val or test gives the
split of its images, unless it is a class beside others; the name of an image never does. Values of
further modalities are files beside an image, or named by a field of a list (beside.py).

A path in a list must be inside the folder, also if it is absolute or has `..`; any other path is a
fault. A backslash counts as a slash. A file that is not at its path is searched in the whole
folder. Names that begin with a dot, and `__MACOSX`, are ignored.
"""

import os
import pathlib
import re

from udd_jax.data import captions as texts
from udd_jax.data.sources import beside, listing, split_names, stems, tables, walk
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
        raise UserError(f"{path} is no folder, expected one with images and captions{walk.MOVED}")
    here = walk.Files(root, further or {}, incomplete)
    (lists, others), found = here.lists(), []
    if not lists:
        lists, others = here.lists_of_any_name(caption_field)
    if lists:
        for table in lists:
            found += _listed(here, table, caption_field, split_field)
        found = _merged(found, here)
        second = listing.Left("a list beside or below the one that is used")
        found += [listing.Item(here.key(str(table)), second, ()) for table in others]
    elif here.pictures or incomplete:
        found = stems.items(here, caption_field, split_field)
    used = [item for item in found if not isinstance(item.where, listing.Left)]
    found += [listing.Item(here.key(place), why, ()) for place, why in here.unnamed]
    silent = all(
        isinstance(item.where, str) and not item.captions and not item.further for item in used
    )
    if silent and not lists:
        raise UserError(
            f"{path} holds no captioned images, expected captions.jsonl, .json, .csv, .tsv, .txt "
            "or .parquet, metadata.*, name.txt, name.caption or name.json beside name.png, or "
            f"pictures in a folder for each class; there are {len(here.pictures)} pictures"
            f"{here.hint()}"
        )
    return found, here.notes()


def _listed(here: walk.Files, table: pathlib.Path, field, split_field) -> list[listing.Item]:
    """The rows of one table; `_merged` joins those of one image."""
    name, folder, found = here.key(str(table)), table.parent, []
    flickr = _flickr_splits(here)
    for number, row in enumerate(tables.rows(table), 1):
        where = f"{name}, row {number}"
        if isinstance(row, listing.Broken):
            found.append(listing.Item(where, row, ()))
            continue
        names = {str(key).strip().lower(): key for key in reversed(list(row))}
        files = [
            names[key] for key in tables.FILE_FIELDS if isinstance(row.get(names.get(key)), str)
        ]
        if here.incomplete:
            files = [key for key in files if row[key].strip()]
        split = split_names.said(row.get(split_field), where)
        own = beside.places(row, here.further, lambda name: here.find(name, folder, False))
        try:
            captions = listing.captions_of(row, field, where, here.incomplete)
            if not files and here.incomplete:
                found.append(listing.Item(where, None, captions, {}, split, own))
                continue
            if not files:
                known = sorted(map(str, row))
                raise UserError(f"{where} has the fields {known}, expected {tables.FILE_FIELDS[0]}")
        except ValueError as error:
            found.append(listing.Item(where, listing.Broken(str(error)), (), {}, split))
            continue
        file = row[files[0]]
        place = here.find(file, folder)
        if isinstance(place, listing.Broken) and re.search(r"#\w+$", file):  # Flickr's tokens
            file = file.rpartition("#")[0]
            place = here.find(file, folder)
        if isinstance(place, str):
            split = split or flickr.get(os.path.basename(place)) or here.split(place)
            key = here.key(place)
        else:
            key = os.path.normpath(os.path.join(here.key(str(folder)), file))
        known = {files[0], *(k for n, k in names.items() if n in listing.CAPTION_FIELDS), field}
        known |= {split_field, *beside.fields(here.further)}
        extra = {k: value for k, value in row.items() if k not in known}
        if isinstance(place, str):
            own = here.values_of(place) | own
        found.append(listing.Item(key, place, captions, extra, split, own))
    return found


def _merged(found: list[listing.Item], here: walk.Files) -> list[listing.Item]:
    """One item for each image with the captions of all its rows, and the images without a row."""
    rows = {}
    for item in found:
        before = rows.get(item.key)
        if before is None:
            rows[item.key] = item
            continue
        captions = before.captions + item.captions
        split, further = before.split or item.split, before.further | item.further
        rows[item.key] = listing.Item(
            item.key, before.where, captions, before.extra, split, further
        )
    listed = {item.where for item in rows.values() if isinstance(item.where, str)}
    left = [place for place in here.pictures if place not in listed]
    left = [(place, "a picture that is in no list") for place in left]
    left += [(place, "a picture that is in no list") for place in here.unread]
    return [
        *rows.values(),
        *(listing.Item(here.key(place), listing.Left(why), ()) for place, why in left),
    ]


def _flickr_splits(here: walk.Files) -> dict[str, str]:
    """File name -> split, from Flickr_8k.trainImages.txt and the like."""
    splits = {}
    for folder, names in here.folders.items():
        for name in names:
            if re.search(r"(train|dev|val|test)_?images\.txt$", name, re.IGNORECASE):
                split = split_names.named(re.sub(r"(?i)_?images\.txt$", "", name))
                rows = texts.lines(read(os.path.join(folder, name)))
                splits |= {row.strip(): split for row in rows}
    return splits


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
