"""Training of the diffusion: the state, one step, and the function `train`. Read this fourth.

    x0 = fuse(batch); draw tasks, times and noise; x_t ~ q(x_t | x_0); the network predicts
    p(x_0 | x_t); loss = sum over modalities of (L_t + lambda L_aux) / p(t), divided by B L
    (loss.py, terms.py); AdamW or Muon (optimiser.py); a moving average of the weights.

A step is a pure function of (state, batch, seed). Its key depends on the seed and the step only, so
a continued run draws the same random numbers, on any mesh.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from udd_jax import build, modalities
from udd_jax.diffusion import time_sampling, transition
from udd_jax.diffusion.vocab import Vocab
from udd_jax.errors import UserError
from udd_jax.networks import experts, transformer
from udd_jax.runtime import checkpoints, files, logbook, sharding, trees
from udd_jax.training import (
    adapters,
    autoregressive,
    contrastive,
    distillation,
    length,
    loop,
    loss,
    matching,
    optimiser,
    round_trip,
    turns,
)
from udd_jax.training import terms as loss_terms


@flax.struct.dataclass
class TrainState:
    """The state of the diffusion's training, as stored in a checkpoint."""

    step: jax.Array  # int32[]
    params: Any
    opt_state: Any
    ema_params: Any
    times: time_sampling.TimeSampler


def create_state(
    model, tx, key: jax.Array, start: dict | None = None, fan_in=False, terms=None
) -> TrainState:
    """The state at step 0, with new parameters (`transformer.init`) or those in `start`.

    terms: the {name: (weight, term)} of the loss, some of which may have parameters of their own.
    """
    params = transformer.init(model, key, fan_in) if start is None else start
    if own := loss_terms.own(terms or {}, jax.random.fold_in(key, 1)):
        params = params | {loss_terms.OWN: own}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema_params=jax.tree.map(jnp.copy, params),
        times=time_sampling.create(model.steps, len(model.vocab.modalities)),
    )


# {`train.loss`, or model.kind if that is "": loss}, like `build.GENERATORS`
LOSSES = {
    "diffusion": loss.make_loss,
    "autoregressive": autoregressive.make_loss,
    distillation.NAME: distillation.make_loss,
}
# {`train.loss`: how a training starts from weights}; `adapters` for all others
STARTS = {distillation.NAME: distillation}


def make_objective(config, vocab: Vocab, pad_id: int, terms=None, **options):
    """(network, loss function) of a config; see `build.make_model` and `loss.make_loss`.

    options: of `loss.Options`, in place of those of the config.
    """
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    model, c = build.make_model(config, vocab, pad_id), config.train
    kind = c.get("loss") or config.model.get("kind", "diffusion")
    ours = terms_of(config, vocab, pad_id)
    if kind not in LOSSES:
        field = "train.loss" if c.get("loss") else "model.kind"
        raise UserError(f"{field} = {kind!r}, expected one of {', '.join(LOSSES)}")
    if ours and kind != "diffusion":
        raise UserError(
            f"the loss terms {', '.join(ours)} with model.kind = {kind!r}: expected weights of 0, "
            "or 'diffusion'"
        )
    if config.get("incomplete") and (ours or terms):
        raise UserError(
            f"incomplete = True with the loss terms {', '.join({**ours, **(terms or {})})}, which "
            "compare pairs: expected weights of 0, or False"
        )
    return model, LOSSES[kind](
        kernel, model, terms=ours | (terms or {}), **_options(config, pad_id) | options
    )


