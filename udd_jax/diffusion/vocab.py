"""One token space for all modalities (Hu et al. 2022, section 3.2).

A sequence has the modalities one after the other, `x = [image codes in raster order, text ids]`.
All of them share one vocabulary. Its last id is the mask:

    0 .. K_img-1              image codes
    K_img .. K_img+K_txt-1    text ids, shifted by K_img
    V-1                       [MASK], shared by all modalities

The layout fixes the modality of a position. A distribution over one position therefore needs only
the K_m classes of its own modality and the mask. Those are *local* ids: class `k` of the modality
is `k`, the mask is `K_m`.
"""

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.errors import UserError


@dataclass(frozen=True)
class Modality:
    """`length` positions with `classes` tokens each; `grid` is (rows, columns) of a picture.

    like: the name of another modality, whose ids are also those of this one: a *reference*.
    segment: the name of its positions, "" is its own; modalities with the same one share them, so
    that a network cannot tell them apart. inputs: 0 for tokens; for *features*, the number of
    values at each position. Features are given or absent, never generated, and have one class.
    dropped: in training, the share of rows from which given features are left out. level_of: for
    the coarse level of a picture, the name of its fine level; a rule that names the picture and not
    this level means both (`tasks.parse`). noise: in training, the share of given tokens that are
    noised anew while the fine level is generated.
    """

    name: str
    length: int
    classes: int
    grid: tuple[int, int] | None = None
    like: str = ""
    segment: str = ""
    inputs: int = 0
    dropped: float = 0.0
    level_of: str = ""
    noise: float = 0.0

    @property
    def place(self) -> str:
        """The name of its positions."""
        return self.segment or self.name

    def __post_init__(self):
        if self.length < 1 or self.classes < (1 if self.inputs else 2):
            raise UserError(
                f"modality {self.name!r}: length {self.length} and classes {self.classes}, "
                "expected at least 1 and 2"
            )
        if self.grid is not None and self.grid[0] * self.grid[1] != self.length:
            raise UserError(
                f"modality {self.name!r}: grid {self.grid} has {self.grid[0] * self.grid[1]} "
                f"cells, expected its length {self.length}"
            )


