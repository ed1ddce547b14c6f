"""The feature networks of an evaluation, from the user's folder of weights.

`load(folder)` returns for each of `inception`, `clip` and `lpips` a `Network`, or the reason why it
is missing. `networks.pretrained.WEIGHTS` lists the files by their published names. CLIP's text
encoder also needs CLIP's merges, the file `bpe_simple_vocab_16e6.txt.gz`, in the same folder.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.convert import tensor_files
from udd_jax.data import pixels
from udd_jax.errors import NotFound, UserError
from udd_jax.evaluation.metrics import intervals
from udd_jax.networks import features, pretrained
from udd_jax.tokenizers import image_tokenizer
from udd_jax.tokenizers import text_tokenizer as texts

NAMES = ("inception", "clip", "lpips")
MERGES, CLASSES = pretrained.MERGES, pretrained.CLASSES
RESIZE = "clean"


@dataclass(frozen=True)
class Network:
    """A feature network.

    Attributes:
        hash: 16 hex digits of its weights.
        images: Inception and CLIP: uint8[B, H, W, C] -> float32[B, D], as they look over white. For
            Inception the row is the 2,048 features followed by 1,008 class probabilities.
        texts: CLIP: list of B strings -> float32[B, D].
        distance: LPIPS: two uint8[B, H, W, C] -> float32[B], as they look over white.
    """

    hash: str
    images: Callable | None = None
    texts: Callable | None = None
    distance: Callable | None = None


def load(folder: str) -> dict[str, Network | intervals.Unmeasured]:
    """{name: network} for all NAMES.

    Raises:
        ValueError: the folder does not exist, or a file holds another network.
    """
    if not folder:
        return {
            name: intervals.Unmeasured(
                f"no weights are given: put {_files(name)} into a folder and name it with --weights"
            )
            for name in NAMES
        }
    if not pathlib.Path(folder).is_dir():
        raise UserError(
            f"evaluate.weights is {folder!r}, which is not a folder: make it and put there "
            + " or ".join(map(_files, NAMES))
        )
    return {"inception": _inception(folder), "clip": _clip(folder), "lpips": _lpips(folder)}


def _files(name: str) -> str:
    needed = {"clip": ("clip",), "lpips": ("vgg16", "lpips")}.get(name, (name,))
    found = [f"{pretrained.WEIGHTS[n][0]}.pth ({pretrained.WEIGHTS[n][1]})" for n in needed]
    return " and ".join(found + ([MERGES] if name == "clip" else []))


def _inception(folder):
    try:
        state = _state(folder, "inception")
    except FileNotFoundError as error:
        return intervals.Unmeasured(str(error))
    extract = pretrained.inception(state, RESIZE)
    both = lambda images: np.concatenate(extract(pixels.as_rgb(images)), axis=1)  # noqa: E731
    return Network(pretrained.state_hash(state)[:16], images=both)


def _clip(folder):
    try:
        state = _state(folder, "clip")
    except FileNotFoundError as error:
        return intervals.Unmeasured(str(error))
    images, encode = pretrained.clip(state)
    merges = pathlib.Path(folder) / MERGES
    words = None
    if merges.exists():
        tokenizer = texts.load(merges, CLASSES)
        context = len(pretrained.clip_names(state)["positional_embedding"])
        words = lambda captions: encode(  # noqa: E731
            pretrained.clip_ids([tokenizer.pieces(c) for c in captions], context)
        )
    seen = lambda pictures: images(pixels.as_rgb(pictures))  # noqa: E731
    return Network(pretrained.state_hash(state)[:16], images=seen, texts=words)


def _lpips(folder):
    try:
        state = {**_state(folder, "vgg16"), **_state(folder, "lpips")}
    except FileNotFoundError as error:
        return intervals.Unmeasured(str(error))
    function, variables = _perceptual(state)
    apply, unit = jax.jit(function), lambda x: image_tokenizer.to_unit(pixels.as_rgb(x))
    distance = lambda a, b: jax.device_get(apply(variables, unit(a), unit(b)))  # noqa: E731
    return Network(pretrained.state_hash(state)[:16], distance=distance)


def perceptual(folder: str) -> tuple[Callable, dict]:
    """LPIPS as a training loss: the function and its weights.

    The function maps (weights, x, y: float[B, S, S, 3] in [-1, 1]) to float[B].

    Raises:
        FileNotFoundError: a file is missing; the message names it.
    """
    return _perceptual({**_state(folder, "vgg16"), **_state(folder, "lpips")})


def _perceptual(state):
    module, nothing = features.Lpips(), jnp.zeros((1, 32, 32, 3))
    return module.apply, pretrained.load(module, state, nothing, nothing)


def _state(folder, name) -> dict[str, np.ndarray]:
    """The arrays of a file. FileNotFoundError names a missing file and where to put it."""
    try:
        path = pretrained.find_weights(folder, name)
    except ValueError as error:
        raise NotFound(str(error)) from None
    return tensor_files.read(path)
