"""The suite of steering: its cases against the world, and all of it on a run that is untrained."""

import gzip
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation import test_suite_full
from udd_jax import pipeline
from udd_jax.data.sources import shapes, worlds
from udd_jax.diffusion import vocab
from udd_jax.evaluation import feature_networks, held_out, retrieval
from udd_jax.evaluation.report import measure_sections
from udd_jax.evaluation.suites import full, steering
from udd_jax.networks import dual_encoder, matching, pretrained
from udd_jax.runtime import trees
from udd_jax.sampling import scorers
from udd_jax.steering import scoring

WORLD = shapes.WORLD


def scenes(count):
    return [record.extra["scene"] for record in worlds.Source(WORLD, "test", count, 3)]


def test_an_edit_changes_one_attribute_and_knows_what_it_keeps():
    """Of all scenes with the caption of the edit, exactly the one that keeps the rest is right."""
    rng = np.random.default_rng(0)
    for number, scene in enumerate(scenes(12)):
        case = WORLD.steering.edit(scene, number, rng)
        meaning = WORLD.parse_caption(case.caption)
        assert not WORLD.agrees(scene, meaning) and case.kept(scene)
        both = [s for s in shapes.fitting(text=meaning) if case.kept(s)]
        assert len(both) == 1 and both[0].place == scene.place


def test_a_painting_leaves_the_place_open_and_knows_where_it_belongs():
    rng = np.random.default_rng(0)
    for phrases in (1, 2):
        for _ in range(8):
            case = WORLD.steering.paint(phrases, rng)
            fitting = shapes.fitting(text=WORLD.parse_caption(case.caption))
            placed = [scene for scene in fitting if case.placed(scene)]
            assert len(fitting) > 1 and len(placed) == 1 and len(case.painted) == phrases
            for (words, mask), thing in zip(
                sorted(case.painted, key=lambda p: p[1].argmax()), placed[0].objects, strict=True
            ):
                assert words in case.caption and tuple(words.split()) == thing.kind
                row, column = shapes.scenes.CELLS[thing.cell]
                assert mask.sum() == 256 and mask[row * 16, column * 16]


def test_a_reference_is_of_one_colour_which_is_not_that_of_the_word():
    for seed in range(8):
        reference = WORLD.steering.reference(np.random.default_rng(seed))
        (scene,) = WORLD.read_images(reference.picture[None])
        assert reference.all(scene) and reference.some(scene) and len(scene.objects) == 2
        assert not WORLD.steering.has_word(scene)
        one, two = scene.objects
        blue = type(scene)((one, type(two)(two.shape, "blue", two.size, two.cell)))
        assert reference.some(blue) and WORLD.steering.has_word(blue) and not reference.all(blue)


@pytest.fixture(scope="module")
def pipe(tiny_run):
    found = pipeline.Pipeline.load(tiny_run)
    vocab, hashes = found.vocab, {n: t.hash for n, t in found.tokenizers.items()}
    steps, pad = found.kernel.steps, found.tokenizers["text"].pad_id
    model = dual_encoder.DualEncoder(vocab, steps, pad, width=8, layers=1, heads=2)
    params = jax.device_get(jax.jit(lambda: dual_encoder.init(model, jax.random.key(0)))())
    params["tau"] = np.float32(np.log(100))  # so that some codes match some word
    return pipeline.dataclasses.replace(found, matcher=matching.Matcher(model, params, hashes))


def test_the_match_ranks_candidates_and_is_measured_both_ways(pipe):
    items = held_out.read(pipe, 12)
    ranking = pipe.rerank(items.codes, items.ids, num=4, by="match")
    scores = pipe.dual_encoder.match(items.codes, items.ids).reshape(3, 4)
    np.testing.assert_allclose(ranking.scores, scores)
    np.testing.assert_array_equal(ranking.order, (-scores).argsort(axis=1))
    found, _ = steering.match(pipe, items, among=3, seed=2)
    table, equal = pipe.dual_encoder.table(items.codes, items.ids), retrieval.equal_captions(items)
    assert equal.diagonal().all()
    ring = np.random.default_rng(2).permutation(12)  # each one is compared with the next
    pairs = [(i, j) for i, j in zip(ring, np.roll(ring, -1), strict=True) if not equal[i, j]]
    less = [table[i, j] < table[i, i] for i, j in pairs]
    lower = found["another caption matches less"]
    assert len(pairs) == 11  # one of the next captions is right, too
    assert (lower.value, lower.count) == (pytest.approx(np.mean(less)), len(pairs))
    assert 0 < np.mean(less) < 1 and found["match"].value == pytest.approx(table.diagonal().mean())
    hits = steering.likelihood.recall_among(table.T, 3, equal.T)
    assert found["image of a caption, among 3"].value == pytest.approx(hits.mean())


def test_a_caption_that_cannot_be_read_is_not_wrong_for_any_image():
    world = types.SimpleNamespace(
        parse_caption=lambda text: None if text == "cut" else text, agrees=lambda a, b: a == b
    )
    items = types.SimpleNamespace(captions=["a", "cut", "b"], scenes=["a", "c", "b"], world=world)
    equal = [[1, 1, 0], [0, 1, 0], [0, 1, 1]]
    assert retrieval.equal_captions(items).astype(int).tolist() == equal
    assert retrieval.equal_captions(items, 2).astype(int).tolist() == [[1, 1], [0, 1]]
    items.world, items.captions = None, ["a", "b", "a"]
    assert retrieval.equal_captions(items)[0].tolist() == [True, False, True]


