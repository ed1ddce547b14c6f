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

import atexit
import contextlib
import fnmatch
import functools
import glob
import gzip
import os
import pathlib
import re
import tarfile
import tempfile
import zlib

from udd_jax.data import marks
from udd_jax.data.sources import beside, captioning, downloads, listing, looks, split_names, walk
from udd_jax.errors import UserError

_ENDS = (".tar", ".tar.gz", ".tgz")
_BLOCK = 512
_LOST = listing.Broken("an item that the shard's statistics count is not there")


def read(where: tuple[str, int, int]) -> bytes:
    """The bytes at (file, offset, size) in an uncompressed tar file, or in its unpacked copy."""
    path, offset, size = where
    with open(_plain(path)[0], "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise UserError(f"{path} ends inside an image")
    return content


def _plain(path: str) -> tuple[str, str | None]:
    """(an uncompressed file with the content of `path`, the fault of its compression or None)."""
    return (path, None) if path.endswith(".tar") else _unpacked(path, looks.written(path))


@functools.cache
def _unpacked(path: str, written) -> tuple[str, str | None]:
    number, name = tempfile.mkstemp(prefix="udd-", suffix=".tar")
    atexit.register(pathlib.Path(name).unlink, missing_ok=True)
    with open(number, "wb") as place, gzip.open(path) as packed:
        try:
            while block := packed.read1(1 << 16):  # so that no byte before the fault is lost
                place.write(block)
        except (OSError, EOFError, zlib.error) as error:
            return name, str(error)
    return name, None


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
        found = [
            pathlib.Path(place, name)
            for place, below, names in os.walk(path, followlinks=True)
            for name in names
            if name.lower().endswith(ends)
        ]
        found = [file for file in found if walk.names_data(file.relative_to(root).parts)]
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
    return found + gone(path, files, root)


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
    for member, content in _members(file, inside.pictures):
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
        """A member, or damage to the shard; content: as `_members` yields it."""
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
                own, text = self.said.setdefault(stem, {}), read(where)
                if end in own:
                    self.left(member, "a second text of its key")
                own.setdefault(end, text)
        elif what is None and _is_picture(where):
            self._unclear.append((member, stem, where))
        elif end in walk.UNREAD:
            why = listing.Broken(f"pictures of the format {end} are not read")
            self._add_picture(member, stem, why)
        else:
            self.left(member, "a member that is no picture, text or value")

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
        for stem in set(self.values) - set(pairs) - set(map(_first_dot, pairs)):
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
        split = split_names.said(row.get(split_field), where) or self.split
        taken = {*captioning.caption_fields(row), field, split_field, *beside.fields(further)}
        extra = {name: value for name, value in row.items() if name not in taken}
        told = self.values.get(_first_dot(stem), {}) | self.values.get(stem, {})
        told |= beside.places(row, further, _no_path)
        picture = self.pictures.get(stem)
        return listing.Item(key, picture, captions, extra, split, told, tuple(unused))


def _is_picture(where: tuple[str, int, int]) -> bool:
    path, offset, size = where
    try:
        head = read((path, offset, min(size, marks.LENGTH)))
        return bool(marks.marks(head)) and marks.is_picture(read(where))
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
        groups.setdefault(_first_dot(stem), []).append(stem)
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


def _first_dot(stem: str) -> str:
    place, slash, base = stem.rpartition("/")
    return place + slash + base.partition(".")[0]


def _members(file: pathlib.Path, pictures: dict):
    """Yields (name, (offset, size)) for each file of a shard, (name, Left) for what is no file, or
    (where, Broken) for damage.

    pictures: those found so far, for the message.
    """
    path, packed = _plain(str(file))
    start, size = 0, os.path.getsize(path)
    breaks = "the shard breaks off after {} images: {}".format
    if packed:
        yield "its compression", listing.Broken(breaks(_keys(pictures), packed))
    with open(path, "rb") as opened:
        if _header(opened, 0) is False:
            start = yield from _behind(opened, 0)
        while start is not None:
            opened.seek(start)
            end = start + _BLOCK
            try:
                with tarfile.open(fileobj=opened, mode="r:") as tar:
                    for member in tar:
                        if member.isfile():
                            yield member.name, (member.offset_data, member.size)
                        elif not member.isdir():
                            yield member.name, listing.Left("a link or device, and no file")
                        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                        if end > size:
                            raise tarfile.ReadError("unexpected end of data")
                    end = tar.offset
            except (tarfile.TarError, OSError, ValueError) as error:
                if packed is None or end <= size:
                    yield f"byte {end}", listing.Broken(breaks(_keys(pictures), error))
            start = (yield from _behind(opened, end)) if end <= size else None


def _keys(pictures: dict) -> int:
    return len(set(map(_first_dot, pictures)))


def _header(opened, place: int) -> bool | None:
    """Whether a good header is at `place`; None for zeros or the end of the file."""
    opened.seek(place)
    block = opened.read(_BLOCK)
    if len(block) < _BLOCK or not block.strip(b"\0"):
        return None
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _behind(opened, place: int):
    """Examines the place where tarfile stopped. Returns the place of the next header, if any.

    Yields (where, Broken) for a bad header, and for a file that ends without an end mark.
    """
    opened.seek(place)
    if len(opened.read(_BLOCK)) < _BLOCK:
        yield f"byte {place}", listing.Broken("the shard breaks off: it has no end mark")
        return None
    size, damaged = opened.seek(0, os.SEEK_END), False
    for at in range(place, size - _BLOCK + 1, _BLOCK):
        good = _header(opened, at)
        if good:
            return at
        if good is False and not damaged:
            damaged = True
            yield f"byte {at}", listing.Broken("a bad header")
    return None


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
    return listing.choose(f"webdataset {path}", found, read, split, further=further, **shares)