def make_prefix_objective(config, vocab: Vocab, pad_id: int, **options):
    """(network, loss function) of the first `prefix_steps`: those of the autoregressive baseline.

    Its network has the same parameters. Every free token is asked once, given clean tokens alone,
    so that its gradient has far less noise than that of the diffusion; what it learns first (which
    cell a word names) the diffusion keeps. The other way round as in DiffuLLaMA (arXiv 2410.17891),
    the start is short and from nothing. ValueError for a network that the baseline does not have.
    """
    with_kind = ml_collections.ConfigDict(config.to_dict())
    with with_kind.unlocked():
        with_kind.model.kind = "autoregressive"
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    try:
        model = build.make_model(with_kind, vocab, pad_id)
        loss_fn = autoregressive.make_loss(kernel, model, **_options(config, pad_id) | options)
    except UserError as error:
        field = "prefix_steps" if turns.prefix_steps(config) else "prefix_share"
        raise UserError(
            f"train.{field} = {config.train[field]}, expected 0 for this network: {error}"
        ) from error
    return model, loss_fn


def objectives(config, vocab: Vocab, pad_id: int, terms=None):
    """(network, step -> the loss function of that step): the prefixes first, if any, and later in
    the share `prefix_share` of the steps.

    The rows of a step leave out the same modalities where the network does (`model.absent`), so
    that a step computes no others. Each part of the mixture has its share of the steps, evenly
    spread, so in the mean the loss is that of the whole mixture: the loss of step `math.inf`.
    """
    model, whole = make_objective(config, vocab, pad_id, terms)
    measured = whole
    if config.get("experts"):  # of all times, not of those of one expert
        measured = make_objective(config, vocab, pad_id, terms, experts=())[1]
    found, earlier, later = turns.parts(config, vocab), [], [whole]
    asked = [{"mixture": part, "without": names} for names, part in found.items()]
    if turns.prefix_steps(config) or turns.prefix_share(config):
        losses = (make_prefix_objective(config, vocab, pad_id, **a)[1] for a in asked)
        earlier = [loss.weighted(one, turns.prefix_weight(config)) for one in losses]
    if list(found) != [()]:
        later = [make_objective(config, vocab, pad_id, terms, **a)[1] for a in asked]
    turn = turns.of(config, [sum(part.values()) for part in found.values()])

    def loss_at(step):
        if step == math.inf:
            return measured
        part, prefixes = turn(step)
        return (earlier if prefixes else later)[part]

    return model, loss_at


def _options(config, pad_id: int) -> dict:
    """The `loss.Options` of a config."""
    c = config.train
    return {
        "mixture": c.mixture.to_dict(),
        "auxiliary": c.auxiliary,
        "pad_id": pad_id,
        "pad_weight": c.pad_weight,
        "image_weight": c.image_weight,
        "weights": modalities.token_weights(config),
        "time": c.objective,
        "incomplete": config.get("incomplete", False),
        "experts": tuple(config.get("experts", ())),
        "teacher_guidance": dict(c.get("teacher_guidance", {})),
        "scattered_text": c.get("scattered_text", 0.0),
    }


def terms_of(config, vocab: Vocab, pad_id: int, more: dict | None = None) -> dict:
    """{name: (weight, term)} of all terms that `config.train` turns on, and `more`."""
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    found = contrastive.from_config(config, kernel) | round_trip.from_config(config, kernel)
    for module in (matching, length):
        found |= module.from_config(config, kernel, pad_id)
    return found | (more or {})


def step_key(config) -> jax.Array:
    """The key of the training; each step folds its number into it."""
    return jax.random.fold_in(jax.random.key(config.seed), 1)


