"""The training of the dual encoder: CLIP's loss on pairs of the token cache, with noise.

Half of the images and half of the texts of a batch are clean. The others are x_t at a uniform time.
Half of the noisy images hold a mixture of the true token and of those of other images where x_t is
noise, instead of it. So the image tower also knows points between tokens, like the predictions of a
network in the middle of a chain. Both parts of the match are trained with the same temperature, and
texts that are equal are not contrasted with each other.

Two random captions of a batch seldom differ in one word only, so that a loss on random pairs hardly
teaches what a relation is. A share of each batch is therefore sought: for that many rows the pair
of a pool whose caption has most words in common (`near`), as in hard-negative mining.
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
from udd_jax.training import loop

MIXED = 4  # other images in a mixture
POOL = 32  # rows that are read for each row of a batch, if some are sought


@flax.struct.dataclass
class State:
    """The state of the training, as stored in a checkpoint."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def noisy(kernel: transition.Kernel, key: jax.Array, x0: jax.Array):
    """The input of `DualEncoder` for pairs x0 int32[B, L]: (image, text, times, blend)."""
    vocab = kernel.vocab
    image, text = vocab.index("image"), vocab.index("text")
    keys, batch = jax.random.split(key, 5), len(x0)
    t = jax.random.randint(keys[0], (batch, len(vocab.modalities)), 1, kernel.steps + 1)
    t = jnp.where(jax.random.bernoulli(keys[1], shape=t.shape), t, 0)
    xt = transition.q_sample(kernel, keys[2], x0, t[:, vocab.modality_of])
    local, noise = vocab.split(xt), (xt != x0)[:, vocab.slices[image]]
    clean = vocab.split(x0)["image"]
    mixed = jax.random.bernoulli(keys[3], shape=(batch, 1))
    share = jax.random.uniform(keys[4], (batch, 1)) * (noise & mixed)
    others = jnp.stack([jnp.roll(clean, shift, axis=0) for shift in range(1, MIXED + 1)])
    codes = jnp.where(mixed, clean, local["image"])
    return codes, local["text"], t[:, jnp.array([image, text])], (others, share)


def contrast(scale, images, texts, equal):
    """CLIP's loss of both parts of the match: (loss, metrics). equal: bool[B, B], equal texts."""
    loss, metrics, right = 0.0, {}, jnp.arange(len(equal))
    other = equal & ~jnp.eye(len(equal), dtype=bool)
    for name, score in (("global", dual_encoder.whole), ("local", dual_encoder.local)):
        logits = scale * dual_encoder.pairs(score, images, texts)
        logits = jnp.where(other, -jnp.inf, logits)
        for table in (logits, logits.T):
            loss += optax.softmax_cross_entropy_with_integer_labels(table, right).mean() / 4
        metrics[f"{name}_right"] = (logits.argmax(axis=1) == right).mean()
    return loss, metrics | {"loss": loss, "scale": scale}


def make_step(model, kernel, tx):
    """The train step: (state, batch {name: int32[B, length]}, key) -> (state, metrics)."""

    def loss_fn(params, x0, key):
        found = model.apply({"params": params}, *noisy(kernel, key, x0))
        text = kernel.vocab.split(x0)["text"]
        return contrast(found[2], *found[:2], (text[:, None] == text[None]).all(-1))

    def step(state: State, batch, key):
        x0 = kernel.vocab.fuse(batch)
        key = jax.random.fold_in(key, state.step)
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, x0, key)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        new = State(state.step, optax.apply_updates(state.params, updates), opt_state)
        norm = optax.tree.norm(grads)
        new, metrics["skipped"] = loop.apply_if_finite(new, state, metrics["loss"], norm)
        return new.replace(step=state.step + 1), metrics

    return step


def near(pool: dict, count: int, hard: float, padding: int) -> dict:
    """`count` rows of a pool {name: int32[n, length]}: the first, and the nearest of some of these.

    hard: the share of near ones, at most a half. Near is who has most words in common, of all that
    they have (Jaccard). Not sought are the same text, the same image, and a text that says a part
    of the other's words, since it may be true of both images.
    """
    sought = int(hard * count)
    if not sought:
        return {name: ids[:count] for name, ids in pool.items()}
    text, image = pool["text"], pool["image"]
    words = np.zeros((len(text), int(text.max()) + 1), np.float32)
    np.put_along_axis(words, text, 1, axis=1)
    words = words[:, words.any(0) & (np.arange(words.shape[1]) != padding)]
    first, rest = np.arange(sought), np.arange(count - sought, len(text))
    common, size = words[first] @ words[rest].T, words.sum(1)
    one, two = size[first][:, None], size[rest][None]
    part = (common == np.minimum(one, two)) & (one != two)
    same = [(rows[first][:, None] == rows[rest][None]).all(-1) for rows in (text, image)]
    likeness = np.where(part | same[0] | same[1], -1, common / (one + two - common))
    rows = np.concatenate([np.arange(count - sought), rest[likeness.argmax(axis=1)]])
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


def make(config, workdir, cache, tokenizers: dict) -> matching.Matcher:
    """The dual encoder of a run: loaded, copied from `dual_encoder.file`, or trained.

    UserError if the file knows the tokens of other tokenizers.
    """
    path = workdir / matching.FILE
    hashes = {name: tokenizer.hash for name, tokenizer in tokenizers.items()}
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
    model = dual_encoder.DualEncoder(kernel.vocab, kernel.steps, pad_id, c.width, c.layers, c.heads)
    rate = optax.warmup_cosine_decay_schedule(0, c.learning_rate, c.warmup, c.steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.98, weight_decay=0.02))
    key = jax.random.fold_in(jax.random.key(config.seed), 3)
    params = jax.jit(functools.partial(dual_encoder.init, model))(jax.random.fold_in(key, 0))
    mesh = sharding.make_mesh(**config.mesh)
    share, hard = sharding.process_share(mesh), c.get("hard", 0.0)
    step_fn = jax.jit(make_step(model, kernel, tx), donate_argnums=0)

    def batch_at(step):
        pool = batches.make(cache, config.seed, step, c.batch_size * (POOL if hard else 1), *share)
        return sharding.shard_batch(mesh, near(pool, c.batch_size // share[1], hard, pad_id))

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
