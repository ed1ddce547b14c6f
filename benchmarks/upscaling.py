"""Are small pictures drawn right at a larger size?

    python -m benchmarks upscaling --run=runs/pyramid [--count=64] [--seed=0]

The run has two levels of a picture, and is one of an embedded world, whose pictures can be read.
Rows, each a share of pictures that show the scene that they were made from:

    small      held-out pictures of half the size (bicubic), drawn at the size of the run
    windows    quadrants of pictures of twice the size that show four scenes each, drawn by windows
               from their half: larger than any picture in training
"""

import argparse

import numpy as np
from PIL import Image

from udd_jax import pipeline
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, scores
from udd_jax.evaluation.metrics import agreement
from udd_jax.runtime import files

FOUR = 4  # scenes of a large picture


def halved(images: np.ndarray) -> np.ndarray:
    """uint8[n, 2H, 2W, C] -> uint8[n, H, W, C], bicubic."""
    size = images.shape[2] // 2, images.shape[1] // 2
    return np.stack([np.asarray(Image.fromarray(i).resize(size, Image.BICUBIC)) for i in images])


def quartered(images: np.ndarray) -> np.ndarray:
    """uint8[4 n, H, W, C] -> uint8[n, 2H, 2W, C]: four pictures each, row by row."""
    n, (h, w, c) = len(images) // FOUR, images.shape[1:]
    grid = images[: FOUR * n].reshape(n, 2, 2, h, w, c)
    return grid.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * h, 2 * w, c)


def quadrants(images: np.ndarray) -> np.ndarray:
    """The way back: uint8[n, 2H, 2W, C] -> uint8[4 n, H, W, C]."""
    n, (h, w, c) = len(images), images.shape[1:]
    grid = images.reshape(n, 2, h // 2, 2, w // 2, c).transpose(0, 1, 3, 2, 4, 5)
    return grid.reshape(FOUR * n, h // 2, w // 2, c)


def run(folder, count: int, seed: int) -> dict:
    """{"small": rate, "windows": rate}. UserError: one level, no embedded world, or less than four
    items."""
    pipe = pipeline.Pipeline.load(folder)
    items = held_out.read(pipe, count)
    scores.require_world(items, "upscaling")
    if len(items) < FOUR:
        raise UserError(
            f"--count={count}: {len(items)} held-out pictures, expected at least {FOUR}, as many "
            "as a large one shows"
        )
    made = {
        "small": pipe.upscale(halved(items.images), seed=seed),
        "windows": quadrants(pipe.upscale(halved(quartered(items.images)), factor=2, seed=seed)),
    }
    rows = {}
    for name, images in made.items():
        seen = zip(items.world.read_images(images), items.scenes, strict=False)
        rows[name] = agreement.rate([found == scene for found, scene in seen])
        print(f"{name}: {rows[name]['rate']:.3f} of {rows[name]['count']}", flush=True)
    return rows


def main(arguments) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks upscaling", description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="a JSON file for the rows")
    o = parser.parse_args(arguments)
    rows = run(o.run, o.count, o.seed)
    if o.out:
        files.write_json(o.out, rows)
