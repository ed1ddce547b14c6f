"""Training of the image tokenizer: the state, one step, and the function `train`.

    loss = |x - y|^p + w_p perceptual(x, y) + quantiser loss + w_g lambda adversarial(y)

y is the image decoded from the codes of x. lambda = |grad of the first two| / |grad of the
adversarial term|, both at the decoder's last layer, balances the two (taming). The training has
three parts:

1. `plain_steps` steps as an autoencoder without a codebook.
2. Then k-means on the encoder's vectors gives the codebook, and training continues with it: rows
   follow the vectors that choose them, and unused rows are restarted during the first part.
3. At the end the tokenizer keeps the codes that the images use. `merge` joins codes that differ
   only by noise: their distance is below `merge` times the root mean square distance of a vector
   from its code. Then a clean patch has one code, and a model of the codes has less to learn.
   `merge` is halved until the joined codes cost at most `merge_cost` dB and at least two are left.
   Then the tokenizer must be `above_flat` dB better than cells of one colour each.

A picture of two levels (a modality of kind "coarse") has a network and a codebook for both, trained
together (`tokenizers/pyramid.py`, `codebooks.py`). All else is the same.

A step is a pure function of (state, images, key), and its images of (seed, step).
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from udd_jax import modalities
from udd_jax.data import survey
from udd_jax.errors import UserError
from udd_jax.runtime import checkpoints, files, logbook, sharding
from udd_jax.tokenizers import codebook, image_tokenizer, pyramid, vqgan
from udd_jax.training import codebooks, finish, loop
from udd_jax.training import pictures as pictures_of

FILE = "tokenizer"
POOL_IMAGES = 1024  # for k-means and for counting codes


@flax.struct.dataclass
class TrainState:
    """The state of the tokenizer's training; `judge`: the discriminator's parameters, or {}."""

    step: jax.Array  # int32[]
    params: Any
    opt_state: Any
    averages: Any  # codebook.Averages, or one for each codebook
    judge: Any
    judge_opt_state: Any


def make_model(config) -> vqgan.VQGAN:
    """`config.vq.model` -> the network, for images of `image_size` and `image_channels`."""
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in config.vq.model.items()}
    options["channels"] = modalities.image_channels(config)
    coarse = modalities.coarse(config)
    network = pyramid.Pyramid if coarse else vqgan.VQGAN
    return network(resolution=modalities.image_size(config), **options, **coarse)


def make_discriminator(config) -> vqgan.Discriminator | None:
    """The discriminator, or None if its weight `config.vq.adversarial.weight` is 0."""
    c = config.vq.adversarial
    return vqgan.Discriminator(c.channels, c.layers) if c.weight else None


def make_optimisers(config):
    """Adam with clipping, warm-up and cosine decay to 0; Adam with a constant learning rate."""
    c = config.vq
    learning_rate = optax.warmup_cosine_decay_schedule(
        0.0, c.learning_rate, c.warmup, max(c.warmup + 1, c.steps)
    )
    adam = functools.partial(optax.adam, b1=c.beta1, b2=c.beta2)
    tx = optax.chain(optax.clip_by_global_norm(c.clip), adam(learning_rate))
    return tx, adam(c.adversarial.learning_rate)


def create_state(config, model, params) -> TrainState:
    """The state before the first step, with the given parameters of the network."""
    (tx, discriminator_tx), discriminator = make_optimisers(config), make_discriminator(config)
    key = jax.random.fold_in(jax.random.key(config.seed), 2)
    judge = jax.jit(discriminator.init)(key, _blank(model))["params"] if discriminator else {}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        averages=codebooks.begin(model, params, config.vq.batch_size),
        judge=judge,
        judge_opt_state=discriminator_tx.init(judge),
    )


def make_step(config, model, discriminator, tx, discriminator_tx, perceptual=None, frozen=()):
    """The train step: (state, images uint8[B, S, S, C], key, weights) -> (state, metrics).

    perceptual: (weights, x, y: float[B, S, S, 3]) -> float[B], of the pictures as they look over
    white; `weights` of the step are passed to it. frozen: the parts of the network ("encoder",
    "quantize", ...) that are not trained.
    """
    c = config.vq
    power = {"l1": 1, "l2": 2}[c.loss]

    def reconstruction_loss(x, y, weights):
        loss = jnp.mean(jnp.abs(x - y) ** power)
        if perceptual is not None:
            x, y = image_tokenizer.as_rgb(x), image_tokenizer.as_rgb(y)
            loss += c.perceptual * perceptual(weights, x, y).mean()
        return loss

    def generator_loss(judge, y):
        return -discriminator.apply({"params": judge}, y).mean()

    def judged(state, x, y):
        """A step of the discriminator: its parameters, moments, loss and gradient norm."""
        loss, grads = jax.value_and_grad(hinge_loss)(state.judge, discriminator, x, y)
        on = state.step >= c.adversarial.start
        grads = jax.tree.map(lambda g: jnp.where(on, g, 0), grads)
        updates, opt_state = discriminator_tx.update(grads, state.judge_opt_state)
        return optax.apply_updates(state.judge, updates), opt_state, loss, optax.tree.norm(grads)

    def train_step(state: TrainState, images, key, weights=None):
        x, step = image_tokenizer.to_unit(images), state.step
        key_gumbel, key_restart = jax.random.split(jax.random.fold_in(key, step))
        hot, cold = c.temperature
        temperature = cold + (hot - cold) * 0.5 * (1 + jnp.cos(jnp.pi * step / c.steps))
        plain = step < c.plain_steps

        def forward(params):
            params = params | {name: jax.lax.stop_gradient(params[name]) for name in frozen}
            return model.apply({"params": params}, x, key_gumbel, temperature, plain)

        def loss_fn(params):
            out = forward(params)
            loss = reconstruction_loss(x, out.images, weights) + c.commitment * out.loss
            if discriminator is not None:

                def last_terms(kernel):
                    y = forward(with_last(params, kernel)).images
                    return reconstruction_loss(x, y, weights), generator_loss(state.judge, y)

                share = jnp.where(step < c.adversarial.start, 0.0, c.adversarial.weight)
                share *= adaptive_weight(last_terms, params["decoder"]["conv_out"]["kernel"])
                loss += share * generator_loss(state.judge, out.images)
            return loss, out

        (loss, out), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": loss,
            "psnr": 10 * jnp.log10(4 / jnp.mean((jnp.clip(out.images, -1, 1) - x) ** 2)),
            "quantiser_loss": out.loss,
            "perplexity": codebook.perplexity(codebooks.each(model, out.codes)[-1], model.n_embed),
        }
        averages = state.averages
        if model.quantiser != "gumbel" and "quantize" not in frozen:
            now = ~plain & (step < c.restart.until * c.steps)
            averages, params, metrics["restarted"] = codebooks.follow(
                c, model, averages, params, out, key_restart, now
            )

        norm = optax.tree.norm(grads)
        judge, judge_opt_state, finite = state.judge, state.judge_opt_state, [loss, norm]
        if discriminator is not None:
            judge, judge_opt_state, *losses = judged(state, x, out.images)
            metrics["judge_loss"], finite = losses[0], finite + losses
        new = TrainState(step, params, opt_state, averages, judge, judge_opt_state)
        new, metrics["skipped"] = loop.apply_if_finite(new, state, *finite)
        return new.replace(step=step + 1), metrics | {"gradient_norm": norm}

    return train_step


def with_last(params, kernel):
    """The parameters with `kernel` in the decoder's last layer."""
    last = params["decoder"]["conv_out"] | {"kernel": kernel}
    return params | {"decoder": params["decoder"] | {"conv_out": last}}


