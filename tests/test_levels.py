"""A run whose pictures have two levels, never trained: from the config to files and numbers."""

import json
import types

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import __main__ as benchmarks
from benchmarks import upscaling
from configs import t2i
from tests import test_modalities
from tests.demo import test_steering
from tests.helpers import tiny
from udd_jax import build, generate, modalities, pipeline, stages, values
from udd_jax.data import pixels, sources
from udd_jax.data.sources import shapes
from udd_jax.data.sources.shapes import drawing
from udd_jax.demo import page, requests, steering, views
from udd_jax.diffusion import tasks
from udd_jax.evaluation import held_out, rules
from udd_jax.evaluation.report import rule_sections
from udd_jax.runtime import files
from udd_jax.sampling import outpainting
from udd_jax.steering import segments, stepwise, weighted
from udd_jax.tokenizers import codebook
from udd_jax.training import plan

N1, N2 = 16, 64  # codes of the two levels
TEXT = "a small red circle"


def config():
    c = tiny.shrink(t2i.get_config("pyramid_smoke"), 4, 2)
    c.modalities.coarse.update({"codes": 12})
    c.sample_rules["coarse|text"] = {"steps": 3}
    c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("levels"), config())


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


@pytest.fixture(scope="module")
def records():
    return [sources.open_source("shapes64", "test", size=4)[i] for i in range(4)]


def split(pipe, made):
    return {n: np.asarray(ids) for n, ids in pipe.vocab.split(made.tokens).items()}


# ---- Generation ---------------------------------------------------------------------------------


def test_a_picture_is_generated_coarse_first_and_then_fine(pipe):
    made = pipe.generate("image|text", given={"text": TEXT}, num=3, seed=2)
    ids, text = split(pipe, made), [TEXT] * 3
    again = pipe.generate(
        "image|coarse,text", given={"coarse": ids["coarse"], "text": text}, seed=2
    )
    np.testing.assert_array_equal(made.tokens, again.tokens)
    asked = pipe.generate(
        "image,coarse|text", given={"text": TEXT}, num=3, seed=2, begin_with="coarse"
    )
    np.testing.assert_array_equal(made.tokens, asked.tokens)
    np.testing.assert_array_equal(
        made.values["coarse"], pipe.codecs["coarse"].decode(ids["coarse"])
    )
    joined = np.concatenate([ids["coarse"], ids["image"]], axis=1)
    np.testing.assert_array_equal(made.images, pipe.tokenizers["image"].decode(joined))


def test_each_level_has_its_own_number_of_steps_and_the_calls_of_both_are_counted(pipe):
    alone = pipe.generate("coarse|text", given={"text": TEXT})  # sample_rules has 3 for it
    assert alone.calls.tolist() == [3]
    assert pipe.text_to_image(TEXT, num=2).calls.tolist() == [3 + 2] * 2
    assert pipe.text_to_image(TEXT, begin_steps=1).calls.tolist() == [1 + 2]
    # A text by itself, the coarse level of each candidate, and the fine one.
    pair = pipe.pairs(2, begin_with="text", best_of=2, batch_size=2)
    text = pipe.generate("text", 2).calls[0]
    assert pair.calls.tolist() == [text + 3 + 2] * 2
    assert [found["steps"] for found in stepwise.levels(pipe, "t2i")] == [3, 2]
    assert stepwise.levels(pipe, "text|image") == []


def test_a_run_that_begins_with_the_image_begins_with_both_of_its_levels(pipe):
    pipe = pipe.with_config(begin_with=("image",))
    for rule in ("image|text", "t2i", "image|coarse", "coarse|text", "coarse", "text|image"):
        assert stepwise.usual(pipe, rule) == []
    assert stepwise.usual(pipe, "pair") == ["image"]
    texts_first = pipe.with_config(begin_with=("text",))
    assert stepwise.usual(texts_first, "image") == [] and stepwise.usual(texts_first, "text") == []
    assert stepwise.usual(texts_first, "pair") == ["text"]
    assert stepwise.check(pipe, "pair", ["image"]) == (["coarse", "image"], ["text"])
    assert pipe.text_to_image(TEXT).calls.tolist() == [3 + 2]


