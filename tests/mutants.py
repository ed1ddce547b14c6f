"""Single changes of the core, each with the fast tests that must notice it.

    python -m tests.mutants                  run all
    python -m tests.mutants --only=bound     those whose name matches the pattern
    python -m tests.mutants --new            those without a result in mutants.json

Each change is made in a temporary copy of the tree, in which the tests of its line are run with
`pytest -x -n 0 -m "not slow"`. A change that a test notices is killed; one that passes SURVIVED: a
claim is missing, or the change has no meaning and should leave the list. `tests/mutants.json` holds
the results. A fragment must be in one place of the package that its line names, so that moving code
from file to file leaves the list as it is; `tests/test_mutants.py` sees to that.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "tests" / "mutants.json"
LIMIT = 600  # seconds; a change that makes a loop endless is noticed, too


class Mutant(NamedTuple):
    """In `package`, a folder of udd_jax, the one `old` becomes `new`; `tests` for pytest."""

    name: str
    package: str
    old: str
    new: str
    tests: str


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
CLAIMS = "tests/sampling/test_reverse_claims.py"
RULES = "tests/sampling/test_rules.py"
ORDERS = f"{RULES} {CLAIMS} -k 'sure or prefix or sharpens or all_but or bound_of'"
GUIDANCE = f"{CLAIMS} tests/sampling/test_guidance.py -k 'weight or uncond or impossible or t2i'"
TRUNCATION = "tests/sampling/test_truncation.py"
CODEBOOK = "tests/tokenizers/test_codebook_edges.py tests/tokenizers/test_codebook.py"
LOOP = "tests/training/test_loop_finite_steps.py"
AGREEMENT = "tests/evaluation/test_agreement.py"
PAIRS = "tests/evaluation/test_metrics_pairs.py"
FEATURES = "tests/evaluation/test_metrics_features.py"


def _in(package: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    """Changes (name, old, new) of a package with the same tests."""
    return [Mutant(name, package, old, new, tests) for name, old, new in changes]


MUTANTS = (
    # ---- The seven that passed unseen -----------------------------------------------------------
    *_in(
        "diffusion",
        ENUMERATED,
        (
            "bound: an absent modality keeps the truth",
            "xt = jnp.where(absent[:, vocab.modality_of], prior, xt)",
            "xt = xt + 0 * prior",
        ),
        (
            "bound: an absent modality is fed time 0",
            "t = jnp.where(absent, kernel.steps, jnp.where(lead, t, 0))",
            "t = jnp.where(lead, t, 0)",
        ),
    ),
    *_in(
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
    # ---- The bound and the objective ------------------------------------------------------------
    *_in(
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
            "hidden_plain = transition.newly_masked(at_s, at_t) / gamma_t * decode",
            "hidden_plain = decode",
        ),
    ),
    *_in(
        "diffusion",
        ENUMERATED,
        (
            "bound: no prior term",
            "start = jnp.where(lead, jnp.stack(priors)[None], 0)",
            "start = jnp.zeros(lead.shape)",
        ),
        (
            "bound: the prior term of a modality that is given, too",
            "start = jnp.where(lead, jnp.stack(priors)[None], 0)",
            "start = jnp.broadcast_to(jnp.stack(priors)[None], lead.shape)",
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
    *_in(
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
    *_in(
        "diffusion",
        f"{DRAWS} -k 600_steps",
        (
            "kernel: the less exact of two differences",
            "at_t.gamma <= at_s.unmasked, early, late",
            "at_t.gamma > at_s.unmasked, early, late",
        ),
    ),
    *_in(
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
    *_in(
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
    *_in(
        "diffusion",
        "tests/sampling/test_samplers.py -k 'continuous_bound and cosine'",
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
    *_in(
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
        ENUMERATED,
    ),
    # ---- Times ----------------------------------------------------------------------------------
    *_in(
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
            "p_shared = jnp.broadcast_to(p[histories, t][:, None], (batch, count))",
            "p_shared = jnp.broadcast_to(p[0, t][:, None], (batch, count))",
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
    *_in(
        "diffusion",
        TASKS,
        (
            "tasks: an absent modality at time 0",
            "jnp.where(masks.absent, steps, jnp.where(any_free, t, 0))",
            "jnp.where(any_free, t, 0)",
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
    *_in(
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
    *_in(
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
    # ---- Rules of the samplers ------------------------------------------------------------------
    *_in(
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
    *_in(
        "sampling",
        "tests/sampling/test_samplers.py -k corrected_chain",
        (
            "corrector: a doubtful token stays",
            "move = jnp.where(fresh, 1, move)",
            "move = jnp.where(fresh, 0, move)",
        ),
    ),
    *_in(
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
    *_in(
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
    *_in(
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
    *_in(
        "sampling",
        f"{RULES} -k 'counts or published_numbers or halton'",
        (
            "maskgit: masks after the last step",
            "    share[-1] = 0\n",
            "    share[-1] = 0.5\n",
        ),
        ("fixed: a step late", "np.arange(steps - 1, -1, -1)", "np.arange(steps, 0, -1)"),
        (
            "halton: bases exchanged",
            "_radical_inverse(number, 3) * rows",
            "_radical_inverse(number, 2) * rows",
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
    # ---- Guidance and truncation ----------------------------------------------------------------
    *_in(
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
    *_in(
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
    # ---- Codebook -------------------------------------------------------------------------------
    *_in(
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
    *_in(
        "training",
        LOOP,
        (
            "loop: one finite value is enough",
            "for value in values]).all()",
            "for value in values]).any()",
        ),
        ("loop: bad steps need not be in a row", "(row + 1) * bad", "row + bad"),
    ),
    *_in(
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
    # ---- Metrics ----------------------------------------------------------------------------
    *_in(
        "evaluation/metrics",
        AGREEMENT,
        (
            "agreement: no items are all right",
            '{"rate": 0.0, "error": 1.0',
            '{"rate": 1.0, "error": 1.0',
        ),
        (
            "agreement: the plain error of a share",
            "math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)",
            "math.sqrt(share * (1 - share) / count)",
        ),
        (
            "agreement: an unreadable image agrees",
            "return UNREADABLE\n",
            "return None\n",
        ),
        ("agreement: an unparsable caption agrees", "return UNPARSABLE\n", "return None\n"),
        (
            "agreement: unparsable captions are grouped, too",
            "if meaning is not None:\n                groups",
            "if True:\n                groups",
        ),
        (
            "agreement: reasons as shares of the failures",
            "counts[reason] / max(len(found), 1)",
            "counts[reason] / max(len(found) - counts[None], 1)",
        ),
        (
            "agreement: the reader is judged by its own reading",
            "told = [verdict(world, scene, m) for scene, (_, m) in zip(truth, pairs, strict=True)]",
            "told = [verdict(world, *pair) for pair in pairs]",
        ),
        (
            "agreement: images that are read right count as errors",
            "rate([scene != t for",
            "rate([scene == t for",
        ),
        ("variation: without items it is 0", '{"tv": 1.0, "noise"', '{"tv": 0.0, "noise"'),
        (
            "variation: twice as large",
            '"tv": math.fsum(map(abs, excess.values())) / 2',
            '"tv": math.fsum(map(abs, excess.values()))',
        ),
        ("variation: of the law of the last item", "excess[key] -= p / count", "excess[key] = -p"),
        ("variation: noise of one item", "p * (1 - p) / count**2", "p * (1 - p) / count"),
        (
            "variation: conditions are mixed",
            "[(condition, outcome) for condition, _, outcome in rows]",
            "[(rows[0][0], outcome) for condition, _, outcome in rows]",
        ),
        ("infilling: words alone", "kept = image & words", "kept = words"),
        ("infilling: image alone", "kept = image & words", "kept = image"),
        (
            "infilling: kept is enough to be consistent",
            '"consistency": rate(agrees & kept)',
            '"consistency": rate(kept)',
        ),
        (
            "infilling: generated pixels are compared, given ones are not",
            "np.where(free_pixels, 0, error)",
            "np.where(free_pixels, error, 0)",
        ),
        ("infilling: the limit of one pixel", "world.residual * count", "world.residual"),
        (
            "infilling: one tile that fits is enough",
            "(total <= world.residual * count).all((1, 2))",
            "(total <= world.residual * count).any((1, 2))",
        ),
        ("infilling: an unreadable image is explained", "return read & (total", "return (total"),
        (
            "infilling: a blank may be several words",
            'pattern = r"\\S+".join',
            'pattern = r".+".join',
        ),
        ("infilling: text after the caption", "re.fullmatch(pattern", "re.match(pattern"),
    ),
    *_in(
        "evaluation/metrics",
        PAIRS,
        (
            "bits: nats",
            "reshape(len(nats), -1).sum(1) / math.log(2)",
            "reshape(len(nats), -1).sum(1)",
        ),
        (
            "bits: the mean of ratios",
            "value = bits.sum() / tokens.sum()",
            "value = (bits / tokens).mean()",
        ),
        (
            "bits: the error of as many tokens as items",
            "len(bits) / (len(bits) - 1)) / tokens.sum()",
            "len(bits) / (len(bits) - 1)) / len(bits)",
        ),
        (
            "bits: the spread around the mean bits",
            "np.square(bits - value * tokens).sum()",
            "np.square(bits - bits.mean()).sum()",
        ),
        ("retrieval: equal scores win", "(scores >= np.diag(scores)", "(scores > np.diag(scores)"),
        (
            "retrieval: against the best of its column",
            "np.diag(scores)[:, None]) & wrong",
            "np.diag(scores)[None]) & wrong",
        ),
        (
            "retrieval: the same caption twice is wrong",
            "wrong &= ~np.asarray(equal, bool)",
            "wrong &= np.asarray(~np.zeros_like(equal), bool)",
        ),
        (
            "retrieval: one more of k",
            "return rivals(scores, equal)[0] < k",
            "return rivals(scores, equal)[0] <= k",
        ),
        (
            "retrieval: among n others",
            "math.comb(int(w - b), n - 1) / math.comb(int(w), n - 1)",
            "math.comb(int(w - b), n) / math.comb(int(w), n)",
        ),
        (
            "retrieval: one way twice",
            "(np.transpose(scores), equal.T)",
            "(scores, equal)",
        ),
        (
            "retrieval: the captions of the other way",
            "(np.transpose(scores), equal.T)",
            "(np.transpose(scores), equal)",
        ),
    ),
    *_in(
        "evaluation/metrics",
        f"{PAIRS} {FEATURES}",
        ("intervals: 90 %", "[(1 - LEVEL) / 2, (1 + LEVEL) / 2]", "[1 - LEVEL, LEVEL]"),
        ("intervals: the error of the population", "drawn.std(ddof=1)", "2 * drawn.std()"),
        (
            "intervals: every resample from the first items",
            "drawn += count * np.arange(parts)[:, None]",
            "drawn += 0 * np.arange(parts)[:, None]",
        ),
        (
            "intervals: equal items have no width",
            "if share and value in (0, 1):",
            "if False:",
        ),
        (
            "intervals: all wrong is all right",
            "if value == 0 else (1 - reach, 1.0)",
            "if value == 1 else (1 - reach, 1.0)",
        ),
        (
            "intervals: the second system less the first",
            "function(mean[..., :k]) - function(mean[..., k:])",
            "function(mean[..., k:]) - function(mean[..., :k])",
        ),
        (
            "intervals: the first is better",
            "resamples(both, difference, seed) <= 0",
            "resamples(both, difference, seed) > 0",
        ),
        (
            "intervals: the error of one group",
            "np.sqrt((groups - 1) / groups * np",
            "np.sqrt(1 / groups * np",
        ),
        (
            "intervals: one degree of freedom more",
            "spread(value, error, groups - 1, count",
            "spread(value, error, groups, count",
        ),
        ("intervals: not clipped below", "max(value - reach, least)", "value - reach"),
        ("intervals: not clipped above", "min(value + reach, most)", "value + reach"),
    ),
    *_in(
        "evaluation/metrics",
        FEATURES,
        (
            "frechet: n in the denominator",
            "self.scatter / (self.count - 1)",
            "self.scatter / self.count",
        ),
        ("frechet: the mean of two means", "gap * (other.count / count)", "gap * 0.5"),
        (
            "frechet: scatter within the parts alone",
            "self.scatter + other.scatter + correction",
            "self.scatter + other.scatter + 0 * correction",
        ),
        ("frechet: deviations from zero", "deviation = block - mean[None]", "deviation = block"),
        ("frechet: means are not compared", "np.square(a.mean - b.mean).sum() + trace", "trace"),
        ("frechet: half of the overlap", "+ trace - 2 * shared", "+ trace - shared"),
        (
            "frechet: the diagonal of the overlap",
            "np.linalg.svd(overlap, compute_uv=False).sum()",
            "np.trace(overlap[: min(overlap.shape), : min(overlap.shape)])",
        ),
        ("frechet: roots of roots", "np.sqrt(values[first:])", "values[first:]"),
        (
            "kernel distance: with the diagonal",
            "_kernel_sum(z, z) - _kernel_diagonal(z)",
            "_kernel_sum(z, z)",
        ),
        (
            "kernel distance: a square",
            "+ 1) ** 3\n\n\ndef _kernel_sum",
            "+ 1) ** 2\n\n\ndef _kernel_sum",
        ),
        (
            "kernel distance: not divided by the width",
            "(x @ y.T / x.shape[1] + 1)",
            "(x @ y.T + 1)",
        ),
        (
            "kernel distance: one cross term",
            "- 2 * _kernel_sum(x, y) / (n * m)",
            "- _kernel_sum(x, y) / (n * m)",
        ),
        (
            "inception: the average is even",
            "np.log(np.where(average > 0, average, 1))",
            "np.log(1 / average.shape[1])",
        ),
        (
            "inception: no exponential",
            "np.exp((part * ratio).sum(1).mean())",
            "(part * ratio).sum(1).mean()",
        ),
        (
            "inception: every part is the whole",
            "np.asarray(probabilities[start:end], np.float64)",
            "np.asarray(probabilities[0:end], np.float64)",
        ),
        (
            "precision: the neighbours of the generated",
            "(square <= other_reach[None, there]).any(1)",
            "(square <= reach[here, None]).any(1)",
        ),
        (
            "recall: all neighbourhoods",
            "(square <= reach[here, None]).any(0)",
            "(square <= reach[here, None]).all(0)",
        ),
        (
            "precision: a sample is its own neighbour",
            "neighbours, same=True)[1][:, -1]",
            "neighbours, same=False)[1][:, -1]",
        ),
    ),
)


def places(mutant: Mutant, root: pathlib.Path = ROOT) -> list[pathlib.Path]:
    """The files of the mutant's package that hold its fragment, as often as they hold it."""
    files = sorted((root / "udd_jax" / mutant.package).rglob("*.py"))
    return [file for file in files for _ in range(file.read_text().count(mutant.old))]


