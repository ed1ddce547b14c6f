"""Training of the diffusion: the state, one step, and the straight line that runs it.

    x0 = fuse(batch); a task, times and noise are drawn; x_t ~ q(x_t | x_0); the network predicts
    p(x_0 | x_t); loss = sum over modalities of (L_t + lambda L_aux) / p(t), divided by B L;
    AdamW; an average of the weights.

A step is a pure function of (state, batch, seed): its key is `fold_in(key(seed), step)`, so a run
that was stopped goes on with the same numbers, on any mesh.
"""

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from udd_jax import build
from udd_jax.diffusion import objective, tasks, time_sampling, transition
from udd_jax.diffusion.vocab import Vocab
from udd_jax.networks import transformer
from udd_jax.runtime import checkpoints, logbook, sharding
from udd_jax.training import loop

OBJECTIVES = ("discrete", "continuous")


@flax.struct.dataclass
class TrainState:
    """Everything that a checkpoint keeps of the diffusion's training."""

    step: jax.Array  # int32[]
    params: Any
    opt_state: Any
    ema_params: Any
    times: time_sampling.TimeSampler


def make_optimiser(config) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """AdamW or Muon with warm-up and decay, behind a clip of the global norm.

    Muon (Jordan 2024) takes the matrices of the blocks, orthogonalised steps of AdamW's size
    (Liu et al. 2025, arXiv 2502.16982), and leaves everything else to AdamW, both with
    Nesterov's momentum. ValueError for another name.
    """
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
    if c.optimiser == "adamw":
        step = optax.adamw(rate, b1=c.beta1, b2=c.beta2, weight_decay=c.weight_decay, mask=_decays)
    elif c.optimiser == "muon":
        step = optax.contrib.muon(
            rate,
            weight_decay=c.weight_decay,
            weight_decay_mask=_decays,
            adam_b1=c.beta1,
            adam_b2=c.beta2,
            adam_weight_decay=c.weight_decay,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
            ns_steps=3,  # of Newton and Schulz: five cost a tenth of a step and learn no faster
        )
    else:
        raise ValueError(f"train.optimiser = {c.optimiser!r}, expected 'adamw' or 'muon'")
    return optax.chain(optax.clip_by_global_norm(c.clip), step), rate


