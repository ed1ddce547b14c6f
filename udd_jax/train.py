"""Training of the diffusion: the state, one step, and the straight line that runs it.

    x0 = fuse(batch); a task, times and noise are drawn; x_t ~ q(x_t | x_0); the network predicts
    p(x_0 | x_t); loss = sum over modalities of (L_t + lambda L_aux) / p(t), divided by B L;
    AdamW; an average of the weights.

A step is a pure function of (state, batch, seed): its key is `fold_in(key(seed), step)`, so a run
that was stopped goes on with the same numbers, on any mesh.
"""

import pathlib
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from udd_jax import (
    checkpoint,
    diffusion,
    logbook,
    loop,
    schedules,
    sharding,
    tasks,
    times,
    transformer,
)
from udd_jax.vocab import Vocab


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint keeps of the diffusion's training."""

    step: jax.Array  # int32[]
    params: Any
    opt_state: Any
    ema_params: Any
    times: times.TimeSampler


def make_schedules(config, vocab: Vocab):
    """`config.diffusion` -> one noise schedule a modality."""
    return [
        schedules.make(
            config.diffusion.get(f"{m.name}_schedule") or config.diffusion.schedule,
            config.diffusion.steps,
            **config.diffusion.schedule_options,
        )
        for m in vocab.modalities
    ]


def make_model(config, vocab: Vocab, pad_id: int = 0) -> transformer.Transformer:
    """`config.model` -> the network; `pad_id`, the text's padding, matters to `mask_padding`."""
    options = dict(config.model)
    options["dtype"] = jnp.dtype(options.get("dtype", "float32"))
    options["padding"] = pad_id if options.pop("mask_padding", False) else None
    return transformer.Transformer(vocab, config.diffusion.steps, **options)


