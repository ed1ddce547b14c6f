"""What is learned: tokenizers, networks, training."""

from tests.mutants.mutant import of

CODEBOOK = "tests/tokenizers/test_codebook_edges.py tests/tokenizers/test_codebook.py"
LOOP = "tests/training/test_loop_finite_steps.py"

MUTANTS = (
    # ---- Codebook -------------------------------------------------------------------------------
    *of(
        "tokenizers",
        CODEBOOK,
        ("codebook: half the cross term", "- 2 * cross +", "- cross +"),
        ("codebook: factor, not its square", "factor**2 * errors.mean()", "factor * errors.mean()"),
        (
            "codebook: a distance against a square",
            "apart.min() >= closer_than**2",
            "apart.min() >= closer_than",
        ),
        (
            "codebook: perplexity in bits",
            "return jnp.exp(-jnp.sum(jax.scipy",
            "return jnp.exp2(-jnp.sum(jax.scipy",
        ),
        (
            "codebook: sums keep the old rows",
            "sums = jnp.where(found[:, None], vectors * mean, state.sums)",
            "sums = state.sums",
        ),
        (
            "codebook: the average of sums forgets nothing",
            "sums = decay * state.sums + (1 - decay) * sums",
            "sums = state.sums + (1 - decay) * sums",
        ),
    ),
    # ---- Training -------------------------------------------------------------------------------
    *of(
        "training",
        LOOP,
        (
            "loop: one finite value is enough",
            "for value in values]).all()",
            "for value in values]).any()",
        ),
        ("loop: bad steps need not be in a row", "(row + 1) * bad", "row + bad"),
    ),
    *of(
        "training",
        "tests/training/test_prefix_steps.py -k share",
        ("prefixes: in no later step", "number * math.sqrt(2) % 1 < kept", "number * 0 > kept"),
        (
            "prefixes: not in the first steps",
            "return part, step < first or number",
            "return part, number",
        ),
    ),
    *of(
        "training",
        "tests/training/test_prefix_steps.py -k finished",
        (
            "prefixes: all of a short training",
            'min(config.train.get("prefix_steps", 0), 2 * config.train.steps // 3)',
            'config.train.get("prefix_steps", 0)',
        ),
    ),
    *of(
        "training",
        "tests/training/test_distillation.py -k taught",
        (
            "student: of a teacher without guidance",
            "if any(s != 1 for s in strengths):",
            "if False:",
        ),
    ),
    *of(
        "training",
        "tests/training/test_distillation.py -k weighted_sum",
        ("student: all modalities guided alike", "strengths)[None])", "strengths)[None, :1])"),
    ),
    *of(
        "training",
        "tests/training/test_prefix_steps.py -k alike",
        (
            "prefixes: a small weight",
            "* config.diffusion.steps if prefix_share",
            "* 0 if prefix_share",
        ),
    ),
    *of(
        "training",
        "tests/training/test_train_diffusion_by_hand.py",
        ("training: no auxiliary loss", "return outcome.nll, {}", "return 0 * outcome.nll, {}"),
        (
            "training: early averages keep the first weights",
            "decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))",
            "decay = ema_decay",
        ),
        (
            "training: an absent modality keeps the truth",
            "xt = jnp.where(absent, transition.prior_sample(kernel, key_prior, batch), xt)",
            "xt = xt + 0 * absent",
        ),
        (
            "training: not over the chance of the time",
            "(weigh(x0) * positions / p[:, vocab.modality_of]).sum()",
            "(weigh(x0) * positions).sum()",
        ),
        (
            "training: independent rows enter a history",
            "clock, size, ~noised.independent",
            "clock, size, noised.independent | True",
        ),
        (
            "training: the time of an absent modality enters the history",
            "clock = jnp.where(absent, 0, t).max(axis=1)",
            "clock = t.max(axis=1)",
        ),
        (
            "training: the same noise in every step",
            "key = jax.random.fold_in(key, state.step)\n        grads, metrics, sampler",
            "key = jax.random.fold_in(key, 0)\n        grads, metrics, sampler",
        ),
    ),
    *of(
        "training",
        "tests/training/test_optimiser.py",
        (
            "optimiser: no warm-up",
            "optax.linear_schedule(0.0, c.learning_rate, c.warmup)",
            "optax.linear_schedule(c.learning_rate, c.learning_rate, c.warmup)",
        ),
        (
            "optimiser: the decay ends after the last step",
            "c.learning_rate * c.final_rate, c.steps - c.warmup",
            "c.learning_rate * c.final_rate, c.steps",
        ),
        (
            "optimiser: the cosine ends at 0",
            "c.warmup, end, c.learning_rate * c.final_rate",
            "c.warmup, end, 0.0",
        ),
        (
            "optimiser: biases decay, too",
            'path[-1].key in ("kernel", "embedding", "token")',
            'path[-1].key in ("kernel", "embedding", "token", "bias")',
        ),
        (
            "optimiser: token tables do not decay",
            'path[-1].key in ("kernel", "embedding", "token")',
            'path[-1].key in ("kernel", "embedding")',
        ),
        ("optimiser: muon of twice the size", "consistent_rms=0.2", "consistent_rms=0.4"),
        (
            "optimiser: every value is clipped by itself",
            "optax.chain(optax.clip_by_global_norm(c.clip), update)",
            "optax.chain(optax.clip(c.clip), update)",
        ),
    ),
    *of(
        "training",
        "tests/training/test_train_diffusion.py tests/training/test_train_diffusion_by_hand.py "
        "-k 'padding_weighs or weight_of_image or sum_of_both'",
        (
            "loss: the padding is an image code",
            'pad = vocab.offsets[vocab.index("text")] + self.pad_id',
            'pad = 0 * vocab.offsets[vocab.index("text")] + self.pad_id',
        ),
        (
            "loss: image tokens weigh 1",
            "jnp.where(of_image, self.image_weight, 1.0)",
            "jnp.where(of_image, 1.0, 1.0)",
        ),
        (
            "loss: the mean over samples",
            "p[:, vocab.modality_of]).sum() / x0.size + samples",
            "p[:, vocab.modality_of]).sum() / len(x0) + samples",
        ),
    ),
    *of(
        "training",
        "tests/networks/test_experts.py -k each_batch",
        (
            "experts: a batch has times of all intervals",
            "(c.mixture, continuous, present, c.experts)",
            "(c.mixture, continuous, present)",
        ),
    ),
    *of(
        "training",
        "tests/networks/test_experts.py -k a_step_leaves",
        (
            "experts: momentum moves the others",
            "new = experts.only_learners(new, state, grads)",
            "pass",
        ),
    ),
    *of(
        "training",
        "tests/training/test_terms.py",
        (
            "terms: one key for all",
            "jax.random.fold_in(key, TERM_KEYS + number)",
            "jax.random.fold_in(key, TERM_KEYS)",
        ),
        (
            "terms: the sum over samples",
            "samples = samples + weight * value.mean()",
            "samples = samples + weight * value.sum()",
        ),
        (
            "terms: one of weight 0 is called",
            "        if weight == 0:\n            continue\n",
            "",
        ),
        (
            "terms: positions without their weight",
            "positions = positions + weight * value",
            "positions = positions + value",
        ),
    ),
    *of(
        "training",
        "tests/training/test_train_diffusion_by_hand.py",
        (
            "loss: accuracy of visible tokens",
            "hidden = free & (xt == vocab.mask_id)\n        return loss",
            "hidden = free | (xt == vocab.mask_id)\n        return loss",
        ),
        (
            "loss: accuracy counts all places",
            "(right & here).sum() / here.sum()",
            "right.sum() / here.sum()",
        ),
        (
            "loss: the nll is a sum",
            "(nll[:, where] * here).sum() / here.sum()",
            "(nll[:, where] * here).sum()",
        ),
        (
            "training: the average of the old weights",
            "decay * e + (1 - decay) * p",
            "decay * p + (1 - decay) * e",
        ),
    ),
    *of(
        "training",
        "tests/training/test_train_diffusion.py -k 'in_parts or parts_of'",
        (
            "training: parts are added",
            "lambda g: g / accumulate",
            "lambda g: g",
        ),
        (
            "training: one noise for all parts",
            "key_part = jax.random.fold_in(key, number)",
            "key_part = jax.random.fold_in(key, 0 * number)",
        ),
    ),
    *of(
        "training",
        "tests/training/test_train_image_tokenizer.py -k only_the_judge",
        (
            "image tokenizer: a judge that is not finite is kept",
            'metrics["judge_loss"], finite = losses[0], finite + losses',
            'metrics["judge_loss"] = losses[0]',
        ),
    ),
    *of(
        "training",
        "tests/training/test_finish.py -k look_like",
        (
            "image tokenizer: joined codes look like the first",
            "ImageTokenizer(model, params, maps, decoded_to=back)",
            "ImageTokenizer(model, params, maps)",
        ),
    ),
    *of(
        "runtime",
        "tests/runtime/test_sharding.py -k each_host",
        (
            "sharding: rows as the links have them",
            "np.array(sorted(grid, key=lambda row: sorted({one.process_index for one in row})))",
            "np.array(grid)",
        ),
    ),
    *of(
        "training",
        "tests/training/test_contrastive.py -k 'dense_matrices or negatives or chunks'",
        (
            "contrastive: no weight of the time",
            "value = value * (t[:, m] / kernel.steps + 1)",
            "value = value * (0 * t[:, m] / kernel.steps + 1)",
        ),
        (
            "contrastive: the negatives pull",
            "margin = right[None] - others[..., where].sum(-1)",
            "margin = others[..., where].sum(-1) - right[None]",
        ),
        (
            "contrastive: a sample is its own negative",
            "shifts = 1 + jax.random.permutation(key, batch - 1)[:count]",
            "shifts = jax.random.permutation(key, batch)[:count]",
        ),
        (
            "contrastive: four chunks",
            "np.arange(modality.length) * 8 // modality.length",
            "np.arange(modality.length) * 4 // modality.length",
        ),
        (
            "contrastive: the value at every place",
            "share = here / jnp.maximum(here.sum(-1, keepdims=True), 1)",
            "share = here / 1",
        ),
    ),
    *of(
        "training",
        f"{LOOP} tests/training/test_loop.py -k 'finite or bad or best'",
        (
            "loop: means of what is not finite",
            "values = [m[name] for m in window if m.get(name) is not None]",
            "values = [m[name] or 0.0 for m in window]",
        ),
        ("loop: the lowest loss", "max(values, default=math.nan)", "min(values, default=math.nan)"),
    ),
)
