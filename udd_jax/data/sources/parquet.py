"""Parquet files with image bytes and captions in columns: the Hugging Face `datasets` layout.

The image column holds struct{bytes, path} or plain bytes. The caption column holds a text or a list
of texts; several columns with one text each are possible, too. Captions are read when the files are
opened. Images are read on access, one row group at a time: neighbours are cheap, a jump costs a row
group. A column "split", or train, validation or test in the name of a file, gives the split.
"""

import functools

from pyarrow import parquet

from udd_jax.data.sources import listing, webdataset
from udd_jax.errors import UserError

_IMAGE_FIELDS = ("image", "img", "jpg", "png", "image_bytes", "bytes")


def read(where: tuple[str, str, int, int]) -> bytes:
    """The image bytes at (file, column, row group, row)."""
    path, column, group, row = where
    value = _images(path, column, group)[row]
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise UserError(f"{path}, row group {group}, row {row} has no image bytes in {column!r}")
    return content


@functools.lru_cache(4)
def _images(path: str, column: str, group: int) -> list:
    with parquet.ParquetFile(path) as file:
        return file.read_row_group(group, columns=[column])[column].to_pylist()


def items(path, image_field=None, caption_field=None, split_field="split") -> list[listing.Item]:
    """The rows of all files, in order. `caption_field` may name several columns: "a,b"."""
    files, root = webdataset.shards(path, (".parquet",))
    splits, found = listing.splits_of_shards(files, root), []
    for file, split in zip(files, splits, strict=True):
        name = str(file.relative_to(root))
        try:
            table = parquet.ParquetFile(file)
        except (OSError, ValueError) as error:
            broken = listing.Broken(f"unreadable: {str(error).splitlines()[0]}")
            found.append(listing.Item(name, broken, (), {}, split))
            continue
        fields = image_field, caption_field, split_field
        with table:
            found += _rows(table, str(file), name, split, *fields)
    return found


def _rows(table, file, name, split, image_field, caption_field, split_field):
    columns = table.schema_arrow.names
    images = [image_field] if image_field else [n for n in _IMAGE_FIELDS if n in columns]
    if not images or images[0] not in columns:
        wanted = image_field or " or ".join(_IMAGE_FIELDS)
        raise UserError(
            f"{name} has the columns {columns}, expected {wanted}; name it with image_field "
            "(--config.data_options.image_field=)"
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
            known = {*fields, *listing.CAPTION_FIELDS, split_field}
            extra = {key: value for key, value in values.items() if key not in known}
            own = listing.split_said(values.get(split_field), where) or split
            place = (file, images[0], group, row)
            found = listing.Item(f"{name}/{number}", place, captions, extra, own)
            number += 1
            yield found


def source(
    path, split, *, image_field=None, caption_field=None, split_field="split", **shares
) -> listing.Listing:
    """The rows of one split of parquet files; `shares` as in `listing.choose`."""
    found = items(path, image_field, caption_field, split_field)
    return listing.choose(f"parquet {path}", found, read, split, **shares)
