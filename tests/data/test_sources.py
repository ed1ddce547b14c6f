"""Every format gives the same records, and no picture is in two splits."""

import csv
import io
import json
import os
import pathlib
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from udd_jax.data import hashing, pixels, reading, sources
from udd_jax.data.sources import listing, split_names

COUNT = 40
CAPTIONS = [(f"picture {n}",) if n % 2 else (f"number {n}", f"{n}, again") for n in range(COUNT)]


def picture(number):
    return np.full((12, 12, 3), [number, 255 - number, 7], np.uint8)


def encoded(number):
    return pixels.encode_png(picture(number))


def number_in(record):
    image = pixels.read(record.image) if isinstance(record.image, bytes) else record.image
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


def test_a_picture_that_given_splits_share_stays_in_the_last_of_them(tmp_path):
    for split, numbers in (("train", range(20)), ("val", range(15, 25)), ("test", range(18, 30))):
        (tmp_path / split).mkdir()
        for n in numbers:
            (tmp_path / split / f"{n}.png").write_bytes(encoded(n))
            (tmp_path / split / f"{n}.txt").write_text(f"{n}")
    splits = all_splits(f"folder:{tmp_path}")
    numbers = {
        s: [number_in(source[i]) for i in range(len(source))] for s, source in splits.items()
    }
    assert sorted(numbers["train"]) == list(range(15))
    assert sorted(numbers["validation"]) == [15, 16, 17]
    assert sorted(numbers["test"]) == list(range(18, 30))
    assert splits["train"].name.endswith("train, without 5 that are in validation or test")
    assert splits["validation"].name.endswith("validation, without 7 that are in test")
    assert len(sources.open_source(f"folder:{tmp_path}", "train", trust_splits=True)) == 20


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
    assert split_names.named(name) == split


def test_a_changed_caption_changes_the_hash_of_its_source(tmp_path):
    spec = folder(tmp_path / "data", "txt")
    before = sources.open_source(spec, "train", validation=0, test=0).hash
    assert sources.open_source(spec, "train", validation=0, test=0).hash == before
    (tmp_path / "data" / "20.txt").write_text("another")
    assert sources.open_source(spec, "train", validation=0, test=0).hash != before


def test_a_source_can_be_sent_to_another_process(tmp_path):
    source = sources.open_source(folder(tmp_path / "data", "jsonl"), "train")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3] == source[3] and copy.name == source.name


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("shape", {}, "data is 'shape', expected one of shapes, comp"),
        ("shapes:x", {}, "data is 'shapes:x'"),
        ("folder:", {}, "data is 'folder:', expected one of"),
        ("HERE", {}, "tfds:PATH: for this folder, --config.data=folder:"),
        ("folder:/no/such", {}, "/no/such is not a folder, expected one with images"),
        ("shapes", {"count": 3}, "data_options has 'count' for 'shapes', expected some of size"),
        (
            "folder:HERE",
            {"shuffle": 1},
            "expected some of caption_field, validation, test, trust_splits, ignore_splits",
        ),
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


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def webdataset(path, style):
    """Three shards of COUNT items in all."""
    path.mkdir()
    for shard in range(3):
        with tarfile.open(path / f"shard-{shard}.tar", "w") as tar:
            for n in range(shard, COUNT, 3):
                add(tar, f"./a.b/{n}.png", encoded(n))
                if style == "json":
                    row = {"captions": CAPTIONS[n], "style": "flat", "number": n}
                    add(tar, f"./a.b/{n}.json", json.dumps(row).encode())
                else:
                    add(tar, f"./a.b/{n}.txt", "\n".join(CAPTIONS[n]).encode())
                add(tar, f"./a.b/{n}.seg.png", encoded(0))
    return f"webdataset:{path}"


@pytest.mark.parametrize("style", ["json", "txt"])
@pytest.mark.parametrize("end", ["", "/*.tar", "/shard-[0-2].tar"])
def test_webdataset_shards_are_read_by_folder_and_by_glob(tmp_path, style, end):
    splits = all_splits(webdataset(tmp_path / "data", style) + end, validation=0.2, test=0.2)
    assert_complete(splits)
    record = splits["train"][0]
    if style == "json":
        assert record.extra == {"style": "flat", "number": number_in(record)}


def test_a_shard_that_breaks_off_gives_what_it_has_and_says_so(tmp_path):
    spec = webdataset(tmp_path / "data", "json")
    shard = tmp_path / "data" / "shard-1.tar"
    with tarfile.open(shard) as tar:
        sixth = [member for member in tar if member.name.endswith(".png")][10]
    shard.write_bytes(shard.read_bytes()[: sixth.offset_data + 20])
    source = sources.open_source(spec, "train", validation=0, test=0)
    examples = list(reading.examples(source, 0, len(source), reading.Views(8)))
    good = [example for example in examples if example.pixels is not None]
    assert len(good) == 14 + 5 + 13
    faults = [fault for example in examples for fault in example.faults]
    assert {cause for cause, _ in faults} == {"unreadable record"}
    assert any("the shard breaks off after 6 images" in detail for _, detail in faults)


