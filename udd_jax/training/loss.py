"""The loss of a batch: draws tasks, times and noise, then weights the terms of each position.

    loss = sum over free positions of weight (L_t + lambda L_aux + ...) / p(t), divided by B L

`diffusion.objective` computes L_t, `terms` has the terms that are added to it.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from udd_jax.diffusion import objective, tasks, time_sampling, transition
from udd_jax.errors import UserError
from udd_jax.training import terms as loss_terms

OBJECTIVES = ("discrete", "continuous")
SCATTER_KEY, TERM_KEYS = 999, 1000  # `fold_in` numbers: of `scattered`, and of the first term


class Noised(NamedTuple):
    """A noised batch: the input of the network, and the quantities that its loss needs."""

    xt: jax.Array  # int32[B, L]
    t: jax.Array  # int32[B, M], the input of the network
    masks: tasks.Masks
    p: jax.Array  # float32[B, M], the probability of drawing t
    histories: jax.Array  # int32[B], which history of losses a sample updates (`time_sampling`)
    independent: jax.Array  # bool[B], whether each modality has its own time
    rate: jax.Array | None  # float32[B, M], of `transition.instant`, for continuous time only


def complete(vocab, x0):
    """(x0 int32[B, L], present bool[B, M]) of rows that may lack a modality.

    A modality of masks is one that a row lacks. Its tokens become the first class: they are never
    seen, as the modality is absent in every task of the row (`tasks.of_present`).
    """
    lacks = x0 == vocab.mask_id
    first = jnp.asarray(vocab.offsets)[vocab.modality_of][None]
    return jnp.where(lacks, first, x0), ~vocab.any_of(lacks)


def noised_batch(
    kernel, sampler, key, x0, mixture, continuous=False, present=None, boundaries=()
) -> Noised:
    """Draws tasks, times and noise for x0 int32[B, L].

    sampler: a `time_sampling.TimeSampler`; mixture: weights of the tasks; continuous: draw
    low-discrepancy times in (0, T] instead of whole numbers; present: as in `tasks.draw`;
    boundaries: as in `time_sampling.draw`.
    """
    vocab, steps = kernel.vocab, kernel.steps
    batch = x0.shape[0]
    key_task, key_time, key_noise, key_prior = jax.random.split(key, 4)
    drawn = tasks.draw(key_task, vocab, mixture, batch, present)
    free = drawn.masks.free
    has_free = vocab.any_of(free)
    histories = time_sampling.history(has_free)
    if continuous:
        time = steps * time_sampling.spread(key_time, drawn.independent, has_free.shape[1])
        t, gamma, rate = transition.instant(kernel, time)
        p = jnp.full(t.shape, 1 / steps)
        gamma = jnp.where(free, gamma[:, vocab.modality_of], 0)
        xt = transition.mask_sample(kernel, key_noise, x0, gamma)
    else:
        asked = (histories, drawn.independent, has_free.shape[1], boundaries)
        t, p = time_sampling.draw(sampler, key_time, *asked)
        position_t = transition.free_times(vocab, t, free)
        xt, rate = transition.q_sample(kernel, key_noise, x0, position_t), None
    xt = noised_given(kernel, key_noise, xt, drawn.masks)
    absent = drawn.masks.absent[:, vocab.modality_of]
    xt = jnp.where(absent, transition.prior_sample(kernel, key_prior, batch), xt)
    t = tasks.times(vocab, drawn.masks, t, steps)
    return Noised(xt, t, drawn.masks, p, histories, drawn.independent, rate)


def noised_given(kernel, key, xt, masks: tasks.Masks) -> jax.Array:
    """xt int32[B, L] with some given tokens noised anew: `Modality.noise` of the coarse level.

    Where a fine level is generated, this share of the given coarse tokens is replaced by a draw of
    q(x_t | x_0) at a time of its row, uniform in 1..T. The network still gets time 0 for them, so
    it learns not to trust each of them: at sampling they are its own (Frido's noise augmentation,
    arXiv 2208.13753; the discrete form is ours). With a share of 0 nothing is drawn.
    """
    vocab, coarse = kernel.vocab, kernel.vocab.coarse
    if coarse is None or not coarse.noise:
        return xt
    level, fine = (vocab.index(name) for name in (coarse.name, coarse.level_of))
    key_time, key_place, key_noise = jax.random.split(jax.random.fold_in(key, 1), 3)
    wanted = masks.free[:, vocab.slices[fine]].any(axis=1) & ~masks.absent[:, level]
    here = (vocab.modality_of == level)[None] & ~masks.free & wanted[:, None]
    here = here & (jax.random.uniform(key_place, xt.shape) < coarse.noise)
    t = jax.random.randint(key_time, (len(xt), 1), 1, kernel.steps + 1)
    return transition.q_sample(kernel, key_noise, xt, jnp.where(here, t, 0))


def scattered(vocab, key, xt, masks: tasks.Masks, share: float, pad_id: int) -> jax.Array:
    """xt int32[B, L] where this share of the given texts is words at random places among masks.

    The words keep their order, and masks take the place of the padding: of "dog barking" becomes
    "[mask] dog [mask] [mask] barking". So labels, which only say what is there, serve as captions
    with any words between them (mask-based text generation of Diffsound, arXiv 2207.09983). The
    network still gets time 0 for them. With a share of 0 nothing is drawn.
    """
    if not share:
        return xt
    m = vocab.index("text")
    where = vocab.slices[m]
    text, (key_row, key_place) = xt[:, where], jax.random.split(key)
    count = (text != vocab.offsets[m] + pad_id).sum(axis=1, keepdims=True)
    order = jnp.argsort(jax.random.uniform(key_place, text.shape), axis=1)
    taken = jnp.argsort(order, axis=1) < count
    words = jnp.take_along_axis(text, jnp.maximum(jnp.cumsum(taken, axis=1) - 1, 0), axis=1)
    given = ~masks.free[:, where].any(axis=1) & ~masks.absent[:, m]
    chosen = given & (jax.random.uniform(key_row, given.shape) < share)
    moved = jnp.where(taken, words, vocab.mask_id)
    return xt.at[:, where].set(jnp.where(chosen[:, None], moved, text))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a loss draws tasks and times, and weighs its tokens; the same for every kind of loss.

    mixture: {task: its weight in a batch}.
    auxiliary: lambda, the weight of -log p(x_0 | x_t).
    pad_id, pad_weight: the local id of the text's padding, and the weight of padding tokens.
    image_weight: the weight of image tokens; all other tokens have weight 1.
    weights: {modality: the weight of its tokens}, where a row of `modalities` has one.
    time: "discrete", the bound of the chain with T steps, times drawn by importance; or
        "continuous", the bound for infinitely many steps with low-discrepancy times, for schedules
        that only mask.
    incomplete: whether rows may lack a modality (`complete`).
    experts: the boundaries of stage experts, with discrete times: a batch is of one interval.
    without: names of modalities that are absent in every row, and are not computed (`by_absent`).
    teacher_guidance: {modality: 1 + w} of a student's teacher (`distillation`), where it is not 1.
    scattered_text: the share of given texts that are words among masks (`scattered`).
    """

    mixture: dict[str, float]
    auxiliary: float
    pad_id: int
    pad_weight: float
    image_weight: float = 1.0
    weights: dict[str, float] | None = None
    time: str = "discrete"
    incomplete: bool = False
    experts: tuple[float, ...] = ()
    without: tuple[str, ...] = ()
    teacher_guidance: dict[str, float] | None = None
    scattered_text: float = 0.0

    def present(self, vocab, x0):
        """x0 with tokens everywhere, and which modalities each row has, or None for all."""
        return complete(vocab, x0) if self.incomplete else (x0, None)

    def weigh(self, vocab):
        """x0 int32[B, L] -> the weight of each token, float[B, L]: of padding, of the modalities
        in `weights`, of images, else 1."""
        pad = vocab.offsets[vocab.index("text")] + self.pad_id
        of_image = (vocab.modality_of == vocab.index("image"))[None]
        each = jnp.where(of_image, self.image_weight, 1.0)
        for name, weight in (self.weights or {}).items():
            each = jnp.where((vocab.modality_of == vocab.index(name))[None], weight, each)
        return lambda x0: jnp.where(x0 == pad, self.pad_weight, each)


