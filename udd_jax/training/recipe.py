"""The open fields of a config, chosen from the data and from the minutes that a user gives.

`configs/own.py` leaves fields open: they are None. `fill` chooses them by the rules of `choose`,
for the image tokenizer and the network of `configs/t2i.py:emoji`. A square picture has 8 x 8
codes or a few more: so many say what it shows, and with four times as many drawings were not
recognised after an hour (benchmarks/RESULTS.md). The times are those of that run, scaled by the
work of a step:

    image tokenizer   .067 s for 8 images of 64 codes         a tenth of the minutes
    diffusion         .358 s for 32 pairs of 64 + 16 tokens   three quarters of them

The first was measured on one core, the second on two. The rest is for compilation, evaluation and
the report. Nothing is measured here, so that the same command always chooses the same fields on the
same data.
"""

import math
import pathlib
import tempfile

import numpy as np
from flax import traverse_util

from udd_jax import modalities
from udd_jax.data import pixels, reading, sources, survey
from udd_jax.data.sources import listing
from udd_jax.errors import UserError
from udd_jax.runtime import files, logbook, run_folder
from udd_jax.tokenizers import text_tokenizer
from udd_jax.training import start

# For a code of a batch, as `vq_seconds`; the second is a share of the first, for a cell's pixels.
VQ_SECONDS, VQ_PIXELS = 0.067 / (8 * 64), 2.94e-3
SECONDS = 0.358 / (32 * (64 + 16))  # for a token of a batch
VQ_SHARE, SHARE = 0.1, 0.75  # of the minutes
VQ_LEAST, VQ_EPOCHS = 400, 20  # at most so many steps, or so many epochs if these are more
PREFIX_SHARE = 0.4  # of the steps of the diffusion, the first
LOOKED_AT = 1000  # images whose sizes are read
# A square is kept unless it cuts off so much of the pictures, and a shape of theirs half as much.
CUT_OFF, LONGEST = 0.15, 2.0  # share of the area; longer side by shorter side
MOST_EPOCHS = 500  # a handful of pictures is learned by heart long before
FIELDS = (
    *("image_size", "vq.model.patch", "vq.model.n_embed", "vq.batch_size", "vq.steps"),
    *("vq.warmup", "vq.plain_steps", "text.vocab_size", "text.length", "train.batch_size"),
    *("train.steps", "train.prefix_steps", "train.warmup", "train.image_weight"),
    *("sample.steps", "dual_encoder.patch"),
    *(f"train.mixture.{task}" for task in ("pair", "t2i", "i2t", "infill", "image", "text")),
)


def fill(config, workdir=None):
    """The config with its open fields chosen and printed; the config itself if none is open.

    workdir: where an earlier start of this run has kept its fields, which are taken. ValueError if
    the data do not exist or `minutes` is not positive.
    """
    if not open_fields(config):
        return config
    if not config.minutes > 0:
        raise UserError(f"minutes = {config.minutes}, expected more than 0: set --config.minutes=")
    if not config.data:
        raise UserError("data is missing, expected --config.data=folder:/path or another source")
    config = config.copy_and_resolve_references()
    if config.init_from:
        with config.ignore_type():  # a side may become (height, width)
            config.update_from_flattened_dict(start.settings(config))
        logbook.say(f"init_from: sizes and tokenizers are those of {config.init_from}")
    config = kept(config, workdir)
    if open_fields(config):
        found = facts(config)
        chosen = choose(config, found)
        chosen = {name: chosen[name] for name in open_fields(config)}
        config.update_from_flattened_dict(chosen)
        said = " ".join(f"--config.{name}={value}" for name, value in chosen.items())
        logbook.say(
            f"chosen for {found['pictures']} pictures of about {found['side']} pixels and "
            f"{config.minutes:g} minutes of two cores: {said}"
        )
    return config


