"""A trained dual encoder as functions of tokens: embeddings, match scores, a scorer.

    encoder = matching.load("runs/t2i/dual_encoder/encoder")
    encoder.match(codes, ids)            int32[n, N], int32[n, M] -> float64[n]
    encoder.table(codes, ids)            every image with every text, float64[n, m]

The match (`dual_encoder.py`) is about log p(text | image) / p(text) up to a constant, since CLIP's
loss makes it so. VLMS is the visual-linguistic matching score of VLMGAN* (arXiv 2208.09596), in a
form of ours: its formula could not be read.
"""

import dataclasses
import functools
import hashlib
import operator

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.errors import UserError
from udd_jax.networks import dual_encoder
from udd_jax.runtime import trees

FOLDER = "dual_encoder"
FILE = f"{FOLDER}/encoder"  # in the folder of a run
ROWS = 64  # encoded at once
PLACES, LATE = 8, 0.9  # of a code that is known alone, and the share of T
TOWERS = ("image", "text")
# of the network, in a file
SETTINGS = ("steps", "padding", "width", "layers", "heads", "places", "patch")


@dataclasses.dataclass(frozen=True, eq=False)
class Matcher:
    """A dual encoder with its parameters.

    hashes: {modality: of the tokenizer whose tokens it knows} (`hashes`).
    """

    model: dual_encoder.DualEncoder
    params: dict
    hashes: dict[str, str]

    @functools.cached_property
    def hash(self) -> str:
        """16 hex digits from the weights: equal hash, equal vectors of the same tokens."""
        digest = hashlib.sha256()
        for name, leaf in trees.flatten(self.params).items():
            digest.update(name.encode() + np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()[:16]

    def encode(self, name: str, ids, t=0) -> dual_encoder.Encoded:
        """Rows of "image" or "text", local ids int32[n, length] at time t -> `Encoded`, NumPy."""
        if name not in TOWERS:
            raise UserError(f"{name!r} has no tower, expected one of {', '.join(TOWERS)}")
        ids = np.asarray(ids)
        encode = lambda rows: self._encode(self.params, name, rows, jnp.full(ROWS, t))  # noqa: E731
        return _in_parts(encode, ids)

    def match(self, codes, ids) -> np.ndarray:
        """The match of image and text of each row, float64[n]."""
        encoded = self.encode("image", codes), self.encode("text", ids)
        return self._scale * _in_parts(_halves, *encoded).astype(float)

    def table(self, codes, ids) -> np.ndarray:
        """The match of every image with every text, float64[n, m]."""
        images, texts = self.encode("image", codes), self.encode("text", ids)
        each = (jax.tree.map(operator.itemgetter(i), images) for i in range(len(images.whole)))
        return self._scale * np.stack([_of_one(image, texts) for image in each]).astype(float)

    def vlms(self, made, real, ids) -> np.ndarray:
        """VLMS of each generated image `made` for its text and the real image, float64[n].

        The mean of two parts, text with image and image with image. Each part is the mean of the
        global and the local comparison.
        """
        made, real = self.encode("image", made), self.encode("image", real)
        others = self.encode("text", ids), real
        return np.mean([_in_parts(_halves, made, other) for other in others], axis=0)

    def of_codes(self, ids) -> np.ndarray:
        """The match of a text with an image of which one code alone is known, float64[K].

        ids: int32[1, M]. The rest of the image is masks, late in the noise; the mean over PLACES
        places. Less its usual value, it is about log p(text | the code is there) / p(text).
        """
        m = self.model.vocab.modalities[self.model.vocab.index("image")]
        places = np.unique(np.linspace(0, m.length - 1, PLACES).round().astype(int))
        images = np.full((len(places), m.classes, m.length), m.classes, np.int32)
        images[np.arange(len(places)), :, places] = np.arange(m.classes)
        late, text = round(LATE * self.model.steps), self.encode("text", ids)
        images = self.encode("image", images.reshape(-1, m.length), late)
        texts = jax.tree.map(lambda part: part.repeat(len(images.whole), 0), text)
        found = self._scale * _in_parts(_halves, images, texts).astype(float)
        return found.reshape(len(places), m.classes).mean(0)

    def scorer(self, ids):
        """F for `scoring.of_image`: t / T times the match of the image's tokens with a text.

        ids: int32[1, M]. Without t / T a scale of 1 would be Bayes' rule, if gradients were
        differences. They are too small while nothing is decided, at large t, and break pictures
        when nearly all is: so early steps count more, and a scale of 9 or so is needed.
        """
        text = jax.tree.map(jnp.asarray, self.encode("text", ids))
        return jax.tree_util.Partial(self._scorer, self.params, text)

    @functools.cached_property
    def _encode(self):
        apply = functools.partial(self.model.apply, method="encode")
        encode = lambda params, name, ids, t: apply({"params": params}, name, ids, t)  # noqa: E731
        return jax.jit(encode, static_argnums=1)

    @functools.cached_property
    def _scale(self):
        return float(self.model.apply({"params": self.params}, method="scale"))

    @functools.cached_property
    def _scorer(self):
        """Made once: compiled functions are found by its identity."""
        model = self.model

        def score(params, text, tokens, x, t):
            image = model.apply({"params": params}, "image", tokens[0], t, method="encode")
            scale = model.apply({"params": params}, method="scale")
            found = scale * dual_encoder.pairs(dual_encoder.both, image, text)[:, 0]
            return t / model.steps * found

        return score


_of_one = jax.jit(dual_encoder.both)
_halves = jax.jit(functools.partial(dual_encoder.rows, dual_encoder.both))


def _in_parts(function, *trees):
    """A function of trees of n rows, ROWS at a time so that it is compiled once -> NumPy."""
    count, found = len(jax.tree.leaves(trees)[0]), []
    for start in range(0, count, ROWS):
        rows, kept = np.minimum(np.arange(start, start + ROWS), count - 1), count - start
        part = jax.device_get(function(*jax.tree.map(operator.itemgetter(rows), trees)))
        found.append(jax.tree.map(operator.itemgetter(slice(kept)), part))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def hashes(tokenizers: dict) -> dict[str, str]:
    """{modality: the hash of what makes its tokens}, of those that a dual encoder reads."""
    read = {name: tokenizers[name] for name in TOWERS}
    return {name: getattr(found, "code_hash", found.hash) for name, found in read.items()}


def save(path, matcher: Matcher, about: dict | None = None, half=False) -> None:
    """Writes one file, `about` into its metadata. half: float16, half of the bytes."""
    model = matcher.model
    settings = {"vocab": [dataclasses.asdict(m) for m in model.vocab.modalities]}
    settings |= {n: getattr(model, n) for n in SETTINGS}
    metadata = {"settings": settings, "hashes": matcher.hashes, "about": about or {}}
    trees.save_tree(path, matcher.params, metadata, half=half)


def load(path, hashes: dict | None = None) -> Matcher:
    """The dual encoder of a file, which may be of another run.

    FileNotFoundError, or UserError if `hashes` are those of other tokenizers.
    """
    params, metadata = trees.load_tree(path)
    for name, value in (hashes or {}).items():
        known = metadata["hashes"].get(name, "")
        if value != known:
            raise UserError(
                f"{path} was trained on tokens of another {name} tokenizer ({known[:8]}, here "
                f"{value[:8]}): expected a dual encoder with the tokenizers of this run"
            )
    # Older files have neither places nor patches.
    settings = {"places": False, **metadata["settings"]}
    grid = lambda m: m["grid"] and tuple(m["grid"])  # noqa: E731
    modalities = [Modality(**{**m, "grid": grid(m)}) for m in settings.pop("vocab")]
    model = dual_encoder.DualEncoder(Vocab(tuple(modalities)), **settings)
    return Matcher(model, params, metadata["hashes"])