def test_pairs_are_a_text_then_a_coarse_level_then_a_fine_one(pipe):
    made = pipe.generate("image,text", 2, seed=1, begin_with="text")
    text = split(pipe, made)["text"]
    again = pipe.generate("text", 2, keys=_begun(2, 1))
    np.testing.assert_array_equal(split(pipe, again)["text"], text)
    assert made.images.shape == (2, 64, 64, 3)


def _begun(count, seed):
    return jax.vmap(jax.random.fold_in, (0, None))(pipeline.sample_keys(seed, count), 1)


def test_a_coarse_picture_is_typed_as_the_path_of_a_file_of_any_size(pipe, tmp_path):
    Image.new("RGBA", (20, 10), (9, 200, 30, 255)).save(tmp_path / "a.png")
    read = generate.READ["coarse"]([tmp_path / "a.png"], pipe.tokenizers["coarse"])
    assert read.shape == (1, 64, 64, 3) and (read == (9, 200, 30)).all()


def test_a_given_picture_gives_both_levels_and_a_coarse_one_is_given_as_a_picture(pipe, records):
    shown = np.stack([record.image for record in records[:2]])
    codes = pipe.tokenizers["image"].encode(shown)
    made = pipe.image_to_text(shown)
    ids = split(pipe, made)
    np.testing.assert_array_equal(np.concatenate([ids["coarse"], ids["image"]], axis=1), codes)
    only = split(pipe, pipe.generate("text|coarse", given={"coarse": shown}))
    np.testing.assert_array_equal(only["coarse"], codes[:, :N1])
    scores = pipe.log_likelihood(shown, [TEXT] * 2, task="i2t", times=1)
    assert scores.shape == (2, 3) and (scores[:, :2] == 0).all() and (scores[:, 2] < 0).all()


def test_infilling_keeps_the_given_half_in_both_levels(pipe, records):
    shown, mask = records[0].image, np.zeros((64, 64), bool)
    mask[:, :32] = True
    made = split(pipe, pipe.infill(shown, mask, [TEXT]))
    codes = pipe.tokenizers["image"].encode(shown[None])
    coarse, fine = codes[0, :N1].reshape(4, 4), codes[0, N1:].reshape(8, 8)
    np.testing.assert_array_equal(made["coarse"].reshape(4, 4)[:, 2:], coarse[:, 2:])
    np.testing.assert_array_equal(made["image"].reshape(8, 8)[:, 4:], fine[:, 4:])


def test_a_negative_prompt_steers_both_levels(pipe):
    asked = {"negative": {"text": ["a blue square", "a cyan circle"]}, "guidance": 3.0, "seed": 5}
    text = [TEXT, "a black triangle"]
    made = pipe.generate("image|text", given={"text": text}, num=2, **asked)
    first = pipe.generate("coarse|text", given={"text": text}, num=2, keys=_begun(4, 5), **asked)
    coarse, each = split(pipe, first)["coarse"], [t for t in text for _ in range(2)]
    np.testing.assert_array_equal(split(pipe, made)["coarse"], coarse)
    asked["negative"] = {"text": [t for t in asked["negative"]["text"] for _ in range(2)]}
    given = {"coarse": coarse, "text": each}
    again = pipe.generate("image|coarse,text", given=given, **asked)
    np.testing.assert_array_equal(made.tokens, again.tokens)


def test_a_given_picture_is_weighed_and_prompted_in_both_levels(pipe, records):
    pictures = values.ids(pipe, "image", records[0].image)
    masks = tasks.masks(pipe.vocab, "text|image", 2)
    found = segments.read(pipe, {"image": 0.5}, masks, 2, 1)
    assert found.tolist() == [[0.5, 0.5, 1.0]] * 2  # coarse, image, text
    words = {"text": pipe.codecs["text"].encode([TEXT], True)}
    asked = [(ids, 0.5, "constant") for ids in ({"image": pictures}, words)]
    found = weighted.branched(pipe, asked, 2, np.zeros((2, pipe.vocab.length), bool))
    assert found.has.tolist() == [[True, True, False], [False, False, True]]


def test_an_edit_draws_codes_of_both_levels_anew(pipe, records):
    shown = records[0].image[None]
    before = pipe.tokenizers["image"].encode(shown)[0]
    made = split(pipe, pipe.edit(shown, "a blue circle", share=0.5, rounds=1, num=4))
    codes = np.concatenate([made["coarse"], made["image"]], axis=1)
    changed = (codes != before).sum(axis=1)
    assert (changed > 0).all() and (changed <= 40).all()
    assert (made["coarse"] != before[:N1]).any() and (made["image"] != before[N1:]).any()


