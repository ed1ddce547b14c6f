"""The image tokenizer: a trained network as a pair of functions, uint8 images in and out.

    tokenizer = image_tokenizer.load("runs/t2i/vq/tokenizer")
    codes = tokenizer.encode(images)                     uint8[B, S, S, C] -> int32[B, N]
    tokenizer.decode(codes)                              int32[B, N] -> uint8[B, S, S, C]

The network is in `vqgan.py`; a tokenizer may keep a subset of its codes. It is stored as one file
in the safetensors layout, with the settings of the network in the metadata.

With a network of two levels (`pyramid.py`) the codes of a picture are those of the coarse grid and
then those of the fine one, int32[B, N1 + N2]. `grid` and `codes` are those of the fine level, and
`CoarseTokenizer` has the coarse codes alone.
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
from udd_jax.tokenizers import pyramid, vqgan

NETWORKS = {"vqgan": vqgan.VQGAN, "pyramid": pyramid.Pyramid}


def to_unit(images):
    """uint8[..., C] -> float32[..., C] in [-1, 1], as the network sees it.

    It sees a picture with opacity as it looks over white, and its opacity. So a colour counts as
    much as it is seen, and edges are as smooth as they look.
    """
    images = jnp.asarray(images, jnp.float32) / 127.5 - 1
    if images.shape[-1] != 4:
        return images
    colours, opacity = images[..., :3], images[..., 3:]
    share = (opacity + 1) / 2
    return jnp.concatenate([colours * share + (1 - share), opacity], axis=-1)


def to_uint8(images):
    """The inverse: float[..., C], clipped to [-1, 1] -> uint8[..., C], rounded.

    Exact, but that a colour of opacity 0 becomes white.
    """
    images = jnp.clip(images, -1, 1)
    found = jnp.round((images + 1) * 127.5)
    if images.shape[-1] == 4:
        colours, opacity = images[..., :3], found[..., 3:]
        colours = 1 - (1 - colours) * 255 / jnp.maximum(opacity, 1)
        colours = jnp.where(opacity == 0, 1.0, jnp.clip(colours, -1, 1))
        found = jnp.concatenate([jnp.round((colours + 1) * 127.5), opacity], axis=-1)
    return found.astype(jnp.uint8)


def as_rgb(images):
    """float[..., C] of `to_unit` -> float[..., 3]: what is seen over white, as `pixels.as_rgb`.

    For networks that know colours only. It has gradients.
    """
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images[..., :3]


@functools.partial(jax.jit, static_argnums=0)
def _encode(module, params, images):
    return module.apply({"params": params}, to_unit(images), method="encode_codes")


@functools.partial(jax.jit, static_argnums=1)
def _draw(key, module, params, images, numbers):
    shape = (*module.grid, module.n_embed)
    noise = jax.vmap(lambda n: jax.random.gumbel(jax.random.fold_in(key, n), shape))(numbers)
    return module.apply({"params": params}, to_unit(images), noise, method="encode_codes")


@functools.partial(jax.jit, static_argnums=(0, 3))
def _decode(module, params, codes, method="decode_codes"):
    return to_uint8(module.apply({"params": params}, codes, method=method))


@dataclasses.dataclass(frozen=True, eq=False)
class ImageTokenizer:
    """A trained VQGAN as a pair of functions on arrays.

    `full_to_used`, int32[n_embed] or None, maps the codes of the network to the smaller set in use
    (`codebook.used_codes`; the published 8192 -> 2887 is such a map). Several codes may share an
    index, which decodes to its code in `decoded_to`, int32[K]; None, as in older files and the
    published ones: to the first of them. With two levels, their maps are one after the other.
    Images are processed `chunk` at a time, and the last chunk is padded, so that there is one
    compilation. coded_by: the hash of a tokenizer with the same codes and another decoder, or "".
    """

    module: vqgan.VQGAN
    params: dict
    full_to_used: np.ndarray | None = None
    chunk: int = 64
    coded_by: str = ""
    decoded_to: np.ndarray | None = None

    @functools.cached_property
    def maps(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each level (full_to_used int32[K_full], used_to_full int32[K])."""
        sizes = [size for _, size in self.module.levels]
        whole = self.full_to_used
        if whole is None:
            whole = np.concatenate([np.arange(size, dtype=np.int32) for size in sizes])
        parts = np.split(whole, np.cumsum(sizes)[:-1])
        back = [np.unique(part, return_index=True)[1].astype(np.int32) for part in parts]
        if self.decoded_to is not None:
            back = np.split(self.decoded_to, np.cumsum([len(used) for used in back])[:-1])
        return list(zip(parts, back, strict=True))

    @property
    def used_to_full(self):
        """int32[codes]: the code of the network for each code of the (fine) level."""
        return self.maps[-1][1]

    @property
    def lengths(self) -> list[int]:
        """The number of codes of each level, coarse ones first."""
        return [math.prod(grid) for grid, _ in self.module.levels]

    def finest(self, codes):
        """int32[B, N] of all levels -> those of the finest one."""
        return codes[:, -self.lengths[-1] :]

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
        for full_to_used, used_to_full in self.maps:
            if self.decoded_to is not None:  # hashes of older files stay
                digest.update(full_to_used.tobytes())
            digest.update(used_to_full.tobytes())
        return digest.hexdigest()[:16]

    @property
    def code_hash(self) -> str:
        """As `hash`, but whatever the decoder is: equal for equal codes."""
        return self.coded_by or self.hash

    def encode(self, images, key=None):
        """uint8[B, S, S, C] -> int32[B, N], row by row. Deterministic without a key.

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
        codes = codes.reshape(len(images), sum(self.lengths))
        return codes if self.full_to_used is None else self.mapped(codes)

    def decode(self, codes):
        """int32[B, N] -> uint8[B, S, S, C].

        Raises ValueError for another length or codes outside 0 .. codes - 1.
        """
        codes = self._checked(codes, self.lengths)
        full, grids = self.mapped(codes, back=True), [grid for grid, _ in self.module.levels]
        return self._chunked(_decode, full.reshape(-1, *grids[0]) if len(grids) == 1 else full)

    def preview(self, codes):
        """The coarse codes of two levels int32[B, N1] -> previews uint8[B, S, S, C]."""
        codes = self._checked(codes, self.lengths[:1])
        show = functools.partial(_decode, method="preview_codes")
        return self._chunked(show, self.maps[0][1][codes])

    def _checked(self, codes, lengths):
        codes = np.asarray(codes)
        if codes.ndim != 2 or codes.shape[1] != sum(lengths):
            raise UserError(
                f"codes have shape {list(codes.shape)}, the image tokenizer expects "
                f"[B, {sum(lengths)}]"
            )
        for part, (_, used) in zip(self._parts(codes), self.maps, strict=False):
            if part.size and not 0 <= part.min() <= part.max() < len(used):
                raise UserError(
                    f"codes run from {part.min()} to {part.max()}, the image tokenizer has "
                    f"0 to {len(used) - 1}: they are not its own"
                )
        return codes

    def _parts(self, codes) -> list:
        return np.split(codes, np.cumsum(self.lengths)[:-1], axis=1)

    def mapped(self, codes, back=False):
        """Codes of the network of all levels int32[B, N] -> those in use; or back."""
        each = zip(self._parts(codes), self.maps, strict=True)
        return np.concatenate([both[back][part] for part, both in each], axis=1)

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


@dataclasses.dataclass(frozen=True, eq=False)
class CoarseTokenizer:
    """The coarse codes of a tokenizer with two levels, and the pictures that they decode to."""

    whole: ImageTokenizer

    @property
    def grid(self) -> tuple[int, int]:
        return self.whole.module.coarse_grid

    @property
    def image_size(self):
        return self.whole.image_size

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.whole.shape

    @property
    def codes(self) -> int:
        """K1."""
        return len(self.whole.maps[0][1])

    @property
    def hash(self) -> str:
        return self.whole.hash

    def encode(self, images) -> np.ndarray:
        """uint8[B, S, S, C] -> int32[B, N1]. ValueError for another size or dtype."""
        return self.whole.encode(images)[:, : self.whole.lengths[0]]

    def decode(self, codes) -> np.ndarray:
        """int32[B, N1] -> previews uint8[B, S, S, C]."""
        return self.whole.preview(codes)


def coarse(tokenizer: ImageTokenizer, path) -> CoarseTokenizer:
    """The coarse level of a tokenizer. UserError, which names its file, if it has one level."""
    if len(tokenizer.lengths) == 1:
        raise UserError(
            f"{path} has one level, expected a coarse and a fine one: leave out the modality of "
            "kind coarse, or train a tokenizer with it"
        )
    return CoarseTokenizer(tokenizer)


def _settings(module):
    fields = (f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name"))
    settings = {name: getattr(module, name) for name in fields}
    if settings["channels"] == 3:  # as before there were others: hashes and files stay
        del settings["channels"]
    if type(module) is not vqgan.VQGAN:
        settings["network"] = next(n for n, made in NETWORKS.items() if made is type(module))
    return settings


def save(path, tokenizer, metadata=None):
    """Writes one file in the safetensors layout, with a dict of further facts such as scores."""
    tree = {"params": tokenizer.params}
    for name in ("full_to_used", "decoded_to"):
        if getattr(tokenizer, name) is not None:
            tree[name] = getattr(tokenizer, name)
    settings = {"module": _settings(tokenizer.module), "chunk": tokenizer.chunk}
    settings |= {"coded_by": tokenizer.coded_by} if tokenizer.coded_by else {}
    trees.save_tree(path, tree, settings | {"about": metadata or {}})


def load(path):
    """The tokenizer that `save` wrote.

    FileNotFoundError if there is no file, ValueError if it is damaged.
    """
    tree, metadata = trees.load_tree(path)
    try:
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["module"].items()}
        network = NETWORKS[fields.pop("network", "vqgan")]
        params, used = tree["params"], tree.get("full_to_used")
        rest = metadata["chunk"], metadata.get("coded_by", ""), tree.get("decoded_to")
        return ImageTokenizer(network(**fields), params, used, *rest)
    except trees.BROKEN as error:
        raise UserError(f"{path} is not an image tokenizer ({error!r})") from None
