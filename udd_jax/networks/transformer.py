"""The mutual-attention transformer (Hu et al. 2022, section 3.3). Read this second.

    x_t -> fused embedding -> blocks -> LayerNorm -> one head a modality

A block is pre-norm and residual, with AdaLN(h, t) = LN(h) (1 + scale(t)) + shift(t):

    1. self-attention of AdaLN(h) over all positions;
    2. mutual attention: the tokens of each modality query those of the others, each direction with
       its own weights and its own AdaLN on the queries (keys and values are the raw h); the
       results are normalised over channels, put side by side and added to h;
    3. MLP of LayerNorm(h).

The default fields are the published network. What we add is off unless asked for:
`time="per_modality"`, the tied and sinusoidal time tables, query-key normalisation, the vector
added at given positions, the hidden padding of given texts, other activations, bfloat16, the
plain `attention="self"` ablation, and `block_attention`: a modality of which nothing is free, since
it is given or absent, looks at itself alone, so that what it becomes does not depend on what is
generated beside it, and its keys and values can be kept through a chain (`Denoiser`).

Parameter names are API: the sharding table, the converters and the checkpoints key on them. The
parameters of the blocks are stacked on a leading axis of `layers`.
"""

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

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": lambda x: nn.gelu(x, approximate=False),  # the published one, exact erf
    "gelu_tanh": nn.gelu,
    "silu": nn.silu,
    "relu": nn.relu,
}


def _normal(std: float = 0.02):
    return nn.initializers.normal(std)


def _layer_norm(affine: bool, dtype, name: str | None = None, gain: float = 0.0) -> nn.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 costs three digits; the published code does not use it.
    return nn.LayerNorm(
        epsilon=1e-5,
        use_bias=affine,
        use_scale=affine or gain > 0,
        scale_init=nn.initializers.constant(1.0 if affine else gain),
        use_fast_variance=False,
        dtype=dtype,
        name=name,
    )


def dot_product_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    implementation: str = "flat",
) -> jax.Array:
    """softmax(q k' / sqrt(d) + bias) v for q [B, n, H, d], k and v [B, n', H, d] -> [B, n, H, d].

    bias: float, broadcast to [B, H, n, n'], or None. `implementation` is "flat" (batch and heads
    as one axis: the fast layout for XLA on CPUs), "xla" or "cudnn" of
    `jax.nn.dot_product_attention`, or "fused" (fused_attention.py: for TPUs). Scores and softmax
    are in float32 at the least.
    """
    if implementation == "fused":
        return fused_attention.attention(q, k, v, bias)
    if implementation == "cudnn" and bias is not None:
        bias = bias.astype(q.dtype)  # it reads all its inputs as one type
    if implementation != "flat":
        return jax.nn.dot_product_attention(q, k, v, bias=bias, implementation=implementation)
    batch, n, heads, size = q.shape

    def flat(x):  # [B, n, H, d] -> [B H, n, d]
        return x.transpose(0, 2, 1, 3).reshape(batch * heads, x.shape[1], size)

    scores = jnp.matmul(flat(q) * (1 / math.sqrt(size)), flat(k).transpose(0, 2, 1))
    scores = scores.astype(jnp.promote_types(jnp.float32, scores.dtype))
    if bias is not None:
        full = jnp.broadcast_to(bias, (batch, heads, n, k.shape[1]))
        scores = scores + full.reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.matmul(weights, flat(v))
    return out.reshape(batch, heads, n, size).transpose(0, 2, 1, 3)


class Dense(nn.Dense):
    """A Dense layer as one matrix product: with two batch axes, CPUs are slower backwards."""

    kernel_init: Callable = _normal()

    def __call__(self, x):
        return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], self.features)


class KeysValues(NamedTuple):
    """Of positions that are looked at: float[B, n', H, d] each, rotated."""

    k: jax.Array
    v: jax.Array