def run(mutant: Mutant, copy: pathlib.Path) -> dict:
    """Makes the change in `copy`, runs its tests, and undoes it."""
    (file,) = places(mutant, copy)
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    compiled = pathlib.Path(importlib.util.cache_from_source(file))
    compiled.unlink(missing_ok=True)
    command = f'{sys.executable} -m pytest -x -n 0 -m "not slow" -p no:cacheprovider {mutant.tests}'
    start = time.perf_counter()
    tests = subprocess.Popen(
        command, shell=True, cwd=copy, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = tests.communicate(timeout=LIMIT)
        result = {0: "SURVIVED", 1: "killed", 2: "killed"}.get(tests.returncode, "no tests")
        by = re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
        by = by[1].split("::")[-1] if by else ""
    except subprocess.TimeoutExpired:
        result, by = "killed", "time"
    finally:
        if tests.poll() is None:
            os.killpg(tests.pid, signal.SIGKILL)
        file.write_text(text)
        compiled.unlink(missing_ok=True)
    return {"result": result, "by": by, "seconds": round(time.perf_counter() - start)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a pattern in the name")
    parser.add_argument("--new", action="store_true", help="those without a result")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tests end with it
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {m.name: results[m.name] for m in MUTANTS if m.name in results}
    commit = subprocess.check_output(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True
    ).strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "tree"
        shutil.copytree(
            ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        )
        for mutant in MUTANTS:
            if re.search(options.only, mutant.name) and not (
                options.new and mutant.name in results
            ):
                results[mutant.name] = run(mutant, copy) | {"commit": commit}
                print(f"{results[mutant.name]['result']:9} {mutant.name}", flush=True)
                part = RESULTS.with_suffix(".part")
                part.write_text(json.dumps(results, indent=1) + "\n")
                os.replace(part, RESULTS)
    counted = [row["result"] for row in results.values()]
    print(f"{counted.count('killed')} of {len(counted)} killed, {len(MUTANTS)} in the list")
    raise SystemExit(counted.count("killed") < len(counted))


if __name__ == "__main__":
    main()
