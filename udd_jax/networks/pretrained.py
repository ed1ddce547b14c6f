"""Published weights for the networks of `features`, with the published preprocessing.

The user provides the published PyTorch files (listed in `WEIGHTS`). A reader turns each file into a
flat {name: array}, and `load` puts it into a module. Preprocessing changes the numbers as much as
weights do, so each kind of preprocessing has a name (`pixels_for_inception`). A protocol records
this name and `state_hash`.
"""

import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from udd_jax.errors import UserError
from udd_jax.networks import features

# network: (file name without its ending, where it is published)
WEIGHTS = {
    "inception": (
        "pt_inception-2015-12-05-6726825d",
        "release fid_weights of mseitzer/pytorch-fid",
    ),
    "clip": ("ViT-B-32", "openai/CLIP, or openai/clip-vit-base-patch32 renamed"),
    "vgg16": ("vgg16-397923af", "torchvision, VGG16 IMAGENET1K_V1"),
    "lpips": ("vgg", "richzhang/PerceptualSimilarity, lpips/weights/v0.1"),
}
ENDINGS = (".safetensors", ".pth", ".pt")
INCEPTION_SIZE = 299
MERGES, CLASSES = "bpe_simple_vocab_16e6.txt.gz", 49408  # of CLIP's text encoder


def load(module, state: Mapping[str, np.ndarray], *inputs) -> dict:
    """The module's variables, filled by published names. Names that it does not use are ignored.

    Args:
      module: a network of `features`.
      state: {published name: array in PyTorch's layout}, any float type.
      inputs: examples of the module's inputs (only their shapes matter).

    Raises:
      ValueError: a name is missing, or an array has the wrong shape.
    """
    wanted = jax.eval_shape(module.init, jax.random.key(0), *inputs)
    flat, tree = jax.tree_util.tree_flatten_with_path(wanted)
    names = [_published([key.key for key in path[1:]]) for path, _ in flat]
    absent = [name for name in names if name not in state]
    if absent:
        raise UserError(
            f"{type(module).__name__}: the weights lack {len(absent)} of {len(names)} arrays, the "
            f"first is {absent[0]}; this is another network's file"
        )
    leaves = []
    for name, (path, leaf) in zip(names, flat, strict=True):
        value = np.asarray(state[name], np.float32)
        if path[-1].key == "kernel":  # OIHW -> HWIO, OI -> IO
            value = value.transpose((2, 3, 1, 0) if value.ndim == 4 else None)
        if value.shape != leaf.shape:
            raise UserError(
                f"{type(module).__name__}: {name} gives {value.shape}, expected {leaf.shape}"
            )
        leaves.append(jnp.asarray(value))
    return jax.tree_util.tree_unflatten(tree, leaves)


def inception(state: Mapping[str, np.ndarray], resize: str = "clean") -> Callable:
    """Returns the extractor for FID and the Inception score.

    It maps uint8[B, H, W, 3] to (features float32[B, 2048], probabilities float32[B, 1008]), NumPy.
    `resize` is a name of `pixels_for_inception`.
    """
    module = features.InceptionV3()
    variables = load(module, state, jnp.zeros((1, INCEPTION_SIZE, INCEPTION_SIZE, 3)))

    @jax.jit
    def apply(variables, pixels):
        pooled, logits = module.apply(variables, pixels)
        return pooled, jax.nn.softmax(logits)

    def extract(images):
        return jax.device_get(apply(variables, pixels_for_inception(images, resize)))

    return extract


class ClipParts(NamedTuple):
    """The two networks of a CLIP with their variables; `size` is the side of its pictures."""

    image: features.ClipImage
    image_variables: dict
    text: features.ClipText
    text_variables: dict
    size: int
    context: int


