"""The noise and the objective: diffusion."""

from tests.mutants.mutant import Mutant, of

BOUND = "tests/diffusion/test_objective_bound.py"
ENUMERATED, STRATA = f"{BOUND} -k enumerated", f"{BOUND} -k stratum"
DRAWS = "tests/diffusion/test_draws.py"
KERNEL = "tests/diffusion/test_transition.py -k "
EXACT = KERNEL + "'every_pair_of_times and hybrid'"
TIMES = f"tests/diffusion/test_time_sampling.py {DRAWS} -k 'time or histories'"
WORDS = f"{DRAWS} tests/diffusion/test_random_words.py -k 'word or bisection'"
TASKS = f"{DRAWS} tests/diffusion/test_tasks.py -k 'tasks or infill'"
VOCAB = "tests/diffusion/test_vocab.py"
SCHEDULES = f"{DRAWS} tests/diffusion/test_schedules.py"

MUTANTS = (
    # ---- Four that passed unseen ----------------------------------------------------------------
    *of(
        "diffusion",
        ENUMERATED,
        (
            "bound: an absent modality keeps the truth",
            "xt = jnp.where(absent[:, vocab.modality_of], prior, xt)",
            "xt = xt + 0 * prior",
        ),
        (
            "bound: an absent modality is fed time 0",
            "t = jnp.where(absent, kernel.steps, jnp.where(has_free, t, 0))",
            "t = jnp.where(has_free, t, 0)",
        ),
    ),
    *of(
        "diffusion",
        STRATA,
        (
            "bound: s = t - 1 whatever the stride",
            "s = jnp.broadcast_to(s, t.shape)",
            "s = t - 1",
        ),
        (
            "bound: 5 % too large",
            "total + calls / times * (kl if each else sums)",
            "total + 1.05 * calls / times * (kl if each else sums)",
        ),
    ),
    # ---- The bound and the objective ------------------------------------------------------------
    *of(
        "diffusion",
        STRATA,
        (
            "bound: no strata",
            "u = (k + jax.random.uniform(key_time)) / times",
            "u = jax.random.uniform(key_time)",
        ),
        (
            "bound: all strata draw the same",
            "jax.random.split(jax.random.fold_in(key, k), 3)",
            "jax.random.split(key, 3)",
        ),
        (
            "objective: the KL at a mask is not scaled by its chance to be revealed",
            "hidden = transition.newly_masked(at_s, at_t) / gamma_t * decode",
            "hidden = decode",
        ),
    ),
    *of(
        "diffusion",
        ENUMERATED,
        (
            "bound: no prior term",
            "start = jnp.where(has_free, jnp.stack(priors)[None], 0)",
            "start = jnp.zeros(has_free.shape)",
        ),
        (
            "bound: the prior term of a modality that is given, too",
            "start = jnp.where(has_free, jnp.stack(priors)[None], 0)",
            "start = jnp.broadcast_to(jnp.stack(priors)[None], has_free.shape)",
        ),
        (
            "objective: prior term with K for K - 1",
            "(kernel.vocab.modalities[m].classes - 1) * part(at_T.beta)",
            "kernel.vocab.modalities[m].classes * part(at_T.beta)",
        ),
        (
            "objective: a given modality carries loss",
            "return jnp.where(free, kl, 0), jnp.where(free, nll, 0)",
            "return kl, nll",
        ),
    ),
    *of(
        "diffusion",
        EXACT,
        (
            "objective: no decoder's term at s = 0",
            "return jnp.where(s == 0, decode, kl), decode",
            "return kl, decode",
        ),
        (
            "objective: a class too many in the rest",
            "others = classes - jnp.where(same, 1, 2)",
            "others = classes - jnp.where(same, 1, 1)",
        ),
        ("objective: no rest", "weight_rest = move.beta * beta_s", "weight_rest = 0 * beta_s"),
        (
            "objective: a visible token that is wrong counts as right",
            "d = jnp.where(same, at_t.alpha + beta_t, beta_t)",
            "d = at_t.alpha + beta_t",
        ),
        (
            "objective: evidence of the own token ignored",
            "r = beta_t / (at_t.alpha + beta_t)",
            "r = jnp.ones_like(beta_t)",
        ),
        (
            "objective: the mask's scale is the step's beta",
            "scale = move.gamma / gamma_t",
            "scale = move.beta / gamma_t",
        ),
        # ---- The kernel -------------------------------------------------------------------------
        (
            "kernel: beta of a step without the share that stays",
            "beta = (at_t.beta - at_s.beta + change * at_s.beta) / at_s.unmasked",
            "beta = (at_t.beta - at_s.beta) / at_s.unmasked",
        ),
        (
            "kernel: a step's gamma of all tokens",
            "gamma=newly_masked(at_s, at_t) / at_s.unmasked",
            "gamma=newly_masked(at_s, at_t)",
        ),
        (
            "kernel: q without the uniform draw of the own token",
            "jnp.where(here, (at_t.alpha + at_t.beta)[..., None], at_t.beta[..., None])",
            "jnp.where(here, at_t.alpha[..., None], at_t.beta[..., None])",
        ),
        (
            "kernel: a mask never stays in p",
            "jnp.where(masked, safe_log(at_s.gamma / some), -jnp.inf)",
            "jnp.full(masked.shape, -jnp.inf)",
        ),
        (
            "kernel: p reveals with the wrong share",
            "hidden = log_x0 + (safe_log(move.gamma) - safe_log(some))[..., None]",
            "hidden = log_x0 + safe_log(move.gamma)[..., None]",
        ),
        (
            "kernel: p of a visible token that moves",
            "here, safe_log(move.alpha + move.beta)[..., None], safe_log(move.beta)[..., None]",
            "here, safe_log(move.alpha)[..., None], safe_log(move.beta)[..., None]",
        ),
    ),
    *of(
        "diffusion",
        f"{DRAWS} -k 600_steps",
        (
            "kernel: the less exact of two differences",
            "at_t.gamma <= at_s.unmasked, early, late",
            "at_t.gamma > at_s.unmasked, early, late",
        ),
    ),
    *of(
        "diffusion",
        KERNEL + "'noised or prior_is'",
        (
            "kernel: a replaced share of all tokens, not of the unmasked",
            "classes[None] * at_t.beta / some)",
            "classes[None] * at_t.beta)",
        ),
        (
            "kernel: one word for whether and by what a token is replaced",
            "token = _uniform_tokens(kernel, words[..., 2])",
            "token = _uniform_tokens(kernel, words[..., 1])",
        ),
        (
            "kernel: replaced by a token of another modality",
            "random_words.below(words, classes[None]) + offsets[None]",
            "random_words.below(words, classes[None])",
        ),
        (
            "kernel: one word for whether the prior masks and its token",
            "_uniform_tokens(kernel, words[..., 1]))",
            "_uniform_tokens(kernel, words[..., 0]))",
        ),
        (
            "kernel: the prior of T - 1",
            "kernel.gamma_bar[kernel.vocab.modality_of, -1]",
            "kernel.gamma_bar[kernel.vocab.modality_of, -2]",
        ),
    ),
    *of(
        "diffusion",
        f"{DRAWS} -k 'kernel or schedule or noised'",
        (
            "kernel: given positions of an infill are noised",
            "return jnp.where(free, t[:, vocab.modality_of], 0)",
            "return t[:, vocab.modality_of] + 0 * free",
        ),
        (
            "kernel: masks if one modality does",
            "masks=all(s.masks for s in schedules)",
            "masks=any(s.masks for s in schedules)",
        ),
        (
            "kernel: replaces if anything at all is replaced",
            "s.uniform_bar.max() > 1e-5",
            "s.uniform_bar.max() > 0",
        ),
        (
            "schedule: masks if anything is masked",
            "bool(self.gamma_bar[-1] > 0.5)",
            "bool(self.gamma_bar[-1] > 0)",
        ),
    ),
    *of(
        "diffusion",
        KERNEL + "'straight_line or masks_alone'",
        (
            "objective: the continuous bound at visible tokens, too",
            "jnp.where(xt == kernel.vocab.mask_id, weight * nll, 0)",
            "weight * nll",
        ),
        (
            "kernel: the rate of the masked share, not of its logarithm",
            "slope / jnp.where(gamma > 0, gamma, 1)",
            "slope",
        ),
        (
            "kernel: gamma between its entries is that of the earlier one",
            "gamma = at_s.gamma + (time - s) * slope",
            "gamma = at_s.gamma + 0 * time",
        ),
    ),
    # ---- Schedules ------------------------------------------------------------------------------
    *of(
        "diffusion",
        SCHEDULES,
        ("schedule: linear ends at .00009", "0.99999, 0.000009, steps", "0.99999, 0.00009, steps"),
        (
            "schedule: cosine of a third",
            "np.sin(np.pi / 2 * np.arange(steps + 1) / steps)",
            "np.sin(np.pi / 2 * np.arange(steps + 1) / steps) ** 2",
        ),
        ("schedule: hybrid of half the power", "scale = 2.0**power", "scale = 2.0 ** (power / 2)"),
        (
            "schedule: mask_and_replace with its shares exchanged",
            "Schedule(1 - t, (1 - replace) * t, replace * t)",
            "Schedule(1 - t, replace * t, (1 - replace) * t)",
        ),
        (
            "schedule: a table may rise above 1",
            "if np.diff(alpha).max() > TOLERANCE:",
            "if np.diff(alpha).max() > 1:",
        ),
    ),
    Mutant(
        "schedule: a chain of whole strides, that ends before 0",
        "diffusion",
        "return steps - number * steps // calls",
        "return steps - number * (steps // calls)",
        f"{SCHEDULES} -k spaced",
    ),
    # ---- Times ----------------------------------------------------------------------------------
    *of(
        "diffusion",
        TIMES,
        ("times: decay .99", "DECAY = 0.9", "DECAY = 0.99"),
        (
            "times: warm a visit early",
            "(sampler.seen[:, 1:] > WARM)",
            "(sampler.seen[:, 1:] >= WARM)",
        ),
        (
            "times: p(1) is its own",
            "size = size.at[:, 1].set(size[:, 2])",
            "size = size + 0",
        ),
        (
            "times: p of the first history",
            "(share * p)[histories, t]",
            "(share * p)[0, t]",
        ),
        (
            "experts: a boundary belongs to the later expert",
            "(np.arange(steps + 1)[:, None] > ends)",
            "(np.arange(steps + 1)[:, None] >= ends)",
        ),
        (
            "experts: the chance of an interval is left out",
            "(share * p)[histories, t]",
            "p[histories, t]",
        ),
        (
            "times: drawn from the first history",
            "reached = jnp.cumsum(p, axis=1)[histories]",
            "reached = jnp.cumsum(p, axis=1)[0 * histories]",
        ),
        (
            "times: rows in the order of their times",
            "place = jax.random.permutation(key_order, batch)\n",
            "place = jnp.arange(batch)\n",
        ),
        (
            "times: no shift in a stratum",
            "u = (place + jax.random.uniform(key_shift, (batch,))) / batch",
            "u = place / batch",
        ),
        ("times: mean of |L|", "used * loss**2", "used * jnp.abs(loss)"),
        ("times: repeated times add up", "mean = total / jnp.maximum(count, 1)", "mean = total"),
        (
            "times: unused rows are counted",
            ".at[histories, t].add(used)",
            ".at[histories, t].add(1.0)",
        ),
        (
            "times: continuous times from 0",
            "return 1 - jnp.mod(place + jax.random.uniform(key_shift), 1)",
            "return jnp.mod(place, 1)",
        ),
        (
            "times: all rows have a time a modality",
            "return jnp.where(independent[:, None], own, own[:, :1])",
            "return own",
        ),
    ),
    # ---- Tasks ----------------------------------------------------------------------------------
    *of(
        "diffusion",
        TASKS,
        (
            "tasks: an absent modality at time 0",
            "jnp.where(masks.absent, steps, jnp.where(has_free, t, 0))",
            "jnp.where(has_free, t, 0)",
        ),
        (
            "tasks: infill is a pair",
            "jnp.where(infill[:, None], random_blocks(key_blocks, vocab, batch), free)",
            "free",
        ),
        (
            "tasks: no row is independent",
            'jnp.asarray(names == "independent")[task]',
            'jnp.asarray(names == "independently")[task]',
        ),
        ("tasks: weights as logits", "jnp.log(weights), shape", "weights, shape"),
        (
            "tasks: a text may be left without a free place",
            "return (score < chance) | (score == score.min(axis=1, keepdims=True))",
            "return score < chance",
        ),
        (
            "tasks: a picture may be left without a free place",
            "bernoulli(key_outside, 0.5, (batch, 1)) & ~inside.all(1, keepdims=True)",
            "bernoulli(key_outside, 0.5, (batch, 1))",
        ),
        ("tasks: never both", "(which >= len(parts))", "(which > 2 * len(parts))"),
    ),
    # ---- Words ----------------------------------------------------------------------------------
    *of(
        "diffusion",
        WORDS,
        (
            "words: a carry is lost",
            "middle = a1 * b0 + (a0 * b0 >> 16)",
            "middle = a1 * b0",
        ),
        ("words: 0 can be drawn", "(word.astype(jnp.float32) + 0.5)", "word.astype(jnp.float32)"),
        (
            "words: a Gumbel variable with a short tail",
            "-jnp.log(-jnp.log1p(-uniform(word)))",
            "-jnp.log(-jnp.log(uniform(word)))",
        ),
        ("words: an impossible token", ".sum(-1) > number", ".sum(-1) >= number"),
        ("words: tokens to 2^-24", "jnp.exp(log_p) * 2.0**31", "jnp.exp(log_p) * 2.0**24"),
    ),
    *of(
        "diffusion",
        VOCAB,
        (
            "vocab: a mask has no local id",
            "return jnp.where(x == self.mask_id, classes, x - offset)",
            "return x - offset",
        ),
        (
            "vocab: a local mask does not come back",
            "return jnp.where(x == classes, self.mask_id, x + offset)",
            "return x + offset",
        ),
    ),
    # ---- Scores, tasks, the vocabulary ----------------------------------------------------------
    *of(
        "diffusion",
        "tests/diffusion/test_concrete_score.py",
        (
            "score: a mask moves to the mask with 0",
            "mask = jnp.where(masked, 1, to_mask)",
            "mask = jnp.where(masked, 0, to_mask)",
        ),
        (
            "score: a visible token is certain",
            "visible = (at_t.alpha / beta_t)[..., None] * p + total[..., None]",
            "visible = total[..., None] + 0 * p",
        ),
        (
            "score: the own token has no weight of its own",
            "own = beta_t / (at_t.alpha + beta_t)",
            "own = beta_t / beta_t",
        ),
        (
            "score: a token stays with a rate",
            "visible = jnp.where(transition.is_class(xt, classes), 0, visible)",
            "visible = visible + 0",
        ),
        (
            "score: the rate of all tokens",
            "hidden = (gone / at.unmasked)[..., None] * shown",
            "hidden = gone[..., None] * shown",
        ),
    ),
    *of(
        "diffusion",
        "tests/diffusion/test_tasks.py -k 'not infill'",
        (
            "tasks: a modality twice in a rule",
            "(rule.free + rule.given).count(name) > 1",
            "(rule.free + rule.given).count(name) > 2",
        ),
        (
            "tasks: what is not named is given",
            "name not in rule.free + rule.given for name in names",
            "name in () for name in names",
        ),
        (
            "tasks: a bar with nothing given",
            "if not rule.free or (bar and not rule.given):",
            "if not rule.free:",
        ),
    ),
    *of(
        "diffusion",
        VOCAB,
        (
            "vocab: no place for the mask",
            "sum(m.classes for m in self.modalities if not m.like) + 1",
            "sum(m.classes for m in self.modalities if not m.like)",
        ),
        (
            "vocab: a grid of another length",
            "self.grid[0] * self.grid[1] != self.length",
            "self.grid[0] * self.grid[1] < self.length",
        ),
        (
            "vocab: tokens of another length",
            "if tokens[m.name].shape[-1] != m.length:",
            "if tokens[m.name].shape[-1] > m.length:",
        ),
    ),
)