def kept(config, workdir):
    """The config with its open fields as the run in `workdir` has them, if there is one."""
    path = workdir and workdir / run_folder.CONFIG
    fields = open_fields(config)
    if not fields or not path or not path.exists():
        return config
    there = traverse_util.flatten_dict(files.read_json(path)["config"], sep=".")
    config = config.copy_and_resolve_references()
    with config.ignore_type():  # a side may become (height, width)
        config.update_from_flattened_dict(
            {name: there[name] for name in fields if there.get(name) is not None}
        )
    return config


def open_fields(config) -> list[str]:
    """The names of the fields that `choose` knows and that are None; [] without `minutes`."""
    if config.get("minutes") is None:
        return []
    flat = traverse_util.flatten_dict(config.to_dict(), sep=".")
    return [name for name in FIELDS if name in flat and flat[name] is None]


def facts(config) -> dict:
    """What the choice depends on.

    Returns:
        {"pictures": of the training, "side": the median of their shorter sides, "aspect": width by
        height of the shape that suits them, 1 for a square, "captions": captions of the training,
        "pieces": the text length that keeps 98 % of all captions whole}.
    """
    options = modalities.source_options(config) | {"image_size": None, "trust_splits": True}
    if config.data in sources.WORLDS:
        options.pop("trust_splits")
    data = {s: sources.open_source(config.data, s, **options) for s in listing.SPLITS}
    train, shapes = data["train"], []
    for index in np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).astype(int):
        try:
            image = train[int(index)].image
            if image is None:
                continue
            size = pixels.size(image) if isinstance(image, bytes) else image.shape[1::-1]
            shapes.append(size)
        except (OSError, ValueError):
            continue  # the survey counts it
    if not shapes:
        raise UserError(f"{train.name}: none of {len(train)} pictures can be read")
    captions = list(reading.captions(train))
    if not captions:
        unused = "; ".join(f"{key}: {cause}" for key, cause in list(getattr(train, "left", ()))[:2])
        raise UserError(
            f"{train.name}: none of {len(train)} pictures has a caption, expected a text for some"
            + (f" ({unused})" if unused else "")
        )
    with tempfile.TemporaryDirectory() as folder:
        size = config.text.vocab_size or vocabulary(len(captions))
        if config.text.file:
            tokenizer = text_tokenizer.load(config.text.file)
        else:
            path = pathlib.Path(folder) / "text.model"
            tokenizer = text_tokenizer.train_sentencepiece(captions, path, size)
        pieces = survey.texts(data, tokenizer, 1)["covers"]
        if not pieces:  # an embedded world
            pieces = max(len(tokenizer.pieces(caption)) for caption in captions)
    return {
        "pictures": len(train),
        "side": int(np.median(np.min(shapes, axis=1))),
        "aspect": aspect(np.array(shapes, float)),
        "captions": len(captions),
        "pieces": pieces,
    }


def aspect(sizes: np.ndarray) -> float:
    """The width by the height to which pictures float[n, 2] (width, height) should be cut.

    Their median, at most LONGEST, where a square cuts off CUT_OFF of their area or more, and the
    median half of that at most; else 1.
    """
    shapes = sizes[:, 0] / sizes[:, 1]
    middle = float(np.clip(np.median(shapes), 1 / LONGEST, LONGEST))

    def lost(to: float) -> float:
        return float(np.mean(1 - np.minimum(shapes / to, to / shapes)))

    return middle if lost(1) >= CUT_OFF and lost(middle) <= lost(1) / 2 else 1.0


def vocabulary(captions: int) -> int:
    """K of the text for a number of captions: with many of them, most words are one piece."""
    return 4096 if captions >= 5000 else 2048 if captions >= 1000 else 1024


