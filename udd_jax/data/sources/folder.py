"""A folder of pictures with their captions.

Either one list in the folder, `captions.jsonl`, `.csv` or `.parquet` (`metadata.*` too), a row a
caption or a row a picture,

    {"file_name": "a.png", "caption": "a red circle"}      or "captions": ["...", "..."]

with an optional "split"; or, without a list, `name.txt` beside `name.png`, one caption a line.
Subfolders are searched; one called train, val or test gives its pictures' split.
"""

import csv
import json
import os
import pathlib

from udd_jax.data.sources import listing

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
_FILE_FIELDS = ("file_name", "filename", "file", "image", "path", "image_path")


def read(path: str) -> bytes:
    """The bytes of one file."""
    return pathlib.Path(path).read_bytes()


def items(path: str, caption_field: str | None = None) -> list[listing.Item]:
    """The pictures of a folder, in the order of their names; raises ValueError where none is."""
    root = pathlib.Path(path)
    if not root.is_dir():
        raise ValueError(f"{path} is no folder, expected one with images and captions")
    lists = [root / f"{stem}{suffix}" for stem in ("captions", "metadata") for suffix in _TABLES]
    lists = [file for file in lists if file.exists()]
    found = _listed(root, lists[0], caption_field) if lists else _beside(root)
    if not found:
        raise ValueError(
            f"{path} holds no captioned images, expected captions.jsonl, .csv or .parquet, "
            "or name.txt beside name.png"
        )
    return found


def _beside(root: pathlib.Path) -> list[listing.Item]:
    found = []
    for path in pictures(root):
        text = path.with_suffix(".txt")
        lines = text.read_text("utf-8", "surrogateescape").splitlines() if text.exists() else []
        captions = tuple(line for line in lines if line.strip()) or tuple(lines[:1])
        key, split = str(path.relative_to(root)), listing.split_of_path(path, root)
        found.append(listing.Item(key, str(path), captions, {}, split))
    return found


def pictures(root: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder and its subfolders, by their suffix, sorted."""
    found = []
    for folder, _, names in os.walk(root):
        found += [pathlib.Path(folder) / n for n in names if n.lower().endswith(SUFFIXES)]
    return sorted(found)


def _listed(root: pathlib.Path, table: pathlib.Path, field: str | None) -> list[listing.Item]:
    rows = {}
    for number, row in enumerate(_TABLES[table.suffix](table), 1):
        where = f"{table.name}, row {number}"
        if isinstance(row, listing.Broken):
            rows[where] = listing.Item(where, row, ())
            continue
        name = next((row[name] for name in _FILE_FIELDS if isinstance(row.get(name), str)), None)
        try:
            captions = listing.captions_of(row, field, where)
            if name is None:
                raise ValueError(
                    f"{where} has the fields {sorted(row)}, expected {_FILE_FIELDS[0]}"
                )
        except ValueError as error:
            rows[where] = listing.Item(where, listing.Broken(str(error)), ())
            continue
        if name in rows:
            before = rows[name]
            captions = before.captions + captions
            rows[name] = listing.Item(name, before.where, captions, before.extra, before.split)
        else:
            split = listing.split_named(str(row.get("split") or ""))
            split = split or listing.split_of_path(root / name, root)
            known = {*_FILE_FIELDS, *listing.CAPTION_FIELDS, field, "split"}
            extra = {key: value for key, value in row.items() if key not in known}
            rows[name] = listing.Item(name, str(root / name), captions, extra, split)
    return list(rows.values())


def _jsonl(path: pathlib.Path):
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in filter(str.strip, file):
            try:
                row = json.loads(line)
            except ValueError as error:
                row = listing.Broken(f"no JSON: {error}")
            yield row if isinstance(row, dict | listing.Broken) else listing.Broken("no object")


def _csv(path: pathlib.Path):
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for row in csv.DictReader(file):
            yield {key: value for key, value in row.items() if isinstance(key, str)}


def _parquet(path: pathlib.Path):
    from pyarrow import parquet  # slow to import, and few need it

    yield from parquet.read_table(path).to_pylist()


_TABLES = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}


def source(path: str, split: str, *, caption_field=None, **shares) -> listing.Listing:
    """The pictures of one split of a folder; `shares` as in `listing.choose`."""
    found = items(path, caption_field)
    return listing.choose(f"folder {path}", found, read, split, **shares)
