"""The facts about an image: hashes of its file and its pixels, its size, and why it is broken.

All splits of a source ask for them, and so does the survey. An image is decoded once for all, until
its file changes.
"""

import functools
import os

from udd_jax.data import hashing, pixels


class Look:
    """The facts about one image: the hash of its file; and, decoded on access, `pixels`, the hash
    of its pixels, fitted to `side` if given (None if it is broken), `size` (width, height) or None,
    `fault`, why it is broken, or None, and `clear`, whether it has pixels that are not opaque."""

    def __init__(self, read, where, side=None, channels=3):
        self._read, self._where, self._side, self._channels = read, where, side, channels
        try:
            self.file = hashing.content_hash(read(where))
        except (OSError, ValueError):
            self.file = hashing.content_hash(repr(where).encode(errors="surrogateescape"))

    @functools.cached_property
    def _decoded(self):
        try:
            image = self._read(self._where)
        except (OSError, ValueError) as error:
            return None, None, ("unreadable record", str(error)), False
        try:
            size = None
            if isinstance(image, bytes):
                channels = 4 if pixels.may_be_clear(image) else self._channels
                image, size = pixels.read_for(image, self._side, channels)
            size = size or image.shape[1::-1]
            clear = image.shape[-1] == 4 and bool((image[..., 3] < 255).any())
            image = pixels.in_channels(image, self._channels)
            image = pixels.fit(image, self._side) if self._side else image
        except (OSError, ValueError) as error:
            return None, None, ("broken image", str(error)), False
        return hashing.content_hash(image), size, None, clear

    pixels = property(lambda self: self._decoded[0])
    size = property(lambda self: self._decoded[1])
    fault = property(lambda self: self._decoded[2])
    clear = property(lambda self: self._decoded[3])


def look(read, where, side=None, channels=3) -> Look:
    """The `Look` at the image at `where`, computed once in a process while its file is the same."""
    return _look(read, where, side, channels, written(where))


@functools.cache
def _look(read, where, side, channels, written) -> Look:
    return Look(read, where, side, channels)


def written(where) -> tuple[int, int] | None:
    """(the time of the last change in nanoseconds, the size) of the file that a place names.

    where: a path, or a tuple that begins with one. None for anything else, and if it is not there.
    """
    path = where[0] if isinstance(where, tuple) and where else where
    try:
        found = os.stat(path) if isinstance(path, str | os.PathLike) else None
    except (OSError, ValueError):
        return None
    return found and (found.st_mtime_ns, found.st_size)