def test_the_bits_of_a_pair_have_those_of_both_levels(pipe, records):
    shown, text = records[0].image, records[0].captions[0]
    each = pipe.log_likelihood(shown[None], [text], each=True)[0]
    said = views.bits(pipe, shown, text, each)
    assert f"<strong>{np.maximum(0, -each).sum():.1f} bits</strong>" in said
    coarse = pipe.vocab.slices[pipe.vocab.index("coarse")]
    assert np.maximum(0, -each[coarse]).sum() > 1


def test_scorers_by_name_are_refused_for_two_levels(pipe, records):
    with pytest.raises(ValueError, match="scorer 'palette' knows pictures of one level of codes"):
        pipe.scorer("palette", records[0].image)


def test_each_candidate_has_a_coarse_level_of_its_own(pipe):
    made = pipe.generate("image|text", given={"text": TEXT}, num=2, best_of=2, seed=4)
    every = pipe.generate("image|text", given={"text": TEXT}, num=4, seed=4)
    kept = [row.tolist() for row in every.tokens]
    places = [kept.index(row.tolist()) for row in made.tokens]
    assert places[0] in (0, 1) and places[1] in (2, 3)


# ---- Upscaling ----------------------------------------------------------------------------------


def half(image):
    return np.asarray(Image.fromarray(image).resize((32, 32), Image.BOX))


def test_upscaling_gives_the_coarse_codes_and_generates_the_fine_ones(pipe, records):
    small = np.stack([half(record.image) for record in records[:2]])
    large = [np.asarray(Image.fromarray(i).resize((64, 64), Image.BICUBIC)) for i in small]
    coarse = pipe.tokenizers["coarse"].encode(np.stack(large))
    made = pipe.upscale(small, [TEXT, TEXT], seed=3)
    given = {"coarse": coarse, "text": [TEXT] * 2}
    expected = pipe.generate("image|coarse,text", given=given, seed=3).images
    np.testing.assert_array_equal(made, expected)
    preview = pipe.tokenizers["coarse"].decode(coarse)
    assert pipe.upscale(preview).shape == (2, 64, 64, 3)  # a preview has the whole size


def test_a_weight_of_each_small_picture_holds_for_all_its_samples(pipe):
    small = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    made = pipe.upscale(small, [TEXT] * 2, num=2, weigh={"coarse": [0.5, 2.0]})
    each = {"weigh": {"coarse": [0.5, 0.5, 2.0, 2.0]}}
    again = pipe.upscale(np.repeat(small, 2, axis=0), [TEXT] * 4, **each)
    np.testing.assert_array_equal(made, again)


def test_a_picture_larger_than_those_of_the_run_is_drawn_by_windows(pipe, monkeypatch):
    windows, generate_ = [], pipeline.Pipeline.generate

    def spy(self, task, given, masks, **options):
        made = generate_(self, task, given=given, masks=masks, **options)
        windows.append((given, np.asarray(masks.free)[0], made))
        return made

    monkeypatch.setattr(pipeline.Pipeline, "generate", spy)
    small = np.random.default_rng(0).integers(0, 256, (32, 72, 3), np.uint8)
    made = pipe.upscale(small, factor=2, num=2)
    starts = [0, 32, 64, 80]  # half of a window is new, by coarse cells; the last one at the edge
    assert made.shape == (2, 64, 144, 3) and len(windows) == len(starts)
    where = pipe.vocab.slices[pipe.vocab.index("image")]
    free = [part[where].reshape(8, 8) for _, part, _ in windows]
    new = [8, 4, 4, 2]
    for part, count in zip(free, new, strict=True):
        assert not part[:, : 8 - count].any() and part[:, 8 - count :].all()
    guide = np.asarray(Image.fromarray(small).resize((144, 64), Image.BICUBIC))
    coarse = pipe.tokenizers["coarse"].encode(np.stack([guide[:, x : x + 64] for x in starts]))
    for (given, _, _), codes in zip(windows, coarse, strict=True):
        np.testing.assert_array_equal(given["coarse"], np.stack([codes] * 2))
    parts = [w.images[:, :, 64 - 8 * n :] for (_, _, w), n in zip(windows, new, strict=True)]
    np.testing.assert_array_equal(made, np.concatenate(parts, axis=2))
    tokenizer = pipe.tokenizers["image"]
    for (given, part, _), x, count in list(zip(windows, starts, new, strict=True))[1:]:
        so_far = made[:, :, x : x + 64].copy()
        so_far[:, :, 64 - 8 * count :] = 0  # is drawn in this window and later
        codes, kept = tokenizer.finest(tokenizer.encode(so_far)), ~part[where]
        np.testing.assert_array_equal(given["image"][:, kept], codes[:, kept])


