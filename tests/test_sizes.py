"""Pictures that are not square: from the config to samples, masks and numbers."""

import types

import numpy as np
import pytest
from PIL import Image

from configs import base, own
from tests.helpers import tiny
from udd_jax import build, modalities, pipeline, stages
from udd_jax.data import pixels, reading
from udd_jax.demo import painter
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, samples
from udd_jax.sampling import outpainting
from udd_jax.training import limits, plan, recipe

SIZE, GRID = (16, 32), (2, 4)  # height, width


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    c = tiny.config()
    c.image_size = SIZE
    return pipeline.Pipeline.load(tiny.make(tmp_path_factory.mktemp("wide"), c))


# ---- Cutting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, wanted, box",
    [
        ((10, 7), (4, 4), (1, 0, 8, 7)),  # a square, as always
        ((10, 7), (2, 4), (3, 0, 7, 7)),
        ((10, 40), (1, 3), (0, 5, 10, 35)),
        ((9, 16), (9, 16), (0, 0, 9, 16)),
        ((1, 50), (30, 1), (0, 24, 1, 25)),
    ],
)
def test_the_largest_part_of_these_proportions_lies_in_the_middle(shape, wanted, box):
    assert pixels.middle(shape, wanted) == box


def test_a_picture_and_its_mask_are_cut_alike():
    image = np.zeros((20, 100, 3), np.uint8)
    image[5:15, 40:60] = 255
    fitted, mask = (
        fit(x, SIZE) for fit, x in ((pixels.fit, image), (pixels.fit_mask, image[..., 0] > 0))
    )
    assert fitted.shape == (*SIZE, 3) and mask.shape == SIZE
    assert (fitted[5:11, 9:23] > 250).all() and mask[5:11, 9:23].all()
    assert not fitted[:3].any() and not mask[:3].any()
    assert pixels.fit(fitted, SIZE) is fitted


def test_random_crops_keep_the_proportions():
    across = np.arange(80, dtype=np.uint8)[None, :, None].repeat(40, 0).repeat(3, 2)
    down = across.transpose(1, 0, 2)[:40].repeat(2, 1)[:, :80]
    views = reading.Views(SIZE, count=9, smallest=0.3, flip=False)
    for image, axis in ((across, 1), (down, 0)):
        crops = reading.cut(image, views, 0, False, range(1, 9)).astype(int)
        assert crops.shape == (8, *SIZE, 3)
        spans = [np.ptp(crop.mean(axis=(1 - axis, 2))) for crop in crops]
        lengths = np.array(spans) / (79 if axis else 39)
        assert 0.4 < lengths.min() < lengths.max() <= 1  # the root of the share
        if axis:
            first = lengths
    np.testing.assert_allclose(lengths, first, atol=0.06)


# ---- The config ---------------------------------------------------------------------------------


def test_a_config_takes_a_side_or_height_and_width():
    c = base.get_config()
    assert modalities.image_size(c) == 32
    c.image_size = SIZE
    assert modalities.image_size(c) == SIZE
    assert plan.vocab_of(c).modalities[0].grid == GRID
    c.image_size = (32, 32)
    assert modalities.image_size(c) == 32  # the same run as with one number
    limits.check(c)


@pytest.mark.parametrize(
    "size, message",
    [
        ((16, 36), r"image_size = \(16, 36\), expected multiples of 8, the cell"),
        ((16, 0), "expected at least 8 pixels"),
        ((16, 32, 3), r"expected a number of pixels, or \(height, width\)"),
        (16.5, r"expected a number of pixels, or \(height, width\)"),
        ("big", r"expected a number of pixels, or \(height, width\)"),
    ],
)
def test_a_size_that_the_cells_do_not_fit_is_one_line(size, message):
    c = base.get_config()
    c.image_size = size
    with pytest.raises(ValueError, match=message):
        limits.check(c)


@pytest.mark.slow
def test_a_tokenizer_of_pictures_lower_than_the_window_of_ssim_is_trained_to_its_end(tmp_path):
    c = tiny.config()
    c.image_size, c.data_options.size = (8, 24), 16
    c.vq.update({"pictures": 16, "steps": 2, "plain_steps": 1, "warmup": 1, "batch_size": 4})
    stages.check(c)
    tokenizer = stages.make_image_tokenizer(c, tmp_path, stages.open_data(c))
    assert tokenizer.grid == (1, 3) and (tmp_path / build.IMAGE).exists()


def test_a_finished_tokenizer_is_for_pictures_of_the_size_and_channels_of_the_run(pipe):
    c = base.get_config()
    tokenizer, c.vq.file, c.image_size = pipe.tokenizers["image"], "vq", SIZE
    assert modalities.fitting(c, tokenizer) is tokenizer
    c.image_size = 32
    message = r"vq.file = 'vq' is for pictures \(16, 32, 3\), expected \(32, 32, 3\): set --conf"
    with pytest.raises(UserError, match=message):
        modalities.fitting(c, tokenizer)
    c.image_size, c.image_channels = SIZE, 4
    with pytest.raises(
        UserError, match=r"\(16, 32, 3\), expected \(16, 32, 4\): .*image_channels="
    ):
        modalities.fitting(c, tokenizer)