def clip_parts(state: Mapping[str, np.ndarray]) -> ClipParts:
    """A CLIP with a vision transformer. The sizes come from the array shapes.

    Args:
      state: {name: array} with OpenAI's names, or those of the Hugging Face port.

    Raises:
      ValueError: these are the weights of another network.
    """
    state = clip_names(state)
    needed = ("visual.conv1.weight", "visual.proj", "token_embedding.weight", "text_projection")
    needed += ("visual.positional_embedding", "positional_embedding")
    absent = [name for name in needed if name not in state]
    if absent:
        raise UserError(f"CLIP: the weights lack {absent[0]}; expected a ViT such as ViT-B-32.pt")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    vocabulary, text_width = state["token_embedding.weight"].shape
    embedding = state["visual.proj"].shape[1]
    size = patch * math.isqrt(len(state["visual.positional_embedding"]) - 1)
    context = len(state["positional_embedding"])
    layers = [
        sum(name.startswith(prefix) and name.endswith("in_proj_weight") for name in state)
        for prefix in ("visual.transformer.", "transformer.")
    ]
    # Every published CLIP has heads of width 64.
    image = features.ClipImage(patch, width, layers[0], max(width // 64, 1), embedding)
    text = features.ClipText(vocabulary, text_width, layers[1], max(text_width // 64, 1), embedding)
    image_variables = load(image, state, jnp.zeros((1, size, size, 3)))
    text_variables = load(text, state, jnp.zeros((1, context), jnp.int32))
    return ClipParts(image, image_variables, text, text_variables, size, context)


def clip(state: Mapping[str, np.ndarray]) -> tuple[Callable, Callable]:
    """Both encoders of a CLIP (`clip_parts`), with its preprocessing.

    Returns (uint8[B, H, W, 3] -> float32[B, D], int32[B, context] -> float32[B, D]), NumPy.
    """
    parts = clip_parts(state)
    image, text = jax.jit(parts.image.apply), jax.jit(parts.text.apply)
    pixels = lambda images: pixels_for_clip(images, parts.size)  # noqa: E731
    return (
        lambda images: jax.device_get(image(parts.image_variables, pixels(images))),
        lambda ids: jax.device_get(text(parts.text_variables, jnp.asarray(ids, jnp.int32))),
    )


def clip_names(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A CLIP state with OpenAI's names. Translates those of the Hugging Face port, keeps others."""
    if not any(name.startswith("vision_model.") for name in state):
        return dict(state)
    out = {}
    for name, value in state.items():
        if name in ("visual_projection.weight", "text_projection.weight"):
            value = np.asarray(value).T
        for theirs, ours in _HUGGING_FACE:
            name = name.replace(theirs, ours)
        out[name] = value
    for query in [name for name in out if ".attn.q_proj." in name]:
        parts = [np.asarray(out.pop(query.replace(".q_proj.", f".{p}_proj."))) for p in "qkv"]
        out[query.replace("q_proj.", "in_proj_")] = np.concatenate(parts)
    return out


def clip_ids(pieces: Sequence[Sequence[int]], context: int = 77, start: int = 49406) -> np.ndarray:
    """Byte-pair ids -> CLIP ids int32[B, context]: `start`, text (cut to fit), `start` + 1, 0s."""
    ids = np.zeros((len(pieces), context), np.int32)
    for row, text in zip(ids, pieces, strict=True):
        text = [start, *text[: context - 2], start + 1]
        row[: len(text)] = text
    return ids


def pixels_for_inception(images, resize: str = "clean") -> np.ndarray:
    """uint8[B, H, W, 3] -> float32[B, 299, 299, 3], by a named protocol.

    - "clean" (clean-fid, Parmar et al. 2022, arXiv 2104.11222): Pillow's bicubic filter, which
      antialiases, on each channel in float32, clipped to 0..255 without rounding; then
      (x - 128) / 128.
    - "legacy_pytorch" (pytorch-fid): bilinear without antialiasing; then 2 x / 255 - 1.

    Raises:
      ValueError: unknown name, or arrays of another shape or type.
    """
    images = _checked_images(images)
    if resize == "clean":
        return (np.stack([resize_clean(image, INCEPTION_SIZE) for image in images]) - 128) / 128
    if resize == "legacy_pytorch":
        shape = (len(images), INCEPTION_SIZE, INCEPTION_SIZE, 3)
        pixels = jnp.asarray(images, jnp.float32) / 255
        return np.asarray(2 * jax.image.resize(pixels, shape, "linear", antialias=False) - 1)
    raise UserError(f"resize is {resize!r}, expected 'clean' or 'legacy_pytorch'")


def resize_clean(image: np.ndarray, size: int) -> np.ndarray:
    """uint8[H, W, 3] -> float32[size, size, 3] in 0..255, with the resizing of clean-fid."""
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., c], np.float32)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        for c in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], -1).clip(0, 255)


def pixels_for_clip(images, size: int = 224) -> np.ndarray:
    """uint8[B, H, W, 3] -> float32[B, size, size, 3], with CLIP's preprocessing.

    Resizes the short side to `size` (Pillow's bicubic), crops the centre, normalises with CLIP's
    mean and standard deviation.
    """
    images = _checked_images(images)
    height, width = images.shape[1:3]
    short = min(height, width)
    height, width = int(size * height / short), int(size * width / short)
    top, left = round((height - size) / 2), round((width - size) / 2)
    small = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
            for image in images
        ]
    )[:, top : top + size, left : left + size]
    return normalise_for_clip(small.astype(np.float32) / 255)


def normalise_for_clip(pixels):
    """Pixels float[B, H, W, 3] in [0, 1], less CLIP's mean, divided by its standard deviation."""
    mean = np.array([0.48145466, 0.4578275, 0.40821073], np.float32).reshape(1, 1, 1, 3)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711], np.float32).reshape(1, 1, 1, 3)
    return (pixels - mean) / deviation


def find_weights(directory: str | os.PathLike, network: str) -> pathlib.Path:
    """The user's file for "inception", "clip", "vgg16" or "lpips" (LPIPS needs the last two).

    Raises:
      ValueError: it is missing. The message names the file, its source and where to put it.
    """
    stem, source = WEIGHTS[network]
    for ending in ENDINGS:
        path = pathlib.Path(directory) / (stem + ending)
        if path.is_file():
            return path
    raise UserError(
        f"{network} weights: no {stem}{'|'.join(ENDINGS)} in {directory}; fetch it ({source}) and "
        "put it there"
    )


def state_hash(state: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, shapes, types and bytes. A protocol records it for each network."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = np.ascontiguousarray(state[name])
        digest.update(f"{name} {value.shape} {value.dtype.str} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_HUGGING_FACE = (
    ("vision_model.embeddings.patch_embedding", "visual.conv1"),
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm", "visual.ln_pre"),  # their spelling is "pre_layrnorm"
    ("vision_model.post_layernorm", "visual.ln_post"),
    ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("self_attn", "attn"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("visual_projection.weight", "visual.proj"),
    ("text_projection.weight", "text_projection"),
)


def _published(path: list[str]) -> str:
    return ".".join([*path[:-1], _LEAVES.get(path[-1], path[-1])])


def _checked_images(images) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise UserError(
            f"images of shape {images.shape} and type {images.dtype}, expected uint8 "
            "[batch, height, width, 3]"
        )
    return images
