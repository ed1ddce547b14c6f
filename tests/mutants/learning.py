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
            "key = jax.random.fold_in(key, state.step)",
            "key = jax.random.fold_in(key, 0)",
        ),
    ),
)
