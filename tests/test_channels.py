"""Runs of grey pictures and of pictures with opacity: from a file to samples, and a whole job."""

import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import base
from tests import test_generate
from tests.helpers import tiny
from udd_jax import build, generate, hub, modalities, pipeline, stages, values
from udd_jax.data import pixels
from udd_jax.demo import page
from udd_jax.errors import UserError
from udd_jax.evaluation import feature_networks, recognition, samples
from udd_jax.evaluation.report import contact_sheet
from udd_jax.evaluation.report import page as html
from udd_jax.networks import pretrained
from udd_jax.runtime import files
from udd_jax.sampling import scorers
from udd_jax.steering import scoring, upscaling
from udd_jax.tokenizers import image_tokenizer, reconstruction
from udd_jax.training import finish, limits, plan, train_image_tokenizer

RNG = np.random.default_rng(3)
DRAWING = RNG.integers(0, 256, (24, 24, 4), np.uint8)
DRAWING[:8, :, 3], DRAWING[8:16, :, 3] = 0, 255


@pytest.fixture(scope="module")
def drawing(tmp_path_factory):
    path = tmp_path_factory.mktemp("drawing") / "a.png"
    Image.fromarray(DRAWING).save(path)
    return path


@pytest.fixture(scope="module", params=[1, 4])
def run(request, tiny_run, tmp_path_factory):
    """The run that was never trained, with an image tokenizer of other channels."""
    folder = tmp_path_factory.mktemp("channels") / "run"
    shutil.copytree(tiny_run, folder)
    record = files.read_json(folder / build.CONFIG)
    record["config"]["image_channels"] = request.param
    files.write_json(folder / build.CONFIG, record)
    module = train_image_tokenizer.make_model(build.read_config(folder))
    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *module.size, module.channels)))
    tokenizer = image_tokenizer.ImageTokenizer(module, params["params"], chunk=4)
    image_tokenizer.save(folder / build.IMAGE, tokenizer)
    return folder


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


# ---- The setting --------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 5, 0, True, "3", 3.0, None])
def test_other_channels_than_those_of_a_picture_are_one_line(channels):
    c = base.get_config()
    with c.ignore_type():
        c.image_channels = channels
    message = rf"^image_channels = {channels!r}, expected 1 \(grey\), 3 .* --config.image_channels="
    for check in (limits.check, modalities.source_options, modalities.views):
        with pytest.raises(UserError, match=message):
            check(c)


def test_a_run_from_before_there_was_the_setting_has_colours():
    c = base.get_config()
    with c.unlocked():
        del c.image_channels
    limits.check(c)
    assert train_image_tokenizer.make_model(c).channels == modalities.views(c).channels == 3
    assert modalities.source_options(c) == modalities.source_options(base.get_config())
    assert "channels" not in modalities.rows(c)["image"]


def test_references_to_pictures_are_read_with_their_channels(drawing):
    c = base.get_config()
    c.image_channels = 4
    with c.unlocked():
        c.modalities.first = {"like": "image"}
    found = modalities.source_options(c)["further"]["first"].read(drawing.read_bytes())
    np.testing.assert_array_equal(found, pixels.fit(pixels.in_channels(DRAWING, 4), 32))


def test_the_tokenizer_has_the_channels_of_the_pictures_and_no_others():
    c = base.get_config()
    with c.unlocked():
        c.vq.model.channels = 1
    with pytest.raises(UserError, match=r"vq.model.channels = 1, expected 3, .* image_channels"):
        limits.check(c)
    c.image_channels = 1
    limits.check(c)
    assert train_image_tokenizer.make_model(c).channels == 1 and "in grey" in plan.describe(c)


# ---- A run --------------------------------------------------------------------------------------


def test_any_picture_is_read_with_the_channels_of_the_run(pipe, drawing):
    channels = pipe.tokenizers["image"].shape[-1]
    wanted = pixels.fit(pixels.in_channels(DRAWING, channels), 32)
    for one in (drawing, str(drawing), Image.fromarray(DRAWING), wanted):
        np.testing.assert_array_equal(values.plain(pipe, "image", one)[0], wanted)
    assert values.plain(pipe, "image", []).shape == (0, 32, 32, channels)
    for wrong in (np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)):
        with pytest.raises(
            UserError, match=rf"uint8\[32, 32.*\], expected uint8\[.*, {channels}\]"
        ):
            pipe.reconstruct([wrong])


