"""Any folder and any shard is refused in one line, or all of its items are used or counted.

What a user may see is what `main.run` prints as one line: a `UserError`, or an answer of the system
(`OSError`).
"""

import contextlib
import io
import json
import os
import pathlib
import tarfile
import tempfile

import hypothesis
import pyarrow
import pytest
from hypothesis import strategies
from pyarrow import parquet

from tests.data.test_sources_cases import members, picture, shard
from udd_jax import errors
from udd_jax.data import captions, described, sources, survey
from udd_jax.data.sources import captioning, listing, tars

SOME = hypothesis.settings(max_examples=60, deadline=None)
MANY = hypothesis.settings(
    max_examples=1000,
    deadline=None,
    derandomize=False,
    suppress_health_check=list(hypothesis.HealthCheck),
)
LONG = {}
LETTERS = strategies.text(
    strategies.characters(blacklist_characters="/\x00", blacklist_categories=("Cs",)), max_size=6
)
NAMES = strategies.sampled_from(
    ["a", "b", "test", "val 1", "a.b", "[v2]", "é", "#1", "%s", "{0..1}", "-", "train"]
)
FOLDERS = strategies.sampled_from(["", "train", "test", "x/val", "cat", "[b]", "dev board"])
PICTURES = strategies.sampled_from(
    [
        *(picture(1), picture(2), picture(2, compress_level=0), b"", b"rubbish", picture(3)[:40]),
        *(picture(4, "JPEG"), picture(5, "WEBP"), picture(6, "GIF"), picture(7, "TIFF")),
    ]
)
ENDS = strategies.sampled_from(  # of pictures
    [".png", ".PNG", ".jpeg", ".webp", "", ".image", ".1", ".heic", ".eps"]
)
GOOD = {"good.png": picture(200), "good.txt": b"a good box"}  # so that some can be used
TEXTS = strategies.sampled_from([".txt", ".json", ".caption", ".text", ".TXT"])
WORDS = strategies.one_of(
    strategies.binary(max_size=30),
    LETTERS.map(lambda text: text.encode("utf-16")),
    strategies.sampled_from([b"a box", b"a box\r\nanother", b"\xef\xbb\xbfa box", b'["a"]', b"{}"]),
)
CELLS = strategies.one_of(
    LETTERS,
    strategies.sampled_from(["a.png", "train/a.png", "../a.png", "/a.png", "a\\b.png", "", "\0"]),
    strategies.sampled_from([None, 3, [], ["a", "b"], {"raw": "x"}, 1e308, True]),
)
WRITTEN = pathlib.Path(__file__).parents[1] / "fixtures" / "written"
FIELDS = ["file_name", "image", "text", "captions", "split", "", "other"]
ROWS = strategies.lists(
    strategies.dictionaries(strategies.sampled_from(FIELDS), CELLS, max_size=4), max_size=5
)


def claim(*given):
    """A claim for 60 inputs; the slow tests try 1,000 others, new ones each time."""

    def decorate(test):
        LONG[test.__name__] = MANY(hypothesis.given(*given)(test))
        return SOME(hypothesis.given(*given)(test))

    return decorate


@contextlib.contextmanager
def one_line():
    """What may be refused, as a user sees it."""
    try:
        yield
    except (errors.UserError, OSError) as error:
        assert str(error) and "\n" not in str(error)


def opened(spec, **options):
    """(all splits of a source, looked at, described and checked; what the survey found)."""
    options = {"test": 0.2} | options
    data = {split: sources.open_source(spec, split, **options) for split in listing.SPLITS}
    found = survey.survey(data)
    json.dumps(found)
    assert described.describe(found).encode()
    with one_line():
        survey.check(found)
    return data, found


def items(data):
    return [item for source in data.values() for item in source.items]


def counted(data):
    """The keys of all that is used, or counted as a fault or as left."""
    left = {key for source in data.values() for key, _ in source.left}
    return left | {item.key for item in items(data)}


def faults(data, found):
    """How many faults and files that are left out the survey has."""
    return sum(row["unusable"] for row in found["splits"].values()) + len(data["train"].left)


def strings(captions):
    """Those of some captions that have a text."""
    return {caption.strip() for caption in captions if isinstance(caption, str)} - {""}


def write(root, name, content):
    path = pathlib.Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def path(folder, name, end):
    return f"{folder}/{name}{end}".lstrip("/")


