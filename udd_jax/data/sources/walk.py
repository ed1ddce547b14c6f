"""The files of a folder: one walk finds pictures, the texts beside them, lists and values.

The ending of a file says what it is; where it does not, the first bytes do. Only files without an
ending, or with one that is not known, are opened. The walk follows links and visits each real
folder once. Names that begin with a dot, and `__MACOSX`, are ignored.
"""

import fnmatch
import functools
import os
import pathlib
import re
import unicodedata
from collections.abc import Iterator

from udd_jax.data import marks, pixels
from udd_jax.data.sources import beside, captioning, listing, split_names, tables

# Pictures that are there and cannot be decoded, or not safely: to be counted.
UNREAD = frozenset(
    (
        *(".heic", ".heif", ".jxl", ".eps", ".ps", ".svg", ".svgz", ".pdf", ".wmf", ".emf"),
        *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw", ".orf"),
    )
)
MOVED = "; if they moved, name the new place in --config.data=, and a run goes on with them"
# Not opened to see whether they are pictures.
OTHERS = frozenset(
    (
        *(".csv", ".tsv", ".jsonl", ".parquet", ".arrow", ".token", ".npy", ".npz", ".pt", ".pth"),
        *(".pkl", ".h5", ".tfrecord", ".safetensors", ".wav", ".mp3", ".flac", ".ogg", ".m4a"),
        *(".mp4", ".webm", ".avi", ".mov", ".mkv", ".zip", ".tar", ".gz", ".tgz", ".xz", ".7z"),
        *(".md", ".rst", ".html", ".htm", ".css", ".js", ".xml", ".yaml", ".yml", ".toml", ".ini"),
        *(".py", ".ipynb", ".sh", ".log", ".db", ".cls", ".cls2", ".index", ".idx"),
    )
)
# Formats of cameras: their mark is that of TIFF, and what Pillow reads of them is a preview.
_CAMERAS = frozenset((".cr2", ".cr3", ".nef", ".arw", ".dng", ".raw", ".orf"))
_COCO = ("captions_*.json", "dataset_*.json")
_SHOWN = 5  # names in a message
_TOKENS = ("*.token", "*.token.txt", "results*.csv")


def names_data(parts) -> bool:
    """False for a path with a part that begins with a dot, or is `__MACOSX` (Finder's archives)."""
    return not any(
        part == "__MACOSX" or (part.startswith(".") and part.strip("./")) for part in parts
    )


def kind(end: str) -> str | None:
    """What a file with this ending, in lower case, is without a look at it: "picture", "unread"
    (a picture that cannot be read), "text" or "other"; None if its content has to say.

    A picture of a phone, such as JPEG, is often called .heic, so that is looked at, too.
    """
    if end in pixels.suffixes():
        return "picture"
    if end in captioning.ENDS:
        return "text"
    return "unread" if end in _CAMERAS else "other" if end in OTHERS else None


def tree(root: str | os.PathLike) -> Iterator[tuple[str, list[str]]]:
    """(folder, the sorted names of its files that are data) of a folder and of all below it.

    Links are followed, and each real folder is visited once.
    """
    seen = set()
    for folder, below, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder inside, or above
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if names_data((name,)))
        yield folder, sorted(name for name in names if names_data((name,)))


