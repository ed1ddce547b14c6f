"""Do image and caption agree, and is the variety still there? Exact answers where a world is known.

An image is read back to a scene, a caption parsed to a meaning, and they agree when everything that
the caption says is so (`worlds.World`). What cannot be read is wrong.

Agreement alone is blind to collapse (always the same wording, always the upper row). So outcomes o
are also compared with their true law given what the condition c names, by total variation

    TV = 1/2 sum_(c, o) | share of items with c and o  -  mean over items of [c_i = c] p(o | c) |

over the items that can be read. `noise` is the TV to be expected of as many draws from the true law
itself: 1/2 sum sqrt(2 v / pi), with v the variance of each share.

Images are uint8[B, S, S, 3], captions lists of B strings, and `read` makes of both a list of B
pairs (scene or None, meaning or None), on which the rest works. Rates carry the half-width of
Wilson's interval at one standard error, which is not zero at 0 and 1.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from udd_jax.data.sources.worlds import Law, World

BLANK = "___"
UNREADABLE, UNPARSABLE = "unreadable image", "unparsable caption"
TASKS = ("pair", "i2t", "t2i")


def rate(hits) -> dict[str, float]:
    """Share of true values among bool[n], with Wilson's standard error: of none, 0 and 1."""
    count = len(hits)
    if count == 0:
        return {"rate": 0.0, "error": 1.0, "count": 0}
    share = float(np.mean(hits))
    error = math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)
    return {"rate": share, "error": error, "count": count}


def read(world: World, images: np.ndarray, captions: list[str]) -> list[tuple]:
    """(scene or None, meaning or None) of each image and its caption."""
    if len(images) != len(captions):
        raise ValueError(f"{len(images)} images and {len(captions)} captions: give one for each")
    return list(zip(world.read_images(images), map(world.parse_caption, captions), strict=True))


def verdict(world: World, scene, meaning) -> str | None:
    """None where they agree, else UNREADABLE, UNPARSABLE or the world's reason why not."""
    if scene is None:
        return UNREADABLE
    if meaning is None:
        return UNPARSABLE
    return world.difference(scene, meaning)


def agreement(world: World, pairs: Sequence[tuple]) -> tuple[list[str | None], dict]:
    """The verdict on each pair of `read`, None where it agrees, and the rates

    `agreement`; `by_named`, the same by the number of attributes that the caption names; `reasons`,
    the share of all items that fail for each reason."""
    found = [verdict(world, *pair) for pair in pairs]
    rates = {"agreement": rate([reason is None for reason in found])}
    if world.named:
        groups = collections.defaultdict(list)
        for (_, meaning), reason in zip(pairs, found, strict=True):
            if meaning is not None:
                groups[world.named(meaning)].append(reason is None)
        rates["by_named"] = {str(named): rate(groups[named]) for named in sorted(groups)}
    counts = collections.Counter(found)
    reasons = (UNREADABLE, UNPARSABLE, *world.reasons)
    rates["reasons"] = {reason: counts[reason] / max(len(found), 1) for reason in reasons}
    return found, rates


def agreed(world: World, images: np.ndarray, captions: list[str]) -> np.ndarray:
    """Whether each image agrees with its caption: bool[B]."""
    pairs = read(world, images, captions)
    return np.array([verdict(world, *pair) is None for pair in pairs], bool)


def reader_error(world: World, records: Sequence) -> dict[str, dict]:
    """How often reading fails on ground truth: noisy images not read as their own scene, captions
    that do not parse to what is true of it, and pairs that are said to disagree."""
    truth = [record.extra["scene"] for record in records]
    images = np.stack([record.image for record in records])
    pairs = read(world, images, [record.captions[0] for record in records])
    told = [verdict(world, scene, m) for scene, (_, m) in zip(truth, pairs, strict=True)]
    return {
        "images": rate([scene != t for (scene, _), t in zip(pairs, truth, strict=True)]),
        "captions": rate([reason is not None for reason in told]),
        "pairs": rate([verdict(world, *pair) is not None for pair in pairs]),
    }


