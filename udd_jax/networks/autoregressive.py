"""The autoregressive baseline: the network of `transformer` under prefix attention.

    log p(x_free | x_given) = sum over free positions i of log p(x_i | x_given, free x_j before i)

A given position sees what is given. A free one also sees the free ones up to itself, in the order
text, image (that of DALL-E, and of the two directions of ERNIE-ViLG, arXiv 2112.15283). Nothing
sees an absent modality. A free position is fed the token of the free one before it, or the mask if
it is the first, so its logits are for its own token. A task is a mask here, too: both directions,
pairs and infilling are one function.

Layers, parameters and their names are those of `transformer.Transformer`. There is no time; the
times that the network gets tell free, given and absent modalities apart.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion.vocab import Vocab
from udd_jax.errors import UserError
from udd_jax.networks import layers, transformer
from udd_jax.runtime import sharding


def order(vocab: Vocab) -> np.ndarray:
    """All positions in the order of generation, int[L]: lines of tokens first, then grids."""
    late = np.array([m.grid is not None for m in vocab.modalities])[vocab.modality_of]
    return np.argsort(late, kind="stable")


def rank(vocab: Vocab) -> np.ndarray:
    """The place of each position in `order`, int[L]."""
    return np.argsort(order(vocab))


def sources(vocab: Vocab, parts=None) -> dict[str, np.ndarray]:
    """{attention: where its keys are among the positions of the modalities `parts`, or of all},
    int[n] each, in the order of the positions."""
    every = range(len(vocab.modalities))
    own = vocab.modality_of
    own = own if parts is None else own[np.isin(own, parts)]
    found = {"self": np.arange(len(own))}
    return found | {transformer.mutual_name(vocab, m): np.flatnonzero(own != m) for m in every}


def columns(keys: np.ndarray, length: int, at, wrote) -> jax.Array:
    """Where the position `at` is among `keys`, int32[B, 1]; beyond them if it is not `wrote`."""
    found = np.full(length, len(keys))
    found[keys] = np.arange(len(keys))
    return jnp.where(wrote, jnp.asarray(found)[at], len(keys))


class Block(nn.Module):
    """One block of `transformer`, with the same parameters, on all positions or on some.

    h: [B, n, D]. time: as in `transformer.Block`, or for some positions the time of each, with one
    column. bias: float[B, 1, n, L], `layers.HIDDEN` for keys that a query does not see. at:
    int32[B, 1], the position of h in each row, or None if h has all L. cached: the keys and values
    of all positions, {attention: KeysValues}; those of h replace theirs. wrote: bool[B, 1] or None,
    the rows whose keys and values do so. Instead of these, cached may be {modality: {}} of
    modalities that are left out; then h and bias have the positions of the others. Returns h, and
    with `keep` the keys and values of h.
    """

    settings: layers.BlockSettings
    keep: str | None = None

    @nn.compact
    def __call__(self, h, time, bias, place, cached):
        c, (at, wrote) = self.settings, place or (None, None)
        vocab, width, new = c.vocab, h.shape[-1], {}
        parts, slices = transformer.computed(vocab, cached if at is None else {}, None)
        keys = sources(vocab, parts)

        def seen(name, projected):
            """The keys and values of an attention, after those of h are written."""
            new[name] = projected
            if at is None:
                return projected
            rows = jnp.arange(len(h))[:, None]
            column = columns(keys[name], vocab.length, at, wrote)
            return jax.tree.map(
                lambda old, one: old.at[rows, column].set(one, mode="drop"), cached[name], projected
            )

        angles = None
        if c.rotary:
            angles = layers.rotary_angles(vocab, width // c.heads // 2)
            at_h = np.isin(vocab.modality_of, parts)
            angles = angles[at_h] if at is None else jnp.asarray(angles)[at]
        x = c.ada(time, "self_norm", h, parts)
        attend = c.attend(width, "self_attention")
        context = seen("self", attend.project(x, angles))
        h = h + attend(x, context, bias, angles)

        if c.attention == "mutual":
            results = []
            for m in parts:
                name, here = transformer.mutual_name(vocab, m), slices[m]
                if not len(keys[name]):  # it is alone
                    results.append(jnp.zeros_like(h))
                    continue
                attend = c.attend(width, name)
                context = seen(name, attend.project(h if at is not None else h[:, keys[name]]))
                y = h if at is not None else h[:, here]
                hidden = (bias if at is not None else bias[:, :, here])[..., keys[name]]
                y = attend(c.ada(time, f"{name}_norm", y, [m]), context, hidden)
                y = layers.layer_norm(False, c.dtype, f"{name}_result", c.mutual_gain)(y)
                blind = (hidden[:, 0] < layers.HIDDEN / 2).all(axis=-1)  # [B, n]: sees no key
                results.append(jnp.where(blind[..., None], 0, y))
            if at is None:  # positions of all modalities, one modality after the other
                h = h + jnp.concatenate(results, axis=1)
            else:
                mine = jnp.asarray(vocab.modality_of)[at][..., None]
                h = h + sum(jnp.where(mine == m, y, 0) for m, y in enumerate(results))

        x = layers.layer_norm(True, c.dtype, "mlp_norm")(h)
        h = h + layers.MLP(c.mlp_ratio, c.activation, c.dtype, name="mlp")(x)
        return sharding.constrain(h, "data", None, None), new if self.keep else None


class Cache(NamedTuple):
    """What stays of a chain between its tokens, for a batch of B rows."""

    keys_values: Any  # {attention: KeysValues}, with a leading axis of layers
    t: jax.Array  # int32[B, M], see `Autoregressive`
    free: jax.Array  # bool[B, L]
    before: jax.Array  # int32[B, L], the free position before each one, -1 for none


class Autoregressive(transformer.Transformer):
    """(x, t, free) -> logits over each free token given what comes before it, a tuple of float32.

    x: int32[B, L], clean tokens, global ids; those of absent modalities are not read. t: int32
    [B, M], `steps` for an absent modality, any other value elsewhere. free: bool[B, L]. Returns
    float32[B, length_m, K_m] a modality; where a position is not free, the logits mean nothing.

    `start` computes a cache from what is given, `next` the logits of one position. `without` is as
    in `Transformer`: nothing sees an absent modality here, so it may always be left out.

    Raises:
        ValueError: as of `Transformer`, or with block attention or a conditional network.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.block_attention or self.concentrated or self.network != "joint":
            raise UserError(
                f"model.kind = 'autoregressive' with model.block_attention = "
                f"{self.block_attention}, model.concentrated = {self.concentrated} and "
                f"model.network = {self.network!r}, expected False, False and 'joint'"
            )

    def start(self, x, t, free) -> Cache:
        """The cache of a chain with these given tokens; its free positions are not filled yet."""
        t, before = self._states(t, free), previous(self.vocab, free)
        return Cache(self._run(x, t, free, keep="all"), t, free, before)

    def next(self, cache: Cache, x, at):
        """The logits at the position `at`, int32[B], of a chain whose tokens before it are in x.

        Returns ([B, 1, K_m] a modality, of which one is that of the position; the new cache). A
        row whose position is not free changes nothing in the cache.
        """
        at = at[:, None]
        wrote = jnp.take_along_axis(cache.free, at, axis=1)
        logits, new = self._run(x, cache.t, cache.free, cached=cache, place=(at, wrote))
        rows, keys, kept = jnp.arange(len(x))[:, None], sources(self.vocab), {}
        for name, values in new.items():
            column = columns(keys[name], self.vocab.length, at, wrote)
            kept[name] = jax.tree.map(
                lambda old, one, c=column: old.at[:, rows, c].set(one, mode="drop"),
                cache.keys_values[name],
                values,
            )
        return logits, cache._replace(keys_values=kept)

    @nn.compact
    def _run(
        self,
        x,
        t,
        free,
        bias=None,
        keep=None,
        cached=None,
        place=None,
        soft=None,
        paint=None,
        without=(),
    ):
        vocab = self.vocab
        t, given = self._states(t, free), self._given(t, free)
        see = visible(vocab, given, free)
        if self.padding is not None:
            see = see & (
                ~self._padded(x, t, free)[:, None] | np.eye(vocab.length, dtype=bool)[None]
            )
        before = previous(vocab, free) if cached is None else cached.before
        fed = jnp.take_along_axis(x, jnp.maximum(before, 0), axis=1)
        fed = jnp.where(free & (before >= 0), fed, jnp.where(given, x, vocab.mask_id))
        time = self._times(t)
        if place is not None:
            at = place[0]
            fed, given = (jnp.take_along_axis(a, at, axis=1) for a in (fed, given))
            see = jnp.take_along_axis(see, at[..., None], axis=1)
            if time.shape[1] > 1:
                own = jnp.asarray(vocab.modality_of)[at]  # [B, 1]
                own = own if time.ndim == 2 else own[..., None]
                time = jnp.take_along_axis(time, own, axis=1)
        hidden = jnp.where(see, 0.0, layers.HIDDEN)[:, None]
        hidden = hidden if bias is None else hidden + bias
        if soft is not None or paint is not None:
            raise UserError("soft tokens and paint are for model.kind = 'diffusion': expected none")
        h = self._embed(fed, given, None if place is None else place[0])
        h = sharding.constrain(h.astype(self.dtype), "data", None, None)
        keep = keep or (None if place is None else "one")
        values = {name: {} for name in without} if cached is None else cached.keys_values
        parts, here = transformer.computed(vocab, values if cached is None else {}, None)
        if without:
            at_h = np.isin(vocab.modality_of, parts)
            h, hidden = h[:, at_h], hidden[:, :, at_h][..., at_h]
        h, new = self._blocks(Block, keep)(h, time, hidden, place, values)
        if keep == "all":
            return new
        here = here if place is None else dict.fromkeys(here, slice(0, 1))
        logits = self._heads(h, here)
        return logits if keep is None else (logits, new)

    def _states(self, t, free):
        """The times that the blocks get: 0 given, 1 free, T absent, int32[B, M]."""
        has_free = self.vocab.any_of(free)
        return jnp.where(has_free, 1, jnp.where(t == self.steps, self.steps, 0))


