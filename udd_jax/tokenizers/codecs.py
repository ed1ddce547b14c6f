"""What a modality's values are, and how they become the ids of its positions and values again.

The rest of the system knows a modality by its name, its ids and its codec: a new kind of modality
is a maker in `MAKERS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Codec(NamedTuple):
    """encode: (n values, strict) -> int32[n, length], local ids. `strict`, as for what a user
    gives, refuses with a ValueError what would be cut; decode: int32[n, length], masks among them
    allowed -> n values."""

    encode: Callable[[Any, bool], np.ndarray]
    decode: Callable[[np.ndarray], Any]


def of_images(tokenizer, length: int) -> Codec:
    """uint8[n, S, S, 3] <-> codes."""
    return Codec(lambda images, strict=True: tokenizer.encode(images), tokenizer.decode)


def of_text(tokenizer, length: int) -> Codec:
    """Lists of n strings <-> ids."""

    def encode(texts, strict=True):
        return tokenizer.encode(list(texts), length, strict=strict)

    def decode(ids):
        ids = np.asarray(ids)
        known = np.where(ids >= tokenizer.vocab_size, tokenizer.pad_id, ids)
        return [text.strip() for text in tokenizer.decode(known)]

    return Codec(encode, decode)


MAKERS = {"image": of_images, "text": of_text}


def make(vocab, tokenizers: dict) -> dict[str, Codec]:
    """The codec of each modality of a vocabulary, from its tokenizer."""
    return {m.name: MAKERS[m.name](tokenizers[m.name], m.length) for m in vocab.modalities}
