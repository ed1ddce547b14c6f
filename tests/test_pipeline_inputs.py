"""What a call of the Python interface takes, and what it refuses in one line; not a trained run."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.diffusion import tasks
from udd_jax.steering import infilling

A, B = "a red circle", "a small blue square"
HALF = np.arange(32)[None].repeat(32, 0) < 16


def equal(*results):
    first, *others = [result.tokens for result in results]
    for other in others:
        np.testing.assert_array_equal(first, other)


# ---- Pictures and masks -------------------------------------------------------------------------


def test_a_grey_picture_whose_side_is_the_number_of_codes_is_not_taken_for_ids(pipe, pictures):
    ids = pipe.codecs["image"].encode(pictures[0])
    equal(pipe.image_to_text(ids, seed=1), pipe.image_to_text(pictures[0], seed=1))
    with pytest.raises(ValueError, match=r"is uint8\[16, 16\], expected uint8\[32, 32, 3\], or"):
        pipe.image_to_text(np.zeros((16, 16), np.uint8))


def test_an_image_of_pillow_is_turned_as_its_file_is(pipe, pictures, tmp_path):
    image, path = Image.fromarray(pictures[0][0]), tmp_path / "turned.png"
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(path, exif=exif)
    opened = Image.open(path)
    equal(pipe.image_to_text(opened, seed=1), pipe.image_to_text(str(path), seed=1))
    encoded = pipe.codecs["image"].encode(np.rot90(pictures[0][:1], -1, (1, 2)))
    equal(pipe.image_to_text(encoded, seed=1), pipe.image_to_text(opened, seed=1))


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "F"])
def test_a_mask_of_pillow_is_the_mask_of_its_file(pipe, pictures, mode, tmp_path):
    if mode == "RGBA":  # white strokes on what is clear and, below it, white as well
        drawn = np.dstack([np.full((32, 32, 3), 255, np.uint8), HALF.astype(np.uint8) * 255])
        mask = Image.fromarray(drawn)
    else:
        mask = Image.fromarray(HALF.astype(np.float32))
        mask = mask if mode == "F" else Image.fromarray(HALF.astype(np.uint8) * 255).convert(mode)
    path = tmp_path / ("m.tiff" if mode == "F" else "m.png")
    mask.save(path)
    np.testing.assert_array_equal(pixels.read_mask(path, 32), HALF)
    images, captions = pictures
    equal(
        pipe.infill(images, HALF, captions, seed=1),
        pipe.infill(images, mask, captions, seed=1),
        pipe.infill(images, Image.open(path), captions, seed=1),
    )


@pytest.mark.parametrize("own", [True, False], ids=["of the picture", "of the run"])
@pytest.mark.parametrize("drawn", [True, False], ids=["pillow", "array"])
def test_what_a_mask_hides_of_a_large_picture_changes_nothing_beside_it(pipe, own, drawn):
    noise = np.random.default_rng(0).integers(0, 256, (96, 120, 3)).astype(np.uint8)
    large, small = np.zeros((96, 120), bool), np.zeros((32, 32), bool)
    large[:, 12:66], small[:, :18] = True, True  # the middle of the picture begins at 12
    other = np.where(large[..., None], 255 - noise, noise)
    mask = large if own else small
    mask = Image.fromarray(mask) if drawn else mask
    one, two = (pipe.infilling(Image.fromarray(p), mask) for p in (noise, other))
    np.testing.assert_array_equal(one[0]["image"], two[0]["image"])
    free = one[1].free[0, : pipe.vocab.modalities[0].length].reshape(4, 4)
    assert free.tolist() == [[True, True, True, False]] * 4


@pytest.mark.parametrize("shape", [(10, 15), (7, 5), (4, 4), (3, 9), (2, 3)])
def test_a_mask_spread_over_a_picture_covers_all_that_its_pixels_show(shape):
    top, left, bottom, right = pixels.middle(shape, (4, 4))
    for y, x in np.ndindex(4, 4):
        mask = np.zeros((4, 4), bool)
        mask[y, x] = True
        expected = np.zeros(shape, bool)
        for row, column in np.ndindex(bottom - top, right - left):
            down = row / (bottom - top) * 4, (row + 1) / (bottom - top) * 4
            along = column / (right - left) * 4, (column + 1) / (right - left) * 4
            overlap = [min(e, i + 1) - max(b, i) for (b, e), i in ((down, y), (along, x))]
            expected[top + row, left + column] = min(overlap) > 1e-9
        np.testing.assert_array_equal(infilling.spread(mask, shape), expected)


def test_a_mask_of_another_kind_or_size_is_one_line(pipe):
    image = Image.fromarray(np.zeros((96, 120, 3), np.uint8))
    sizes = r"expected bool\[32, 32\] or bool\[96, 120\], one for each image"
    for bad in (HALF[:2], HALF.astype(int), "mask.png"):
        with pytest.raises(ValueError, match=rf"image_mask: .*, {sizes}"):
            pipe.infilling(image, bad)
    with pytest.raises(ValueError, match=r"image_mask: bool\[2, 32\], expected bool\[32, 32\], o"):
        pipe.infilling(np.zeros((32, 32, 3), np.uint8), HALF[:2])
    with pytest.raises(ValueError, match="blank_tokens = 3 changes nothing: no caption has ___"):
        pipe.infilling(image, HALF, blank_tokens=3)


# ---- One of each, or as many --------------------------------------------------------------------


def test_one_picture_mask_or_caption_counts_for_several_of_the_others(pipe, pictures):
    images, captions = pictures
    one, same = images[:1], np.repeat(images[:1], 4, axis=0)
    masks = np.stack([HALF, ~HALF, HALF.T, ~HALF.T])
    equal(pipe.infill(one, HALF, captions), pipe.infill(same, HALF, captions))
    equal(pipe.infill(images, HALF, A), pipe.infill(images, HALF, [A] * 4))
    equal(pipe.infill(one, masks, A), pipe.infill(same, masks, [A] * 4))
    wide = {"extend": {"left": 8}}
    wider = pipe.outpaint(same, captions, **wide)
    np.testing.assert_array_equal(pipe.outpaint(one, np.array(captions), **wide), wider)
    with pytest.raises(ValueError, match="infill: 4 images, 3 captions are given, expected as m"):
        pipe.infill(images, None, [A] * 3)
    with pytest.raises(ValueError, match="outpaint: 4 images, 3 captions are given, expected as"):
        pipe.outpaint(images, [A] * 3, **wide)


def test_a_row_of_masks_is_for_all_samples_or_there_are_as_many(pipe, pictures):
    given, masks = pipe.infilling(pictures[0], HALF, pictures[1])
    whole = pipe.generate("infill", given=given, masks=masks, seed=1)
    alike = tasks.Masks(masks.free[:1], masks.absent[:1])
    equal(whole, pipe.generate("infill", given=given, masks=alike, seed=1))
    fewer = {name: rows[:1] for name, rows in given.items()}
    for rows, given_rows in ((masks, fewer), (tasks.Masks(*(p[:3] for p in masks)), given)):
        with pytest.raises(ValueError, match=r"masks: free is bool\[\d, 29\], expected bool\[\d, "):
            pipe.generate("infill", given=given_rows, masks=rows)
    with pytest.raises(ValueError, match="masks: 'image' is neither all free nor absent, expected"):
        pipe.generate("infill", given={"text": given["text"]}, masks=masks)
    number = tasks.Masks(masks.free.astype(int), masks.absent)
    with pytest.raises(ValueError, match=r"masks: free is int64\[4, 29\], expected bool\[4, 29\]"):
        pipe.generate("infill", given=given, masks=number)


# ---- What would change nothing ------------------------------------------------------------------


def test_a_negative_prompt_leads_all_that_is_generated_beside_it_and_nothing_else(pipe):
    options = {"guidance": 2.0, "seed": 1}
    for begin_with in ((), ("image",)):
        plain = pipe.pairs(4, begin_with=begin_with, **options)
        away = pipe.pairs(4, begin_with=begin_with, negative={"text": A}, **options)
        assert (plain.images != away.images).any()
    image = pipe.example(1)[0]
    with pytest.raises(ValueError, match="negative 'text' changes nothing: task 'i2t' generates"):
        pipe.image_to_text(image, negative={"text": A}, **options)
    with pytest.raises(ValueError, match="negative 'text' changes nothing: task 'text' generates"):
        pipe.texts(4, negative={"text": A}, **options)


@pytest.mark.parametrize(
    "call",
    [
        lambda pipe, image: pipe.images(4, guidance=3.0),
        lambda pipe, image: pipe.texts(4, guidance=3.0),
        lambda pipe, image: pipe.infill(image, HALF, guidance=3.0),
        lambda pipe, image: pipe.outpaint(image, extend={"left": 8}, guidance=3.0),
    ],
)
def test_guidance_by_nothing_is_refused(pipe, pictures, call):
    with pytest.raises(ValueError, match=r"^guidance = 3\.0 changes nothing, nothing is there to"):
        call(pipe, pictures[0])


def test_guidance_without_a_condition_goes_where_a_later_step_or_a_negative_prompt_reads_it(pipe):
    pair = {"begin_with": ("image",), "seed": 1}
    linear = pipe.pairs(4, guidance=2.0, guidance_schedule="linear", **pair)
    whole = vars(pipe.settings("pair", guidance=2.0, guidance_schedule="linear"))
    equal(linear, pipe.pairs(4, **whole, **pair))
    negative = {"text": A}
    away = pipe.generate("image", 4, negative=negative, guidance=2.0, seed=1)
    assert away.branches == 2 and (away.images != pipe.images(4, seed=1).images).any()
    own = pipe.with_config(sample_rules={"image": {"guidance": 2.0}})
    first = own.generate("pair", 2, negative=negative, begin_with="image", seed=1)
    assert first.branches == 2  # of the image; the text then has one
    recorded = vars(pipe.settings("image", guidance=2.0))  # all settings, of a line
    equal(pipe.images(4, seed=1, **recorded), pipe.images(4, seed=1))


def test_more_that_would_change_nothing_is_refused(pipe, pictures):
    image = pictures[0][:1]
    with pytest.raises(ValueError, match="blank_tokens = 3 changes nothing: no caption has ___"):
        pipe.infill(image, HALF, "no blank", blank_tokens=3)
    with pytest.raises(ValueError, match="trace = 5: outpaint returns pictures alone"):
        pipe.outpaint(image, extend={"left": 8}, trace=5)


# ---- One line instead of a traceback ------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda p, i: p.outpaint(i, extend=8), r"extend = 8, expected \{side: pixels\} such as"),
        (lambda p, i: p.images(4, trace=2.5), "trace = 2.5, expected a whole number, at least 0"),
        (lambda p, i: p.images(4, trace=-1), "trace = -1, expected a whole number, at least 0"),
        (lambda p, i: p.images(4, first=None), "first = None, expected a whole number"),
        (lambda p, i: p.edit(i, A, trace="3"), "trace = '3', expected a whole number"),
        (lambda p, i: p.images(4, guide=2.0), r"guide = 2\.0, expected a function"),
        (lambda p, i: p.images(1, keys=pipeline.sample_keys(0, 1)[0]), "keys: a single one, exp"),
        (lambda p, i: p.images(4, scorers=lambda *_: None), "scorers: expected a list of"),
        (lambda p, i: p.image_to_text(i, length=True), "length = True, expected 1 to 13 tokens"),
        (
            lambda p, i: p.images(4, scorers=[p.scorer("palette", i[:1])]),
            r"scorers 0: a function without a scale is called with .* expected \(function, sc",
        ),
        (
            lambda p, i: p.images(4, scorers=[lambda x, t, log_p: log_p[0]]),
            "scorers 0: a function without a scale returns terms of log p, one or None for each",
        ),
    ],
)
def test_arguments_of_another_type_are_one_line(pipe, pictures, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(pipe, pictures[0])
    assert "\n" not in str(caught.value)


# ---- Scores -------------------------------------------------------------------------------------


def test_what_a_likelihood_leaves_out_may_be_missing(pipe, pictures):
    images, captions = pictures
    options = {"times": 2, "seed": 3}
    for task, given in (("image", (images, None)), ("text", (None, captions))):
        alone = pipe.log_likelihood(*given, task=task, **options)
        both = pipe.log_likelihood(images, captions, task=task, **options)
        np.testing.assert_array_equal(alone, both)
    with pytest.raises(ValueError, match="score: task 'pair' needs 'text', which is missing"):
        pipe.log_likelihood(images)


def test_a_score_of_ids_that_are_not_the_modalitys_own_is_one_line(pipe):
    made = pipe.pairs(4)
    own = pipe.vocab.split(jnp.asarray(made.tokens))
    assert np.isfinite(pipe.score(own, times=1)).all()
    with pytest.raises(ValueError, match=r"score: 'text' has ids \d+ to \d+, expected 0 to \d+, t"):
        pipe.score(own | {"text": own["text"] + pipe.vocab.modalities[1].classes + 1})
    with pytest.raises(ValueError, match=r"score: 'text' is float32\[4, 13\], expected int\[n, 13"):
        pipe.score(own | {"text": np.zeros((4, 13), np.float32)})
    with pytest.raises(ValueError, match="different numbers of samples: image 4, text 2"):
        pipe.score(own | {"text": own["text"][:2]})


def test_the_best_by_a_function_of_ones_own_needs_no_other_direction(pipe):
    best = pipe.images(2, best_of=2, by=lambda ids: -np.asarray(ids["image"]).sum(1), seed=1)
    every = pipe.images(4, seed=1)
    sums = pipe.codecs["image"].encode(every.images).sum(1).reshape(2, 2)
    np.testing.assert_array_equal(pipe.codecs["image"].encode(best.images).sum(1), sums.min(1))
    with pytest.raises(ValueError, match="task 'image' has no other direction"):
        pipe.images(2, best_of=2)


# ---- The pipeline as a value --------------------------------------------------------------------


def test_another_config_has_fields_of_the_config_alone(pipe):
    assert pipe.with_config(sample={"top_r": 0.5}).settings().top_r == 0.5
    for wrong, name in (({"sampel": {"top_r": 0.5}}, "sampel"), ({"sample": {"topr": 1}}, "sampl")):
        with pytest.raises(
            ValueError, match=f"with_config: '{name}.*' is not a field of the config"
        ):
            pipe.with_config(**wrong)


def test_a_pipeline_that_was_used_goes_to_another_process(pipe):
    before = pipe.texts(2, seed=1)
    again = pickle.loads(pickle.dumps(pipe))
    equal(before, again.texts(2, seed=1))
    assert again.texts(2, seed=1).captions == before.captions


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sample_rules": {"text": {"top_q": 0.5}}}, "'sample.top_q' is not a field"),
        ({"sample": {"top_r": "0.9"}}, "with_config: .*top_r"),
    ],
)
def test_a_section_that_cannot_be_is_one_line(pipe, sections, message):
    with pytest.raises(ValueError, match=message):
        pipe.with_config(**sections)
