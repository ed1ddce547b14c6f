"""The training of the dual encoder: CLIP's loss on pairs of the token cache, clean and noisy.

A batch has two halves, which are not contrasted with each other, since they ask for different
things. Texts that are equal are not contrasted either.

The clean half, at time 0, teaches to rank. Two random captions seldom differ in one word only, so
that a loss on random pairs never teaches what a relation is. So it consists of groups: a pair, and
those of a pool whose captions have most words in common with its own (`near`), as in hard-negative
mining.

The noisy half teaches to steer. Its pairs are random, since among near captions nobody has to know
the words that all of them share: only with random pairs is the match about log p(text | image) /
p(text). The images are x_t at a uniform time. Half of them hold a mixture of the true token and of
those of other images where x_t is noise, instead of it: so the image tower also knows points
between tokens, like the predictions of a network in the middle of a chain. Half of the texts are
phrases, some neighbouring words of the caption, which is what people type.
"""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from udd_jax import build
from udd_jax.data import batches
from udd_jax.diffusion import transition
from udd_jax.errors import UserError
from udd_jax.networks import dual_encoder, matching
from udd_jax.runtime import checkpoints, files, logbook, sharding
from udd_jax.training import loop, optimiser

MIXED = 4  # other images in a mixture
POOL = 128  # rows that are read for each row of a batch, if some are sought


