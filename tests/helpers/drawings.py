"""A folder of small drawings with names, which a classifier can learn in seconds."""

import json
import pathlib

import numpy as np
from PIL import Image


def patterns(folder, side: int, names: int) -> pathlib.Path:
    """`names` patterns of 4 x 4 cells, each in five pairs of colours; the last of them is held out.

    side: of a picture, a multiple of 4.
    """
    folder, rng, rows = pathlib.Path(folder), np.random.default_rng(0), []
    cells = rng.integers(0, 2, (names, 4, 4)).repeat(side // 4, axis=1).repeat(side // 4, axis=2)
    for number, pattern in enumerate(cells):
        for copy in range(5):
            ink, paper = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
            pixels = np.where(pattern[..., None] == 1, ink, paper).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}-{copy}.png")
            name = f"pattern {chr(97 + number)}"
            split = "test" if copy == 4 else "train"
            rows.append({"file": f"{number}-{copy}.png", "captions": [name], "split": split})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
