"""The loss of the autoregressive baseline: -log p of each free token given what comes before it.

    loss = sum over free positions of weight (-log p(x_i | given, x before i) + ...), divided by B L

Tasks are drawn as for the diffusion (`loss.py`). So the mixture of both directions gives the sum of
their two losses, as in ERNIE-ViLG (arXiv 2112.15283).
"""

import jax
import jax.numpy as jnp

from udd_jax.diffusion import objective, tasks
from udd_jax.errors import UserError
from udd_jax.training import loss
from udd_jax.training import terms as loss_terms


def make_loss(kernel, model, *, terms: dict | None = None, **options):
    """As `loss.make_loss`: (params, sampler, key, x0) -> (loss, (metrics, sampler)).

    The auxiliary loss is the loss itself, and there is no time: `auxiliary` is not read, and
    `sampler` is returned as it is. ValueError for a `time` other than the default.
    """
    c, vocab, terms = loss.Options(**options), kernel.vocab, terms or {}
    if c.time != "discrete":
        raise UserError(
            f"train.objective = {c.time!r} with model.kind = 'autoregressive', which has no time: "
            "expected 'discrete'"
        )
    weigh = c.weigh(vocab)

    def loss_fn(params, sampler, key, x0):
        def predict(x, t, free, **more):
            return model.apply({"params": params}, x, t, free, **more)

        x0, present = c.present(vocab, x0)
        key_task = jax.random.split(key, 4)[0]
        masks = tasks.draw(key_task, vocab, c.mixture, len(x0), present).masks
        t = jnp.where(masks.absent, kernel.steps, 0)
        logits = predict(x0, t, masks.free, without=c.without)
        nll = objective.negative_log_likelihood(vocab, logits, x0, masks.free, c.without)
        outcome = loss_terms.Outcome(x0, x0, t, masks, logits, nll, nll)
        positions, samples, metrics = loss.add(terms, predict, outcome, key)
        total = (weigh(x0) * positions).sum() / x0.size + samples
        guessed = loss.guesses(vocab, logits, x0, nll, masks.free, c.without)
        metrics |= {"loss": total, "bound": nll.sum() / masks.free.sum()}
        return total, (metrics | guessed, sampler)

    return loss_fn
