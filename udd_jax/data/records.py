"""One captioned image.

A source is any sequence of `Record` with `len(source)`, `source[i]` and `source.name`, a line that
describes it. The source of an embedded world also has `source.world` (`sources.worlds.World`).
Reading an item again gives the same record, in any process.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """A captioned image of a source.

    Attributes:
        key: the name of the item, unique in its source.
        image: the encoded file as bytes, or pixels uint8[H, W, 3].
        captions: one or more; training draws one in each epoch, evaluation uses all.
        extra: further data by name (a scene, a style, a licence).
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[str, ...]
    extra: dict = dataclasses.field(default_factory=dict)