def adaptive_weight(terms, kernel):
    """|grad a| / |grad b| of `terms(kernel) -> (a, b)`, at most 1e4; no gradient flows through."""
    _, pull = jax.vjp(terms, kernel)
    a, b = (jnp.linalg.norm(pull(pair)[0]) for pair in ((1.0, 0.0), (0.0, 1.0)))
    return jax.lax.stop_gradient(jnp.minimum(a / (b + 1e-4), 1e4))


def hinge_loss(judge, discriminator, real, fake):
    """The loss of the discriminator: the mean of (max(0, 1 - D(x)) + max(0, 1 + D(y))) / 2."""
    real, fake = (discriminator.apply({"params": judge}, x) for x in (real, fake))
    return (jax.nn.relu(1 - real).mean() + jax.nn.relu(1 + fake).mean()) / 2


def start_codebook(model, state: TrainState, images, batch_size: int, key) -> TrainState:
    """The state with codebooks: k-means on the encoder's vectors of images uint8[n, S, S, C]."""
    params = jax.device_get(state.params)
    params, averages = codebooks.found(model, params, images, batch_size, key)
    return state.replace(params=params, averages=averages)


def train(
    config,
    directory,
    source,
    held_out=None,
    perceptual=None,
    tensorboard=False,
    show=None,
    what="image",
) -> image_tokenizer.ImageTokenizer:
    """Trains an image tokenizer in `directory`, or continues, and returns it.

    Args:
        config: the whole config; `vq`, `image_size`, `image_channels`, `seed`, `workers` and `mesh`
            are read.
        directory: gets `checkpoints/`, `metrics.jsonl` and the file `tokenizer`, which has the
            scores in its metadata.
        source: images to train on; if none of its records has one, nothing is trained.
        held_out: images for the scores, by default those of `source`.
        perceptual: (function, weights) as in `make_step`, for `vq.perceptual` > 0.
        tensorboard: whether to write event files.
        show: (source, at most so many records) -> uint8[n, height, width, channels], the pictures
            of another modality, such as spectrograms; by default the images of the records.
        what: the modality, for the log.

    Errors as in `loop.fit`.
    """
    if show is None and not survey.pictured(source):
        return _untrained(config, directory, source)
    show = _shown(show)
    c, model, pictures = config.vq, make_model(config), show(source, config)
    key_params, key_codebook = jax.random.split(jax.random.key(config.seed))
    params = jax.jit(model.init)(key_params, _blank(model), key_params)["params"]
    state = create_state(config, model, params)

    def before(state, step):
        if step != c.plain_steps:
            return state
        images = pictures.sample(POOL_IMAGES)
        return start_codebook(model, state, images, c.batch_size, key_codebook)

    options = {"before": before, "tensorboard": tensorboard, "what": what}
    state = _fit(config, directory, model, state, pictures, perceptual, **options)
    params, images = jax.device_get(state.params), pictures.sample(POOL_IMAGES)
    most_cost = c.get("merge_cost")
    if most_cost is None:
        most_cost = finish.MERGE_COST if own(source) else np.inf
    tokenizer = finish.used(model, params, images, c.merge, key_codebook, most_cost)
    scored = held_out or source
    return _publish(config, directory, tokenizer, show(scored, config), own(scored), what)