def make_gradient(loss_fn, accumulate: int = 1):
    """(params, sampler, key, x0 int32[B, L]) -> (gradient, metrics, sampler), means over the batch.

    With `accumulate` = n the batch goes through the network in n parts, one after another. This
    divides the memory of activations by n. Each part draws its own noise and times. ValueError
    while tracing if B is not a multiple of n.
    """

    def gradient(params, sampler, key, x0):
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (metrics, sampler)), grads = grad_fn(params, sampler, key, x0)
        return grads, metrics, sampler

    def in_parts(params, sampler, key, x0):
        rows = jax.tree.leaves(x0)[0].shape[0]
        if rows % accumulate:
            raise UserError(
                f"train.batch_size = {rows} is not a multiple of train.accumulate = "
                f"{accumulate}: change one"
            )

        def add(carry, numbered):
            total, sampler = carry
            number, part = numbered
            key_part = jax.random.fold_in(key, number)
            grads, metrics, sampler = gradient(params, sampler, key_part, part)
            return (jax.tree.map(jnp.add, total, grads), sampler), metrics

        # A part takes every n-th row, so that no row moves to another device.
        parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), x0)
        nothing = jax.tree.map(jnp.zeros_like, params), sampler
        (total, sampler), metrics = jax.lax.scan(add, nothing, (jnp.arange(accumulate), parts))
        # A part may have nothing to guess of a modality (`loss.guesses`).
        metrics = {n: v.mean() if n == "loss" else jnp.nanmean(v) for n, v in metrics.items()}
        return jax.tree.map(lambda g: g / accumulate, total), metrics, sampler

    return gradient if accumulate == 1 else in_parts


def sequence(vocab: Vocab, batch: dict):
    """x0 int32[B, L] of a batch {name: tokens}; with its features, if it has some, for a loss."""
    x0, features = vocab.fuse(batch), vocab.features(batch)
    return x0 if features is None else (x0, features)


def make_step(loss_fn, tx, learning_rate, ema_decay, vocab: Vocab, accumulate: int = 1):
    """The train step: (state, batch {name: int32[B, length]}, key) -> (state, metrics)."""
    gradient = make_gradient(loss_fn, accumulate)

    def train_step(state: TrainState, batch, key):
        x0 = sequence(vocab, batch)
        key = jax.random.fold_in(key, state.step)
        grads, metrics, sampler = gradient(state.params, state.times, key, x0)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # A smaller decay at first: with a constant one the average would keep the first weights.
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        ema = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, state.ema_params, params)
        norm = optax.tree.norm(grads)
        metrics |= {"gradient_norm": norm, "learning_rate": learning_rate(state.step)}
        new = TrainState(state.step, params, opt_state, ema, sampler)
        new = experts.only_learners(new, state, grads)
        new, metrics["skipped"] = loop.apply_if_finite(new, state, metrics["loss"], norm)
        return new.replace(step=state.step + 1), metrics

    return train_step


