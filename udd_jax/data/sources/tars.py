"""The members of a tar file, read in any order; damage to it is skipped and said.

The headers are scanned once. Then reading a member is one seek and one read. A bad header is
passed over to the next good one; a file may end inside a member, or between two. Tar files one
after the other are one. Compressed files are unpacked to temporary files, once in a process.
"""

import functools
import gzip
import os
import pathlib
import tarfile
import tempfile
import zlib

from udd_jax.data.sources import listing, looks
from udd_jax.errors import UserError
from udd_jax.runtime import stopping

_BLOCK = 512


def read(where: tuple[str, int, int]) -> bytes:
    """The bytes at (file, offset, size) in an uncompressed tar file, or in its unpacked copy."""
    path, offset, size = where
    with open(plain(path)[0], "rb") as file:
        file.seek(offset)
        content = file.read(size)
    if len(content) != size:
        raise UserError(f"{path} ends inside an image")
    return content


def plain(path: str) -> tuple[str, str | None]:
    """(an uncompressed file with the content of `path`, the fault of its compression or None)."""
    return (path, None) if path.lower().endswith(".tar") else _unpacked(path, looks.written(path))


@functools.cache
def _unpacked(path: str, written) -> tuple[str, str | None]:
    number, name = tempfile.mkstemp(prefix="udd-", suffix=".tar")
    stopping.remove_at_end(name)
    with open(number, "wb") as place, gzip.open(path) as packed:
        while True:
            try:
                block = packed.read1(1 << 16)  # so that no byte before the fault is lost
            except (OSError, EOFError, zlib.error) as error:
                return name, str(error)
            if not block:
                return name, None
            place.write(block)  # a full disk is no fault of the shard


def members(file: pathlib.Path, pictures: dict):
    """Yields (name, (offset, size)) for each file of a shard, (name, Left) for what is no file, or
    (where, Broken) for damage.

    pictures: those found so far, for the message.
    """
    path, packed = plain(str(file))
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


def first_dot(stem: str) -> str:
    """The name of a member up to the first dot of its last part."""
    place, slash, base = stem.rpartition("/")
    return place + slash + base.partition(".")[0]


def _keys(pictures: dict) -> int:
    return len(set(map(first_dot, pictures)))


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
