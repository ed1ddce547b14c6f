"""The training items nearest to the measured items: equal images, and the most similar pairs.

Both searches read the token cache of the run block by block, so memory does not grow with the
training set. Equal images have equal codes. So only training images with the codes of a held-out
item are decoded, and compared by the hash of their pixels.
"""

import pathlib

import numpy as np

from udd_jax import modalities
from udd_jax.data import reading, token_cache
from udd_jax.evaluation import held_out
from udd_jax.evaluation.metrics import memory

CACHE = "tokens"
BLOCK = 4096


def open_cache(workdir) -> token_cache.TokenCache | None:
    """The token cache of a run, or None if it has none, such as a converted run."""
    folder = pathlib.Path(workdir) / CACHE
    if not (folder / "manifest.json").exists():
        return None
    return token_cache.TokenCache(folder, verify=False)


def shared(pipe, cache, items: held_out.Items) -> list[int]:
    """The numbers of the items whose image is a training image."""
    known = {row.tobytes() for row in items.codes.astype(np.int32)}
    records = held_out.source(pipe, "train")
    views = reading.Views(modalities.image_size(pipe.config))

    def alike():
        for numbers, codes, _ in _blocks(cache):
            for number, row in zip(numbers, codes, strict=True):
                if row.tobytes() in known:
                    example = reading.example(records, int(cache.positions[number]), views)
                    if example.pixels is not None:
                        yield example.pixels[0]

    return memory.shared(items.images, alike())


def nearest(pipe, cache, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of `found`, int32[n, L], the training pair that shares the most tokens with it.

    Each caption of a training item makes a pair with the item's image without augmentation. Returns
    (the pairs int32[n, L], the number of tokens that differ int64[n]).
    """
    least, pairs = np.full(len(found), found.shape[1] + 1), np.zeros_like(found)
    for _, codes, texts in _blocks(cache):
        for text in np.moveaxis(texts, 1, 0):
            block = np.asarray(pipe.vocab.fuse({"image": codes, "text": text}))
            where, differing = memory.nearest_tokens(found, block)
            better = differing < least
            least = np.where(better, differing, least)
            pairs = np.where(better[:, None], block[where], pairs)
    return pairs, least


def _blocks(cache):
    """Yields (numbers int64[b], codes int32[b, N] without augmentation, texts int32[b, C, M])."""
    shown = np.flatnonzero(~cache.lacking["image"])
    for start in range(0, len(shown), BLOCK):
        numbers = shown[start : start + BLOCK]
        read = cache.read(numbers)
        yield numbers, np.ascontiguousarray(read["image"][:, 0]), read["text"]
