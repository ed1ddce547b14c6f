"""Values of further modalities in stored data: where they are found, read, counted and lacking."""

import io
import json
import pathlib
import tarfile
import tempfile

import numpy as np
import pyarrow
import pytest
from hypothesis import strategies as st
from pyarrow import parquet

from configs import base
from tests.data import test_sources_any_data as any_data
from udd_jax import modalities, values
from udd_jax.data import (
    batches,
    described,
    layouts,
    pixels,
    reading,
    sounds,
    sources,
    survey,
    token_cache,
)
from udd_jax.data.reading import Views
from udd_jax.data.records import Record
from udd_jax.data.sources import beside, listing, readers
from udd_jax.tokenizers import text_tokenizer
from udd_jax.training import further

SIDE, RATE, SAMPLES = 8, 800, 512
MAP = np.array([[0, 1, 2], [2, 1, 0]])  # of a square picture, so its middle is cut out
SHARES = {"validation": 0, "test": 0}


def config(**rows):
    c = base.get_config()
    c.image_size, c.incomplete = SIDE, False
    with c.unlocked():
        for name, row in rows.items():
            c.modalities[name] = row
    return c


SOUND = {"kind": "sound", "rate": RATE, "samples": SAMPLES, "bands": 4, "window": 64, "hop": 32}
SOUND |= {"low": 0.0, "high": 400.0}
LAYOUT = {"kind": "layout", "grid": (2, 2), "classes": 3}
BOTH = {"sound": SOUND, "map": LAYOUT}


def opened(spec, c=None, split="train", **options):
    options = modalities.source_options(c or config(**BOTH)) | SHARES | options
    return sources.open_source(str(spec), split, **options)


def picture(number=0):
    return pixels.encode_png(np.full((SIDE, SIDE, 3), number, np.uint8))


def wav(number=0):
    return sounds.encode_wav(np.full(300, number / 100), RATE)


def ids(array=MAP):
    file = io.BytesIO()
    pixels.Image.fromarray(np.asarray(array, np.uint8)).save(file, "PNG")
    return file.getvalue()


def records(source):
    return [source[i] for i in range(len(source))]


def assert_read(record, number):
    """The record has its own sound, fitted, and the middle of its map."""
    assert record.faults == () and set(record.extra) >= {"sound", "map"}
    sound = record.extra["sound"]
    assert sound.shape == (SAMPLES,) and sound.dtype == np.float32
    np.testing.assert_allclose(sound[:300], number / 100, atol=1e-4)
    assert not sound[300:].any()
    np.testing.assert_array_equal(record.extra["map"], MAP[:, :2])


def folder(path, count=4, **more):
    """`count` whole records of files with one stem."""
    path.mkdir(exist_ok=True)
    for n in range(count):
        for end, content in {"png": picture(n), "txt": b"a %d" % n, "wav": wav(n)}.items():
            (path / f"{n}.{end}").write_bytes(content)
        (path / f"{n}.seg.png").write_bytes(ids())
    for name, content in more.items():
        (path / name.replace("__", ".")).write_bytes(content)
    return path


# ---- Where they are -----------------------------------------------------------------------------


def test_files_of_one_stem_are_one_record(tmp_path):
    source = opened(f"folder:{folder(tmp_path)}")
    for n, record in enumerate(records(source)):
        assert_read(record, n)
        assert record.captions == (f"a {n}",)
    assert source.left == ()
    plain = opened(f"folder:{tmp_path}", config())
    assert len(plain) == 8  # the maps are pictures then
    why = "a file that is not a picture, text or list"
    assert plain.left == tuple((f"{n}.wav", why) for n in range(4))


@pytest.mark.parametrize(
    "name, owner",
    [
        ("a.wav", ("a", "sound")),
        ("a.b.FLAC", ("a.b", "sound")),
        ("a.sound.ogg", ("a", "sound")),
        ("a.seg.png", ("a", "map")),
        ("a.npy", ("a", "map")),
        ("a.map.json", ("a", "map")),
        ("a.map.png", ("a", "map")),
        ("a.json", None),
        ("a.png", None),
        ("wav", None),
    ],
)
def test_the_name_of_a_file_says_whose_it_is(name, owner):
    readers = modalities.source_options(config(**BOTH))["further"]
    assert beside.owner(name, readers) == owner