def test_the_fields_of_ones_own_data_are_chosen_for_both_sides():
    c, found = own.get_config(), {"pictures": 9000, "side": 64, "captions": 900, "pieces": 9}
    c.minutes, found["aspect"] = 30.0, 1.0
    square = recipe.choose(c, found)
    c.image_size = (64, 128)
    chosen = recipe.choose(c, found)
    assert chosen["vq.model.patch"] == square["vq.model.patch"] == 8
    assert chosen["vq.batch_size"] == square["vq.batch_size"]
    # The same time: for the codes of all batches, and for the tokens.
    for row, sides in ((square, (64, 64)), (chosen, (64, 128))):
        codes = sides[0] * sides[1] // 8**2
        work = row["vq.batch_size"] * row["vq.steps"] * codes
        assert work == pytest.approx(0.1 * 60 * 30 / recipe.VQ_SECONDS, rel=0.01)
        work = row["train.batch_size"] * row["train.steps"] * (codes + row["text.length"])
        assert work == pytest.approx(0.75 * 60 * 30 / recipe.SECONDS, rel=0.01)


# ---- A run --------------------------------------------------------------------------------------


def test_a_run_makes_pictures_of_its_size_from_files_of_any(pipe, tmp_path):
    assert pipe.vocab.modalities[0].grid == GRID
    Image.new("RGB", (50, 50), "red").save(tmp_path / "a.png")
    assert pipe.reconstruct(str(tmp_path / "a.png")).shape == (1, *SIZE, 3)
    images, _ = pipe.example(2)
    assert images.shape == (2, *SIZE, 3)
    with pytest.raises(UserError, match=r"expected uint8\[16, 32, 3\]"):
        pipe.reconstruct(images.swapaxes(1, 2))


def test_a_mask_frees_the_codes_of_its_cells(pipe):
    images, captions = pipe.example(1)
    mask = np.zeros(SIZE, bool)
    mask[3, 30] = True
    _, masks = pipe.infilling(images, mask, captions)
    free = np.asarray(masks.free)[0, pipe.vocab.slices[0]].reshape(GRID)
    assert free.tolist() == [[False, False, False, True], [False] * 4]
    with pytest.raises(UserError, match=r"expected bool\[16, 32\]"):
        pipe.infilling(images, mask.T, captions)


def test_a_picture_grows_by_windows_of_its_size():
    picture = np.random.default_rng(0).integers(1, 255, (1, *SIZE, 3), np.uint8)
    extend, seen = outpainting.sides({"left": 24, "top": 8}, SIZE), []

    def infill(windows, mask, number):
        assert windows.shape == (1, *SIZE, 3) and mask.shape == SIZE and mask.any()
        seen.append(mask)
        return np.full_like(windows, 255)

    grown = outpainting.outpaint(infill, picture, extend, 8)
    assert grown.shape == (1, 24, 56, 3) and len(seen) >= 2
    np.testing.assert_array_equal(grown[:, 8:, 24:], picture)
    assert (grown[:, :8] == 255).all() and (grown[:, :, :24] == 255).all()
    for side, most in (("right", 8 * 32), ("bottom", 8 * 16)):
        with pytest.raises(UserError, match=f"expected 0 to {most} whole"):
            outpainting.sides({side: most + 1}, SIZE)


def test_held_out_pictures_have_halves_missing_across_and_down(pipe):
    text = pipe.tokenizers["text"]
    ids = pipe.codecs["text"].encode(["a red circle"] * 12, False)
    halves, *_ = samples._holes(text, ids, SIZE, 0, 0)
    assert halves.shape == (12, *SIZE) and (halves.mean(axis=(1, 2)) == 0.5).all()
    across = [bool((half == half[0]).all()) for half in halves]
    down = [bool((half[:, 0] == half.T).all()) for half in halves]
    assert set(zip(across, down, strict=True)) == {(True, False), (False, True)}
    items = held_out.read(pipe, 2)
    assert items.images.shape == (2, *SIZE, 3) and items.world is None  # it reads squares alone


def test_the_missing_half_of_an_odd_side_is_cut_at_an_edge(pipe):
    text = pipe.tokenizers["text"]
    ids = pipe.codecs["text"].encode(["a red circle"] * 24, False)
    halves, *_ = samples._holes(text, ids, (5, 7), 0, 0)
    upper, left = np.arange(5)[:, None] < 2, np.arange(7)[None] < 3
    wanted = {"upper": upper, "lower": ~upper, "left": left, "right": ~left}
    found = types.SimpleNamespace(free_pixels=halves)
    for i, half in enumerate(halves):
        name = samples._side(found, i)
        assert np.array_equal(half, np.broadcast_to(wanted.pop(name, half), (5, 7)))
    assert not wanted  # all four came


def test_the_frames_of_a_chain_hide_whole_cells(pipe):
    tokens = np.asarray(
        pipe.vocab.fuse({"image": np.zeros((1, 8), int), "text": np.zeros((1, 13), int)})
    )
    states = tokens[None].copy()
    states[0, 0, pipe.vocab.slices[0]][5] = pipe.vocab.mask_id
    shown = samples.frames(pipe, states, tokens)["images"][0, 0]
    plain = pipe.tokenizers["image"].decode(np.zeros((1, 8), int))[0]
    changed = (shown != plain).any(axis=-1)
    assert changed[8:, 8:16].mean() > 0.9
    changed[8:, 8:16] = False
    assert not changed.any()


def test_the_painter_of_the_page_has_the_cells_of_the_picture():
    mask = painter.read_mask({"mask": "00010000"}, SIZE, GRID)
    assert mask.shape == SIZE and mask[:8, 24:].all() and mask.sum() == 64
    assert 'style="aspect-ratio: 4 / 2"' in painter.template(GRID, "cells of the picture")
    assert "aspect-ratio" not in painter.template((4, 4), "cells of the picture")
