"""The end of an image tokenizer's training: which codes it keeps, and whether it is worth having.

    used          codes that the images use; codes that differ only by noise become one
    score         how well it shows images
    check_worth   refuses a tokenizer that shows little more than one colour a cell
    poor          whether it does

Joining codes makes a model's work easier, but joining too many throws away what the pictures show.
So it has a limit: a loss of PSNR in dB, measured on the images.
"""

import functools
import math

import jax
import numpy as np

from udd_jax.errors import UserError
from udd_jax.runtime import logbook
from udd_jax.tokenizers import codebook, image_tokenizer, reconstruction, vqgan

POOL_VECTORS = 20_000  # for k-means and for the spread around the codes
MERGE_COST = 0.3  # dB, the most that joining may cost
SMALLEST_MERGE = 0.1  # below this, no codes are joined
GOOD = 30.0  # dB, enough for any picture, also where cells of one colour are as good


@functools.partial(jax.jit, static_argnums=0)
def _vectors(model, params, images):
    return model.apply({"params": params}, image_tokenizer.to_unit(images), method="encode")


def pool_vectors(model, params, images, key, level: int = 0) -> np.ndarray:
    """Pre-quantisation vectors float32[n, E] at random positions, about POOL_VECTORS in total.

    level: which codebook they are for.
    """
    each = min(math.prod(model.levels[level][0]), max(1, POOL_VECTORS // len(images)))
    chosen = []
    for i in range(0, len(images), 64):
        part = images[i : i + 64]
        z = _vectors(model, params, np.pad(part, [(0, 64 - len(part)), (0, 0), (0, 0), (0, 0)]))
        z = z[level] if len(model.levels) > 1 else z
        z = np.asarray(z)[: len(part)].reshape(len(part), -1, model.embed_dim)
        places = jax.random.uniform(jax.random.fold_in(key, i), z.shape[:2]).argsort(1)[:, :each]
        chosen.append(np.take_along_axis(z, np.asarray(places)[..., None], 1))
    return np.concatenate(chosen).reshape(-1, model.embed_dim)


def used(
    model, params, images, merge: float, key, most_cost: float = MERGE_COST
) -> image_tokenizer.ImageTokenizer:
    """The tokenizer with the codes that images uint8[n, S, S, 3] use; all codes if merge = 0.

    Joined codes cost at most `most_cost` dB of PSNR on these images; `merge` is halved until that
    holds. At least two codes are left.
    """
    whole = image_tokenizer.ImageTokenizer(model, params)
    if not merge:
        return whole
    codes, levels = whole.encode(images), []
    parts = np.split(codes, np.cumsum(whole.lengths)[:-1], axis=1)
    for level, (name, part) in enumerate(zip(model.codebooks, parts, strict=True)):
        rows = np.asarray(vqgan.rows(params, name))
        vectors = pool_vectors(model, params, images, key, level)
        spread = ((vectors - rows[np.asarray(codebook.nearest(vectors, rows))]) ** 2).sum(-1).mean()
        levels.append((np.bincount(part.ravel(), minlength=len(rows)), rows, spread**0.5))

    def joined(merge):
        kept = [codebook.used_codes(n, rows, merge * apart, least=2) for n, rows, apart in levels]
        maps, back = (np.concatenate(each) for each in zip(*kept, strict=True))
        return image_tokenizer.ImageTokenizer(model, params, maps, decoded_to=back)

    if most_cost == np.inf:
        return joined(merge)
    targets = reconstruction.seen(images)
    best = _pooled_psnr(reconstruction.seen(whole.decode(codes)), targets)
    while merge:
        tokenizer = joined(merge)
        decoded = tokenizer.decode(tokenizer.mapped(codes))
        cost = best - _pooled_psnr(reconstruction.seen(decoded), targets)
        if cost <= most_cost:
            return tokenizer
        smaller = merge / 2 if merge / 2 >= SMALLEST_MERGE else 0.0
        logbook.say(
            f"image tokenizer: vq.merge={merge:g} leaves {tokenizer.codes} codes and costs "
            f"{cost:.2f} dB, more than {most_cost:g}: {smaller:g} instead"
        )
        merge = smaller
    return joined(0.0)


def _pooled_psnr(images, targets) -> float:
    """The PSNR of all pixels together, at most `reconstruction.MOST` dB."""
    errors = [np.square(np.float32(a) - b).mean() for a, b in zip(images, targets, strict=True)]
    return min(float(10 * np.log10(255**2 / max(np.mean(errors), 1e-9))), reconstruction.MOST)


def score(tokenizer: image_tokenizer.ImageTokenizer, images) -> dict:
    """The scores of a tokenizer on images uint8[n, S, S, 3]: psnr (dB), ssim, codes, usage, ...

    `above_flat` (dB) compares with the same images painted in one colour a cell. Images with a side
    below `reconstruction.WINDOW` have no ssim.
    """
    codes = tokenizer.encode(images)
    decoded = tokenizer.decode(codes)
    fine = tokenizer.finest(codes)
    counts = np.bincount(fine.ravel(), minlength=tokenizer.codes)
    fits = reconstruction.window_fits(images)
    return {
        **worth(decoded, images, tokenizer.grid),
        **({"ssim": float(reconstruction.ssim(decoded, images).mean())} if fits else {}),
        "codes": tokenizer.codes,
        "usage": float((counts > 0).mean()),
        "perplexity": float(codebook.perplexity(fine, tokenizer.codes)),
    }


def worth(decoded, images, grid: tuple[int, int]) -> dict:
    """The part of `score` by which a tokenizer is judged: psnr and above_flat, dB.

    decoded: the images uint8[n, S, S, C] after the tokenizer; grid: its (rows, columns) of cells.
    """
    shown, targets = reconstruction.seen(decoded), reconstruction.seen(images)
    flat = _pooled_psnr(reconstruction.flat(targets, grid), targets)
    psnr = float(reconstruction.psnr(decoded, images).mean())
    return {"psnr": psnr, "above_flat": _pooled_psnr(shown, targets) - flat}


def poor(scores: dict, above_flat: float) -> bool:
    """Whether a tokenizer is not `above_flat` dB better than flat cells; 0 allows everything.

    scores: of `worth`; GOOD dB of PSNR are always enough.
    """
    return bool(above_flat) and scores["above_flat"] < above_flat and scores["psnr"] < GOOD


def check_worth(scores: dict, above_flat: float) -> None:
    """ValueError, one line, if a tokenizer is not `above_flat` dB better than flat cells.

    scores, above_flat: as of `poor`.
    """
    if poor(scores, above_flat):
        raise UserError(
            f"image tokenizer: it is {scores['above_flat']:.2f} dB better than one colour a cell, "
            f"expected at least {above_flat:g}: choose another --workdir= and more "
            "--config.vq.steps= or --config.vq.model.n_embed=, or a smaller "
            "--config.vq.model.patch=; --config.vq.above_flat=0 goes on with this tokenizer"
        )