# ------------------------------------------------------------------------------------- variety


def total_variation(laws: list[dict], outcomes: list) -> dict[str, float]:
    """TV between the outcomes and the mean of the laws, one law {outcome: p} an item; 1 of none."""
    count = len(outcomes)
    if count == 0:
        return {"tv": 1.0, "noise": 1.0, "count": 0}
    excess, variance = collections.defaultdict(float), collections.defaultdict(float)
    for law, outcome in zip(laws, outcomes, strict=True):
        excess[outcome] += 1 / count
        for key, p in law.items():
            excess[key] -= p / count
            variance[key] += p * (1 - p) / count**2
    return {
        "tv": math.fsum(map(abs, excess.values())) / 2,
        "noise": math.fsum(math.sqrt(2 * v / math.pi) for v in variance.values()) / 2,
        "count": count,
    }


def variation(laws: Mapping[str, Law], pairs: Sequence[tuple]) -> dict[str, dict]:
    """Total variation from the true law of each property, an entry of `World.laws[task]`.

    pairs: those that were read, (scene, meaning); a law of one modality alone ignores the other."""
    found = {}
    for name, law in laws.items():
        rows = [law(*pair) for pair in pairs]
        found[name] = total_variation(
            [{(condition, key): p for key, p in own.items()} for condition, own, _ in rows],
            [(condition, outcome) for condition, _, outcome in rows],
        )
    return found


# ----------------------------------------------------------------------------------- infilling


def consistency(
    world: World,
    pairs: Sequence[tuple],
    captions: list[str],
    given_images: np.ndarray,
    free_pixels: np.ndarray,
    given_captions: list[str],
) -> tuple[np.ndarray, dict]:
    """Whether each infilled pair of `read` keeps what was given: bool[B], and the rates

    `consistency` (it also agrees), `image`, `words`. `free_pixels` bool[B, S, S] is true where the
    image was to be generated: the given pixels must be explained, in each tile of the world, by the
    scene that is read from the result. In `given_captions` each `___` stands for one word."""
    image = _explained(world, [scene for scene, _ in pairs], given_images, free_pixels)
    both = zip(captions, given_captions, strict=True)
    words = np.array([_fills(text, given) for text, given in both], bool)
    agrees = np.array([verdict(world, *pair) is None for pair in pairs], bool)
    kept = image & words
    return kept, {"consistency": rate(agrees & kept), "image": rate(image), "words": rate(words)}


def _explained(world: World, scenes: list, given_images, free_pixels) -> np.ndarray:
    """Whether the clean drawing of each scene lies within `world.residual` of the given pixels, as
    a mean over those of each tile: bool[B], False where nothing was read."""
    size = world.image_size
    expected = (len(scenes), size, size)
    if given_images.shape != (*expected, 3) or free_pixels.shape != expected:
        raise ValueError(
            f"given_images {given_images.shape}, free_pixels {free_pixels.shape}: expected "
            f"{(*expected, 3)} and {expected}"
        )
    nothing = np.zeros((size, size, 3), np.uint8)
    drawn = np.stack([nothing if scene is None else world.render(scene) for scene in scenes])
    error = ((given_images.astype(np.float32) - drawn) ** 2).mean(-1)
    rows, columns = world.tiles
    tiled = (len(scenes), rows, size // rows, columns, size // columns)
    total = np.where(free_pixels, 0, error).reshape(tiled).sum((2, 4))  # [B, rows, columns]
    count = (~free_pixels).reshape(tiled).sum((2, 4))
    read = np.array([scene is not None for scene in scenes])
    return read & (total <= world.residual * count).all((1, 2))


def _fills(text: str, given: str) -> bool:
    """Whether the caption is the given one with one word for each blank."""
    pattern = r"\S+".join(map(re.escape, given.split(BLANK)))
    return re.fullmatch(pattern, text) is not None