def make_loss(kernel, model, *, terms: dict | None = None, **options):
    """The loss as a function (params, sampler, key, x0) -> (loss, (metrics, new sampler)).

    Args:
        kernel, model: the noise and the network.
        terms: {name: (weight, term)}, added to the objective (`terms`).
        options: of `Options`.

    The returned function takes x0 int32[B, L], or (x0, `Vocab.features`), and a key [], and returns
    scalars as metrics.

    Raises:
        ValueError: `time` is unknown or does not fit the schedules. While tracing: a term returns
            an array of another shape.
    """
    c, vocab = Options(**options), kernel.vocab
    if c.time not in OBJECTIVES:
        raise UserError(f"train.objective = {c.time!r}, expected one of {', '.join(OBJECTIVES)}")
    continuous = c.time == "continuous"
    if continuous and not all(kernel.masks_only):
        raise UserError(
            "train.objective = 'continuous' is for schedules that only mask: expected "
            "diffusion.schedule 'absorbing' or 'cosine'"
        )
    terms = {"auxiliary": (c.auxiliary, loss_terms.auxiliary), **(terms or {})}
    weigh = c.weigh(vocab)

    def loss_fn(params, sampler, key, x0):
        network, own = loss_terms.split(params)
        x0, features = x0 if isinstance(x0, tuple) else (x0, None)

        def denoise_fn(xt, t, free, **more):
            if features is not None and "method" not in more:  # a length is read from the image
                soft = more.get("soft") or (None,) * len(features)
                more["soft"] = tuple(
                    p if f is None else f for p, f in zip(soft, features, strict=True)
                )
            return model.apply({"params": network}, xt, t, free, **more)

        x0, present = c.present(vocab, x0)
        asked = (c.mixture, continuous, present, c.experts)
        noised = noised_batch(kernel, sampler, key, x0, *asked)
        t, (free, absent), p = noised.t, noised.masks, noised.p
        scatter = (noised.masks, c.scattered_text, c.pad_id)
        xt = scattered(vocab, jax.random.fold_in(key, SCATTER_KEY), noised.xt, *scatter)
        left_out = {"without": c.without} if c.without else {}
        logits = denoise_fn(xt, t, free, **left_out)
        kl, nll = objective.loss_terms(kernel, logits, x0, xt, t, free, **left_out)
        if continuous:
            kl = objective.continuous_terms(kernel, nll, xt, noised.rate)
        outcome = loss_terms.Outcome(x0, xt, t, noised.masks, logits, kl, nll)
        positions, samples, metrics = add(terms, denoise_fn, outcome, key, own)
        loss = (weigh(x0) * positions / p[:, vocab.modality_of]).sum() / x0.size + samples

        count = free.sum(axis=1)
        if not continuous:
            clock = jnp.where(absent, 0, t).max(axis=1)  # the drawn time
            size = jax.lax.stop_gradient(kl.sum(axis=1) / count)
            sampler = time_sampling.update(
                sampler, noised.histories, clock, size, ~noised.independent
            )
        metrics |= {"loss": loss, "bound": (kl / p[:, vocab.modality_of]).sum() / count.sum()}
        hidden = free & (xt == vocab.mask_id)
        return loss, (metrics | guesses(vocab, logits, x0, nll, hidden, c.without), sampler)

    return loss_fn


