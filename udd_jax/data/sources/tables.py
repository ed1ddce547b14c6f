"""Lists of captions in a file: rows of JSON, CSV, TSV, Parquet, or plain text with tabs.

A row is a dict {field: value}, or a `listing.Broken` with the reason why it cannot be read.
`folder.py` looks for images and captions in the fields.
"""

import csv
import pathlib

from udd_jax.data import captions as texts
from udd_jax.data.sources import captioning, listing
from udd_jax.errors import UserError

FILE_FIELDS = (  # names of the column that has the files
    *("file_name", "filename", "file", "image", "path", "image_path"),
    *("image_name", "img", "img_path", "file_path", "filepath"),
)


def rows(table: pathlib.Path):
    """Yields the rows of a table. ValueError if the whole file is damaged."""
    end = table.suffix.lower()
    return READERS[".txt" if end == ".token" else end](table)


def _object(row):
    return row if isinstance(row, dict | listing.Broken) else listing.Broken("no object")


def _jsonl(path: pathlib.Path):
    for line in filter(str.strip, texts.decode(path.read_bytes()).split("\n")):
        try:
            yield _object(texts.parse_json(line))
        except ValueError as error:
            yield listing.Broken(str(error))


def _json(path: pathlib.Path):
    """A list of rows, or an object from file names to captions, or to rows."""
    try:
        content = texts.parse_json(texts.decode(path.read_bytes()))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if isinstance(content, dict) and {"images", "annotations"} <= set(content):
        raise UserError(f"{path} is an annotation file of COCO: --config.data=coco:{path.parent}")
    if not isinstance(content, dict):
        yield from map(_object, content if isinstance(content, list) else [content])
        return
    for name, value in content.items():
        row = value if isinstance(value, dict) else {"captions": value}
        yield {"file_name": name} | row


def _csv(path: pathlib.Path):
    yield from _separated(path, ",;\t|")


def _tsv(path: pathlib.Path):
    yield from _separated(path, "\t,;|")


def _txt(path: pathlib.Path):
    """Rows of `file<tab>caption`, or a table whose first line has names, as `image,caption`."""
    lines = texts.decode(path.read_bytes()).split("\n")
    if _delimiter(lines[0], "\t,;|") is not None:
        yield from _separated(path, "\t,;|")
        return
    for line in filter(str.strip, lines):
        name, tab, caption = line.partition("\t")
        if tab:
            yield {"file_name": name.strip(), "caption": caption}
        else:
            yield listing.Broken("no tab between a file and its caption")


def _delimiter(header: str, delimiters: str) -> str | None:
    """The delimiter for which the first line has a column of files."""
    for delimiter in delimiters:
        names = [name.strip().strip('"').lower() for name in header.split(delimiter)]
        if len(names) > 1 and set(names) & set(FILE_FIELDS):
            return delimiter
    return None


def _separated(path: pathlib.Path, delimiters: str):
    """The rows of a table whose first line has the names.

    A row with too many fields is a fault, except in a table of two columns with the caption last:
    then the extra fields belong to the caption. A quotation mark that never closes is an error,
    since it would include the rows after it.
    """
    lines = texts.decode(path.read_bytes()).split("\n")
    delimiter = _delimiter(lines[0], delimiters) or delimiters[0]
    reader = csv.reader((line + "\n" for line in lines), delimiter=delimiter, strict=True)
    header, number, line = None, 0, 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{path}, row {number + 1 if header else 0} (line {line}): {error}; a quotation "
                'mark in a field is written twice, and the field in quotation marks: "a ""b"" c"'
            ) from None
        if row is None:
            return
        if not any(field.strip() for field in row):
            continue
        if header is None:
            header = _unlike([name.strip() for name in row])
            continue
        number += 1
        two = len(header) == 2 and header[1].lower() in captioning.CAPTION_FIELDS
        if len(row) > len(header) and two:
            row = [row[0], delimiter.join(row[1:])]
        if len(row) > len(header):
            yield listing.Broken(
                f"{len(row)} fields (line {line}), expected the {len(header)} of the first line: "
                f"put a field with {delimiter!r} in quotation marks"
            )
            continue
        yield dict(zip(header, row, strict=False))


def _unlike(header: list[str]) -> list[str]:
    """The names of columns; a name that was there before gets a number, so that none is lost."""
    found = []
    for name in header:
        number = header[: len(found)].count(name) + 1
        found.append(name if number == 1 else f"{name} {number}")
    return found


def _parquet(path: pathlib.Path):
    import pyarrow  # slow to import, and few need it
    from pyarrow import parquet

    try:
        yield from parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} is unreadable: {why}") from None


READERS = {  # by suffix; a folder's first list is taken in this order
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    ".json": _json,
    ".tsv": _tsv,
    ".txt": _txt,
}
