"""A student that needs fewer calls: one call is trained to say what several of a teacher say.

SDTT (Deschenaux and Gulcehre, arXiv 2410.21035) in the terms of this package. A finished run
(`init_from`) is the teacher and the start of the student. Of a noised x_t the teacher reveals all
masked positions in n calls, the most certain draws first, as the sampler MaskGIT does. The target
of a position is what the teacher says of it in the call that reveals it, when it sees more than the
student does:

    loss = sum over masked positions of weight KL(p_student(. | x_t) || p_teacher(. | x_j)) / (B L)

j is the call in which the position is revealed. A teacher may be guided (`teacher_guidance`): then
one call of the student also says what takes the teacher several inputs, as in the distillation of
guided diffusion (arXiv 2210.03142). This KL looks for modes: where the targets of equal
x_t differ, the student prefers what all of them allow. A student may be the teacher of the next
round. Training on the truth can be added: `train.auxiliary` is the weight of -log p(x_0 | x_t).
"""

import jax
import jax.numpy as jnp

from udd_jax.diffusion import objective, random_words, transition
from udd_jax.errors import UserError
from udd_jax.sampling import guidance, rules
from udd_jax.training import loss
from udd_jax.training import terms as loss_terms

CALLS = 4  # n, of the teacher for one of the student
NAME = "distilled"  # `train.loss`


# ---- What `train_diffusion.train` needs of a training that starts from weights (as `adapters`) ---


def begin(config, start: dict, key: jax.Array) -> tuple[dict, dict]:
    """(what stays the same, the parameters to begin with): both are the teacher."""
    return start, start


def over(loss_fn, teacher: dict):
    """`loss_fn` as a function of the student's parameters."""
    return lambda params, *inputs: loss_fn((params, teacher), *inputs)


def merge(teacher: dict, params: dict) -> dict:
    """The weights of the run: those of the student."""
    return params


# ---- The loss -----------------------------------------------------------------------------------


def make_loss(kernel, model, *, terms: dict | None = None, calls: int = CALLS, **options):
    """As `loss.make_loss`, but of two networks: ((student, teacher), sampler, key, x0) -> the same.

    Times are drawn evenly: `sampler` is returned as it is. ValueError for a `time` other than the
    default, and for schedules that do not mask.
    """
    c, vocab = loss.Options(**options), kernel.vocab
    if c.time != "discrete":
        raise UserError(
            f"train.objective = {c.time!r} with train.loss = {NAME!r}: expected discrete"
        )
    if not kernel.masks:
        raise UserError(f"train.loss = {NAME!r} needs a schedule that masks most tokens at time T")
    terms = {"auxiliary": (c.auxiliary, loss_terms.auxiliary), **(terms or {})}
    weigh, strengths = c.weigh(vocab), c.teacher_guidance or {}
    strengths = [strengths.get(m.name, 1.0) for m in vocab.modalities]

    def loss_fn(both, sampler, key, x0):
        student, teacher = both

        def denoise_fn(xt, t, free, **soft):
            return model.apply({"params": student}, xt, t, free, **soft)

        def teach_fn(xt, t, free):
            return model.apply({"params": teacher}, xt, t, free)

        x0, present = c.present(vocab, x0)
        asked = {"present": present, "boundaries": c.experts}
        noised = loss.noised_batch(kernel, sampler, key, x0, c.mixture, **asked)
        xt, t, (free, _) = noised.xt, noised.t, noised.masks
        hidden = free & (xt == vocab.mask_id)
        key_teacher = jax.random.fold_in(key, loss.SCATTER_KEY)  # a student scatters no text
        if any(s != 1 for s in strengths):
            teach_fn = guided(kernel, teach_fn, key_teacher, noised.masks, strengths)
        said = jax.lax.stop_gradient(targets(kernel, teach_fn, key_teacher, noised, calls))
        logits = denoise_fn(xt, t, free)
        apart = [divergence(a, b) for a, b in zip(logits, said, strict=True)]
        apart = jnp.where(hidden, jnp.concatenate(apart, axis=1), 0)

        kl, nll = objective.loss_terms(kernel, logits, x0, xt, t, free)
        outcome = loss_terms.Outcome(x0, xt, t, noised.masks, logits, apart, nll)
        positions, samples, metrics = loss.add(terms, denoise_fn, outcome, key)
        total = (weigh(x0) * positions).sum() / x0.size + samples
        bound = (kl / noised.p[:, vocab.modality_of]).sum() / free.sum()
        metrics |= {"loss": total, "bound": bound, "apart": apart.sum() / hidden.sum()}
        return total, (metrics | loss.guesses(vocab, logits, x0, nll, hidden), sampler)

    return loss_fn


def guided(kernel, teach_fn, key, masks, strengths):
    """`teach_fn`, a `denoise_fn`, with classifier-free guidance: it returns log p.

    strengths: 1 + w of each modality; 1 is without. key: of the tokens of absent modalities.
    """
    prior = transition.prior_sample(kernel, key, len(masks.free))
    scene = guidance.Scene(kernel, None, masks, prior, None)

    def denoise_fn(xt, t, free):
        branches = guidance.by_the_others(scene, xt, t, jnp.asarray(strengths)[None])
        return guidance.total(kernel, guidance.prepare(teach_fn, branches), branches)

    return denoise_fn


def divergence(logits, log_target):
    """KL(softmax(logits) || target) of each position, nats, float[B, n]."""
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return (jnp.exp(log_p) * (log_p - log_target)).sum(axis=-1)


def targets(kernel, teach_fn, key, noised: loss.Noised, calls: int) -> list[jax.Array]:
    """What the teacher says of each masked position when it reveals it.

    teach_fn: a `denoise_fn`. Returns log p, float[B, length_m, K_m] a modality; any values where
    x_t is not masked.
    """
    vocab, (free, absent) = kernel.vocab, noised.masks

    def call(carry, j):
        x, said = carry
        hidden = free & (x == vocab.mask_id)
        t = _earlier(kernel, noised.t, absent, 1 - j / calls)
        logits = teach_fn(x, t, free)
        new_x, new_said = [], []
        for m, where in enumerate(vocab.slices):
            log_p = jax.nn.log_softmax(logits[m], axis=-1)
            words = random_words.words(jax.random.fold_in(key, j * len(logits) + m), hidden.shape)
            token = random_words.categorical(words[:, where], log_p)
            certain = jnp.take_along_axis(log_p, token[..., None], axis=-1)[..., 0]
            here = hidden[:, where]
            # Of h positions that are masked in call j, h / (n - j) are shown, rounded up.
            shown = jnp.ceil(here.sum(axis=1, keepdims=True) / (calls - j))
            shown = here & (rules.rank(certain, here) < shown)
            new_x.append(jnp.where(shown, vocab.globalise(m, token), x[:, where]))
            new_said.append(jnp.where(shown[..., None], log_p, said[m]))
        return (jnp.concatenate(new_x, axis=1), new_said), None

    batch = len(noised.xt)
    nothing = [jnp.zeros((batch, m.length, m.classes)) for m in vocab.modalities]
    (_, said), _ = jax.lax.scan(call, (noised.xt, nothing), jnp.arange(calls))
    return said


def _earlier(kernel, t, absent, share):
    """The times int32[B, M] at which `share` of what t masks is masked; absent ones stay."""
    found = []
    for m, gamma in enumerate(jnp.asarray(kernel.gamma_bar)):
        wanted = share * gamma[t[:, m]]
        found.append((gamma[None] < wanted[:, None] * (1 - 1e-5)).sum(axis=1))
    return jnp.where(absent, t, jnp.stack(found, axis=1).astype(t.dtype))
