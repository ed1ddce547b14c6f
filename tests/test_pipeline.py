"""The Python face, on a run that was never trained: shapes, seeds, what is given stays."""

import dataclasses
import doctest
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import udd_jax
from udd_jax import build, pipeline, stages
from udd_jax.data import pixels, records, sources
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError

SIZE = 4  # the batch of every call here, so that one compilation serves


def test_the_examples_of_the_docstrings_run(pipe):
    finder, runner = doctest.DocTestFinder(), doctest.DocTestRunner()
    found = [t for t in finder.find(pipeline.Pipeline, "Pipeline") if t.examples]
    assert len(found) >= 8
    for test in found:
        test.globs["pipe"] = pipe
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0


def test_all_tasks_are_one_compilation(tiny_run, pictures):
    pipe = pipeline.Pipeline.load(tiny_run)
    images, captions = pictures
    pipe.pairs(SIZE)
    pipe.images(SIZE)
    pipe.texts(SIZE)
    pipe.text_to_image(captions)
    pipe.image_to_text(images)
    half = np.zeros((32, 32), bool)
    half[:16] = True
    pipe.infill(images, half, captions)
    assert pipe._sample._cache_size() == 1


def test_the_same_seed_gives_the_same_samples_in_any_batch(pipe):
    whole = pipe.pairs(SIZE, seed=3)
    parts = pipe.pairs(SIZE, seed=3, batch_size=3)
    other = pipe.pairs(SIZE, seed=4)
    np.testing.assert_array_equal(whole.tokens, parts.tokens)
    assert (whole.tokens != other.tokens).any()


def test_calls_for_other_numbers_of_samples_are_one_compilation(tiny_run, pictures):
    pipe = pipeline.Pipeline.load(tiny_run)
    images, captions = pictures
    for count in (1, 4, 3, 2):
        assert len(pipe.text_to_image(captions[:count]).images) == count
        bits = pipe.log_likelihood(images[:count], captions[:count], times=1)
        assert len(bits) == count
    assert len(pipe.text_to_image(captions[0], num=7, batch_size=4).images) == 7
    assert (pipe._sample._cache_size(), pipe._bound._cache_size()) == (1, 1)


def test_a_few_scores_are_those_of_many(pipe, pictures):
    images, captions = pictures
    whole = pipe.log_likelihood(images, captions, times=2)
    few = pipe.log_likelihood(images[:3], captions[:3], times=2)
    np.testing.assert_allclose(few, whole[:3], rtol=1e-5)


def test_num_samples_of_each_are_the_repeated_values(pipe, pictures):
    images, captions = pictures
    twice = [caption for caption in captions[:2] for _ in range(2)]
    drawn = pipe.text_to_image(captions[:2], num=2, seed=4)
    np.testing.assert_array_equal(drawn.tokens, pipe.text_to_image(twice, seed=4).tokens)
    assert pipe.image_to_text(images[0], num=SIZE).tokens.shape[0] == SIZE
    against = pipe.text_to_image(captions[:2], num=2, negative="a circle", guidance=2.0)
    one_each = ["a circle", "a circle"]
    options = {"given": {"text": captions[:2]}, "num": 2, "guidance": 2.0}
    same = pipe.generate("t2i", negative={"text": one_each}, **options)
    np.testing.assert_array_equal(against.tokens, same.tokens)
    mask = np.ones((32, 32), bool)
    assert len(pipe.infill(images[0], mask, "a ___ circle", num=SIZE).captions) == SIZE


def test_a_string_an_image_of_pillow_and_a_list_are_values(pipe, pictures):
    images, captions = pictures
    one, many = pipe.text_to_image(captions[0]), pipe.text_to_image(captions[:1])
    np.testing.assert_array_equal(one.tokens, many.tokens)
    shown = [Image.fromarray(image) for image in images]
    np.testing.assert_array_equal(
        pipe.image_to_text(shown).tokens, pipe.image_to_text(images).tokens
    )
    np.testing.assert_array_equal(np.stack([np.asarray(i) for i in one.pil]), one.images)
    assert pipe.texts(1).pil is None


