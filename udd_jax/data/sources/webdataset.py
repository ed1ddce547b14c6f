"""Webdataset shards: tar files in which `KEY.png` and `KEY.json` or `KEY.txt` are one item.

The headers of a shard are scanned once. Then reading an image is one seek and one read, in any
order. Captions come from `KEY.txt`, `.text`, `.caption` or `.json` by the rule of `captioning.py`;
in `.json` the field "split" is the split, and other fields become `extra`. A shard whose folder or
file name has train, val or test belongs to that split. A path may be a folder, a pattern, or
`{0000..0009}.tar`. `.tar.gz` and `.tgz` are unpacked to temporary files, once in a process.

The key of a member is its name up to the last dot. If no caption has this key, it is the name up to
the first dot (`s1.input.jpg` with `s1.output.txt`). Values of further modalities have the same key,
such as `KEY.wav` (beside.py).

Damage is skipped and counted: a bad header (reading continues at the next good one), or a shard
that ends inside a member or between two members. Concatenated tar files are one shard. If
`NAME_stats.json` of img2dataset has the number of items of a shard, lost items are counted, also
those of a shard that is not there, and so are the pictures that it could not download.
"""

import contextlib
import fnmatch
import functools
import glob
import os
import pathlib
import re

from udd_jax.data import marks
from udd_jax.data.sources import (
    beside,
    captioning,
    downloads,
    listing,
    looks,
    split_names,
    tars,
    walk,
)
from udd_jax.errors import UserError

_ENDS = (".tar", ".tar.gz", ".tgz")
_ABOUT = ("dataset_info.json", "state.json", "dataset_dict.json")  # of Hugging Face's `datasets`
_LOST = listing.Broken("an item that the shard's statistics count is not there")


def expand(pattern: str) -> list[str]:
    """`a-{00..02}.tar` -> a-00.tar, a-01.tar, a-02.tar; `{a,b}` likewise; else the pattern."""
    found = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if not found:
        return [pattern]
    first, last, words = found.groups()
    if words is None:
        parts = [f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)]
    else:
        parts = words.split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    return [path for part in parts for path in expand(before + part + after)]


def shards(path: str, ends=_ENDS) -> tuple[list[pathlib.Path], pathlib.Path]:
    """The files of a path, pattern or folder, sorted, and the folder that contains all of them.

    A name of an existing file is not a pattern, such as `[v2].tar`. ValueError if nothing matches,
    or a file of the braces is missing.
    """
    if os.path.isdir(path):
        root = pathlib.Path(path)
        found = [file for file in _below(root) if file.name.lower().endswith(ends)]
    elif os.path.exists(path):
        found, root = [pathlib.Path(path)], pathlib.Path(path).parent
    else:
        patterns = expand(path)
        matches = {p: [p] if os.path.exists(p) else glob.glob(p, recursive=True) for p in patterns}
        lacking = [p for p, files in matches.items() if not files]
        if len(patterns) > 1 and lacking:
            raise UserError(f"{path}: there is no file {lacking[0]}; give those that there are")
        found = [pathlib.Path(file) for files in matches.values() for file in files]
        root = pathlib.Path(re.split(r"[*?\[{]", path)[0] + "x").parent
    if not found:
        raise UserError(f"{path} matches no file, expected one or more {ends[0]} files{walk.MOVED}")
    return sorted(set(found)), root


