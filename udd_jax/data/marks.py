"""Whether a file is a picture, by its first bytes: for names that do not say it.

    marks        32 bytes -> the formats of `pixels.formats()` that begin like this
    is_picture   a file or its bytes -> whether it has such a mark, and a header that can be read

No pixel is decoded. TGA has no mark, so such a file has to have the ending .tga.
"""

import contextlib
import io
import os
import warnings

from PIL import Image

from udd_jax.data import pixels

LENGTH = 32  # of a mark, at most


def marks(head: bytes) -> tuple[str, ...]:
    """The formats of a file that begins with `head`; () if it is not a picture."""
    found = []
    for name in pixels.formats():
        accept = Image.OPEN[name][1]
        with contextlib.suppress(Exception):  # some ask for more bytes than there are
            found += [name] if accept and accept(head) is True else []
    return tuple(found)


def is_picture(source: str | os.PathLike | bytes) -> bool:
    """Whether a file, or its bytes, is a picture that is read. False if it cannot be opened."""
    try:
        if isinstance(source, bytes):
            head, file = source[:LENGTH], io.BytesIO(source)
        else:
            if not os.path.isfile(source):  # a pipe would wait for its writer
                return False
            with open(source, "rb") as opened:
                head, file = opened.read(LENGTH), source
        names = marks(head)
        if not names:
            return False
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            with Image.open(file, formats=names):
                return True
    except Exception:  # the decoders of Pillow raise errors of any type
        return False