def hugging_face(path, columns="image,text"):
    import pyarrow
    from pyarrow import parquet

    path.mkdir()
    for split, numbers in (("train", range(30)), ("test", range(30, COUNT))):
        rows = []
        for n in numbers:
            image = {"bytes": encoded(n), "path": f"{n}.png"}
            rows.append({"image": image, "captions": list(CAPTIONS[n]), "number": n})
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, path / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return f"parquet:{path}"


def test_parquet_in_the_layout_of_hugging_face_is_read_with_its_splits(tmp_path):
    splits = all_splits(hugging_face(tmp_path / "data"), validation=0.3)
    assert_complete(splits)
    assert len(splits["test"]) == 10
    assert splits["test"][4].extra == {"number": 34}
    assert len(splits["train"]) + len(splits["validation"]) == 30


def test_several_text_columns_of_parquet_can_be_captions(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"jpg": encoded(n), "title": f"t{n}", "alt": None if n else "a"} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    spec, options = f"parquet:{tmp_path}/a.parquet", {"validation": 0, "test": 0}
    with pytest.raises(ValueError, match=r"has the fields .*expected captions or caption or"):
        sources.open_source(spec, "train", **options)
    source = sources.open_source(spec, "train", caption_field="title,alt", **options)
    assert [source[i].captions for i in range(3)] == [("t0", "a"), ("t1",), ("t2",)]


def test_parquet_with_pictures_alone_says_what_is_missing(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"image": encoded(n)} for n in range(3)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"row 0 has the fields \[\], expected captions or"):
        sources.open_source(f"parquet:{tmp_path}", "train")


def coco(path, karpathy):
    for number in range(COUNT):
        folder = path / ("train2014" if number < 30 else "val2014")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"COCO_{number}.jpg").write_bytes(encoded(number))
    (path / "annotations").mkdir()
    for split, numbers in (("train", range(30)), ("val", range(30, COUNT))):
        shown = [{"id": 7 * n, "file_name": f"COCO_{n}.jpg"} for n in numbers]
        said = [{"image_id": 7 * n, "caption": c} for n in numbers for c in CAPTIONS[n]]
        content = json.dumps({"images": shown, "annotations": said[::-1]})
        (path / "annotations" / f"captions_{split}2014.json").write_text(content)
    if karpathy:
        names = ["train"] * 25 + ["restval"] * 5 + ["val"] * 4 + ["test"] * 6
        shown = [
            {
                "filename": f"COCO_{n}.jpg",
                "split": name,
                "cocoid": n,
                "sentences": [{"raw": caption, "tokens": []} for caption in CAPTIONS[n]],
            }
            for n, name in enumerate(names)
        ]
        (path / "dataset_coco.json").write_text(json.dumps({"images": shown}))
    return f"coco:{path}"


def test_coco_is_split_by_its_annotation_files(tmp_path):
    splits = all_splits(coco(tmp_path / "coco", karpathy=False), test=0.2)
    records = [source[i] for source in splits.values() for i in range(len(source))]
    for record in records:
        assert sorted(record.captions) == sorted(CAPTIONS[number_in(record)])
    assert len(records) == COUNT and len(splits["validation"]) == 10


def test_coco_is_split_as_karpathy_did_where_his_file_is(tmp_path):
    splits = all_splits(coco(tmp_path / "coco", karpathy=True))
    assert_complete(splits)
    assert [len(splits[split]) for split in listing.SPLITS] == [30, 4, 6]


