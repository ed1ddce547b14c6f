"""A dual encoder: a tower for images and a tower for texts, over tokens, compared by cosines.

    match = e^tau (global + local) / 2        global = cos(image, text), of the whole vectors
                                              local = (1/5) log sum_i exp(5 cos(c_i, e_i))

The local part compares words e_i with regions v_j, as in AttnGAN's DAMSM (arXiv 1711.10485):

    s = softmax over words of e_i . v_j;    a_ij = softmax over regions of 5 s_ij;    c_i = a_ij v_j

A tower is a small pre-norm transformer. It takes tokens of any time of the noise, masks among them,
and also points of the simplex, so that a scorer can take its gradient. A region is one code of the
image, or a square of `patch` x `patch` codes, whose vectors a matrix for each place in the square
adds up. The towers are trained with CLIP's loss (arXiv 2103.00020) in
training/train_dual_encoder.py.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion.vocab import Vocab
from udd_jax.networks import layers

SHARPNESS = 5.0  # of the local part


class Encoded(NamedTuple):
    """What a tower makes of B rows."""

    whole: jax.Array  # float[B, E], of length 1
    parts: jax.Array  # float[B, n, E], a region or word each, of any length
    seen: jax.Array  # bool[B, n], False for padding


class Tower(nn.Module):
    """Tokens of one modality, int32[B, n] local ids (`classes` is the mask) or points of the
    simplex float[B, n, classes], at times int32[B] -> `Encoded`."""

    classes: int
    length: int
    steps: int  # T
    padding: int | None  # the id that is not seen
    width: int
    layers: int
    heads: int
    places: bool
    grid: tuple[int, int] = (0, 0)  # of an image
    patch: int = 1

    @nn.compact
    def __call__(self, tokens, t, blend=None):
        table = self.param("token", layers.normal(), (self.classes + 1, self.width))
        order = self._squares()
        tokens = tokens[:, order]
        if tokens.ndim == 3:
            h, seen = tokens @ table[:-1], jnp.ones(tokens.shape[:2], bool)
            if self.padding is not None:
                seen = tokens[..., self.padding] < 0.5
        else:
            h, seen = table[tokens], tokens != (-1 if self.padding is None else self.padding)
        if blend is not None:
            others, share = blend[0][..., order], blend[1][:, order]
            mean = sum(table[other] for other in others) / len(others)  # faster in XLA than mean(0)
            h = h + share[..., None] * (mean - h)
        length = self.length
        if self.patch > 1:
            length //= self.patch**2
            h = layers.Dense(self.width, name="patch")(h.reshape(len(h), length, -1))
            seen = jnp.ones(h.shape[:2], bool)
        h = h + self.param("position", layers.normal(), (length, self.width))[None]
        seen = seen | ~seen.any(axis=1, keepdims=True)  # a row of padding alone sees it
        time = layers.TimeEmbedding(self.steps, self.width, sinusoidal=True, name="time")(t)[
            :, None
        ]
        hidden = jnp.where(seen, 0.0, layers.HIDDEN)[:, None, None]
        for i in range(self.layers):
            x = layers.AdaLayerNorm(self.steps, name=f"norm_{i}")(h, time, (length,))
            attend = layers.Attention(self.width, self.heads, name=f"attention_{i}")
            h = h + attend(x, attend.project(x), hidden)
            x = layers.layer_norm(True, h.dtype, f"mlp_norm_{i}")(h)
            h = h + layers.MLP(2, name=f"mlp_{i}")(x)
        h = layers.layer_norm(True, h.dtype, "norm")(h)
        weight = seen / seen.sum(axis=1, keepdims=True)
        whole = layers.Dense(self.width, name="whole")((h * weight[..., None]).sum(axis=1))
        if self.places:
            shape = (length, self.width, self.width)
            places = self.param("places", layers.normal(), shape)
            whole += jnp.einsum("bnd,nde->be", h * seen[..., None], places)
        return Encoded(unit(whole), layers.Dense(self.width, name="parts")(h), seen)

    def _squares(self):
        """The order of the positions in which the codes of a square are neighbours."""
        if self.patch == 1:
            return slice(None)
        (rows, columns), p = self.grid, self.patch
        places = np.arange(self.length).reshape(rows // p, p, columns // p, p)
        return places.swapaxes(1, 2).reshape(-1)


class DualEncoder(nn.Module):
    """The two towers and their temperature."""

    vocab: Vocab
    steps: int
    padding: int  # of the text
    width: int = 64
    layers: int = 2
    heads: int = 2
    places: bool = True  # a matrix for each place, besides that of the mean: it tells what is where
    patch: int = 1  # codes of the image at the side of a region

    def setup(self):
        def tower(name, padding, **image):
            m = self.vocab.modalities[self.vocab.index(name)]
            sizes = (self.width, self.layers, self.heads, self.places)
            return Tower(m.classes, m.length, self.steps, padding, *sizes, **image)

        grid = self.vocab.modalities[self.vocab.index("image")].grid
        self.image = tower("image", None, grid=grid, patch=self.patch)
        self.text = tower("text", self.padding)
        self.tau = self.param("tau", nn.initializers.constant(2.5), ())

    def __call__(self, image, text, times, blend=None):
        """(Encoded images, Encoded texts, e^tau). times: int32[B, 2]; blend: of the image,
        (others int32[J, B, n], share float[B, n]) mixes the mean of other tokens in, or None."""
        return self.image(image, times[:, 0], blend), self.text(text, times[:, 1]), self.scale()

    def encode(self, name: str, tokens, t):
        """`Encoded` of one modality, "image" or "text"."""
        return {"image": self.image, "text": self.text}[name](tokens, t)

    def scale(self):
        """e^tau, at most 100, as in CLIP."""
        return jnp.exp(jnp.minimum(self.tau, jnp.log(100.0)))


def whole(image: Encoded, texts: Encoded) -> jax.Array:
    """The global part of one image with B texts, float[B]: cosines."""
    return texts.whole @ image.whole


def local(regions: Encoded, words: Encoded) -> jax.Array:
    """The local part of one image with B texts, float[B]; both may be of any modality."""
    products = jnp.einsum("bie,je->bij", words.parts, regions.parts)
    s = jax.nn.softmax(jnp.where(words.seen[:, :, None], products, -jnp.inf), axis=1)
    a = jax.nn.softmax(jnp.where(regions.seen[None, None], SHARPNESS * s, -jnp.inf), axis=2)
    squares = _square_of_sums(a, regions.parts) * _square(words.parts)
    cosine = (a * products).sum(-1) * jax.lax.rsqrt(squares)  # c_i . e_i is sum_j a_ij e_i . v_j
    cosine = jnp.where(words.seen, SHARPNESS * cosine, -jnp.inf)
    return jax.nn.logsumexp(cosine, axis=1) / SHARPNESS


def both(image: Encoded, texts: Encoded) -> jax.Array:
    """The mean of the global and the local part, float[B]; times e^tau the match."""
    return (whole(image, texts) + local(image, texts)) / 2


def pairs(score, images: Encoded, texts: Encoded) -> jax.Array:
    """`score` (`whole`, `local`, `both`) of every image with every text, float[B, B']."""
    return jax.vmap(score, in_axes=(0, None))(images, texts)


def rows(score, images: Encoded, texts: Encoded) -> jax.Array:
    """`score` of each image with the text of its row, float[B]."""
    return jax.vmap(score)(images, jax.tree.map(lambda y: y[:, None], texts))[:, 0]


def init(model: DualEncoder, key: jax.Array) -> dict:
    """New parameters, a dict of float32 arrays, scaled by fan-in (`layers.fan_in`)."""
    one = [jnp.zeros((1, m.length), jnp.int32) for m in model.vocab.modalities]
    both = {m.name: x for m, x in zip(model.vocab.modalities, one, strict=True)}
    times = jnp.zeros((1, 2), jnp.int32)
    return layers.fan_in(model.init(key, both["image"], both["text"], times)["params"])


def unit(u: jax.Array) -> jax.Array:
    """u / |u| along the last axis; its gradient is finite at 0."""
    return u * jax.lax.rsqrt(_square(u))[..., None]


def _square_of_sums(a, v):
    """|sum_j a_..j v_j|^2 of a float[..., n] and v float[n, E], by way of whichever is smaller, the
    products of the vectors or the sums."""
    if len(v) <= v.shape[1]:
        return ((a @ (v @ v.T)) * a).sum(-1) + 1e-12
    return _square(a @ v)


def _square(u):
    return (u**2).sum(-1) + 1e-12
