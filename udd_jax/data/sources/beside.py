"""Where records have their values of further modalities, such as a sound, and who reads them.

    a.png   a.txt   a.wav   a.seg.png        files of one stem are one record
    a.png   a.txt   a.voice.wav   a.music.wav   a.second.txt

`STEM.NAME.END` is a value of the modality NAME. `STEM.END` is one as well if the run has one
modality with this ending. In a table, `modalities.NAME.field` of the config names the field: a path
in the folder of the table, bytes, {"bytes", "path"} as Hugging Face stores sounds and pictures, or
rows of ids. The field of a text has the text itself, and that of a layout may have one id, which is
a map of one cell (a class label).
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping

import numpy as np

from udd_jax.data.sources import listing


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the values of a modality are found and read.

    Attributes:
        read: the bytes of a file, or rows of ids -> an array, the same shape for every record, or
            for a text a string; None if nothing is in it; ValueError, one line, for anything else.
        endings: of files with the name of the modality, in lower case, with their dot.
        alone: the endings that need no name.
        field: the field of a table, "" for none.
        words: whether a string in that field is the value itself, and not the path of its file.
        labels: whether a whole number in it is the value itself.
    """

    read: Callable[[object], np.ndarray]
    endings: tuple[str, ...]
    alone: tuple[str, ...]
    field: str = ""
    words: bool = False
    labels: bool = False


def owner(name: str, further: Mapping[str, Reader]) -> tuple[str, str] | None:
    """(stem, modality) of a file name; None for other files.

    The modality is "" if the name leaves open which of several it is.
    """
    low = name.lower()
    for modality, reader in further.items():
        for ending in reader.endings:
            if low.endswith(f".{modality}{ending}"):
                return name[: -len(f".{modality}{ending}")], modality
    fits = {
        (ending, modality)
        for modality, reader in further.items()
        for ending in reader.alone
        if low.endswith(ending)
    }
    if not fits:
        return None
    ending = max(ending for ending, _ in fits)
    return name[: -len(ending)], fits.pop()[1] if len(fits) == 1 else ""


def unnamed(name: str, further: Mapping[str, Reader]) -> listing.Left:
    """Why a file whose modality is left open is not used."""
    names = [m for m, reader in further.items() if name.lower().endswith(reader.alone)]
    (end,) = (end for end in further[names[0]].alone if name.lower().endswith(end))
    shown = " or ".join(f"{name[: -len(end)]}.{modality}{end}" for modality in names)
    return listing.Left(f"may be of {' or '.join(names)}: call it {shown}")


def places(row: Mapping, further: Mapping[str, Reader], find) -> dict:
    """{modality: where its value is} for the fields of a row, without empty ones.

    find: the path in a field -> its place, or `listing.Broken`.
    """
    listed = {name: reader for name, reader in further.items() if reader.field}
    found = {name: place(row.get(r.field), find, r.words, r.labels) for name, r in listed.items()}
    return {name: where for name, where in found.items() if where is not None}


def place(cell, find, words: bool = False, labels: bool = False):
    """Where the value of a field is; None if it is empty. find: as in `places`; words, labels: of
    the reader."""
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return None
    if isinstance(cell, float) and math.isnan(cell):  # a label that a table lacks
        return None
    if labels and re.fullmatch(r"\s*-1(\.0*)?\s*", str(cell)):  # no label, as `datasets` writes it
        return None
    if labels and re.fullmatch(r"\s*\d{1,9}(\.0*)?\s*", str(cell)):
        return listing.Inline(int(float(cell)))
    if isinstance(cell, str):
        return listing.Inline(cell) if words else find(cell)
    if isinstance(cell, bytes | list | np.ndarray):
        return listing.Inline(cell)
    what = "a path, bytes, rows or a whole number" if labels else "a path, bytes or rows"
    return listing.Broken(f"{type(cell).__name__} {str(cell)[:40]}, expected {what}")


def inside(folder: str, name: str) -> str | listing.Broken:
    """The file `name` in a folder, or the reason why it is not there."""
    base = os.path.normpath(os.path.abspath(folder))
    path = os.path.normpath(os.path.join(base, name.replace("\\", "/")))
    shown = listing.printable(repr(name))
    if not path.startswith(base.rstrip(os.sep) + os.sep):
        return listing.Broken(f"{shown} lies outside of the folder {folder}")
    return path if os.path.isfile(path) else listing.Broken(f"there is no file {shown}")


def fields(further: Mapping[str, Reader]) -> set[str]:
    """The fields of tables that have values."""
    return {reader.field for reader in further.values() if reader.field}
