"""Contrastive loss terms (CDCD, Zhu et al. 2022, arXiv 2206.07771), bounded or as released.

A negative z is a wrong x_0 for the same x_t and the same output of the network. With l(z), the loss
of z, summed over the free positions of a modality, the term of a sample is InfoNCE:

    L = (t/T + 1) log( 1 + sum_j exp( l(x_0) - l(z_j) ) ) / p(t)         at least 0

    step     l(z) = KL( q(x_s | x_t, z) || p(x_s | x_t) ), at s = 0 -log p(z | x_1)
    sample   l(z) = -log p(z | x_t)

    intra    z has the tokens of x_0, cut into eight chunks that change places (in a grid: blocks of
             half its height and a quarter of its width, which is ours)
    inter    z has the tokens of another sample of the batch

The released code subtracts the mean of the l(z_j) instead, which has no lower bound:

    L = -(t/T + 1) (1/J) sum_j l(z_j) / p(t)

`form="released"` does that. No token counts for more than 70 nats, and a weight of .01 or more is
refused. A modality is contrasted by itself, because it has a time of its own (ours).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.diffusion import objective
from udd_jax.diffusion.transition import Kernel
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.errors import UserError
from udd_jax.training import terms

KINDS = ("step_intra", "step_inter", "sample_intra", "sample_inter")
FORMS = ("bounded", "released")
MOST, LIMIT = 70.0, 1e-2  # of the released form: nats of a token; weights from here on are refused


def from_config(config, kernel: Kernel) -> dict[str, tuple[float, terms.Term]]:
    """{name: (weight, term)} of the weights in `config.train.contrastive` that are not 0."""
    asked = config.train.get("contrastive", {})
    found = {kind: asked.get(kind, 0.0) for kind in KINDS}
    steps = [kind for kind in KINDS[:2] if found[kind]]
    if steps and config.train.objective == "continuous":
        raise UserError(
            f"train.contrastive.{steps[0]} = {found[steps[0]]} with train.objective = "
            "'continuous', which has no steps: expected 0"
        )
    form = asked.get("form", "bounded")
    if form not in FORMS:
        raise UserError(f"train.contrastive.form = {form!r}, expected one of {', '.join(FORMS)}")
    large = [kind for kind in KINDS if found[kind] >= LIMIT]
    if large and form == "released":
        raise UserError(
            f"train.contrastive.{large[0]} = {found[large[0]]} with the form 'released', which has "
            f"no lower bound: expected less than {LIMIT}, such as 5e-5, or the form 'bounded'"
        )
    count = asked.get("negatives", 0)
    if any(found.values()) and count < 1:
        raise UserError(f"train.contrastive.negatives = {count}, expected at least 1")
    return {
        f"contrastive_{kind}": (weight, functools.partial(contrast, kernel, kind, count, form=form))
        for kind, weight in found.items()
        if weight
    }


def contrast(
    kernel: Kernel,
    kind: str,
    count: int,
    denoise_fn,
    outcome: terms.Outcome,
    key,
    form: str = "bounded",
):
    """A loss term (`terms.Term`) with `count` negatives; kind: one of KINDS, form: one of FORMS.

    Returns float[B, L]: the value of a modality is spread evenly over its free positions.
    ValueError if the batch is too small for as many negatives of kind "inter".
    """
    loss, source = kind.split("_")
    number, own = (0, outcome.kl) if loss == "step" else (1, outcome.nll)
    vocab, t, free = kernel.vocab, outcome.t, outcome.masks.free
    wrong = negatives(key, vocab, outcome.x0, source, count)

    def loss_of(z):
        return objective.loss_terms(kernel, outcome.logits, z, outcome.xt, t, free)[number]

    others = jax.lax.map(loss_of, wrong)  # [J, B, L]
    values = []
    for m, where in enumerate(vocab.slices):
        right = own[:, where].sum(-1)
        if form == "released":
            value = -jnp.minimum(others[..., where], MOST).sum(-1).mean(0)  # [B]
        else:
            margin = right[None] - others[..., where].sum(-1)
            value = jax.nn.softplus(jax.nn.logsumexp(margin, axis=0))
        value = value * (t[:, m] / kernel.steps + 1)
        here = free[:, where]
        share = here / jnp.maximum(here.sum(-1, keepdims=True), 1)
        values.append(share * value[:, None])
    return jnp.concatenate(values, axis=1), {}


def negatives(key, vocab: Vocab, x0: jax.Array, source: str, count: int) -> jax.Array:
    """`count` wrong versions of x0 int32[B, L] -> int32[J, B, L]; source: "intra" or "inter"."""
    batch = len(x0)
    if source == "inter":
        if batch <= count:
            raise UserError(
                f"train.contrastive.negatives = {count} other samples in a batch of {batch}, "
                "expected fewer"
            )
        shifts = 1 + jax.random.permutation(key, batch - 1)[:count]
        return x0[(jnp.arange(batch)[None] + shifts[:, None]) % batch]
    parts = []
    for m, (modality, where) in enumerate(zip(vocab.modalities, vocab.slices, strict=True)):
        chunks = chunk_of(modality)
        places = np.argsort(chunks, kind="stable")  # chunk after chunk
        key_m = jax.random.fold_in(key, m)
        rank = jax.random.uniform(key_m, (count, batch, chunks.max() + 1))
        order = jnp.argsort(rank[..., chunks[places]], axis=-1, stable=True)
        tokens = jnp.broadcast_to(x0[None, :, where][..., places], order.shape)
        moved = jnp.take_along_axis(tokens, order, axis=-1)
        parts.append(moved[..., np.argsort(places)])
    return jnp.concatenate(parts, axis=-1)


def chunk_of(modality: Modality) -> np.ndarray:
    """The chunk of each position, int[length], numbers from 0 without a gap; at most eight."""
    if modality.grid is None:
        chunks = np.arange(modality.length) * 8 // modality.length
    else:
        (rows, columns), (row, column) = modality.grid, np.indices(modality.grid)
        chunks = (row * 2 // rows * 4 + column * 4 // columns).ravel()
    return np.unique(chunks, return_inverse=True)[1]
