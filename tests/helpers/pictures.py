"""Makes the pictures of docs/sampling.md again, by the commands of the page.

    python -m tests.helpers.pictures

The commands of the page run in order in an empty folder. A picture of the page is the `sheet.png`
of the last command of the block above it.
"""

import contextlib
import pathlib
import shutil
import tempfile

import numpy as np
from PIL import Image

from tests.helpers import documented, shell

PAGE = documented.ROOT / "docs" / "sampling.md"


def files(folder) -> None:
    """The files that the page calls `a.png` and `m.png`: its lower half is new."""
    Image.new("RGB", (32, 32), "white").save(folder / "a.png")
    Image.fromarray(np.repeat(np.uint8([0, 255]), 16)[:, None].repeat(32, 1)).save(folder / "m.png")


def out(flags) -> str:
    """The folder of a command's samples."""
    return next(flag.removeprefix("--out=") for flag in flags if flag.startswith("--out="))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        files(pathlib.Path(place))
        for block in documented.blocks(PAGE):
            for words in block.commands():
                shell.run(*documented.arguments(words))
            if block.picture:
                (PAGE.parent / block.picture).parent.mkdir(exist_ok=True)
                shutil.copy(f"{out(words)}/sheet.png", PAGE.parent / block.picture)