def _untrained(config, directory, source) -> image_tokenizer.ImageTokenizer:
    """The tokenizer of a run without pictures: its weights are those of the first step."""
    logbook.say(f"image tokenizer: no record of {source.name} has a picture, so it is not trained")
    model = make_model(config)
    params = jax.jit(model.init)(jax.random.key(config.seed), _blank(model))["params"]
    tokenizer = image_tokenizer.ImageTokenizer(model, jax.device_get(params))
    if jax.process_index() == 0:
        image_tokenizer.save(files.folder(directory) / FILE, tokenizer, {"step": 0})
    return tokenizer


def _shown(show):
    if show is None:
        return pictures_of.Pictures

    def pictures(source, config):
        return pictures_of.Stacked(show(source, config.vq.pictures or len(source)), config)

    return pictures


def rebuild(
    config, directory, tokenizer, source, held_out=None, perceptual=None
) -> image_tokenizer.ImageTokenizer:
    """A new codebook for a trained tokenizer that uses few of its codes.

    ReFiT (VQ-DDM, arXiv 2112.01799): k-means++ on the encoder's vectors on `source` finds
    `vq.rebuild.codes` centres. They become the codebook. Then the decoder is fine-tuned; the
    encoder and the codebook stay frozen. Arguments as in `train`; `directory` must be a new folder.
    ValueError for a Gumbel tokenizer, which chooses codes by logits and not by the nearest row.
    """
    c = config.vq.rebuild
    if tokenizer.module.quantiser == "gumbel":
        raise UserError("rebuild: a gumbel tokenizer has no nearest rows, expected ema")
    config = config.copy_and_resolve_references()
    config.vq.update({"steps": c.steps, "learning_rate": c.learning_rate, "plain_steps": 0})
    config.vq.warmup = min(config.vq.warmup, c.steps // 2)
    pictures, key = pictures_of.Pictures(source, config), jax.random.key(config.seed)
    model = tokenizer.module.clone(n_embed=c.codes)
    images = pictures.sample(finish.POOL_VECTORS)
    vectors = finish.pool_vectors(model, tokenizer.params, images, key)
    rows, distance = codebook.kmeans(key, vectors, c.codes)
    params = vqgan.with_rows(tokenizer.params, rows, distance / model.embed_dim)
    state = create_state(config, model, params)
    frozen = ("encoder", "quant_conv", "quantize")
    state = _fit(config, directory, model, state, pictures, perceptual, frozen=frozen)
    tokenizer = image_tokenizer.ImageTokenizer(model, jax.device_get(state.params))
    shown = pictures_of.Pictures(held_out or source, config)
    return _publish(config, directory, tokenizer, shown, own(held_out or source))


def _fit(
    config,
    directory,
    model,
    state,
    pictures,
    perceptual,
    before=None,
    frozen=(),
    what="image",
    **log,
):
    """Runs `config.vq.steps` steps from `state`; `before(state, step)` may replace it."""
    c, directory = config.vq, files.folder(directory)
    mesh = sharding.make_mesh(**config.mesh)
    share = sharding.process_share(mesh)
    function, weights = perceptual or (None, None)
    parts = make_discriminator(config), *make_optimisers(config), function, frozen
    step_fn = jax.jit(make_step(config, model, *parts), donate_argnums=0)
    key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def one(state, images, step):
        changed = before(state, step) if before else state
        if changed is not state:
            state = sharding.shard_tree(mesh, changed, sharding.REPLICATED)
        return step_fn(state, images, key, weights)

    def batch_at(step):
        return sharding.shard_batch(mesh, pictures.at(step, c.batch_size, share))

    with sharding.use(mesh):
        return loop.fit(
            one,
            sharding.shard_tree(mesh, state, sharding.REPLICATED),
            steps=c.steps,
            batch_at=batch_at,
            checkpoints=checkpoints.Checkpoints(
                directory / "checkpoints", keep=c.keep, say=logbook.say
            ),
            logbook=logbook.Logbook(directory, **log),
            description=f"{what} tokenizer",
            log_every=c.log_every,
            save_every=c.save_every,
        )


def own(source) -> bool:
    """False for an embedded world, whose tokenizer is judged by reading its pictures back."""
    return not hasattr(source, "world")


def _publish(config, directory, tokenizer, pictures, stored: bool, what="image"):
    """Scores the tokenizer on pictures, writes it with its scores, and returns it.

    ValueError if, with stored data, its pictures are hardly better than cells of one colour each.
    """
    images = pictures.sample(POOL_IMAGES)
    scores = finish.score(tokenizer, images)
    logbook.say(
        f"{what} tokenizer: PSNR {scores['psnr']:.2f} dB, {scores['above_flat']:.1f} dB above one "
        f"colour a cell, {scores['codes']} codes, {scores['usage']:.0%} of them used, perplexity "
        f"{scores['perplexity']:.1f}"
    )
    if stored:
        finish.check_worth(scores, config.vq.get("above_flat", 0.0))
    if jax.process_index() == 0:
        about = {"step": config.vq.steps, **scores}
        image_tokenizer.save(files.folder(directory) / FILE, tokenizer, about)
    return tokenizer


def tell_worth(config, tokenizer, source, field: str, show=None, what="image") -> None:
    """Prints a line if a finished tokenizer, which the user has named, shows a source badly.

    The user's choice stays: the line names `field`, the flag with which it was named, and the
    training that would be better. source: held-out records; show, what: as of `train`.
    """
    above = config.vq.get("above_flat", 0.0)
    if not above or not own(source) or (show is None and not survey.pictured(source)):
        return
    images = _shown(show)(source, config).sample(POOL_IMAGES)
    found = finish.worth(tokenizer.decode(tokenizer.encode(images)), images, tokenizer.grid)
    if finish.poor(found, above):
        logbook.say(
            f"warning: the {what} tokenizer of {field} shows {source.name} only "
            f"{found['above_flat']:.2f} dB better than one colour a cell, expected at least "
            f"{above:g}: the pictures of this run can be no better; leave it out to train one"
        )


def _blank(model):
    return jnp.zeros((1, *model.size, model.channels))