@pytest.mark.parametrize(
    "images, options, message",
    [
        (
            np.zeros((20, 20, 3), np.uint8),
            {"factor": 2},
            "20 x 20 pixels times factor = 2 are 40 x",
        ),
        (np.zeros((32, 32, 3), np.uint8), {"factor": 3}, "factor = 3, expected one of 1, 2, 4"),
        (
            np.zeros((32, 32), np.uint8),
            {},
            r"upscale: image uint8\[32\], expected uint8\[H, W, 3\]",
        ),
        (3, {}, r"upscale: image int '3', expected uint8\[n, H, W, 3\], an image of Pillow, a p"),
        (np.zeros((32, 32, 3), np.uint8), {"captions": ["a", "b"]}, "1 images, 2 captions"),
        (np.zeros((32, 32, 3), np.uint8), {"steps": 0.5}, "steps"),
    ],
)
def test_what_cannot_be_upscaled_is_one_line(pipe, images, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.upscale(images, **options)


def test_a_larger_size_reads_the_settings_of_its_rule(pipe):
    small = np.zeros((32, 32, 3), np.uint8)
    own = pipe.with_config(sample_rules={"image|coarse": {"sampler": "first_hitting"}})
    with pytest.raises(ValueError, match=r"eta = 0.3 changes nothing, sampler"):
        pipe.upscale(small, eta=0.3)
    with pytest.raises(ValueError, match=r"steps = 2 changes nothing, sampler first_hitting"):
        own.upscale(small, steps=2)


def test_a_run_of_one_level_cannot_upscale(tiny_run):
    with pytest.raises(ValueError, match="the pictures of this run have one level, expected a run"):
        pipeline.Pipeline.load(tiny_run).upscale(np.zeros((16, 16, 3), np.uint8))


def test_levels_and_upscaling_are_typed_as_flags(run, pipe, records, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    path = tmp_path / "small.png"
    pixels.write_png(path, half(records[0].image))

    def sample(out, **typed):
        flags = test_modalities.DEFAULTS | {"out": tmp_path / out} | typed
        out = generate.sample(run, types.SimpleNamespace(**flags))
        return out, json.loads((out / "samples.jsonl").read_text().splitlines()[0])

    out, line = sample("a", task="upscale", image=[str(path)], prompt=[TEXT], factor=2)
    assert pixels.read(out / line["image"]).shape == (64, 64, 3)
    out, line = sample("b", task="image|text", prompt=[TEXT], begin_steps=1)
    assert line["coarse"] == "coarse-0000.png" and line["begin_steps"] == 1
    _, line = sample("c", task="text|image", image=[str(out / "image-0000.png")])
    assert isinstance(line["caption"], str)
    with pytest.raises(ValueError, match="--factor means nothing for"):
        sample("d", task="image|text", prompt=[TEXT], factor=2)


@pytest.mark.slow
def test_the_main_job_makes_a_run_of_two_levels_with_its_numbers_and_its_report(tmp_path):
    c = config()
    c.data_options.size = 48
    c.vq.update({"steps": 8, "plain_steps": 2, "warmup": 1, "batch_size": 8, "merge": 0.0})
    c.train.update({"steps": 4, "prefix_steps": 2, "warmup": 1, "batch_size": 8})
    stages.run(c, tmp_path)
    tokenizer, source = (
        build.load_tokenizers(tmp_path)["image"],
        sources.open_source("shapes64", "train"),
    )
    codes = tokenizer.encode(np.stack([source[i].image for i in range(32)]))
    for part, (_, used) in zip((codes[:, :N1], codes[:, N1:]), tokenizer.maps, strict=True):
        assert float(codebook.perplexity(part, len(used))) > 1.5
    result = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(result["rules"]) == list(c.evaluate.rules) and not result["errors"]
    assert result["scores"]["t2i"]["count"] == 4 and "image|coarse" in result["rules"]
    assert "coarse, generated" in (tmp_path / "report.html").read_text()
    assert pipeline.Pipeline.load(tmp_path).upscale(np.zeros((16, 16, 3), np.uint8)).shape[1] == 64


# ---- The run ------------------------------------------------------------------------------------


def test_the_file_of_the_picture_has_both_levels_also_in_an_export(run, pipe, tmp_path):
    assert modalities.tokenizer_files(pipe.config) == ["vq/tokenizer", "text.model"]
    planned = {
        m.name: (m.length, m.classes, m.level_of) for m in plan.vocab_of(config()).modalities
    }
    assert planned["coarse"] == (N1, 12, "image") and planned["image"] == (N2, 16, "")
    pipe.save_pretrained(tmp_path / "out")
    other = pipeline.Pipeline.from_pretrained(tmp_path / "out")
    assert other.vocab == pipe.vocab and {
        name: found.hash for name, found in other.tokenizers.items()
    } == {name: found.hash for name, found in pipe.tokenizers.items()}


def test_the_token_cache_has_both_levels_of_each_view(run, tmp_path):
    c = config()
    c.views, c.data_options.size = 2, 6
    tokenizers, source = (
        build.load_tokenizers(run),
        sources.open_source("shapes64", "train", size=6),
    )
    stages.write_shards(c, tmp_path, source, tokenizers)
    cache = stages.token_cache.finish(tmp_path / "tokens")
    rows = np.arange(6)
    batch = cache.pairs(rows, 0 * rows, 0 * rows)
    pictures = np.stack([source[i].image for i in range(6)])
    np.testing.assert_array_equal(batch["image"], tokenizers["image"].encode(pictures))
    x0 = build.make_vocab(c, tokenizers).fuse(batch)
    assert x0.shape == (6, N1 + N2 + c.text.length) and not cache.further


def test_rules_measure_upscaling_by_the_scene_and_the_report_shows_both_levels(pipe, tmp_path):
    items = held_out.read(pipe, 4)
    assert items.codes.shape == (4, N1 + N2) and items.tokens["coarse"].shape == (4, N1)
    found = rules.measure(pipe, items, tmp_path, {})
    assert list(found) == ["image|text", "image|coarse", "image|coarse,text", "coarse|text"]
    assert all(not rates["given_tokens_changed"] for rates in found.values())
    assert set(found["coarse|text"]["readable"]) == {"coarse"}
    page = rule_sections.show(tmp_path, {"rules": found}, pipe.config.to_dict())
    assert page.count("coarse, given") == 8 and page.count("coarse, generated") == 8


def test_an_upscaled_picture_is_right_if_it_reads_back_as_the_scene(pipe, records):
    scenes = [record.extra["scene"] for record in records]
    world = shapes.WORLD_64
    read = {"coarse": scenes, "image": [scenes[0], scenes[0], None, scenes[3]]}
    assert rules._agree(world, read, pipe.kinds) == [True, scenes[0] == scenes[1], False, True]


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            {"rough": {"kind": "coarse"}},
            "modalities coarse and rough are of kind coarse: expected one",
        ),
        (
            {"coarse": {"kind": "coarse", "grid": 3}},
            "modalities.coarse.grid is unknown, expected some",
        ),
        (
            {"first": {"like": "image"}},
            "modalities.first.like = 'image' with 'coarse' of kind coarse",
        ),
        ({"first": {"like": "coarse"}}, "modalities.first.like = 'coarse', expected one of image"),
    ],
)
def test_levels_that_make_no_sense_are_one_line(rows, message):
    known = {"image": {"kind": "image"}, "text": {"kind": "text"}, "coarse": {"kind": "coarse"}}
    with pytest.raises(ValueError, match=message):
        modalities.rows({"modalities": known | rows})


