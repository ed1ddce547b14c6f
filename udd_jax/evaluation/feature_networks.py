"""The feature networks that an evaluation may measure with, from the user's folder of weights.

`load(folder)` gives for each of `inception`, `clip` and `lpips` a `Network`, or why it is not
there: `metrics.pretrained.WEIGHTS` says which file is looked for, under its published name. Text
goes into CLIP through its own merges, the file `bpe_simple_vocab_16e6.txt.gz` beside the weights.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.convert import tensor_files
from udd_jax.evaluation.metrics import intervals
from udd_jax.networks import features, pretrained
from udd_jax.tokenizers import text_tokenizer as texts

NAMES = ("inception", "clip", "lpips")
MERGES, CLASSES = "bpe_simple_vocab_16e6.txt.gz", 49408
RESIZE = "clean"


@dataclass(frozen=True)
class Network:
    """A network that measures.

    hash: 16 hex digits of its weights; images: uint8[B, H, W, 3] -> float32[B, D], of Inception
    its features and, behind them, 1,008 probabilities; texts: list of B strings -> float32[B, D],
    of CLIP; distance: uint8[B, H, W, 3] twice -> float32[B], of LPIPS.
    """

    hash: str
    images: Callable | None = None
    texts: Callable | None = None
    distance: Callable | None = None


def load(folder: str) -> dict[str, Network | intervals.Unmeasured]:
    """Every network by name.

    Raises:
        ValueError: the folder is not there, or a file is another network's.
    """
    if not folder:
        return {
            name: intervals.Unmeasured(
                f"no weights are given: put {_files(name)} into a folder and name it with --weights"
            )
            for name in NAMES
        }
    if not pathlib.Path(folder).is_dir():
        raise ValueError(
            f"evaluate.weights is {folder!r}, which is no folder: make it and put there "
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
    both = lambda images: np.concatenate(extract(images), axis=1)  # noqa: E731
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
    return Network(pretrained.state_hash(state)[:16], images=images, texts=words)


def _lpips(folder):
    try:
        state = {**_state(folder, "vgg16"), **_state(folder, "lpips")}
    except FileNotFoundError as error:
        return intervals.Unmeasured(str(error))
    function, variables = _perceptual(state)
    apply, unit = jax.jit(function), lambda x: jnp.asarray(x, jnp.float32) / 127.5 - 1
    distance = lambda a, b: jax.device_get(apply(variables, unit(a), unit(b)))  # noqa: E731
    return Network(pretrained.state_hash(state)[:16], distance=distance)


def perceptual(folder: str) -> tuple[Callable, dict]:
    """LPIPS to train with: (weights, float[B, S, S, 3] in [-1, 1] twice) -> float[B], and weights.

    Raises:
        FileNotFoundError: which file is not in the folder.
    """
    return _perceptual({**_state(folder, "vgg16"), **_state(folder, "lpips")})


def _perceptual(state):
    module, nothing = features.Lpips(), jnp.zeros((1, 32, 32, 3))
    return module.apply, pretrained.load(module, state, nothing, nothing)


def _state(folder, name) -> dict[str, np.ndarray]:
    """The arrays of a file; FileNotFoundError, which file and where to put it, if it is missing."""
    try:
        path = pretrained.find_weights(folder, name)
    except ValueError as error:
        raise FileNotFoundError(str(error)) from None
    return tensor_files.read(path)
