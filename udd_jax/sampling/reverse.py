"""The reverse process: one loop, several orders of reveal.

    x ~ p(x_T) on the free positions, given tokens elsewhere
    repeat:  log p = denoise_fn(x, t, free)
             guidance, then temperature and truncation, each renormalised
             a rule of samplers.py makes the earlier x; given tokens are set back

`free: bool[B, L]` says which positions are generated, `absent: bool[B, M]` which modalities are
not there at all: they hold a draw from the prior, at time T. Both are arrays, so that all tasks
are one compiled function and may be mixed in a batch. What is drawn for a sample depends on its
own key and inputs only, not on the batch or the mesh around it.

The published samplers differ: they apply a one-step posterior across a stride, and nest their
truncation from call to call.
"""

import dataclasses
import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from udd_jax.diffusion import chunks, random_words, schedules, tasks, transition
from udd_jax.diffusion.denoiser import DenoiseFn
from udd_jax.diffusion.transition import Kernel
from udd_jax.sampling import guidance, samplers, truncation

BY_TIME = ("ancestral", "remdm_cap", "remdm_rescale", "remdm_confidence")
BY_COUNT = ("maskgit", "halton", "fixed", "purity")
BY_ORDER = (*BY_COUNT, "best_first", "threshold", "entropy_bounded", "first_hitting")
SAMPLERS = (*BY_TIME, *BY_ORDER)
CONFIDENCES = ("probability", "margin", "entropy")
GUIDANCE = ("constant", "linear", "interval")
# Settings that are numbers. At these values some are off: what they ask for is then not compiled.
OFF = {"steps": 0, "guidance": 1, "temperature": 1, "top_r": 1, "top_k": 0, "correct": 0}
NUMBERS = {*OFF, "noise", "purity", "group", "threshold", "bound", "eta"}


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Settings:
    """How to sample. ValueError, one line, for a value that means nothing.

    `steps` are the network calls of the samplers by time and of maskgit, halton, fixed and purity;
    the others go on until nothing is masked. 1 is no guidance, no temperature, no truncation.

    An argument of a jitted function like an array: settings that differ in numbers alone share a
    compilation, but for the `steps` of the samplers by count, which have a table of that length.
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

    def on(self, name: str) -> bool:
        """Whether a number asks for something; known while a function is traced, too."""
        value = getattr(self, name)
        return not (isinstance(value, int | float) and value == OFF.get(name))

    def tree_flatten(self):
        """Numbers that ask for something are the leaves; all else tells compilations apart."""
        leaves, rest = {}, []
        for field in dataclasses.fields(self):
            name, value = field.name, getattr(self, field.name)
            counted = name == "steps" and self.sampler in BY_COUNT
            if name in NUMBERS and self.on(name) and not counted:
                leaves[name] = value
            else:
                rest.append((name, value))
        return tuple(leaves.values()), (tuple(leaves), tuple(rest))

    @classmethod
    def tree_unflatten(cls, names, leaves):
        settings = object.__new__(cls)  # nothing to demand of numbers that are not known yet
        for name, value in (*zip(names[0], leaves, strict=True), *names[1]):
            object.__setattr__(settings, name, value)
        return settings

    def check(self, kernel: Kernel, guidable: bool = True) -> None:
        """ValueError, one line, where these settings do not fit the run.

        `guidable`: the network was trained with conditions absent, so that it can be guided. How
        large a number is can only be asked outside of a jitted function.
        """
        known = isinstance(self.steps, int)
        if self.sampler in BY_TIME and known and self.steps > kernel.steps:
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
        if self.on("correct") and (self.sampler != "ancestral" or any(kernel.masks_only)):
            raise ValueError(
                f"sample.correct = {self.correct} draws replaced tokens again, expected 0 but for "
                "sampler 'ancestral' and a schedule that replaces tokens"
            )
        if self.on("guidance") and not guidable:
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
    """Draws from the reverse process. To be jitted by the caller.

    key: one key (sample b uses fold_in(key, b)) or one a sample, [B]. x: int32[B, L], tokens at
    the given positions, anything elsewhere; they are in the result bit for bit. free: bool[B, L].
    absent: bool[B, M]; the tokens of an absent modality mean nothing. negative: int32[B, L], what
    guidance leads away from in place of an absent condition, the mask id all over a modality that
    has none. A position that is not free and holds a mask stays masked (as those beyond a known
    length). ValueError if the settings do not fit the kernel.
    """
    settings.check(kernel)
    vocab, steps = kernel.vocab, settings.steps if settings.on("steps") else kernel.steps
    by_time = settings.sampler in BY_TIME
    if key.ndim == 0:
        key = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(x.shape[0]))
    absent_at = absent[:, vocab.modality_of]
    free = free & ~absent_at
    prior = transition.prior_sample(kernel, _fold(key, 0), x.shape[0])
    start = prior if by_time else jnp.where(absent_at, prior, vocab.mask_id)
    start = jnp.where(free | absent_at, start, x)
    predict = guidance.predictor(
        kernel, denoise_fn, settings, tasks.Masks(free, absent), start, prior, negative
    )
    total = free.sum(-1)

    def masked(state):
        return free & (state.x == vocab.mask_id)

    def going(state):  # which samples are not finished, bool[B]
        return total > 0 if by_time else masked(state).any(-1)

    def body(state):
        words = random_words.words(_fold(key, 1 + state.step), (vocab.length, 4 if by_time else 2))
        if by_time:
            t, s = (schedules.chain_time(kernel.steps, steps, state.step + k) for k in (0, 1))
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
            if settings.on("correct"):
                log_p, *fresh = _doubtful(kernel, m, log_p, xt, t, free_m, settings.correct)
            rule = functools.partial(_ancestral, kernel, settings, m, s, t)
            xs = chunks.in_pieces(rule, word, log_p, xt, *fresh)
        else:
            rule = settings.sampler.removeprefix("remdm_")
            look = _look(settings, word[..., 1], log_p)
            xs, psi_m = samplers.remdm(
                kernel, m, word[..., 0], look, xt, s, t, free_m, psi_m, rule, settings.eta
            )
        new.append(vocab.globalise(m, xs))
        psi.append(psi_m)
    return state._replace(x=jnp.concatenate(new, axis=1), psi=jnp.concatenate(psi, axis=1))


def _ancestral(kernel, settings, m, s, t, words, log_p, xt, fresh=None):
    return samplers.ancestral(kernel, m, words, truncation.adjust(log_p, settings), xt, s, t, fresh)


def _doubtful(kernel, m, log_p, xt, t, free, count):
    """The `count` least likely visible tokens, bool[B, n], with p but at them p without them."""
    alone = samplers.left_out(kernel, m, log_p, xt, t)
    shown = free & (xt < log_p.shape[-1])
    own = jnp.minimum(xt, log_p.shape[-1] - 1)[..., None]
    doubt = -jnp.take_along_axis(alone, own, axis=-1)[..., 0]
    fresh = shown & (samplers.rank(doubt, shown) < count)
    return jnp.where(fresh[..., None], alone, log_p), fresh


def _look(settings, words, log_p):
    return chunks.in_pieces(
        lambda w, p: samplers.look(w, truncation.adjust(p, settings), p), words, log_p
    )


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
            log_p = truncation.adjust(log_ps[m], settings)
            log_p, purity = samplers.sharpen(log_p, masked[:, where], settings.purity)
            purities.append(purity)
            look = samplers.look(words[:, where, 0], log_p)
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
        shown = masked & (samplers.rank(score, masked) < settings.group)
    elif name == "threshold":
        shown = samplers.above(look.log_best, masked, settings.threshold)
    elif name == "entropy_bounded":
        shown = samplers.within(look.entropy, masked, settings.bound)
    else:
        shown, clock = samplers.first_hitting(kernel, words[..., 1], clock, masked, settings.group)
    return state._replace(x=jnp.where(shown, look.token, state.x), clock=clock)


def _score(kernel, settings, words, look, purities, step, steps):
    """What `by_count` ranks by, float[B, L]."""
    vocab, shape = kernel.vocab, look.token.shape
    if settings.sampler == "halton":
        places = [samplers.halton(m.length, m.grid) for m in vocab.modalities]
        return jnp.broadcast_to(-np.concatenate(places).astype(np.float32)[None], shape)
    chance = random_words.gumbel(words)
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
        counts = samplers.cosine_counts if cosine else samplers.linear_counts
        stay = jnp.asarray(counts(steps, modality.length))[step, unknown]
        if cosine:
            stay = jnp.maximum(1, jnp.minimum(hidden - 1, stay))
            stay = jnp.where(step + 1 < steps, stay, 0)
        shown.append(samplers.by_count(score[:, where], masked[:, where], stay))
    return jnp.concatenate(shown, axis=1)