def test_a_picture_is_extended_and_its_own_pixels_stay(pipe, drawing):
    given = values.plain(pipe, "image", drawing)
    larger = pipe.outpaint(drawing, extend={"left": 8})
    assert larger.shape == (1, 32, 40, given.shape[-1])
    np.testing.assert_array_equal(larger[:, :, 8:], given)


def test_the_command_writes_files_of_these_channels_and_a_sheet_of_colours(run, drawing, tmp_path):
    channels = build.read_config(run).image_channels
    mask = np.zeros((24, 24, 3), np.uint8)
    mask[:, 12:] = 255
    pixels.write_png(tmp_path / "m.png", mask)
    asked = {"task": "infill", "image": [str(drawing)], "mask": str(tmp_path / "m.png"), "num": 2}
    flags = types.SimpleNamespace(**test_generate.DEFAULTS | asked | {"out": str(tmp_path / "o")})
    out = generate.sample(run, flags)
    line = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    with Image.open(out / line["image"]) as made, Image.open(out / "sheet.png") as sheet:
        assert made.mode == pixels.CHANNELS[channels] and sheet.mode == "RGB"
    composite = pixels.read(out / "composite-0000.png", channels)
    given = pixels.fit(pixels.hide(pixels.read(drawing, channels), mask[..., 0] > 0), 32)
    np.testing.assert_array_equal(composite[:, :16], given[:, :16])


def test_a_sample_is_the_picture_that_its_file_holds(pipe):
    result = pipe.images(2, seed=1)
    channels = pipe.tokenizers["image"].shape[-1]
    for image, made in zip(result.images, result.pil, strict=True):
        assert made.mode == pixels.CHANNELS[channels]
        np.testing.assert_array_equal(pixels.read(pixels.encode_png(image), channels), image)
    states = np.full((1, 1, pipe.vocab.length), pipe.vocab.mask_id)
    hidden = samples.frames(pipe, states, result.tokens[:1])["images"][0, 0]
    assert (hidden == pixels.grey(samples._GREY, channels)).all()


def test_scorers_see_pictures_of_these_channels(pipe, drawing):
    tokenizer, seen = pipe.tokenizers["image"], []
    own = pipe.scorer("pixels", lambda x: seen.append(x) or x.mean((1, 2, 3)))
    codes = tokenizer.encode(values.plain(pipe, "image", drawing))
    tokens = (jax.nn.one_hot(codes, tokenizer.codes),)
    assert own(tokens, None, np.zeros(1)).shape == (1,)
    shown = image_tokenizer.to_unit(tokenizer.decode(codes))  # where it is clear, it is white
    assert seen[0].shape == shown.shape == (1, *tokenizer.shape)
    np.testing.assert_allclose(seen[0][..., -1], shown[..., -1], atol=1 / 255 + 1e-5)
    own_colours = pipe.scorer("palette", drawing)(tokens, None, np.zeros(1))
    rounding = codes.size * tokenizer.shape[-1] * (0.5 / scorers.SHADES) ** 2
    assert -rounding <= float(own_colours[0]) <= 0


def test_a_model_card_says_the_channels_and_its_pipeline_has_them(pipe, tmp_path):
    channels = pipe.tokenizers["image"].shape[-1]
    pipe.save_pretrained(tmp_path / "model")
    card = (tmp_path / "model" / hub.CARD).read_text()
    assert f"Images are 32 x 32 pixels{pixels.SAID[channels]};" in card
    loaded = pipeline.Pipeline.from_pretrained(tmp_path / "model")
    assert loaded.tokenizers["image"].hash == pipe.tokenizers["image"].hash
    assert loaded.tokenizers["image"].shape == (32, 32, channels)


def test_the_data_of_a_run_have_its_channels_or_are_refused(pipe):
    with pytest.raises(UserError, match="but the pictures of 'shapes' have 3 channels"):
        pipe.example(1)


def test_the_page_takes_a_picture_of_the_result_and_opens_files(drawing):
    for channels in pixels.CHANNELS:
        own = types.SimpleNamespace(size=24, channels=channels)
        wanted = pixels.in_channels(DRAWING, channels)
        shown = np.array(pixels.to_pillow(wanted))  # as the gallery has it
        taken, _ = page.Page.take(own, [(shown, None)], 0)
        opened, said = page.Page.open(own, drawing.read_bytes())
        assert taken == opened == page.painter.value(wanted) and not said


# ---- Above and beside a run ---------------------------------------------------------------------


