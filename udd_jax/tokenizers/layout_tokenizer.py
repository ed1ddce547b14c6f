"""The layout tokenizer: a map of categories, whose ids are the tokens. Nothing is trained."""

import dataclasses

import numpy as np

from udd_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LayoutTokenizer:
    """Maps of `grid` = (rows, columns) cells with ids 0 .. codes - 1."""

    grid: tuple[int, int]
    codes: int

    @property
    def hash(self) -> str:
        return f"{self.grid[0]}x{self.grid[1]}x{self.codes}"

    def encode(self, maps) -> np.ndarray:
        """int[B, rows, columns] -> int32[B, N]. ValueError for another shape or an unknown id."""
        maps = np.asarray(maps)
        if maps.shape[1:] != self.grid or maps.dtype.kind not in "iu":
            raise UserError(
                f"layouts are {maps.dtype}{list(maps.shape)}, expected "
                f"int[B, {self.grid[0]}, {self.grid[1]}]"
            )
        if maps.size and not 0 <= maps.min() <= maps.max() < self.codes:
            raise UserError(
                f"layouts have ids {maps.min()} to {maps.max()}, expected 0 to {self.codes - 1}"
            )
        return maps.reshape(len(maps), -1).astype(np.int32)

    def decode(self, ids) -> np.ndarray:
        """int32[B, N] -> int32[B, rows, columns]."""
        return np.asarray(ids, np.int32).reshape(-1, *self.grid)
