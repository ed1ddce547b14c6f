"""The chains: samplers, the loop, guidance, truncation."""

from tests.mutants.mutant import Mutant, of

CLAIMS = "tests/sampling/test_reverse_claims.py"
RULES = "tests/sampling/test_rules.py"
ORDERS = f"{RULES} {CLAIMS} -k 'sure or prefix or sharpens or all_but or bound_of'"
GUIDANCE = f"{CLAIMS} tests/sampling/test_guidance.py -k 'weight or uncond or impossible or t2i'"
TRUNCATION = "tests/sampling/test_truncation.py"

MUTANTS = (
    # ---- Three that passed unseen
    Mutant(
        "sampling: an absent modality keeps the caller's tokens",
        "sampling",
        "jnp.where(free | absent_at, start, x)",
        "jnp.where(free, start, x)",
        f"{CLAIMS} -k absent",
    ),
    Mutant(
        "sampling: the time of an order is always 1",
        "sampling",
        "jnp.clip(before, 1, kernel.steps)",
        "jnp.clip(before, 1, 1)",
        f"{CLAIMS} -k first_time",
    ),
    Mutant(
        "sampling: the noise of maskgit is not annealed",
        "sampling",
        "heat = reveal.settings.noise * (1 - (reveal.step + 1) / reveal.steps)",
        "heat = reveal.settings.noise",
        f"{CLAIMS} -k noise_of_maskgit",
    ),
    # ---- Rules of the samplers ------------------------------------------------------------------
    *of(
        "sampling",
        f"{RULES} -k two_stages",
        (
            "ancestral: reveals the share of all tokens",
            "reveal = transition.newly_masked(at_s, at_t) / gamma_t\n    if",
            "reveal = transition.newly_masked(at_s, at_t)\n    if",
        ),
        (
            "ancestral: a token moves to itself",
            "some = some + (~masked & (some >= xt))",
            "some = some + (~masked & (some > xt))",
        ),
        (
            "ancestral: evidence of the own token ignored",
            "total = rest / beta_t + p_j / (at_t.alpha + beta_t)",
            "total = rest / beta_t + p_j / beta_t",
        ),
        (
            "ancestral: one word for whether and what",
            "random_words.categorical(words[..., 1], others))",
            "random_words.categorical(words[..., 0], others))",
        ),
        (
            "ancestral: one word for whether and what, of masks alone",
            "random_words.categorical(words[..., 1], log_p), xt)",
            "random_words.categorical(words[..., 0], log_p), xt)",
        ),
    ),
    *of(
        "sampling",
        "tests/sampling/test_samplers.py -k corrected_chain",
        (
            "corrector: a doubtful token stays",
            "move = jnp.where(fresh, 1, move)",
            "move = jnp.where(fresh, 0, move)",
        ),
    ),
    *of(
        "sampling",
        f"{RULES} {CLAIMS} -k 'masked_again or masking_again or confidence_keeps or own_token'",
        (
            "corrector: evidence the wrong way",
            "jnp.where(own, log_p + evidence, log_p)",
            "jnp.where(own, log_p - evidence, log_p)",
        ),
        (
            "remdm: the limit is not a share of the shown",
            "limit = jnp.minimum(1, at_s.gamma / jnp.where(at_t.unmasked > 0, at_t.unmasked, 1))",
            "limit = jnp.minimum(1, at_s.gamma)",
        ),
        (
            "remdm: the surest are masked again",
            "jnp.where(shown, -psi, -1e9)",
            "jnp.where(shown, psi, -1e9)",
        ),
        (
            "remdm: masks do not make up for what is masked again by confidence",
            "sigma = limit * jnp.where(shown, share, 1 / count)",
            "sigma = limit * jnp.where(shown, share, 0)",
        ),
        (
            "remdm: the logarithm is kept",
            "jnp.where(masked, jnp.exp(look.log_prob), 0), psi)",
            "jnp.where(masked, look.log_prob, 0), psi)",
        ),
        (
            "remdm: masks do not make up for what is masked again",
            "(transition.newly_masked(at_s, at_t) + sigma * at_t.unmasked) / at_t.gamma",
            "transition.newly_masked(at_s, at_t) / at_t.gamma + 0 * sigma",
        ),
    ),
    *of(
        "sampling",
        ORDERS,
        ("threshold: none if none is sure", " | (rank(log_best, masked) == 0))", ")"),
        ("entropy_bounded: strictly below", "(earlier <= bound).sum", "(earlier < bound).sum"),
        (
            "entropy_bounded: the last one counts",
            "jnp.cumsum(ordered, axis=-1) - ordered",
            "jnp.cumsum(ordered, axis=-1)",
        ),
        ("purity: no 1 +", "(1 + strength * jnp.exp(purity))", "(strength * jnp.exp(purity))"),
        (
            "look: the margin to nothing",
            "jnp.exp(log_best) - jnp.exp(second)",
            "jnp.exp(log_best)",
        ),
        (
            "rank: the lowest first",
            "jnp.where(masked, -score, jnp.inf)",
            "jnp.where(masked, score, jnp.inf)",
        ),
    ),
    *of(
        "sampling",
        f"{RULES} -k next_hit",
        (
            "first_hitting: the earliest first",
            "masked & (rank(times, masked)",
            "masked & (rank(-times, masked)",
        ),
        (
            "first_hitting: the clock stands",
            "jnp.min(jnp.where(reveal, times, clock[:, None]), axis=1)",
            "clock + 0 * times[:, 0]",
        ),
    ),
    *of(
        "sampling",
        f"{RULES} -k 'counts or published_numbers or halton'",
        (
            "maskgit: masks after the last step",
            "    share[-1] = 0\n",
            "    share[-1] = 0.5\n",
        ),
        ("fixed: a step late", "np.arange(steps - 1, -1, -1)", "np.arange(steps, 0, -1)"),
        (
            "halton: rows of another base",
            "_radical_inverse(number, 3) * rows",
            "_radical_inverse(number, 5) * rows",
        ),
    ),
    # ---- The loop -------------------------------------------------------------------------------
    Mutant(
        "best_first: draws its tokens",
        "sampling",
        "return found._replace(token=found.best)",
        "return found",
        f"{CLAIMS} -k likeliest",
    ),
    Mutant(
        "halton: backwards",
        "sampling",
        "-np.concatenate(places)",
        "np.concatenate(places)",
        f"{CLAIMS} -k halton_reveals",
    ),
    Mutant(
        "fixed: from the first position on",
        "sampling",
        "def _fixed(reveal: Reveal):\n    return random_words",
        "def _fixed(reveal: Reveal):\n    return 0 * random_words",
        f"{CLAIMS} -k fixed_number",
    ),
    Mutant(
        "purity: a uniform order",
        "sampling",
        "return reveal.look.purity + random_words.gumbel(reveal.words)",
        "return random_words.gumbel(reveal.words)",
        f"{CLAIMS} -k purity_draws",
    ),
    Mutant(
        "maskgit: of few, none may be left for the last call",
        "sampling",
        "stay = jnp.maximum(1, jnp.minimum(masked.sum(-1) - 1, stay))",
        "stay = jnp.minimum(masked.sum(-1) - 1, stay)",
        "tests/sampling/test_reverse.py -k maskgit_leaves",
    ),
    Mutant(
        "ancestral: nothing is truncated",
        "sampling",
        "        log_p = truncation.adjust(log_p, settings)\n        return rules.ancestral",
        "        return rules.ancestral",
        f"{CLAIMS} -k 'one_class and ancestral'",
    ),
    Mutant(
        "loop: the same words in every call",
        "sampling",
        "_fold(key, 1 + state.step)",
        "_fold(key, 1 + 0 * state.step)",
        f"{CLAIMS} -k 'noise_of and probability'",
    ),
    *of(
        "sampling",
        "tests/sampling/test_guidance.py -k a_scorer_sees",
        (
            "scorers: a given mask is certain",
            "known = (tokens != vocab.mask_id) & ~absent[:, m, None]",
            "known = (tokens >= 0) & ~absent[:, m, None]",
        ),
    ),
    *of(
        "sampling",
        "tests/test_plugging_in.py -k a_sampler",
        (
            "settings: what a sampler names is not read",
            "if name in row.reads)",
            "if name in row.reads[1:])",
        ),
    ),
    # ---- Guidance and truncation ----------------------------------------------------------------
    *of(
        "sampling",
        GUIDANCE,
        ("guidance: linear upwards", "return 1 - part", "return part"),
        (
            "guidance: an open interval",
            "(part >= low) & (part <= high)",
            "(part >= low) & (part < high)",
        ),
        (
            "guidance: the unconditional branch sees the condition",
            "Branch(jnp.where(own, x, instead_of_it), then, free & own, weight)",
            "Branch(x, then, free & own, weight)",
        ),
        (
            "guidance: the unconditional branch at time 0",
            "jnp.where(known, 0, kernel.steps))",
            "jnp.where(known, 0, 0 * kernel.steps))",
        ),
        (
            "guidance: the weights do not sum to 1",
            "weight = jnp.where(here, 1 - s, 0)",
            "weight = jnp.where(here, -s, 0)",
        ),
        ("guidance: impossible classes are not finite", "jnp.maximum(log_p, FLOOR)", "log_p"),
    ),
    *of(
        "sampling",
        TRUNCATION,
        (
            "truncation: temperature multiplies",
            "log_p / settings.temperature",
            "log_p * settings.temperature",
        ),
        (
            "truncation: the class that crosses is left out",
            ".sum(-1) >= target",
            ".sum(-1) > target",
        ),
        ("truncation: the last of equals", "(tie & (index <= last))", "(tie & (index >= last))"),
    ),
    # ---- Settings, prompts, scorers -------------------------------------------------------------
    *of(
        "sampling",
        "tests/sampling/test_settings.py tests/sampling/test_reverse.py "
        "-k 'setting or one_line or type or numbers or fit or guidance_needs'",
        (
            "settings: T calls are too many",
            'if self.kind == "time" and known and self.steps > kernel.steps:',
            'if self.kind == "time" and known and self.steps >= kernel.steps:',
        ),
        (
            "settings: more than T calls",
            'if self.kind == "time" and known and self.steps > kernel.steps:',
            "if False and known:",
        ),
        (
            "settings: samplers that fill masks without masks",
            'if self.kind != "time" and not (in_turn or kernel.masks):',
            'if self.kind == "time" and not (in_turn or kernel.masks):',
        ),
        (
            "settings: remasking where tokens are replaced",
            "SAMPLERS[self.sampler].remasks and kernel.replaces",
            "SAMPLERS[self.sampler].one_a_call and kernel.replaces",
        ),
        (
            "settings: guidance without absent conditions",
            'if self.on("guidance") and not guidable:',
            'if self.on("guidance") and guidable is None:',
        ),
        (
            "settings: top_r of 0",
            "demand(0 < self.top_r <= 1",
            "demand(0 <= self.top_r <= 1",
        ),
        (
            "settings: a temperature of 0",
            "demand(self.temperature > 0",
            "demand(self.temperature >= 0",
        ),
        (
            "settings: a truth value is a number",
            "isinstance(value, kind[0]) and not isinstance(value, bool)",
            "isinstance(value, kind[0])",
        ),
        (
            "settings: infinity is a number",
            "demand(number and math.isfinite(value)",
            "demand(number",
        ),
        (
            "settings: steps of an order count",
            'if name == "steps" and self.kind == "order":',
            'if name == "steps" and self.kind == "count":',
        ),
        (
            "settings: off is on",
            "value == OFF.get(name))",
            "value is None)",
        ),
    ),
    *of(
        "sampling",
        "tests/sampling/test_prompts.py",
        (
            "prompts: equal ones do not add up",
            "found[key][2] + table if key in found else table",
            "table",
        ),
        (
            "prompts: those of no weight stay",
            "kept = [entry for entry in found.values() if entry[2].any()]",
            "kept = list(found.values())",
        ),
        (
            "prompts: the rest is 1",
            "rest = rest - weight",
            "rest = rest - 0 * weight",
        ),
        ("prompts: without the scale of guidance", "weight = s * table[t]", "weight = table[t]"),
        (
            "prompts: weights that sum to 0",
            "if abs(total) < SLIGHT:",
            "if abs(total) < 0:",
        ),
        (
            "prompts: a prompt at its own time",
            "then = jnp.where(has, 0, jnp.where(asked[None], steps, now))",
            "then = jnp.where(has, now, jnp.where(asked[None], steps, now))",
        ),
    ),
    *of(
        "sampling",
        "tests/sampling/test_scorers.py",
        (
            "scorers: the likeliest tokens at every point",
            "    if straight:\n",
            "    if True:\n",
        ),
        (
            "scorers: without their scale",
            "return tuple(scale * y for y in gradient)",
            "return tuple(gradient)",
        ),
        ("scorers: half the distance", "return 2 * jnp.arcsin(", "return jnp.arcsin("),
        ("scorers: a scale of 0 is called", "        if scale:\n", "        if True:\n"),
        (
            "scorers: style in the place of content",
            "weights[0] * content + weights[1] * style",
            "weights[1] * content + weights[0] * style",
        ),
        (
            "scorers: vectors around zero",
            "around, known = vectors - vectors.mean(0)[None], vectors[codes]",
            "around, known = vectors - 0 * vectors.mean(0)[None], vectors[codes]",
        ),
    ),
    *of(
        "",
        "tests/test_autoregressive.py -k 'bit_for_bit and text or refused'",
        ("one after another: a chain", "if settings.sampler == IN_ORDER:", "if False:"),
        (
            "one after another: also where it was not learned",
            "if in_turn and not in_order:",
            "if False:",
        ),
        (
            "one after another: the steering is lost",
            "if settings.sampler == IN_ORDER and any(part is not None for part in steered):",
            "if False:",
        ),
    ),
    *of(
        "sampling",
        "tests/sampling/test_outpainting.py",
        (
            "outpainting: known pixels are drawn again",
            "np.where(mask[None, ..., None], drawn, canvas[:, *here])",
            "drawn",
        ),
        (
            "outpainting: windows of mostly unknown pixels",
            "if share >= 0.5 else share",
            "if share >= 0 else share",
        ),
    ),
)
