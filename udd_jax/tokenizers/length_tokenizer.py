"""The length of a text: how many tokens it has before its padding, as a token. Nothing is trained.

A length is not stored with the data, it is counted in the ids of the text (`count`).
"""

import dataclasses

import numpy as np

from udd_jax.errors import UserError


def count(ids, pad_id: int):
    """The number of tokens that are not padding: int[B, M] -> int[B]."""
    return (ids != pad_id).sum(axis=1)


@dataclasses.dataclass(frozen=True)
class LengthTokenizer:
    """Lengths of 0 to `most` tokens; one position with `most` + 1 classes."""

    most: int

    @property
    def codes(self) -> int:
        return self.most + 1

    @property
    def hash(self) -> str:
        return str(self.most)

    def encode(self, lengths) -> np.ndarray:
        """int[B] -> int32[B, 1]. ValueError for another shape or a length out of range."""
        lengths = np.asarray(lengths)
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu":
            raise UserError(f"lengths are {lengths.dtype}{list(lengths.shape)}, expected int[B]")
        if lengths.size and not 0 <= lengths.min() <= lengths.max() <= self.most:
            raise UserError(
                f"lengths are {lengths.min()} to {lengths.max()}, expected 0 to {self.most} tokens"
            )
        return lengths[:, None].astype(np.int32)

    def decode(self, ids) -> np.ndarray:
        """int32[B, 1] -> int32[B]."""
        return np.asarray(ids, np.int32)[:, 0]