def check_text(name, content, data):
    """A text beside pictures: its captions are theirs, or counted by them; or it is left itself."""
    stem, end = os.path.splitext(name)
    owners = [item for item in items(data) if stem in (item.key, os.path.splitext(item.key)[0])]
    lost = {key for source in data.values() for key, _ in source.left}
    if name in lost or any(stem in (key, os.path.splitext(key)[0]) for key in lost):
        return
    assert owners, name
    wanted = set() if end == ".json" else strings(captions.lines(content))
    for item in owners:
        own = f"the captions of {end.lower()} beside "
        counts = any(what.startswith(own) for what in item.unused)
        broken = isinstance(item.where, listing.Broken)
        assert broken or counts or wanted <= strings(item.captions), (name, item)


@claim(
    strategies.dictionaries(strategies.tuples(FOLDERS, NAMES, ENDS), PICTURES, max_size=8),
    strategies.dictionaries(strategies.tuples(FOLDERS, NAMES, TEXTS), WORDS, max_size=6),
)
def test_every_file_of_any_folder_is_used_or_counted(pictures, texts):
    pictures = {path(*place): content for place, content in pictures.items()}
    texts = {path(*place): content for place, content in texts.items()}
    folders = {str(above) for name in (*pictures, *texts) for above in pathlib.Path(name).parents}
    pictures = {name: content for name, content in pictures.items() if name not in folders}
    texts = {name: content for name, content in texts.items() if name not in pictures}
    with tempfile.TemporaryDirectory() as root:
        for name, content in (pictures | texts | GOOD).items():
            write(root, name, content)
        with one_line():
            data, _ = opened(f"folder:{root}", ignore_splits=len(pictures) % 2 == 0)
            assert pictures.keys() <= counted(data)
            for name, content in texts.items():
                check_text(name, content, data)


@claim(
    strategies.dictionaries(
        strategies.sampled_from(["a", "b", "c/d"]),
        strategies.one_of(
            strategies.dictionaries(strategies.sampled_from(FIELDS), CELLS, max_size=5), CELLS
        ),
        max_size=3,
    ),
    strategies.booleans(),
)
def test_any_object_beside_a_picture_is_used_or_counted(rows, text):
    with tempfile.TemporaryDirectory() as root:
        for n, (name, row) in enumerate(rows.items()):
            write(root, f"{name}.png", picture(n))
            write(root, f"{name}.json", json.dumps(row).encode())
            write(root, f"{name}.txt", b"a box" if text else b" ")
        with one_line():
            data, found = opened(f"folder:{root}")
            for item in items(data):
                row = rows[item.key.removesuffix(".png")]
                row = row if isinstance(row, dict) else {"captions": row}
                if isinstance(item.where, listing.Broken):
                    continue
                for field, value in row.items():
                    own = strings(value if isinstance(value, list) else [value])
                    named = field in captioning.CAPTION_FIELDS
                    used = own <= strings(item.captions) or field in item.extra or field == "split"
                    assert used or (named and item.unused), (field, item)
            assert faults(data, found) or len(items(data)) == len(rows)


def table(rows, end):
    if end == "json":
        return json.dumps(rows).encode()
    if end == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    lines = [FIELDS, *([row.get(field, "") for field in FIELDS] for row in rows)]
    return "\n".join(",".join(map(str, line)) for line in lines).encode()


@claim(
    ROWS,
    strategies.sampled_from(["json", "jsonl", "csv", "txt", "tsv"]),
    WORDS,
    strategies.booleans(),
)
def test_any_list_is_read_or_refused_in_one_line(rows, end, rubbish, splits):
    rows = [{"file_name": "b.png", "text": "a box", "split": "train"}, *rows]
    field = {"split_field": "split" if splits else "none"}
    with tempfile.TemporaryDirectory() as root:
        for name in ("a", "b", "train/a"):
            write(root, f"{name}.png", picture(1))
        for content in (table(rows, end), table(rows, end) + b"\n" + rubbish):
            write(root, f"captions.{end}", content)
            with one_line():
                data, _ = opened(f"folder:{root}", **field)
                assert counted(data) >= {"a.png", "b.png", "train/a.png"}


@claim(strategies.data())
def test_any_damage_to_a_shard_is_a_fault_or_changes_no_number_of_items(data):
    with tempfile.TemporaryDirectory() as root:
        path = pathlib.Path(root, "a.tar")
        shard(path, members(6))
        content = bytearray(path.read_bytes())[: 13 * 1024]
        for _ in range(data.draw(strategies.integers(1, 3))):
            place = data.draw(strategies.integers(0, len(content) - 1))
            kind = data.draw(strategies.sampled_from(["flip", "cut", "drop", "zero"]))
            if kind == "flip":
                content[place] ^= 1 << data.draw(strategies.integers(0, 7))
            elif kind == "cut":
                content = content[: place + 1]
            elif kind == "drop":
                del content[place : place + data.draw(strategies.integers(1, 600))]
                content = content or bytearray(1)
            else:
                content[place : place + 512] = bytes(min(512, len(content) - place))
        path.write_bytes(content)
        with one_line():
            found, counts = opened(f"webdataset:{path}")
            whole = [item for item in items(found) if not isinstance(item.where, listing.Broken)]
            assert len(whole) == 6 or faults(found, counts)


