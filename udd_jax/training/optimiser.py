"""Optimisers: AdamW and Muon with gradient clipping, warm-up and decay."""

import jax
import optax

from udd_jax.errors import UserError


def make_optimiser(config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW or Muon with warm-up and decay, after clipping the global norm of the gradient.

    Muon (Jordan 2024) updates the matrices of the blocks: orthogonalised steps, scaled to the size
    of AdamW's (Liu et al. 2025, arXiv 2502.16982). AdamW updates everything else. Both then use
    Nesterov momentum. Returns (optimiser, step -> learning rate). ValueError for an unknown name.
    """
    c = config.train
    if c.decay == "cosine":
        end = max(c.warmup + 1, c.steps)
        learning_rate = optax.warmup_cosine_decay_schedule(
            0.0, c.learning_rate, c.warmup, end, c.learning_rate * c.final_rate
        )
    else:
        learning_rate = optax.join_schedules(
            [
                optax.linear_schedule(0.0, c.learning_rate, c.warmup),
                optax.linear_schedule(
                    c.learning_rate, c.learning_rate * c.final_rate, c.steps - c.warmup
                ),
            ],
            [c.warmup],
        )
    if c.optimiser == "adamw":
        update = optax.adamw(
            learning_rate, b1=c.beta1, b2=c.beta2, weight_decay=c.weight_decay, mask=_decays
        )
    elif c.optimiser == "muon":
        update = muon(
            learning_rate, _matrices, c.beta1, c.beta2, c.weight_decay, weight_decay_mask=_decays
        )
    else:
        raise UserError(f"train.optimiser = {c.optimiser!r}, expected 'adamw' or 'muon'")
    return optax.chain(optax.clip_by_global_norm(c.clip), update), learning_rate


def muon(learning_rate, matrices, b1=0.9, b2=0.999, weight_decay=0.0, **options):
    """Muon for what `matrices`, a function of the parameters, marks; AdamW for everything else.

    `weight_decay_mask` is for what Muon updates: this AdamW decays biases and norms, too. All runs
    that are measured were trained so."""
    return optax.contrib.muon(
        learning_rate,
        weight_decay=weight_decay,
        adam_b1=b1,
        adam_b2=b2,
        adam_weight_decay=weight_decay,
        muon_weight_dimension_numbers=matrices,
        consistent_rms=0.2,
        ns_steps=3,  # Newton-Schulz; five cost a tenth of a step more and learn no faster
        **options,
    )


def _matrices(params):
    """Marks the matrices of the blocks, one for each layer; None for everything else."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map_with_path(
        lambda path, p: numbers if path[-1].key == "kernel" and p.ndim == 3 else None, params
    )


def _decays(params):
    """True for matrices and embeddings, which get weight decay; not biases, norms or gains."""
    return jax.tree.map_with_path(
        lambda path, p: path[-1].key in ("kernel", "embedding", "token"), params
    )
