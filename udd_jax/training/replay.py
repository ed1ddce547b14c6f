"""Replays the step at which a training gave up, and finds the arrays that are not finite.

`loop.fit` saves the state before the step and its batch in `WORKDIR/replay`. Replaying computes the
same loss with the same noise again, on the mesh of the run. It changes nothing.

    python -m udd_jax.main --mode=replay --workdir=runs/t2i
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from udd_jax import build
from udd_jax.errors import UserError
from udd_jax.runtime import bucket, checkpoints, files, sharding, trees
from udd_jax.training import adapters, end_to_end, optimiser, start, train_diffusion

ROWS = ((".*", P(sharding.DATA, None)),)


class Step(NamedTuple):
    """The results of the replayed step."""

    step: int
    ids: list | None  # ids of the samples, if the data has them
    state: train_diffusion.TrainState  # before the step
    metrics: dict  # name -> float
    gradient: Any


def run(workdir) -> Step:
    """Computes the step again. ValueError: no training has given up in this folder."""
    workdir = files.folder(workdir)
    names = build.CONFIG, build.TEXT, build.IMAGE
    with bucket.near(workdir) as here, bucket.on_disk(workdir, here, *names):
        config = build.read_config(here)
        tokenizers = build.load_tokenizers(here)
    vocab, text = build.make_vocab(config, tokenizers), tokenizers["text"]
    mesh = sharding.make_mesh(**config.mesh)
    terms = end_to_end.from_config(config, vocab, tokenizers["image"])
    model, loss_fn = train_diffusion.make_objective(config, vocab, text.pad_id, terms)
    terms = train_diffusion.terms_of(config, vocab, text.pad_id, terms)
    tx, _ = optimiser.make_optimiser(config)
    base = start.weights(config, vocab) if adapters.rank_of(config) else None

    def first_state():
        low = base and adapters.create(base, adapters.rank_of(config), jax.random.key(0))
        return train_diffusion.create_state(model, tx, jax.random.key(0), low, terms=terms)

    state = jax.eval_shape(first_state)
    size = config.train.batch_size
    batch = {m.name: jax.ShapeDtypeStruct((size, m.length), jnp.int32) for m in vocab.modalities}
    example = {
        "state": sharding.place(state, sharding.shardings(mesh, state)),
        "batch": sharding.place(batch, sharding.shardings(mesh, batch, ROWS)),
    }
    found = checkpoints.Checkpoints(workdir / "replay").restore(example)
    if found is None:
        raise UserError(f"{workdir}/replay does not exist: no training has given up here")
    kept, about = found
    key = jax.random.fold_in(train_diffusion.step_key(config), about["step"])
    if about["step"] < train_diffusion.prefix_steps(config):
        _, loss_fn = train_diffusion.make_prefix_objective(config, vocab, text.pad_id)
    loss_fn = adapters.over(loss_fn, base)
    gradient = jax.jit(train_diffusion.make_gradient(loss_fn, config.train.accumulate))
    with sharding.use(mesh):
        state, x0 = kept["state"], jax.jit(vocab.fuse)(kept["batch"])
        grads, metrics, _ = gradient(state.params, state.times, key, x0)
        norm = jax.jit(optax.tree.norm)(grads)
    metrics = {"loss": metrics["loss"], "gradient_norm": norm} | metrics
    metrics = {name: float(value) for name, value in metrics.items()}
    return Step(about["step"], about["ids"], state, metrics, grads)


def describe(replayed: Step) -> str:
    """The report as text: the metrics of the step, and every array that is not finite."""
    lines = [f"step {replayed.step}" + (f" of the samples {replayed.ids}" if replayed.ids else "")]
    lines.append(", ".join(f"{name} {value:.4g}" for name, value in replayed.metrics.items()))
    for what, tree in (("state", replayed.state), ("gradient", replayed.gradient)):
        bad = not_finite(tree)
        lines += [f"not finite in the {what}: {n} of {of} in {name}" for name, n, of in bad]
        if not bad:
            lines.append(f"the {what} is finite")
    return "\n".join(lines)


def not_finite(tree) -> list[tuple[str, int, int]]:
    """(name, count of numbers that are not finite, size) for each array that has such numbers."""
    arrays = {
        name: leaf
        for name, leaf in trees.flatten(tree).items()
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    }
    counts = jax.jit(lambda arrays: jax.tree.map(lambda a: (~jnp.isfinite(a)).sum(), arrays))
    found = jax.device_get(counts(arrays))
    return [(name, int(n), arrays[name].size) for name, n in found.items() if n]