@pytest.mark.parametrize("by_class", [False, True])
def test_birds_come_with_their_captions_and_splits(tmp_path, by_class):
    birds = tmp_path / "CUB_200_2011"
    lists = {"images": [], "train_test_split": []}
    for n in range(COUNT):
        name = f"{n // 10:03d}.Bird_{n // 10}/Bird_{n}.jpg"
        place, text = birds / "images" / name, tmp_path / "cvpr2016_cub" / "text_c10" / name
        for path in (place, text):
            path.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(n))
        text.with_suffix(".txt").write_text("\n".join(CAPTIONS[n]) + "\n\n")
        lists["images"].append(f"{n + 1} {name}")
        lists["train_test_split"].append(f"{n + 1} {n % 2}")
    for name, lines in lists.items():
        (birds / f"{name}.txt").write_text("\n".join(lines) + "\n")
    if by_class:
        (tmp_path / "cvpr2016_cub" / "testclasses.txt").write_text("001.Bird_1\n003.Bird_3\n")
    splits = all_splits(f"cub:{tmp_path}", validation=0.3)
    assert_complete(splits)
    test = {number_in(splits["test"][i]) for i in range(20)}
    expected = [n for n in range(COUNT) if (n // 10 % 2 == 1 if by_class else n % 2 == 0)]
    assert test == set(expected) and len(splits["validation"]) > 0


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data set prepared by TensorFlow Datasets, with captions and labels."""
    import tensorflow_datasets as tfds

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "mask": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(names=["001.Night_owl", "002.Crow"]),
                    "captions": tfds.features.Sequence(
                        {"id": np.int64, "text": tfds.features.Text()}
                    ),
                }
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager):
            return {
                "train": self._generate_examples(30, 0),
                "test": self._generate_examples(10, 30),
            }

        def _generate_examples(self, count, first):
            for n in range(first, first + count):
                captions = [{"id": n, "text": caption} for caption in CAPTIONS[n]]
                image = io.BytesIO(encoded(n))
                label = n % 2 if n != 35 else -1  # which has none
                mask = io.BytesIO(encoded(0))
                yield n, {"image": image, "mask": mask, "label": label, "captions": captions}

    folder = tmp_path_factory.mktemp("tfds")
    builder = Tiny(data_dir=folder, file_format="array_record")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(try_download_gcs=False)
    )
    return folder


def test_prepared_tensorflow_datasets_are_read_without_tensorflow(prepared):
    import sys

    splits = all_splits("tfds:tiny", data_dir=str(prepared), validation=0.3)
    assert_complete(splits)
    assert "tensorflow" not in sys.modules
    assert len(splits["test"]) == 10


def test_labels_become_captions_through_a_template(prepared):
    options = {"data_dir": str(prepared), "template": "a photo of a {label}"}
    source = sources.open_source("tfds:tiny:1.0.0", "test", **options)
    names = [("a photo of a Night owl",), ("a photo of a Crow",)]
    for i in range(10):
        number = number_in(source[i])
        assert source[i].captions == (() if number == 35 else names[number % 2])
        assert "mask" not in source[i].extra
    listed = sources.open_source("tfds:tiny", "test", **options | {"template": "{captions[0]}"})
    assert all(len(listed[i].captions) == 1 for i in range(10))
    with pytest.raises(ValueError, match=r"expected names among .*'label'"):
        sources.open_source("tfds:tiny", "test", **options | {"template": "a {lable}"})


def test_of_several_prepared_configs_one_has_to_be_named(prepared, tmp_path):
    for config in ("2014", "2017"):
        shutil.copytree(prepared / "tiny" / "1.0.0", tmp_path / "tiny" / config / "1.0.0")
    with pytest.raises(ValueError, match=r"has 2014 and 2017: name one, as in tfds:tiny/2014"):
        sources.open_source("tfds:tiny", "test", data_dir=str(tmp_path))
    assert len(sources.open_source("tfds:tiny/2017", "test", data_dir=str(tmp_path))) == 10


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("webdataset:HERE/*.tar", "matches no file, expected one or more .tar files"),
        ("parquet:HERE", "matches no file, expected one or more .parquet files"),
        ("coco:HERE", "has no captions_.*json and no dataset_coco.json"),
        ("cub:HERE", "has no images.txt, the data set's list of images"),
        ("tfds:nothing", "holds no prepared data set, expected features.json"),
    ],
)
def test_a_place_without_such_data_is_a_one_line_error(tmp_path, spec, message):
    options = {"data_dir": str(tmp_path)} if spec.startswith("tfds") else {}
    with pytest.raises(ValueError, match=message) as caught:
        sources.open_source(spec.replace("HERE", str(tmp_path)), "train", **options)
    assert "\n" not in str(caught.value)


def test_damaged_lists_name_the_item_or_the_file(tmp_path):
    (tmp_path / "captions.jsonl").write_text(
        '{"file_name": "a.png", "text": "a"}\n{"file_name": "b.png", "te\n[1]\n'
        '{"file_name": "c.png"}\n{"text": "d"}\n{"file_name": "e.png", "text": "e"}\n'
    )
    (tmp_path / "a.png").write_bytes(encoded(1))
    source = sources.open_source(f"folder:{tmp_path}", "train", validation=0, test=0)
    found = [reading.example(source, i, reading.Views(8)) for i in range(len(source))]
    causes = [example.faults[0] if example.faults else None for example in found]
    assert causes[0] is None and len(causes) == 6
    assert {cause for cause, _ in causes[1:]} == {"unreadable record"}
    for (_, detail), text in zip(
        causes[1:],
        ("row 2: no JSON", "no object", "expected captions", "file_name", "e.png"),
        strict=True,
    ):
        assert text in detail
    (tmp_path / "captions_x.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"captions_x.json is not a COCO captions file"):
        sources.open_source(f"coco:{tmp_path}", "train")


EMOJI = pathlib.Path(
    os.environ.get("UDD_EMOJI", pathlib.Path(__file__).parents[2] / "../shared/data/emoji")
)


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not there")
def test_emoji_are_read_with_their_names_and_never_shown_in_two_splits():
    splits = all_splits(f"webdataset:{EMOJI}")
    assert [len(splits[s]) for s in ("train", "test")] == [5520, 740]
    assert len(splits["train"]) + len(splits["validation"]) == 5806
    record = splits["test"][0]
    assert pixels.read(record.image).shape == (64, 64, 3)
    assert record.captions[0] == record.extra["name"]
    hashes = {
        s: {hashing.content_hash(source[i].image) for i in range(len(source))}
        for s, source in splits.items()
    }
    assert not hashes["train"] & (hashes["validation"] | hashes["test"])
    assert not hashes["validation"] & hashes["test"]