def of(model: transformer.Transformer) -> Autoregressive:
    """The baseline with the parameters of a network that has learned its loss, too."""
    options = layers.options(model, transformer.Transformer)
    return Autoregressive(**options | {"absent": "noise"})  # nothing sees an absent modality


def visible(vocab: Vocab, given, free) -> jax.Array:
    """Which keys a query sees, bool[B, queries, keys]; given, free: bool[B, L].

    A query sees itself, so that no row of scores is empty.
    """
    place = rank(vocab)
    earlier = (place[None] <= place[:, None])[None]
    own = np.eye(vocab.length, dtype=bool)[None]
    return given[:, None] | (free[:, :, None] & free[:, None] & earlier) | own


def previous(vocab: Vocab, free) -> jax.Array:
    """The free position before each one in `order`, int32[B, L], -1 for none; free: bool[B, L]."""
    sequence = order(vocab)
    seen = jnp.where(free[:, sequence], jnp.arange(vocab.length)[None], -1)
    last = lax.cummax(jnp.pad(seen[:, :-1], ((0, 0), (1, 0)), constant_values=-1), axis=1)
    found = jnp.where(last < 0, -1, jnp.asarray(sequence)[jnp.maximum(last, 0)])
    return found[:, rank(vocab)].astype(jnp.int32)


@dataclass(frozen=True, eq=False)
class Predictor:
    """The network with its parameters, for the loss, the bound and the sampler."""

    model: Autoregressive
    params: Any

    def __call__(self, x, t, free):
        return self.model.apply({"params": self.params}, x, t, free)

    def start(self, x, t, free) -> Cache:
        return self.model.apply({"params": self.params}, x, t, free, method="start")

    def next(self, cache: Cache, x, at):
        return self.model.apply({"params": self.params}, cache, x, at, method="next")