def test_a_caption_that_is_cut_is_left_out_of_the_match(pipe, monkeypatch):
    items = held_out.read(pipe, 12)
    equal = retrieval.equal_captions(items)
    cut = equal.copy()
    cut[:, 3] = True
    monkeypatch.setattr(retrieval, "equal_captions", lambda _: cut)
    found, _ = steering.match(pipe, items, among=3, seed=2)
    assert found["match"].count == 11
    monkeypatch.setattr(retrieval, "equal_captions", lambda _: np.ones_like(cut))
    with pytest.raises(ValueError, match="match: 0 of 12 captions tell their images apart"):
        steering.match(pipe, items)


@pytest.mark.slow
def test_every_part_is_measured_and_shown(pipe, tmp_path):
    items = held_out.read(pipe, 24)
    options = pipe.config.evaluate.copy_and_resolve_references()
    assert steering.measure(pipe, items, tmp_path, options) == {
        "all": steering.intervals.Unmeasured("evaluate.steering = 0")
    }
    options.steering = 4
    result = {"steering": full.plain(steering.measure(pipe, items, tmp_path, options))}
    assert not full.unmeasured(result)
    page = "".join(measure_sections.show(tmp_path, {"full": result}))
    for words in (
        "2 painted: masks",
        "shows, scale 6",
        "both, scales 8 and 6",
        "before",
        "best by match",
        "among 20",
    ):
        assert words in page


def test_a_function_of_ones_own_sees_the_decoded_pictures(pipe):
    red = pipe.scorer("pixels", lambda images: images[..., 0].mean((1, 2)))
    codes, tokenizer = held_out.read(pipe, 3).codes, pipe.tokenizers["image"]
    found = red((jax.nn.one_hot(codes, tokenizer.codes), None), jnp.zeros(3), jnp.zeros(3, int))
    shown = tokenizer.decode(codes)[..., 0].mean((1, 2)) / 127.5 - 1
    np.testing.assert_allclose(found, shown, atol=5e-3)
    with pytest.raises(ValueError, match=r"scorer pixels: 'a.png', expected a function of images"):
        pipe.scorer("pixels", "a.png")


def test_a_word_is_shown_by_the_codes_that_make_it_likelier_than_the_usual_one(pipe):
    match = pipe.dual_encoder.of_codes(pipe.tokenizers["text"].encode(["red"], pipe.text_length))
    ratio = np.exp(match - np.median(match))
    (shown,) = pipe.scorer("shows", "red").args
    expected = np.clip((ratio - 1) / (ratio.max() - 1), 0, 1) ** 2
    np.testing.assert_allclose(shown[:, 0], expected, atol=1e-5)
    model = pipe.dual_encoder
    even = pipeline.dataclasses.replace(model, params=jax.tree.map(np.zeros_like, model.params))
    blind = pipeline.dataclasses.replace(pipe, matcher=even)
    with pytest.raises(ValueError, match="scorer shows: no code of an image says 'red' by itself"):
        blind.scorer("shows", "red")


def test_a_scorer_finds_the_image_behind_another_modality():
    layout = vocab.Vocab((vocab.Modality("area", 2, 3), vocab.Modality("image", 2, 4, (1, 2))))
    score = scoring.of_image(layout, scorers.additive(np.arange(4.0)))
    tokens = jax.nn.one_hot(jnp.array([[0, 1]]), 3), jax.nn.one_hot(jnp.array([[3, 1]]), 4)
    assert float(score(tokens, None, None)[0]) == 4
    first = vocab.image_text((1, 2), 4, 5, 2)
    assert scoring.of_image(first, score) is score


def test_the_scorer_clip_is_the_cosine_of_the_users_network(pipe, tmp_path):
    """Through the decoder, at corners of the simplex; its pictures have the size of the run's."""
    with pytest.raises(ValueError, match=r"name their folder with --weights=, ViT-B-32.pt and bpe"):
        pipe.scorer("clip", "a red circle")
    trees.save_tree(tmp_path / "ViT-B-32.safetensors", test_suite_full.clip_state())
    merges = "".join(f"{chr(97 + i % 8)}{i} x\n" for i in range(pretrained.CLASSES - 514))
    content = gzip.compress(f"#version: 0.2\n{merges}".encode())
    (tmp_path / pretrained.MERGES).write_bytes(content)
    score = pipe.scorer("clip", "a red circle", weights=str(tmp_path))
    codes = held_out.read(pipe, 3).codes
    tokenizer, clip = pipe.tokenizers["image"], feature_networks.load(str(tmp_path))["clip"]
    corners = jax.nn.one_hot(codes, tokenizer.codes), None
    found = jax.jit(score)(corners, jnp.zeros(3), jnp.zeros(3, int))
    images, text = clip.images(tokenizer.decode(codes)), clip.texts(["a red circle"])
    lengths = np.linalg.norm(images, axis=1) * np.linalg.norm(text)
    np.testing.assert_allclose(found, (images @ text[0]) / lengths, atol=5e-3)
