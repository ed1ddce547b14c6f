"""What is measured: samples judged, the image tokenizer, the bound on the likelihood.

Judging needs to know what is right, which it does for `shapes`, where images and captions can be
read. A rate is {rate, error, count} with Wilson's error at one standard deviation. Judged are the
decoded images, without the given pixels pasted back.

The bound is in bits a token: -log2 p of what is generated given the rest, at most, over all its
positions, padding too. The entropy of captions given scenes, of the same items, is the least that
the bound on captions given images can be.
"""

import dataclasses
import math

import numpy as np

from udd_jax.data.sources import shapes
from udd_jax.evaluation import held_out, samples
from udd_jax.evaluation.metrics import agreement, likelihood
from udd_jax.tokenizers import reconstruction

BOUNDS = ("pair", "t2i", "i2t", "image", "text")
LOST = "given part not kept"


def scenes(pipe, items: held_out.Items) -> list | None:
    """The scenes of the items where they are known and can be read from images of this size."""
    if pipe.config.data != "shapes" or pipe.config.image_size != shapes.drawing.IMAGE_SIZE:
        return None
    return [shapes.scenes.all_scenes()[extra["scene"]] for extra in items.extra]


def judge(task: str, drawn: samples.Samples) -> tuple[dict, list[str | None]]:
    """The rates of a task's samples on shapes, and of each sample why it is wrong, None if right.

    `agreement`, `by_named`, `reasons` and, but for infilling, `variation` of what is to agree;
    `consistency` and its parts of infilling; `readable` or `parsable` of one modality alone.
    """
    if task == "image":
        scenes = shapes.drawing.read_images(drawn.images)
        found = [scene for scene in scenes if scene is not None]
        return {
            "readable": agreement.rate([scene is not None for scene in scenes]),
            "variation": {
                "number": _variation(agreement.number_law(), [len(s.objects) for s in found]),
                "place": _variation(agreement.place_law(), [s.place for s in found]),
            },
        }, [None if scene else agreement.REASONS[0] for scene in scenes]
    meanings = [shapes.grammar.parse_caption(caption) for caption in drawn.captions]
    if task == "text":
        found = [meaning for meaning in meanings if meaning is not None]
        places = [(len(m.objects), agreement.wording(m)) for m in found]
        return {
            "parsable": agreement.rate([meaning is not None for meaning in meanings]),
            "variation": {
                "number": _variation(agreement.number_law(), [len(m.objects) for m in found]),
                "place": _variation(_place_words(), places),
                "template": _variation(agreement.template_law(), [m.template for m in found]),
            },
        }, [None if meaning else agreement.REASONS[1] for meaning in meanings]
    _, rates = agreement.agreement(drawn.images, drawn.captions)
    reasons = list(map(agreement.verdict, shapes.drawing.read_images(drawn.images), meanings))
    if task != "infill":
        return rates | {
            "variation": agreement.variation(drawn.images, drawn.captions, task)
        }, reasons
    good, parts = agreement.consistency(
        drawn.images, drawn.captions, drawn.given_images, drawn.free_pixels, drawn.given_captions
    )
    reasons = [r or (None if g else LOST) for r, g in zip(reasons, good, strict=True)]
    rates["reasons"] |= {LOST: reasons.count(LOST) / len(reasons)}
    return parts | rates, reasons


def _variation(law: dict, outcomes: list) -> dict:
    return agreement.total_variation([law] * len(outcomes), outcomes)


def _place_words() -> dict[tuple[int, str], float]:
    """p(number of objects, what a caption says of where they are)."""
    law, places = {}, agreement.place_law()
    for place, scene in {scene.place: scene for scene in shapes.scenes.all_scenes()}.items():
        for words, share in agreement.wording_law(scene).items():
            key = len(place), words
            law[key] = law.get(key, 0.0) + places[place] * share
    return law


def reconstructions(pipe, items: held_out.Items, shown: np.ndarray, scenes: list | None) -> dict:
    """The image tokenizer, from the decoded codes of the items: PSNR, codes in use and, where the
    scenes are known, the share that is read right. Perplexity is exp of the codes' entropy."""
    psnr = np.minimum(reconstruction.psnr(shown, items.images), 100.0)  # of equal ones infinite
    share = (
        np.bincount(items.codes.reshape(-1), minlength=pipe.tokenizers["image"].codes)
        / items.codes.size
    )
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
    if scenes is not None:
        read = [a == b for a, b in zip(shapes.drawing.read_images(shown), scenes, strict=True)]
        found["read_right"] = agreement.rate(read)
    return found


def bounds(
    pipe, items: held_out.Items, *, count: int, times: int, seed: int, calls: int = 0, names=BOUNDS
) -> dict:
    """Of each task in `names` the bits a token with their standard error, and each modality's.

    Uses the first `count` items, `times` noise levels each; calls: of a chain of so many steps.
    """
    tokens = {"image": items.codes[:count], "text": items.ids[:count]}
    found = {}
    for task in names:
        bits = -pipe.score(tokens, task=task, times=times, seed=seed, calls=calls)
        parts = {
            modality.name: (column, modality.length)
            for modality, column in zip(pipe.vocab.modalities, bits.T, strict=True)
            if column.any()  # one that is given or absent costs nothing
        }
        found[task] = _bits(*map(sum, zip(*parts.values(), strict=True))) | {
            "modalities": {name: _bits(*part) for name, part in parts.items()}
        }
    return found


def _bits(bits: np.ndarray, tokens: int) -> dict:
    return dataclasses.asdict(likelihood.bits_per_token(bits * math.log(2), tokens))


def entropy(scenes: list, length: int, captions: dict) -> dict:
    """Bits a token of captions given scenes, and whether their bound (an entry of `bounds`)
    undercuts it by more than 3 standard errors, which no true bound does."""
    truth = shapes.grammar.caption_entropy(scenes) / length
    least = captions["value"] + 3 * (captions["standard_error"] or 0)
    return {"value": truth, "undercut": bool(least < truth)}
