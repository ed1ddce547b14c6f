"""The layers of the transformer: attention, normalisation, embeddings. Each is a small module.

Parameter names are an interface: the sharding table, the converters and the checkpoints depend on
them. The defaults are those of the published network.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion.vocab import Vocab
from udd_jax.networks import fused_attention
from udd_jax.runtime import sharding

HIDDEN = -1e9  # what is added to the scores of keys that a query does not see
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),  # as published: exact erf
    "gelu_tanh": nn.gelu,
    "silu": nn.silu,
    "relu": nn.relu,
}


def options(module, kind: type) -> dict:
    """{field: value} of a module for the fields of `kind`, its class or one that it extends."""
    names = (field.name for field in dataclasses.fields(kind))
    return {name: getattr(module, name) for name in names if name not in ("parent", "name")}


def hide(bias, keys):
    """`bias` with HIDDEN added where `keys` is True. bias: float or None; keys: bool, broadcast."""
    hidden = jnp.where(keys, HIDDEN, 0.0)
    return hidden if bias is None else bias + hidden


def normal(std: float = 0.02):
    return nn.initializers.normal(std)


def fan_in(params: dict) -> dict:
    """Parameters drawn with `normal()`, scaled: the standard deviation is 1 / sqrt(inputs) for
    matrices and 0.6 for embeddings, other vectors and `places` of a dual encoder, whose part of an
    encoding is large at first. Biases, gains and scalars stay."""

    def widen(path, p):
        name = path[-1].key
        if name == "kernel":
            return p * (p.shape[-2] ** -0.5 / 0.02)
        constant = name in ("bias", "scale") or p.ndim == 0
        return p if constant else p * (0.6 / 0.02)

    return jax.tree.map_with_path(widen, params)


def layer_norm(affine: bool, dtype, name: str | None = None, gain: float = 0.0) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses three digits; the published code does not use it.
    return nn.LayerNorm(
        epsilon=1e-5,
        use_bias=affine,
        use_scale=affine or gain > 0,
        scale_init=nn.initializers.constant(1.0 if affine else gain),
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


class Painted(NamedTuple):
    """A bias with a part that is relative to the largest score of a head: bias + paint max(q k').

    Both are as `bias` of `dot_product_attention`, which is then computed as "flat".
    """

    bias: jax.Array | None
    paint: jax.Array


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: "jax.Array | Painted | None" = None,
    implementation: str = "flat",
) -> jax.Array:
    """softmax(q k' / sqrt(d) + bias) v for q [B, n, H, d], k and v [B, n', H, d] -> [B, n, H, d].

    bias: float, broadcast to [B, H, n, n'], or None. `implementation` is "flat" (batch and heads
    are one axis: the fast layout for XLA on CPUs), "xla" or "cudnn" (passed to
    `jax.nn.dot_product_attention`), or "fused" (fused_attention.py, for TPUs). Scores and softmax
    are at least float32.
    """
    paint = None
    if isinstance(bias, Painted):
        (bias, paint), implementation = bias, "flat"
    if implementation == "fused":
        return fused_attention.attention(q, k, v, bias)
    if implementation == "cudnn" and bias is not None:
        # cuDNN needs one type for all inputs, and a row for each query; -1e9 is not a float16.
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], q.shape[1], k.shape[1]))
        bias = jnp.maximum(bias, float(jnp.finfo(q.dtype).min) / 2).astype(q.dtype)
    if implementation != "flat":
        return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)
    batch, n, heads, size = q.shape

    def flat(x):  # [B, n, H, d] -> [B H, n, d]
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, x.shape[1], size)

    scores = jnp.matmul(flat(q) * (1 / math.sqrt(size)), flat(k).transpose(0, 2, 1))
    scores = scores.astype(jnp.promote_types(jnp.float32, scores.dtype))
    if paint is not None:
        paint = jnp.broadcast_to(paint, (batch, heads, n, k.shape[1]))
        scores = scores + paint.reshape(scores.shape) * scores.max((1, 2), keepdims=True)
    if bias is not None:
        bias = jnp.broadcast_to(bias, (batch, heads, n, k.shape[1]))
        scores = scores + bias.reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.matmul(weights, flat(v))
    return out.reshape(batch, heads, n, size).transpose(0, 2, 1, 3)


class Dense(nn.Dense):
    """A Dense layer as one matrix product: two batch axes make the backward pass slower on CPUs."""

    kernel_init: Callable = normal()

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class KeysValues(NamedTuple):
    """Keys and values of the context, float[B, n', H, d] each. Rotary positions are applied."""

    k: jax.Array
    v: jax.Array


def rotary_angles(vocab: Vocab, pairs: int) -> np.ndarray:
    """The rotation of each pair of channels at each position, in radians: float32[L, pairs].

    The pairs are divided among the axes of all modalities (rows and columns of a grid, places of a
    text). The angle is the coordinate of the position on that axis times a frequency from 1 to
    1/100. On the axes of other modalities the angle is 0. Modalities that share their positions
    share their axes.
    """
    owners = {m.place: m for m in reversed(vocab.modalities)}
    owners = [m for m in vocab.modalities if owners[m.place] is m]
    axes = [(m, a) for m in owners for a in range(1 if m.grid is None else 2)]
    angles = []
    for share, (owner, axis) in zip(np.array_split(np.arange(pairs), len(axes)), axes, strict=True):
        frequencies = 100.0 ** (-np.arange(len(share)) / len(share))
        coordinates = []
        for m in vocab.modalities:
            place = np.arange(m.length)
            if m.place != owner.place:
                place = np.zeros(m.length)
            elif m.grid is not None:
                place = np.unravel_index(place, m.grid)[axis]
            coordinates.append(place)
        angles.append(np.concatenate(coordinates)[:, None] * frequencies[None])
    return np.concatenate(angles, axis=1).astype(np.float32)


def rotate(x: jax.Array, angles: np.ndarray | jax.Array) -> jax.Array:
    """Rotary positions (Su et al. 2021): rotates pairs (i, i + d/2) of x [B, n, H, d] by angles.

    angles: float32[n, d/2], see `rotary_angles`, or float32[B, n, d/2]. Returns [B, n, H, d].
    """
    if angles.ndim == 2:
        cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (np.cos, np.sin))
    else:
        cos, sin = (f(angles)[:, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Attention(nn.Module):
    """Multi-head attention: queries x [B, n, D] attend to a context that `project` made.

    Returns [B, n, D].
    """

    width: int
    heads: int
    qk_norm: bool = False
    implementation: str = "flat"
    dtype: Any = jnp.float32

    def setup(self):
        self.query, self.key, self.value, self.out = (
            Dense(self.width, dtype=self.dtype) for _ in range(4)
        )
        if self.qk_norm:
            self.query_norm, self.key_norm = (nn.RMSNorm(dtype=self.dtype) for _ in range(2))

    def project(self, context, angles=None) -> KeysValues:
        """Keys and values of a context [B, n', D]; angles: float[n', d/2] for `rotate`, or None."""
        k, v = self._heads(self.key(context)), self._heads(self.value(context))
        k = self.key_norm(k) if self.qk_norm else k
        return KeysValues(k if angles is None else rotate(k, angles), v)

    def __call__(self, x, seen: KeysValues, bias=None, angles=None):
        q = self._heads(self.query(x))
        q = self.query_norm(q) if self.qk_norm else q
        q = q if angles is None else rotate(q, angles)
        q, k, v = (sharding.constrain(y, "data", None, "model", None) for y in (q, *seen))
        y = dot_product_attention(q, k, v, bias, self.implementation)
        return self.out(y.reshape(x.shape))

    def _heads(self, y):
        return y.reshape(*y.shape[:-1], self.heads, self.width // self.heads)  # [B, n, H, d]


class TimeEmbedding(nn.Module):
    """t int32[...] -> float[..., D]: a learned row for each t in 0..T, or sinusoids and an MLP."""

    steps: int
    width: int
    sinusoidal: bool = False

    @nn.compact
    def __call__(self, t):
        if not self.sinusoidal:
            return nn.Embed(self.steps + 1, self.width, embedding_init=normal(), name="table")(t)
        half = self.width // 2
        frequencies = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half))
        angles = t[..., None] / self.steps * 4000 * frequencies.reshape((1,) * t.ndim + (half,))
        y = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        y = Dense(self.width, name="in")(y)
        return Dense(self.width, name="out")(nn.silu(y))


class AdaLayerNorm(nn.Module):
    """LN(h) (1 + scale(t)) + shift(t), with (scale, shift) = Linear(SiLU(embedding of t)).

    h: [B, n, D]; time: float[B, C, D], a shared embedding, or int32[B, C], times for the table of
    this layer. C is 1, or the number of modalities in h; modality c has lengths[c] positions.
    Returns [B, n, D].
    """

    steps: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h, time, lengths: tuple[int, ...]):
        width = h.shape[-1]
        if jnp.issubdtype(time.dtype, jnp.integer):
            time = TimeEmbedding(self.steps, width, name="time")(time)
        y = Dense(2 * width, dtype=self.dtype, name="modulation")(nn.silu(time))
        scale, shift = jnp.split(y, 2, axis=-1)  # [B, C, D] each
        h = layer_norm(False, self.dtype)(h)
        if time.shape[1] == 1:
            return h * (1 + scale) + shift
        parts, start = [], 0
        for c, length in enumerate(lengths):
            part = h[:, start : start + length]
            parts.append(part * (1 + scale[:, c : c + 1]) + shift[:, c : c + 1])
            start += length
        return jnp.concatenate(parts, axis=1)


class MLP(nn.Module):
    """Linear, activation, Linear on h [..., D]; the hidden width is `ratio` D."""

    ratio: int = 4
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        width = h.shape[-1]
        y = Dense(self.ratio * width, dtype=self.dtype, name="in")(h)
        y = sharding.constrain(ACTIVATIONS[self.activation](y), "data", None, "model")
        return Dense(width, dtype=self.dtype, name="out")(y)


@dataclass(frozen=True)
class BlockSettings:
    """The settings that all blocks of a network share; for the fields see `Transformer`."""

    vocab: Vocab
    heads: int
    steps: int
    attention: str
    network: str
    mutual_gain: float
    rotary: bool
    qk_norm: bool
    mlp_ratio: int
    activation: str
    implementation: str
    dtype: Any

    def ada(self, time, name: str, x, parts) -> jax.Array:
        """AdaLayerNorm of x, positions of the modalities `parts`, at their own times or a shared
        one. For use inside a block's `__call__`, like `attend`."""
        theirs = time if time.shape[1] == 1 else jnp.stack([time[:, m] for m in parts], axis=1)
        lengths = tuple(self.vocab.modalities[m].length for m in parts)
        return AdaLayerNorm(self.steps, self.dtype, name=name)(x, theirs, lengths)

    def attend(self, width: int, name: str) -> Attention:
        """An attention layer of a block."""
        return Attention(
            width, self.heads, self.qk_norm, self.implementation, self.dtype, name=name
        )


class FusedEmbedding(nn.Module):
    """Global ids int32[B, L] -> [B, L, D]: one table for all ids, plus learned positions.

    The position is the sum of a row and a column vector on a grid, or one vector for each place of
    a text. Modalities of one segment share theirs, and a reference has the ids, and so the tokens,
    of the modality it is like. `at`, int32[B, n], are the positions of xt int32[B, n]; None: all of
    them. `soft` has for each modality None, or probabilities float[B, length, K] of its tokens.
    They change no value, and get the gradient of the embedding they would give ("straight
    through"). Of features it has the values, float[B, length, inputs], of which a linear map is
    added where they are given (bool[B, L]).
    """

    vocab: Vocab
    width: int

    @nn.compact
    def __call__(self, xt, at=None, soft=None, given=None):
        def table(name, rows):
            return self.param(name, normal(), (rows, self.width))

        tokens = table("token", self.vocab.size)
        h = jnp.take(tokens, xt, axis=0)  # [B, L, D]
        for m, modality in enumerate(self.vocab.modalities):
            if modality.inputs:
                h = self._features(h, m, None if soft is None else soft[m], given)
        for m, p in enumerate(soft or ()):
            if p is not None and not self.vocab.modalities[m].inputs:
                start, size = self.vocab.offsets[m], self.vocab.modalities[m].classes
                mean = (p - jax.lax.stop_gradient(p)) @ tokens[start : start + size]
                h = h.at[:, self.vocab.slices[m]].add(mean)
        places = {}
        for modality in self.vocab.modalities:
            place = modality.place
            if place in places:
                continue
            if modality.grid is None:
                places[place] = table(f"{place}_position", modality.length)
            else:
                rows, columns = modality.grid
                row = table(f"{place}_row", rows)[:, None]
                column = table(f"{place}_column", columns)[None]
                places[place] = (row + column).reshape(modality.length, self.width)
        positions = jnp.concatenate([places[m.place] for m in self.vocab.modalities])
        return h + (positions[None] if at is None else positions[at])

    def _features(self, h, m, values, given):
        """h with the features of modality m, where they are given."""
        modality, where = self.vocab.modalities[m], self.vocab.slices[m]
        if values is None and not self.is_initializing():
            return h  # absent in the whole batch
        if values is None:
            values = jnp.zeros((len(h), modality.length, modality.inputs))
        mapped = Dense(self.width, use_bias=False, name=f"{modality.name}_in")(values)
        return h.at[:, where].add(jnp.where(given[:, where, None], mapped, 0))