def weighted(loss_fn, weight: float):
    """A loss function times `weight`; the same one for a weight of 1."""

    def times(params, sampler, key, x0):
        total, (metrics, sampler) = loss_fn(params, sampler, key, x0)
        return weight * total, (metrics | {"loss": weight * total}, sampler)

    return loss_fn if weight == 1 else times


def add(terms, denoise_fn, outcome: loss_terms.Outcome, key, own: dict | None = None):
    """The objective with weighted terms added: (float[B, L], a scalar, what the terms log).

    own: {name: the parameters of a `terms.Learned`}.

    ValueError while tracing: a term returns an array of another shape.
    """
    x0, positions, samples, metrics = outcome.x0, outcome.kl, 0.0, {}
    for number, (name, (weight, term)) in enumerate(terms.items()):
        if weight == 0:
            continue
        if isinstance(term, loss_terms.Learned):
            term = functools.partial(term.term, (own or {})[name])
        value, logged = term(denoise_fn, outcome, jax.random.fold_in(key, TERM_KEYS + number))
        metrics |= logged
        if value.shape == x0.shape:
            positions = positions + weight * value
        elif value.shape == x0.shape[:1]:
            samples = samples + weight * value.mean()
        else:
            raise UserError(
                f"loss term {name!r} has shape {value.shape}, expected [B] = {x0.shape[:1]} "
                f"or [B, L] = {x0.shape}"
            )
    return positions, samples, metrics


def guesses(vocab, logits, x0, nll, hidden, without=()) -> dict[str, jax.Array]:
    """Mean -log p in nats and accuracy of each modality, at the positions hidden bool[B, L].

    NaN, which the log leaves out, where there is none, and for the modalities that are `without`.
    """
    metrics = {}
    for m, (modality, where) in enumerate(zip(vocab.modalities, vocab.slices, strict=True)):
        if modality.name in without:
            metrics |= {f"{modality.name}_{what}": jnp.nan for what in ("nll", "accuracy")}
            continue
        right = jnp.argmax(logits[m], axis=-1) == vocab.local(m, x0[:, where])
        here = hidden[:, where]
        metrics[f"{modality.name}_nll"] = (nll[:, where] * here).sum() / here.sum()
        metrics[f"{modality.name}_accuracy"] = (right & here).sum() / here.sum()
    return metrics
