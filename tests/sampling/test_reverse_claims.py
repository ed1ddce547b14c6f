"""The inputs that the loop gives to its network (tokens and times), and the noise of MaskGIT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import finite
from udd_jax.diffusion import random_words, schedules, tasks, transition, vocab
from udd_jax.sampling import guidance, reverse, rules
from udd_jax.sampling.settings import CONFIDENCES, Settings

LAYOUT = vocab.image_text((2, 3), image_classes=3, text_classes=4, text_length=5)
IMAGE, TEXT = LAYOUT.slices
T = 12
KERNEL = transition.make_kernel(LAYOUT, [schedules.cosine(T), schedules.mask_and_replace(T, 0.3)])
sample = finite.quick(reverse.sample, static_argnums=1)


def noting(seen, logits=None):
    """A network that notes (x_t, t) of every call, and knows `logits` or nothing."""

    def denoise_fn(xt, t, free):
        jax.debug.callback(lambda xt, t: seen.append((np.array(xt), np.array(t))), xt, t)
        if logits is None:
            return tuple(jnp.zeros((len(xt), m.length, m.classes)) for m in LAYOUT.modalities)
        return tuple(jnp.broadcast_to(y[None], (len(xt), *y.shape)) for y in logits)

    return denoise_fn


# ---- Absent modalities --------------------------------------------------------------------------


def follower(xt, t, free):
    """A network that is nearly certain of a class that the tokens of the other modality decide."""
    ids = (xt * jnp.arange(1, LAYOUT.length + 1)[None]).astype(jnp.int32)
    sums = [ids[:, where].sum(1) for where in LAYOUT.slices][::-1]
    return tuple(
        5.0 * transition.is_class((s[:, None] + jnp.arange(m.length)[None]) % m.classes, m.classes)
        for s, m in zip(sums, LAYOUT.modalities, strict=True)
    )


@pytest.mark.parametrize("sampler", ("ancestral", "maskgit"))
def test_an_absent_modality_is_a_draw_of_the_prior_whatever_the_caller_holds_there(sampler):
    count = 400
    rows = [tasks.masks(LAYOUT, name, count // 2) for name in ("image", "text")]
    free, absent = (jnp.concatenate(part) for part in zip(*rows, strict=True))
    options = Settings(sampler=sampler, steps=3)
    ours, others = (
        np.asarray(sample(KERNEL, follower, jax.random.key(0), x, free, absent, options))
        for x in (
            jnp.broadcast_to(jnp.asarray(ids), free.shape)
            for ids in ([0] * 6 + [3] * 5, [1, 2, 0, 2, 1, 2, 6, 5, 4, 3, 6])
        )
    )
    np.testing.assert_array_equal(ours, others)

    held = np.asarray(absent)[:, LAYOUT.modality_of]
    of_text = ours[: count // 2, TEXT].ravel()  # its own schedule leaves 0.3 of them unmasked
    law = np.array([0.3 / 4] * 4 + [0.7])
    seen = np.bincount(of_text - 3, minlength=5) / of_text.size
    assert (np.abs(seen - law) <= 4 * np.sqrt(law * (1 - law) / of_text.size)).all()
    assert (ours[count // 2 :, IMAGE] == LAYOUT.mask_id).all()  # `cosine` masks everything
    assert (ours[~held] != LAYOUT.mask_id).all()


@pytest.mark.parametrize("sampler", ("ancestral", "best_first"))
def test_an_absent_modality_is_the_same_and_at_time_T_in_every_call(sampler):
    seen, names = [], ("image", "text", "t2i")
    rows = [tasks.masks(LAYOUT, name, 1) for name in names]
    free, absent = (jnp.concatenate(part) for part in zip(*rows, strict=True))
    x = jnp.broadcast_to(jnp.asarray([0] * 6 + [3] * 5), free.shape)
    options = Settings(sampler=sampler, steps=3)
    last = np.asarray(sample(KERNEL, noting(seen), jax.random.key(0), x, free, absent, options))
    jax.effects_barrier()
    held = ~np.asarray(free)
    for xt, t in seen:
        assert t[0, 1] == T and t[1, 0] == T and t[2, 1] == 0
        np.testing.assert_array_equal(xt[held], last[held])
    if sampler == "ancestral":
        assert sorted(t[2, 0] for _, t in seen) == [4, 8, 12]


# ---- The time of an order -----------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ("best_first", "first_hitting"))
def test_an_order_feeds_the_first_time_at_which_as_many_are_masked_on_average(sampler):
    seen = []
    free = np.ones((4, 11), bool)
    free[1, TEXT], free[2, IMAGE], free[3, ::2] = False, False, False
    x = np.broadcast_to([0] * 6 + [3] * 5, free.shape).astype(np.int32)
    options = Settings(sampler=sampler)
    sample(KERNEL, noting(seen), jax.random.key(0), x, free, np.zeros((4, 2), bool), options)
    jax.effects_barrier()
    assert len(seen) == 11
    gamma = [np.asarray(row, float) for row in KERNEL.gamma_bar]
    fed = {row: set() for row in range(4)}
    for xt, t in seen:
        for row in range(4):
            count = (xt[row] == LAYOUT.mask_id).sum()
            parts = [free[row, where].sum() for where in LAYOUT.slices]
            average = parts[0] * gamma[0] + parts[1] * gamma[1]
            enough = np.flatnonzero(average >= count - 1e-3)
            clock = max(1, enough[0]) if len(enough) else T
            assert t[row].tolist() == [clock if n else 0 for n in parts], (row, count)
            fed[row].add(clock)
    assert all(len(times) >= 4 for times in fed.values())  # it runs, from late to early


# ---- MaskGIT ------------------------------------------------------------------------------------


def parts_of(xs):
    """float[..., L] in the parts of the modalities."""
    return [xs[..., where] for where in LAYOUT.slices]


@finite.quick
def drawn(keys, step, log_p):
    """The tokens of a call, int32[B, L], local ids, and the words of its noise."""
    folded = jax.vmap(jax.random.fold_in, (0, None))(keys, 1 + step)
    words = random_words.words(folded, (LAYOUT.length, 2))
    tokens = [
        random_words.categorical(word, jnp.broadcast_to(y[None], (len(keys), *y.shape)))
        for word, y in zip(parts_of(words[..., 0]), log_p, strict=True)
    ]
    return jnp.concatenate(tokens, axis=1), words[..., 1]


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_the_noise_of_maskgit_falls_to_nothing_along_a_straight_line(confidence):
    seen, steps, noise, count = [], 5, 4.0, 8
    rng = np.random.default_rng(0)
    logits = [3 * rng.normal(size=(m.length, m.classes)) for m in LAYOUT.modalities]
    logits = [y.astype(np.float32) for y in logits]
    keys = jax.random.split(jax.random.key(1), count)
    free = np.ones((count, LAYOUT.length), bool)
    options = Settings(sampler="maskgit", steps=steps, noise=noise, confidence=confidence)
    x, present = np.zeros(free.shape, np.int32), np.zeros((count, 2), bool)
    last = sample(KERNEL, noting(seen, logits), keys, x, free, present, options)
    jax.effects_barrier()
    calls = sorted((xt for xt, _ in seen), key=lambda xt: -(xt == LAYOUT.mask_id).sum())
    assert len(calls) == steps

    log_p = [np.asarray(jax.nn.log_softmax(y)) for y in logits]
    draws = [jax.tree.map(np.asarray, drawn(keys, jnp.int32(k), log_p)) for k in range(steps)]

    def twin(anneal):
        """x after each call, replayed with the words of every sample."""
        x, after = np.full(free.shape, LAYOUT.mask_id), []
        for k, (tokens, words) in enumerate(draws):
            u = (words.astype(float) + 0.5) / 2.0**32
            chance = noise * anneal(k) * -np.log(-np.log1p(-u))
            for m, where in enumerate(LAYOUT.slices):
                token, n = tokens[:, where], LAYOUT.modalities[m].length
                sure = log_p[m][np.arange(n), token]
                if confidence == "margin":
                    best = np.sort(np.exp(log_p[m]), axis=1)
                    sure = np.broadcast_to(best[:, -1] - best[:, -2], token.shape)
                elif confidence == "entropy":
                    sure = np.broadcast_to((np.exp(log_p[m]) * log_p[m]).sum(1), token.shape)
                score = sure + chance[:, where]
                stay = int(np.floor(n * np.cos(np.pi / 2 * (k + 1) / steps) + 1e-9))
                for row in range(count):
                    hidden = np.flatnonzero(x[row, where] == LAYOUT.mask_id)
                    left = max(1, min(len(hidden) - 1, stay)) if k + 1 < steps else 0
                    shown = hidden[np.argsort(-score[row, hidden])][: len(hidden) - left]
                    x[row, where.start + shown] = token[row, shown] + LAYOUT.offsets[m]
            after.append(x.copy())
        return after

    after = twin(lambda k: 1 - (k + 1) / steps)
    for ours, theirs in zip((*calls[1:], last), after, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for wrong in (lambda k: 1, lambda k: 1 - k / steps, lambda k: 0):  # the replay tells them apart
        assert any((a != b).any() for a, b in zip(twin(wrong), after, strict=True))


# ---- Orders -------------------------------------------------------------------------------------

P = np.random.default_rng(3).dirichlet(np.full(4, 0.6), 11)  # of text; of an image renormalised
LOGITS = [np.log(P[IMAGE, :3]).astype(np.float32), np.log(P[TEXT]).astype(np.float32)]
LOG_P = [np.asarray(jax.nn.log_softmax(y)) for y in LOGITS]
BEST = np.concatenate([y.argmax(1) + o for y, o in zip(LOGITS, LAYOUT.offsets, strict=True)])


def trail(count, seed=0, **settings):
    """x of every call and at the end, int32[calls + 1, count, L], for the network of LOGITS."""
    seen, free = [], np.ones((count, LAYOUT.length), bool)
    x, present = np.zeros(free.shape, np.int32), np.zeros((count, 2), bool)
    key, options = jax.random.key(seed), Settings(**settings)
    last = sample(KERNEL, noting(seen, LOGITS), key, x, free, present, options)
    jax.effects_barrier()
    calls = sorted((xt for xt, _ in seen), key=lambda xt: -(xt == LAYOUT.mask_id).sum())
    return np.array([*calls, last])


@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_best_first_reveals_the_likeliest_class_of_the_surest_position(confidence):
    best = [np.sort(np.exp(y), axis=1) for y in LOG_P]
    sure = {
        "probability": [y[:, -1] for y in best],
        "margin": [y[:, -1] - y[:, -2] for y in best],
        "entropy": [(np.exp(y) * y).sum(1) for y in LOG_P],
    }[confidence]
    order = np.argsort(-np.concatenate(sure))
    steps = trail(2, sampler="best_first", confidence=confidence)
    for k, x in enumerate(steps):
        expected = np.full(11, LAYOUT.mask_id)
        expected[order[:k]] = BEST[order[:k]]
        np.testing.assert_array_equal(x, [expected] * 2)


@pytest.mark.parametrize("strength", (1.06, 4.0))
def test_best_first_with_guidance_reveals_the_surest_word_of_the_tilt(strength):
    """Captions of given images against a loop by hand; 1.06 is what DDCap has."""
    rng, count, length = np.random.default_rng(0), 64, LAYOUT.length
    effects = rng.normal(size=(length, LAYOUT.size, 5, 4)).astype(np.float32)  # of what is where
    effects = np.concatenate([effects, np.zeros_like(effects[:, :1])], axis=1)
    x = np.tile(BEST, (count, 1)).astype(np.int32)
    x[:, IMAGE] = rng.integers(0, 3, (count, 6))

    def network(xt, t, free):
        text = jnp.asarray(effects)[jnp.arange(length)[None], xt].sum(1)
        return jnp.zeros((count, 6, 3)), text

    def by_hand(strength):
        now = np.where(np.arange(length)[None] < 6, x, LAYOUT.mask_id)
        for _ in range(5):
            blind = np.where(np.arange(length)[None] < 6, LAYOUT.mask_id, now)
            seen, unseen = (
                np.asarray(jax.nn.log_softmax(network(xt, None, None)[1])) for xt in (now, blind)
            )
            p = np.exp(strength * seen + (1 - strength) * unseen)
            p /= p.sum(-1, keepdims=True)
            sure = np.where(now[:, TEXT] == LAYOUT.mask_id, p.max(-1), -1)
            place = sure.argmax(1)
            now[np.arange(count), 6 + place] = p[np.arange(count), place].argmax(-1) + 3
        return now

    kernel = transition.make_kernel(LAYOUT, schedules.absorbing(T))
    free, absent = tasks.masks(LAYOUT, "i2t", count)
    settings = Settings(sampler="best_first", guidance=strength)
    found = sample(kernel, network, jax.random.key(0), x, free, absent, settings)
    np.testing.assert_array_equal(found, by_hand(strength))
    changed = (by_hand(strength) != by_hand(1.0)).any(1).mean()
    assert changed > (0.5 if strength > 2 else 0.0)


def test_halton_reveals_each_modality_in_its_halton_order():
    steps = trail(2, sampler="halton", steps=4)
    assert len(steps) == 5
    for modality, where in zip(LAYOUT.modalities, LAYOUT.slices, strict=True):
        order = finite.halton(modality.length, modality.grid)
        for x in steps[1:]:
            shown = x[:, where] != LAYOUT.mask_id
            np.testing.assert_array_equal(shown, order[None] < shown.sum(1, keepdims=True))


def test_a_fixed_number_a_step_is_revealed_in_an_order_that_is_uniform():
    count = 600
    steps = trail(count, sampler="fixed", steps=5)
    first = steps[1][:, TEXT] != LAYOUT.mask_id
    assert (first.sum(1) == 1).all()
    assert (np.abs(first.mean(0) - 1 / 5) <= 4 * np.sqrt(0.16 / count)).all()
    left = [(x[0, TEXT] == LAYOUT.mask_id).sum() for x in steps]
    assert left == [5, 4, 3, 2, 1, 0]


def test_purity_draws_positions_in_proportion_to_how_sure_the_network_is():
    count = 1500
    first = trail(count, sampler="purity", steps=5, purity=0.0)[1][:, TEXT] != LAYOUT.mask_id
    law = np.exp(LOG_P[1]).max(1)
    law /= law.sum()
    assert (first.sum(1) == 1).all() and np.ptp(law) > 0.1
    assert (np.abs(first.mean(0) - law) <= 4 * np.sqrt(law * (1 - law) / count)).all()


@pytest.mark.parametrize("sampler", ("ancestral", "maskgit", "purity"))
def test_one_class_left_by_truncation_is_the_one_that_is_drawn(sampler):
    steps = trail(20, sampler=sampler, steps=3, top_k=1)
    shown = steps[-1] != LAYOUT.mask_id
    assert shown.all()
    if sampler == "ancestral":  # a schedule that replaces draws some tokens uniformly
        np.testing.assert_array_equal(steps[-1][:, IMAGE], np.tile(BEST[IMAGE], (20, 1)))
    else:
        np.testing.assert_array_equal(steps[-1], np.tile(BEST, (20, 1)))


def test_with_a_bound_of_0_all_that_is_certain_and_one_more_is_shown():
    entropy = jnp.asarray([[0.0, 0.7, 0.0, 0.0, 0.9]])
    masked = jnp.asarray([[True, True, True, False, True]])
    shown = rules.within(entropy, masked, 0.0)
    np.testing.assert_array_equal(shown, [[True, True, True, False, False]])


# ---- ReMDM --------------------------------------------------------------------------------------


def test_confidence_keeps_the_probability_of_a_token_and_masks_reveal_with_the_mean():
    table, count, s, t = schedules.absorbing(8), 20_000, 3, 4
    kernel = transition.make_kernel(LAYOUT, table)
    words = random_words.words(jax.random.key(0), (count, 4, 2))
    log_p = jnp.broadcast_to(jnp.log(jnp.asarray([0.1, 0.2, 0.3, 0.4])), (count, 4, 4))
    look = rules.look(words[..., 1], log_p)
    xt = jnp.broadcast_to(jnp.asarray([4, 4, 1, 2]), (count, 4))
    psi = jnp.broadcast_to(jnp.asarray([0, 0, 0.5, 0.5]), (count, 4))
    rule = (jnp.int32(s), jnp.int32(t), jnp.ones((count, 4), bool), psi, "confidence", 0.0)
    xs, kept = (np.asarray(y) for y in rules.remdm(kernel, 1, words[..., 0], look, xt, *rule))
    shown = (xs != 4) & (np.asarray(xt) == 4)
    np.testing.assert_allclose(kept[shown], 0.1 * (1 + xs[shown]), rtol=1e-5)
    limit = min(1, (s / 8) / (1 - t / 8))
    reveal = ((t - s) / 8 + limit / 2 * (1 - t / 8)) / (t / 8)  # two are shown: each has a half
    np.testing.assert_allclose(shown[:, :2].mean(0), reveal, atol=0.015)
    np.testing.assert_allclose((xs[:, 2:] == 4).mean(0), limit / 2, atol=0.015)


# ---- Guidance -----------------------------------------------------------------------------------


def test_the_unconditional_branch_sees_a_draw_of_the_prior_and_not_the_condition():
    seen, steps = [], T
    masks = tasks.masks(LAYOUT, "t2i", 2)
    x = jnp.broadcast_to(jnp.asarray([0] * 6 + [3] * 5), (2, 11))
    prior = transition.prior_sample(KERNEL, jax.random.key(5), 2)
    scene = guidance.Scene(KERNEL, Settings(guidance=2.0), masks, prior, None)
    predict = guidance.predictor(noting(seen), scene, x)
    finite.quick(predict)(x, jnp.full(2, 7, jnp.int32))
    jax.effects_barrier()
    (full, t_full), (alone, t_alone) = sorted(seen, key=lambda call: int(call[1][0, 1]))
    np.testing.assert_array_equal(full, x)
    np.testing.assert_array_equal(t_full, [[7, 0]] * 2)
    np.testing.assert_array_equal(alone[:, TEXT], prior[:, TEXT])
    np.testing.assert_array_equal(alone[:, IMAGE], x[:, IMAGE])
    np.testing.assert_array_equal(t_alone, [[7, steps]] * 2)


def test_guidance_of_classes_that_are_impossible_is_finite():
    masks = tasks.masks(LAYOUT, "t2i", 1)
    x, prior = jnp.full((1, 11), 11), jnp.full((1, 11), LAYOUT.mask_id)

    def impossible(xt, t, free):
        return tuple(
            jnp.broadcast_to(jnp.where(k < 2, 0, -jnp.inf), (1, *k.shape[1:]))
            for k in (jnp.mgrid[:1, : m.length, : m.classes][2] for m in LAYOUT.modalities)
        )

    scene = guidance.Scene(KERNEL, Settings(guidance=3.0), masks, prior, None)
    predict = guidance.predictor(impossible, scene, x)
    image = np.exp(np.asarray(predict(x, jnp.full(1, 7, jnp.int32))[0]))
    np.testing.assert_allclose(image, np.tile([0.5, 0.5, 0], (1, 6, 1)), atol=1e-6)
