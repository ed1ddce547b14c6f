"""How fast data are read: JPEG files against Pillow alone, and pairs from the token cache.

Numbers are per core in use: seconds of processor time, so that a busy machine can be measured. The
first is a ratio within one run: JPEG files of 256 x 256 made here, decoded and resized to
128 x 128 by Pillow in a loop, and by `reading.examples` with everything that it checks. The second
is `batches.make` at 1024 + 128 tokens a pair.
"""

import functools
import io
import tempfile
import time

import numpy as np
from PIL import Image

from udd_jax.data import batches, reading, token_cache
from udd_jax.data.records import Record

COUNT, SIDE, SIZE = 600, 256, 128
ITEMS, IMAGE_TOKENS, TEXT_TOKENS = 20000, 1024, 128


class Jpegs:
    """Files like photographs: smooth colour with some grain, about 20 kB each."""

    name = "jpegs"

    def __init__(self, count):
        rng = np.random.default_rng(0)
        self.files = []
        for _ in range(count):
            smooth = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
            pixels = np.asarray(smooth.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32)
            pixels = np.clip(pixels + rng.normal(0, 8, pixels.shape), 0, 255).astype(np.uint8)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=90)
            self.files.append(file.getvalue())

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        return Record(str(index), self.files[index], ("a photograph of something",))


class Blank:
    """Pictures that cost nothing to read."""

    name = "blank"
    picture = np.zeros((8, 8, 3), np.uint8)

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return self.items

    def __getitem__(self, index):
        return Record(str(index), self.picture, ("nothing",))


def pillow(files) -> None:
    """What a bare loop does."""
    for file in files:
        image = Image.open(io.BytesIO(file)).convert("RGB")
        np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def write_cache(
    directory, image_tokens: int, text_tokens: int, items: int
) -> token_cache.TokenCache:
    """A token cache of random pairs."""
    rng = np.random.default_rng(0)
    image, text = (rng.integers(0, 31, (256, n)) for n in (image_tokens, text_tokens))
    return token_cache.write_cache(
        Blank(items),
        lambda pictures: image[: len(pictures)],
        lambda captions: text[: len(captions)],
        directory,
        settings={},
        views=reading.Views(8),
        batch_size=256,
    )


def read(cache, batch_size: int, count: int) -> None:
    """Batches, one after the other."""
    for step in range(count):
        batches.make(cache, 0, step, batch_size)


def rate(name: str, count: int, work, repeats: int) -> dict:
    """A row: items a second of the processor and of the clock, medians."""
    rates = []
    for _ in range(repeats):
        processor, clock = time.process_time(), time.perf_counter()
        work()
        rates.append(
            (count / (time.process_time() - processor), count / (time.perf_counter() - clock))
        )
    low, middle, high = np.percentile(rates, (25, 50, 75), axis=0)
    return {
        "name": name,
        "per_core_second": float(middle[0]),
        "per_second": float(middle[1]),
        "spread": float((high[0] - low[0]) / middle[0]),
        "rounds": repeats,
    }


def rows(repeats: int, count: int = COUNT, items: int = ITEMS):
    """The input pipeline: pictures against Pillow alone, then batches of tokens."""
    source, views = Jpegs(count), reading.Views(SIZE)
    alone = rate("Pillow alone, images", count, lambda: pillow(source.files), repeats)
    yield alone

    def examples():
        return sum(1 for _ in reading.examples(source, 0, count, views, threads=2))

    ours = rate("reading.examples, images", count, examples, repeats)
    yield ours | {"of_pillow": ours["per_core_second"] / alone["per_core_second"]}
    with tempfile.TemporaryDirectory() as directory:
        cache = write_cache(directory, IMAGE_TOKENS, TEXT_TOKENS, items)
        for batch_size in (64, 256, 1024):
            steps = max(items // batch_size, 1)
            work = functools.partial(read, cache, batch_size, steps)
            yield rate(f"batches of {batch_size}, pairs", steps * batch_size, work, repeats)
