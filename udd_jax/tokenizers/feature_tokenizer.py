"""Features: vectors of numbers that a network is given, such as those of a pretrained encoder.

They are not tokens. A cache of tokens keeps them all the same, as the 16 bits of each number in
half precision. Nothing is trained.
"""

import dataclasses

import numpy as np

from udd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class FeatureTokenizer:
    """`count` vectors of `width` numbers each."""

    count: int
    width: int

    @property
    def size(self) -> int:
        """Numbers of a sample."""
        return self.count * self.width

    @property
    def hash(self) -> str:
        return f"{self.count}x{self.width}"

    def encode(self, features) -> np.ndarray:
        """float[B, count, width] -> their bits int32[B, count width].

        ValueError for another shape, or numbers that are not finite in half precision.
        """
        features = np.asarray(features)
        if features.shape[1:] != (self.count, self.width) or features.dtype.kind not in "fiu":
            raise UserError(
                f"features are {features.dtype}{list(features.shape)}, expected "
                f"float[B, {self.count}, {self.width}]"
            )
        limit = np.finfo(np.float16).max
        if not (np.abs(features) <= limit).all():
            raise UserError(f"features beyond {limit:.0f} or not finite: scale them")
        bits = features.astype(np.float16).view(np.uint16)
        return bits.reshape(len(features), -1).astype(np.int32)

    def decode(self, ids) -> np.ndarray:
        """The inverse of `encode`: int32[B, count width] -> float32[B, count, width]."""
        bits = np.asarray(ids).astype(np.uint16)
        return bits.view(np.float16).astype(np.float32).reshape(-1, self.count, self.width)
