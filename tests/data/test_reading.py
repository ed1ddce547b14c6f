"""Whatever lies in a data set, an example is right, or is skipped with its cause: no crash."""

import dataclasses
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from udd_jax.data import pixels, reading, sources, token_cache
from udd_jax.data.records import Record

SIDE = 16
RNG = np.random.default_rng(0)
PICTURE = np.full((24, 24, 3), (200, 40, 90), np.uint8)
TEXT = ("a plain square",)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(mode="RGB", kind="PNG", size=(24, 24), **options):
    return saved(Image.fromarray(PICTURE).resize(size).convert(mode), kind, **options)


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(kind="JPEG", quality=95, exif=exif)


def bomb():
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    sums = struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + sums + b"\x00" * 40


def flipped(content, place):
    content = bytearray(content)
    content[place] ^= 0xFF
    return bytes(content)


def odd_images():
    """name -> bytes that are a picture, near (200, 40, 90) all over or grey."""
    frames = [Image.fromarray(PICTURE), Image.new("RGB", (24, 24), "blue")]
    animated = {"save_all": True, "append_images": frames[1:]}
    deep = Image.fromarray(np.full((24, 24), 30000, np.uint16))
    found = {f"mode {mode}": picture(mode) for mode in ("RGB", "RGBA", "P", "L", "LA", "1")}
    found |= {f"turned {n}": turned(n) for n in range(1, 9)}
    found |= {
        "CMYK": picture("CMYK", "JPEG", quality=95),
        "YCbCr": picture("YCbCr", "JPEG", quality=95),
        "progressive": picture(kind="JPEG", quality=95, progressive=True),
        "16 bit": saved(deep, "PNG"),
        "16 bit tiff": saved(deep, "TIFF"),
        "float tiff": saved(Image.fromarray(np.full((24, 24), 0.5, np.float32)), "TIFF"),
        "LAB tiff": picture("LAB", "TIFF"),
        "transparent palette": picture("P", transparency=0),
        "animated gif": saved(frames[0], "GIF", **animated),
        "animated webp": saved(frames[0], "WEBP", lossless=True, **animated),
        "animated png": saved(frames[0], "PNG", **animated),
        "bmp": picture(kind="BMP"),
        "ppm": picture(kind="PPM"),
        "trailing rubbish": picture() + b"rubbish" * 9,
        "wide": picture(size=(900, 12)),
        "tall": picture(size=(9, 700)),
        "pixels": PICTURE,
    }
    return found


