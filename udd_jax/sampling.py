"""The reverse process: one loop, several orders of reveal, guidance (METHOD 7 and 8).

    x ~ p(x_T) on the free positions, given tokens elsewhere
    repeat:  log p = denoise_fn(x, t, free)
             guidance, temperature, truncation, each renormalised
             a rule of reveal.py makes the earlier x; given tokens are set back

`free: bool[B, L]` says which positions are generated, `absent: bool[B, M]` which modalities are
not there at all: they hold a draw from the prior, at time T. Both are arrays, so that all tasks
are one compiled function and may be mixed in a batch. What is drawn for a sample depends on its
own key and inputs only, not on the batch or the mesh around it.

The published samplers differ: they apply a one-step posterior across a stride, and nest their
truncation from call to call.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax import diffusion, draws, reveal, tasks
from udd_jax.diffusion import DenoiseFn, Kernel

BY_TIME = ("ancestral", "remdm_cap", "remdm_rescale", "remdm_confidence")
BY_COUNT = ("maskgit", "halton", "fixed", "purity")
BY_ORDER = (*BY_COUNT, "best_first", "threshold", "entropy_bounded", "first_hitting")
SAMPLERS = (*BY_TIME, *BY_ORDER)
CONFIDENCES = ("probability", "margin", "entropy")
GUIDANCE = ("constant", "linear", "interval")
FLOOR = -1e4  # log-probabilities below it count as it where guidance subtracts them
PIECES = 4  # parts of the positions in which tokens are drawn, to save memory


@dataclass(frozen=True)
class Settings:
    """How to sample. ValueError, one line, for a value that means nothing.

    `steps` are the network calls of the samplers by time and of maskgit, halton, fixed and purity;
    the others go on until nothing is masked. 1 is no guidance, no temperature, no truncation.
    """

    sampler: str = "ancestral"
    steps: int = 0  # 0 is T
    guidance: float = 1.0  # s = 1 + w
    guidance_schedule: str = "constant"  # "linear": w (1 - t/T); "interval": w inside, 0 outside
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # of t/T
    temperature: float = 1.0
    top_r: float = 1.0  # keep the smallest prefix of classes whose mass reaches it
    top_k: int = 0  # keep so many classes; 0 is all
    confidence: str = "probability"  # maskgit and best_first; or "margin", "entropy"
    noise: float = 2.0  # maskgit: the Gumbel temperature tau of its first step
    purity: float = 1.0  # purity: r in softmax((1 + r purity) log p)
    group: int = 1  # best_first and first_hitting: positions a call
    threshold: float = 0.9  # threshold: reveal where max p is above it
    bound: float = 0.1  # entropy_bounded: nats
    eta: float = 0.1  # remdm_cap and remdm_rescale
    correct: int = 0  # ancestral: tokens a step and modality that are drawn again

    def __post_init__(self):
        def demand(holds, field, expected):
            if not holds:
                raise ValueError(f"sample.{field} = {getattr(self, field)!r}, expected {expected}")

        demand(self.sampler in SAMPLERS, "sampler", f"one of {', '.join(SAMPLERS)}")
        demand(self.confidence in CONFIDENCES, "confidence", f"one of {', '.join(CONFIDENCES)}")
        demand(
            self.guidance_schedule in GUIDANCE, "guidance_schedule", f"one of {', '.join(GUIDANCE)}"
        )
        demand(self.steps >= 0, "steps", "a number of network calls, or 0 for all of T")
        demand(self.guidance >= 0, "guidance", "at least 0; 1 is off")
        low, high = self.guidance_interval
        demand(0 <= low <= high <= 1, "guidance_interval", "0 <= low <= high <= 1, shares of T")
        demand(self.temperature > 0, "temperature", "above 0; for the likeliest set top_k = 1")
        demand(0 < self.top_r <= 1, "top_r", "a mass in (0, 1]; 1 is off")
        demand(self.top_k >= 0, "top_k", "a number of classes, or 0 for all")
        demand(self.noise >= 0, "noise", "at least 0")
        demand(self.purity >= 0, "purity", "at least 0")
        demand(self.group >= 1, "group", "at least 1 position a call")
        demand(0 < self.threshold <= 1, "threshold", "a probability in (0, 1]")
        demand(self.bound >= 0, "bound", "at least 0 nats")
        demand(0 <= self.eta <= 1, "eta", "a probability in [0, 1]")
        demand(self.correct >= 0, "correct", "a number of tokens, or 0 for none")

    def check(self, kernel: Kernel, guidable: bool = True) -> None:
        """ValueError, one line, where these settings do not fit the run.

        `guidable`: the network was trained with conditions absent, so that it can be guided.
        """
        if self.sampler in BY_TIME and self.steps > kernel.steps:
            raise ValueError(
                f"sample.steps = {self.steps} is more than the T = {kernel.steps} of the run, "
                "expected at most T"
            )
        if self.sampler in BY_ORDER and not kernel.masks:
            raise ValueError(
                f"sample.sampler = {self.sampler!r} fills masks, but this schedule hardly masks: "
                "expected 'ancestral'"
            )
        if self.sampler.startswith("remdm") and kernel.replaces:
            raise ValueError(
                f"sample.sampler = {self.sampler!r} masks tokens again, but this schedule replaces "
                "them too: expected 'ancestral', with correct > 0 for corrections"
            )
        if self.correct and (self.sampler != "ancestral" or any(kernel.masks_only)):
            raise ValueError(
                f"sample.correct = {self.correct} draws replaced tokens again, expected 0 but for "
                "sampler 'ancestral' and a schedule that replaces tokens"
            )
        if self.guidance != 1 and not guidable:
            raise ValueError(
                f"sample.guidance = {self.guidance}, but this run was trained without absent "
                "conditions: expected 1 (off)"
            )


class Sample(NamedTuple):
    """What `run` returns."""

    tokens: jax.Array  # int32[B, L]
    calls: jax.Array  # int32[B], steps of the loop until the sample was finished
    states: jax.Array  # int32[trace, B, L], the sequence after 1/trace, 2/trace, ... of the way


def sample(
    kernel: Kernel,
    denoise_fn: DenoiseFn,
    key: jax.Array,
    x: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    settings: Settings,
    negative: jax.Array | None = None,
) -> jax.Array:
    """Generates the free positions of x; see `run`. Returns int32[B, L]."""
    return run(kernel, denoise_fn, key, x, free, absent, settings, negative).tokens


def run(
    kernel: Kernel,
    denoise_fn: DenoiseFn,
    key: jax.Array,
    x: jax.Array,
    free: jax.Array,
    absent: jax.Array,
    settings: Settings,
    negative: jax.Array | None = None,
    trace: int = 0,
) -> Sample:
    """Draws from the reverse process. To be jitted by the caller (`settings` are static).

    key: one key (sample b uses fold_in(key, b)) or one a sample, [B]. x: int32[B, L], tokens at
    the given positions, anything elsewhere; they are in the result bit for bit. free: bool[B, L].
    absent: bool[B, M]; the tokens of an absent modality mean nothing. negative: int32[B, L], what
    guidance leads away from in place of an absent condition, the mask id all over a modality that
    has none. A position that is not free and holds a mask stays masked (as those beyond a known
    length). ValueError if the settings do not fit the kernel.
    """
    settings.check(kernel)
    vocab, steps = kernel.vocab, settings.steps or kernel.steps
    by_time = settings.sampler in BY_TIME
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    absent_at = absent[:, vocab.modality_of]
    free = free & ~absent_at
    prior = diffusion.prior_sample(kernel, _fold(key, 0), x.shape[0])
    start = prior if by_time else jnp.where(absent_at, prior, vocab.mask_id)
    start = jnp.where(free | absent_at, start, x)
    predict = predictor(kernel, denoise_fn, settings, tasks.Masks(free, absent), prior, negative)
    times = jnp.asarray(diffusion.chain_times(kernel.steps, steps))
    total = free.sum(-1)

    def masked(state):
        return free & (state.x == vocab.mask_id)

    def going(state):  # which samples are not finished, bool[B]
        return total > 0 if by_time else masked(state).any(-1)

    def body(state):
        words = draws.words(_fold(key, 1 + state.step), (vocab.length, 4 if by_time else 2))
        if by_time:
            s, t = times[state.step + 1], times[state.step]
            new = _by_time(kernel, settings, predict, words, state, free, s, t)
            done = jnp.full(total.shape, (state.step + 1) / steps)
        else:
            new = _by_order(kernel, settings, predict, words, state, free, steps)
            done = 1 - masked(new).sum(-1) / jnp.maximum(total, 1)
        new = new._replace(
            x=jnp.where(free, new.x, start),
            step=state.step + 1,
            calls=state.calls + going(state),
        )
        if trace:
            late = jnp.arange(1, trace + 1)[:, None] >= done[None] * trace - 1e-4
            new = new._replace(states=jnp.where(late[..., None], new.x[None], state.states))
        return new

    def more(state):
        return (state.step < steps) & going(state).any() if by_time else going(state).any()

    first = _State(
        x=start,
        step=jnp.int32(0),
        calls=jnp.zeros_like(total),
        psi=jnp.zeros(x.shape),
        clock=jnp.full(total.shape, kernel.steps, jnp.float32),
        states=jnp.broadcast_to(start, (trace, *start.shape)),
    )
    last = lax.while_loop(more, body, first)
    return Sample(last.x, last.calls, last.states)


class _State(NamedTuple):
    """What the loop carries."""

    x: jax.Array  # int32[B, L]
    step: jax.Array  # int32, network calls so far
    calls: jax.Array  # int32[B]
    psi: jax.Array  # float[B, L], remdm_confidence: the probability of a token when drawn
    clock: jax.Array  # float[B], first_hitting
    states: jax.Array  # int32[trace, B, L]


def _fold(key, data):
    """`fold_in` for the keys of all samples."""
    return jax.vmap(jax.random.fold_in, (0, None))(key, data)


# ---- The network, guided ------------------------------------------------------------------------


def guidance_weight(settings: Settings, t: jax.Array, steps: int) -> jax.Array:
    """s(t) = 1 + w(t) for t, int32[...]: constant, w (1 - t/T), or w inside an interval of t/T."""
    w, part = settings.guidance - 1, t / steps
    if settings.guidance_schedule == "linear":
        return 1 + w * (1 - part)
    if settings.guidance_schedule == "interval":
        low, high = settings.guidance_interval
        return 1 + w * ((part >= low) & (part <= high))
    return jnp.full(t.shape, 1 + w)


def predictor(kernel, denoise_fn, settings, masks, prior, negative=None):
    """(x, t int32[B]) -> log p(x_0 | x_t) guided, normalised, one float[B, n, K] a modality.

    masks: free and absent; prior: int32[B, L], what absent modalities hold; negative as in `run`.
    """
    vocab = kernel.vocab
    free, absent = masks

    def plain(x, t):
        logits = denoise_fn(x, tasks.times(vocab, masks, t, kernel.steps), free)
        return tuple(jax.nn.log_softmax(_wide(y), axis=-1) for y in logits)

    if settings.guidance == 1:
        return plain

    # log p = s log p(. | all) + (1 - s) log p(. | the other modalities absent, or negative): a sum
    # of one branch that sees all and one a modality, of which those that nobody needs are skipped.
    modalities, at = np.arange(len(vocab.modalities)), vocab.modality_of
    given, instead = jnp.zeros_like(absent), prior
    if negative is not None:
        given = jnp.stack([(negative[:, w] != vocab.mask_id).any(-1) for w in vocab.slices], 1)
        instead = jnp.where(given[:, at], negative, prior)
    has_free = jnp.stack([free[:, w].any(-1) for w in vocab.slices], axis=1)
    others = [((~absent | given) & (modalities != m)[None]).any(-1) for m in modalities]
    guided = has_free & jnp.stack(others, axis=1)  # [B, M]

    def guide(x, t):
        s = jnp.where(guided, guidance_weight(settings, t, kernel.steps)[:, None], 1)  # [B, M]
        now = tasks.times(vocab, masks, t, kernel.steps)
        branches = [(x, now, free, s)]
        for m in modalities:
            here = (modalities == m)[None]
            branches.append(
                (
                    jnp.where((at == m)[None], x, instead),
                    jnp.where(here, now, jnp.where(given, 0, kernel.steps)),
                    free & (at == m)[None],
                    jnp.where(here, 1 - s, 0),
                )
            )

        def add(total, branch):
            x, t, free, weight = branch

            def term(total):
                logs = [jax.nn.log_softmax(_wide(y), -1) for y in denoise_fn(x, t, free)]
                return tuple(
                    sums + weight[:, m, None, None] * jnp.maximum(log_p, FLOOR)
                    for m, (sums, log_p) in enumerate(zip(total, logs, strict=True))
                )

            return lax.cond((weight != 0).any(), term, lambda total: total, total), None

        shapes = [(x.shape[0], m.length, m.classes) for m in vocab.modalities]
        zeros = tuple(jnp.zeros(shape, kernel.alpha_bar.dtype) for shape in shapes)
        stacked = jax.tree.map(lambda *b: jnp.stack(b), *branches)
        total, _ = lax.scan(add, zeros, stacked)
        return tuple(jax.nn.log_softmax(y, axis=-1) for y in total)

    return guide


def _wide(y: jax.Array) -> jax.Array:
    return y.astype(jnp.promote_types(jnp.float32, y.dtype))


# ---- Temperature and truncation -----------------------------------------------------------------


def adjust(log_p: jax.Array, settings: Settings) -> jax.Array:
    """Temperature, then truncation, each renormalised. float[..., K] -> float[..., K]."""
    if settings.temperature != 1:
        log_p = jax.nn.log_softmax(log_p / settings.temperature, axis=-1)
    if settings.top_k:
        log_p = truncate(log_p, jnp.zeros_like(log_p), min(settings.top_k, log_p.shape[-1]))
    if settings.top_r < 1:
        log_p = truncate(log_p, log_p, settings.top_r)
    return log_p


def truncate(log_p: jax.Array, log_weight: jax.Array, target: float) -> jax.Array:
    """Keeps the smallest prefix of classes by p whose weight reaches `target`, renormalised.

    The class that crosses it is included; of equal classes the first come first. The weight is p
    itself for top-r, 1 for top-k. float[..., K] each. No sort: the last class that is kept is found
    by bisection, first its log p (31 rounds over the ordered bits of a float32), then its index,
    where several are equal.
    """
    bits = lax.bitcast_convert_type(0 - jnp.minimum(log_p, 0).astype(jnp.float32), jnp.int32)
    weight = jnp.exp(log_weight)
    index = lax.broadcasted_iota(jnp.int32, log_p.shape, log_p.ndim - 1)

    def reached(kept):
        return jnp.where(kept, weight, 0).sum(-1) >= target

    shape = log_p.shape[:-1]
    infinity = jnp.full(shape, 0x7F800000, jnp.int32)
    level = draws.bisect(lambda v: reached(bits <= v[..., None]), infinity, 31)[..., None]
    tie = bits == level
    end = jnp.full(shape, log_p.shape[-1] - 1, jnp.int32)

    def among_equals():
        def so_far(i):
            return reached((bits < level) | (tie & (index <= i[..., None])))

        return draws.bisect(so_far, end, log_p.shape[-1].bit_length())

    last = lax.cond((tie.sum(-1) > 1).any(), among_equals, lambda: end)[..., None]
    kept = (bits < level) | (tie & (index <= last))
    return jax.nn.log_softmax(jnp.where(kept, log_p, -jnp.inf), axis=-1)


def in_pieces(function, *arrays):
    """`function` of arrays [B, n, ...] in PIECES parts of the n positions, one after the other.

    What it makes of [B, n, K] on the way is held for one part only. It must take every position on
    its own; its results, [B, n, ...] each, are those of one call.
    """
    n = arrays[0].shape[1]
    if n < 8 * PIECES:
        return function(*arrays)
    size = -(-n // PIECES)
    starts = jnp.minimum(jnp.arange(PIECES) * size, n - size)  # the last part may overlap

    def part(i):
        return function(*(lax.dynamic_slice_in_dim(a, starts[i], size, axis=1) for a in arrays))

    def put(i, whole):
        return jax.tree.map(
            lambda w, p: lax.dynamic_update_slice_in_dim(w, p, starts[i], axis=1), whole, part(i)
        )

    shapes = jax.eval_shape(part, 0)
    empty = jax.tree.map(lambda y: jnp.zeros((y.shape[0], n, *y.shape[2:]), y.dtype), shapes)
    return lax.fori_loop(0, PIECES, put, empty)


# ---- One step -----------------------------------------------------------------------------------


def _by_time(kernel, settings, predict, words, state, free, s, t):
    """x_t -> x_s, every position on its own. words: uint32[B, L, 4]."""
    vocab = kernel.vocab
    log_ps = predict(state.x, jnp.full(state.calls.shape, t))
    new, psi = [], []
    for m, where in enumerate(vocab.slices):
        xt, word, free_m = vocab.local(m, state.x[:, where]), words[:, where], free[:, where]
        log_p, psi_m, fresh = log_ps[m], state.psi[:, where], ()
        if settings.sampler == "ancestral":
            if settings.correct:
                log_p, *fresh = _doubtful(kernel, m, log_p, xt, t, free_m, settings.correct)
            rule = functools.partial(_ancestral, kernel, settings, m, s, t)
            xs = in_pieces(rule, word, log_p, xt, *fresh)
        else:
            rule = settings.sampler.removeprefix("remdm_")
            look = _look(settings, word[..., 1], log_p)
            xs, psi_m = reveal.remdm(
                kernel, m, word[..., 0], look, xt, s, t, free_m, psi_m, rule, settings.eta
            )
        new.append(vocab.globalise(m, xs))
        psi.append(psi_m)
    return state._replace(x=jnp.concatenate(new, axis=1), psi=jnp.concatenate(psi, axis=1))


def _ancestral(kernel, settings, m, s, t, words, log_p, xt, fresh=None):
    return reveal.ancestral(kernel, m, words, adjust(log_p, settings), xt, s, t, fresh)


def _doubtful(kernel, m, log_p, xt, t, free, count):
    """The `count` least likely visible tokens, bool[B, n], with p but at them p without them."""
    alone = reveal.left_out(kernel, m, log_p, xt, t)
    shown = free & (xt < log_p.shape[-1])
    own = jnp.minimum(xt, log_p.shape[-1] - 1)[..., None]
    doubt = -jnp.take_along_axis(alone, own, axis=-1)[..., 0]
    fresh = shown & (reveal.rank(doubt, shown) < count)
    return jnp.where(fresh[..., None], alone, log_p), fresh


def _look(settings, words, log_p):
    return in_pieces(lambda w, p: reveal.look(w, adjust(p, settings)), words, log_p)


def _masked_time(kernel, free, masked):
    """The first t >= 1 by which as many free positions are masked on average; int32[B]."""
    expected = sum(
        free[:, where].sum(-1)[:, None] * gamma[None]
        for gamma, where in zip(kernel.gamma_bar, kernel.vocab.slices, strict=True)
    )
    before = (expected < masked.sum(-1)[:, None] - 1e-3).sum(-1)
    return jnp.clip(before, 1, kernel.steps)


def _by_order(kernel, settings, predict, words, state, free, steps):
    """Fills some of the masked positions with tokens drawn from p. words: uint32[B, L, 2]."""
    vocab, name = kernel.vocab, settings.sampler
    masked = free & (state.x == vocab.mask_id)
    log_ps = predict(state.x, _masked_time(kernel, free, masked))
    looks, purities = [], []
    for m, where in enumerate(vocab.slices):
        if name == "purity":
            log_p = adjust(log_ps[m], settings)
            log_p, purity = reveal.sharpen(log_p, masked[:, where], settings.purity)
            purities.append(purity)
            look = reveal.look(words[:, where, 0], log_p)
        else:
            look = _look(settings, words[:, where, 0], log_ps[m])
        tokens = look.best if name == "best_first" else look.token
        looks.append(look._replace(token=vocab.globalise(m, tokens)))
    look = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *looks)

    clock = state.clock
    if name in BY_COUNT:
        score = _score(kernel, settings, words[..., 1], look, purities, state.step, steps)
        shown = _by_count(kernel, settings, score, masked, free, state.step, steps)
    elif name == "best_first":
        score = {
            "probability": look.log_best,
            "margin": look.margin,
            "entropy": -look.entropy,
        }[settings.confidence]
        shown = masked & (reveal.rank(score, masked) < settings.group)
    elif name == "threshold":
        shown = reveal.above(look.log_best, masked, settings.threshold)
    elif name == "entropy_bounded":
        shown = reveal.within(look.entropy, masked, settings.bound)
    else:
        shown, clock = reveal.first_hitting(kernel, words[..., 1], clock, masked, settings.group)
    return state._replace(x=jnp.where(shown, look.token, state.x), clock=clock)


def _score(kernel, settings, words, look, purities, step, steps):
    """What `by_count` ranks by, float[B, L]."""
    vocab, shape = kernel.vocab, look.token.shape
    if settings.sampler == "halton":
        places = [reveal.halton(m.length, m.grid) for m in vocab.modalities]
        return jnp.broadcast_to(-np.concatenate(places).astype(np.float32)[None], shape)
    chance = draws.gumbel(words)
    if settings.sampler == "fixed":
        return chance
    if settings.sampler == "purity":
        return jnp.concatenate(purities, axis=1) + chance
    confidence = {
        "probability": look.log_prob,
        "margin": look.margin,
        "entropy": -look.entropy,
    }[settings.confidence]
    return confidence + settings.noise * (1 - (step + 1) / steps) * chance


def _by_count(kernel, settings, score, masked, free, step, steps):
    """Reveals in each modality all but the number that its table leaves masked."""
    cosine = settings.sampler in ("maskgit", "halton")
    shown = []
    for modality, where in zip(kernel.vocab.modalities, kernel.vocab.slices, strict=True):
        hidden, unknown = masked[:, where].sum(-1), free[:, where].sum(-1)
        counts = reveal.cosine_counts if cosine else reveal.linear_counts
        stay = jnp.asarray(counts(steps, modality.length))[step, unknown]
        if cosine:
            stay = jnp.maximum(1, jnp.minimum(hidden - 1, stay))
            stay = jnp.where(step + 1 < steps, stay, 0)
        shown.append(reveal.by_count(score[:, where], masked[:, where], stay))
    return jnp.concatenate(shown, axis=1)