@dataclass(frozen=True)
class Vocab:
    """The modalities in the order of the sequence. Everything else follows from them.

    ValueError for a reference to no modality, or to one with other classes, and for positions that
    are shared by modalities of different shapes.
    """

    modalities: tuple[Modality, ...]

    def __post_init__(self):
        places = {}
        for m in self.modalities:
            first = self.modalities[self.index(m.like)] if m.like else m
            if first.like or first.classes != m.classes:
                raise UserError(
                    f"modality {m.name!r} with {m.classes} classes is like {m.like!r} with "
                    f"{first.classes}: expected as many, and a modality that is like no other"
                )
            other = places.setdefault(m.place, m)
            if (other.length, other.grid) != (m.length, m.grid):
                raise UserError(
                    f"modalities {other.name!r} and {m.name!r} share the positions {m.place!r}, "
                    f"but have {other.grid or other.length} and {m.grid or m.length}"
                )

    @cached_property
    def size(self) -> int:
        """V: all classes and the mask; a reference has none of its own."""
        return sum(m.classes for m in self.modalities if not m.like) + 1

    @cached_property
    def mask_id(self) -> int:
        return self.size - 1

    @cached_property
    def length(self) -> int:
        """L: positions of a sequence."""
        return sum(m.length for m in self.modalities)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The first id of each modality; of a reference, that of the modality it is like."""
        own = [0 if m.like else m.classes for m in self.modalities]
        starts = dict(zip((m.name for m in self.modalities), np.cumsum([0, *own]), strict=False))
        return tuple(int(starts[m.like or m.name]) for m in self.modalities)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The first position of each modality."""
        return tuple(int(i) for i in np.cumsum([0, *(m.length for m in self.modalities[:-1])]))

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """The positions of each modality."""
        return tuple(
            slice(i, i + m.length) for i, m in zip(self.starts, self.modalities, strict=True)
        )

    @cached_property
    def modality_of(self) -> np.ndarray:
        """The index of the modality at each position, int32[L]."""
        lengths = [m.length for m in self.modalities]
        return np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)

    def any_of(self, marks: jax.Array) -> jax.Array:
        """Which modalities have a marked position: bool[B, L] -> bool[B, M]."""
        return jnp.stack([marks[:, where].any(axis=1) for where in self.slices], axis=1)

    def has(self, name: str) -> bool:
        """Whether there is a modality called `name`."""
        return any(m.name == name for m in self.modalities)

    def index(self, name: str) -> int:
        """The index of the modality called `name`; ValueError if there is none."""
        names = [m.name for m in self.modalities]
        if name not in names:
            raise UserError(f"modality {name!r} is not one of {', '.join(names)}")
        return names.index(name)

    def fuse(self, tokens: dict[str, jax.Array]) -> jax.Array:
        """Local ids by name, int32[B, length] each -> a sequence of global ids, int32[B, L].

        The inverse of `split`: a local mask K_m becomes the mask. A picture may have the ids of all
        its levels, as `parts` takes them. Features, float[B, length, inputs], become ids of their
        one class, and masks where they are NaN; `features` has their values.
        """
        parts, tokens = [], self.parts(tokens)
        for i, m in enumerate(self.modalities):
            if m.name not in tokens:
                raise UserError(f"tokens of modality {m.name!r} are missing")
            if m.inputs and tokens[m.name].ndim == 3:
                lacks = jnp.isnan(tokens[m.name]).all(axis=2)
                tokens = {**tokens, m.name: jnp.where(lacks, m.classes, 0)}
            if tokens[m.name].shape[-1] != m.length:
                raise UserError(
                    f"modality {m.name!r} has {tokens[m.name].shape[-1]} positions, "
                    f"expected {m.length}"
                )
            parts.append(self.globalise(i, jnp.asarray(tokens[m.name], jnp.int32)))
        return jnp.concatenate(parts, axis=-1)

    @cached_property
    def coarse(self) -> "Modality | None":
        """The coarse level of a picture, or None."""
        return next((m for m in self.modalities if m.level_of), None)

    def levels(self, names: list[str]) -> list[str]:
        """The names, with the coarse level of the picture first if they name the picture alone."""
        coarse = self.coarse
        has = coarse is not None and coarse.level_of in names and coarse.name not in names
        return [coarse.name, *names] if has else names

    def parts(self, tokens: dict) -> dict:
        """Local ids by name, with each level of a picture on its own.

        The ids of a picture of two levels are those of both, int[n, N1 + N2], the coarse ones
        first, as its tokenizer gives them. They are cut; ids of a level that are there stay.
        """
        coarse = self.coarse
        if coarse is None or coarse.level_of not in tokens:
            return tokens
        fine = self.modalities[self.index(coarse.level_of)]
        ids = tokens[fine.name]
        if ids.shape[-1] != coarse.length + fine.length:
            return tokens
        above, ids = ids[..., : coarse.length], ids[..., coarse.length :]
        lacks = (ids == fine.classes).all(axis=-1, keepdims=True)  # masks: the picture is not there
        above = lacks * coarse.classes + ~lacks * above
        return {coarse.name: above, **tokens, fine.name: ids}

    def joined(self, name: str, tokens: dict) -> np.ndarray:
        """The local ids of a modality as its tokenizer decodes them: the inverse of `parts`."""
        coarse = self.coarse
        if coarse is None or coarse.level_of != name:
            return tokens[name]
        return np.concatenate([np.asarray(tokens[n]) for n in (coarse.name, name)], axis=-1)

    def features(self, tokens: dict) -> tuple | None:
        """For each modality its features, float[B, length, inputs], or None; None if there are
        none at all. It is what networks take as `soft`."""
        found = [tokens.get(m.name) if m.inputs else None for m in self.modalities]
        if all(values is None for values in found):
            return None
        return tuple(None if v is None else jnp.nan_to_num(v) for v in found)

    def split(self, x: jax.Array) -> dict[str, jax.Array]:
        """A sequence, int32[..., L] -> local ids by name; a mask becomes the local mask K_m."""
        return {
            m.name: self.local(i, x[..., s])
            for i, (m, s) in enumerate(zip(self.modalities, self.slices, strict=True))
        }

    def local(self, index: int, x: jax.Array) -> jax.Array:
        """Global ids at positions of one modality -> its local ids; the mask is K_m."""
        classes, offset = self.modalities[index].classes, self.offsets[index]
        return jnp.where(x == self.mask_id, classes, x - offset)

    def globalise(self, index: int, x: jax.Array) -> jax.Array:
        """The inverse of `local`."""
        classes, offset = self.modalities[index].classes, self.offsets[index]
        return jnp.where(x == classes, self.mask_id, x + offset)


def image_text(
    grid: tuple[int, int], image_classes: int, text_classes: int, text_length: int
) -> Vocab:
    """The layout of UniD3: a grid of image codes, then a caption."""
    return Vocab(
        (
            Modality("image", grid[0] * grid[1], image_classes, tuple(grid)),
            Modality("text", text_length, text_classes),
        )
    )