def bad_images():
    """name -> (bytes, cause)."""
    jpeg, png = picture(kind="JPEG"), saved(Image.fromarray(noise(64)), "PNG")
    broken = {
        "nothing": b"",
        "text": b"this is not a picture\n",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "json": json.dumps({"image": None}).encode(),
        "random": RNG.bytes(3000),
        "zeros": bytes(2000),
        "png signature": png[:8],
        "png header": png[:33],
        "png half": png[: len(png) // 2],
        "png damaged header": flipped(png, 20),
        "png damaged data": flipped(png, len(png) // 2),
        "jpeg signature": jpeg[:4],
        "jpeg quarter": jpeg[: len(jpeg) // 4],
        "jpeg cut": saved(Image.fromarray(noise(64)), "JPEG")[:1500],
        "gif header": picture("P", "GIF")[:10],
        "webp half": saved(Image.fromarray(noise(64)), "WEBP")[:800],
        "tiff half": picture(kind="TIFF")[:200],
        "bmp half": picture(kind="BMP")[:300],
        "bomb": bomb(),
    }
    found = {name: (content, "broken image") for name, content in broken.items()}
    tiny = {"one pixel": (1, 1), "a line": (400, 1), "a narrow strip": (7, 300)}
    return found | {name: (picture(size=size), "tiny image") for name, size in tiny.items()}


def noise(side):
    return RNG.integers(0, 256, (side, side, 3), dtype=np.uint8)


# caption -> (text, cause)
CAPTIONS = {
    "a red circle": ("a red circle", None),
    "  two   words \n\t here ": ("two words here", None),
    "": (None, "caption empty"),
    " \n\t ": (None, "caption empty"),
    "\x00\x01": (None, "caption empty"),
    "\u200b\u200d": (None, "caption empty"),
    "x" * 10_001: (None, "caption too long"),
    "y" * 10_000: ("y" * 10_000, None),
    "a\x00b\x07c": ("a b c", "control characters removed"),
    "bell\x7f \x9b end": ("bell end", "control characters removed"),
    "lone \ud83d half": ("lone \ufffd half", "surrogates replaced"),
    "\udcff\udcfe bytes": ("\ufffd\ufffd bytes", "surrogates replaced"),
    "赤い丸の上に青い四角": ("赤い丸の上に青い四角", None),
    "دائرة حمراء فوق مربع": ("دائرة حمراء فوق مربع", None),
    "красный круг": ("красный круг", None),
    "👩‍🚀 astronaut 🏳️‍🌈": ("👩‍🚀 astronaut 🏳️‍🌈", None),
    "e\u0301te\u0301": ("e\u0301te\u0301", None),
    "\ufeffwith a mark": ("\ufeffwith a mark", None),
    None: (None, "caption is no text"),
    3.5: (None, "caption is no text"),
    b"bytes": (None, "caption is no text"),
}


class Records(list):
    name = "odd records"


def all_records():
    """Every odd picture, bad picture and odd caption as a record, with the cause expected."""
    rows = [(Record(f"odd {name}", image, TEXT), None) for name, image in odd_images().items()]
    rows += [(Record(name, image, TEXT), cause) for name, (image, cause) in bad_images().items()]
    for number, (caption, (text, _)) in enumerate(CAPTIONS.items()):
        cause = "no caption" if text is None else None
        rows.append((Record(f"caption {number}", PICTURE, (caption,)), cause))
    return rows


def test_a_hundred_odd_and_broken_files_are_each_used_or_skipped_with_their_cause():
    rows = all_records()
    assert sum(cause is not None for _, cause in rows) + len(CAPTIONS) + len(odd_images()) >= 60
    source = Records(record for record, _ in rows)
    found = list(reading.examples(source, 0, len(source), reading.Views(SIDE)))
    assert [example.position for example in found] == list(range(len(rows)))
    for example, (record, cause) in zip(found, rows, strict=True):
        assert (example.pixels is None) == (cause is not None), example
        if cause is None:
            assert example.pixels.shape == (1, SIDE, SIDE, 3) and example.captions
        else:
            assert example.faults[-1][0] == cause, (record.key, example.faults)


def test_odd_pictures_keep_their_colour():
    grey = ("mode L", "mode LA", "mode 1", "16 bit", "16 bit tiff", "float tiff")
    for name, image in odd_images().items():
        pixels = reading.example([Record("", image, TEXT)], 0, reading.Views(SIDE)).pixels[0]
        if name in grey:
            assert (pixels == pixels[:, :, :1]).all(), name
        elif "palette" not in name:
            off = np.abs(pixels.astype(int) - PICTURE[0, 0]).max()
            assert off < (40 if name == "mode P" else 8), (name, off)


@pytest.mark.parametrize("caption", CAPTIONS, ids=lambda caption: ascii(caption)[:30])
def test_captions_are_repaired_or_dropped_with_their_cause(caption):
    assert reading.clean(caption) == CAPTIONS[caption]


def test_a_folder_of_bad_files_is_an_error_with_counts_or_a_cache_without_them(tmp_path):
    folder, rows = tmp_path / "data", []
    folder.mkdir()
    for number, (record, cause) in enumerate(all_records()):
        name = f"{number}.png"
        if isinstance(record.image, bytes):
            (folder / name).write_bytes(record.image)
        else:
            pixels.write_png(folder / name, record.image)
        caption = record.captions[0]
        if not isinstance(caption, bytes):
            rows.append(({"file_name": name, "text": caption}, cause))
    rows.append(({"file_name": "missing.png", "text": "gone"}, "unreadable record"))
    rows.append(({"text": "no name"}, "unreadable record"))
    (folder / "captions.jsonl").write_text("\n".join(json.dumps(row) for row, _ in rows))
    source = sources.open_source(f"folder:{folder}", "train", validation=0, test=0)

    def write(limit):
        return token_cache.write_cache(
            source,
            lambda pixels: pixels.reshape(len(pixels), -1)[:, :4].astype(np.int32),
            lambda captions: np.array([[len(caption)] for caption in captions]),
            tmp_path / "tokens",
            settings={},
            views=reading.Views(SIDE),
            skip_limit=limit,
        )

    with pytest.raises(ValueError, match=r"records are unusable \(unreadable record 2, broken ima"):
        write(0.01)
    cache = write(0.6)
    bad = sum(cause is not None for _, cause in rows)
    assert len(cache) == len(rows) - bad
    lines = (tmp_path / "tokens" / "skipped.jsonl").read_text().splitlines()
    skipped = [json.loads(line) for line in lines]
    assert len({line["key"] for line in skipped if line["cause"] in reading.SKIPPED}) == bad


def test_the_first_view_is_the_picture_and_the_others_are_crops_of_it():
    ramp = np.arange(40, dtype=np.uint8)[None, :, None] * np.ones((30, 1, 3), np.uint8)
    views = reading.Views(30, count=40, smallest=0.25)
    cuts = reading.cut(ramp, views, 0, True, range(40))
    np.testing.assert_array_equal(cuts[0], ramp[:, 5:35])
    slopes = (cuts[:, 15, -3, 0].astype(int) - cuts[:, 15, 2, 0]) / 25
    assert (np.abs(slopes[1:]) <= 1.05).all() and (np.abs(slopes[1:]) > 0.4).all()
    assert 8 <= (slopes[1:] < 0).sum() <= 31
    assert cuts.min() < 5 and cuts.max() > 34
    np.testing.assert_array_equal(cuts, reading.cut(ramp, views, 0, True, range(40)))
    assert (cuts[1:] != reading.cut(ramp, views, 1, True, range(40))[1:]).any()


@pytest.mark.parametrize(
    ("caption", "free"),
    [
        ("a man to the left of a dog", False),
        ("the rightmost bird", False),
        ("Left-hand traffic", False),
        ("bright leftovers", True),
        ("a red circle", True),
        ("ein Kreis links vom Quadrat", False),
        ("der rechte Turm", False),
        ("un cercle à gauche", False),
        ("a la derecha del cuadrado", False),
        ("круг слева от квадрата", False),
        ("左边的红圆", False),
        ("ein linker Schuh und Rechtecke", False),
        ("drei Rechtecke", True),
    ],
)
def test_pictures_are_not_mirrored_where_a_caption_names_a_side(caption, free):
    ramp = np.arange(32, dtype=np.uint8)[None, :, None] * np.ones((32, 1, 3), np.uint8)
    records = Records([Record("", ramp, ("a picture", caption))])
    cuts = reading.example(records, 0, reading.Views(16, count=30)).pixels
    assert (cuts[:, 8, 0, 0] > cuts[:, 8, -1, 0]).any() == free
    plain = reading.example(records, 0, reading.Views(16, count=30, flip=False)).pixels
    assert (plain[:, 8, 0, 0] < plain[:, 8, -1, 0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"size": 8, "count": 0}, "count is 0"),
        ({"size": 8, "smallest": 0}, "smallest is 0, expected a share"),
        ({"size": 8, "smallest": 1.5}, "smallest is 1.5"),
    ],
)
def test_impossible_views_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        reading.Views(**options)


def test_captions_are_read_without_pictures_where_the_source_can(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(picture())
        (tmp_path / f"{number}.txt").write_text(f"picture\x07{number}\n \n")
    source = sources.open_source(f"folder:{tmp_path}", "train", validation=0, test=0)
    (tmp_path / "1.png").unlink()
    assert list(reading.captions(source)) == ["picture 0", "picture 1", "picture 2"]
    records = Records([Record("", PICTURE, ("one", "", "two"))])
    assert list(reading.captions(records)) == ["one", "two"]


def test_a_share_of_the_positions_is_the_same_as_that_part_of_the_whole():
    source = Records(Record(str(n), noise(20), (str(n),)) for n in range(70))
    views = reading.Views(8, count=3)
    whole = list(reading.examples(source, 0, 70, views, threads=3))
    parts = [
        e
        for start in (0, 33, 50)
        for e in reading.examples(source, start, {0: 33, 33: 50, 50: 70}[start], views, threads=1)
    ]
    assert [e.key for e in parts] == [e.key for e in whole] == [str(n) for n in range(70)]
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


class Pictures:
    """Forty JPEG files that differ; can be sent to another process."""

    name = "pictures"

    def __len__(self):
        return 40

    def __getitem__(self, index):
        pixels = np.random.default_rng(index).integers(0, 256, (20, 20, 3), dtype=np.uint8)
        return Record(str(index), saved(Image.fromarray(pixels), "JPEG"), (str(index),))


@pytest.mark.slow
def test_worker_processes_give_the_same_examples_as_threads():
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    views = reading.Views(8, count=2)
    alone = list(reading.examples(Pictures(), 3, 40, views, threads=2))
    workers = list(reading.examples(Pictures(), 3, 40, views, threads=2, workers=2))
    assert [e.key for e in workers] == [str(n) for n in range(3, 40)]
    for one, other in zip(alone, workers, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
        assert dataclasses.replace(one, pixels=None) == dataclasses.replace(other, pixels=None)