def test_batches_come_one_by_one_and_join_to_the_whole(pipe):
    parts = list(pipe.stream("pair", 6, seed=3, batch_size=4, trace=2))
    whole = pipe.generate("pair", 6, seed=3, batch_size=4, trace=2)
    assert [len(part.captions) for part in parts] == [4, 2]
    assert whole.captions == parts[0].captions + parts[1].captions
    np.testing.assert_array_equal(whole.images, np.concatenate([part.images for part in parts]))
    assert whole.states.shape == (2, 6, pipe.vocab.length)
    with pytest.raises(ValueError, match="count 0: expected at least 1 sample"):
        pipe.stream("pair", 0)  # at once, and not with the first batch


def test_a_pipeline_and_a_result_are_shown_in_a_line(pipe):
    shown = repr(pipe)
    assert shown.startswith("Pipeline t2i-smoke: image (16 tokens of 16), text (13 tokens of ")
    assert " parameters; data shapes" in shown and "trained on i2t, image, " in shown
    assert len(shown) < 200 and "\n" not in shown
    assert repr(pipe.images(2)) == "Result: 2 samples of image"


def test_compiled_programs_are_kept_in_the_folder_of_the_user(tiny_run, tmp_path):
    """In another process, since the folder of this one is chosen (conftest.py)."""
    code = (
        "import sys, jax, udd_jax\n"
        "jax.jit(lambda x: x + 1)(1)  # before the folder is known\n"
        "udd_jax.Pipeline.load(sys.argv[1])\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.jit(lambda x: x + 2)(1)"
    )
    hidden = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME")
    env = {k: v for k, v in os.environ.items() if k not in hidden}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(pathlib.Path.cwd())}
    subprocess.run([sys.executable, "-c", code, str(tiny_run)], env=env, check=True)
    assert list((tmp_path / "udd_jax" / "compiled").glob("jit__lambda*"))


def test_the_package_lists_what_it_has():
    assert {"Pipeline", "Result", "__version__"} <= set(dir(udd_jax))
    assert udd_jax.__version__[:1].isdigit() or udd_jax.__version__ == "unknown"


def test_later_samples_can_be_drawn_without_the_first(pipe):
    whole = pipe.pairs(2 * SIZE, seed=3, batch_size=SIZE)
    later = pipe.pairs(SIZE, seed=3, first=SIZE)
    np.testing.assert_array_equal(whole.tokens[SIZE:], later.tokens)


def test_with_common_noise_equal_pairs_have_equal_bounds(pipe, pictures):
    images, captions = ([part[0]] * SIZE for part in pictures)
    tokens = {"image": pipe.tokenizers["image"].encode(np.stack(images))}
    tokens["text"] = pipe.codecs["text"].encode(captions, strict=False)
    common = pipe.score(tokens, task="i2t", times=2, common=True)
    np.testing.assert_allclose(common, common[:1].repeat(SIZE, 0), rtol=1e-5)
    assert np.ptp(pipe.score(tokens, task="i2t", times=2).sum(1)) > 0.01