def _matrices(params):
    """The matrices of the blocks, each of a layer on its own; None for everything else."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
    return jax.tree.map_with_path(
        lambda path, p: numbers if path[-1].key == "kernel" and p.ndim == 3 else None, params
    )


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
        times=time_sampling.create(model.steps, len(model.vocab.modalities)),
    )


class Noised(NamedTuple):
    """A batch as the network sees it, and what its loss needs to know."""

    xt: jax.Array  # int32[B, L]
    t: jax.Array  # int32[B, M], as the network is fed them
    masks: tasks.Masks
    p: jax.Array  # float32[B, M], the chance of t
    histories: jax.Array  # int32[B]
    independent: jax.Array  # bool[B]
    rate: jax.Array | None  # float32[B, M], of a continuous time


def noised_batch(kernel, sampler, key, x0, mixture, continuous=False) -> Noised:
    """Draws tasks, times and noise for x0 int32[B, L]."""
    vocab, steps = kernel.vocab, kernel.steps
    batch = x0.shape[0]
    key_task, key_time, key_noise, key_prior = jax.random.split(key, 4)
    drawn = tasks.draw(key_task, vocab, mixture, batch)
    free = drawn.masks.free
    loss_in = jnp.stack([free[:, where].any(axis=1) for where in vocab.slices], axis=1)
    histories = time_sampling.history(loss_in)
    if continuous:
        time = steps * time_sampling.spread(key_time, drawn.independent, loss_in.shape[1])
        t, gamma, rate = transition.instant(kernel, time)
        p = jnp.full(t.shape, 1 / steps)
        gamma = jnp.where(free, gamma[:, vocab.modality_of], 0)
        xt = transition.mask_sample(kernel, key_noise, x0, gamma)
    else:
        t, p = time_sampling.draw(sampler, key_time, histories, drawn.independent, loss_in.shape[1])
        position_t = transition.free_times(vocab, t, free)
        xt, rate = transition.q_sample(kernel, key_noise, x0, position_t), None
    absent = drawn.masks.absent[:, vocab.modality_of]
    xt = jnp.where(absent, transition.prior_sample(kernel, key_prior, batch), xt)
    t = tasks.times(vocab, drawn.masks, t, steps)
    return Noised(xt, t, drawn.masks, p, histories, drawn.independent, rate)


def make_loss(
    kernel,
    model,
    *,
    mixture,
    auxiliary,
    pad_id,
    pad_weight,
    image_weight: float = 1.0,
    time: str = "discrete",
):
    """The objective as a function (params, sampler, key, x0) -> (loss, (metrics, new sampler)).

    auxiliary: lambda, the weight of -log p(x_0 | x_t); pad_id: the text's local padding id, whose
    tokens weigh `pad_weight`; image tokens weigh `image_weight`, all others 1. time:
    "discrete", the bound of the chain of T steps with times by importance, or "continuous", that
    of infinitely many with low-discrepancy times, for schedules that only mask. ValueError where
    it does not fit.
    """
    if time not in OBJECTIVES:
        raise ValueError(f"train.objective = {time!r}, expected one of {', '.join(OBJECTIVES)}")
    continuous = time == "continuous"
    if continuous and not all(kernel.masks_only):
        raise ValueError(
            "train.objective = 'continuous' is for schedules that only mask: expected "
            "diffusion.schedule 'absorbing' or 'cosine'"
        )
    vocab = kernel.vocab
    text = vocab.index("text")
    pad = vocab.offsets[text] + pad_id
    of_image = (vocab.modality_of == vocab.index("image"))[None]

    def loss_fn(params, sampler, key, x0):
        noised = noised_batch(kernel, sampler, key, x0, mixture, continuous)
        xt, t, (free, absent), p = noised.xt, noised.t, noised.masks, noised.p
        logits = model.apply({"params": params}, xt, t, free)
        kl, nll = objective.loss_terms(kernel, logits, x0, xt, t, free)
        if continuous:
            kl = objective.continuous_terms(kernel, nll, xt, noised.rate)
        weight = jnp.where(x0 == pad, pad_weight, jnp.where(of_image, image_weight, 1.0))
        loss = (weight * (kl + auxiliary * nll) / p[:, vocab.modality_of]).sum() / x0.size

        count = free.sum(axis=1)
        if not continuous:
            clock = jnp.where(absent, 0, t).max(axis=1)  # the time that was drawn
            size = jax.lax.stop_gradient(kl.sum(axis=1) / count)
            sampler = time_sampling.update(
                sampler, noised.histories, clock, size, ~noised.independent
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


def make_objective(config, vocab: Vocab, pad_id: int):
    """The network of a config, and its loss as a function; see `make_model` and `make_loss`."""
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    model, c = build.make_model(config, vocab, pad_id), config.train
    loss_fn = make_loss(
        kernel,
        model,
        mixture=c.mixture.to_dict(),
        auxiliary=c.auxiliary,
        pad_id=pad_id,
        pad_weight=c.pad_weight,
        image_weight=c.image_weight,
        time=c.objective,
    )
    return model, loss_fn


def step_key(config) -> jax.Array:
    """The key that every step folds its number into."""
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def make_gradient(loss_fn, accumulate: int = 1):
    """(params, sampler, key, x0 int32[B, L]) -> (gradient, metrics, sampler), means over the batch.

    With `accumulate` n the batch goes through the network in n parts, one after another, which
    divides the memory of activations by n. Each part draws noise and times of its own. ValueError,
    when traced, if B is no multiple of n.
    """

    def gradient(params, sampler, key, x0):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (metrics, sampler)), grads = grad_fn(params, sampler, key, x0)
        return grads, metrics, sampler

    def in_parts(params, sampler, key, x0):
        if x0.shape[0] % accumulate:
            raise ValueError(
                f"train.batch_size = {x0.shape[0]} is no multiple of train.accumulate = "
                f"{accumulate}: change one"
            )

        def add(carry, numbered):
            total, sampler = carry
            number, part = numbered
            key_part = jax.random.fold_in(key, number)
            grads, metrics, sampler = gradient(params, sampler, key_part, part)
            return (jax.tree.map(jnp.add, total, grads), sampler), metrics

        # Every n-th row is a part, so that each device keeps the rows that it has.
        parts = x0.reshape(-1, accumulate, x0.shape[1]).swapaxes(0, 1)
        nothing = jax.tree.map(jnp.zeros_like, params), sampler
        (total, sampler), metrics = jax.lax.scan(add, nothing, (jnp.arange(accumulate), parts))
        mean = functools.partial(jnp.mean, axis=0)
        return jax.tree.map(lambda g: g / accumulate, total), jax.tree.map(mean, metrics), sampler

    return gradient if accumulate == 1 else in_parts


def make_step(loss_fn, tx, rate, ema_decay, vocab: Vocab, accumulate: int = 1):
    """The train step: (state, batch {name: int32[B, length]}, key) -> (state, metrics)."""
    gradient = make_gradient(loss_fn, accumulate)

    def train_step(state: TrainState, batch, key):
        x0 = vocab.fuse(batch)
        key = jax.random.fold_in(key, state.step)
        grads, metrics, sampler = gradient(state.params, state.times, key, x0)
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


def make_held_out(loss_fn, batch, batch_size: int, vocab: Vocab, mesh):
    """`evaluate` for `loop.fit`: the averaged weights' bound on held-out pairs, in nats a token.

    batch: {name: int32[n, length]}, whole in every process. It is gone through in batches of one
    size, the last filled up with the first, with the same tasks, times and noise every time.
    """
    count = len(batch["text"])
    rows = np.resize(np.arange(count), -(-count // batch_size) * batch_size)
    x0 = np.asarray(vocab.fuse({name: np.asarray(x)[rows] for name, x in batch.items()}))
    table = ((".*", P(sharding.DATA, None)),)
    parts = sharding.shard_tree(mesh, list(x0.reshape(-1, batch_size, vocab.length)), table)

    @jax.jit
    def bound(state, number, x0):
        key = jax.random.fold_in(jax.random.key(0), number)
        return loss_fn(state.ema_params, state.times, key, x0)[1][0]["bound"]

    def evaluate(state, done):
        bounds = [bound(state, np.int32(i), part) for i, part in enumerate(parts)]
        return {"held_out_bound": float(np.mean(jax.device_get(bounds)))}

    return evaluate


def train(
    config,
    workdir,
    vocab: Vocab,
    pad_id: int,
    batch_at,
    *,
    start=None,
    held_out=None,
    tensorboard=False,
    **options,
) -> dict:
    """Trains the diffusion in `workdir`, or goes on with it, and returns the averaged weights.

    batch_at(step) -> {name: int32[B, length]}, this process's share; start: parameters to begin
    from (`config.init_from`), of this network's names and shapes; held_out: a batch of pairs
    whose bound is logged at each checkpoint, of which the best is then kept too; tensorboard:
    whether to write event files; options: `ids_at` and `profile` of `loop.fit`. Checkpoints,
    metrics and the finished file `weights` are in `workdir`.
    """
    workdir = checkpoints.folder(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    model, loss_fn = make_objective(config, vocab, pad_id)
    tx, rate = make_optimiser(config)
    c, key = config.train, jax.random.key(config.seed)
    make = functools.partial(create_state, model, tx, jax.random.fold_in(key, 0), start, c.fan_in)
    state = sharding.create(mesh, make) if start is None else sharding.shard_tree(mesh, make())
    # Said outright, or the compiler may move the state from step to step.
    places = sharding.shardings(mesh, state), None
    step = make_step(loss_fn, tx, rate, c.ema, vocab, c.accumulate)
    step_fn = jax.jit(step, donate_argnums=0, out_shardings=places)

    evaluate = None
    if held_out is not None:
        evaluate = make_held_out(loss_fn, held_out, c.batch_size, vocab, mesh)

    with sharding.use(mesh):
        state = loop.fit(
            lambda state, batch, step: step_fn(state, batch, step_key(config)),
            state,
            steps=c.steps,
            batch_at=lambda step: sharding.shard_batch(mesh, batch_at(step)),
            checkpoints=checkpoints.Checkpoints(
                workdir / "checkpoints", keep=c.keep, best="held_out_bound", say=logbook.say
            ),
            logbook=logbook.Logbook(workdir, tensorboard),
            description="diffusion",
            log_every=c.log_every,
            save_every=c.save_every,
            eval_every=c.save_every,
            evaluate=evaluate,
            **options,
        )
    params = sharding.to_host(state.ema_params)
    if jax.process_index() == 0:
        checkpoints.save_tree(workdir / "weights", params, {"step": int(state.step)})
    return params