@flax.struct.dataclass
class State:
    """The state of the training, as stored in a checkpoint."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def noisy(kernel: transition.Kernel, key: jax.Array, x0: jax.Array, clean, padding: int):
    """The input of `DualEncoder` for pairs x0 int32[B, L]: (image, text, times, blend).

    clean: bool[B], the rows that stay as they are. padding: the local id of the text's.
    """
    vocab, batch = kernel.vocab, len(x0)
    image, text = vocab.index("image"), vocab.index("text")
    keys = jax.random.split(key, 5)
    late = ~clean[:, None]
    t = late * jax.random.randint(keys[0], (batch, 1), 1, kernel.steps + 1)
    times = t * (jnp.arange(len(vocab.modalities)) == image)[None]
    xt = transition.q_sample(kernel, keys[1], x0, times[:, vocab.modality_of])
    own, noise = vocab.split(x0), (xt != x0)[:, vocab.slices[image]]
    mixed = jax.random.bernoulli(keys[2], shape=(batch, 1))
    share = jax.random.uniform(keys[3], (batch, 1)) * (noise & mixed)
    others = jnp.stack([jnp.roll(own["image"], shift, axis=0) for shift in range(1, MIXED + 1)])
    codes = jnp.where(mixed, own["image"], vocab.split(xt)["image"])
    words = jnp.where(late, phrases(keys[4], own["text"], padding), own["text"])
    return codes, words, times[:, jnp.array([image, text])], (others, share)


def phrases(key: jax.Array, text: jax.Array, padding: int) -> jax.Array:
    """Half of the texts int32[B, M] as they are, and of the others some neighbouring tokens."""
    keys, places = jax.random.split(key, 3), jnp.arange(text.shape[1])[None]
    size = (text != padding).sum(axis=1, keepdims=True)
    length = 1 + (size * jax.random.uniform(keys[0], size.shape) ** 2).astype(int)  # mostly few
    room = jnp.maximum(size - length + 1, 1)
    first = (room * jax.random.uniform(keys[1], size.shape)).astype(int)
    moved = jnp.take_along_axis(text, (first + places) % text.shape[1], axis=1)
    whole = jax.random.bernoulli(keys[2], shape=size.shape)
    return jnp.where(whole, text, jnp.where(places < length, moved, padding))


def contrast(scale, images, texts, alike):
    """CLIP's loss of both parts of the match: (loss, metrics).

    alike: bool[B, B], pairs of rows that are not contrasted; of a row with itself it says nothing.
    """
    loss, metrics, right = 0.0, {}, jnp.arange(len(alike))
    other = alike & ~jnp.eye(len(alike), dtype=bool)
    for name, score in (("global", dual_encoder.whole), ("local", dual_encoder.local)):
        logits = scale * dual_encoder.pairs(score, images, texts)
        logits = jnp.where(other, -jnp.inf, logits)
        for table in (logits, logits.T):
            loss += optax.softmax_cross_entropy_with_integer_labels(table, right).mean() / 4
        metrics[f"{name}_right"] = (logits.argmax(axis=1) == right).mean()
    return loss, metrics | {"loss": loss, "scale": scale}


def make_step(model, kernel, tx):
    """The train step: (state, batch, key) -> (state, metrics).

    batch: {name: int32[B, length]}, and "clean" bool[B], the half of a row.
    """

    def loss_fn(params, x0, clean, key):
        image, text, times, blend = noisy(kernel, key, x0, clean, model.padding)
        images, texts, scale = model.apply({"params": params}, image, text, times, blend)
        equal = (text[:, None] == text[None]).all(-1)
        return contrast(scale, images, texts, equal | (clean[:, None] != clean[None]))

    def step(state: State, batch, key):
        x0 = kernel.vocab.fuse(batch)
        key = jax.random.fold_in(key, state.step)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, x0, batch["clean"], key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = State(state.step, optax.apply_updates(state.params, updates), opt_state)
        norm = optax.tree.norm(grads)
        new, metrics["skipped"] = loop.apply_if_finite(new, state, metrics["loss"], norm)
        return new.replace(step=state.step + 1), metrics

    return step


def near(pool: dict, count: int, group: int, padding: int) -> dict:
    """`count` rows of a pool {name: int32[n, length]}: groups of a row and the nearest to it.

    Near is who has most words in common, of all that the two have (Jaccard). Not sought are the
    same text, the same image, and a text that says a part of the other's words, since it may be
    true of both images. The first rows of the pool begin the groups.
    """
    if group == 1:
        return {name: ids[:count] for name, ids in pool.items()}
    text, image = pool["text"], pool["image"]
    first = np.arange(-(-count // group))
    rest = np.arange(len(first), len(text))
    known = np.setdiff1d(text[first], padding)  # the words of these rows, a column each
    column = np.full(text.max() + 1, len(known))
    column[known] = np.arange(len(known))
    words = np.zeros((len(text), len(known) + 1), np.float32)
    np.put_along_axis(words, column[text], 1, axis=1)
    common = words[first, :-1] @ words[rest, :-1].T
    ordered = np.sort(text, axis=1)
    new = np.diff(ordered, axis=1, prepend=-1) != 0
    size = (new & (ordered != padding)).sum(axis=1)
    one, two = size[first][:, None], size[rest][None]
    part = (common == np.minimum(one, two)) & (one != two)
    same = [(rows[first][:, None] == rows[rest][None]).all(-1) for rows in (text, image)]
    likeness = np.where(part | same[0] | same[1], -1, common / (one + two - common).clip(1))
    found = np.argsort(-likeness, axis=1, kind="stable")[:, : group - 1]
    rows = np.concatenate([first[:, None], rest[found]], axis=1).reshape(-1)[:count]
    return {name: ids[rows] for name, ids in pool.items()}


def wanted(config) -> bool:
    """Whether the config asks for a dual encoder. UserError without a token cache to train on."""
    asked = config.get("dual_encoder", {})
    if asked.get("steps") and not config.cache and not asked.file:
        raise UserError(
            f"dual_encoder.steps = {asked.steps} with cache = False: it is trained on the token "
            "cache, set --config.cache=True"
        )
    return bool(asked.get("steps") or asked.get("file"))


def check(config, vocab) -> None:
    """UserError, one line, for a dual encoder that cannot be made: as of `wanted`, or one to be
    trained whose regions do not divide the grid of the image."""
    if not wanted(config) or config.dual_encoder.file:
        return
    patch, grid = config.dual_encoder.get("patch", 1), vocab.modalities[vocab.index("image")].grid
    if any(side % patch for side in grid):
        raise UserError(
            f"dual_encoder.patch = {patch}, but an image has {grid[0]} x {grid[1]} codes: expected "
            "a divisor of both, set --config.dual_encoder.patch="
        )


def make(config, workdir, cache, tokenizers: dict) -> matching.Matcher:
    """The dual encoder of a run: loaded, copied from `dual_encoder.file`, or trained.

    UserError if the file knows the tokens of other tokenizers.
    """
    path = workdir / matching.FILE
    hashes = matching.hashes(tokenizers)
    if path.exists():
        return matching.load(path, hashes)
    if config.dual_encoder.file:
        matcher = matching.load(config.dual_encoder.file, hashes)
        if jax.process_index() == 0:
            matching.save(path, matcher, {"file": config.dual_encoder.file})
        return matcher
    vocab = build.make_vocab(config, tokenizers)
    kernel = transition.make_kernel(vocab, build.make_schedules(config, vocab))
    return train(config, path.parent, kernel, tokenizers["text"].pad_id, cache, hashes)


def train(config, directory, kernel, pad_id: int, cache, hashes: dict) -> matching.Matcher:
    """Trains a dual encoder in `directory`, or continues, and returns it.

    Args:
        config: the whole config; `dual_encoder`, `seed` and `mesh` are read.
        directory: gets `checkpoints/`, `metrics.jsonl` and the file `encoder`.
        kernel: the noise, and the vocabulary; pad_id: the local id of the text's padding.
        cache: a `token_cache.TokenCache`.
        hashes: {modality: of its tokenizer}.

    Errors as in `loop.fit`.
    """
    c, directory = config.dual_encoder, files.folder(directory)
    sizes = {name: c[name] for name in ("width", "layers", "heads")} | {"patch": c.get("patch", 1)}
    model = dual_encoder.DualEncoder(kernel.vocab, kernel.steps, pad_id, **sizes)
    rate = optax.warmup_cosine_decay_schedule(
        0, c.learning_rate, c.warmup, max(c.warmup + 1, c.steps)
    )
    update = optimiser.muon(rate, _matrices, b2=0.98, weight_decay=0.02)
    tx = optax.chain(optax.clip_by_global_norm(1.0), update)
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    params = jax.jit(functools.partial(dual_encoder.init, model))(jax.random.fold_in(key, 0))
    mesh = sharding.make_mesh(**config.mesh)
    share, group = sharding.process_share(mesh), c.get("group", 1)
    step_fn = jax.jit(make_step(model, kernel, tx), donate_argnums=0)

    def batch_at(step):
        pool = batches.make(
            cache, config.seed, step, c.batch_size * (POOL if group > 1 else 1), *share
        )
        count = c.batch_size // share[1]
        half, rest = near(pool, count // 2, group, pad_id), count - count // 2
        batch = {name: np.concatenate([ids, pool[name][-rest:]]) for name, ids in half.items()}
        batch["clean"] = np.arange(count) < count // 2
        return sharding.shard_batch(mesh, batch)

    with sharding.use(mesh):
        state = State(jnp.zeros((), jnp.int32), params, tx.init(params))
        state = loop.fit(
            lambda state, batch, step: step_fn(state, batch, jax.random.fold_in(key, 1)),
            sharding.shard_tree(mesh, state, sharding.REPLICATED),
            steps=c.steps,
            batch_at=batch_at,
            checkpoints=checkpoints.Checkpoints(directory / "checkpoints", keep=1, say=logbook.say),
            logbook=logbook.Logbook(directory),
            description="dual encoder",
            log_every=c.log_every,
            save_every=c.save_every,
        )
    matcher = matching.Matcher(model, sharding.to_host(state.params), hashes)
    if jax.process_index() == 0:
        matching.save(directory / "encoder", matcher, {"step": c.steps})
    return matcher


def _matrices(params):
    """Marks the matrices of the blocks for Muon; None for everything else."""
    numbers = optax.contrib.MuonDimensionNumbers(reduction_axis=0, output_axis=1)

    def mark(path, p):
        block = any(str(key.key).startswith(("attention", "mlp")) for key in path)
        return numbers if block and path[-1].key == "kernel" and p.ndim == 2 else None

    return jax.tree.map_with_path(mark, params)