def rotary_angles(vocab: Vocab, pairs: int) -> np.ndarray:
    """float32[L, pairs], how far each pair of channels is turned at each position.

    The pairs are divided among the axes of the layout (rows and columns of a grid, places of a
    text); a position is turned by its coordinate, times 1 down to 1/100, on the axes that it has.
    """
    axes = [(m, a) for m in vocab.modalities for a in range(1 if m.grid is None else 2)]
    angles = []
    for share, (owner, axis) in zip(np.array_split(np.arange(pairs), len(axes)), axes, strict=True):
        rates = 100.0 ** (-np.arange(len(share)) / len(share))
        coordinates = []
        for m in vocab.modalities:
            place = np.arange(m.length)
            if m is not owner:
                place = np.zeros(m.length)
            elif m.grid is not None:
                place = np.unravel_index(place, m.grid)[axis]
            coordinates.append(place)
        angles.append(np.concatenate(coordinates)[:, None] * rates[None])
    return np.concatenate(angles, axis=1).astype(np.float32)


def rotate(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Rotary positions (Su et al. 2021): x [B, n, H, d], pairs (i, i + d/2) turned by angles[n]."""
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (np.cos, np.sin))
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Attention(nn.Module):
    """Multi-head attention: `project` a context, and queries x [B, n, D] look at it: [B, n, D]."""

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
        """Keys and values of a context [B, n', D]; angles: its rotary ones, float[n', d/2]."""
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
    """t int32[...] -> float[..., D]: a learned row for each of 0..T, or sinusoids and an MLP."""

    steps: int
    width: int
    sinusoidal: bool = False

    @nn.compact
    def __call__(self, t):
        if not self.sinusoidal:
            return nn.Embed(self.steps + 1, self.width, embedding_init=_normal(), name="table")(t)
        half = self.width // 2
        rates = jnp.exp(-math.log(10000) / (half - 1) * jnp.arange(half))
        angles = t[..., None] / self.steps * 4000 * rates.reshape((1,) * t.ndim + (half,))
        y = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        y = Dense(self.width, name="in")(y)
        return Dense(self.width, name="out")(nn.silu(y))


class AdaLayerNorm(nn.Module):
    """LN(h) (1 + scale(t)) + shift(t), with (scale, shift) = Linear(SiLU(embedding of t)).

    h: [B, n, D]; time: float[B, C, D], the shared embedding, or int32[B, C], times for this
    layer's own table; C is 1, or the number of modalities with `lengths` positions each.
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
        h = _layer_norm(False, self.dtype)(h)
        if time.shape[1] == 1:
            return h * (1 + scale) + shift
        parts, start = [], 0
        for c, length in enumerate(lengths):
            part = h[:, start : start + length]
            parts.append(part * (1 + scale[:, c : c + 1]) + shift[:, c : c + 1])
            start += length
        return jnp.concatenate(parts, axis=1)


class MLP(nn.Module):
    """Linear, activation, Linear; the hidden width is `ratio` times the width."""

    ratio: int = 4
    activation: str = "gelu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        width = h.shape[-1]
        y = Dense(self.ratio * width, dtype=self.dtype, name="in")(h)
        y = sharding.constrain(ACTIVATIONS[self.activation](y), "data", None, "model")
        return Dense(width, dtype=self.dtype, name="out")(y)


class Block(nn.Module):
    """One block; see the head of this file.

    h: [B, n, D], the positions of `parts`, which are all modalities but for those of which `kept`
    has keys and values. time: of all; bias: float[B or 1, H or 1, L or 1, L] or None; alone:
    bool[B, M] or None, modalities that look at themselves alone. Returns h and, of the modality
    `keep`, what the others will look at.
    """

    vocab: Vocab
    heads: int
    steps: int
    attention: str = "mutual"
    network: str = "joint"
    mutual_gain: float = 0.0
    rotary: bool = False
    qk_norm: bool = False
    mlp_ratio: int = 4
    activation: str = "gelu"
    implementation: str = "flat"
    dtype: Any = jnp.float32
    keep: str | None = None

    @nn.compact
    def __call__(self, h, time, bias, alone, kept):
        vocab, width, keep = self.vocab, h.shape[-1], self.keep
        known = {vocab.index(name): values for name, values in kept.items()}
        every, (parts, here) = range(len(vocab.modalities)), computed(vocab, kept, keep)

        def ada(name, x, parts):
            theirs = time if time.shape[1] == 1 else jnp.stack([time[:, m] for m in parts], axis=1)
            lengths = tuple(vocab.modalities[m].length for m in parts)
            return AdaLayerNorm(self.steps, self.dtype, name=name)(x, theirs, lengths)

        def attention(name):
            return Attention(
                width, self.heads, self.qk_norm, self.implementation, self.dtype, name=name
            )

        def seen(projected, name, modalities):
            """Keys and values of what was projected, and then of `modalities` that are kept."""
            found = [projected] if projected is not None else []
            found += [known[m][name] for m in modalities if m in known]
            return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *found)

        def biases(queries, keys):
            """For these modalities; the columns as `seen` has them."""
            if bias is None:
                return None
            full = jnp.broadcast_to(bias, (*bias.shape[:2], vocab.length, vocab.length))
            full = jnp.concatenate([full[:, :, vocab.slices[m]] for m in queries], axis=2)
            keys = [m for group in (parts, known) for m in keys if m in group]
            return jnp.concatenate([full[..., vocab.slices[m]] for m in keys], axis=3)

        angles = None
        if self.rotary:
            angles = rotary_angles(vocab, width // self.heads // 2)
            angles = np.concatenate([angles[vocab.slices[m]] for m in parts])
        x = ada("self_norm", h, parts)
        attend = attention("self_attention")
        to_keep = {"self": attend.project(x, angles)}
        context = seen(to_keep["self"], "self", every)
        h = h + attend(x, context, biases(parts, every), angles)

        if self.attention == "mutual" and keep is not None:
            for name in (mutual_name(vocab, m) for m in every if m not in parts):
                to_keep[name] = attention(name).project(h)
        elif self.attention == "mutual":
            results = []
            for m in parts:
                name, y = mutual_name(vocab, m), h[:, here[m]]
                if self.network in ("joint", name) or self.is_initializing():
                    attend, context = attention(name), None
                    others = [o for o in every if o != m]
                    near = [h[:, here[o]] for o in others if o in parts]
                    if near:
                        context = attend.project(jnp.concatenate(near, axis=1))
                    queries = ada(f"{name}_norm", y, [m])
                    y = attend(queries, seen(context, name, others), biases([m], others))
                # The published code calls this an instance norm; it is a LayerNorm.
                y = _layer_norm(False, self.dtype, f"{name}_result", self.mutual_gain)(y)
                if alone is not None:
                    y = jnp.where(alone[:, m, None, None], 0, y)
                results.append(y)
            h = h + jnp.concatenate(results, axis=1)

        x = _layer_norm(True, self.dtype, "mlp_norm")(h)
        h = h + MLP(self.mlp_ratio, self.activation, self.dtype, name="mlp")(x)
        return sharding.constrain(h, "data", None, None), to_keep if keep is not None else None


def computed(vocab: Vocab, kept: dict, keep: str | None) -> tuple[list[int], dict[int, slice]]:
    """The modalities whose positions go through the blocks, and where each is among them."""
    parts, here, start = [], {}, 0
    for m, modality in enumerate(vocab.modalities):
        if modality.name not in kept and keep in (None, modality.name):
            here[m] = slice(start, start + modality.length)
            start += modality.length
            parts.append(m)
    return parts, here


def mutual_name(vocab: Vocab, m: int) -> str:
    """The name of the mutual attention of modality `m`, such as "image_from_text"."""
    names = [modality.name for modality in vocab.modalities]
    return f"{names[m]}_from_{'_'.join(n for o, n in enumerate(names) if o != m)}"


class FusedEmbedding(nn.Module):
    """One table for all V ids, and learned positions: row and column, or place in the text."""

    vocab: Vocab
    width: int

    @nn.compact
    def __call__(self, xt):
        def table(name, rows):
            return self.param(name, _normal(), (rows, self.width))

        h = jnp.take(table("token", self.vocab.size), xt, axis=0)  # [B, L, D]
        positions = []
        for modality in self.vocab.modalities:
            if modality.grid is None:
                positions.append(table(f"{modality.name}_position", modality.length))
            else:
                rows, columns = modality.grid
                row = table(f"{modality.name}_row", rows)[:, None]
                column = table(f"{modality.name}_column", columns)[None]
                positions.append((row + column).reshape(modality.length, self.width))
        return h + jnp.concatenate(positions)[None]


class Transformer(nn.Module):
    """`denoise_fn` as a module: (xt, t, free) -> logits over x_0, float32, one a modality.

    xt: int32[B, L], global ids; t: int32[B, M] in 0..`steps`; free: bool[B, L]; bias: additive
    attention bias, float, broadcast to [B, heads, L, L], or None. Returns a tuple of
    float32[B, length_m, K_m].

    With `block_attention`, `keep="text"` asks in place of logits for the keys and values of all
    layers of a modality of which nothing is free in any sample; `kept` passes them back, {} is
    none. The modality is then not computed, and its logits are 0 (a uniform p).

    `network` is "joint", or one of the two conditional networks that UniD3 also published, whose
    wiring is another function of the same parameters: with "image_from_text" the mutual attention
    and the head of the text are not evaluated, in their place the text adds its own normalised
    channels, and its logits are 0 (a uniform p). "text_from_image" is the mirror image.
    """

    vocab: Vocab
    steps: int  # T
    layers: int = 20
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    attention: str = "mutual"  # or "self"
    block_attention: bool = False  # what has nothing free looks at itself alone
    network: str = "joint"  # or "image_from_text", or "text_from_image"
    time: str = "shared"  # or "per_modality"
    time_table: str = "untied"  # a table in every AdaLN; or "tied", or "sinusoidal"
    given_vector: bool = False
    padding: int | None = None  # the text's padding id: hidden where all of the text is given
    mutual_gain: float = 0.0  # where learned gains of mutual attention's results start; 0 is none
    rotary: bool = False  # rotary positions in self-attention, beside the learned ones
    qk_norm: bool = False
    activation: str = "gelu"
    rezero: float = 0.0  # where the scalar before the softmax starts
    implementation: str = "flat"
    unroll: int = 1  # blocks compiled one after the other in a turn of the loop: faster on CPUs
    remat: str = "none"  # or "full", or "dots": keep the results of matrix products
    dtype: Any = jnp.float32

    def __post_init__(self):
        super().__post_init__()
        mutual = tuple(mutual_name(self.vocab, m) for m in range(len(self.vocab.modalities)))
        choices = {
            "attention": ("mutual", "self"),
            "network": ("joint", *mutual) if self.attention == "mutual" else ("joint",),
            "time": ("shared", "per_modality"),
            "time_table": ("untied", "tied", "sinusoidal"),
            "remat": ("none", "full", "dots"),
            "activation": tuple(ACTIVATIONS),
            "implementation": ("flat", "xla", "cudnn", "fused"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f"model.{field} = {getattr(self, field)!r}, expected one of {allowed}"
                )
        if self.block_attention and (self.network != "joint" or self.time != "per_modality"):
            raise ValueError(
                f"model.block_attention with model.network = {self.network!r} and model.time = "
                f"{self.time!r}, expected 'joint' and 'per_modality'"
            )
        if self.width % self.heads:
            raise ValueError(
                f"model.width = {self.width} is no multiple of model.heads = {self.heads}"
            )

    @nn.compact
    def __call__(self, xt, t, free, bias=None, kept=None, keep=None):
        kept, alone = kept or {}, None
        if (kept or keep) and not self.block_attention:
            raise ValueError("keys and values are kept with model.block_attention only")
        h = FusedEmbedding(self.vocab, self.width, name="embedding")(xt)
        if self.given_vector:
            vector = self.param("given", _normal(), (self.width,))
            h = h + jnp.where(self._given(t, free)[..., None], vector[None, None], 0)
        parts, here = computed(self.vocab, kept, keep)
        if kept or keep:
            h = jnp.concatenate([h[:, self.vocab.slices[m]] for m in parts], axis=1)
        h = sharding.constrain(h.astype(self.dtype), "data", None, None)
        if self.padding is not None:
            hidden = jnp.where(self._padded(xt, t, free), -1e9, 0.0)[:, None, None]  # of the keys
            bias = hidden if bias is None else bias + hidden
        if self.block_attention and not kept and keep is None:
            alone = ~jnp.stack([free[:, w].any(axis=1) for w in self.vocab.slices], axis=1)
            at = self.vocab.modality_of
            apart = alone[:, at, None] & (at[:, None] != at)[None]  # [B, queries, keys]
            apart = jnp.where(apart, -1e9, 0.0)[:, None]
            bias = apart if bias is None else bias + apart

        time = jnp.max(t, axis=1, keepdims=True) if self.time == "shared" else t
        if self.time_table != "untied":
            sinusoidal = self.time_table == "sinusoidal"
            time = TimeEmbedding(self.steps, self.width, sinusoidal, name="time")(time)

        block = Block
        if self.remat != "none":
            policy = None
            if self.remat == "dots":
                policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            block = nn.remat(Block, prevent_cse=False, policy=policy)
        blocks = nn.scan(
            block,
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=self.layers,
            unroll=self.unroll,
        )
        h, to_keep = blocks(
            self.vocab,
            self.heads,
            self.steps,
            self.attention,
            self.network,
            self.mutual_gain,
            self.rotary,
            self.qk_norm,
            self.mlp_ratio,
            self.activation,
            self.implementation,
            self.dtype,
            keep,
            name="blocks",
        )(h, time, bias, alone, kept)
        if keep is not None:
            return {keep: to_keep}

        h = _layer_norm(True, self.dtype, "norm")(h)
        rezero = self.param("rezero", nn.initializers.constant(self.rezero), ())
        logits = []
        for m, modality in enumerate(self.vocab.modalities):
            y = jnp.zeros((h.shape[0], modality.length, modality.classes), self.dtype)
            own = self.network in ("joint", mutual_name(self.vocab, m)) or self.is_initializing()
            if m in parts and own:
                name = f"{modality.name}_head"
                y = Dense(modality.classes, dtype=self.dtype, name=name)(h[:, here[m]])
            y = y.astype(jnp.promote_types(jnp.float32, y.dtype)) * rezero
            logits.append(sharding.constrain(y, "data", None, "model"))
        return tuple(logits)

    def _given(self, t, free):
        """Positions that hold a given token: not free, and their modality is not absent."""
        given = []
        for m, here in enumerate(self.vocab.slices):
            absent = (t[:, m] == self.steps) & ~free[:, here].any(axis=1)
            given.append(~free[:, here] & ~absent[:, None])
        return jnp.concatenate(given, axis=1)

    def _padded(self, xt, t, free):
        """Positions of padding in texts of which all is given. Elsewhere it says how long the text
        is that is being generated, or is noise."""
        m = self.vocab.index("text")
        whole = ~free[:, self.vocab.slices[m]].any(axis=1) & (t[:, m] < self.steps)
        return (xt == self.vocab.offsets[m] + self.padding) & whole[:, None]


@dataclass(frozen=True, eq=False)
class Denoiser:
    """`denoise_fn` of a network and its parameters.

    `still` names a modality of which nothing is free in any sample of the batch, and that does not
    change: with block attention its keys and values are then computed once a chain.
    """

    model: Transformer
    params: Any
    still: str | None = None

    def __call__(self, xt, t, free, kept=None):
        return self.model.apply({"params": self.params}, xt, t, free, kept=kept)

    def prepare(self, xt, t, free):
        """The function for a chain that begins so (`denoiser.prepare`)."""
        kept = None
        if self.still and self.model.block_attention:
            kept = self.model.apply({"params": self.params}, xt, t, free, keep=self.still)
        return jax.tree_util.Partial(self, kept=kept)


def init(model: Transformer, key: jax.Array, fan_in: bool = False) -> dict:
    """Fresh parameters, a dict of float32 arrays: N(0, 0.02) and zero biases, as published.

    With `fan_in` the standard deviation of a matrix is 1 / sqrt(inputs) and that of embeddings and
    the given vector 0.6: narrow networks learn much later from 0.02.
    """
    length, modalities = model.vocab.length, len(model.vocab.modalities)
    xt = jnp.zeros((1, length), jnp.int32)
    t = jnp.ones((1, modalities), jnp.int32)
    free = jnp.ones((1, length), bool)
    params = jax.jit(model.init)(key, xt, t, free)["params"]

    def widen(path, p):
        name = path[-1].key
        if name == "kernel":
            return p * (p.shape[-2] ** -0.5 / 0.02)
        constant = name in ("bias", "scale", "rezero")
        return p if constant else p * (0.6 / 0.02)

    return jax.tree.map_with_path(widen, params) if fan_in else params


def count_parameters(params) -> int:
    return int(sum(np.prod(p.shape) for p in jax.tree.leaves(params)))