def test_an_exported_run_is_half_as_large_and_generates(tiny_run, tmp_path):
    stages.export(tiny_run, tmp_path / "small")
    sizes = [(run / build.WEIGHTS).stat().st_size for run in (tiny_run, tmp_path / "small")]
    assert sizes[1] < 0.7 * sizes[0]
    small = pipeline.Pipeline.load(tmp_path / "small")
    for a, b in zip(
        jax.tree.leaves(small.params),
        jax.tree.leaves(build.load_weights(tiny_run)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="holds a run already"):
        stages.export(tiny_run, tmp_path / "small")


def test_given_tokens_are_in_the_output_bit_for_bit(pipe, pictures):
    images, captions = pictures
    codes, ids = (
        pipe.tokenizers["image"].encode(images),
        pipe.codecs["text"].encode(captions, strict=False),
    )
    drawn = pipe.vocab.split(pipe.text_to_image(captions).tokens)
    np.testing.assert_array_equal(drawn["text"], ids)
    drawn = pipe.vocab.split(pipe.image_to_text(images).tokens)
    np.testing.assert_array_equal(drawn["image"], codes)


def test_infilling_keeps_the_other_words_and_the_other_codes(pipe, pictures):
    images, _ = pictures
    given = ["there is a ___ circle", "a ___ square ___ a triangle", "a red ___", "___ square"]
    mask = np.zeros((32, 32), bool)
    mask[:, :9] = True  # one pixel into the second column of codes
    drawn = pipe.infill(images, mask, given)
    split = pipe.vocab.split(drawn.tokens)
    hidden = np.stack([pixels.hide(image, mask) for image in images])
    codes = pipe.tokenizers["image"].encode(hidden).reshape(SIZE, 4, 4)
    np.testing.assert_array_equal(
        np.asarray(split["image"]).reshape(SIZE, 4, 4)[:, :, 2:], codes[:, :, 2:]
    )
    for i, caption in enumerate(given):
        ids, free = pipe.tokenizers["text"].encode_with_blanks(caption, pipe.text_length)
        np.testing.assert_array_equal(np.asarray(split["text"][i])[~free], ids[~free])


def test_pixels_under_the_mask_do_not_matter(pipe, pictures):
    images, captions = pictures
    mask = np.zeros((32, 32), bool)
    mask[8:24, 8:24] = True
    other = images.copy()
    other[:, mask] = 7
    one = pipe.infill(images, mask, captions, seed=1)
    two = pipe.infill(other, mask, captions, seed=1)
    np.testing.assert_array_equal(one.tokens, two.tokens)


def test_no_values_are_one_line(pipe, pictures):
    for call in (
        lambda: pipe.infill(images=[]),
        lambda: pipe.infill(captions=[]),
        lambda: pipe.text_to_image(prompts=[([], 1.0)]),
        lambda: pipe.text_to_image(prompts=[({}, 1.0)]),
    ):
        with pytest.raises(UserError, match="given"):
            call()


def test_infilling_nothing_is_an_error(pipe, pictures):
    with pytest.raises(ValueError, match="nothing is missing"):
        pipe.infill(pictures[0], None, pictures[1])


def test_a_rule_and_values_say_what_a_task_and_ids_say(pipe, pictures):
    images, captions = pictures
    ids = pipe.codecs["text"].encode(captions)
    by_name = pipe.text_to_image(captions, seed=2)
    for given in (captions, ids):
        result = pipe.generate("image|text", given={"text": given}, seed=2)
        np.testing.assert_array_equal(result.tokens, by_name.tokens)
    assert list(result.values) == ["image", "text"] and result.values["text"] == captions
    np.testing.assert_array_equal(result.values["image"], by_name.images)
    other = pipe.generate("text|image", given={"image": images}, seed=2)
    np.testing.assert_array_equal(other.tokens, pipe.image_to_text(images, seed=2).tokens)
    assert list(pipe.generate("image", SIZE, seed=2).values) == ["image"]


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("image|sound", {"given": {}}, "names 'sound': expected FREE or FREE|GIVEN of image, text"),
        ("image|text", {}, "task 'image|text': given 'text' is missing"),
        ("image", {"given": {"text": ["a circle"]}}, "'text' is not given in it, expected nothing"),
        (
            "t2i",
            {"given": {"sound": [1]}},
            "given 'sound' is not a modality, expected some of image",
        ),
        ("t2i", {"given": {"text": np.zeros((2, 5), int)}}, "has 5 ids a sample, expected 13"),
        ("t2i", {"given": {"text": np.full((1, 13), 999)}}, "given 'text' has ids 999 to 999, exp"),
        (
            "t2i",
            {"given": {"text": np.full((1, 13), -1)}},
            "given 'text' has ids -1 to -1, exp",
        ),
        ("t2i", {"given": {"text": ["a"]}, "count": 3}, "numbers of samples: text 1, count 3"),
        (
            "text|image",
            {"given": {"image": np.zeros((32, 32), np.uint8)}},
            "given 'image' is uint8[32, 32], expected uint8[32, 32, 3], or ids int[n, 16]",
        ),
        (None, {}, "task = None, expected a string, a rule such as 'image|text'"),
        (["text"], {}, "task = ['text'], expected a string"),
        ("t2i", {"given": "a circle"}, "given = 'a circle', expected {modality: values} such as {"),
        ("t2i", {"given": [("text", "a")]}, "given = [('text', 'a')], expected {modality: val"),
        ("i2t", {"given": np.zeros((9, 9, 9))}, "given = array([[[0., 0., 0., 0., 0., 0., 0., 0."),
        (
            "t2i",
            {"given": {"text": ["a"]}, "weigh": 2},
            "weigh = 2, expected {modality: weight} such as {'text': 0.5}",
        ),
        ("pair", {"count": 2, "begin_with": 3}, "begin_with = 3, expected names of modalities"),
        ("t2i", {"given": {"text": []}}, "text 0: expected at least 1 sample"),
        ("pair", {}, "count is missing: say how many samples, as in generate('pair', 4)"),
        (
            "t2i",
            {"given": {"text": ["a"] * 3}, "negative": {"text": ["a", "a"]}, "guidance": 2.0},
            "numbers of samples: text 2, count 3",
        ),
    ],
)
def test_what_does_not_fit_the_rule_is_one_line(pipe, task, options, message):
    with pytest.raises(ValueError) as caught:
        pipe.generate(task, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_an_absent_modality_does_not_come_back(pipe):
    assert pipe.images(SIZE).captions is None
    assert pipe.texts(SIZE).images is None


def test_rows_that_lack_different_modalities_are_one_line(pipe):
    masks = tasks.masks(pipe.vocab, "image", 2)
    other = tasks.masks(pipe.vocab, "pair", 2)
    both = tasks.Masks(*(np.stack([a[0], b[1]]) for a, b in zip(masks, other, strict=True)))
    with pytest.raises(ValueError, match="masks: rows lack different modalities"):
        pipe.generate("pair", 2, masks=both)


def test_the_trace_ends_in_the_sample(pipe):
    drawn = pipe.pairs(SIZE, trace=3)
    assert drawn.states.shape == (3, SIZE, pipe.vocab.length)
    np.testing.assert_array_equal(drawn.states[-1], drawn.tokens)


def test_the_bound_is_of_the_free_modalities_only(pipe, pictures):
    images, captions = pictures
    bits = pipe.log_likelihood(images, captions, task="t2i", times=2)
    assert (bits[:, 0] < 0).all()
    assert (bits[:, 1] == 0).all()
    assert (pipe.log_likelihood(images, captions, times=2) < 0).all()


@pytest.mark.parametrize("calls", [101, -1, 2.5])
def test_a_bound_has_at_most_as_many_steps_as_the_chain(pipe, pictures, calls):
    ids = {"image": np.zeros((1, 16), int), "text": np.zeros((1, pipe.text_length), int)}
    with pytest.raises(ValueError, match="calls = "):
        pipe.score(ids, calls=calls)


def test_the_parts_of_the_tokens_sum_to_the_bound(pipe, pictures):
    for task in ("pair", "i2t"):
        whole = pipe.log_likelihood(*pictures, task=task, times=2, seed=3)
        each = pipe.log_likelihood(*pictures, task=task, times=2, seed=3, each=True)
        assert each.shape == (SIZE, pipe.vocab.length)
        sums = np.stack([each[:, where].sum(axis=1) for where in pipe.vocab.slices], axis=1)
        np.testing.assert_allclose(sums, whole, rtol=1e-5)
    assert (each[:, pipe.vocab.slices[0]] == 0).all() and (each[:, pipe.vocab.slices[1]] < 0).any()


def test_calls_with_several_seeds_join_in_one_batch(pipe):
    keys = [pipeline.sample_keys(seed, count) for seed, count in ((7, 1), (8, 3))]
    both = pipe.generate("pair", SIZE, keys=jax.numpy.concatenate(keys))
    np.testing.assert_array_equal(both.rows(0, 1).tokens, pipe.pairs(1, seed=7).tokens)
    np.testing.assert_array_equal(both.rows(1, SIZE).tokens, pipe.pairs(3, seed=8).tokens)
    assert both.rows(1, SIZE).captions == both.captions[1:]
    for wrong in (keys[0], keys[1]):
        with pytest.raises(ValueError, match=rf"keys: {len(wrong)}, expected {SIZE}, one for each"):
            pipe.generate("pair", SIZE, keys=wrong)
    few = pipe.generate("t2i", given={"text": ["a red circle"] * 3}, keys=keys[1], best_of=2)
    assert len(few.images) == 3


def test_a_run_says_what_it_can(pipe):
    assert all(pipe.can(task) for task in ("pair", "t2i", "text", "infill"))
    conditional = dataclasses.replace(pipe, model=pipe.model.clone(network="image_from_text"))
    assert conditional.can("t2i") and not conditional.can("i2t")


def test_the_bound_of_a_uniform_network_is_the_uniform_code_length(pipe, pictures):
    """With all logits 0 each token costs log2 K bits at least, and at a mask exactly."""
    silent = dataclasses.replace(pipe, params=pipe.params | {"rezero": np.float32(0)})
    bits = silent.log_likelihood(*pictures, task="text", times=6)[:, 1]
    k = pipe.tokenizers["text"].vocab_size
    assert (-bits / pipe.text_length > 0.8 * np.log2(k)).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "a"}, "seed = 'a', expected a whole number"),
        ({"steps": "5"}, "sample.steps = '5', expected a whole number"),
        ({"num": 0}, "num = 0, expected a whole number, at least 1"),
        ({"batch_size": 0}, "batch_size = 0, expected a whole number, at least 1"),
        ({"steps": 7}, "sample.steps = 7 is more than the T = 6"),
        ({"top_r": 1.5}, "sample.top_r = 1.5"),
        ({"colour": 1}, "sample.colour is not a setting"),
        ({"sampler": "magic"}, "sample.sampler = 'magic'"),
    ],
)
def test_a_bad_setting_is_named(pipe, changes, message):
    with pytest.raises(ValueError, match=message):
        pipe.pairs(1, **changes)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63])
