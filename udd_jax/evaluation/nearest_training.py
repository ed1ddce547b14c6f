"""The training items nearest to the measured items: equal images, and the most similar pairs.

Both searches read the token cache of the run block by block, so memory does not grow with the
training set. Equal images have equal codes. So only training images with the codes of a held-out
item are decoded, and compared by the hash of their pixels.
"""

import pathlib

import numpy as np

from udd_jax import modalities
from udd_jax.data import reading, token_cache
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out
from udd_jax.evaluation.metrics import memory

CACHE = "tokens"
PAIR = ("image", "text")
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
    views = modalities.views(pipe.config, incomplete=True)  # a picture needs no caption here

    def alike():
        for numbers, codes, _ in _blocks(cache):
            for number, row in zip(numbers, codes, strict=True):
                if row.tobytes() in known:
                    example = reading.example(records, int(cache.positions[number]), views)
                    if example.pixels is not None:
                        yield example.pixels[0]

    return memory.shared(items.images, alike())


def not_learned(pipe, cache, items: held_out.Items, say=lambda line: None) -> held_out.Items:
    """The items without those whose picture was trained on; UserError if no other is left.

    Items without pictures stay as they are: nothing else is compared.
    """
    shared_ones = [] if items.images is None else shared(pipe, cache, items)
    if not shared_ones:
        return items
    if len(shared_ones) == len(items):
        raise UserError(
            f"all {len(items)} measured pictures are training pictures, too: choose another "
            "--config.evaluate.split=, or train on data without these pictures"
        )
    say(
        f"evaluation: {len(shared_ones)} of {len(items)} pictures are training pictures, too (the "
        f"first is {items.keys[shared_ones[0]]}): left out"
    )
    return items.without(shared_ones)


def pairs_of(vocab, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Samples int32[n, L] -> {"image": int32[n, N], "text": int32[n, M]}, local ids.

    Other modalities are absent in a pair: what a sample has at their places is noise.
    """
    local = vocab.split(tokens)
    return {name: np.asarray(vocab.joined(name, local)) for name in PAIR}


def nearest(cache, found: dict) -> tuple[dict, np.ndarray]:
    """For each of `found`, as of `pairs_of`, the training pair that shares the most tokens with it.

    Each caption of a training item makes a pair with the item's image without augmentation. Returns
    (the pairs as `found` has them, the number of tokens that differ int64[n]).
    """
    rows = np.concatenate([found[name] for name in PAIR], axis=1).astype(np.int32)
    least, pairs = np.full(len(rows), rows.shape[1] + 1), np.zeros_like(rows)
    for _, codes, texts in _blocks(cache):
        for text in np.moveaxis(texts, 1, 0):
            block = np.concatenate([codes, text], axis=1)
            where, differing = memory.nearest_tokens(rows, block)
            better = differing < least
            least = np.where(better, differing, least)
            pairs = np.where(better[:, None], block[where], pairs)
    parts = np.split(pairs, [found[PAIR[0]].shape[1]], axis=1)
    return dict(zip(PAIR, parts, strict=True)), least


def _blocks(cache):
    """Yields (numbers int64[b], codes int32[b, N] without augmentation, texts int32[b, C, M])."""
    shown = np.flatnonzero(~cache.lacking["image"])
    for start in range(0, len(shown), BLOCK):
        numbers = shown[start : start + BLOCK]
        read = cache.read(numbers)
        yield numbers, np.ascontiguousarray(read["image"][:, 0]), read["text"]
