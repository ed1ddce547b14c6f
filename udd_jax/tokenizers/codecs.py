"""Codecs: they turn the values of a modality into ids, and ids into values.

The rest of the system knows only the name, the ids and the codec of a modality. To add a kind of
modality, add a maker to `MAKERS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Codec(NamedTuple):
    """encode: (n values, strict) -> int32[n, length], local ids. With `strict`, for values from a
    user, a value that would be cut is a ValueError. decode: int32[n, length], possibly with masks,
    -> n values."""

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
    """{modality: codec} of a vocabulary, from the tokenizers {modality: tokenizer}."""
    return {m.name: MAKERS[m.name](tokenizers[m.name], m.length) for m in vocab.modalities}
