"""One captioned image, and what it means for two of them to be the same image.

A source is any sequence of `Record`: `len(source)`, `source[i]`, and `source.name`, a line that
says what it is. Reading an item a second time gives the same record, in any process.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """A captioned image as a source hands it out.

    Attributes:
        key: what names the item in its source; unique there.
        image: the encoded file as bytes, or pixels uint8[H, W, 3].
        captions: one or more; training draws one per epoch, evaluation uses all.
        extra: whatever else the source knows (a scene, a style, a licence), by name.
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[str, ...]
    extra: dict = dataclasses.field(default_factory=dict)