class Files:
    """The files in a folder: one walk.

    Attributes:
        pictures, unread: paths of pictures, and of those in formats that are not read.
        texts, values: {path without its ending: {ending, or modality: path}}.
        others: paths of all other files.
        doubtful: (path, `listing.Left`) of what cannot be used, and why.
        folders: {path: names of its files}.
    """

    def __init__(self, root: pathlib.Path, further=None, incomplete=False):
        self.root, self.pictures, self.unread, self.folders = root, [], [], {}
        self.texts, self.values, self.others, self.doubtful = {}, {}, [], []
        self.classes = []  # names of folders that became captions
        self.further, self.incomplete = further or {}, incomplete
        for folder, names in tree(root):
            self.folders[folder] = names
            for name in names:
                stem, end = os.path.splitext(name)
                place = os.path.join(folder, name)
                if owner := beside.owner(name, self.further):
                    self._add_value(folder, name, owner)
                else:
                    self._add(place, os.path.join(folder, stem), end.lower())
        self.pictures.sort()
        alone = self.alone() if incomplete else ()
        parents = {self.parts(place)[:-1] for place in (*self.pictures, *alone)}
        self.splits = split_names.Folders(parents)
        self.list_splits = {}  # of `_of_splits`

    def _add(self, place: str, stem: str, end: str):
        what = kind(end)
        if what == "text":
            own = self.texts.setdefault(stem, {})
            if own.setdefault(end, place) != place:  # a.txt and a.TXT
                self.doubtful.append((place, listing.Left("a second text of its name")))
        elif what == "picture" or (what is None and marks.is_picture(place)):
            self.pictures.append(place)
        else:
            (self.unread if end in UNREAD else self.others).append(place)

    def _add_value(self, folder: str, name: str, owner: tuple[str, str]):
        stem, modality = owner
        place = os.path.join(folder, name)
        if not modality:
            self.doubtful.append((place, beside.unnamed(name, self.further)))
            return
        own = self.values.setdefault(os.path.join(folder, stem), {})
        if own.setdefault(modality, place) != place:
            self.doubtful.append((place, listing.Left(f"a second {modality} of its name")))

    def values_of(self, place: str) -> dict:
        """{modality: file} beside a picture, of its name with or without its ending."""
        return self.values.get(os.path.splitext(place)[0], {}) | self.values.get(place, {})

    def alone(self) -> list[str]:
        """The stems of texts and values without a picture of their name, sorted."""
        whole = {os.path.splitext(place)[0] for place in (*self.pictures, *self.unread)}
        return sorted({*self.texts, *self.values} - whole - {*self.pictures, *self.unread})

    def key(self, place: str) -> str:
        """The path below the root."""
        above = f"{self.root}{os.sep}"  # as the walk has it; a path in a list may begin otherwise
        inside = place.startswith(above)
        return place[len(above) :] if inside else os.path.relpath(place, self.root)

    def parts(self, place: str) -> tuple[str, ...]:
        return tuple(self.key(place).split(os.sep))

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
            low = {name.lower(): name for name in reversed(names)}
            own = [
                low[f"{stem}{end}"]
                for stem in ("captions", "metadata")
                for end in tables.READERS
                if f"{stem}{end}" in low
                and not (end in captioning.ENDS and os.path.join(folder, stem) in stems)
            ]
            own += [n for p in _TOKENS for n in names if fnmatch.fnmatchcase(n.lower(), p)]
            found[folder] = [n for n in own if ".lemma." not in n]
        return self._outermost(found)

    def lists_of_any_name(self, field: str | None):
        """The tables whose first row names a picture and a caption, as of `lists`; none if any
        picture has a text beside it."""
        stems = {os.path.splitext(place)[0] for place in self.pictures}
        if (stems | set(self.pictures)) & set(self.texts):
            return [], []
        ends = tuple(set(tables.READERS) - set(captioning.ENDS))
        return self._outermost(
            {
                folder: [
                    name
                    for name in names
                    if name.lower().endswith(ends) and self._is_list(folder, name, field)
                ]
                for folder, names in self.folders.items()
            }
        )

    def _is_list(self, folder: str, name: str, field: str | None) -> bool:
        table = pathlib.Path(folder, name)
        try:
            row = next(iter(tables.rows(table)))
            files = [value for key, value in row.items() if str(key).lower() in tables.FILE_FIELDS]
            captions = captioning.captions_of(row, field, name)
            return bool(captions) and isinstance(self.find(files[0], table.parent), str)
        except (OSError, ValueError, TypeError, AttributeError, IndexError, StopIteration):
            return False  # whatever it is, it is not a list

    def _outermost(self, found: dict[str, list[str]]):
        used, others = [], []
        for folder, names in found.items():
            own = [pathlib.Path(folder, name) for name in names]
            if own and not any(table.parent in own[0].parent.parents for table in used):
                mine = self._of_splits(own) or own[:1]
                used += mine
                own = [table for table in own if table not in mine]
            others += own
        return used, others

    def _of_splits(self, tables_: list[pathlib.Path]) -> list[pathlib.Path]:
        """The tables of a folder that are one each for several splits, by their names, which
        `list_splits` then has; none if they are not."""
        first = {table.stem: table for table in reversed(tables_)}  # of several formats one
        named = {table: split_names.named(stem) for stem, table in first.items()}
        named = {table: split for table, split in sorted(named.items()) if split}
        if len(set(named.values())) < 2:
            return []
        self.list_splits |= {str(table): split for table, split in named.items()}
        return list(named)

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

    def find(self, name: str, folder: str | pathlib.Path, anywhere=True) -> str | listing.Broken:
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
        return (
            self._anywhere(name, place, shown) if anywhere else listing.Broken(f"no file {shown}")
        )

    def _anywhere(self, name: str, place: str, shown: str) -> str | listing.Broken:
        found = by_end(self._ends, name) or self._without_ending(name, place)
        if len(found) == 1:
            return found[0]
        if found:
            some = " and ".join(listing.printable(self.key(place)) for place in found[:2])
            return listing.Broken(f"{shown} is not there, and may be {some}; name its folder")
        return listing.Broken(f"there is no file {shown}")

    @functools.cached_property
    def _ends(self) -> dict:
        return by_name(self.pictures)

    @functools.cached_property
    def _stems(self) -> dict[str, list[str]]:
        """{path without its ending: the pictures}."""
        found = {}
        for picture in self.pictures:
            found.setdefault(os.path.splitext(picture)[0], []).append(picture)
        return found

    @functools.cached_property
    def _stem_ends(self) -> dict:
        return by_name(self._stems)

    def _without_ending(self, name: str, place: str) -> list[str]:
        """The pictures that a list names without their ending: beside it, else anywhere."""
        if os.path.splitext(name)[1].lower() in pixels.suffixes():
            return []
        stems = [place] if place in self._stems else by_end(self._stem_ends, name)
        return [picture for stem in stems for picture in self._stems[stem]]


