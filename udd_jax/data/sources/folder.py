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
from udd_jax.data import pixels
from udd_jax.data.sources import beside, listing, split_names, stems, tables
from udd_jax.errors import UserError

# Pictures that are there and cannot be decoded, or not safely: to be counted.
UNREAD = frozenset(
    (
        *(".heic", ".heif", ".jxl", ".eps", ".ps", ".svg", ".svgz", ".pdf", ".wmf", ".emf"),
        *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw", ".orf"),
    )
)
MOVED = "; if they moved, name the new place in --config.data=, and a run goes on with them"
_BESIDE = (".txt", ".caption", ".json")
_COCO = ("captions_*.json", "dataset_*.json")
_SHOWN = 5  # names in a message
_TOKENS = ("*.token", "*.token.txt", "results*.csv")


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
        raise UserError(f"{path} is no folder, expected one with images and captions{MOVED}")
    here = _Files(root, further or {}, incomplete)
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


def pictures(root: pathlib.Path) -> list[pathlib.Path]:
    """The image files of a folder and its subfolders, by their suffix, sorted."""
    return sorted(map(pathlib.Path, _Files(root).pictures))


def names_data(parts) -> bool:
    """False for a path with a part that begins with a dot, or is `__MACOSX` (Finder's archives)."""
    return not any(
        part == "__MACOSX" or (part.startswith(".") and part.strip("./")) for part in parts
    )


