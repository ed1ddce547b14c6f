"""Every format gives the same records, and no picture is in two splits."""

import csv
import json
import pickle

import numpy as np
import pytest

from udd_jax import images
from udd_jax.data import hashing, listing, sources

COUNT = 40
CAPTIONS = [(f"picture {n}",) if n % 2 else (f"number {n}", f"{n}, again") for n in range(COUNT)]


def pixels(number):
    return np.full((12, 12, 3), [number, 255 - number, 7], np.uint8)


def encoded(number):
    return images.encode_png(pixels(number))


def number_in(record):
    image = images.read(record.image) if isinstance(record.image, bytes) else record.image
    return int(image[0, 0, 0])


def all_splits(spec, **options):
    return {split: sources.open_source(spec, split, **options) for split in listing.SPLITS}


def assert_complete(splits):
    """Every picture is there once, in one split, with its own captions; the keys are unique."""
    records = [source[i] for source in splits.values() for i in range(len(source))]
    numbers = [number_in(record) for record in records]
    assert sorted(numbers) == list(range(COUNT))
    assert len({record.key for record in records}) == COUNT
    for number, record in zip(numbers, records, strict=True):
        assert record.captions == CAPTIONS[number]


def folder(path, style):
    """A folder of COUNT pictures, some in a subfolder, with captions in the given style."""
    (path / "sub").mkdir(parents=True)
    rows = []
    for n in range(COUNT):
        name = f"sub/{n}.png" if n < 9 else f"{n}.png"
        (path / name).write_bytes(encoded(n))
        rows.append({"file_name": name, "captions": list(CAPTIONS[n])})
        if style == "txt":
            (path / name).with_suffix(".txt").write_text("\n".join(CAPTIONS[n]) + "\n")
    single = [{"file_name": r["file_name"], "text": c} for r in rows for c in r["captions"]]
    if style == "jsonl":
        (path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if style == "csv":
        with open(path / "captions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text"])
            writer.writeheader()
            writer.writerows(single)
    if style == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path / "metadata.parquet")
    return f"folder:{path}"


@pytest.mark.parametrize("style", ["txt", "jsonl", "csv", "parquet"])
def test_a_folder_is_read_whatever_holds_its_captions(tmp_path, style):
    splits = all_splits(folder(tmp_path / "data", style), validation=0.2, test=0.2)
    assert_complete(splits)
    assert len(splits["train"]) > len(splits["validation"]) > 0


def test_shapes_open_by_name_with_their_options():
    source = sources.open_source("shapes", "test", size=5, seed=3)
    assert len(source) == 5 and source[4].image.shape == (32, 32, 3)


def test_the_same_picture_is_never_in_two_splits(tmp_path):
    for n in range(90):
        (tmp_path / f"{n}.png").write_bytes(encoded(n % 30))
        (tmp_path / f"{n}.txt").write_text(f"copy {n}")
    splits = all_splits(f"folder:{tmp_path}", validation=0.3, test=0.3)
    numbers = {
        s: {number_in(source[i]) for i in range(len(source))} for s, source in splits.items()
    }
    assert sum(len(source) for source in splits.values()) == 90
    assert sum(map(len, numbers.values())) == 30


def test_a_split_by_hash_does_not_change_when_pictures_are_added(tmp_path):
    spec = folder(tmp_path / "data", "txt")
    before = {s: {r.key for r in source.items} for s, source in all_splits(spec).items()}
    (tmp_path / "data" / "new.png").write_bytes(encoded(200))
    (tmp_path / "data" / "new.txt").write_text("new")
    after = {s: {r.key for r in source.items} for s, source in all_splits(spec).items()}
    for split in listing.SPLITS:
        assert after[split] - {"new.png"} == before[split]


def test_splits_that_the_data_name_are_kept_and_the_lacking_one_is_made(tmp_path):
    for n in range(COUNT):
        folder = tmp_path / ("test2017" if n < 10 else "train")
        folder.mkdir(exist_ok=True)
        (folder / f"{n}.png").write_bytes(encoded(n))
        (folder / f"{n}.txt").write_text("\n".join(CAPTIONS[n]))
    splits = all_splits(f"folder:{tmp_path}", validation=0.3)
    assert_complete(splits)
    assert sorted(number_in(splits["test"][i]) for i in range(10)) == list(range(10))
    assert len(splits["validation"]) + len(splits["train"]) == 30


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("val2014", "validation"),
        ("train-00000-of-00002.parquet", "train"),
        ("emoji", None),
        ("test_images", "test"),
        ("contest", None),
        ("train_and_test", None),
        ("dev", "validation"),
    ],
)
def test_a_split_is_read_from_a_name(name, split):
    assert listing.split_named(name) == split


def test_a_source_can_be_sent_to_another_process(tmp_path):
    source = sources.open_source(folder(tmp_path / "data", "jsonl"), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3] and copy.name == source.name


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("shape", {}, "data is 'shape', expected one of shapes, "),
        ("shapes:x", {}, "data is 'shapes:x'"),
        ("folder:", {}, "data is 'folder:', expected one of"),
        ("folder:/no/such", {}, "/no/such is no folder, expected one with images"),
        ("shapes", {"count": 3}, "data_options has 'count' for 'shapes', expected some of size"),
        ("folder:HERE", {"shuffle": 1}, "expected some of caption_field, validation, test"),
        ("folder:HERE", {}, "holds no captioned images, expected captions.jsonl"),
        ("folder:HERE/txt", {"split": "tests"}, "split is 'tests', expected one of train"),
        ("folder:HERE/txt", {"validation": 0.5, "test": 0.5}, "expected a sum in"),
        ("folder:HERE/jsonl", {"caption_field": "alt"}, "expected alt; name it with caption_f"),
    ],
)
def test_bad_specs_and_options_are_one_line_errors(tmp_path, spec, options, message):
    if "/" in spec:
        folder(tmp_path / "txt", "txt")
        folder(tmp_path / "jsonl", "jsonl")
    split = options.pop("split", "train") if "split" in options else "train"
    with pytest.raises(ValueError, match=message) as caught:
        sources.open_source(spec.replace("HERE", str(tmp_path)), split, **options)
    assert "\n" not in str(caught.value)


def test_content_hashes_tell_pixels_and_shapes_apart():
    flat = np.zeros((2, 6, 3), np.uint8)
    assert hashing.content_hash(flat) == hashing.content_hash(flat.copy())
    assert hashing.content_hash(flat) != hashing.content_hash(flat.reshape(6, 2, 3))
    assert hashing.content_hash(flat) != hashing.content_hash(flat.tobytes())
