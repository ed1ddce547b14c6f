"""Any folder and any shard is refused in one line, or all of its items are used or counted."""

import contextlib
import io
import json
import pathlib
import tarfile
import tempfile

import hypothesis
import pytest
from hypothesis import strategies

from tests.data.test_sources_cases import members, picture, shard
from udd_jax.data import captions, described, sources, survey
from udd_jax.data.sources import listing

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
    [picture(1), picture(2), picture(2, compress_level=0), b"", b"rubbish", picture(3)[:40]]
)
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
    except ValueError as error:
        assert str(error) and "\n" not in str(error)


def opened(spec):
    """All splits of a source, looked at, described and checked."""
    data = {split: sources.open_source(spec, split, test=0.2) for split in listing.SPLITS}
    found = survey.survey(data)
    json.dumps(found)
    assert described.describe(found).encode()
    with one_line():
        survey.check(found)
    return data


def counted(data):
    """The keys of all that is used, or counted as a fault or as left."""
    items = {item.key for source in data.values() for item in source.items}
    return items | {key for source in data.values() for key, _ in source.left}


def write(root, name, content):
    path = pathlib.Path(root, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@claim(
    strategies.dictionaries(strategies.tuples(FOLDERS, NAMES), PICTURES, max_size=8),
    strategies.dictionaries(
        strategies.tuples(FOLDERS, NAMES, strategies.sampled_from([".txt", ".json", ".caption"])),
        WORDS,
        max_size=6,
    ),
)
def test_every_picture_of_any_folder_is_used_or_counted(pictures, texts):
    with tempfile.TemporaryDirectory() as root:
        for (folder, name), content in pictures.items():
            write(root, f"{folder}/{name}.png".lstrip("/"), content)
        for (folder, name, end), content in texts.items():
            write(root, f"{folder}/{name}{end}".lstrip("/"), content)
        with one_line():
            keys = counted(opened(f"folder:{root}"))
            for folder, name in pictures:
                assert f"{folder}/{name}.png".lstrip("/") in keys


def table(rows, end):
    if end == "json":
        return json.dumps(rows).encode()
    if end == "jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    lines = [FIELDS, *([row.get(field) for field in FIELDS] for row in rows)]
    return "\n".join(",".join(map(str, line)) for line in lines).encode()


@claim(ROWS, strategies.sampled_from(["json", "jsonl", "csv", "txt", "tsv"]), WORDS)
def test_any_list_is_read_or_refused_in_one_line(rows, end, rubbish):
    with tempfile.TemporaryDirectory() as root:
        for name in ("a", "b", "train/a"):
            write(root, f"{name}.png", picture(1))
        for content in (table(rows, end), table(rows, end) + b"\n" + rubbish):
            write(root, f"captions.{end}", content)
            with one_line():
                keys = counted(opened(f"folder:{root}"))
                assert keys >= {"a.png", "b.png", "train/a.png"}


@claim(strategies.data())
def test_any_damage_to_a_shard_is_a_fault_and_never_a_traceback(data):
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
            opened(f"webdataset:{path}")


@claim(strategies.dictionaries(LETTERS, WORDS, max_size=6))
@hypothesis.example({"\n": b"[]"})
def test_any_names_in_a_shard_are_read_or_counted(files):
    with tempfile.TemporaryDirectory() as root:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for name, content in files.items():
                for end in (".png", ".txt", ".json"):
                    member = tarfile.TarInfo(name + end)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        write(root, "a.tar", file.getvalue())
        with one_line():
            opened(f"webdataset:{root}")


@claim(strategies.binary(max_size=200))
def test_any_bytes_are_decoded_to_text_without_a_mark(content):
    assert "\ufeff" not in captions.decode(content)
    assert all(line.strip() for line in captions.lines(content)[1:])


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


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_many_more_inputs_hold_to_the_claim(name):
    LONG[name]()
