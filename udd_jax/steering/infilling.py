"""The input of infilling: what is given, and masks of what is missing.

The pixels under a mask are painted over before the picture is resized and encoded. So nothing of
them reaches what is given, neither by the filter nor by the receptive field of the encoder.
"""

import numpy as np
from PIL import Image

from udd_jax import values
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError


def inputs(
    pipe, images=None, image_mask=None, captions=None, blank_tokens: int = 1
) -> tuple[dict, tasks.Masks]:
    """`given` and `masks` of `Pipeline.generate`; the arguments are those of `Pipeline.infill`."""
    if images is None and captions is None:
        raise UserError("infill: images and captions are both missing, expected one at least")
    if images is None and image_mask is not None:
        raise UserError("infill: image_mask is given and images= is missing: it is their mask")
    rows = {}
    if images is not None:
        shape = pipe.tokenizers["image"].shape
        rows["images"] = list(values.originals(images, shape[:2], shape[2]))
    if image_mask is not None:
        many = isinstance(image_mask, list | tuple) or getattr(image_mask, "ndim", 2) == 3
        rows["masks"] = list(image_mask) if many else [image_mask]
    if captions is not None:
        rows["captions"] = values.plain(pipe, "text", captions)
    blank = any("___" in caption for caption in rows.get("captions", ()))
    if values.whole("blank_tokens", blank_tokens, 1) > 1 and not blank:
        raise UserError(f"blank_tokens = {blank_tokens} changes nothing: no caption has ___")
    rows = values.alike("infill", rows)
    count = len(next(iter(rows.values())))
    given, free = {}, {m.name: np.zeros((count, m.length), bool) for m in pipe.vocab.modalities}
    if images is not None:
        masks, tokenizer = rows.get("masks", [None] * count), pipe.tokenizers["image"]
        pairs = [hidden(*pair, shape[:2]) for pair in zip(rows["images"], masks, strict=True)]
        seen, new = map(np.stack, zip(*pairs, strict=True))
        given["image"], grids = tokenizer.encode(seen), {"image": tokenizer.grid}
        if (coarse := pipe.vocab.coarse) is not None:
            grids[coarse.name], given = coarse.grid, pipe.vocab.parts(given)
        for name, grid in grids.items():
            free[name] = np.stack([pixels.code_mask(m, grid).reshape(-1) for m in new])
    if captions is not None:
        encode, length = pipe.tokenizers["text"].encode_with_blanks, pipe.text_length
        texts = [encode(caption, length, blank_tokens) for caption in rows["captions"]]
        given["text"], free["text"] = map(np.stack, zip(*texts, strict=True))
    absent = [name not in given for name in free]
    masks = tasks.Masks(
        np.concatenate(list(free.values()), axis=1), np.broadcast_to(absent, (count, len(free)))
    )
    if not masks.free.any(axis=1).all():
        raise UserError("infill: nothing is missing, expected white in the mask or a ___")
    return given, masks


def hidden(picture: np.ndarray, mask, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A picture without what its mask hides, and the mask, both at `size`, (height, width):
    (uint8[height, width, C], bool[height, width]).

    picture: uint8[H, W, C]. mask: None; bool[H, W] of the size of the picture or of `size`; or an
    image of Pillow, white where the picture is hidden, which is cut to `size` if the picture has
    another one. UserError for any other mask.
    """
    shape = picture.shape[:2]
    if mask is None:
        return pixels.fit(picture, size), np.zeros(size, bool)
    if isinstance(mask, Image.Image):
        mask = pixels.white(pixels.as_read(mask, 4))
        mask = mask if mask.shape == shape else pixels.fit_mask(mask, size)
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape not in (shape, size):
        expected = " or ".join(dict.fromkeys(f"bool{list(s)}" for s in (size, shape)))
        raise UserError(
            f"image_mask: {mask.dtype}{list(mask.shape)}, expected {expected}, one for each image, "
            "or an image of Pillow"
        )
    own = mask if mask.shape == shape else spread(mask, shape)
    return pixels.fit(pixels.hide(picture, own), size), pixels.fit_mask(mask, size)


def spread(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """bool[h, w] to bool[H, W], the reverse of `pixels.fit_mask`: True where any part of a pixel is
    under the mask, False in what `pixels.fit` cuts off."""
    top, left, bottom, right = pixels.middle(shape, mask.shape)
    found = np.zeros(shape, bool)
    rows, columns = (
        _touched(of, to) for of, to in zip(mask.shape, (bottom - top, right - left), strict=True)
    )
    found[top:bottom, left:right] = rows @ mask @ columns.T
    return found


def _touched(of: int, to: int) -> np.ndarray:
    """Which of `of` pixels of a line each of `to` pixels of the same line touches: bool[to, of]."""
    first, last = np.arange(to) * of // to, ((np.arange(to) + 1) * of - 1) // to
    each = np.arange(of)
    return (first[:, None] <= each) & (each <= last[:, None])
