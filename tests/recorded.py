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

from udd_jax import transformer, vocab

HERE = pathlib.Path(__file__).parent
FOLDER = pathlib.Path(os.environ.get("UDD_UNID3_FIXTURES", HERE / "fixtures" / "unid3"))
CONFIG = json.loads((FOLDER / "config.json").read_text())
VOCAB = vocab.image_text(
    grid=(CONFIG["spatial"],) * 2,
    image_classes=CONFIG["K_img"],
    text_classes=CONFIG["K_txt"],
    text_length=CONFIG["text_len"],
)
PRECISIONS = ("f32", "f64")
SHORT = {"image": "img", "text": "txt"}  # how the recording calls the modalities

# Compiling is most of the time of these tests, and nothing runs long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def arrays(file: str) -> dict[str, np.ndarray]:
    """All arrays of one file, such as "loss_f32"."""
    with np.load(FOLDER / f"{file}.npz") as stored:
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


def assert_close(ours, theirs, tolerance: float, what: str = ""):
    """max |a - b| <= tolerance max |b|."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} and {theirs.shape}"
    error, scale = np.abs(ours - theirs).max(initial=0), np.abs(theirs).max(initial=0)
    assert error <= tolerance * scale, f"{what}: off by {error:.2e}, {error / scale:.1e} of {scale}"