def test_small_pictures_of_any_channels_are_enlarged_by_what_is_opaque():
    for channels in pixels.CHANNELS:
        small = upscaling._small([Image.fromarray(DRAWING)], channels)
        np.testing.assert_array_equal(small[0], pixels.in_channels(DRAWING, channels))
        with pytest.raises(UserError, match=rf"expected uint8\[H, W, {channels}\], values 0 to"):
            upscaling._small([np.zeros((8, 8, 2), np.uint8)], channels)


def test_what_networks_see_of_floats_is_what_they_see_of_bytes():
    for channels in pixels.CHANNELS:
        image = pixels.in_channels(DRAWING, channels)[None]
        seen = image_tokenizer.as_rgb(image_tokenizer.to_unit(image))
        exact = image_tokenizer.to_unit(pixels.as_rgb(image))
        assert np.abs(seen - exact).max() <= 1 / 255 + 1e-6  # half a step of 2 / 255


def test_every_colour_of_every_opacity_survives_the_trip_to_floats_and_back():
    colour, opacity = np.meshgrid(np.arange(256), np.arange(256))
    image = np.stack([colour, 255 - colour, colour // 2, opacity], -1).astype(np.uint8)
    there = image_tokenizer.to_unit(image)
    assert there.shape == image.shape and np.abs(there).max() <= 1 + 1e-6
    back = image_tokenizer.to_uint8(there)
    np.testing.assert_array_equal(back, pixels.in_channels(image, 4))


def test_a_colour_counts_as_much_as_it_is_seen():
    image = pixels.in_channels(DRAWING, 4)[None]
    faint, other = image.copy(), image.copy()
    faint[..., 3] = np.minimum(faint[..., 3], 3)  # of 255
    other[...], other[..., :3] = faint, 255 - faint[..., :3]
    assert reconstruction.psnr(faint, other)[0] > 37  # of colours alone it would be below 10
    assert reconstruction.psnr(image, other)[0] < 15 and reconstruction.psnr(image, image) == 100
    shown = reconstruction.seen(image)
    np.testing.assert_allclose(shown[..., :3], pixels.as_rgb(image), atol=0.51)
    np.testing.assert_array_equal(shown[..., 3], image[..., 3])
    flat = reconstruction.flat(shown, (3, 3)).reshape(1, 3, 8, 3, 8, 4)
    means = shown.reshape(1, 3, 8, 3, 8, 4).mean((2, 4), keepdims=True)
    assert np.abs(flat - means).max() <= 0.51
    tokenizer = types.SimpleNamespace(
        encode=lambda images: np.zeros((1, 9), int), decode=lambda codes: other,
        finest=lambda codes: codes, grid=(3, 3), codes=2,
    )  # fmt: skip
    scores = finish.score(tokenizer, faint)
    error = np.square(shown_of(other) - shown_of(faint)).mean()
    rough = np.square(reconstruction.flat(shown_of(faint), (3, 3)) - shown_of(faint)).mean()
    assert scores["above_flat"] == pytest.approx(10 * np.log10(rough / error), abs=1e-3)


def shown_of(images):
    return reconstruction.seen(images).astype(np.float64)


def test_the_loss_of_lpips_and_the_scorer_of_clip_see_three_channels():
    seen = []

    def network(variables, x):
        seen.append(x)
        return x.mean((1, 2))

    image = pixels.in_channels(DRAWING, 4)[None, 16:, 16:]
    x = image_tokenizer.to_unit(image)
    scoring._clip(types.SimpleNamespace(apply=network), 8, {}, jnp.ones((1, 3)), x)
    wanted = pretrained.normalise_for_clip((image_tokenizer.as_rgb(x) + 1) / 2)
    np.testing.assert_allclose(seen[0], wanted, atol=1e-5)
    c = tiny.config()
    c.image_channels, c.image_size, c.vq.perceptual = 4, 8, 1.0
    model = train_image_tokenizer.make_model(c)

    def distance(weights, a, b):
        seen.append((a, b))
        return jnp.abs(a - b).mean((1, 2, 3))

    makers = train_image_tokenizer.make_optimisers(c)
    step = train_image_tokenizer.make_step(c, model, None, *makers, distance)

    def trained(key):
        params = model.init(key, x, key)["params"]
        return step(train_image_tokenizer.create_state(c, model, params), image, key)

    _, metrics = jax.eval_shape(trained, jax.random.key(0))
    assert [part.shape for part in seen[1]] == [(1, 8, 8, 3)] * 2 and "psnr" in metrics


def test_feature_networks_see_pictures_over_white(monkeypatch):
    state = {"a": np.zeros(1)}
    monkeypatch.setattr(feature_networks, "_state", lambda folder, name: state)
    parts = lambda images: (images[:, 0, 0], images[:, 0, 1])  # noqa: E731
    monkeypatch.setattr(feature_networks.pretrained, "inception", lambda *_: parts)
    network = feature_networks._inception("")
    image = pixels.in_channels(DRAWING, 4)[None, 16:]
    wanted = pixels.as_rgb(image)[0, 0, :2].reshape(1, 6)
    np.testing.assert_array_equal(network.images(image), wanted)


def test_what_is_clear_shows_a_board_and_opaque_pictures_are_as_they_were():
    clear = np.zeros((16, 16, 4), np.uint8)
    sheet = contact_sheet.sheet([clear], scale=1)[20:36, 20:36]
    assert set(np.unique(sheet)) == {contact_sheet._DARK, 255}
    grey = contact_sheet.sheet([np.full((16, 16, 1), 7, np.uint8)], scale=1)[20:36, 20:36]
    assert (grey == 7).all()
    assert "conic-gradient" in html.picture(clear) and "image/png" in html.picture(clear)
    large = html.picture(clear.repeat(8, 0).repeat(8, 1))
    assert "image/png" in large and "conic-gradient" in large
    for channels in (1, 3):
        assert "gradient" not in html.picture(np.zeros((16, 16, channels), np.uint8))
        assert "image/jpeg" in html.picture(np.zeros((80, 80, channels), np.uint8))


def test_a_classifier_of_names_sees_colours(monkeypatch):
    """Pictures with opacity reach it over white, and what is nearest is shown as it is."""
    image = pixels.in_channels(DRAWING, 4)
    example = types.SimpleNamespace(pixels=image[None], captions=("a",))
    monkeypatch.setattr(recognition, "_training", lambda pipe: iter([example]))
    seen = []
    reads = lambda images: (seen.append(images) or np.ones((1, 2), np.float32), None)  # noqa: E731
    own = types.SimpleNamespace(tokenizers={"image": types.SimpleNamespace(shape=(24, 24, 4))})
    found = types.SimpleNamespace(read=reads)
    _, near = recognition._nearest(own, found, {"samples": np.ones((1, 2), np.float32)})
    np.testing.assert_array_equal(near[0], image)
    np.testing.assert_array_equal(seen[0][0], pixels.as_rgb(image))


# ---- A whole job --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.long), 4])
def test_the_whole_job_learns_drawings_of_these_channels(tmp_path, channels):
    (tmp_path / "data").mkdir()
    for i in range(60):
        image = np.zeros((16, 16, 4), np.uint8)
        image[4:12, 2 + i % 8 : 8 + i % 8] = 4 * i, 4 * i, 4 * i, 255
        Image.fromarray(image).save(tmp_path / "data" / f"{i:02}.png")
        (tmp_path / "data" / f"{i:02}.txt").write_text(f"a box at {i % 8}")
    c = tiny.config()
    c.data, c.image_channels = f"folder:{tmp_path / 'data'}", channels
    c.data_options.size, c.text.vocab_size = None, 330
    c.vq.update({"steps": 4, "plain_steps": 1, "warmup": 1, "batch_size": 8})
    c.train.update({"steps": 2, "prefix_steps": 0, "warmup": 1, "batch_size": 8})
    c.evaluate.update({"samples": 4, "batch_size": 4, "bound_samples": 4, "bound_times": 1})
    stages.run(c, tmp_path / "run")
    found = files.read_json(tmp_path / "run" / "data.json")
    assert found["clear"] == 60
    assert found["channels"] == channels
    cache = files.read_json(tmp_path / "run" / "tokens" / "manifest.json")
    assert cache["views"]["channels"] == channels
    protocol = files.read_json(tmp_path / "run" / "evaluation.json")["manifest"]["protocol"]
    assert protocol["image_channels"] == channels
    made = next((tmp_path / "run" / "samples").glob("t2i-0*.png"))
    with Image.open(made) as image:
        assert image.mode == pixels.CHANNELS[channels]
    assert ("conic-gradient" in (tmp_path / "run" / "report.html").read_text()) == (channels == 4)
    assert pipeline.Pipeline.load(tmp_path / "run").example(1)[0].shape == (1, 32, 32, channels)