def by_name(places) -> dict[tuple[str, ...], list[str]]:
    """{the last part, or the last two: the paths that end in them}."""
    found = {}
    for place in places:
        parts = _composed(place)
        for last in {parts[-1:], parts[-2:]}:
            found.setdefault(last, []).append(str(place))
    return found


def by_end(named: dict[tuple[str, ...], list[str]], name: str) -> list[str]:
    """The paths of `by_name` that share the largest number of last parts with `name`."""
    wanted = _parts(name)[::-1]
    best, most = [], 0
    two, one = tuple(wanted[1::-1]), tuple(wanted[:1])
    for place in named.get(two) or named.get(one, ()):
        parts = _composed(place)[::-1]
        pairs = zip(wanted, parts, strict=False)
        agree = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(parts)))
        if agree > most:
            best, most = [], agree
        best += [place] if agree == most else []
    return best


def not_their_own(found: dict[int, tuple[str, str]]) -> list[int]:
    """The rows of a list, {row: (name, the place found for it)}, whose place is another name's.

    `by_end` takes a picture for another of the same base name if that is not there. So where names
    lead to one place, it belongs to those that it ends in, if there are any.
    """
    parts, names = {row: tuple(_parts(name)) for row, (name, _) in found.items()}, {}
    for row, (_, place) in found.items():
        names.setdefault(place, set()).add(parts[row])

    def ends_in(place, own):
        return _composed(place)[-len(own) :] == own

    shared = [row for row, (_, place) in found.items() if len(names[place]) > 1]
    return [row for row in shared if not ends_in(found[row][1], parts[row])]


def _parts(name: str) -> list[str]:
    name = unicodedata.normalize("NFC", name)
    return [part for part in re.split(r"[\\/]+", name) if part not in ("", ".", "..")]


def _composed(place) -> tuple[str, ...]:
    """The parts of a path, with accents as lists have them: a Mac writes them as two characters."""
    return pathlib.PurePath(unicodedata.normalize("NFC", str(place))).parts
