"""The scores of the suite "main": verdicts on samples, the image tokenizer, the likelihood bound.

Verdicts need an embedded world, whose images and captions can be read (`worlds.World`). A rate is
{rate, error, count} with Wilson's error at one standard deviation. The decoded images are read,
without pasting the given pixels back.

The bound is an upper bound on -log2 p of the generated modalities given the rest, in bits per
token, over all their positions, also padding. The entropy of captions given scenes, on the same
items, is a lower limit of the bound on captions given images.
"""

import dataclasses
import math

import numpy as np

from udd_jax.data.sources.worlds import World
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, samples
from udd_jax.evaluation.metrics import agreement, likelihood
from udd_jax.steering import chains
from udd_jax.tokenizers import reconstruction

BOUNDS = ("pair", "t2i", "i2t", "image", "text")
LOST = "given part not kept"


def require_world(items: held_out.Items, suite: str) -> World:
    """The world of the items. ValueError if the data are not an embedded world at its own size."""
    if items.world is None:
        raise UserError(
            f"suite {suite!r} needs data that can be read: an embedded world at its own size, "
            f"not {items.name}"
        )
    return items.world


def verdicts(world: World, task: str, drawn: samples.Samples) -> tuple[dict, list[str | None]]:
    """The rates of a task's samples, and for each sample the reason why it is wrong, or None.

    Rates: `agreement`, `by_named` and `reasons` for tasks with image and caption; also
    `consistency`, `image` and `words` for infilling; `readable` or `parsable` for one modality
    alone; `variation` if the world has laws for the task.
    """
    nothing = [None] * len(drawn)
    if task == "image":
        pairs = list(zip(world.read_images(drawn.images), nothing, strict=True))
        reasons = [agreement.UNREADABLE if scene is None else None for scene, _ in pairs]
        rates = {"readable": agreement.rate([reason is None for reason in reasons])}
    elif task == "text":
        pairs = list(zip(nothing, map(world.parse_caption, drawn.captions), strict=True))
        reasons = [agreement.UNPARSABLE if meaning is None else None for _, meaning in pairs]
        rates = {"parsable": agreement.rate([reason is None for reason in reasons])}
    else:
        pairs = agreement.read(world, drawn.images, drawn.captions)
        reasons, rates = agreement.agreement(world, pairs)
    if task == "infill":
        given = drawn.given_images, drawn.free_pixels, drawn.given_captions
        kept, parts = agreement.consistency(world, pairs, drawn.captions, *given)
        reasons = [r or (None if k else LOST) for r, k in zip(reasons, kept, strict=True)]
        rates = parts | rates
        rates["reasons"] |= {LOST: reasons.count(LOST) / len(reasons)}
    laws = world.laws.get(task)
    if laws:  # of what was read, right or wrong
        unread = agreement.UNREADABLE, agreement.UNPARSABLE
        read = [p for p, reason in zip(pairs, reasons, strict=True) if reason not in unread]
        rates["variation"] = agreement.variation(laws, read)
    return rates, reasons


def reconstructions(pipe, items: held_out.Items, shown: np.ndarray) -> dict:
    """The scores of the image tokenizer on the items; shown: their decoded codes.

    PSNR in dB, codes in use, perplexity (exp of the entropy of the codes) and, for an embedded
    world, the share of images that are read right.
    """
    psnr = reconstruction.psnr(shown, items.images)
    fine = pipe.vocab.parts({"image": items.codes})["image"]
    share = np.bincount(fine.reshape(-1), minlength=pipe.tokenizers["image"].codes) / fine.size
    used = share[share > 0]
    found = {
        "psnr": {
            "value": float(psnr.mean()),
            "standard_error": float(psnr.std() / math.sqrt(len(psnr))),
            "count": len(psnr),
        },
        "codes": int(pipe.tokenizers["image"].codes),
        "codes_used": len(used),
        "perplexity": float(np.exp(-(used * np.log(used)).sum())),
    }
    if items.world:
        read = zip(items.world.read_images(shown), items.scenes, strict=True)
        found["read_right"] = agreement.rate([scene == truth for scene, truth in read])
    return found


def bounds(
    pipe, items: held_out.Items, *, count: int, times: int, seed: int, calls: int = 0, names=BOUNDS
) -> dict:
    """{task: bits per token with their standard error, and those of each modality}.

    Tasks of which the network has no bound are left out (`chains.has_bound`). Uses the first
    `count` items with `times` noise levels each. calls: the steps of the chain that the bound is
    for; 0 means T.
    """
    tokens = {"image": items.codes[:count], "text": items.ids[:count]}
    found = {}
    for task in (name for name in names if pipe.can(name) and chains.has_bound(pipe, name)):
        bits = -pipe.score(tokens, task=task, times=times, seed=seed, calls=calls)
        parts = {
            modality.name: (column, modality.length)
            for modality, column in zip(pipe.vocab.modalities, bits.T, strict=True)
            if column.any()  # a given or absent modality costs nothing
        }
        found[task] = _bits(*map(sum, zip(*parts.values(), strict=True))) | {
            "modalities": {name: _bits(*part) for name, part in parts.items()}
        }
    return found


def _bits(bits: np.ndarray, tokens: int) -> dict:
    return dataclasses.asdict(likelihood.bits_per_token(bits * math.log(2), tokens))


def entropy(bits: float, length: int, captions: dict) -> dict:
    """The entropy of captions given scenes in bits per token, and whether the bound undercuts it.

    bits: the entropy of a caption; length: tokens of a caption; captions: the entry of `bounds`. A
    correct bound is not below the entropy by more than 3 standard errors.
    """
    truth = bits / length
    least = captions["value"] + 3 * (captions["standard_error"] or 0)
    return {"value": truth, "undercut": bool(least < truth)}
