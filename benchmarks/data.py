"""How fast data are read: JPEG files against Pillow alone, and pairs from the token cache.

    python benchmarks/data.py

Both numbers are per core in use: seconds of processor time, so that a busy machine can be measured.
The first is a ratio within one run: JPEG files of 256 x 256 made here, decoded and resized to
128 x 128 by Pillow in a loop, and by `reading.examples` with everything that it checks. The second
is `batches.make` at 1024 + 128 tokens a pair.
"""

import functools
import io
import sys
import tempfile
import time

import numpy as np
from PIL import Image

from udd_jax.data import batches, reading, tokens
from udd_jax.data.records import Record

COUNT, SIDE, SIZE = 600, 256, 128
ITEMS, IMAGE_TOKENS, TEXT_TOKENS = 20000, 1024, 128


class Jpegs:
    """COUNT photographs-like files: smooth colour with some grain, about 20 kB each."""

    name = "jpegs"

    def __init__(self):
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(COUNT):
            smooth = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            pixels = np.asarray(smooth.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
            pixels = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        return Record(str(index), self.files[index], ("a photograph of something",))


class Blank:
    """ITEMS pictures that cost nothing to read."""

    name = "blank"
    picture = np.zeros((8, 8, 3), np.uint8)

    def __len__(self):
        return ITEMS

    def __getitem__(self, index):
        return Record(str(index), self.picture, ("nothing",))


def pillow(files) -> None:
    """What a bare loop does."""
    for file in files:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def rate(count: int, work) -> tuple[float, float]:
    """Items a second of the processor and of the clock, the better of three."""
    rates = []
    for _ in range(3):
        processor, clock = time.process_time(), time.perf_counter()
        work()
        rates.append(
            (count / (time.process_time() - processor), count / (time.perf_counter() - clock))
        )
    return tuple(np.max(rates, axis=0))


def main():
    source = Jpegs()
    views = reading.Views(SIZE)
    alone = rate(COUNT, lambda: pillow(source.files))
    ours = rate(COUNT, lambda: sum(1 for _ in reading.examples(source, 0, COUNT, views, threads=2)))
    print(
        f"Pillow alone      {alone[0]:8.0f} images / core second, {alone[1]:8.0f} / s by the clock"
    )
    print(f"reading.examples  {ours[0]:8.0f} images / core second, {ours[1]:8.0f} / s by the clock")
    print(f"ratio             {ours[0] / alone[0]:8.2f} of Pillow alone per core")

    rng = np.random.default_rng(0)
    image, text = (rng.integers(0, 2887, (256, n)) for n in (IMAGE_TOKENS, TEXT_TOKENS))
    with tempfile.TemporaryDirectory() as directory:
        cache = tokens.write_cache(
            Blank(),
            lambda _: image,
            lambda _: text,
            directory,
            settings={},
            views=reading.Views(8),
            batch_size=256,
        )
        for batch_size in (64, 256, 1024):
            steps = range(ITEMS // batch_size)
            found = rate(len(steps) * batch_size, functools.partial(read, cache, batch_size, steps))
            print(f"batches of {batch_size:4d}   {found[0]:8.0f} pairs / core second,  ", end="")
            print(f"{found[1]:8.0f} / s by the clock")


def read(cache, batch_size, steps):
    """The batches of some steps."""
    for step in steps:
        batches.make(cache, 0, step, batch_size)


if __name__ == "__main__":
    sys.exit(main())
