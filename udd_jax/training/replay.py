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

from udd_jax import build, modalities
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
    with bucket.near(workdir) as here:
        with bucket.on_disk(workdir, here, build.CONFIG):
            config = build.read_config(here)
        with bucket.on_disk(workdir, here, *modalities.tokenizer_files(config)):
            tokenizers = build.load_tokenizers(here, config)
    vocab, text = build.make_vocab(config, tokenizers), tokenizers["text"]
    mesh = sharding.make_mesh(**config.mesh)
    terms = end_to_end.from_config(config, vocab, tokenizers["image"])
    model, loss_at = train_diffusion.objectives(config, vocab, text.pad_id, terms)
    terms = train_diffusion.terms_of(config, vocab, text.pad_id, terms)
    tx, _ = optimiser.make_optimiser(config)
    way = train_diffusion.STARTS.get(config.train.get("loss"), adapters)
    needs = adapters.rank_of(config) or start.distilled(config)
    found = start.weights(config, vocab) if needs else None
    base, first = way.begin(config, found, jax.random.key(0))
    state = jax.eval_shape(
        lambda: train_diffusion.create_state(model, tx, jax.random.key(0), first, terms=terms)
    )
    size = config.train.batch_size
    lengths = {m.name: m.length for m in vocab.modalities}
    if vocab.coarse:  # the ids of a picture are those of both levels
        lengths[vocab.coarse.level_of] += lengths.pop(vocab.coarse.name)
    batch = {name: jax.ShapeDtypeStruct((size, n), jnp.int32) for name, n in lengths.items()}
    table = ROWS
    for m in (m for m in vocab.modalities if m.inputs):
        batch[m.name] = jax.ShapeDtypeStruct((size, m.length, m.inputs), jnp.float32)
        table = ((m.name, P(sharding.DATA, None, None)), *table)
    example = {
        "state": sharding.place(state, sharding.shardings(mesh, state)),
        "batch": sharding.place(batch, sharding.shardings(mesh, batch, table)),
    }
    found = checkpoints.Checkpoints(workdir / "replay").restore(example)
    if found is None:
        raise UserError(f"{workdir}/replay does not exist: no training has given up here")
    kept, about = found
    key = jax.random.fold_in(train_diffusion.step_key(config), about["step"])
    loss_fn = way.over(loss_at(about["step"]), base)
    gradient = jax.jit(train_diffusion.make_gradient(loss_fn, config.train.accumulate))
    with sharding.use(mesh):
        fuse = jax.jit(lambda batch: train_diffusion.sequence(vocab, batch))
        state, x0 = kept["state"], fuse(kept["batch"])
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
