"""One captioned image.

A source is any sequence of `Record`: `len(source)`, `source[i]`, and `source.name`, a line that
describes it; `source.world` where the law of its data is known (`sources.worlds.World`). Reading an
item a second time gives the same record, in any process.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """A captioned image as a source hands it out.

    Attributes:
        key: the name of the item, unique in its source.
        image: the encoded file as bytes, or pixels uint8[H, W, 3].
        captions: one or more; training draws one in each epoch, evaluation uses all.
        extra: further facts from the source (a scene, a style, a licence), by name.
    """

    key: str
    image: bytes | np.ndarray
    captions: tuple[str, ...]
    extra: dict = dataclasses.field(default_factory=dict)
