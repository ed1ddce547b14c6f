"""Agreement of image and caption, and variety of the samples; exact for an embedded world.

The world reads an image back to a scene and parses a caption to a meaning. They agree if the
caption is true of the scene (`worlds.World`). A sample that cannot be read is wrong.

Agreement does not see collapse (always the same wording, always the upper row). So outcomes o are
also compared with their true distribution given the condition c, by total variation

    TV = 1/2 sum_(c, o) | share of items with c and o  -  mean over items of [c_i = c] p(o | c) |

over the items that can be read. `noise` is the expected TV of the same number of draws from the
true distribution: 1/2 sum sqrt(2 v / pi), with v the variance of each share.

Images are uint8[B, S, S, C], captions lists of B strings. `read` turns both into a list of B pairs
(scene or None, meaning or None), the input of the other functions. The error of a rate is the
half-width of Wilson's interval at one standard error, which is not zero at 0 and 1.
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from udd_jax.data.sources.worlds import Law, World
from udd_jax.errors import UserError

BLANK = "___"
UNREADABLE, UNPARSABLE = "unreadable image", "unparsable caption"
TASKS = ("pair", "i2t", "t2i")


def rate(hits) -> dict[str, float]:
    """The share of true values among bool[n], with Wilson's standard error; 0 and 1 for n = 0."""
    count = len(hits)
    if count == 0:
        return {"rate": 0.0, "error": 1.0, "count": 0}
    share = float(np.mean(hits))
    error = math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)
    return {"rate": share, "error": error, "count": count}


def read(world: World, images: np.ndarray, captions: list[str]) -> list[tuple]:
    """(scene or None, meaning or None) for each image and its caption. ValueError: other counts."""
    if len(images) != len(captions):
        raise UserError(f"{len(images)} images and {len(captions)} captions: give one for each")
    return list(zip(world.read_images(images), map(world.parse_caption, captions), strict=True))


def verdict(world: World, scene, meaning) -> str | None:
    """None if they agree, else UNREADABLE, UNPARSABLE or one of the world's reasons."""
    if scene is None:
        return UNREADABLE
    if meaning is None:
        return UNPARSABLE
    return world.difference(scene, meaning)


def agreement(world: World, pairs: Sequence[tuple]) -> tuple[list[str | None], dict]:
    """The verdict on each pair of `read` (None if it agrees), and the rates.

    Rates: `agreement`; `by_named`, the same by the number of attributes in the caption; `reasons`,
    the share of all items that fail for each reason.
    """
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
    """How often reading fails on ground truth.

    `images`: noisy images that are not read as their own scene; `captions`: captions whose meaning
    is not true of their scene; `pairs`: pairs that are said to disagree.
    """
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
    """TV between the outcomes and the mean of the laws {outcome: p}, one for each item.

    noise: what is expected of as many draws from the laws themselves. error: the standard error of
    tv, from above (that of a tv far from 0, with outcomes that do not hang together). Without items
    tv is 1.
    """
    count = len(outcomes)
    if count == 0:
        return {"tv": 1.0, "noise": 1.0, "error": 0.0, "count": 0}
    excess, variance = collections.defaultdict(float), collections.defaultdict(float)
    for law, outcome in zip(laws, outcomes, strict=True):
        excess[outcome] += 1 / count
        for key, p in law.items():
            excess[key] -= p / count
            variance[key] += p * (1 - p) / count**2
    return {
        "tv": math.fsum(map(abs, excess.values())) / 2,
        "noise": math.fsum(math.sqrt(2 * v / math.pi) for v in variance.values()) / 2,
        "error": math.sqrt(math.fsum(variance.values())) / 2,
        "count": count,
    }


def variation(laws: Mapping[str, Law], pairs: Sequence[tuple]) -> dict[str, dict]:
    """Total variation from the true law of each property; laws: an entry of `World.laws`.

    pairs: (scene, meaning) of the samples that can be read. A law of one modality ignores the
    other.
    """
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
    """Whether each infilled pair of `read` keeps the given parts, bool[B], and the rates.

    Rates: `consistency` (it also agrees), `image`, `words`. free_pixels: bool[B, S, S], True where
    the image was generated. In each tile of the world, the scene that is read from the result must
    explain the given pixels. In `given_captions` each `___` stands for one word.
    """
    image = _explained(world, [scene for scene, _ in pairs], given_images, free_pixels)
    both = zip(captions, given_captions, strict=True)
    words = np.array([_fills(text, given) for text, given in both], bool)
    agrees = np.array([verdict(world, *pair) is None for pair in pairs], bool)
    kept = image & words
    return kept, {"consistency": rate(agrees & kept), "image": rate(image), "words": rate(words)}


def _explained(world: World, scenes: list, given_images, free_pixels) -> np.ndarray:
    """Whether the clean drawing of each scene fits the given pixels, bool[B]; False without scene.

    In each tile the mean squared difference may be at most `world.residual`.
    """
    size = world.image_size
    expected, channels = (len(scenes), size, size), world.channels
    if given_images.shape != (*expected, channels) or free_pixels.shape != expected:
        raise UserError(
            f"given_images {given_images.shape}, free_pixels {free_pixels.shape}: expected "
            f"{(*expected, channels)} and {expected}"
        )
    nothing = np.zeros((size, size, channels), np.uint8)
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
