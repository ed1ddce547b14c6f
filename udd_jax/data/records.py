"""One captioned image.

A source is any sequence of `Record` with `len(source)`, `source[i]` and `source.name`, a line that
describes it. The source of an embedded world also has `source.world` (`sources.worlds.World`). One
with modalities besides image and text has their names in `source.further`.
Reading an item again gives the same record, in any process.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Record:
    """A captioned image of a source.

    Attributes:
        key: the name of the item, unique in its source.
        image: the encoded file as bytes, or pixels uint8[H, W, C] with one, three or four channels;
            None if there is none.
        captions: training draws one in each epoch, evaluation uses all.
        extra: further data by name (a scene, a style, a licence), and the values of the modalities
            in `further` of the source, if it has any.
        faults: (cause, detail) of each value that cannot be read.
    """

    key: str
    image: bytes | np.ndarray | None
    captions: tuple[str, ...]
    extra: dict = dataclasses.field(default_factory=dict)
    faults: tuple[tuple[str, str], ...] = ()
