"""Codecs: they turn the values of a modality into ids, and ids into values.

The rest of the system knows only the name, the kind, the ids and the codec of a modality. To add a
kind of modality, add a maker to `MAKERS`, and a `Kind` to `modalities.KINDS`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Codec(NamedTuple):
    """encode: (n values, strict) -> int32[n, length], local ids. With `strict`, for values from a
    user, a value that would be cut is a ValueError. decode: int32[n, length], possibly with masks,
    -> n values. A picture of two levels has the ids of both, the coarse ones first
    (`Vocab.parts`)."""

    encode: Callable[[Any, bool], np.ndarray]
    decode: Callable[[np.ndarray], Any]


def of_arrays(tokenizer, length: int) -> Codec:
    """Images, sounds, layouts or lengths, as their tokenizer takes them, <-> codes."""
    return Codec(lambda arrays, strict=True: tokenizer.encode(arrays), tokenizer.decode)


def of_text(tokenizer, length: int) -> Codec:
    """Lists of n strings <-> ids."""

    def encode(texts, strict=True):
        return tokenizer.encode(list(texts), length, strict=strict)

    def decode(ids):
        ids = np.asarray(ids)
        known = np.where(ids >= tokenizer.vocab_size, tokenizer.pad_id, ids)
        return [text.strip() for text in tokenizer.decode(known)]

    return Codec(encode, decode)


MAKERS = {"text": of_text} | dict.fromkeys(
    ("image", "sound", "layout", "length", "features", "embedding", "coarse"), of_arrays
)


def make(vocab, tokenizers: dict, kinds: dict) -> dict[str, Codec]:
    """{modality: codec} of a vocabulary. tokenizers, kinds: {modality: tokenizer, or its kind}."""
    return {m.name: MAKERS[kinds[m.name]](tokenizers[m.name], m.length) for m in vocab.modalities}
