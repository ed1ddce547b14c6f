"""What the loop promises its network, tokens and times, and the noise of MaskGIT."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers import finite
from udd_jax.diffusion import random_words, schedules, tasks, transition, vocab
from udd_jax.sampling import reverse

Settings = reverse.Settings
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


@pytest.mark.parametrize("confidence", ("probability", "margin"))
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