class _Files:
    """The files in a folder: one walk that follows links and visits each real folder once."""

    def __init__(self, root: pathlib.Path, further=None, incomplete=False):
        self.root, self.pictures, self.unread, self.folders = root, [], [], {}
        self.texts, self.values, self.unnamed, seen = {}, {}, [], set()
        self.classes = []  # names of folders that became captions
        self.further, self.incomplete = further or {}, incomplete
        known = pixels.suffixes()
        for folder, below, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder inside, or above
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if names_data((name,)))
            self.folders[folder] = sorted(name for name in names if names_data((name,)))
            for name in self.folders[folder]:
                stem, end = os.path.splitext(name)
                place = os.path.join(folder, name)
                if owner := beside.owner(name, self.further):
                    self._add_value(folder, name, owner)
                elif end.lower() in known:
                    self.pictures.append(place)
                elif end.lower() in UNREAD:
                    self.unread.append(place)
                elif end.lower() in _BESIDE:
                    self.texts.setdefault(os.path.join(folder, stem), {})[end.lower()] = place
        self.pictures.sort()
        self._ends = None
        alone = self.alone() if incomplete else ()
        parents = {self.parts(place)[:-1] for place in (*self.pictures, *alone)}
        self.splits = split_names.Folders(parents)

    def _add_value(self, folder: str, name: str, owner: tuple[str, str]):
        stem, modality = owner
        place = os.path.join(folder, name)
        if modality:
            self.values.setdefault(os.path.join(folder, stem), {})[modality] = place
        else:
            self.unnamed.append((place, beside.unnamed(name, self.further)))

    def values_of(self, place: str) -> dict:
        """{modality: file} beside a picture, of its name with or without its ending."""
        return self.values.get(os.path.splitext(place)[0], {}) | self.values.get(place, {})

    def alone(self) -> list[str]:
        """The stems of texts and values without a picture of their name, sorted."""
        whole = {os.path.splitext(place)[0] for place in (*self.pictures, *self.unread)}
        return sorted({*self.texts, *self.values} - whole - {*self.pictures, *self.unread})

    def key(self, place: str) -> str:
        return os.path.relpath(place, self.root)

    def parts(self, place: str) -> tuple[str, ...]:
        return pathlib.PurePath(self.key(place)).parts

    def split(self, place: str) -> str | None:
        """The split of the folder of an image."""
        return self.splits.split(self.parts(place)[:-1])

    def notes(self) -> list[str]:
        """How splits and captions were decided, in lines."""
        if not self.classes:
            return self.splits.notes()
        some = listing.printable(", ".join(self.classes[:_SHOWN]))
        more = f" and {len(self.classes) - _SHOWN} more" if len(self.classes) > _SHOWN else ""
        return [f"captions are the names of folders: {some}{more}", *self.splits.notes()]

    def lists(self) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
        """(the lists of captions that are used, those that are not).

        Of each outermost folder with lists, the first list is used.
        """
        stems, found = {os.path.splitext(place)[0] for place in self.pictures}, {}
        for folder, names in self.folders.items():
            own = [
                f"{stem}{end}"
                for stem in ("captions", "metadata")
                for end in tables.READERS
                if f"{stem}{end}" in names
                and not (end in _BESIDE and os.path.join(folder, stem) in stems)
            ]
            own += [n for p in _TOKENS for n in names if pathlib.PurePath(n).match(p)]
            found[folder] = [n for n in own if ".lemma." not in n]
        return self._outermost(found)

    def lists_of_any_name(self, field: str | None):
        """The tables whose first row names a picture and a caption, as of `lists`; none if any
        picture has a text beside it."""
        stems = {os.path.splitext(place)[0] for place in self.pictures}
        if (stems | set(self.pictures)) & set(self.texts):
            return [], []
        ends = tuple(set(tables.READERS) - set(_BESIDE))
        return self._outermost(
            {
                folder: [n for n in names if n.endswith(ends) and self._is_list(folder, n, field)]
                for folder, names in self.folders.items()
            }
        )

    def _is_list(self, folder: str, name: str, field: str | None) -> bool:
        table = pathlib.Path(folder, name)
        try:
            row = next(iter(tables.rows(table)))
            files = [value for key, value in row.items() if str(key).lower() in tables.FILE_FIELDS]
            captions = listing.captions_of(row, field, name)
            return bool(captions) and isinstance(self.find(files[0], table.parent), str)
        except (OSError, ValueError, TypeError, AttributeError, IndexError, StopIteration):
            return False  # whatever it is, it is no list

    def _outermost(self, found: dict[str, list[str]]):
        used, others = [], []
        for folder, names in found.items():
            own = [pathlib.Path(folder, name) for name in names]
            if own and not any(table.parent in own[0].parent.parents for table in used):
                used.append(own.pop(0))
            others += own
        return used, others

    def hint(self) -> str:
        """What other kind the folder may be, for a message."""
        names = {name for names in self.folders.values() for name in names}
        for kind, ends in (
            ("webdataset", (".tar", ".tar.gz", ".tgz")),
            ("parquet", (".parquet", ".arrow")),
            ("cub", ("train_test_split.txt",)),
        ):
            if any(name.lower().endswith(ends) for name in names):
                return f" and {ends[0]} files: try --config.data={kind}:{self.root}"
        if any(pathlib.PurePath(name).match(p) for name in names for p in _COCO):
            return f" and an annotation file of COCO: try --config.data=coco:{self.root}"
        return ""

    def find(self, name: str, folder: pathlib.Path, anywhere=True) -> str | listing.Broken:
        """The file that a list in `folder` names `name`, or the reason why there is none.

        anywhere: whether a picture of this name elsewhere will do.
        """
        shown = listing.printable(repr(name))
        place = os.path.normpath(os.path.join(folder, name))
        if not os.path.exists(place):
            name = name.replace("\\", "/")
            place = os.path.normpath(os.path.join(folder, name))
        base = os.path.normpath(os.path.abspath(self.root))
        if not os.path.abspath(place).startswith(base.rstrip(os.sep) + os.sep):
            return listing.Broken(f"{shown} lies outside of the folder {self.root}")
        if os.path.isfile(place):
            return place
        return self._anywhere(name, shown) if anywhere else listing.Broken(f"no file {shown}")

    def _anywhere(self, name: str, shown: str) -> str | listing.Broken:
        if self._ends is None:
            self._ends = by_name(self.pictures)
        found = by_end(self._ends, name)
        if len(found) == 1:
            return found[0]
        if found:
            some = " and ".join(listing.printable(self.key(place)) for place in found[:2])
            return listing.Broken(f"{shown} is not there, and may be {some}; name its folder")
        return listing.Broken(f"there is no file {shown}")


def by_name(places) -> dict[str, list[str]]:
    """{file name: the paths that end in it}."""
    found = {}
    for place in places:
        found.setdefault(os.path.basename(place), []).append(str(place))
    return found


def by_end(named: dict[str, list[str]], name: str) -> list[str]:
    """The paths of `by_name` that share the largest number of last parts with `name`."""
    wanted = [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")][::-1]
    best, most = [], 0
    for place in named.get(wanted[0], ()) if wanted else ():
        parts = pathlib.PurePath(place).parts[::-1]
        pairs = zip(wanted, parts, strict=False)
        agree = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(parts)))
        if agree > most:
            best, most = [], agree
        best += [place] if agree == most else []
    return best


def _listed(here: _Files, table: pathlib.Path, field, split_field) -> list[listing.Item]:
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


def _merged(found: list[listing.Item], here: _Files) -> list[listing.Item]:
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


def _flickr_splits(here: _Files) -> dict[str, str]:
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
