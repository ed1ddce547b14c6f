"""Pictures of one, three and four channels: grey, colours, colours and opacity."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from udd_jax.data import described, pixels, reading, records, sources, survey, token_cache, vectors
from udd_jax.data.sources import shapes

RNG = np.random.default_rng(7)
COLOURS = RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
OPACITY = RNG.integers(1, 256, (20, 24), dtype=np.uint8)
OPACITY[:5], OPACITY[5:10] = 0, 255
DRAWING = np.dstack([COLOURS, OPACITY])
SEEN = np.where(OPACITY[..., None] == 0, np.uint8((255, 255, 255, 0)), DRAWING)
GREY = COLOURS[:, :, :1]
FILES = {
    "rgb": Image.fromarray(COLOURS),
    "grey": Image.fromarray(GREY[..., 0]),
    "drawing": Image.fromarray(DRAWING),
    "grey_drawing": Image.fromarray(np.dstack([GREY, OPACITY])),
    "sixteen": Image.fromarray(GREY[..., 0].astype(np.uint16) * 257),
    "bits": Image.fromarray(GREY[..., 0] > 127),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("drawings")
    for name, image in FILES.items():
        image.save(here / f"{name}.png")
        (here / f"{name}.txt").write_text(name)
    return here


def over_white(image: np.ndarray) -> np.ndarray:
    """By Pillow, as a slow and obvious twin."""
    ground = Image.new("RGBA", image.shape[1::-1], "white")
    return np.array(Image.alpha_composite(ground, Image.fromarray(image)).convert("RGB"))


@pytest.mark.parametrize("ground", [0, 38, 255])
def test_every_colour_of_every_opacity_over_a_ground_is_rounded_as_pillow_does(ground):
    colour, opacity = np.meshgrid(np.arange(256), np.arange(256))
    image = np.stack([colour, 255 - colour, colour // 2, opacity], -1).astype(np.uint8)
    below = Image.new("RGBA", (256, 256), (ground,) * 3)
    wanted = Image.alpha_composite(below, Image.fromarray(image)).convert("RGB")
    for same in (ground, np.full((256, 256, 1), ground, np.uint8)):
        np.testing.assert_array_equal(pixels.as_rgb(image, same), np.array(wanted))


@pytest.mark.parametrize(("image", "channels"), [(GREY, 1), (COLOURS, 3), (SEEN, 4)])
def test_a_picture_comes_back_from_its_file_bit_for_bit(image, channels):
    np.testing.assert_array_equal(pixels.read(pixels.encode_png(image), channels), image)
    np.testing.assert_array_equal(pixels.in_channels(image, channels), image)
    np.testing.assert_array_equal(pixels.fit(image, (20, 24)), image)


def test_every_file_has_the_channels_that_are_asked_for(folder):
    opaque = lambda image: np.dstack([image, np.full((20, 24), 255, np.uint8)])  # noqa: E731
    luminance = np.array(Image.fromarray(COLOURS).convert("L"))[..., None]
    faint = over_white(np.dstack([GREY, GREY, GREY, OPACITY]))
    bits = (GREY > 127) * np.uint8(255)
    wanted = {
        ("rgb", 1): luminance,
        ("rgb", 4): opaque(COLOURS),
        ("grey", 1): GREY,
        ("grey", 4): opaque(np.repeat(GREY, 3, axis=2)),
        ("drawing", 1): np.array(Image.fromarray(over_white(DRAWING)).convert("L"))[..., None],
        ("drawing", 3): over_white(DRAWING),
        ("drawing", 4): SEEN,
        ("grey_drawing", 1): faint[..., :1],
        ("grey_drawing", 3): faint,
        ("sixteen", 1): GREY,
        ("sixteen", 4): opaque(np.repeat(GREY, 3, axis=2)),
        ("bits", 1): bits,
    }
    for (name, channels), image in wanted.items():
        found = pixels.read(folder / f"{name}.png", channels)
        np.testing.assert_array_equal(found, image, err_msg=f"{name} {channels}")


def test_colours_that_nobody_sees_are_white_and_do_not_reach_what_is_seen():
    assert (pixels.read(pixels.encode_png(DRAWING), 4)[:5] == (255, 255, 255, 0)).all()
    half = np.zeros((8, 8, 4), np.uint8)
    half[:, :4], half[:, 4:] = (200, 0, 0, 0), (0, 0, 200, 255)  # a clear red, and blue
    small = pixels.fit(half, 3, "box")
    assert (small[:, 0] == (255, 255, 255, 0)).all() and 0 < small[0, 1, 3] < 255
    assert (abs(small[:, 1:, :3].astype(int) - (0, 0, 200)) <= 1).all()


def test_hidden_pixels_of_any_channels_leave_no_trace():
    mask = RNG.random((20, 24)) < 0.5
    for image in (GREY, SEEN):
        other = np.where(mask[..., None], 255 - image, image)
        np.testing.assert_array_equal(pixels.hide(image, mask), pixels.hide(other, mask))
        assert (pixels.hide(image, mask)[~mask] == image[~mask]).all()
    assert (pixels.hide(SEEN, mask | True) == (128, 128, 128, 255)).all()


def test_other_numbers_of_channels_are_one_line():
    with pytest.raises(ValueError, match=r"uint8\[20, 24, 2\], expected .* 1, 3 or 4 channels"):
        pixels.in_channels(DRAWING[..., :2], 4)


# Sources and the token cache


def cached(folder, directory, **options) -> token_cache.TokenCache:
    """Every picture of the folder in three views, whose codes are the sums of four cells."""
    source = sources.open_source(f"folder:{folder}", "train", 8, validation=0.0, test=0.0)
    cells = lambda x: x.astype(np.int32).reshape(len(x), 2, 4, 2, -1).sum((2, 4)).reshape(-1, 4)  # noqa: E731
    texts = lambda captions: np.array([[len(text)] for text in captions], np.int32)  # noqa: E731
    views = reading.Views(8, 3, flip=True, **options)
    return token_cache.write_cache(source, cells, texts, directory, settings={}, views=views)


def test_a_cache_of_three_channels_is_what_it_was_before_there_were_others(folder, tmp_path):
    """The hashes were recorded then."""
    manifest = cached(folder, tmp_path).manifest
    shard = (tmp_path / "shard-00000.arrayrecord").read_bytes()
    about = json.dumps(manifest | {"source": ""}, sort_keys=True).encode()
    digests = [hashlib.sha256(part).hexdigest()[:16] for part in (shard, about)]
    assert digests == ["2dc4bf694dca5fea", "8ab7d00839f22fb8"]


def test_a_cache_of_other_channels_says_so_and_is_not_that_of_colours(folder, tmp_path):
    cache = cached(folder, tmp_path, channels=4)
    assert cache.manifest["views"]["channels"] == 4
    codes, count = cache.read(np.arange(len(cache)))["image"], len(FILES)
    first = [pixels.fit(pixels.read(folder / f"{name}.png", 4), 8) for name in sorted(FILES)]
    np.testing.assert_array_equal(codes.sum(axis=2)[:, 0], np.sum(first, axis=(1, 2, 3)))
    assert len(cache) == count
    with pytest.raises(ValueError, match=r"channels"):
        cached(folder, tmp_path)


def test_a_blank_has_the_channels_of_the_run(folder, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "alone.txt").write_text("no picture")
    FILES["drawing"].save(tmp_path / "data" / "drawing.png")
    (tmp_path / "data" / "drawing.txt").write_text("a picture")
    source = sources.open_source(f"folder:{tmp_path / 'data'}", "train", 8, incomplete=True)
    seen = []
    encode = lambda images: seen.append(images.shape) or np.zeros((len(images), 4), np.int32)  # noqa: E731
    texts = lambda captions: np.zeros((len(captions), 1), np.int32)  # noqa: E731
    options = {"settings": {}, "views": reading.Views(8, incomplete=True, channels=4)}
    cache = token_cache.write_cache(source, encode, texts, tmp_path / "tokens", **options)
    assert seen[0][1:] == (8, 8, 4) and cache.lacking["image"].sum() == 1


def test_vectors_are_those_of_pictures_with_the_channels_of_the_run(folder, tmp_path):
    seen = []

    def write(channels):
        data = {"train": sources.open_source(f"folder:{folder}", "train", 8, channels=channels)}
        embed = lambda images: seen.append(images.shape) or images.mean((1, 2))  # noqa: E731
        views = reading.Views(8, channels=channels)
        return vectors.write(data, embed, tmp_path / "out", settings={}, views=views)

    assert write(4)["train"]["vectors"] == len(FILES) == seen[0][0] and seen[0][1:] == (8, 8, 4)
    with pytest.raises(ValueError, match=r"vectors of something else \(views is .*'channels': 4"):
        write(3)


def test_white_drawings_are_all_equal_over_white_and_differ_by_their_opacity(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for i in range(3):
            white = np.full((8, 8, 4), 255, np.uint8)
            white[:, : 2 + i + 3 * (split == "test"), 3] = 0
            Image.fromarray(white).save(tmp_path / split / f"{i}.png")
            (tmp_path / split / f"{i}.txt").write_text("white")
    opened = lambda channels, split: sources.open_source(  # noqa: E731
        f"folder:{tmp_path}", split, 8, channels=channels
    )
    with pytest.raises(ValueError, match="without 3 that are in test"):
        opened(3, "train")
    assert len(opened(4, "train")) == 3
    test = opened(4, "test")
    looked = [test.look(item) for item in test.items]
    assert all(look.clear for look in looked) and len({look.pixels for look in looked}) == 3


def test_pixels_of_a_source_become_the_channels_of_the_run():
    class Greys:
        name, further = "greys", ()

        def __getitem__(self, index):
            return records.Record("a", GREY, ("a",))

    for channels in pixels.CHANNELS:
        example = reading.example(Greys(), 0, reading.Views((20, 24), channels=channels))
        np.testing.assert_array_equal(example.pixels[0], pixels.in_channels(GREY, channels))


def test_an_embedded_world_has_the_channels_that_it_draws(monkeypatch):
    drawn = lambda scene, rng=None: shapes.WORLD.render(scene)[..., :1]  # noqa: E731
    world = dataclasses.replace(shapes.WORLD, name="greys", channels=1, render=drawn)
    monkeypatch.setitem(sources.WORLDS, "greys", world)
    assert sources.open_source("greys", "train", channels=1)[0].image.shape == (32, 32, 1)
    with pytest.raises(ValueError, match="pictures of 'greys' have 1 channels"):
        sources.open_source("greys", "train")
    with pytest.raises(ValueError, match=r"image_channels = 1, .* set --config.image_channels=3$"):
        sources.open_source("shapes", "train", channels=1)
    with pytest.raises(ValueError, match="channels is 2, expected one of 1, 3, 4"):
        reading.Views(8, channels=2)


def test_transparency_is_counted_and_the_setting_that_keeps_it_is_named(folder):
    def said(**options):
        data = {"train": sources.open_source(f"folder:{folder}", "train", 8, **options)}
        found = survey.survey(data)
        assert json.loads(json.dumps(found)) == found
        return described.describe(found)

    kept = "transparency: 2 of 6 pictures"
    assert f"{kept}, put over white; --config.image_channels=4 keeps it" in said()
    assert f"{kept}, put over white" in said(channels=1)
    assert said(channels=4).count(kept) == 1 and "keeps it" not in said(channels=4)


def test_opaque_pictures_are_surveyed_as_before_and_need_no_opacity(tmp_path):
    for name in ("rgb", "grey"):
        FILES[name].save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(name)
    for channels, line in ((3, None), (4, "0 of 2 pictures; --config.image_channels=3 is enough")):
        source = sources.open_source(f"folder:{tmp_path}", "train", channels=channels)
        found = survey.survey({"train": source})
        assert "clear" not in found and ("channels" in found) == (channels == 4)
        assert ("transparency" in described.describe(found)) == bool(line)
        assert line is None or line in described.describe(found)
