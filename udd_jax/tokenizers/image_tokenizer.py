"""The image tokenizer: a trained network as a pair of functions, uint8 images in and out.

    tokenizer = image_tokenizer.load("runs/t2i/vq/tokenizer")
    codes = tokenizer.encode(images)                     uint8[B, S, S, 3] -> int32[B, N]
    tokenizer.decode(codes)                              int32[B, N] -> uint8[B, S, S, 3]

The network is in `vqgan.py`; a tokenizer may keep a subset of its codes. It is stored as one file
in the safetensors layout, with the settings of the network in the metadata.
"""

import dataclasses
import functools
import hashlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.errors import UserError
from udd_jax.runtime import trees
from udd_jax.tokenizers import vqgan


def to_unit(images):
    """uint8 -> float32 in [-1, 1]."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def to_uint8(images):
    """float, clipped to [-1, 1] -> uint8, rounded."""
    return jnp.round((jnp.clip(images, -1, 1) + 1) * 127.5).astype(jnp.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _encode(module, params, images):
    return module.apply({"params": params}, to_unit(images), method="encode_codes")


@functools.partial(jax.jit, static_argnums=1)
def _draw(key, module, params, images, numbers):
    shape = (*module.grid, module.n_embed)
    noise = jax.vmap(lambda n: jax.random.gumbel(jax.random.fold_in(key, n), shape))(numbers)
    return module.apply({"params": params}, to_unit(images), noise, method="encode_codes")


@functools.partial(jax.jit, static_argnums=0)
def _decode(module, params, codes):
    return to_uint8(module.apply({"params": params}, codes, method="decode_codes"))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTokenizer:
    """A trained VQGAN as a pair of functions on arrays.

    `full_to_used`, int32[n_embed] or None, maps the codes of the network to the smaller set in use
    (`codebook.used_codes`; the published 8192 -> 2887 is such a map). Several codes may share an
    index, which decodes to the first of them. Images are processed `chunk` at a time, and the last
    chunk is padded, so that there is one compilation.
    """

    module: vqgan.VQGAN
    params: dict
    full_to_used: np.ndarray | None = None
    chunk: int = 64

    @functools.cached_property
    def used_to_full(self):
        """int32[codes]: the code of the network for each code of the tokenizer."""
        if self.full_to_used is None:
            return np.arange(self.module.n_embed, dtype=np.int32)
        return np.unique(self.full_to_used, return_index=True)[1].astype(np.int32)

    @property
    def codes(self):
        """K: the number of codes."""
        return len(self.used_to_full)

    @property
    def grid(self):
        return self.module.grid

    @property
    def image_size(self):
        """The side of the images, or (height, width)."""
        return self.module.resolution

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return (*self.module.size, self.module.channels)

    @property
    def vectors(self) -> np.ndarray:
        """The vector of each code, float32[K, d]."""
        return np.asarray(vqgan.rows(self.params))[self.used_to_full]

    @functools.cached_property
    def patches(self) -> np.ndarray:
        """The pixels that each code paints, uint8[K, h, w, c]: the cell in the middle of a picture
        that has this code everywhere."""
        (rows, columns), (height, width, _) = self.grid, self.shape
        cells = np.tile(np.arange(self.codes, dtype=np.int32)[:, None], (1, rows * columns))
        h, w = height // rows, width // columns
        top, left = rows // 2 * h, columns // 2 * w
        parts = np.array_split(cells, -(-len(cells) // self.chunk))  # few are in memory at once
        shown = [self.decode(part)[:, top : top + h, left : left + w] for part in parts]
        return np.concatenate(shown)

    @functools.cached_property
    def hash(self):
        """16 hex digits from the settings and weights: equal hash, equal codes."""
        digest = hashlib.sha256(json.dumps(_settings(self.module), sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
        digest.update(self.used_to_full.tobytes())
        return digest.hexdigest()[:16]

    def encode(self, images, key=None):
        """uint8[B, S, S, 3] -> int32[B, N], row by row. Deterministic without a key.

        With a key, the codes of a Gumbel quantiser are draws from the softmax of its logits, as
        always in the published encoder; image b draws from its own key. Raises ValueError for
        another size or dtype, and for a key if the quantiser draws nothing.
        """
        images = np.asarray(images)
        if images.shape[1:] != self.shape or images.dtype != np.uint8:
            raise UserError(
                f"images are {images.dtype}{list(images.shape)}, the image tokenizer expects "
                f"uint8[B, {', '.join(map(str, self.shape))}]: resize them (pixels.fit)"
            )
        if key is None:
            codes = self._chunked(_encode, images)
        elif self.module.quantiser == "gumbel":
            numbers = np.arange(len(images), dtype=np.int32)
            codes = self._chunked(functools.partial(_draw, key), images, numbers)
        else:
            raise UserError(
                f"codes of a {self.module.quantiser!r} quantiser are the nearest and not drawn: "
                "give no key"
            )
        codes = codes.reshape(len(images), math.prod(self.grid))
        return codes if self.full_to_used is None else self.full_to_used[codes]

    def decode(self, codes):
        """int32[B, N] -> uint8[B, S, S, 3].

        Raises ValueError for another length or codes outside 0 .. codes - 1.
        """
        codes = np.asarray(codes)
        h, w = self.grid
        if codes.ndim != 2 or codes.shape[1] != h * w:
            raise UserError(
                f"codes have shape {list(codes.shape)}, the image tokenizer expects [B, {h * w}]"
            )
        if codes.size and not 0 <= codes.min() <= codes.max() < self.codes:
            raise UserError(
                f"codes run from {codes.min()} to {codes.max()}, the image tokenizer has "
                f"0 to {self.codes - 1}: they are not its own"
            )
        return self._chunked(_decode, self.used_to_full[codes].reshape(len(codes), h, w))

    def _chunked(self, function, *arrays):
        out, total = [], len(arrays[0])
        for start in range(0, max(1, total), self.chunk):
            count = min(self.chunk, total - start)
            parts = [
                np.pad(
                    array[start : start + count],
                    [(0, self.chunk - count)] + [(0, 0)] * (array.ndim - 1),
                )
                for array in arrays
            ]
            out.append(np.asarray(function(self.module, self.params, *parts))[:count])
        return np.concatenate(out)


def _settings(module):
    fields = (f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name"))
    settings = {name: getattr(module, name) for name in fields}
    if settings["channels"] == 3:  # as before there were others: hashes and files stay
        del settings["channels"]
    return settings


def save(path, tokenizer, metadata=None):
    """Writes one file in the safetensors layout, with a dict of further facts such as scores."""
    tree = {"params": tokenizer.params}
    if tokenizer.full_to_used is not None:
        tree["full_to_used"] = tokenizer.full_to_used
    settings = {"module": _settings(tokenizer.module), "chunk": tokenizer.chunk}
    trees.save_tree(path, tree, settings | {"about": metadata or {}})


def load(path):
    """The tokenizer that `save` wrote.

    FileNotFoundError if there is no file, ValueError if it is damaged.
    """
    tree, metadata = trees.load_tree(path)
    try:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["module"].items()}
        params, used = tree["params"], tree.get("full_to_used")
        return ImageTokenizer(vqgan.VQGAN(**fields), params, used, metadata["chunk"])
    except trees.BROKEN as error:
        raise UserError(f"{path} is no image tokenizer ({error!r})") from None
