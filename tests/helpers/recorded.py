"""The arrays recorded from the published code, in the folder that `UDD_UNID3_FIXTURES` names.

Nothing here or in the tests that use it knows a size: all of them come from the folder's
config.json. Published times 0..T-1 are our 1..T.
"""

import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.convert import names
from udd_jax.diffusion import vocab
from udd_jax.networks import transformer

HERE = pathlib.Path(__file__).parents[1]
FOLDER = pathlib.Path(os.environ.get("UDD_UNID3_FIXTURES", HERE / "fixtures" / "unid3"))
CONFIG = json.loads((FOLDER / "config.json").read_text())
VOCAB = vocab.image_text(
    grid=(CONFIG["spatial"],) * 2,
    image_classes=CONFIG["K_img"],
    text_classes=CONFIG["K_txt"],
    text_length=CONFIG["text_len"],
)
PRECISIONS = ("f32", "f64")
# A test for each: in float64, where the agreement is closest, when the slow ones are asked for.
precision = pytest.mark.parametrize(
    "precision", ["f32", pytest.param("f64", marks=pytest.mark.slow)]
)
SHORT = {"image": "img", "text": "txt"}  # how the recording calls the modalities


def path(name: str) -> pathlib.Path:
    """A file of the recording; sentences have no sizes, so that a set may do without its own."""
    found = FOLDER / name
    return found if found.exists() or "tokenizer" not in name else HERE / "fixtures/unid3" / name


# Compiling is most of the time of these tests, and nothing runs long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def arrays(file: str) -> dict[str, np.ndarray]:
    """All arrays of one file, such as "loss_f32"."""
    with np.load(path(f"{file}.npz")) as stored:
        return dict(stored)


def dtype(precision: str):
    return {"f32": jnp.float32, "f64": jnp.float64}[precision]


def under(file: str, prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names start with `prefix`, by the rest of the name."""
    found = {k: v for k, v in arrays(file).items() if k.startswith(prefix)}
    return {k.removeprefix(prefix): v for k, v in found.items()}


def model(precision: str = "f32", steps: int = CONFIG["T"], **options) -> transformer.Transformer:
    """The published network at the recording's sizes."""
    return transformer.Transformer(
        VOCAB,
        steps,
        layers=CONFIG["depth"],
        width=CONFIG["dim"],
        heads=CONFIG["heads"],
        dtype=dtype(precision),
        **options,
    )


@functools.cache
def example(precision: str) -> dict:
    """The shapes of our parameters."""
    init = functools.partial(transformer.init, model(precision))
    shapes = jax.eval_shape(init, jax.random.key(0))
    cast = functools.partial(jax.ShapeDtypeStruct, dtype=np.dtype(dtype(precision)))
    return jax.tree.map(lambda p: cast(p.shape), shapes)


@functools.cache
def params(precision: str) -> dict:
    """The recorded parameters in our layout; they are float32 values in both precisions."""
    state = under("transformer_f32", "param/")
    return names.read(state, example(precision), names.network_name, names.NETWORK_DEAD)


def classes(m: int) -> list[int]:
    """The classes that a position of modality m can have, in the order of local ids."""
    first = VOCAB.offsets[m]
    return [*range(first, first + VOCAB.modalities[m].classes), VOCAB.mask_id]


def of_modality(dense: np.ndarray, m: int) -> np.ndarray:
    """[B, V, L] -> [B, n, K_m + 1], what the library computes."""
    positions = VOCAB.slices[m] if dense.shape[-1] == VOCAB.length else slice(None)
    return np.moveaxis(dense[:, classes(m), positions], 1, -1)


def to_dense(parts) -> np.ndarray:
    """The inverse, from a part a modality: -inf for the classes of the other one."""
    out = np.full((parts[0].shape[0], VOCAB.size, VOCAB.length), -np.inf)
    for m, (part, where) in enumerate(zip(parts, VOCAB.slices, strict=True)):
        out[:, classes(m), where] = np.moveaxis(np.asarray(part), -1, 1)
    return out


def assert_close(ours, theirs, tolerance: float, what: str = ""):
    """max |a - b| <= tolerance max |b|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} and {theirs.shape}"
    error, scale = np.abs(ours - theirs).max(initial=0), np.abs(theirs).max(initial=0)
    assert error <= tolerance * scale, f"{what}: off by {error:.2e}, {error / scale:.1e} of {scale}"


def gumbel_argmax(log_p: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """The published draw, from [B, V, L] logs and noise: argmax over classes, int[B, L]."""
    u = uniform.astype(np.float64)
    return (np.maximum(log_p, -70) - np.log(-np.log(u + 1e-30) + 1e-30)).argmax(axis=1)


def json_of(file: str):
    return json.loads(path(f"{file}.json").read_text())
