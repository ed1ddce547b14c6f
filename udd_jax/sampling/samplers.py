"""The samplers: which tokens a reverse step draws, and at which positions. One table has them all.

A sampler gets p = p(x_0 | x_t) after guidance and scorers. There are three kinds:

    "time"     draws each position of x_s independently, given s < t, one modality at a time
    "count"    fills masked positions with tokens drawn from p. Its rule returns a score. The
               positions with the highest scores are revealed; a table says how many
    "order"    fills masked positions, too. Its rule returns the positions to reveal

To add a sampler, add an entry to `SAMPLERS`:

    def leftmost(reveal):                                # one position a call, from the left
        return reveal.reveal_first(-jnp.arange(reveal.masked.shape[1])[None])

    SAMPLERS["leftmost"] = Sampler("order", leftmost)

Arrays of one modality use local ids; the mask is K_m. `words: uint32[B, n, W]` are random words for
each position (`random_words`). A draw first decides between mask and token, then draws the token.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import chunks, random_words
from udd_jax.diffusion.transition import Kernel
from udd_jax.sampling import rules, truncation

# ---- The table ----------------------------------------------------------------------------------


class Move(NamedTuple):
    """The input of a sampler of kind "time": one modality, in a step from t to s."""

    kernel: Kernel
    settings: Any  # a `Settings`
    m: int
    words: jax.Array  # uint32[B, n, 4]
    log_p: jax.Array  # float[B, n, K], before temperature and truncation
    xt: jax.Array  # int32[B, n]
    s: jax.Array  # int32[]
    t: jax.Array  # int32[]
    free: jax.Array  # bool[B, n]
    psi: jax.Array  # float[B, n], the probability of each token when it was drawn


class Reveal(NamedTuple):
    """The input of a sampler of kind "count" or "order": all positions, global ids."""

    kernel: Kernel
    settings: Any
    words: jax.Array  # uint32[B, L]
    look: rules.Look  # the drawn tokens, and how certain p is at each position
    masked: jax.Array  # bool[B, L], free and still masked
    free: jax.Array  # bool[B, L]
    step: jax.Array  # int32[], network calls so far
    steps: int  # the total number of network calls, for kind "count"
    clock: jax.Array  # float[B], a time that the sampler may keep itself; it begins at T

    def reveal_first(self, score: jax.Array, count: int = 1) -> jax.Array:
        """The `count` masked positions of highest score, bool[B, L]; score: float[B or 1, L]."""
        return self.masked & (
            rules.rank(jnp.broadcast_to(score, self.masked.shape), self.masked) < count
        )


def _ancestral(move: Move):
    settings, log_p, fresh = move.settings, move.log_p, ()
    if settings.on("correct"):
        count = settings.correct
        log_p, *fresh = doubtful(move.kernel, move.m, log_p, move.xt, move.t, move.free, count)

    def draw(words, log_p, xt, fresh=None):
        log_p = truncation.adjust(log_p, settings)
        return rules.ancestral(move.kernel, move.m, words, log_p, xt, move.s, move.t, fresh)

    return chunks.in_pieces(draw, move.words, log_p, move.xt, *fresh), move.psi


def _tau_leaping(move: Move):
    def draw(words, log_p, xt):
        log_p = truncation.adjust(log_p, move.settings)
        return rules.tau_leaping(move.kernel, move.m, words, log_p, xt, move.s, move.t)

    return chunks.in_pieces(draw, move.words, move.log_p, move.xt), move.psi


def doubtful(kernel: Kernel, m: int, log_p, xt, t, free, count):
    """Finds the `count` least likely visible tokens; the corrector draws them again.

    A token's likelihood is `left_out`, its probability given the other positions. log_p:
    float[B, n, K]; xt: int32[B, n]; t: int32 scalar; free: bool[B, n]. Returns (log p, with
    `left_out` in its place at these tokens, float[B, n, K]; the tokens, bool[B, n]).
    """
    alone = rules.left_out(kernel, m, log_p, xt, t)
    shown = free & (xt < log_p.shape[-1])
    own = jnp.minimum(xt, log_p.shape[-1] - 1)[..., None]
    doubt = -jnp.take_along_axis(alone, own, axis=-1)[..., 0]
    fresh = shown & (rules.rank(doubt, shown) < count)
    return jnp.where(fresh[..., None], alone, log_p), fresh


def _remdm(rule: str):
    def draw(move: Move):
        found = _truncated_look(move.words[..., 1], move.log_p, None, move.settings)
        words, eta = move.words[..., 0], move.settings.eta
        where = (move.xt, move.s, move.t, move.free, move.psi)
        return rules.remdm(move.kernel, move.m, words, found, *where, rule, eta)

    return draw


def adjusted_look(words, log_p, masked, settings) -> rules.Look:
    """The `look` of most samplers: tokens are drawn after temperature and truncation, but how
    certain the network is comes from before."""
    return chunks.in_pieces(
        lambda w, p: rules.look(w, truncation.adjust(p, settings), p), words, log_p
    )


def _truncated_look(words, log_p, masked, settings) -> rules.Look:
    """As `adjusted_look`, but all except the entropy comes from after truncation: for ReMDM, whose
    psi is the probability with which a token was drawn, and for best-first (RESULTS.md)."""

    def found(words, log_p):
        look = rules.look(words, truncation.adjust(log_p, settings))
        return look._replace(entropy=rules.entropy(log_p))

    return chunks.in_pieces(found, words, log_p)


def _likeliest_look(words, log_p, masked, settings) -> rules.Look:
    found = _truncated_look(words, log_p, masked, settings)
    return found._replace(token=found.best)


def _sharp_look(words, log_p, masked, settings) -> rules.Look:
    log_p, purity = rules.sharpen(truncation.adjust(log_p, settings), masked, settings.purity)
    return rules.look(words, log_p)._replace(purity=purity)


def _confidence(reveal: Reveal, probability: jax.Array) -> jax.Array:
    looks = {"probability": probability, "margin": reveal.look.margin}
    return looks.get(reveal.settings.confidence, -reveal.look.entropy)


def _maskgit(reveal: Reveal):
    heat = reveal.settings.noise * (1 - (reveal.step + 1) / reveal.steps)
    confidence = _confidence(reveal, reveal.look.log_prob)
    return confidence + heat * random_words.gumbel(reveal.words)


def _halton(reveal: Reveal):
    places = [rules.halton(m.length, m.grid) for m in reveal.kernel.vocab.modalities]
    order = -np.concatenate(places).astype(np.float32)
    return jnp.broadcast_to(order[None], reveal.masked.shape)


def _fixed(reveal: Reveal):
    return random_words.gumbel(reveal.words)


def _purity(reveal: Reveal):
    return reveal.look.purity + random_words.gumbel(reveal.words)


def _best_first(reveal: Reveal):
    score = _confidence(reveal, reveal.look.log_best)
    return reveal.reveal_first(score, reveal.settings.group)


def _threshold(reveal: Reveal):
    return rules.above(reveal.look.log_best, reveal.masked, reveal.settings.threshold)


def _entropy_bounded(reveal: Reveal):
    return rules.within(reveal.look.entropy, reveal.masked, reveal.settings.bound)


def _first_hitting(reveal: Reveal):
    group = reveal.settings.group
    return rules.first_hitting(reveal.kernel, reveal.words, reveal.clock, reveal.masked, group)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """An entry of the table.

    kind: "time", "count" or "order". The rule depends on it:

        "time"     Move -> (x_s int32[B, n], psi float[B, n]), one modality
        "count"    Reveal -> score float[B, L]
        "order"    Reveal -> the positions to reveal, bool[B, L], or (these, the new clock float[B])

    look: (words, log_p, masked, settings) -> Look of one modality, local ids. counts: for kind
    "count", how many positions stay masked after each step: `cosine_counts` or `linear_counts`.
    reads: the settings of `settings.OF_SAMPLERS` that the rule or the look reads; the others are
    refused. remasks: it masks tokens again, as no schedule that replaces them can.
    """

    kind: str
    rule: Callable
    look: Callable = adjusted_look
    counts: Callable = rules.linear_counts
    # For kind "count", as in MaskGIT: at least one position a call, and one stays masked until the
    # last. Calls beyond the number of positions change nothing.
    one_a_call: bool = False
    reads: tuple[str, ...] = ()
    remasks: bool = False


SAMPLERS = {
    "ancestral": Sampler("time", _ancestral, reads=("correct",)),
    "tau_leaping": Sampler("time", _tau_leaping),
    "remdm_cap": Sampler("time", _remdm("cap"), reads=("eta",), remasks=True),
    "remdm_rescale": Sampler("time", _remdm("rescale"), reads=("eta",), remasks=True),
    "remdm_confidence": Sampler("time", _remdm("confidence"), remasks=True),
    "maskgit": Sampler(
        *("count", _maskgit),
        counts=rules.cosine_counts,
        one_a_call=True,
        reads=("confidence", "noise"),
    ),
    "halton": Sampler("count", _halton, counts=rules.cosine_counts, one_a_call=True),
    "fixed": Sampler("count", _fixed),
    "purity": Sampler("count", _purity, look=_sharp_look, reads=("purity",)),
    "best_first": Sampler(
        "order", _best_first, look=_likeliest_look, reads=("confidence", "group")
    ),
    "threshold": Sampler("order", _threshold, reads=("threshold",)),
    "entropy_bounded": Sampler("order", _entropy_bounded, reads=("bound",)),
    "first_hitting": Sampler("order", _first_hitting, reads=("group",)),
}