@claim(strategies.dictionaries(LETTERS, WORDS, max_size=6), ENDS, PICTURES)
@hypothesis.example({"\n": b"[]"}, ".png", b"")
def test_any_names_in_a_shard_are_used_or_counted(files, end, shown):
    with tempfile.TemporaryDirectory() as root:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            members_ = [
                (name + own, inside)
                for name, content in files.items()
                for own, inside in ((end, shown), (".txt", content), (".json", content))
            ]
            for name, inside in (*members_, *GOOD.items()):
                member = tarfile.TarInfo(name)
                member.size = len(inside)
                tar.addfile(member, io.BytesIO(inside))
        write(root, "a.tar", file.getvalue())
        with one_line():
            data, _ = opened(f"webdataset:{root}")
            without = listing.Broken("captions without an image")
            shown = {item.key for item in items(data) if item.where != without}
            left = {key for source in data.values() for key, _ in source.left}
            for name in filter(None, files):
                if not name.startswith("."):
                    stem = (name + end).rpartition(".")[0] or name
                    images, texts = {name + end, stem}, {name, name + ".txt", tars.first_dot(name)}
                    assert {listing.printable(f"a.tar/{k}") for k in images} & (shown | left), name
                    assert {listing.printable(f"a.tar/{k}") for k in texts} & counted(data), name


FILES = strategies.sampled_from(["a.png", "b.png", "x/a.png", "none.png", "c", "..", "/a.png", ""])
SAID = strategies.one_of(strategies.integers(0, 5), strategies.sampled_from(["a", None, 1.5]))


@claim(
    strategies.dictionaries(SAID, FILES, max_size=5),
    strategies.lists(SAID, max_size=6),
    strategies.sampled_from(["train", "val", "test", "x"]),
    strategies.booleans(),
    CELLS,
)
def test_every_picture_and_caption_of_any_list_of_coco_is_used_or_counted(
    rows, said, split, karpathy, cell
):
    with tempfile.TemporaryDirectory() as root:
        for n, name in enumerate(("a.png", "b.png", "x/a.png", "x/c")):
            write(root, name, picture(n))
        official = {
            "images": [{"id": key, "file_name": name} for key, name in rows.items()],
            "annotations": [{"image_id": key, "caption": f"c{n}"} for n, key in enumerate(said)],
        }
        official["images"].append({"id": "good", "file_name": "x/c"})
        own = {
            "images": [
                {"filename": name, "split": split, "sentences": [{"raw": f"{key}"}, {"raw": cell}]}
                for key, name in rows.items()
            ]
            + [{"filename": "c", "filepath": "x", "sentences": [{"raw": "good"}]}]
        }
        name = "dataset_coco.json" if karpathy else f"captions_{split}2014.json"
        write(root, name, json.dumps(own if karpathy else official).encode())
        with one_line():
            data, _ = opened(f"coco:{root}", trust_splits=True, ignore_splits=True)
            keys = counted(data)
            for place in ("a.png", "b.png", "x/a.png", "x/c"):
                assert place in keys or os.path.basename(place) in keys, place
            if not karpathy:
                used = [caption for item in items(data) for caption in item.captions]
                cause = "a caption of an image that its file does not list"
                left = [why for _, why in data["train"].left if why == cause]
                assert len(used) + len(left) == len(said)


LINES, FLAGS = (
    strategies.lists(
        strategies.one_of(
            strategies.sampled_from(usual),
            strategies.sampled_from([b"1 1", b"2 0", b"word", b"6 d.jpg", b"001.A", b" "]),
            strategies.binary(max_size=12),
        ),
        max_size=8,
    )
    for usual in (
        [b"1 001.A/a.jpg", b"2 001.A/b.jpg", b"3 002.B/c.jpg", b"4 002.B/none.jpg", b"5 ../x"],
        [b"1 1", b"2 0", b"3 1", b"3 0", b"4 1"],
    )
)


