"""Webdataset shards: tar files in which `KEY.png` and `KEY.json` or `KEY.txt` are one item.

A shard's headers are scanned once; then a picture is one seek and one read, in any order. Captions
come from `KEY.json` (a field such as "captions" or "caption"; other fields become `extra`), else
from `KEY.txt`, one a line. Shards in a folder, or with a name, called train, val or test belong to
that split. A shard that breaks off gives the items before the break, and one broken item.
"""

import functools
import glob
import json
import os
import pathlib
import tarfile

from udd_jax.data.sources import listing
from udd_jax.data.sources.folder import SUFFIXES

_CAPTION_SUFFIXES = (".json", ".txt")


def read(where: tuple[str, int, int]) -> bytes:
    """The bytes (file, offset, size) of an uncompressed tar."""
    path, offset, size = where
    with open(path, "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise ValueError(f"{path} ends inside an image")
    return content


def shards(path: str) -> tuple[list[pathlib.Path], pathlib.Path]:
    """The tar files of a path, glob or folder, sorted, and the folder that all are in."""
    path = os.path.join(path, "**", "*.tar") if os.path.isdir(path) else path
    found = sorted(map(pathlib.Path, glob.glob(path, recursive=True)))
    if not found:
        raise ValueError(f"{path} matches no file, expected one or more .tar files")
    fixed = pathlib.Path(path.split("*")[0].split("?")[0].split("[")[0] + "x").parent
    return found, fixed


def items(path: str, caption_field: str | None = None) -> list[listing.Item]:
    """The items of all shards, in the order of the shards and of their files."""
    files, root = shards(path)
    found = []
    for file in files:
        name, split = str(file.relative_to(root)), listing.split_of_path(file, root)
        found += _shard(file, file.stat().st_mtime_ns, name, split, caption_field)
    return found


@functools.cache
def _shard(file, modified, name, split, caption_field):
    pictures, texts, found = {}, {}, []

    def broken(key, cause):
        found.append(listing.Item(key, listing.Broken(cause), (), {}, split))

    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                folder, slash, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                stem, suffix = folder + slash + stem, f".{suffix.lower()}"
                if not member.isfile():
                    continue
                if suffix in SUFFIXES and stem in pictures:
                    broken(f"{name}/{member.name}", "a second image of its key")
                elif suffix in SUFFIXES:
                    pictures[stem] = (str(file), member.offset_data, member.size)
                elif suffix in _CAPTION_SUFFIXES:
                    texts.setdefault(stem, {})[suffix] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError) as error:
        broken(name, f"the shard breaks off after {len(pictures)} images: {error}")
    for stem in pictures | texts:
        key = f"{name}/{stem}"
        if stem not in pictures:
            broken(key, "captions without an image")
            continue
        try:
            captions, extra = _captions(texts.get(stem, {}), caption_field, f"{key}.json")
        except ValueError as error:
            broken(key, str(error))
            continue
        found.append(listing.Item(key, pictures[stem], captions, extra, split))
    return found


def _captions(texts: dict[str, bytes], field: str | None, where: str):
    if ".json" in texts:
        row = json.loads(texts[".json"].decode("utf-8", "surrogateescape"))
        row = row if isinstance(row, dict) else {"captions": row}
        extra = {key: value for key, value in row.items() if key not in listing.CAPTION_FIELDS}
        if ".txt" not in texts or field or any(name in row for name in listing.CAPTION_FIELDS):
            return listing.captions_of(row, field, where), extra
    else:
        extra = {}
    lines = texts.get(".txt", b"").decode("utf-8", "surrogateescape").splitlines()
    return tuple(line for line in lines if line.strip()) or tuple(lines[:1]), extra


def source(path: str, split: str, *, caption_field=None, **shares) -> listing.Listing:
    """The items of one split of webdataset shards; `shares` as in `listing.choose`."""
    found = items(path, caption_field)
    return listing.choose(f"webdataset {path}", found, read, split, **shares)