def test_a_seed_that_would_be_another_one_or_none_is_refused_by_every_method(pipe, pictures, seed):
    images, captions = pictures
    calls = {
        "text_to_image": (captions,), "image_to_text": (images,), "pairs": (1,), "images": (1,),
        "texts": (1,), "edit": (images, captions), "log_likelihood": (images, captions),
        "rerank": (images, captions),
    }  # fmt: skip
    more = {"rerank": {"num": 2}}
    calls |= {"outpaint": (images,), "infill": (None, None, ["a ___ circle"])}
    more["outpaint"] = {"extend": {"left": 8}}
    for name, given in calls.items():
        with pytest.raises(ValueError, match=rf"^seed = {seed}, expected 0 to 4294967295$"):
            getattr(pipe, name)(*given, seed=seed, **more.get(name, {}))
    with pytest.raises(ValueError, match=rf"^seed = {seed}, expected 0 to 4294967295$"):
        pipe.image_to_text(images, length=2, seed=seed)


def test_the_windows_of_the_last_seed_have_seeds_too(pipe, pictures):
    wide = pipe.outpaint(pictures[0][:1], extend={"left": 8, "right": 8}, seed=2**32 - 1)
    assert wide.shape == (1, 32, 48, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "first_hitting", "steps": 2}, "steps = 2 changes nothing, sampler first_hitt"),
        ({"eta": 0.5}, "eta = 0.5 changes nothing, sampler ancestral .*sampler='remdm_cap'$"),
        ({"guidance_schedule": "linear"}, "guidance is off: leave it out, or set guidance=2.0$"),
        ({"negative": "a circle"}, "^negative changes nothing, guidance is off: set guidance=2$"),
        ({"by": "match"}, "^by = 'match' changes nothing with best_of = 1: set best_of=2 or more$"),
        ({"begin_steps": 2}, "begin_steps = 2: name what comes first with begin_with"),
    ],
)
def test_what_a_call_would_not_read_is_refused(pipe, pictures, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        pipe.text_to_image(pictures[1], **changes)
    assert "\n" not in str(caught.value)
    others = {n: v for n, v in changes.items() if n not in ("negative", "by", "begin_steps")}
    if others:
        with pytest.raises(ValueError, match=message):
            pipe.edit(*pictures, **{"guidance": 1.0, **others})
        with pytest.raises(ValueError, match=message):
            pipe.outpaint(pictures[0], extend={"left": 8}, **others)


def test_an_edit_and_an_extension_read_the_settings_of_infilling(pipe, pictures):
    own = pipe.with_config(sample_rules={"infill": {"sampler": "entropy_bounded"}})
    assert own.edit(*pictures, bound=0.2, rounds=1).images.shape[0] == len(pictures[1])
    with pytest.raises(ValueError, match="steps = 2 changes nothing, sampler entropy_bounded"):
        own.edit(*pictures, steps=2, rounds=1)
    with pytest.raises(ValueError, match="steps = 2 changes nothing, sampler entropy_bounded"):
        own.outpaint(pictures[0], extend={"left": 8}, steps=2)


def test_a_negative_prompt_that_names_no_modality_is_one_line(pipe, pictures):
    for call in (pipe.image_to_text, lambda images, **more: pipe.edit(images, "a", **more)):
        with pytest.raises(ValueError, match=r"^negative = 'x', expected \{'text': what to lead"):
            call(pictures[0], negative="x", guidance=2.0)


def test_what_a_run_has_by_itself_is_never_refused_and_nor_are_all_settings_together(pipe):
    own = pipe.with_config(sample={"sampler": "first_hitting", "steps": 3, "eta": 0.5})
    drawn = own.texts(SIZE)
    again = own.texts(SIZE, **dataclasses.asdict(own.settings()))
    np.testing.assert_array_equal(drawn.tokens, again.tokens)
    with pytest.raises(ValueError, match="steps = 3 changes nothing"):
        own.texts(SIZE, steps=3)


def test_a_setting_counts_if_one_of_two_steps_reads_it(pipe):
    own = pipe.with_config(sample_rules={"text": {"sampler": "first_hitting"}})
    two = {"begin_with": "text", "steps": 2}
    made = own.pairs(SIZE, **two)
    first = own.texts(1).calls[0]
    assert made.calls.tolist() == [first + 2] * SIZE  # the image alone has two steps
    with pytest.raises(ValueError, match="begin_steps = 2 changes nothing, sampler first_hitting"):
        own.pairs(SIZE, begin_steps=2, **two)
    with pytest.raises(ValueError, match="noise = 1 changes nothing, sampler ancestral"):
        own.pairs(SIZE, noise=1, **two)


def test_examples_are_of_any_record_and_a_split_without_pictures_is_one_line(pipe, monkeypatch):
    texts = [f"caption {n}" for n in range(9)]
    rows = [  # the first ones have no picture
        records.Record(str(n), np.full((32, 32, 3), n, np.uint8) if n > 6 else None, (texts[n],))
        for n in range(9)
    ]

    class Source(list):
        name = "source"

    monkeypatch.setattr(sources, "open_source", lambda *_, **__: Source(rows))
    images, captions = pipe.example(1)
    assert captions == ["caption 7"] and (images == 7).all() and images.shape == (1, 32, 32, 3)
    assert pipe.example(5)[1] == ["caption 7", "caption 8"]
    monkeypatch.setattr(sources, "open_source", lambda *_, **__: Source(rows[:3]))
    with pytest.raises(ValueError, match="split 'test' of source has no picture with a caption"):
        pipe.example(1)


def test_a_negative_prompt_counts_if_one_of_two_steps_is_guided(pipe):
    own = pipe.with_config(sample_rules={"text|image": {"guidance": 2.0}})
    asked = {"begin_with": "image", "seed": 1}
    away = own.generate("pair", SIZE, negative={"image": own.example(1)[0]}, **asked)
    assert (away.tokens != own.pairs(SIZE, **asked).tokens).any()
    with pytest.raises(ValueError, match="negative changes nothing, guidance is off"):
        pipe.generate("pair", SIZE, negative={"image": own.example(1)[0]}, **asked)


def test_a_mask_without_a_picture_is_refused(pipe):
    with pytest.raises(ValueError, match="image_mask is given and images= is missing"):
        pipe.infill(None, np.ones((32, 32), bool), ["a ___"])


def test_guidance_needs_a_run_that_has_seen_absent_conditions(pipe):
    config = pipe.config.copy_and_resolve_references()
    config.train.mixture = {"pair": 1.0}
    only_pairs = dataclasses.replace(pipe, config=config)
    with pytest.raises(ValueError, match=r"sample.guidance = 2.0, but this run"):
        only_pairs.text_to_image(["a circle"], guidance=2.0)


@pytest.mark.parametrize("caption", ["", " ".join(["circle"] * 15)])
def test_a_caption_that_is_empty_or_too_long_is_an_error(pipe, caption):
    with pytest.raises(ValueError, match="prompt: "):
        pipe.text_to_image([caption])


def test_a_score_of_what_does_not_fit_is_one_line(pipe, pictures):
    images, captions = pictures
    for options in ({"times": 0}, {"times": -1}, {"times": "2"}):
        with pytest.raises(ValueError, match=r"times = .*, expected a whole number, at least 1"):
            pipe.log_likelihood(images, captions, **options)
    with pytest.raises(ValueError, match="different numbers of samples: image 4, text 1"):
        pipe.log_likelihood(images, captions[0])
    with pytest.raises(ValueError, match="prompt: "):
        pipe.log_likelihood(images[:1], [" ".join(["circle"] * 15)])


def test_a_folder_that_is_no_run_is_said_to_be_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config.json: it is not the folder"):
        pipeline.Pipeline.load(tmp_path)


def test_weights_that_do_not_fit_the_config_are_refused(pipe):
    config = pipe.config.copy_and_resolve_references()
    config.model.width = 32
    with pytest.raises(ValueError, match="weights"):
        pipeline.Pipeline.assemble(config, pipe.tokenizers, jax.device_get(pipe.params))


@pytest.mark.slow
def test_eight_devices_give_the_samples_of_one(pipe):
    one = pipe.pairs(8, seed=5)
    assert pipe.mesh is None
    many, seen = dataclasses.replace(pipe, mesh=pipeline.sharding.make_mesh(8, 1)), []
    sample = many._sample
    many.__dict__["_sample"] = lambda *a, **k: seen.append(sample(*a, **k)) or seen[-1]
    eight = many.pairs(8, seed=5)
    np.testing.assert_array_equal(one.tokens, eight.tokens)
    places = [array.sharding for array in jax.tree.leaves(seen)]
    assert {len(place.device_set) for place in places} == {8}
    assert not all(place.is_fully_replicated for place in places)


def test_a_batch_is_computed_on_the_mesh_of_the_pipeline(pipe):
    many = dataclasses.replace(pipe, mesh=pipeline.sharding.make_mesh(8, 1))
    split, places = jax.jit(lambda x: pipeline.sharding.constrain(x, "data")), []

    def function(rows, keys):
        places.append(split(rows).sharding)
        return rows

    (rows,) = many._in_batches(function, pipeline.sample_keys(0, 8), 8)
    assert rows.tolist() == list(range(8))
    assert len(places[0].device_set) == 8 and not places[0].is_fully_replicated


@pytest.mark.parametrize(
    ("task", "own"),
    [
        *(("text", True), ("pair", True), ("text,image", True)),
        *(("text|image", False), ("i2t", False), ("infill", False), (None, False)),
    ],
)
def test_a_rule_samples_with_settings_of_its_own_and_no_other_rule_does(pipe, task, own):
    rules = {"text": {"top_r": 0.5}, "pair": {"top_r": 0.5}}
    other = pipe.with_config(sample_rules=rules)
    assert other.settings(task).top_r == (0.5 if own else 1.0)
    assert other.settings(task, top_r=0.25).top_r == 0.25  # what a call asks for comes first


def test_samples_of_a_rule_are_those_of_its_own_settings_typed(pipe):
    by_rule = pipe.with_config(sample_rules={"text": {"top_k": 1}}).generate("text", 3, seed=2)
    np.testing.assert_array_equal(by_rule.tokens, pipe.generate("text", 3, seed=2, top_k=1).tokens)
    assert (by_rule.tokens != pipe.generate("text", 3, seed=2).tokens).any()


def test_a_pipeline_with_another_config_leaves_the_first_as_it_is(pipe):
    other = pipe.with_config(sample={"top_r": 0.5}, evaluate={"split": "validation"})
    assert (other.config.sample.top_r, other.config.evaluate.split) == (0.5, "validation")
    assert (pipe.config.sample.top_r, pipe.config.evaluate.split) == (1.0, "test")
    assert other._sample is pipe._sample  # nothing is compiled twice