def test_references_and_features_are_files_of_a_stem(tmp_path):
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    row = {"kind": "features", "count": 2, "width": 3}
    c = config(first={"like": "image"}, clip=row)
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "a.first.png").write_bytes(picture(2))
    np.save(tmp_path / "a.npy", vectors)
    source = opened(f"folder:{tmp_path}", c)
    (example,) = reading.examples(source, 0, 1, Views(SIDE))
    assert len(source) == 1 and not example.faults
    assert (example.extra["first"] == 2).all() and example.pixels[0].max() == 1
    np.testing.assert_array_equal(example.extra["clip"], vectors)
    np.save(tmp_path / "a.npy", vectors[:1])
    (example,) = reading.examples(source, 0, 1, Views(SIDE))
    assert example.faults[0][0] == "broken clip" and "clip" not in example.extra


def test_a_file_of_a_reference_has_its_name_and_any_damage_is_a_fault(tmp_path):
    c = config(
        sound=SOUND, hum={"like": "sound"}, clip={"kind": "features", "count": 1, "width": 1}
    )
    folder(tmp_path, 4, **{f"{n}__hum__wav": wav(n + 40) for n in range(4)})
    damage = (b"", b"no numbers", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x05\x00{'a'\n")
    for n, content in enumerate(damage):
        (tmp_path / f"{n}.npy").write_bytes(content)
        (tmp_path / f"{n}.seg.png").unlink()
    source = opened(f"folder:{tmp_path}", c)
    for n, record in enumerate(records(source)):
        assert record.extra["sound"][0] == pytest.approx(n / 100, abs=1e-3)
        assert record.extra["hum"][0] == pytest.approx((n + 40) / 100, abs=1e-3)
        ((cause, detail),) = record.faults
        assert cause == "broken clip" and "is not an array of numbers (.npy): " in detail


SECOND = config(second={"like": "text"})
FIELD = config(second={"like": "text", "field": "told"})


def test_a_text_of_a_name_is_a_reference_and_the_first_line_counts(tmp_path):
    folder(tmp_path, 3, **{"0__second__txt": b"\n  two\x00 words \nmore", "1__second__txt": b" \n"})
    for place in (*tmp_path.glob("*.wav"), *tmp_path.glob("*.seg.png")):
        place.unlink()
    source = opened(f"folder:{tmp_path}", SECOND)
    found = [reading.example(source, i, Views(SIDE)) for i in range(3)]
    assert found[0].extra["second"] == "two words" and found[0].captions == ("a 0",)
    assert [example.faults for example in found[1:]] == [(("no second", ""),)] * 2
    assert list(reading.texts(source, ["second"])) == ["a 0", "a 1", "a 2", "two words"]
    lenient = opened(f"folder:{tmp_path}", SECOND, incomplete=True)
    found = [reading.example(lenient, i, Views(SIDE, incomplete=True)) for i in range(3)]
    assert [example.usable for example in found] == [True] * 3
    assert [example.extra.get("second") for example in found] == ["two words", None, None]


@pytest.mark.parametrize("kind", ["jsonl", "json", "webdataset", "parquet"])
def test_a_field_has_the_text_of_a_reference_itself(tmp_path, kind):
    """Also where the text looks like the path of a file that there is."""
    texts, path = ["0.png", "another", ""], tmp_path / "in"
    path.mkdir()
    for n, told in enumerate(texts):
        (path / f"{n}.png").write_bytes(picture(n))
        row = {"caption": f"a {n}", "told": told, "style": "flat"}
        (path / f"{n}.json").write_text(json.dumps(row))
    spec = f"folder:{path}"
    if kind == "jsonl":
        rows = [json.loads((path / f"{n}.json").read_text()) for n in range(3)]
        rows = [row | {"file_name": f"{n}.png"} for n, row in enumerate(rows)]
        (path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if kind == "webdataset":
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            tar.add(path, "")
        spec = f"webdataset:{tmp_path}/a.tar"
    if kind == "parquet":
        columns = {"image": [{"bytes": picture(n), "path": None} for n in range(3)]}
        columns |= {"text": [f"a {n}" for n in range(3)], "told": texts}
        (tmp_path / "table").mkdir()
        parquet.write_table(pyarrow.table(columns), tmp_path / "table" / "a.parquet")
        spec = f"parquet:{tmp_path}/table"
    source = opened(spec, FIELD, incomplete=True)
    found = sorted(records(source), key=lambda record: record.captions)
    assert [record.extra.get("second") for record in found] == ["0.png", "another", None]
    assert [record.captions for record in found] == [("a 0",), ("a 1",), ("a 2",)]
    assert not any(record.faults for record in found)
    assert all("told" not in record.extra for record in found)
    assert source.hash


def test_the_ids_of_a_text_reference_are_those_of_a_text_and_zeros_where_it_lacks(tmp_path):
    words = ["a red circle", "blue"]
    tokenizer = text_tokenizer.train_sentencepiece(words, tmp_path / "text.model", 320)
    encode = further.encoders(SECOND, {"second": tokenizer})["second"]
    length = SECOND.text.length
    expected = tokenizer.encode(["blue", "a red circle"], length)
    found = encode(["blue", None, "a red circle"])
    np.testing.assert_array_equal(found[[0, 2]], expected)
    assert not found[1].any()


def test_of_two_sounds_a_file_needs_the_name(tmp_path):
    c = config(voice=SOUND, music=SOUND)
    folder(tmp_path, 1, **{"0__voice__wav": wav(7), "0__music__flac": wav(9)})
    source = opened(f"folder:{tmp_path}", c)
    (record,) = [r for r in records(source) if r.key == "0.png"]
    assert record.extra["voice"][0] == pytest.approx(0.07, abs=1e-3)
    assert record.extra["music"][0] == pytest.approx(0.09, abs=1e-3)
    told = "may be of music or voice: call it 0.music.wav or 0.voice.wav"
    assert ("0.wav", told) in source.left


def with_fields(**rows):
    return config(**{n: row | {"field": f"{n}_of"} for n, row in (rows or BOTH).items()})


def test_the_fields_of_a_list_name_files_or_have_the_values(tmp_path):
    folder(tmp_path / "in", 2)
    for n in range(2):
        (tmp_path / "in" / f"{n}.txt").unlink()
        (tmp_path / "in" / f"{n}.wav").rename(tmp_path / "in" / f"s{n}.bin")
    rows = [
        {"file_name": f"{n}.png", "caption": "a", "sound_of": f"s{n}.bin", "map_of": MAP.tolist()}
        for n in range(2)
    ]
    (tmp_path / "in" / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for n, record in enumerate(records(opened(f"folder:{tmp_path}/in", with_fields()))):
        assert_read(record, n)
        assert "sound_of" not in record.extra and "map_of" not in record.extra


def test_a_file_that_a_field_names_is_used_and_any_other_one_counted(tmp_path):
    """Of sounds, and of pictures that are references."""
    for place in ("a.png", "ref/b.png", "ref/c.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(picture())
    for place in ("snd/x.wav", "snd/y.wav"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(wav())
    row = {"file_name": "a.png", "caption": "a", "sound_of": "snd/x.wav", "first_of": "ref/b.png"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row))
    first = {"like": "image"}
    source = opened(f"folder:{tmp_path}", with_fields(sound=SOUND, first=first))
    assert len(source) == 1 and set(source[0].extra) >= {"sound", "first"}
    assert sorted(key for key, _ in source.left) == ["ref/c.png", "snd/y.wav"]


@pytest.mark.parametrize("end", ["jsonl", "csv", "parquet"])
def test_a_class_label_is_a_map_of_one_cell(tmp_path, end):
    row = {"file_name": "a.png", "caption": "a", "map_of": 2}
    if end == "parquet":
        row["image"] = {"bytes": picture(), "path": None}
        table = pyarrow.Table.from_pylist([row])
        parquet.write_table(table.drop(["file_name"]), tmp_path / "a.parquet")
    else:
        (tmp_path / "a.png").write_bytes(picture())
        cells = [json.dumps(row)]
        if end == "csv":
            cells = [",".join(row), ",".join(map(str, row.values()))]
        (tmp_path / f"captions.{end}").write_text("\n".join(cells))
    spec = f"{'parquet' if end == 'parquet' else 'folder'}:{tmp_path}"
    for grid in ((1, 1), (2, 2)):
        (record,) = records(opened(spec, with_fields(map=LAYOUT | {"grid": grid})))
        np.testing.assert_array_equal(record.extra["map"], np.full(grid, 2))
    if end == "parquet":  # a column of labels with a gap has floats
        row |= {"map_of": 2.0}
        for gap in (float("nan"), -1.0):  # -1: no label, as `datasets` writes it
            rows = pyarrow.Table.from_pylist([row, row | {"map_of": gap}]).drop(["file_name"])
            parquet.write_table(rows, tmp_path / "a.parquet")
            read, lacks = records(opened(spec, with_fields(map=LAYOUT)))
            assert (read.extra["map"] == 2).all() and "map" not in lacks.extra
    few = with_fields(map=LAYOUT | {"grid": (1, 1), "classes": 2})
    assert "broken map" in dict(reading.example(opened(spec, few), 0, Views(SIDE)).faults)


def test_a_picture_of_a_list_has_the_values_beside_it(tmp_path):
    folder(tmp_path, 2)
    rows = [{"file_name": f"{n}.png", "caption": "listed"} for n in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = opened(f"folder:{tmp_path}")
    for n, record in enumerate(records(source)):
        assert_read(record, n)
        assert record.captions == ("listed",)
    (tmp_path / "1.wav").unlink()
    assert opened(f"folder:{tmp_path}").hash != source.hash  # so the tokens are made again


def test_a_path_in_a_field_stays_inside_the_folder(tmp_path):
    folder(tmp_path / "in", 1)
    (tmp_path / "out.wav").write_bytes(wav())
    row = {"file_name": "0.png", "caption": "a", "sound_of": "../out.wav", "map_of": "gone.npy"}
    (tmp_path / "in" / "captions.jsonl").write_text(json.dumps(row))
    source = opened(f"folder:{tmp_path}/in", with_fields())
    faults = dict(reading.example(source, 0, Views(SIDE)).faults)
    assert "lies outside of the folder" in faults["broken sound"]
    assert faults["broken map"] == "no file 'gone.npy'"


def test_the_members_of_a_shard_with_one_key_are_one_record(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(3):
            members = {"jpg.png": b"", "png": picture(n), "txt": b"a", "wav": wav(n)}
            members |= {"map.json": json.dumps(MAP.tolist()).encode()}
            for end, content in list(members.items())[1:]:
                info = tarfile.TarInfo(f"sub/{n:03}.{end}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = opened(f"webdataset:{tmp_path}/a.tar")
    for n, record in enumerate(records(source)):
        assert_read(record, n)
    assert len(source) == 3 and source.left == ()


def test_columns_have_bytes_paths_or_rows(tmp_path):
    (tmp_path / "s2.wav").write_bytes(wav(2))
    cells = [
        {"bytes": wav(0), "path": None},
        {"bytes": wav(1), "path": "x"},
        {"bytes": None, "path": "s2.wav"},
    ]
    columns = {
        "image": [{"bytes": picture(n), "path": None} for n in range(3)],
        "text": ["a", "b", "c"],
        "sound_of": cells,
        "map_of": [MAP.tolist()] * 3,
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    for n, record in enumerate(records(opened(f"parquet:{tmp_path}", with_fields()))):
        assert_read(record, n)
    (tmp_path / "in").mkdir()
    outside = columns | {"sound_of": [{"bytes": None, "path": "../s2.wav"}] * 3}
    parquet.write_table(pyarrow.table(outside), tmp_path / "in" / "b.parquet")
    ((cause, detail),) = opened(f"parquet:{tmp_path}/in", with_fields())[0].faults
    assert cause == "broken sound" and "lies outside of the folder" in detail
    c = config(sound=SOUND | {"field": "noise"})
    with pytest.raises(ValueError, match=r"expected 'noise' of the sound: set modalities.sound.fi"):
        opened(f"parquet:{tmp_path}", c)


def test_data_of_another_kind_have_no_further_modalities(tmp_path):
    with pytest.raises(ValueError, match="modalities has map, sound, which coco:x does not have"):
        opened("coco:x")


ENDS = ("png", "txt", "json", "wav", "seg.png", "npy", "map.json", "sound.ogg", "map.png")
CONTENTS = [picture(), b"a box", b"{}", json.dumps(MAP.tolist()).encode(), wav(), ids(), b"", b"[["]
CONTENTS += [b"\x93NUMPY", wav()[:50], ids()[:40], b'{"map_of": [[0, "x"]], "sound_of": 3}']


@any_data.claim(
    st.dictionaries(
        st.tuples(st.sampled_from(["a", "b", "test/a", "a.b"]), st.sampled_from(ENDS)),
        st.sampled_from(CONTENTS) | st.binary(max_size=20),
        max_size=9,
    ),
    st.booleans(),
    st.booleans(),
)
def test_any_files_of_records_are_read_or_refused_in_one_line(found, incomplete, tar):
    with tempfile.TemporaryDirectory() as root:
        for (name, end), content in found.items():
            any_data.write(f"{root}/in", f"{name}.{end}", content)
        pathlib.Path(root, "in").mkdir(exist_ok=True)
        if tar:
            with tarfile.open(f"{root}/a.tar", "w") as file:
                file.add(f"{root}/in", "")
        spec = f"webdataset:{root}/a.tar" if tar else f"folder:{root}/in"
        with any_data.one_line():
            data = {
                s: opened(spec, with_fields(), s, incomplete=incomplete) for s in listing.SPLITS
            }
            told = survey.survey(data, incomplete=incomplete)
            json.dumps(told)
            assert described.describe(told)
            for source in data.values():
                for i in range(len(source)):
                    reading.example(source, i, Views(SIDE, incomplete=incomplete))


# ---- Faults and what is lacking -----------------------------------------------------------------


BAD = {
    "sound": (b"RIFFno", "is not a sound that can be read"),
    "map": (ids(MAP + 7), "layouts have ids 7 to 9, expected 0 to 2"),
}


@pytest.mark.parametrize("incomplete", [False, True])
def test_a_value_that_cannot_be_read_is_a_fault_of_its_cause(tmp_path, incomplete):
    folder(tmp_path, 5)
    (tmp_path / "1.wav").write_bytes(BAD["sound"][0])
    (tmp_path / "3.seg.png").write_bytes(BAD["map"][0])
    source = opened(f"folder:{tmp_path}", incomplete=incomplete)
    views = Views(SIDE, incomplete=incomplete)
    for index, name in ((1, "sound"), (3, "map")):
        found = reading.example(source, index, views)
        ((cause, detail),) = found.faults
        assert not found.usable and cause == f"broken {name}" and BAD[name][1] in detail
    data = {s: opened(f"folder:{tmp_path}", split=s) for s in ("train", "test")}
    found = survey.survey(data, incomplete=incomplete)
    assert {c: row["count"] for c, row in found["unusable"].items()} == {
        "broken sound": 1,
        "broken map": 1,
    }
    assert found["splits"]["train"]["having"] == {"image": 3, "text": 3, "map": 3, "sound": 3}
    with pytest.raises(ValueError, match=r"2 of 5 records .*\(broken sound 1, the first: 1.png"):
        survey.check(found)


PARTS = ("png", "txt", "wav", "seg.png")


def ragged(path, count=16):
    """Records n of a folder: part p is there if bit p of n is; record 0 has nothing."""
    path.mkdir(exist_ok=True)
    for n in range(1, count):
        contents = picture(n), b"a %d" % n, wav(n), ids()
        for bit, (end, content) in enumerate(zip(PARTS, contents, strict=True)):
            if n >> bit & 1:
                (path / f"{n:02}.{end}").write_bytes(content)
    return path


def test_records_that_lack_anything_are_used_and_counted(tmp_path):
    ragged(tmp_path)
    source = opened(f"folder:{tmp_path}", incomplete=True)
    found = survey.survey({"train": source}, incomplete=True)
    survey.check(found)
    row = found["splits"]["train"]
    assert row["records"] == 15 and row["unusable"] == 0
    assert row["having"] == dict.fromkeys(("image", "text", "map", "sound"), 8)
    counts = {cause: row["count"] for cause, row in found["alone"].items()}
    assert counts == {f"no {what}": 7 for what in ("picture", "caption", "map", "sound")}
    told = described.describe(found)
    assert "of those that can be used: 8 image, 8 text, 8 map, 8 sound" in told
    assert "used as they are: no picture, 7 (the first: 02)" in told
    (index,) = (i for i, item in enumerate(source.items) if item.key == "09.png")
    lenient, refused = (reading.example(source, index, Views(SIDE, incomplete=i)) for i in (1, 0))
    assert lenient.usable and set(lenient.faults) == {
        ("without caption", "0 given"),
        ("without sound", ""),
    }
    assert not refused.usable and ("no sound", "") in refused.faults
    strict = survey.survey({"train": opened(f"folder:{tmp_path}")})
    assert strict["splits"]["train"]["unusable"] == 7  # the others have no picture, so are left
    with pytest.raises(ValueError, match="incomplete=True trains each record on what it has"):
        survey.check(strict)


def test_a_record_of_nothing_is_a_fault():
    bare = [Record("a", None, ("",), {"style": "flat"})]
    found = reading.example(bare, 0, Views(SIDE, incomplete=True))
    assert not found.usable and found.faults[-1][0] == "empty record"


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl"])
def test_every_format_has_records_that_lack_their_picture(tmp_path, kind):
    path, c = tmp_path / "in", with_fields()
    if kind == "webdataset":
        ragged(tmp_path / "files")
        path.mkdir()
        with tarfile.open(path / "a.tar", "w") as tar:
            for file in sorted((tmp_path / "files").iterdir()):
                tar.add(file, file.name)
        spec, c = f"webdataset:{path}/a.tar", config(**BOTH)
    else:
        path.mkdir()
        rows = [
            {
                "image": {"bytes": picture(n)} if n & 1 else None,
                "text": f"a {n}" if n & 2 else None,
                "sound_of": {"bytes": wav(n)} if n & 4 else None,
                "map_of": MAP.tolist() if n & 8 else None,
            }
            for n in range(1, 16)
        ]
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path / "a.parquet")
        else:
            (path / "s.wav").write_bytes(wav())
            (path / "i.png").write_bytes(picture())
            for n, row in enumerate(rows):
                (path / f"{n}.png").write_bytes(picture(n))
                row |= {"image": f"{n}.png" if row["image"] else "", "n": n}
                row |= {"sound_of": "s.wav" if row["sound_of"] else None}
                row["by"] = "me"
            (path / "i.png").unlink()
            (path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        spec = f"parquet:{path}" if kind == "parquet" else f"folder:{path}"
    source = opened(spec, c, incomplete=True)
    having = survey.survey({"train": source}, incomplete=True)["splits"]["train"]["having"]
    assert having == dict.fromkeys(("image", "text", "map", "sound"), 8)
    if kind == "jsonl":
        assert [item.extra for item in source.items] == [{"n": n, "by": "me"} for n in range(15)]


def test_damage_to_a_column_of_pictures_costs_its_rows_alone(tmp_path):
    rows = [{"image": {"bytes": picture(n)}, "text": f"a {n}"} for n in range(4)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    group = parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(1)
    start = group.column(0).dictionary_page_offset or group.column(0).data_page_offset
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[start : start + 30] = bytes(30)
    (tmp_path / "a.parquet").write_bytes(content)
    source = opened(f"parquet:{tmp_path}", incomplete=True)
    assert [(item.captions, isinstance(item.where, listing.Broken)) for item in source.items] == [
        (("a 0",), False),
        (("a 1",), False),
        ((), True),
        ((), True),
    ]


def test_the_cache_knows_what_each_item_lacks(tmp_path):
    """And a batch has the mask there, and everywhere else what it would have had."""
    source = opened(f"folder:{ragged(tmp_path / 'in')}", incomplete=True)
    tokenizer = modalities.KINDS["layout"].load(None, LAYOUT)
    encoders = {
        "map": further.encoders(config(map=LAYOUT), {"map": tokenizer})["map"],
        "sound": lambda rows: np.array([[9 if r is not None else 0] * 3 for r in rows]),
    }
    cache = token_cache.write_cache(
        source,
        lambda p: p[:, 0, :2, 0] + 1,
        lambda texts: np.array([[int(t.split()[1]) if t else 0] for t in texts]),
        tmp_path / "tokens",
        settings={},
        views=Views(SIDE, incomplete=True),
        encode_further=encoders,
        batch_size=5,
        shard_size=10,
    )
    assert len(cache) == 15
    keys = np.array([int(source.items[p].key.split(".")[0]) for p in cache.positions])
    for bit, name in enumerate(("image", "text", "sound", "map")):
        np.testing.assert_array_equal(cache.lacking[name], keys >> bit & 1 == 0)
    stored = cache.pairs(np.arange(15), np.zeros(15, int), np.zeros(15, int))
    for name, gone in cache.lacking.items():
        assert not stored[name][gone].any()
    masks = {"image": 99, "text": 98, "map": 3, "sound": 97}
    found = batches.make(cache, 0, 0, 15, lacking=masks)
    keys = keys[batches.indices(0, 0, 15, 15)]
    has = {name: keys >> bit & 1 == 1 for bit, name in enumerate(("image", "text", "sound", "map"))}
    expected = {
        "image": np.where(has["image"], keys + 1, 99)[:, None].repeat(2, 1),
        "text": np.where(has["text"], keys, 98)[:, None],
        "sound": np.where(has["sound"], 9, 97)[:, None].repeat(3, 1),
        "map": np.where(has["map"][:, None], MAP[:, :2].reshape(1, -1), 3),
    }
    for name, rows in expected.items():
        np.testing.assert_array_equal(found[name], rows)


def test_a_layout_is_cut_as_its_picture(tmp_path):
    layouts.write(tmp_path / "a.json", MAP)
    tokenizer = modalities.KINDS["layout"].load(None, LAYOUT)
    for size, columns in ((SIDE, [0, 1]), ((SIDE, 3 * SIDE // 2), [0, 2])):
        given = values.maps(str(tmp_path / "a.json"), tokenizer, size)
        np.testing.assert_array_equal(given, MAP[None, :, columns])
    wide = np.arange(12).reshape(2, 6)
    np.testing.assert_array_equal(layouts.cut(wide, (8, 8)), wide[:, 2:4])
    np.testing.assert_array_equal(layouts.cut(wide, (2, 4)), wide[:, 1:5])
    np.testing.assert_array_equal(layouts.cut(wide.T, (8, 8)), wide.T[2:4])
    assert layouts.cut(np.zeros((1, 9), int), (8, 8)).shape == (1, 1)


def test_values_alone_are_in_the_order_of_their_shard(tmp_path):
    """Not in that of a set, which is another one in each process."""
    names = [f"{n:02}" for n in range(30)][::-1]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in names:
            info = tarfile.TarInfo(f"{name}.wav")
            info.size = len(content := wav())
            tar.addfile(info, io.BytesIO(content))
    source = opened(f"webdataset:{tmp_path}/a.tar", incomplete=True)
    assert [item.key.rpartition("/")[2] for item in source.items] == names


def test_a_class_label_is_a_layout_and_the_caption_of_its_name(tmp_path):
    row = {"image": {"bytes": picture(), "path": None}, "label": 1}
    features = {"label": {"names": ["a_bird", "a_fish"], "_type": "ClassLabel"}}
    table = pyarrow.Table.from_pylist([row])
    noted = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": noted})
    parquet.write_table(table, tmp_path / "a.parquet")
    kind = LAYOUT | {"grid": (1, 1), "classes": 2, "field": "label"}
    (record,) = records(opened(f"parquet:{tmp_path}", config(kind=kind)))
    assert record.captions == ("a fish",) and record.extra["kind"].tolist() == [[1]]


def test_a_reference_is_read_before_the_size_of_pictures_is_chosen():
    read = readers.of_pictures({}, None).read
    assert read(picture()).shape[2] == 3