@claim(LINES, FLAGS, strategies.one_of(strategies.none(), strategies.binary(max_size=12)))
def test_every_bird_of_any_lists_is_used_or_counted(names, flags, classes):
    birds = ("001.A/a", "001.A/b", "002.B/c", "d")
    with tempfile.TemporaryDirectory() as root:
        for n, name in enumerate(birds):
            write(root, f"images/{name}.jpg", picture(n))
            write(root, f"text_c10/{name}.txt", f"bird {n}".encode())
        write(root, "images.txt", b"\n".join([b"9 002.B/c.jpg", *names]))
        write(root, "train_test_split.txt", b"\n".join(flags))
        if classes is not None:
            write(root, "testclasses.txt", b"001.A " + classes)
        with one_line():
            data, _ = opened(f"cub:{root}")
            keys, used = counted(data), {c for item in items(data) for c in item.captions}
            for n, name in enumerate(birds):
                assert {f"{name}.jpg", f"images/{name}.jpg"} & keys, name
                assert f"bird {n}" in used or f"text_c10/{name}.txt" in keys, name


TOKENS = strategies.lists(
    strategies.one_of(
        strategies.sampled_from([b"a.png#0\ta box", b"a.png#1\tbox", b"b.png#0\ta", b"z.png#0\tz"]),
        strategies.sampled_from([b"a.png", b"b.png", b"c.png", b"x/a.png#0\ta", b"#\t#", b"\t"]),
        strategies.binary(max_size=12),
    ),
    max_size=6,
)


@claim(TOKENS, TOKENS, strategies.sampled_from(["train", "dev", "test", "val_"]))
def test_every_picture_and_name_of_any_lists_of_flickr_is_used_or_counted(rows, names, split):
    with tempfile.TemporaryDirectory() as root:
        for n, name in enumerate(("a.png", "b.png", "c.png")):
            write(root, f"Images/{name}", picture(n))
        write(root, "Flickr8k.token.txt", b"\n".join([b"c.png#0\ta box", *rows]))
        write(root, f"Flickr_8k.{split}Images.txt", b"\n".join(names))
        with one_line():
            data, _ = opened(f"folder:{root}")
            keys = counted(data)
            assert {f"Images/{name}" for name in ("a.png", "b.png", "c.png")} <= keys
            ends = {os.path.basename(key) for key in keys}
            for name in strings(captions.lines(b"\n".join(names))):
                name = listing.printable(name)
                assert os.path.basename(name) in ends or any(k.endswith(name) for k in keys), name


@claim(strategies.binary(max_size=200))
def test_any_bytes_are_decoded_to_text_without_a_mark(content):
    assert "\ufeff" not in captions.decode(content)
    assert all(line.strip() for line in captions.lines(content)[1:])


@claim(
    strategies.lists(strategies.tuples(strategies.floats(0, 0.999), strategies.integers(0, 7))),
    strategies.floats(0, 2),
)
def test_any_damage_to_a_list_in_parquet_is_one_line(flips, kept):
    with tempfile.TemporaryDirectory() as root:
        write(root, "a.png", picture(1))
        table = pyarrow.Table.from_pylist([{"file_name": "a.png", "text": "a box"}] * 3)
        parquet.write_table(table, f"{root}/metadata.parquet")
        content = bytearray(pathlib.Path(root, "metadata.parquet").read_bytes())
        for place, bit in flips[:3]:
            content[int(place * len(content))] ^= 1 << bit
        write(
            root, "metadata.parquet", content[: int(kept * len(content))] if kept < 1 else content
        )
        with one_line():
            data, _ = opened(f"folder:{root}")
            assert "a.png" in counted(data)


@claim(
    strategies.sampled_from(["datasets_parquet", "datasets_disk", "img2dataset_parquet"]),
    strategies.lists(strategies.tuples(strategies.floats(0, 0.999), strategies.integers(0, 7))),
    strategies.floats(0, 1),
)
def test_any_damage_to_a_table_of_pictures_is_a_fault_or_one_line(name, flips, kept):
    with tempfile.TemporaryDirectory() as root:
        for path in (WRITTEN / name).rglob("*.[pa]*r*"):
            if path.suffix in (".parquet", ".arrow"):
                content = bytearray(path.read_bytes())
                for place, bit in flips[:3]:
                    content[int(place * len(content))] ^= 1 << bit
                if kept < 0.5:
                    content = content[: int(2 * kept * len(content))]
                write(root, path.relative_to(WRITTEN / name), content)
        with one_line():
            opened(f"parquet:{root}")


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
def test_many_more_inputs_hold_to_the_claim(name):
    LONG[name]()
