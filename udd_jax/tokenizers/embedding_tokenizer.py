"""The embedding tokenizer: one vector <-> R residual codes.

    r_1 = z,   c_i = nearest row of codebook i to r_i,   r_{i+1} = r_i - e_{c_i},   z' = sum e_{c_i}

Codebook i is the k-means of the residuals r_i of the training vectors, so each code adds detail to
those before it, and no network is trained.
"""

import dataclasses
import functools
import hashlib

import jax
import numpy as np

from udd_jax.errors import UserError
from udd_jax.runtime import trees
from udd_jax.tokenizers import codebook


@dataclasses.dataclass(frozen=True, eq=False)
class EmbeddingTokenizer:
    """codebooks: float32[R, K, E]."""

    codebooks: np.ndarray

    @property
    def codes(self) -> int:
        """K."""
        return self.codebooks.shape[1]

    @property
    def residuals(self) -> int:
        """R, the number of tokens."""
        return self.codebooks.shape[0]

    @functools.cached_property
    def hash(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.codebooks).tobytes()).hexdigest()[:16]

    def encode(self, vectors) -> np.ndarray:
        """float[B, E] -> int32[B, R]. ValueError for another shape, or what is not finite."""
        vectors, size = np.asarray(vectors), self.codebooks.shape[2]
        if vectors.shape[1:] != (size,) or vectors.dtype.kind not in "fiu":
            raise UserError(
                f"embeddings are {vectors.dtype}{list(vectors.shape)}, expected float[B, {size}]"
            )
        if not np.isfinite(vectors).all():
            raise UserError("embeddings have numbers that are not finite: leave them out")
        rest, ids = vectors.astype(np.float32), []
        for book in self.codebooks:
            distance = (book**2).sum(1)[None] - 2 * rest @ book.T
            ids.append(distance.argmin(axis=1))
            rest = rest - book[ids[-1]]
        return np.stack(ids, axis=1).astype(np.int32)

    def decode(self, ids) -> np.ndarray:
        """int32[B, R] -> float32[B, E]; a mask adds nothing."""
        ids = np.asarray(ids)
        known = np.minimum(ids, self.codes - 1)
        each = np.stack([book[known[:, i]] for i, book in enumerate(self.codebooks)], axis=1)
        return (each * (ids < self.codes)[..., None]).sum(axis=1)


def fit(vectors, residuals: int, codes: int, seed: int = 0) -> EmbeddingTokenizer:
    """The tokenizer of training vectors float[n, E]. ValueError for fewer vectors than codes."""
    vectors = np.asarray(vectors, np.float32)
    if len(vectors) < codes:
        raise UserError(f"{len(vectors)} embeddings for {codes} codes, expected as many at least")
    rest, books = vectors, []
    means = jax.jit(functools.partial(codebook.kmeans, size=codes))
    for i in range(residuals):
        books.append(np.asarray(means(jax.random.key(seed + i), rest)[0]))
        ids = EmbeddingTokenizer(books[-1][None]).encode(rest)[:, 0]
        rest = rest - books[-1][ids]
    return EmbeddingTokenizer(np.stack(books))


def save(path, tokenizer: EmbeddingTokenizer) -> None:
    """Writes one file in the safetensors layout."""
    trees.save_tree(path, {"codebooks": tokenizer.codebooks}, {"kind": "embedding"})


def load(path) -> EmbeddingTokenizer:
    """The tokenizer that `save` wrote. FileNotFoundError, or ValueError if it is damaged."""
    tree, _ = trees.load_tree(path)
    if "codebooks" not in tree:
        raise UserError(f"{path} is not a tokenizer of embeddings: restore it")
    return EmbeddingTokenizer(np.asarray(tree["codebooks"]))
