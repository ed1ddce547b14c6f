"""Parquet and Arrow files with image bytes and captions in columns: Hugging Face `datasets`.

The image column holds struct{bytes, path} or plain bytes. The caption column holds a text or a list
of texts; several columns with one text each are possible, too. Without a caption column, the name
of the class in a column `label` is the caption, if the file has the names (`ClassLabel`). Captions
are read when the files are opened. Images are read on access, one row group at a time: neighbours
are cheap, a jump costs a row group. A column "split", or train, validation or test in the name of a
file or folder, gives the split. A column of bytes, paths or rows of ids may have the values of a
further modality (beside.py).

A folder of `Dataset.save_to_disk` has `.arrow` files. Files of img2dataset have a row for each
picture that could not be downloaded; these rows are counted as left out.
"""

import functools
import json
import os
import pathlib

import pyarrow
from pyarrow import ipc, parquet

from udd_jax.data.sources import (
    beside,
    captioning,
    downloads,
    listing,
    looks,
    split_names,
    webdataset,
)
from udd_jax.errors import UserError, first_line

_IMAGE_FIELDS = ("image", "img", "jpg", "jpeg", "png", "webp", "image_bytes", "bytes")
_ENDS = (".parquet", ".arrow")
_DAMAGE = (OSError, ValueError, pyarrow.ArrowException)
_CLASSES = ("label", "labels")


class _Arrow:
    """An Arrow file, a stream or a file of `ipc`, with the methods of `ParquetFile`."""

    def __init__(self, path):
        with pyarrow.memory_map(str(path)) as file:
            try:
                table = ipc.open_stream(file).read_all()
            except pyarrow.ArrowInvalid:
                file.seek(0)
                table = ipc.open_file(file).read_all()
        table.validate(full=True)  # offsets of damaged files would be followed out of memory
        self._batches, self.schema_arrow = table.to_batches(), table.schema
        self.num_row_groups, self.metadata = len(self._batches), self

    def row_group(self, group: int):
        return self._batches[group]

    def read_row_group(self, group: int, columns: list[str]) -> pyarrow.Table:
        return pyarrow.Table.from_batches([self._batches[group]]).select(columns)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@functools.lru_cache(4)
def _arrow(path: str, written) -> _Arrow:
    """An Arrow file that was written at that time; it is checked as a whole, so only once."""
    return _Arrow(path)


def _open(path):
    path = str(path)
    if path.lower().endswith(".arrow"):
        return _arrow(path, looks.written(path))
    return parquet.ParquetFile(path)


def read(where: tuple[str, str, int, int]) -> bytes:
    """The image bytes at (file, column, row group, row)."""
    path, column, group, row = where
    try:
        value = _images(path, column, group, looks.written(path))[row]
    except (*_DAMAGE, IndexError) as error:
        raise UserError(f"{path}, row group {group} is damaged: {first_line(error)}") from None
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f"{path}, row group {group}, row {row} has no image bytes in {column!r}")
    return content


def read_value(where: tuple[str, str, int, int, bool, bool]):
    """The value at (file, column, row group, row, words, labels): bytes, or rows of ids, or a text,
    or a label; None for an empty cell.

    A path in a cell is relative to the file; with `words` a string is the value itself,
    and with `labels` a whole number.
    """
    path, column, group, row, *kinds = where
    try:
        cell = _values(path, column, group, looks.written(path))[row]
    except (*_DAMAGE, IndexError) as error:
        raise UserError(f"{path}, row group {group} is damaged: {first_line(error)}") from None
    found = beside.place(cell, functools.partial(beside.inside, os.path.dirname(path)), *kinds)
    if isinstance(found, listing.Broken):
        raise UserError(found.cause)
    if isinstance(found, str):
        return pathlib.Path(found).read_bytes()
    return found and found.content


def _column(path: str, column: str, group: int, written) -> list:
    with _open(path) as file:
        return file.read_row_group(group, columns=[column])[column].to_pylist()


_images, _values = functools.lru_cache(4)(_column), functools.lru_cache(4)(_column)


def items(
    path,
    image_field=None,
    caption_field=None,
    split_field="split",
    further=None,
    incomplete: bool = False,
) -> list[listing.Item]:
    """The rows of all files, in order. `caption_field` may name several columns: "a,b".

    further: {modality: its `beside.Reader`}; incomplete: whether items may lack their image.
    """
    files, root = webdataset.shards(path, _ENDS)
    splits, found = split_names.of_shards(files, root), []
    for file, split in zip(files, splits, strict=True):
        name = str(file.relative_to(root))
        try:
            table = _open(file)
        except _DAMAGE as error:
            broken = listing.Broken(f"unreadable: {first_line(error)}")
            found.append(listing.Item(name, broken, (), {}, split))
            continue
        fields = image_field, caption_field, split_field, further or {}, incomplete
        with table:
            found += _rows(table, str(file), name, split, *fields)
    found += webdataset.gone(str(path), files, root, _ENDS)
    return found + webdataset.others(str(path), files, root)