def test_what_two_levels_do_not_have_is_refused_at_the_start():
    c = t2i.get_config("pyramid_smoke")
    c.dual_encoder.steps = 5
    with pytest.raises(
        ValueError, match=r"dual_encoder\.steps = 5, expected 0 with a picture of two"
    ):
        stages.check(c)
    c.dual_encoder.steps, c.image_size = 0, 72
    with pytest.raises(ValueError, match="image_size = 72, expected a multiple of 16"):
        stages.check(c)


def test_the_larger_world_shows_the_same_scenes_with_more_pixels(records):
    small = [sources.open_source("shapes", "test", size=4)[i] for i in range(4)]
    assert [r.captions for r in small] == [r.captions for r in records]
    scenes = [r.extra["scene"] for r in small]
    assert shapes.WORLD_64.read_images(np.stack([r.image for r in records])) == scenes
    plain = drawing.render(scenes[0], scale=2).reshape(32, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(plain - drawing.render(scenes[0])).max() < 1.1  # its average is the small one


def test_a_canvas_without_known_pixels_is_filled_window_by_window():
    canvas, known, order = np.zeros((1, 5, 7, 3), np.uint8), np.zeros((5, 7), bool), []

    def infill(windows, mask, number, here):
        order.append((here[0].start, here[1].start, int(mask.sum())))
        return np.full_like(windows, number + 1)

    made = outpainting.fill(infill, canvas, known, (3, 3), (0, 0), 1)
    assert known.all() and (made > 0).all() and order[0] == (0, 0, 9)
    assert sum(drawn for _, _, drawn in order) == 35 and max(o[2] for o in order[1:]) < 9


# ---- On the page --------------------------------------------------------------------------------


def test_the_page_draws_a_picture_coarse_first_whoever_else_asks(pipe):
    asked = [requests.make(pipe, "t2i", text=TEXT, count=n, seed=s) for n, s in ((2, 3), (1, 4))]
    assert asked[0].group == asked[1].group != requests.make(pipe, "image").group
    for request, found in zip(asked, requests.Request.compute(pipe, asked), strict=True):
        alone = pipe.text_to_image(TEXT, num=len(request), seed=request.seed)
        np.testing.assert_array_equal(found.tokens, alone.tokens)


def test_what_the_page_upscales_is_made_again_by_both_recipes(
    pipe, run, records, tmp_path, monkeypatch
):
    shown = {"text": TEXT, "count": 2, "seed": 3}
    picture = np.ascontiguousarray(records[0].image)
    request = requests.upscale(pipe, picture, factor=2, **shown)
    (found,) = request.compute(pipe, [request])
    assert found.images.shape == (2, 128, 128, 3)
    way = steering.Steered({}, ["--factor=2"], {"factor": "2"})
    files, more = {"image.png": picture}, {"image": True, "settings": {}, "steered": [way]}
    with monkeypatch.context() as patched:
        again = (files, "upscale", found, patched)
        test_steering.made_again(pipe, run, tmp_path, *again, **shown, **more)
    with pytest.raises(ValueError, match="the picture is missing"):
        requests.upscale(pipe, None, TEXT, 2)


def test_the_page_upscales_only_where_a_picture_has_two_levels(pipe, tiny_run):
    (tab,) = (tab for tab in page.TABS if tab.task == "upscale")
    one = pipeline.Pipeline.load(tiny_run)
    can = lambda pipe: page.Page.can(types.SimpleNamespace(pipe=pipe), tab)  # noqa: E731
    assert can(pipe) and not can(one)


# ---- Measured -----------------------------------------------------------------------------------


def test_upscaling_reads_each_picture_and_each_quadrant(run, pipe, records, monkeypatch):
    images = np.stack([r.image for r in records])
    np.testing.assert_array_equal(upscaling.quadrants(upscaling.quartered(images)), images)
    large = upscaling.quartered(images)[0]
    np.testing.assert_array_equal(large[:64, 64:], images[1])
    np.testing.assert_array_equal(large[64:, :64], images[2])
    items = held_out.read(pipe, 4)
    assert upscaling.halved(items.images).shape == (4, 32, 32, 3)

    def perfect(pipe, small, factor=1, seed=0):
        return upscaling.quartered(items.images) if factor == 2 else items.images

    with monkeypatch.context() as patched:
        patched.setattr(pipeline.Pipeline, "upscale", perfect)
        found = upscaling.run(run, 4, 0)
    assert [(row["rate"], row["count"]) for row in found.values()] == [(1.0, 4)] * 2


@pytest.mark.slow
def test_upscaling_of_a_run_is_measured(run, tmp_path):
    benchmarks.main(["upscaling", f"--run={run}", "--count=4", f"--out={tmp_path}/rows.json"])
    found = files.read_json(tmp_path / "rows.json")
    assert {name: row["count"] for name, row in found.items()} == {"small": 4, "windows": 4}
