"""Randomness without state: each number is a function of its purpose.

A generator has to be saved, restored and split among processes. A hash of (seed, epoch, item) does
not: every caller gets the same number, in any order, on any machine, with any version of NumPy.

    draw(*parts)          64 bits, the finaliser of SplitMix64 (Steele, Lea, Flood 2014) folded over
                          the parts
    permute(i, n, key)    the i-th item of a shuffle of 0..n-1, in O(1) memory: a Feistel network
                          on two digits to the base ceil(sqrt(n)); a result outside [0, n) passes
                          through it again until it is inside, which keeps it a bijection
    content_hash(image)   equal for two images that are the same image
"""

import hashlib
import math

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def _scramble(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def draw(*parts) -> np.ndarray:
    """64 random bits for each (broadcast) tuple of integers `parts`: uint64 of their shape."""
    with np.errstate(over="ignore"):
        bits = np.uint64(0)
        for part in parts:
            bits = _scramble((bits ^ np.asarray(part).astype(np.uint64)) + _GOLDEN)
    return bits


def uniform(*parts) -> np.ndarray:
    """float64 in [0, 1) for each tuple of integers `parts`."""
    return (draw(*parts) >> np.uint64(11)) * 2.0**-53


def permute(index, size: int, key) -> np.ndarray:
    """Item `index` of a shuffle of range(size); each `key` is another shuffle.

    Args:
        index: int64[B], each in [0, size).
        size: the number of items.
        key: integer or integers [B].

    Returns:
        int64[B]; over all indices of one key, each of range(size) exactly once.
    """
    side = np.uint64(math.isqrt(size - 1) + 1)
    items = np.array(index, np.uint64)
    keys = np.broadcast_to(np.asarray(key).astype(np.uint64), items.shape)
    turns = draw(np.arange(_ROUNDS), keys[..., None])  # [B, rounds]
    outside = np.ones(items.shape, bool)
    while outside.any():
        left, right = np.divmod(items[outside], side)
        for turn in turns[outside].T:
            left, right = right, (left + _scramble(right ^ turn) % side) % side
        items[outside] = left * side + right
        outside = items >= np.uint64(size)
    return items.astype(np.int64)


def content_hash(image: bytes | np.ndarray) -> bytes:
    """16 bytes, equal for two images if their pixels (uint8[H, W, 3]) or files agree."""
    if isinstance(image, np.ndarray):
        image = repr(image.shape).encode() + np.ascontiguousarray(image).tobytes()
    return hashlib.blake2b(image, digest_size=16).digest()