def _rows(table, file, name, split, image_field, caption_field, split_field, further, incomplete):
    columns = table.schema_arrow.names
    images = [image_field] if image_field else [n for n in _IMAGE_FIELDS if n in columns]
    named = {n: reader.field for n, reader in further.items() if reader.field}
    for modality, column in named.items():
        if column not in columns:
            raise UserError(
                f"{name} has the columns {columns}, expected {column!r} of the {modality}: set "
                f"modalities.{modality}.field"
            )
    if not images and incomplete:
        images = [None]
    elif not images or images[0] not in columns:
        wanted = image_field or " or ".join(_IMAGE_FIELDS)
        raise UserError(
            f"{name} has the columns {columns}, expected {wanted}; name it with image_field "
            f"(--config.data_options.image_field=){_hint(columns)}"
        )
    classes = _classes(table.schema_arrow)
    values_of = set(named.values()) - {classes[0] if classes else None}  # a label may be a caption
    others = [
        field.name
        for field in table.schema_arrow
        if field.name not in (images[0], *values_of) and "binary" not in str(field.type)
    ]
    kinds = {m: (further[m].words, further[m].labels) for m in named}
    number, used = 0, {images[0], *others, *named.values()}
    ignored = tuple(
        f"the column {listing.printable(n)} (--config.data_options.image_field=, or modalities.NAME"
        ".field, chooses another)"
        for n in columns
        if n not in used
    )
    for group in range(table.num_row_groups):
        count = table.metadata.row_group(group).num_rows
        try:
            rows = [{} for _ in range(count)]  # of pictures or values alone
            if others:
                rows = table.read_row_group(group, columns=others).to_pylist()
            lacks = _lacks_image(table, group, images[0]) if incomplete else ()
        except _DAMAGE as error:
            for _ in range(count):
                broken = listing.Broken(f"row group {group} is damaged: {first_line(error)}")
                yield listing.Item(f"{name}/{number}", broken, (), {}, split)
                number += 1
            continue
        for row, values in enumerate(rows):
            where, key = f"{name}, row {number}", f"{name}/{number}"
            number += 1
            status = values.get("status", downloads.STORED)
            if str(status).startswith("failed_to_"):
                yield listing.Item(key, listing.Left(downloads.cause_of(status)), ())
                continue
            if not caption_field and not _captioned(values) and classes:
                values["text"] = classes[1].get(values[classes[0]])
            fields = caption_field.split(",") if caption_field else [None]
            said = (captioning.captions_of(values, field, where, incomplete) for field in fields)
            captions = sum(said, ())
            own_split = split_names.field(values, split_field)
            known = {*fields, own_split, *named.values()}
            extra = {k: v for k, v in values.items() if k not in known and not _captioned((k,))}
            own = split_names.said(values.get(own_split), where) or split
            image = None if row in lacks else (file, images[0], group, row)
            places = {m: (file, c, group, row, *kinds[m]) for m, c in named.items()}
            unused = (*captioning.not_used(values, caption_field), *ignored)
            yield listing.Item(key, image, captions, extra, own, places, unused)


def _lacks_image(table, group: int, column: str | None) -> set[int]:
    """The rows of a group whose image is empty; all of them without a column of images."""
    if column is None:
        return set(range(table.metadata.row_group(group).num_rows))
    cells = table.read_row_group(group, columns=[column])[column]
    return {row for row, empty in enumerate(cells.is_null().to_pylist()) if empty}


def _captioned(names) -> bool:
    """Whether one of the columns has captions."""
    return any(str(name).strip().lower() in captioning.CAPTION_FIELDS for name in names)


def _classes(schema) -> tuple[str, dict[int, str]] | None:
    """(the column of classes, {class: its name in words}), as `datasets` notes them in a file."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        column = next(name for name in _CLASSES if name in features and name in schema.names)
        names = features[column]["names"]
        if isinstance(names, list):
            return column, {n: str(name).replace("_", " ") for n, name in enumerate(names)}
    except (KeyError, TypeError, ValueError, StopIteration, RecursionError):
        pass
    return None


def _hint(columns) -> str:
    """What a table without pictures is, for a message."""
    if any(name.lower() in ("url", "image_url") for name in columns):
        return (
            "; it has the addresses of pictures and no pictures: download them first (img2dataset),"
            " then --config.data=webdataset:PATH names what was downloaded"
        )
    return ""


def source(
    path,
    split,
    *,
    image_field=None,
    caption_field=None,
    split_field="split",
    further=None,
    incomplete=False,
    **shares,
) -> listing.Listing:
    """The rows of one split of parquet files.

    further, incomplete: as in `items`; `shares` as in `listing.choose`.
    """
    found = items(path, image_field, caption_field, split_field, further, incomplete)
    about = {"further": further, "read_value": read_value} | shares
    return listing.choose(f"parquet {path}", found, read, split, **about)