def _below(root: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder and its subfolders, also links, whose names are data."""
    return [pathlib.Path(folder, name) for folder, names in walk.tree(root) for name in names]


def items(
    path: str,
    caption_field: str | None = None,
    split_field: str = "split",
    further=None,
    incomplete: bool = False,
) -> list[listing.Item]:
    """The items of all shards, in the order of the shards and of their files.

    further: {modality: its `beside.Reader`}; incomplete: whether items may lack their image.
    """
    asked = caption_field, split_field, tuple((further or {}).items()), incomplete
    files, root = shards(path)
    splits, found = split_names.of_shards(files, root), []
    for file, split in zip(files, splits, strict=True):
        changed = looks.written(file), looks.written(_statistics(file))
        found += _shard(file, changed, str(file.relative_to(root)), split, *asked)
    return found + gone(path, files, root) + others(path, files, root)


def others(path: str, files: list[pathlib.Path], root: pathlib.Path) -> list[listing.Item]:
    """What else is in a folder of shards, and what no library has written there about them."""
    left = listing.Left("a file that is not a shard")
    return [
        listing.Item(str(file.relative_to(root)), left, ())
        for file in (sorted(set(_below(root)) - set(files)) if os.path.isdir(path) else ())
        if file.name not in _ABOUT
        and not (file.name.endswith(downloads.END) and downloads.statistics(file))
        and not (file.suffix == ".parquet" and downloads.statistics(_statistics(file)))
    ]


def gone(path: str, files: list[pathlib.Path], root: pathlib.Path, ends=_ENDS):
    """A fault for each item of a shard that is gone, but has statistics; arguments of `shards`."""
    if os.path.isfile(path):
        return []
    places = {file.parent for file in files} | ({root} if os.path.isdir(path) else set())
    patterns = [p.removesuffix(end) for p in expand(path) for end in ends if p.endswith(end)]
    there, found = {_statistics(file) for file in files}, []
    for stats in sorted({stats for place in places for stats in place.glob(f"*{downloads.END}")}):
        name = str(stats.relative_to(root)).removesuffix(downloads.END)
        asked = os.path.isdir(path) or any(fnmatch.fnmatch(_stem(stats), p) for p in patterns)
        if stats not in there and asked and not os.path.isdir(_stem(stats)):
            why = listing.Broken(f"the shard {listing.printable(name)} is not there")
            found += downloads.lost(stats, name, 0, why) + downloads.failed(stats, name)
    return found


def _stem(statistics: pathlib.Path) -> str:
    return str(statistics).removesuffix(downloads.END)


@functools.cache
def _shard(file, changed, name, split, caption_field, split_field, further, incomplete):
    inside = _Inside(str(file), name, split, dict(further))
    for member, content in tars.members(file, inside.pictures):
        inside.add(member, content)
    inside.settle()
    found = inside.items(caption_field, split_field, incomplete)
    found += downloads.lost(_statistics(file), name, len(inside.pictures), _LOST)
    found += downloads.failed(_statistics(file), name)
    return found or [listing.Item(name, listing.Left("a shard without any item"), ())]


class _Inside:
    """What is in a shard: `pictures` {key: place}, `said` {key: {ending: text}}, `values` {key:
    {modality: place}}, and `found`, the items that are left or broken."""

    def __init__(self, file: str, name: str, split: str | None, further: dict):
        self.file, self.name, self.split, self.further = file, name, split, further
        self.pictures, self.said, self.values, self.found, self._unclear = {}, {}, {}, [], []

    def _put(self, key: str, why):
        self.found.append(listing.Item(key, why, (), {}, self.split))

    def left(self, key: str, cause: str):
        self._put(f"{self.name}/{key}", listing.Left(cause))

    def broken(self, key: str, cause: str):
        self._put(f"{self.name}/{key}", listing.Broken(cause))

    def add(self, member: str, content):
        """A member, or damage to the shard; content: as `tars.members` yields it."""
        if isinstance(content, listing.Broken):
            self._put(f"{self.name}, {member}", content)
            return
        if not walk.names_data(pathlib.PurePosixPath(member).parts):
            return
        if isinstance(content, listing.Left):
            self.left(member, content.cause)
            return
        folder, slash, base = member.rpartition("/")
        stem, dot, end = base.rpartition(".")
        stem, end = folder + slash + (stem if dot else base), f".{end.lower()}" if dot else ""
        where, what = (self.file, *content), walk.kind(end)
        if owner := beside.owner(base, self.further):
            self._add_value(member, folder + slash + owner[0], owner[1], where)
        elif what == "picture":
            self._add_picture(member, stem, where)
        elif what == "text":
            with contextlib.suppress(ValueError):  # it is cut; the break comes next
                own, text = self.said.setdefault(stem, {}), tars.read(where)
                if end in own:
                    self.left(member, "a second text of its key")
                own.setdefault(end, text)
        elif what is None and _is_picture(where):
            self._unclear.append((member, stem, where))
        elif end in walk.UNREAD:
            why = listing.Broken(f"pictures of the format {end} are not read")
            self._add_picture(member, stem, why)
        else:
            self.left(member, "a member that is not a picture, text or value")

    def settle(self):
        """Gives a picture whose name does not say that it is one the key of a text: `v1.5`."""
        for member, stem, where in self._unclear:
            whole = member in self.said or member in self.values
            self._add_picture(member, member if whole else stem, where)

    def _add_picture(self, member: str, stem: str, where):
        if self.pictures.setdefault(stem, where) is not where:
            self.broken(member, "a second image of its key")

    def _add_value(self, member: str, stem: str, modality: str, where):
        if not modality:
            self.left(member, beside.unnamed(member, self.further).cause)
        elif self.values.setdefault(stem, {}).setdefault(modality, where) is not where:
            self.left(member, f"a second {modality} of its key")

    def items(self, field: str | None, split_field: str, incomplete: bool) -> list[listing.Item]:
        """The items, and all that is left or broken."""
        pairs, spare = _pairs(self.pictures, self.said)
        for stem in spare:
            what = "image" if stem in self.pictures else "text"
            self.left(stem, f"a further {what} of a key")
        known = {*pairs, *map(tars.first_dot, pairs)}
        for stem in [stem for stem in self.values if stem not in known]:  # in their order
            if incomplete:
                pairs[stem] = {}
            else:
                self.left(stem, "a value without an image")
        for stem, own in pairs.items():
            if stem in self.pictures or incomplete:
                self.found.append(self._item(stem, own, field, split_field, incomplete))
            else:
                self.broken(stem, "captions without an image")
        return self.found

    def _item(self, stem: str, own: dict, field, split_field, incomplete) -> listing.Item:
        key, further = f"{self.name}/{stem}", self.further
        try:
            captions, row, unused = captioning.said(own, field, f"{key}.json", incomplete)
        except ValueError as error:
            return listing.Item(key, listing.Broken(str(error)), (), {}, self.split)
        where = listing.printable(f"{self.file}, {stem}.json")
        split_field = split_names.field(row, split_field)
        split = split_names.said(row.get(split_field), where) or self.split
        taken = {*captioning.caption_fields(row), field, split_field, *beside.fields(further)}
        extra = {name: value for name, value in row.items() if name not in taken}
        told = self.values.get(tars.first_dot(stem), {}) | self.values.get(stem, {})
        told |= beside.places(row, further, _no_path)
        picture = self.pictures.get(stem)
        return listing.Item(key, picture, captions, extra, split, told, tuple(unused))


def _is_picture(where: tuple[str, int, int]) -> bool:
    path, offset, size = where
    try:
        head = tars.read((path, offset, min(size, marks.LENGTH)))
        return bool(marks.marks(head)) and marks.is_picture(tars.read(where))
    except ValueError:  # it is cut
        return False


def _statistics(shard: pathlib.Path) -> pathlib.Path:
    """Where img2dataset writes the statistics of a shard."""
    return shard.with_name(shard.name.partition(".")[0] + downloads.END)


def _no_path(name: str) -> listing.Broken:
    return listing.Broken(f"{listing.printable(repr(name))}: expected rows, not a path, in a shard")


def _pairs(pictures: dict, said: dict) -> tuple[dict, list]:
    """({key: its texts by ending}, the images and texts that belong to no item)."""
    found, spare, groups = {}, [], {}
    for stem in (*pictures, *(stem for stem in said if stem not in pictures)):
        groups.setdefault(tars.first_dot(stem), []).append(stem)
    for key, stems in groups.items():
        shown = [stem for stem in stems if stem in pictures]
        alone = [stem for stem in stems if stem in said and stem not in pictures]
        bare = [stem for stem in shown if stem not in said]
        if len(bare) == 1 and len(shown) == 1 and alone:
            found[bare[0]] = own = {}
            for stem in alone:
                for end, text in said[stem].items():
                    spare += [stem + end] if end in own else []
                    own.setdefault(end, text)
        elif len(shown) > len(bare) and bare and key in said:
            spare += bare  # KEY.png and KEY.json, and a picture KEY.mask.png
            found |= {stem: said[stem] for stem in (*shown, *alone) if stem not in bare}
        else:
            found |= {stem: said.get(stem, {}) for stem in (*shown, *alone)}
    order = {stem: n for n, stem in enumerate((*pictures, *said))}
    return dict(sorted(found.items(), key=lambda pair: order[pair[0]])), spare


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
    """The items of one split of webdataset shards.

    further, incomplete: as in `items`; `shares` as in `listing.choose`.
    """
    found = items(path, caption_field, split_field, further, incomplete)
    return listing.choose(f"webdataset {path}", found, tars.read, split, further=further, **shares)
