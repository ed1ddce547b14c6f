"""The pictures that a tokenizer is trained on: of a source, or in memory."""

import math

import numpy as np

from udd_jax import modalities
from udd_jax.data import batches, pixels, reading
from udd_jax.errors import UserError

MOST_BYTES = 1 << 30  # at most so many bytes of decoded images stay in memory


class Pictures:
    """The images of a source without augmentation.

    `at(step, B)` returns uint8[B, S, S, C], a pure function of the step. A small source is decoded
    once and kept in memory. Images that cannot be read are left out (ValueError if none is left);
    the token cache counts them.
    """

    def __init__(self, source, config):
        self.source, self.config, self._read = source, config, {}
        self.views = modalities.views(config, incomplete=config.get("incomplete", False))
        size, channels = self.views.size, self.views.channels
        self.size, self.kept = min(len(source), config.vq.pictures or len(source)), None
        if self.size * math.prod(pixels.both(size)) * channels <= MOST_BYTES:
            read = reading.examples(source, 0, self.size, self.views)
            kept = [e.pixels[0] for e in read if e.pixels is not None]
            if not kept:
                raise UserError(f"none of the {self.size} items of {source.name} can be used")
            self.size, self.kept = len(kept), np.stack(kept)

    def sample(self, most: int):
        """uint8[n, S, S, C], always the same images; n is `most`, or all of them if fewer."""
        count, seed = min(most, self.size), self.config.seed
        if self.kept is None:
            return batches.make_images(self.source, self.views, seed, 0, count)["image"]
        return self.at(0, count)

    def at(self, step: int, batch_size: int, share=(0, 1)):
        c = self.config
        if self.kept is None:
            if (batch_size, share) not in self._read:
                options = {"steps": c.vq.steps, "share": share, "workers": c.workers}
                decoded = batches.Decoded(self.source, self.views, c.seed, batch_size, **options)
                self._read[batch_size, share] = decoded
            return self._read[batch_size, share](step)["image"]
        return Stacked(self.kept, c).at(step, batch_size, share)


class Stacked:
    """The same for pictures that are in memory: uint8[n, height, width, channels]."""

    def __init__(self, pictures, config):
        self.kept, self.seed = pictures, config.seed

    def sample(self, most: int):
        return self.at(0, min(most, len(self.kept)))

    def at(self, step: int, batch_size: int, share=(0, 1)):
        items = batches.indices(self.seed, step, batch_size, len(self.kept))
        per = batch_size // share[1]
        return self.kept[items[share[0] * per : (share[0] + 1) * per]]
