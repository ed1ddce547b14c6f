"""Parquet files with image bytes and captions in columns: the Hugging Face `datasets` layout.

The image column holds struct{bytes, path} or plain bytes; the caption column a text or a list of
texts, or several columns of one text each. Captions are read when the files are opened, pictures a
row group at a time when they are asked for: neighbours are cheap, jumps cost a row group. A column
"split", or train, validation or test in a file's name, gives the split.
"""

import functools
import glob
import os
import pathlib

from pyarrow import parquet

from udd_jax.data.sources import listing

_IMAGE_FIELDS = ("image", "img", "jpg", "png", "image_bytes", "bytes")


def read(where: tuple[str, str, int, int]) -> bytes:
    """The image bytes at (file, column, row group, row)."""
    path, column, group, row = where
    value = _images(path, column, group)[row]
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise ValueError(f"{path}, row group {group}, row {row} has no image bytes in {column!r}")
    return content


@functools.lru_cache(4)
def _images(path: str, column: str, group: int) -> list:
    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column].to_pylist()


def items(path, image_field=None, caption_field=None) -> list[listing.Item]:
    """The rows of all files, in order. `caption_field` may name several columns: "a,b"."""
    path = os.path.join(path, "**", "*.parquet") if os.path.isdir(path) else path
    files = sorted(map(pathlib.Path, glob.glob(path, recursive=True)))
    if not files:
        raise ValueError(f"{path} matches no file, expected one or more .parquet files")
    root = pathlib.Path(path.split("*")[0] + "x").parent
    found = []
    for file in files:
        name, split = str(file.relative_to(root)), listing.split_of_path(file, root)
        try:
            table = parquet.ParquetFile(file)
        except (OSError, ValueError) as error:
            broken = listing.Broken(f"unreadable: {str(error).splitlines()[0]}")
            found.append(listing.Item(name, broken, (), {}, split))
            continue
        with table:
            found += _rows(table, str(file), name, split, image_field, caption_field)
    return found


def _rows(table, file, name, split, image_field, caption_field):
    columns = table.schema_arrow.names
    images = [image_field] if image_field else [n for n in _IMAGE_FIELDS if n in columns]
    if not images or images[0] not in columns:
        wanted = image_field or " or ".join(_IMAGE_FIELDS)
        raise ValueError(
            f"{name} has the columns {columns}, expected {wanted}; name it with image_field"
        )
    others = [
        field.name
        for field in table.schema_arrow
        if field.name != images[0] and "binary" not in str(field.type)
    ]
    number = 0
    for group in range(table.num_row_groups):
        rows = table.read_row_group(group, columns=others).to_pylist() if others else []
        for row, values in enumerate(rows):
            where = f"{name}, row {number}"
            fields = caption_field.split(",") if caption_field else [None]
            captions = sum((listing.captions_of(values, field, where) for field in fields), ())
            known = {*fields, *listing.CAPTION_FIELDS, "split"}
            extra = {key: value for key, value in values.items() if key not in known}
            own = listing.split_named(str(values.get("split") or "")) or split
            place = (file, images[0], group, row)
            found = listing.Item(f"{name}/{number}", place, captions, extra, own)
            number += 1
            yield found


def source(path, split, *, image_field=None, caption_field=None, **shares) -> listing.Listing:
    """The rows of one split of parquet files; `shares` as in `listing.choose`."""
    found = items(path, image_field, caption_field)
    return listing.choose(f"parquet {path}", found, read, split, **shares)