def make_optimiser(config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW with warm-up and decay, behind a clip of the global norm."""
    c = config.train
    if c.decay == "cosine":
        rate = optax.warmup_cosine_decay_schedule(
            0.0, c.learning_rate, c.warmup, c.steps, c.learning_rate * c.final_rate
        )
    else:
        rate = optax.join_schedules(
            [
                optax.linear_schedule(0.0, c.learning_rate, c.warmup),
                optax.linear_schedule(
                    c.learning_rate, c.learning_rate * c.final_rate, c.steps - c.warmup
                ),
            ],
            [c.warmup],
        )
    tx = optax.chain(
        optax.clip_by_global_norm(c.clip),
        optax.adamw(rate, b1=c.beta1, b2=c.beta2, weight_decay=c.weight_decay, mask=_decays),
    )
    return tx, rate


def _decays(params):
    """Weight decay is for matrices: no biases, norms or the rezero scalar."""
    return jax.tree.map_with_path(
        lambda path, p: path[-1].key in ("kernel", "embedding", "token"), params
    )


def create_state(model, tx, key: jax.Array, start: dict | None = None, fan_in=False) -> TrainState:
    """A state at step 0, with fresh parameters (`transformer.init`) or those of `start`."""
    params = transformer.init(model, key, fan_in) if start is None else start
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        times=times.create(model.steps, len(model.vocab.modalities)),
    )


def noised_batch(kernel, sampler, key, x0, mixture):
    """Draws tasks, times and noise for x0 int32[B, L].

    Returns (masks, independent, t int32[B, M], p float32[B, M], histories int32[B],
    xt int32[B, L]).
    """
    vocab = kernel.vocab
    batch = x0.shape[0]
    key_task, key_time, key_noise, key_prior = jax.random.split(key, 4)
    drawn = tasks.draw(key_task, vocab, mixture, batch)
    free = drawn.masks.free
    loss_in = jnp.stack([free[:, where].any(axis=1) for where in vocab.slices], axis=1)
    histories = times.history(loss_in)
    t, p = times.draw(sampler, key_time, histories, drawn.independent, loss_in.shape[1])
    t = tasks.times(vocab, drawn.masks, t, kernel.steps)
    xt = diffusion.q_sample(kernel, key_noise, x0, diffusion.free_times(vocab, t, free))
    absent = drawn.masks.absent[:, vocab.modality_of]
    xt = jnp.where(absent, diffusion.prior_sample(kernel, key_prior, batch), xt)
    return drawn.masks, drawn.independent, t, p, histories, xt


def make_loss(kernel, model, *, mixture, auxiliary, pad_id, pad_weight):
    """The objective as a function (params, sampler, key, x0) -> (loss, (metrics, new sampler)).

    auxiliary: lambda, the weight of -log p(x_0 | x_t); pad_id: the text's local padding id, whose
    tokens weigh `pad_weight`.
    """
    vocab = kernel.vocab
    text = vocab.index("text")
    pad = vocab.offsets[text] + pad_id

    def loss_fn(params, sampler, key, x0):
        masks, independent, t, p, histories, xt = noised_batch(kernel, sampler, key, x0, mixture)
        free = masks.free
        logits = model.apply({"params": params}, xt, t, free)
        kl, nll = diffusion.loss_terms(kernel, logits, x0, xt, t, free)
        weight = jnp.where(x0 == pad, pad_weight, 1.0) / p[:, vocab.modality_of]
        loss = (weight * (kl + auxiliary * nll)).sum() / x0.size

        count = free.sum(axis=1)
        clock = jnp.where(masks.absent, 0, t).max(axis=1)  # the time that was drawn
        sampler = times.update(
            sampler, histories, clock, jax.lax.stop_gradient(kl.sum(axis=1) / count), ~independent
        )
        metrics = {"loss": loss, "bound": (kl / p[:, vocab.modality_of]).sum() / count.sum()}
        for m, where in enumerate(vocab.slices):
            name = vocab.modalities[m].name
            guess = jnp.argmax(logits[m], axis=-1) == vocab.local(m, x0[:, where])
            hidden = free[:, where] & (xt[:, where] == vocab.mask_id)
            some = jnp.maximum(hidden.sum(), 1)
            metrics[f"{name}_nll"] = (nll[:, where] * hidden).sum() / some
            metrics[f"{name}_accuracy"] = (guess & hidden).sum() / some
        return loss, (metrics, sampler)

    return loss_fn


def make_step(loss_fn, tx, rate, ema_decay, vocab: Vocab):
    """The train step: (state, batch {name: int32[B, length]}, key) -> (state, metrics)."""

    def train_step(state: TrainState, batch, key):
        x0 = vocab.fuse(batch)
        key = jax.random.fold_in(key, state.step)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (metrics, sampler)), grads = grad_fn(state.params, state.times, key, x0)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # Early averages follow the weights: with a constant decay they would keep the first ones.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
        norm = optax.tree.norm(grads)
        metrics |= {"gradient_norm": norm, "learning_rate": rate(state.step)}
        new = TrainState(state.step, params, opt_state, ema, sampler)
        new, metrics["skipped"] = loop.apply_if_finite(new, state, metrics["loss"], norm)
        return new.replace(step=state.step + 1), metrics

    return train_step


def train(config, workdir, vocab: Vocab, pad_id: int, batch_at, *, start=None) -> dict:
    """Trains the diffusion in `workdir`, or goes on with it, and returns the averaged weights.

    batch_at(step) -> {name: int32[B, length]}, this process's share; start: parameters to begin
    from (`config.train.init_from`), of this network's names and shapes. Checkpoints, metrics and
    the finished file `weights` are in `workdir`.
    """
    workdir = pathlib.Path(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    kernel = diffusion.make_kernel(vocab, make_schedules(config, vocab))
    model = make_model(config, vocab, pad_id)
    tx, rate = make_optimiser(config)
    c = config.train
    loss_fn = make_loss(
        kernel,
        model,
        mixture=c.mixture.to_dict(),
        auxiliary=c.auxiliary,
        pad_id=pad_id,
        pad_weight=c.pad_weight,
    )
    step_fn = jax.jit(make_step(loss_fn, tx, rate, c.ema, vocab), donate_argnums=0)
    key = jax.random.key(config.seed)

    with sharding.use(mesh):
        state = create_state(model, tx, jax.random.fold_in(key, 0), start, c.fan_in)
        state = sharding.shard_tree(mesh, state)
        state = loop.fit(
            lambda state, batch, step: step_fn(state, batch, jax.random.fold_in(key, 1)),
            state,
            steps=c.steps,
            batch_at=lambda step: sharding.shard_batch(mesh, batch_at(step)),
            checkpoints=checkpoint.Checkpoints(workdir / "checkpoints", keep=c.keep),
            logbook=logbook.Logbook(workdir),
            description="diffusion",
            log_every=c.log_every,
            save_every=c.save_every,
        )
    params = jax.device_get(state.ema_params)
    checkpoint.save_tree(workdir / "weights", params, {"step": int(state.step)})
    return params