def choose(config, found: dict) -> dict:
    """{field: value} for all of FIELDS; a field that the config has enters the other choices.

    found: of `facts`.
    """
    flat, chosen = traverse_util.flatten_dict(config.to_dict(), sep="."), {}

    def take(name, value):
        chosen[name] = value if flat.get(name) is None else flat[name]
        return chosen[name]

    minutes, count = config.minutes, found["pictures"]
    large = found["side"] >= 48 and minutes >= 20
    size = take("image_size", _size(64 if large else 32, found["aspect"]))
    height, width = pixels.both(size)
    patch = take("vq.model.patch", _patch(height, width))
    rows, columns = height // patch, width // patch
    cells = rows * columns
    seen = count * cells
    take("vq.model.n_embed", 1024 if seen >= 1_000_000 else 512 if seen >= 10_000 else 256)
    batch = take("vq.batch_size", 8)
    steps = VQ_SHARE * 60 * minutes / (vq_seconds(patch) * batch * cells)
    # Of few pictures, more epochs make the held-out ones worse.
    few = max(VQ_LEAST, VQ_EPOCHS * count // batch)
    steps = take("vq.steps", min(few, _steps(steps, count, batch)))
    take("vq.warmup", min(50, steps // 10))
    take("vq.plain_steps", min(300, steps // 10))
    take("text.vocab_size", vocabulary(found["captions"]))
    length = take("text.length", max(4, found["pieces"]))
    batch = take("train.batch_size", 16 if cells > 100 else 32)
    share = SHARE + VQ_SHARE * bool(config.vq.file)  # a finished tokenizer takes no time
    steps = share * 60 * minutes / (SECONDS * batch * (cells + length))
    steps = take("train.steps", _steps(steps, count, batch))
    take("train.prefix_steps", int(PREFIX_SHARE * steps) if _has_prefixes(config) else 0)
    take("train.warmup", min(100, steps // 10))
    # A caption has far fewer tokens than an image, and must not drown in them.
    take("train.image_weight", round(min(1.0, max(0.05, 1.6 * length / cells)), 2))
    weights = {"pair": 0.08, "t2i": 0.55, "i2t": 0.25, "infill": 0.03, "image": 0.05, "text": 0.04}
    for task, weight in weights.items():
        take(f"train.mixture.{task}", weight)
    take("sample.steps", min(100, max(16, cells // 2)))
    # The regions of the dual encoder are four on the shorter side, where that can be.
    take("dual_encoder.patch", math.gcd(rows, columns, max(1, min(rows, columns) // 4)))
    return chosen


def vq_seconds(patch: int) -> float:
    """The time of a code in a step of the image tokenizer, whose cell has `patch` pixels a side.

    At 8 it was measured; the slope is that of the operations of a step at 8, 16, 32 and 64.
    """
    return VQ_SECONDS * (1 + VQ_PIXELS * (patch**2 - 8**2))


def _size(side: int, shape: float) -> int | tuple[int, int]:
    """`side` for a square, else (height, width) with whole eighths of `side` on the longer one."""
    long = round(8 * max(shape, 1 / shape)) * side // 8
    return side if long == side else (side, long) if shape > 1 else (long, side)


def _patch(height: int, width: int) -> int:
    """The side of a code's cell: the largest with eight codes on the shorter side, or more.

    Of a small picture, the smallest of at least 4 pixels; 4 where none fits, refused later.
    """
    shared = math.gcd(height, width)
    fits = [p for p in range(4, shared + 1) if shared % p == 0]
    large = [p for p in fits if min(height, width) // p >= 8]
    return max(large) if large else fits[0] if fits and fits[0] <= 8 else 4


def _has_prefixes(config) -> bool:
    """Whether a training of this config can begin with the loss of the baseline."""
    other = config.model.concentrated or config.model.block_attention or config.experts
    return not (other or config.init_from or config.train.objective != "discrete")


def _steps(affordable: float, pictures: int, batch: int) -> int:
    """The steps that there is time for, at most MOST_EPOCHS and at least 100."""
    most = MOST_EPOCHS * max(1.0, pictures / batch)
    return max(100, int(min(affordable, most)))
