"""Small pictures at a larger size: the coarse codes of the small one are given, the fine generated.

Muse's super-resolution (arXiv 2301.00704) with the two levels of one tokenizer. A small picture is
enlarged smoothly, and only the coarse codes of that are used. What is larger than a picture of the
run is drawn by windows of the fine grid: each is given the coarse codes of its place, and the fine
codes that earlier windows have drawn there.
"""

import os

import numpy as np
from PIL import Image

from udd_jax import values
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.sampling import outpainting
from udd_jax.sampling import settings as sampling
from udd_jax.steering import edits, stepwise

FACTORS = (1, 2, 4)


def upscale(pipe, images, captions, factor, num: int, seed, **settings) -> np.ndarray:
    """The pictures of `Pipeline.upscale`."""
    if pipe.vocab.coarse is None:
        raise UserError(
            "upscale: the pictures of this run have one level, expected a run with a modality of "
            "kind coarse, such as configs/t2i.py:pyramid"
        )
    channels = pipe.tokenizers["image"].shape[-1]
    num, seed, small = values.whole("num", num, 1), values.seed(seed), _small(images, channels)
    edits.require_no_trace("upscale", settings)
    guides = _guides(pipe, small, factor)
    text = _captions(pipe, captions, len(guides))
    guides = np.repeat(guides, num, axis=0)
    text = None if text is None else np.repeat(text, num, axis=0)
    settings = stepwise.repeated(pipe, num, settings)
    tokenizer = pipe.tokenizers["image"]
    size = tokenizer.shape[:2]

    names, drawn = vars(pipe.settings()), rule(pipe, text is not None)
    plain = {name: value for name, value in settings.items() if name in names}
    others = {name: value for name, value in settings.items() if name not in names}
    sampling.require_read([pipe.settings(drawn, **plain)], plain)

    def infill(windows, mask, number, here):
        coarse = tokenizer.encode(guides[:, *here])[:, : pipe.vocab.coarse.length]
        free = pixels.code_mask(mask, tokenizer.grid).reshape(-1)
        given, masks = _asked(pipe, coarse, tokenizer.encode(windows), free, text)
        own = values.later_seed(seed, number)
        options = {"seed": own, **vars(pipe.settings(drawn, **plain)), **others}
        return pipe.generate("infill", given=given, masks=masks, **options).images

    canvas, known = np.zeros_like(guides), np.zeros(guides.shape[1:3], bool)
    cell = size[0] // pipe.vocab.coarse.grid[0]  # windows keep to the coarse grid
    return outpainting.fill(infill, canvas, known, size, (0, 0), cell)


def rule(pipe, with_text: bool) -> str | None:
    """The rule by which the fine codes are drawn, whose settings hold; None for a single level."""
    coarse = pipe.vocab.coarse
    return coarse and f"image|{coarse.name}{',text' if with_text else ''}"


def _asked(pipe, coarse, codes, free, text):
    """(given, masks) of windows whose fine codes are free, bool[N2]. codes: of all levels."""
    m, count = pipe.vocab.coarse, len(coarse)
    given = {m.name: coarse, m.level_of: pipe.tokenizers["image"].finest(codes)}
    given |= {} if text is None else {"text": text}
    positions = np.zeros((count, pipe.vocab.length), bool)
    positions[:, pipe.vocab.slices[pipe.vocab.index(m.level_of)]] = free
    absent = [name.name not in given for name in pipe.vocab.modalities]
    return given, tasks.Masks(positions, np.tile(absent, (count, 1)))


def _small(images, channels: int) -> np.ndarray:
    """One or many pictures of one size -> uint8[n, H, W, channels]."""
    if isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 0) == 3:
        images = [images]
    if isinstance(images, bytes | dict) or not np.iterable(images):
        raise UserError(
            f"upscale: image {type(images).__name__} {str(images)[:40]!r}, expected "
            f"uint8[n, H, W, {channels}], an image of Pillow, a path, or a list of these"
        )
    read = []
    for image in images:
        if isinstance(image, str | os.PathLike):
            image = pixels.read(image, channels)
        elif isinstance(image, Image.Image):
            image = pixels.as_read(image, channels)
        read.append(np.asarray(image))
        if read[-1].dtype != np.uint8 or read[-1].ndim != 3 or read[-1].shape[2] != channels:
            found = f"{read[-1].dtype}{list(read[-1].shape)}, expected uint8[H, W, {channels}]"
            raise UserError(f"upscale: image {found}, values 0 to 255")
    shapes = sorted({image.shape[:2] for image in read})
    if len(shapes) != 1:
        found = ", ".join(pixels.shown(shape) for shape in shapes) or "no pictures"
        raise UserError(f"upscale: {found}, expected pictures of one size: upscale them one by one")
    return np.stack(read)


def _guides(pipe, small: np.ndarray, factor) -> np.ndarray:
    """The small pictures, enlarged to the size of the result."""
    size, shape = pipe.tokenizers["image"].shape[:2], small.shape[1:3]
    if factor is None:
        large = lambda f: all(f * side >= own for side, own in zip(shape, size, strict=True))  # noqa: E731
        fits = [f for f in FACTORS if large(f)]
        factor = fits[0] if fits else FACTORS[-1]
    if isinstance(factor, bool | float) or factor not in FACTORS:
        raise UserError(f"factor = {factor!r}, expected one of {', '.join(map(str, FACTORS))}")
    larger = tuple(side * factor for side in shape)
    cell = size[0] // pipe.vocab.coarse.grid[0]
    most = outpainting.LARGEST
    both = list(zip(size, larger, strict=True))
    if not all(own <= side <= most * own and not side % cell for own, side in both):
        raise UserError(
            f"upscale: {pixels.shown(shape)} pixels times factor = {factor} are "
            f"{pixels.shown(larger)}, expected sides that are multiples of {cell}, at least those "
            f"of the run, {pixels.shown(size)}, and at most {most} times these"
        )
    return np.stack([pixels.fit(image, larger, "bicubic") for image in small])


def _captions(pipe, captions, count: int) -> np.ndarray | None:
    if captions is None:
        return None
    ids = values.ids(pipe, "text", captions)
    if len(ids) not in (1, count):
        raise UserError(f"upscale: {count} images, {len(ids)} captions: expected as many, or one")
    return np.broadcast_to(ids, (count, ids.shape[1]))
