"""The arrays recorded from the published code, and a second set recorded from its twin.

`PUBLISHED` is the folder that `UDD_UNID3_FIXTURES` names, or the one of the repository. `TWIN` has
other sizes; `record_twin.py` wrote it. Nothing here or in the tests that use it knows a size: all
of them come from the folder's config.json. Published times 0..T-1 are our 1..T.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import published_twin
from udd_jax.convert import names
from udd_jax.diffusion import vocab
from udd_jax.networks import transformer

HERE = pathlib.Path(__file__).parents[1]
PRECISIONS = ("f32", "f64")
# A test for each: in float64, where the agreement is closest, when the slow ones are asked for.
precision = pytest.mark.parametrize(
    "precision", ["f32", pytest.param("f64", marks=pytest.mark.slow)]
)
SHORT = {"image": "img", "text": "txt"}  # how the recording calls the modalities

# Compiling is most of the time of these tests, and nothing runs long.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def dtype(precision: str):
    return {"f32": jnp.float32, "f64": jnp.float64}[precision]


@functools.cache
def _load(path: pathlib.Path) -> dict[str, np.ndarray]:
    with np.load(path) as stored:
        return dict(stored)


@functools.cache
def _params(recording: "Recording", precision: str) -> dict:
    state = recording.under("transformer_f32", "param/")
    example = recording.example(precision)
    return names.read(state, example, names.network_name, names.NETWORK_DEAD)


@dataclasses.dataclass(frozen=True)
class Recording:
    """A folder of recorded arrays."""

    folder: pathlib.Path

    @functools.cached_property
    def config(self) -> dict:
        """Every size, rate and seed."""
        return json.loads((self.folder / "config.json").read_text())

    @functools.cached_property
    def vocab(self) -> vocab.Vocab:
        return vocab.image_text(
            grid=(self.config["spatial"],) * 2,
            image_classes=self.config["K_img"],
            text_classes=self.config["K_txt"],
            text_length=self.config["text_len"],
        )

    @property
    def twin(self) -> published_twin.Twin:
        """The process as dense matrices, in all T steps."""
        return published_twin.Twin((self.config["K_img"], self.config["K_txt"]), self.config["T"])

    def path(self, name: str) -> pathlib.Path:
        """A file; sentences have no sizes, so that a set may do without its own."""
        found = self.folder / name
        return (
            found if found.exists() or "tokenizer" not in name else HERE / "fixtures/unid3" / name
        )

    def arrays(self, file: str) -> dict[str, np.ndarray]:
        """All arrays of one file, such as "loss_f32"."""
        return _load(self.path(f"{file}.npz"))

    def under(self, file: str, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names start with `prefix`, by the rest of the name."""
        found = {k: v for k, v in self.arrays(file).items() if k.startswith(prefix)}
        return {k.removeprefix(prefix): v for k, v in found.items()}

    def json_of(self, file: str):
        return json.loads(self.path(f"{file}.json").read_text())

    def model(self, precision: str = "f32", **options) -> transformer.Transformer:
        """The published network at the recording's sizes."""
        return transformer.Transformer(
            self.vocab,
            self.config["T"],
            layers=self.config["depth"],
            width=self.config["dim"],
            heads=self.config["heads"],
            dtype=dtype(precision),
            **options,
        )

    def example(self, precision: str) -> dict:
        """The shapes of our parameters."""
        init = functools.partial(transformer.init, self.model(precision))
        shapes = jax.eval_shape(init, jax.random.key(0))
        cast = functools.partial(jax.ShapeDtypeStruct, dtype=np.dtype(dtype(precision)))
        return jax.tree.map(lambda p: cast(p.shape), shapes)

    def params(self, precision: str) -> dict:
        """The recorded parameters in our layout; they are float32 values in both precisions."""
        return _params(self, precision)

    def classes(self, m: int) -> list[int]:
        """The classes that a position of modality m can have, in the order of local ids."""
        first = self.vocab.offsets[m]
        return [*range(first, first + self.vocab.modalities[m].classes), self.vocab.mask_id]

    def of_modality(self, dense: np.ndarray, m: int) -> np.ndarray:
        """[B, V, L] -> [B, n, K_m + 1], what the library computes."""
        whole = dense.shape[-1] == self.vocab.length
        positions = self.vocab.slices[m] if whole else slice(None)
        return np.moveaxis(dense[:, self.classes(m), positions], 1, -1)

    def to_dense(self, parts) -> np.ndarray:
        """The inverse, from a part a modality: -inf for the classes of the other one."""
        out = np.full((parts[0].shape[0], self.vocab.size, self.vocab.length), -np.inf)
        for m, (part, where) in enumerate(zip(parts, self.vocab.slices, strict=True)):
            out[:, self.classes(m), where] = np.moveaxis(np.asarray(part), -1, 1)
        return out


PUBLISHED = Recording(
    pathlib.Path(os.environ.get("UDD_UNID3_FIXTURES", HERE / "fixtures" / "unid3"))
)
TWIN = Recording(HERE / "fixtures" / "unid3_twin")
SETS = {"published": PUBLISHED, "twin": TWIN}
both_sets = pytest.mark.parametrize("recording", SETS.values(), ids=SETS)


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
