"""A pipeline on an embedded world whose network is an oracle: every number is known in advance.

On `shapes` the codes of its image tokenizer are the 43 cell templates; `Tiles` works in any world.
It generates the truth: the held-out items, or scenes of the validation split where nothing is
given. The rows in `wrong`, by task, are the exception: their image has code 0 everywhere, which is
empty, or their caption lacks its first word.
"""

import dataclasses

import numpy as np

from configs import base
from udd_jax import build, pipeline
from udd_jax.data import sources
from udd_jax.data.sources import shapes
from udd_jax.diffusion import schedules, tasks, transition, vocab
from udd_jax.evaluation import held_out, samples
from udd_jax.tokenizers import text_tokenizer

GRID, LENGTH = (2, 2), 16
ITEMS, TASKS = 8, samples.TASKS


class Templates:
    """An image tokenizer that reads each cell as its nearest template, and draws it clean."""

    grid, codes, image_size, hash, shape = GRID, 43, 32, "templates", (32, 32, 3)

    def encode(self, images):
        known = shapes.drawing.cell_templates().reshape(43, -1)
        cells = shapes.drawing.as_cells(np.asarray(images, np.float32)).reshape(-1, known.shape[1])
        return ((cells[:, None] - known[None]) ** 2).sum(-1).argmin(1).reshape(-1, 4)

    def decode(self, codes):
        cells = shapes.drawing.cell_templates()[np.asarray(codes).reshape(-1, 2, 2)]
        shown = cells.swapaxes(2, 3).reshape(-1, 32, 32, 3)
        return np.clip(np.rint(shown), 0, 255).astype(np.uint8)


class Tiles:
    """An image tokenizer without loss: it numbers the quarters of the pictures as it meets them.
    Code 0 is plain grey."""

    grid, codes, hash = GRID, 4096, "tiles"

    def __init__(self, image_size: int):
        self.image_size, half = image_size, image_size // 2
        self.shape = image_size, image_size, 3
        self.known = {bytes([128]) * (3 * half**2): 0}

    def encode(self, images):
        half = self.image_size // 2
        tiles = np.asarray(images).reshape(-1, 2, half, 2, half, 3).swapaxes(2, 3)
        codes = [
            self.known.setdefault(t.tobytes(), len(self.known))
            for t in tiles.reshape(-1, half, half, 3)
        ]
        return np.array(codes).reshape(-1, 4)

    def decode(self, codes):
        half, tiles = self.image_size // 2, list(self.known)
        shown = np.frombuffer(b"".join(tiles[code] for code in np.ravel(codes)), np.uint8)
        shown = shown.reshape(-1, 2, 2, half, half, 3).swapaxes(2, 3)
        return shown.reshape(-1, self.image_size, self.image_size, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Oracle(pipeline.Pipeline):
    truth: str = "shapes"  # the world whose scenes it knows
    wrong: dict = dataclasses.field(default_factory=dict)
    bits: dict = dataclasses.field(default_factory=lambda: {"image": 2.0, "text": 0.5})
    asked: list = dataclasses.field(default_factory=list)  # tasks, as they were generated

    def generate(
        self,
        task,
        count,
        *,
        masks=None,
        given=None,
        seed=0,
        batch_size=0,
        trace=0,
        first=0,
        **settings,
    ):
        self.settings(**settings)
        self.asked.append(task)
        free = task in ("pair", "image", "text")
        split = "validation" if free else held_out.split_of(self)
        asked = {"size": first + count, "captions_per_image": 1}
        records = sources.open_source(self.truth, split, **asked)
        records = [records[i] for i in range(first, first + count)]
        shown, told = np.stack([r.image for r in records]), [r.captions[0] for r in records]
        truth = {"image": self.codecs["image"].encode(shown)}
        truth["text"] = self.codecs["text"].encode(told, strict=False)
        for row in self.wrong.get(task, ()):
            row -= first
            if not 0 <= row < count:
                continue
            if task in ("i2t", "text"):
                truth["text"][row, 0] = self.tokenizers["text"].pad_id
            else:
                truth["image"][row] = 0
        given = truth | (given or {})
        masks = tasks.masks(self.vocab, task, count) if masks is None else masks
        free, absent = np.asarray(masks.free), np.asarray(masks.absent)
        tokens = np.where(free, self._fuse(truth), self._fuse(given))
        length = tokens.shape[1]
        late = np.arange(1, trace + 1)[:, None] * length <= trace * np.arange(length)[None]
        states = np.where(late[:, None], self.vocab.mask_id, tokens[None])
        ids = {"image": tokens[:, :4], "text": tokens[:, 4:] - self.tokenizers["image"].codes}
        names = [name for name, out in zip(ids, absent[0], strict=True) if not out]
        values = {name: self.codecs[name].decode(ids[name]) for name in names}
        calls = np.full(count, settings.get("steps", self.config.sample.steps))
        return pipeline.Result(values, tokens, calls, states)

    def _fuse(self, tokens):
        text = tokens["text"] + self.tokenizers["image"].codes
        return np.concatenate([tokens["image"], text], axis=1).astype(np.int32)

    def score(self, tokens, *, task, times, seed, common=False, calls=0):
        count = len(tokens["text"])
        image = 0 if task in ("i2t", "text") else 4 * self.bits["image"]
        words = 0 if task in ("t2i", "image") else self.text_length * self.bits["text"]
        return -np.tile([float(image), float(words)], (count, 1))


def config():
    """A small one: 8 samples a task."""
    c = base.get_config()
    c.evaluate.update({"samples": ITEMS, "batch_size": ITEMS, "bound_samples": 4, "bound_times": 2})
    c.text.length = LENGTH
    c.diffusion.steps = 20
    c.sample.steps = 5
    return c


def make(folder, image=None, **fields) -> Oracle:
    """An oracle whose text tokenizer is trained on the spot, in `folder`."""
    c, image = fields.pop("config", None) or config(), image or Templates()
    records = sources.open_source(c.data, "train", size=400, captions_per_image=1)
    captions = [record.captions[0] for record in records]
    words = text_tokenizer.train_sentencepiece(captions, folder / "text.model", 1024)
    layout = vocab.image_text(GRID, image.codes, words.vocab_size, c.text.length)
    kernel = transition.make_kernel(layout, schedules.make(c.diffusion.schedule, c.diffusion.steps))
    network = build.make_model(c, layout, words.pad_id)  # only its settings are asked for
    weights = {"layer": {"kernel": np.ones((2, 3), np.float32)}}
    tokenizers = {"image": image, "text": words}
    return Oracle(c, tokenizers, layout, kernel, network, weights, truth=c.data, **fields)
