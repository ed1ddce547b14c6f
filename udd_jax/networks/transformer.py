"""The mutual-attention transformer (Hu et al. 2022, section 3.3). Read this second.

    x_t -> fused embedding -> blocks -> LayerNorm -> one head a modality

A block is pre-norm and residual, with AdaLN(h, t) = LN(h) (1 + scale(t)) + shift(t):

    1. self-attention of AdaLN(h) over all positions;
    2. mutual attention: the tokens of each modality attend to those of the others. Each direction
       has its own weights and its own AdaLN on the queries; keys and values come from h itself.
       The results are normalised over channels, concatenated and added to h;
    3. MLP of LayerNorm(h).

The default fields are the published network. Additions are off by default: `time="per_modality"`,
the tied and sinusoidal time tables, query-key normalisation, a vector added at given positions,
the masked padding of given texts, other activations, bfloat16, the ablation `attention="self"`,
`absent="left_out"` and `block_attention`. With block attention, a modality without any free
position (it is given or absent) attends to itself only. Its hidden states then do not depend on the
generated tokens, so its keys and values can be cached during a chain (`denoiser.py`).

As published, an absent modality is noise at time T, which costs as much as any other. Left out, it
is not seen by the others, and where it is absent in the whole batch it is not computed.

Parameter names are an interface: the sharding table, the converters and the checkpoints depend on
them. The parameters of the blocks are stacked on a leading axis of `layers`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion.vocab import Vocab
from udd_jax.errors import UserError
from udd_jax.networks import choices, layers, stacks
from udd_jax.runtime import sharding


class Block(nn.Module):
    """One block; see the docstring of this file.

    h: [B, n, D], the positions of the computed modalities (`computed`). time: int32[B, C] or
    float[B, C, D], the times of all modalities or one shared time (`layers.AdaLayerNorm`). bias:
    float[B or 1, H or 1, L or 1, L] or None. alone: bool[B, M] or None, the modalities that attend
    to themselves only. kept: {modality: its cached keys and values, or {} if nothing sees it}.
    Returns h and the keys and values of the modality `keep`, or None.
    """

    settings: layers.BlockSettings
    keep: str | None = None

    @nn.compact
    def __call__(self, h, time, bias, alone, kept):
        c, keep = self.settings, self.keep
        vocab, width = c.vocab, h.shape[-1]
        known = {vocab.index(name): values for name, values in kept.items() if values}
        every, (parts, here) = range(len(vocab.modalities)), computed(vocab, kept, keep)

        def seen(projected, name, modalities):
            """Joins the keys and values in `projected` and those cached for `modalities`."""
            found = [projected] if projected is not None else []
            found += [known[m][name] for m in modalities if m in known]
            return jax.tree.map(lambda *a: jnp.concatenate(a, axis=1), *found)

        def biases(queries, keys):
            """The part of `bias` for these modalities; its columns have the order of `seen`."""
            keys = [m for group in (parts, known) for m in keys if m in group]

            def part(bias):
                rows = 1 if bias.shape[2] == 1 else vocab.length  # one row: that of all queries
                full = jnp.broadcast_to(bias, (*bias.shape[:2], rows, vocab.length))
                if rows > 1:
                    full = jnp.concatenate([full[:, :, vocab.slices[m]] for m in queries], axis=2)
                return jnp.concatenate([full[..., vocab.slices[m]] for m in keys], axis=3)

            return jax.tree.map(part, bias)

        angles = None
        if c.rotary:
            angles = layers.rotary_angles(vocab, width // c.heads // 2)
            angles = np.concatenate([angles[vocab.slices[m]] for m in parts])
        x = c.ada(time, "self_norm", h, parts)
        attend = c.attend(width, "self_attention")
        to_keep = {"self": attend.project(x, angles)}
        context = seen(to_keep["self"], "self", every)
        h = h + attend(x, context, biases(parts, every), angles)

        if c.attention == "mutual" and keep is not None:
            for name in (mutual_name(vocab, m) for m in every if m not in parts):
                to_keep[name] = c.attend(width, name).project(h)
        elif c.attention == "mutual":
            results = []
            for m in parts:
                name, y = mutual_name(vocab, m), h[:, here[m]]
                if c.network in ("joint", name) or self.is_initializing():
                    attend, context = c.attend(width, name), None
                    others = [o for o in every if o != m and (o in parts or o in known)]
                    near = [h[:, here[o]] for o in others if o in parts]
                    if near:
                        context = attend.project(jnp.concatenate(near, axis=1))
                    if others:
                        queries = c.ada(time, f"{name}_norm", y, [m])
                        y = attend(queries, seen(context, name, others), biases([m], others))
                    else:
                        y = jnp.zeros_like(y)
                # The published code calls this an instance norm; it is a LayerNorm.
                y = layers.layer_norm(False, c.dtype, f"{name}_result", c.mutual_gain)(y)
                if alone is not None:
                    y = jnp.where(alone[:, m, None, None], 0, y)
                results.append(y)
            h = h + jnp.concatenate(results, axis=1)

        x = layers.layer_norm(True, c.dtype, "mlp_norm")(h)
        h = h + layers.MLP(c.mlp_ratio, c.activation, c.dtype, name="mlp")(x)
        return sharding.constrain(h, "data", None, None), to_keep if keep is not None else None


def computed(vocab: Vocab, kept: dict, keep: str | None) -> tuple[list[int], dict[int, slice]]:
    """The modalities whose positions go through the blocks, and the slice of each in h."""
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


class Transformer(nn.Module):
    """`denoise_fn` as a module: (xt, t, free) -> logits over x_0, float32, one a modality.

    xt: int32[B, L], global ids; t: int32[B, M] in 0..`steps`; free: bool[B, L]; bias: additive
    attention bias, float, broadcast to [B, heads, L, L], or None. Returns a tuple of
    float32[B, length_m, K_m].

    With `block_attention`, `cache` returns the keys and values of all layers for a modality that
    has no free position in any sample. `with_cache` uses them instead of computing that modality;
    its logits are then 0 (a uniform p).

    With absent = "left_out" no position sees those of an absent modality, not even its own.
    `without` names modalities that are absent in the whole batch: they are not computed, and their
    logits are 0. The others are as without it, but for rounding.

    `network` is "joint" or one of the two conditional networks that UniD3 also published. Those
    have the same parameters but compute another function. With "image_from_text" the mutual
    attention and the head of the text are not evaluated. The text adds its own normalised channels
    instead, and its logits are 0 (a uniform p). "text_from_image" swaps the two modalities.

    Raises:
        ValueError: an unknown choice, block attention without per-modality times or with a
            conditional network, absent modalities left out with one of these or of one shared time,
            decoder layers that the stack does not have, or a width that is not a multiple of the
            heads.
    """

    vocab: Vocab
    steps: int  # T
    layers: int = 20
    width: int = 1024
    heads: int = 16
    mlp_ratio: int = 4
    attention: str = "mutual"  # or "self"
    block_attention: bool = False  # a modality without free positions attends to itself only
    absent: str = "noise"  # or "left_out": what is absent is not seen (`without`)
    network: str = "joint"  # or "image_from_text", or "text_from_image"
    time: str = "shared"  # or "per_modality"
    time_table: str = "untied"  # one table for each AdaLN; or "tied", or "sinusoidal"
    given_vector: bool = False
    concentrated: bool = False  # nothing sees masked text but itself (DDCap, arXiv 2211.11694)
    length_head: bool = False  # predicts how long the text is
    padding: int | None = None  # the padding id of the text, hidden where all of the text is given
    mutual_gain: float = 0.0  # initial value of learned gains of mutual attention; 0: no gains
    rotary: bool = False  # rotary positions in self-attention, in addition to the learned ones
    qk_norm: bool = False
    activation: str = "gelu"
    rezero: float = 0.0  # initial value of the scalar that multiplies all logits
    implementation: str = "flat"
    unroll: int = 1  # blocks in one iteration of the compiled loop; more is faster on CPUs
    remat: str = "none"  # or "full", or "dots": keep the results of matrix products
    dtype: Any = jnp.float32
    stack: Any = "plain"  # a name in STACKS, or your own function (stacks.py)
    decoder_layers: int = 0  # so many of the layers are the decoder of "encoder_decoder"

    def __post_init__(self):
        super().__post_init__()
        choices.check(self, [mutual_name(self.vocab, m) for m in range(len(self.vocab.modalities))])

    def __call__(self, xt, t, free, bias=None, soft=None, paint=None, without=()):
        """Logits over x_0, float32[B, length_m, K_m] a modality. soft: see `FusedEmbedding`; paint:
        see `layers.Painted`; without: names of modalities that are absent in all rows.

        ValueError for `without` and a network whose absent modalities are noise."""
        return self._run(xt, t, free, bias, soft=soft, paint=paint, without=without)

    def cache(self, xt, t, free, modality: str):
        """{modality: its keys and values}, with a leading axis of layers.

        ValueError without `block_attention`.
        """
        return self._run(xt, t, free, keep=modality)

    def with_cache(self, xt, t, free, cache: dict, bias=None, paint=None):
        """The logits of `__call__`, without computing the modalities in `cache`.

        ValueError without `block_attention`.
        """
        return self._run(xt, t, free, bias, kept=cache, paint=paint)

    def lengths(self, xt, t, free):
        """Logits of the number of text tokens before the padding, float32[B, M + 1].

        They come from the mean of the last hidden states of the image. ValueError without
        `length_head`.
        """
        if not self.length_head:
            raise UserError("lengths are predicted with model.length_head only")
        return self._run(xt, t, free, length=True)

    @nn.compact
    def _run(
        self,
        xt,
        t,
        free,
        bias=None,
        kept=None,
        keep=None,
        soft=None,
        paint=None,
        length=False,
        without=(),
    ):
        kept = kept or {}
        if (kept or keep) and not self.block_attention:
            raise UserError("keys and values are kept with model.block_attention only")
        if without and self.absent != "left_out":
            raise UserError("a network leaves modalities out with model.absent = 'left_out' only")
        if self.absent == "left_out":
            kept = {name: {} for name in without}
            bias = layers.hide(bias, self._absent(t, free)[:, None, None, self.vocab.modality_of])
        alone = self._alone(xt, t, free)
        h = self._embed(xt, self._given(t, free), soft=soft)
        parts, here = computed(self.vocab, kept, keep)
        if kept or keep:
            h = jnp.concatenate([h[:, self.vocab.slices[m]] for m in parts], axis=1)
        h = sharding.constrain(h.astype(self.dtype), "data", None, None)
        if self.padding is not None:
            bias = layers.hide(bias, self._padded(xt, t, free)[:, None, None])
        if self.concentrated:
            others = ~np.eye(self.vocab.length, dtype=bool)[None]
            bias = layers.hide(bias, (self._masked_text(xt)[:, None] & others)[:, None])
        if self.block_attention and keep is None and len(parts) > 1:
            given = ~self.vocab.any_of(free)
            at = self.vocab.modality_of
            bias = layers.hide(bias, (given[:, at, None] & (at[:, None] != at)[None])[:, None])
            alone = given if alone is None else alone | given
        if paint is not None:
            bias = layers.Painted(bias, paint)

        h, to_keep = self._blocks(Block, keep)(h, self._times(t), bias, alone, kept)
        if keep is not None:
            return {keep: to_keep}

        if length or (self.length_head and self.is_initializing()):
            summary = h[:, self.vocab.slices[self.vocab.index("image")]].mean(axis=1)
            classes = self.vocab.modalities[self.vocab.index("text")].length + 1
            y = layers.Dense(classes, dtype=self.dtype, name="length_head")(summary)
            if length:
                return y.astype(jnp.promote_types(jnp.float32, y.dtype))
        return self._heads(h, here)

    def _embed(self, xt, given, at=None, soft=None):
        """Tokens, positions and the vector of given tokens. The positions are `at`, or all."""
        h = layers.FusedEmbedding(self.vocab, self.width, name="embedding")(xt, at, soft, given)
        if self.given_vector:
            vector = self.param("given", layers.normal(), (self.width,))
            h = h + jnp.where(given[..., None], vector[None, None], 0)
        return h

    def _times(self, t):
        """What the blocks get of the times t int32[B, M]: times, or embeddings of them."""
        time = jnp.max(t, axis=1, keepdims=True) if self.time == "shared" else t
        if self.time_table != "untied":
            sinusoidal = self.time_table == "sinusoidal"
            time = layers.TimeEmbedding(self.steps, self.width, sinusoidal, name="time")(time)
        return time

    def _blocks(self, block, keep):
        """The stack of the network's blocks, a function (`stacks`)."""
        shared = layers.options(self, layers.BlockSettings)
        stack = stacks.STACKS.get(self.stack, self.stack)
        size = {"layers": self.layers, "unroll": self.unroll, "remat": self.remat}
        if self.decoder_layers:
            size["decoder_layers"] = self.decoder_layers
        return stack(block, layers.BlockSettings(**shared), keep, **size)

    def _heads(self, h, here: dict[int, slice]):
        """h [B, n, D] -> logits; `here`: the part of h of each modality, 0 for the others."""
        h = layers.layer_norm(True, self.dtype, "norm")(h)
        rezero = self.param("rezero", nn.initializers.constant(self.rezero), ())
        logits, heads = [], {}  # a reference has the head of the modality it is like
        for m, modality in enumerate(self.vocab.modalities):
            y = jnp.zeros((h.shape[0], modality.length, modality.classes), self.dtype)
            own = self.network in ("joint", mutual_name(self.vocab, m)) or self.is_initializing()
            if m in here and own and not modality.inputs:
                name = f"{modality.like or modality.name}_head"
                if name not in heads:
                    heads[name] = layers.Dense(modality.classes, dtype=self.dtype, name=name)
                y = heads[name](h[:, here[m]])
            y = y.astype(jnp.promote_types(jnp.float32, y.dtype)) * rezero
            logits.append(sharding.constrain(y, "data", None, "model"))
        return tuple(logits)

    def _absent(self, t, free):
        """The absent modalities of each row, bool[B, M]."""
        return (t == self.steps) & ~self.vocab.any_of(free)

    def _given(self, t, free):
        """Positions of given tokens: not free, and the modality is not absent. bool[B, L]."""
        return ~free & ~self._absent(t, free)[:, self.vocab.modality_of]

    def _alone(self, xt, t, free):
        """The modalities that see no token of another one, bool[B, M]; None if none can be so."""
        hidden = []
        if self.absent == "left_out":
            hidden.append(self._absent(t, free)[:, self.vocab.modality_of])
        if self.concentrated:
            hidden.append(self._masked_text(xt))
        if not hidden:
            return None
        at, number = self.vocab.modality_of, len(self.vocab.modalities)
        others = np.arange(number)[:, None] != at  # [M, L]
        return ~(others[None] & ~functools.reduce(jnp.logical_or, hidden)[:, None]).any(axis=-1)

    def _masked_text(self, xt):
        """Masked tokens of texts, bool[B, L]: concentrated attention hides them from all others."""
        return self._texts()[self.vocab.modality_of][None] & (xt == self.vocab.mask_id)

    def _texts(self):
        """Whether a modality is a text, or a reference to one, bool[M]."""
        return np.array(["text" in (m.name, m.like) for m in self.vocab.modalities])

    def _padded(self, xt, t, free):
        """Positions of padding in fully given texts and references to them, bool[B, L].

        Other texts keep their padding visible: there it tells how long the generated text is, or it
        is noise.
        """
        vocab, pad = self.vocab, self.vocab.offsets[self.vocab.index("text")] + self.padding
        whole = self._texts()[None] & ~vocab.any_of(free) & (t < self.steps)
        return (xt == pad) & whole[:, vocab.modality_of]


def init(model: Transformer, key: jax.Array, fan_in: bool = False) -> dict:
    """New parameters, a dict of float32 arrays: N(0, 0.02^2) and zero biases, as published.

    With `fan_in` the standard deviation is 1 / sqrt(inputs) for matrices and 0.6 for embeddings and
    the given vector. Narrow networks learn much later with 0.02.
    """
    length, modalities = model.vocab.length, len(model.vocab.modalities)
    xt, free = jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool)
    t = jnp.ones((1, modalities), jnp.int32)
    params = jax.jit(model.init)(key, xt, t, free)["params"]
    return layers.fan_in(params) if fan_in else params


def count_parameters(params) -> int:
    """The number of scalars in a tree of arrays."""
    return int(sum(np.prod(p.shape) for p in jax.tree.leaves(params)))