def make_held_out(
    loss_fn, batch, batch_size: int, vocab: Vocab, mesh, base=None, over=adapters.over
):
    """`evaluate` for `loop.fit`: the bound of the averaged weights on held-out pairs, nats a token.

    batch: {name: int32[n, length]}, all of it in every process. It is processed in batches of equal
    size; rows from its beginning fill the last one. Tasks, times and noise are the same every time,
    so that bounds differ by the weights alone.
    """
    count = len(batch["text"])
    rows = np.resize(np.arange(count), -(-count // batch_size) * batch_size)
    x0 = sequence(vocab, {name: np.asarray(x)[rows] for name, x in batch.items()})
    x0 = jax.tree.map(lambda x: np.asarray(x).reshape(-1, batch_size, *x.shape[1:]), x0)
    parts = [jax.tree.map(lambda x, i=i: x[i], x0) for i in range(len(rows) // batch_size)]
    features = (r"\d+/1/\d+", P(sharding.DATA, None, None))
    parts = sharding.shard_tree(mesh, parts, (features, (".*", P(sharding.DATA, None))))

    @jax.jit
    def bound(state, number, x0, base):
        key = jax.random.fold_in(jax.random.key(0), number)
        times = jax.tree.map(jnp.zeros_like, state.times)  # p(t) of the first step, for all
        return over(loss_fn, base)(state.ema_params, times, key, x0)[1][0]["bound"]

    def evaluate(state, done):
        bounds = [bound(state, np.int32(i), part, base) for i, part in enumerate(parts)]
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
    terms=None,
    tensorboard=False,
    **options,
) -> dict:
    """Trains the diffusion in `workdir`, or continues, and returns the averaged weights.

    Checkpoints, metrics and at the end the file `weights` are written to `workdir`; the file
    `terms` as well if a term has parameters of its own.

    Args:
        config: the whole config.
        workdir: a folder or an address of a bucket.
        vocab: the vocabulary; pad_id: the local id of the text's padding.
        batch_at: step -> {name: int32[B, length]}, the share of this process, without what follows
            from the text (`modalities.complete`).
        start: initial parameters (`config.init_from`), with this network's names and shapes. With
            `train.adapters.rank` only low-rank adapters of them are trained (`adapters`).
        held_out: {name: int32[n, length]}, pairs whose bound is logged at each checkpoint; the best
            checkpoint is then kept as well.
        terms: {name: (weight, term)}, the caller's own loss terms (`terms`).
        tensorboard: whether to write event files.
        options: `ids_at` and `profile` of `loop.fit`.

    Raises:
        SystemExit, ValueError, OSError: see `loop.fit`.
    """
    workdir = files.folder(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    model, loss_at = objectives(config, vocab, pad_id, terms)
    terms = terms_of(config, vocab, pad_id, terms)
    tx, learning_rate = optimiser.make_optimiser(config)
    c, key = config.train, jax.random.key(config.seed)
    way = STARTS.get(c.get("loss"), adapters)
    base, start = way.begin(config, start, jax.random.fold_in(key, 2))
    if base is not None and (learned := loss_terms.learned(terms)):
        raise UserError(
            f"the terms {', '.join(learned)} learn, which goes with train.adapters.rank = 0 and "
            "train.loss = '' only: change one, or set their weights to 0"
        )
    # On the device before the training: it is an argument of every step.
    base = base and (jax.device_put(base) if mesh is None else sharding.shard_tree(mesh, base))
    key_start = jax.random.fold_in(key, 0)
    make = functools.partial(create_state, model, tx, key_start, start, c.fan_in, terms)
    state = sharding.create(mesh, make) if start is None else sharding.shard_tree(mesh, make())
    count, size = (
        sum(getattr(leaf, of) for leaf in jax.tree.leaves(tree))
        for of, tree in (("size", state.params), ("nbytes", state))
    )
    logbook.say(f"diffusion: {count:,} parameters, {size / 1e6:.1f} MB with averages and moments")
    # Explicit, because otherwise the compiler may change the sharding of the state in a step.
    places = sharding.shardings(mesh, state), None

    @functools.cache
    def compiled(loss_fn):
        def train_step(state, batch, key, base):
            loss_of = way.over(loss_fn, base)
            step = make_step(loss_of, tx, learning_rate, c.ema, vocab, c.accumulate)
            return step(state, batch, key)

        return jax.jit(train_step, donate_argnums=0, out_shardings=places)

    evaluate, complete = None, lambda ids: modalities.complete(config, vocab, ids, pad_id)
    if held_out is not None:
        last, held_out = loss_at(math.inf), complete(held_out)
        evaluate = make_held_out(last, held_out, c.batch_size, vocab, mesh, base, way.over)

    with sharding.use(mesh):
        state = loop.fit(
            lambda state, batch, step: compiled(loss_at(step))(
                state, batch, step_key(config), base
            ),
            state,
            steps=c.steps,
            batch_at=lambda step: sharding.shard_batch(mesh, complete(batch_at(step))),
            checkpoints=checkpoints.Checkpoints(
                workdir / "checkpoints", keep=c.keep, best="held_out_bound", say=logbook.say
            ),
            logbook=logbook.Logbook(workdir, tensorboard),
            description="diffusion",
            log_every=c.log_every,
            save_every=c.save_every,
            evaluate=evaluate,
            **options,
        )
        params = way.merge(base, state.ema_params)
    params, own = loss_terms.split(sharding.to_host(params))
    if jax.process_index() == 0:
        if own:
            trees.save_tree(workdir / loss_terms.OWN, own)
        trees.save_tree(workdir / "weights", params, {"step": int(state.step)})
    return params
