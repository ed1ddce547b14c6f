"""The dual encoder: its towers, its comparisons against a slow twin, its file."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import t2i
from udd_jax import stages
from udd_jax.diffusion import transition, vocab
from udd_jax.diffusion.schedules import make as make_schedule
from udd_jax.networks import dual_encoder, matching
from udd_jax.runtime import trees
from udd_jax.training import train_dual_encoder

LAYOUT = vocab.image_text((2, 3), 4, 5, 3)
PAD = 2
HASHES = {"image": "a" * 16, "text": "b" * 16}


@pytest.fixture(scope="module")
def matcher():
    model = dual_encoder.DualEncoder(LAYOUT, 6, PAD, width=8, layers=1, heads=2)
    params = jax.jit(lambda key: dual_encoder.init(model, key))(jax.random.key(0))
    return matching.Matcher(model, jax.device_get(params), HASHES)


@pytest.fixture(scope="module")
def tokens():
    rng = np.random.default_rng(0)
    codes, ids = rng.integers(0, 4, (5, 6)), rng.integers(0, 5, (5, 3))
    ids[:, 2], ids[0, 1] = PAD, PAD  # two words, or one
    ids[:, 0] = 3
    return codes, ids


def slow(words, regions):
    """The local part, in loops, of words float[m, E] and regions float[n, E]."""
    s = np.exp(words @ regions.T)
    s = s / s.sum(0)
    cosines = []
    for row, word in zip(s, words, strict=True):
        a = np.exp(5 * row)
        c = (a / a.sum()) @ regions
        cosines.append(c @ word / np.linalg.norm(c) / np.linalg.norm(word))
    return np.log(np.exp(5 * np.array(cosines)).sum()) / 5


def test_the_match_is_that_of_the_equations(matcher, tokens):
    """Padding counts neither in the mean nor as a word."""
    codes, ids = tokens
    images, texts = matcher.encode("image", codes), matcher.encode("text", ids)
    scale = np.exp(matcher.params["tau"])
    for i in range(5):
        words = texts.parts[i][ids[i] != PAD].astype(float)
        local = slow(words, images.parts[i].astype(float))
        expected = scale * (images.whole[i] @ texts.whole[i] + local) / 2
        np.testing.assert_allclose(matcher.match(codes, ids)[i], expected, rtol=1e-4)
    np.testing.assert_allclose(np.diag(matcher.table(codes, ids)), matcher.match(codes, ids), 1e-4)
    np.testing.assert_allclose(np.linalg.norm(images.whole, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("regions", "size"), [(3, 8), (9, 4)])  # fewer than numbers, or more
def test_the_local_part_is_that_of_the_loops(regions, size):
    keys = jax.random.split(jax.random.key(5), 2)
    words, places = (
        jax.random.normal(keys[0], (4, 5, size)),
        jax.random.normal(keys[1], (1, regions, size)),
    )
    encoded = [dual_encoder.Encoded(None, x, jnp.ones(x.shape[:2], bool)) for x in (places, words)]
    image = jax.tree.map(lambda y: y[0], encoded[0])
    found = dual_encoder.local(image, encoded[1])
    expected = [slow(np.asarray(row), np.asarray(places[0])) for row in words]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_stands_for_padding_changes_nothing_but_as_a_word(matcher, tokens):
    """The text tower does not see padding: a text is the same after more of it."""
    _, ids = tokens
    longer = vocab.image_text((2, 3), 4, 5, 4)
    model = matcher.model.clone(vocab=longer)
    params = jax.tree.map(lambda p: p, matcher.params)
    for name in ("position", "places"):
        table = params["text"][name]
        more = np.concatenate([table, np.ones_like(table[:1])])
        params["text"] = {**params["text"], name: more}
    wide = matching.Matcher(model, params, HASHES)
    padded = np.concatenate([ids, np.full((5, 1), PAD)], axis=1)
    np.testing.assert_allclose(
        wide.encode("text", padded).whole, matcher.encode("text", ids).whole, atol=1e-5
    )


@pytest.mark.parametrize("t", [0, 3, 6])
def test_a_scorer_is_the_match_at_its_time_and_a_corner_of_the_simplex_is_its_token(
    matcher, tokens, t
):
    """Times t / T: nothing at 0, and all of it at T = 6."""
    codes, ids = tokens
    corners = jax.nn.one_hot(codes, 4), jax.nn.one_hot(ids, 5)
    found = jax.jit(matcher.scorer(ids[1:2]))(corners, jnp.zeros(5), jnp.full(5, t))
    images, text = matcher.encode("image", codes, t), matcher.encode("text", ids[1:2])
    match = np.exp(matcher.params["tau"]) * dual_encoder.pairs(dual_encoder.both, images, text)
    np.testing.assert_allclose(found, t / 6 * match[:, 0], rtol=1e-4)


def test_the_match_of_a_code_is_that_of_an_image_where_nothing_else_is_known(matcher, tokens):
    """In a slow twin: the mean over the 6 places, at time .9 T = 5."""
    ids = tokens[1][1:2]
    found = matcher.of_codes(ids)
    text, scale = matcher.encode("text", ids), np.exp(matcher.params["tau"])
    for code in range(4):
        each = []
        for place in range(6):
            image = np.full((1, 6), 4)
            image[0, place] = code
            one = matcher.encode("image", image, 5)
            each.append(scale * float(dual_encoder.pairs(dual_encoder.both, one, text)[0, 0]))
        np.testing.assert_allclose(found[code], np.mean(each), rtol=1e-4)


def test_vlms_of_the_real_image_with_itself_is_the_mean_of_both_parts(matcher, tokens):
    codes, ids = tokens
    images = matcher.encode("image", codes)
    own = [(1 + slow(*[images.parts[i].astype(float)] * 2)) / 2 for i in range(5)]
    text = matcher.match(codes, ids) / np.exp(matcher.params["tau"])
    np.testing.assert_allclose(matcher.vlms(codes, codes, ids), (text + own) / 2, rtol=1e-4)


def test_a_file_keeps_it_and_refuses_tokens_of_another_tokenizer(matcher, tokens, tmp_path):
    matching.save(tmp_path / "encoder", matcher)
    again = matching.load(tmp_path / "encoder", HASHES)
    np.testing.assert_array_equal(again.match(*tokens), matcher.match(*tokens))
    with pytest.raises(ValueError, match=r"another image tokenizer \(aaaaaaaa, here cccccccc\)"):
        matching.load(tmp_path / "encoder", {**HASHES, "image": "c" * 16})
    made = {n: types.SimpleNamespace(hash=value) for n, value in (HASHES | {"sound": "d"}).items()}
    made["image"] = types.SimpleNamespace(hash="another decoder", code_hash=HASHES["image"])
    assert matching.hashes(made) == HASHES  # of the sound it reads nothing


def test_the_whole_is_a_matrix_of_the_mean_and_one_of_each_place_that_is_seen(matcher, tokens):
    tower = jax.tree.map(np.copy, matcher.params["text"])
    tower["parts"] = {"kernel": np.eye(8, dtype=np.float32), "bias": np.zeros(8, np.float32)}
    plain = dataclasses.replace(matcher, params={**matcher.params, "text": tower})
    found = plain.encode("text", tokens[1])
    h = found.parts * found.seen[..., None]  # what the tower ends with
    mean = h.sum(1) / found.seen.sum(1)[:, None]
    whole = mean @ tower["whole"]["kernel"] + tower["whole"]["bias"]
    whole += sum(h[:, n] @ tower["places"][n] for n in range(3))
    whole /= np.linalg.norm(whole, axis=1)[:, None]
    np.testing.assert_allclose(found.whole, whole, atol=1e-5)


@pytest.fixture(scope="module")
def patched():
    """A dual encoder of 4 x 6 codes in squares of 2 x 2, whose towers have no blocks."""
    layout = vocab.image_text((4, 6), 4, 5, 3)
    model = dual_encoder.DualEncoder(layout, 6, PAD, width=8, layers=0, patch=2)
    params = jax.jit(lambda key: dual_encoder.init(model, key))(jax.random.key(0))
    return matching.Matcher(model, jax.device_get(params), HASHES)


def test_a_region_is_a_square_of_codes_and_a_matrix_for_each_place_in_it(patched):
    codes = np.random.default_rng(1).integers(0, 4, (2, 24))
    regions = patched.encode("image", codes).parts
    assert regions.shape == (2, 6, 8)
    changed = codes.copy().reshape(2, 4, 6)
    changed[:, 3, 2] = (changed[:, 3, 2] + 1) % 4  # in the second square of the second row
    other = patched.encode("image", changed.reshape(2, 24)).parts
    moved = np.abs(other - regions).max(axis=(0, 2)) > 1e-4
    np.testing.assert_array_equal(moved, [False, False, False, False, True, False])
    tower = patched.params["image"]
    kernel = tower["patch"]["kernel"].reshape(4, 8, 8)
    square = codes.reshape(2, 4, 6)[:, 2:, 2:4].reshape(2, 4)
    h = sum(tower["token"][square[:, k]] @ kernel[k] for k in range(4)) + tower["patch"]["bias"]
    h = h + tower["position"][4]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
    h = h * tower["norm"]["scale"] + tower["norm"]["bias"]
    expected = h @ tower["parts"]["kernel"] + tower["parts"]["bias"]
    np.testing.assert_allclose(regions[:, 4], expected, atol=1e-4)


def test_a_file_keeps_the_squares_and_points_of_the_simplex_are_joined_too(patched, tmp_path):
    codes = np.random.default_rng(2).integers(0, 4, (3, 24))
    matching.save(tmp_path / "encoder", patched)
    again = matching.load(tmp_path / "encoder", HASHES)
    regions = patched.encode("image", codes)
    jax.tree.map(np.testing.assert_array_equal, again.encode("image", codes), regions)
    points = np.eye(4, dtype=np.float32)[codes]
    tower = lambda x: patched.model.apply(  # noqa: E731
        {"params": patched.params}, "image", x, jnp.zeros(3, int), method="encode"
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), tower(points), tower(codes)
    )


def test_squares_that_do_not_divide_the_grid_are_refused():
    c = t2i.get_config()
    c.dual_encoder.update({"steps": 10, "warmup": 5, "patch": 3})
    with pytest.raises(ValueError, match=r"patch = 3, but an image has 4 x 4 codes"):
        stages.check(c)
    c.dual_encoder.patch = 2
    stages.check(c)


def test_squares_are_only_those_of_a_dual_encoder_that_is_trained():
    c = t2i.get_config()
    c.dual_encoder.update({"file": "runs/t2i/dual_encoder/encoder", "patch": 3})
    stages.check(c)  # the file has its own
    with c.unlocked():
        del c["dual_encoder"]  # a config from before
    stages.check(c)


def test_a_file_from_before_has_no_matrices_of_places(matcher, tokens, tmp_path):
    params = {**matcher.params}
    for name in ("image", "text"):
        params[name] = {key: leaf for key, leaf in params[name].items() if key != "places"}
    model = matcher.model.clone(places=False)
    matching.save(tmp_path / "now", matching.Matcher(model, params, HASHES))
    tree, metadata = trees.load_tree(tmp_path / "now")
    assert metadata["settings"].pop("places") is False
    trees.save_tree(tmp_path / "before", tree, metadata)
    found = matching.load(tmp_path / "before", HASHES).match(*tokens)
    np.testing.assert_array_equal(found, matching.load(tmp_path / "now").match(*tokens))
    assert np.abs(found - matcher.match(*tokens)).max() > 1e-3


def test_half_of_a_batch_is_clean_and_the_other_half_noisy_images_and_phrases():
    """Shares are on noise alone. A phrase is neighbouring tokens, at the beginning of a text."""
    kernel = transition.make_kernel(LAYOUT, [make_schedule("linear", 6)] * 2)
    rng = np.random.default_rng(1)
    x0 = rng.integers(0, 4, (64, 9)) + np.repeat([0, 4], [6, 3])
    x0[:, 6:] = 4 + np.array([0, 1, 3])  # three different words, none of them padding
    noisy = jax.jit(functools.partial(train_dual_encoder.noisy, kernel, padding=PAD))
    made = noisy(jax.random.key(0), jnp.array(x0), clean=jnp.arange(64) < 32)
    codes, words, times, (others, share) = jax.device_get(made)
    mixed = share > 0
    assert (times[:32] == 0).all() and (times[32:, 0] > 0).all() and (times[:, 1] == 0).all()
    assert (codes[:32] == x0[:32, :6]).all() and (words[:32] == [0, 1, 3]).all()
    assert not mixed[:32].any() and 0.2 < mixed[32:].any(1).mean() < 0.8
    assert (np.where(mixed, codes, x0[:, :6])[mixed] == x0[:, :6][mixed]).all()
    assert (codes == 4).any() and others.shape == (4, 64, 6)
    spans = {(*row, *[PAD] * (3 - len(row))) for row in ([0], [1], [3], [0, 1], [1, 3], [0, 1, 3])}
    found = {tuple(map(int, row)) for row in words[32:]}
    assert len(found) >= 4 and found <= spans
    assert 0.4 < (words[32:] == [0, 1, 3]).all(1).mean() < 0.8


def test_nothing_is_contrasted_in_a_batch_of_equal_texts():
    rng = np.random.default_rng(2)
    rows = [
        dual_encoder.Encoded(
            *(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 8), (3, n, 8))),
            jnp.ones((3, n), bool),
        )
        for n in (6, 3)
    ]
    loss = jax.jit(lambda alike: train_dual_encoder.contrast(2.0, *rows, alike)[0])
    assert abs(loss(jnp.ones((3, 3), bool))) < 1e-6 < loss(jnp.eye(3, dtype=bool))


def test_the_halves_of_a_batch_are_not_contrasted_with_each_other():
    """A clean row and a noisy one: each is alone in its half, so the loss is 0."""
    kernel = transition.make_kernel(LAYOUT, [make_schedule("linear", 6)] * 2)
    model = dual_encoder.DualEncoder(LAYOUT, 6, PAD, width=8, layers=1, heads=2)
    state = train_dual_encoder.State(
        jnp.zeros((), int), dual_encoder.init(model, jax.random.key(0)), ()
    )
    tx = optax.identity()
    step = jax.jit(train_dual_encoder.make_step(model, kernel, tx))
    batch = {"image": jnp.arange(24).reshape(4, 6) % 4, "text": jnp.arange(12).reshape(4, 3) % 5}
    batch["clean"] = jnp.array([True, False, True, False])  # halves may be anywhere in a batch
    state = state.replace(opt_state=tx.init(state.params))
    two = {name: ids[:2] for name, ids in batch.items()}
    assert abs(step(state, two, jax.random.key(1))[1]["loss"]) < 1e-6
    assert step(state, batch, jax.random.key(1))[1]["loss"] > 0.1


def test_a_batch_is_groups_of_the_nearest_in_words_that_may_not_be_true_of_the_same_image():
    words = [[3, 0, 1, PAD], [4, 1, PAD, PAD]]  # two rows, for each of which two are sought
    words += [
        [3, 0, PAD, PAD],  # a part of the first
        [3, 0, 1, PAD],  # its words
        [1, 0, 3, PAD],  # all of them in another order, but its image
        [4, 3, 1, PAD],  # two of four of the first; the second is a part of it
        [4, 0, PAD, PAD],  # one of three of the second, one of four of the first
        [0, 4, 4, PAD],  # the same words
    ]
    image = np.arange(8)[:, None].repeat(6, 1)
    image[4] = image[0]
    pool = {"image": image, "text": np.array(words)}
    found = train_dual_encoder.near(pool, 6, 3, PAD)
    np.testing.assert_array_equal(found["image"][:, 0], [0, 5, 6, 1, 6, 7])
    np.testing.assert_array_equal(found["text"], pool["text"][[0, 5, 6, 1, 6, 7]])
    pool["image"][4] = 4
    assert train_dual_encoder.near(pool, 5, 3, PAD)["image"][:, 0].tolist() == [0, 4, 5, 1, 6]
    np.testing.assert_array_equal(train_dual_encoder.near(pool, 3, 1, PAD)["text"], words[:3])
