"""What people have, as small inputs: all that goes in is used or counted, never lost silently."""

import errno
import gzip
import io
import json
import os
import shutil
import tarfile
import unicodedata

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from udd_jax import errors
from udd_jax.data import described, pixels, reading, sources, survey
from udd_jax.data.sources import folder, listing, split_names, tars, webdataset

NONE = {"validation": 0, "test": 0}


def picture(number, kind="PNG", **options):
    """A file of 16 x 16 pixels whose first red value is `number`."""
    file = io.BytesIO()
    image = Image.fromarray(np.full((16, 16, 3), [number, 255 - number, 7], np.uint8))
    image.save(file, kind, **options)
    return file.getvalue()


def fill(root, count, name="{}.png", text="picture {}", first=0):
    """Pictures with `.txt` beside each."""
    for n in range(first, first + count):
        path = root / name.format(n)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
        if text:
            path.with_suffix(".txt").write_text(text.format(n))


def opened(spec, split="train", **options):
    return sources.open_source(str(spec), split, **(options or NONE))


def pairs(source):
    """{first red value: captions} of the usable items."""
    read = [reading.example(source, n, reading.Views(8)) for n in range(len(source))]
    return {int(e.pixels[0, 0, 0, 0]): e.captions for e in read if e.pixels is not None}


def faults(source):
    read = [reading.example(source, n, reading.Views(8)) for n in range(len(source))]
    return [detail for e in read for cause, detail in e.faults if cause in reading.SKIPPED]


def causes(source):
    return [cause for _, cause in source.left]


# ---- Splits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test tube", "dev board", "steam-train-1", "val", "unseen"])
def test_the_name_of_a_picture_never_decides_its_split(tmp_path, name):
    fill(tmp_path, 30)
    fill(tmp_path, 1, name=f"{name}.png", first=40)
    assert {item.split for item in folder.items(str(tmp_path))} == {None}


def test_a_class_of_vehicles_is_no_split_and_a_folder_of_a_split_is(tmp_path):
    for name in ("cat", "dev board", "test tube"):
        fill(tmp_path / "classes" / name, 2)
    for name in ("flickr-test", "flickr-train", "flickr-val"):
        fill(tmp_path / "splits" / name, 2)
    fill(tmp_path / "mixed", 2)
    fill(tmp_path / "mixed" / "test_images", 2)
    splits = {
        part: [item.split for item in folder.items(str(tmp_path / part))]
        for part in ("classes", "splits", "mixed")
    }
    assert set(splits["classes"]) == {None}
    assert splits["splits"] == ["test"] * 2 + ["train"] * 2 + ["validation"] * 2
    assert sorted(map(str, splits["mixed"])) == ["None"] * 2 + ["test"] * 2


@pytest.mark.parametrize(
    ("word", "split"),
    [
        *(("holdout", "test"), ("held-out", "test"), ("eval", "test"), ("unseen", "test")),
        *(("testA", "test"), ("test_B", "test"), ("Evaluation", "test"), ("TEST", "test")),
        *(("dev", "validation"), ("val_unseen", "validation"), ("valid", "validation")),
        *(("minival2014", "validation"), ("trainval", "train"), ("restval", "train")),
        *(("", None), (None, None), ("Train", "train")),
    ],
)
def test_the_words_of_splits_are_read_in_a_list(tmp_path, word, split):
    fill(tmp_path, 2, text="")
    rows = [{"file_name": f"{n}.png", "text": "a box", "split": word} for n in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert {item.split for item in folder.items(str(tmp_path))} == {split}


@pytest.mark.parametrize("layout", ["list", "beside", "shard", "parquet"])
def test_the_field_of_splits_is_found_in_any_case_and_is_no_further_field(tmp_path, layout):
    """It was a further field if it had a capital letter, and test pictures were trained on."""
    fill(tmp_path, 4, text="")
    words = ["train", "train", "test", "test"]
    rows = [{"file": f"{n}.png", "text": f"box {n}", " Split": w} for n, w in enumerate(words)]
    if layout == "list":
        lines = [f"{row['file']},{row['text']},{row[' Split']}" for row in rows]
        (tmp_path / "captions.csv").write_text("\n".join(["File,Caption, Split", *lines]))
    for n, row in enumerate(rows):
        if layout == "beside":
            (tmp_path / f"{n}.json").write_text(json.dumps(row))
    kind = {"shard": "webdataset", "parquet": "parquet"}.get(layout, "folder")
    if layout == "shard":
        files = [(f"{n}.png", picture(n)) for n in range(4)]
        files += [(f"{n}.json", json.dumps(row).encode()) for n, row in enumerate(rows)]
        shard(tmp_path / "a.tar", files)
    if layout == "parquet":
        rows = [{"image": picture(n), **row} for n, row in enumerate(rows)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    for split, numbers in (("train", {0, 1}), ("test", {2, 3})):
        source = opened(f"{kind}:{tmp_path}", split)
        assert set(pairs(source)) == numbers
        assert "split" not in {str(name).strip().lower() for name in source[0].extra}


def test_a_list_is_found_in_any_case_and_its_names_without_endings_or_with_accents(tmp_path):
    fill(tmp_path, 4, text="")
    accent = unicodedata.normalize("NFD", "\u00e90.png")  # as a Mac writes it
    (tmp_path / "0.png").rename(tmp_path / accent)
    (tmp_path / "below").mkdir()
    (tmp_path / "2.png").rename(tmp_path / "below" / "2.png")
    (tmp_path / "3.jpg").write_bytes(picture(9, "JPEG"))
    names = [unicodedata.normalize("NFC", accent), "1", "2", "3"]
    lines = [f"{name},thing {n}" for n, name in enumerate(names)]
    (tmp_path / "Captions.CSV").write_text("\n".join(["file,caption", *lines]))
    source = opened(f"folder:{tmp_path}")
    found = pairs(source)
    assert {n: found[n] for n in range(3)} == {n: (f"thing {n}",) for n in range(3)}
    assert any("may be" in why and "3.jpg" in why for why in faults(source))  # or 3.png


@pytest.mark.parametrize("word", ["fold1", "train_and_test", 3, "all"])
@pytest.mark.parametrize("layout", ["list", "beside", "shard", "parquet"])
def test_an_unknown_word_for_a_split_is_an_error_that_lists_the_known_ones(tmp_path, word, layout):
    fill(tmp_path, 2, text="")
    rows = [{"file_name": f"{n}.png", "text": "a box", "split": word} for n in range(2)]
    if layout == "list":
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for n, row in enumerate(rows):
        (tmp_path / f"{n}.json").write_text(json.dumps(row))
    kind = {"shard": "webdataset", "parquet": "parquet"}.get(layout, "folder")
    if layout == "shard":
        shard(tmp_path / "a.tar", members(2, split=word))
    if layout == "parquet":
        rows = [{"image": picture(n), "text": "a box", "split": str(word)} for n in range(2)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    with pytest.raises(errors.UserError, match=r"split is .*expected one of tra") as caught:
        opened(f"{kind}:{tmp_path}")
    assert "\n" not in str(caught.value) and "--config.data_options.split_field=" in str(caught)
    assert len(opened(f"{kind}:{tmp_path}", split_field="none", **NONE)) == 2


def shard(path, members, end=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    path.write_bytes(file.getvalue())
    return f"webdataset:{path}"


def members(count, first=0, **more):
    found = []
    for n in range(first, first + count):
        row = json.dumps({"caption": f"picture {n}", **more}).encode()
        found += [(f"{n:05d}.png", picture(n)), (f"{n:05d}.json", row)]
    return found


def test_the_split_is_read_inside_a_shard_and_in_its_name(tmp_path):
    rows = members(20) + members(10, 20, split="test") + members(5, 30, split="dev")
    shard(tmp_path / "a" / "all.tar", rows)
    sizes = [len(opened(f"webdataset:{tmp_path}/a", s)) for s in listing.SPLITS]
    assert sizes == [20, 5, 10]
    shard(tmp_path / "b" / "train.tar", members(20))
    shard(tmp_path / "b" / "eval.tar", members(10, 20))
    assert sorted(pairs(opened(f"webdataset:{tmp_path}/b", "test"))) == list(range(20, 30))
    shard(tmp_path / "b" / "more.tar", members(10, 40))
    with pytest.raises(ValueError, match=r"the name of more.tar names no split .* unseen in each"):
        opened(f"webdataset:{tmp_path}/b")
    shard(tmp_path / "c" / "x.tar", members(3, split="fold1"))
    with pytest.raises(ValueError, match="split is 'fold1', expected one of train"):
        opened(f"webdataset:{tmp_path}/c")


@pytest.mark.parametrize("count", [1, 3, 10, 20, 60])
def test_sets_of_any_size_open_and_none_is_lost(tmp_path, count):
    fill(tmp_path, count)
    splits = {s: opened(f"folder:{tmp_path}", s, validation=0.05) for s in listing.SPLITS}
    assert sum(map(len, splits.values())) == count and len(splits["train"]) > 0
    if count < 20:
        assert len(splits["train"]) == count
        assert f"5.0% of {count} pictures is less than one" in splits["validation"].decided
    else:
        assert len(splits["validation"]) > 0
    assert len(opened(f"folder:{tmp_path}", "validation")) == 0


@pytest.mark.parametrize("layout", ["folder", "list", "shard"])
def test_data_that_are_all_of_another_split_are_refused_with_the_flag_that_mends_it(
    tmp_path, layout
):
    if layout == "shard":
        spec = shard(tmp_path / "test.tar", members(30))
    else:
        fill(tmp_path / "test" if layout == "folder" else tmp_path, 30)
        spec = f"folder:{tmp_path}"
    if layout == "list":
        rows = [{"file": f"{n}.png", "text": f"picture {n}", "split": "val"} for n in range(30)]
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    split = "validation" if layout == "list" else "test"
    words = rf"name the split of each, 30 of {split}: --config.data_options.ignore_splits=True"
    with pytest.raises(errors.UserError, match=words) as caught:
        opened(spec)
    assert "\n" not in str(caught.value)
    assert len(opened(spec, ignore_splits=True, **NONE)) == 30
    sizes = [len(opened(spec, s, ignore_splits=True, test=0.3)) for s in listing.SPLITS]
    assert sum(sizes) == 30 and sizes[2] > 1


def test_a_training_split_that_is_empty_names_the_flag_that_mends_it(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / "same" / split, 3)
    spec = f"folder:{tmp_path}/same"
    words = r"all 3 that it had are in .*: --config.data_options.trust_splits=True keeps them"
    with pytest.raises(errors.UserError, match=words):
        opened(spec)
    assert len(opened(spec, trust_splits=True, **NONE)) == 3
    fill(tmp_path / "hash" / "val", 1)
    fill(tmp_path / "hash" / "train", 2, first=5)
    words = r"make them 1 of validation and 2 of test: lower --config.data_options.validation= and"
    with pytest.raises(errors.UserError, match=words):
        opened(f"folder:{tmp_path}/hash", validation=0, test=0.999)
    (tmp_path / "left").mkdir()
    rows = [("a.png", picture(1)), ("a.mask.png", picture(2)), ("a.txt", b"a")]
    assert len(opened(shard(tmp_path / "left" / "a.tar", rows))) == 1
    words = r"nothing there can be used .*a shard without any item\): name .* --config.data=$"
    with pytest.raises(errors.UserError, match=words):
        opened(shard(tmp_path / "left" / "a.tar", []))


def test_a_split_to_which_no_hash_falls_gets_the_next_picture_in_their_order(tmp_path):
    for first in range(0, 240, 20):  # by hash alone, one in three of such splits would be empty
        fill(tmp_path / str(first), 20, first=first)
        source = f"folder:{tmp_path}/{first}"
        splits = [opened(source, s, validation=0.05, test=0.05) for s in listing.SPLITS]
        assert [len(split) > 0 for split in splits] == [True] * 3
        assert sorted(n for split in splits for n in pairs(split)) == [*range(first, first + 20)]
    same = [(f"{n}.png", picture(0)) for n in range(30)]  # in one split, so none can be held out
    shard(tmp_path / "same" / "x.tar", same)
    assert len(opened(f"webdataset:{tmp_path}/same", "test", test=0.05)) == 0


def test_the_same_pixels_in_two_files_are_dropped_from_training_and_counted(tmp_path):
    for n in range(60):
        (tmp_path / f"{n}.png").write_bytes(picture(n))
        (tmp_path / f"{n} again.png").write_bytes(picture(n, compress_level=0))
        for name in (f"{n}.txt", f"{n} again.txt"):
            (tmp_path / name).write_text("a box")
    splits = {s: opened(f"folder:{tmp_path}", s, test=0.2) for s in listing.SPLITS}
    shown = {s: set(pairs(source)) for s, source in splits.items()}
    assert not shown["train"] & (shown["validation"] | shown["test"])
    assert not shown["validation"] & shown["test"]
    dropped = [c for source in splits.values() for c in causes(source)]
    assert sum(map(len, splits.values())) + len(dropped) == 120
    assert dropped and {c.partition(" are in ")[0] for c in dropped} == {"its pixels"}


# ---- Damage -------------------------------------------------------------------------------------


def test_a_bad_header_is_a_fault_and_the_items_after_it_are_read(tmp_path):
    spec = shard(tmp_path / "a.tar", members(30))
    content = bytearray((tmp_path / "a.tar").read_bytes())
    with tarfile.open(tmp_path / "a.tar") as tar:
        header = tar.getmembers()[20].offset
    content[header + 3] ^= 1
    (tmp_path / "a.tar").write_bytes(content)
    source = opened(spec)
    assert sorted(pairs(source)) == [n for n in range(30) if n != 10]
    assert any("a bad header" in detail for detail in faults(source))
    assert any("captions without an image" in detail for detail in faults(source))


@pytest.mark.parametrize("place", ["between", "inside"])
def test_a_shard_that_is_cut_is_a_fault(tmp_path, place):
    spec = shard(tmp_path / "a.tar", members(30))
    with tarfile.open(tmp_path / "a.tar") as tar:
        cut = tar.getmembers()[40].offset
    content = (tmp_path / "a.tar").read_bytes()[: cut + (700 if place == "inside" else 0)]
    (tmp_path / "a.tar").write_bytes(content)
    source = opened(spec)
    assert sorted(pairs(source)) == list(range(20))
    assert any("the shard breaks off" in detail for detail in faults(source))
    (tmp_path / "a_stats.json").write_text('{"successes": 30}')
    lost = [detail for detail in faults(opened(spec)) if "statistics" in detail]
    assert len(lost) == (10 if place == "between" else 9)


def test_shards_one_after_the_other_are_one_shard(tmp_path):
    shard(tmp_path / "a.tar", members(10))
    shard(tmp_path / "b.tar", members(10, 10))
    both = (tmp_path / "a.tar").read_bytes() + (tmp_path / "b.tar").read_bytes()
    (tmp_path / "c.tar").write_bytes(both)
    source = opened(f"webdataset:{tmp_path}/c.tar")
    assert sorted(pairs(source)) == list(range(20)) and not faults(source)


def test_no_byte_of_a_shard_can_be_damaged_without_a_fault_or_a_changed_item(tmp_path):
    whole = members(4)
    spec = shard(tmp_path / "a.tar", whole)
    content = (tmp_path / "a.tar").read_bytes()
    for place in range(0, 512 * 12, 97):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        (tmp_path / "a.tar").write_bytes(damaged)
        os.utime(tmp_path / "a.tar", ns=(place, place))
        source = opened(spec)
        listed = [item for item in source.items if not isinstance(item.where, listing.Broken)]
        assert len(listed) == 4 or len(source) > len(listed), place


@pytest.mark.parametrize("damaged", [False, True])
def test_a_compressed_shard_is_read_and_its_end_is_watched(tmp_path, damaged):
    shard(tmp_path / "a.tar", members(10))
    content = gzip.compress((tmp_path / "a.tar").read_bytes(), 0)
    (tmp_path / "a.tar").unlink()
    (tmp_path / "a.tar.gz").write_bytes(content[: len(content) // 2] if damaged else content)
    source = opened(f"webdataset:{tmp_path}")
    assert (len(pairs(source)) == 10) != damaged
    assert bool(faults(source)) == damaged


def test_a_full_disk_is_no_damage_to_a_compressed_shard(tmp_path, monkeypatch):
    """Its rest was left out, as behind the end of a shard that breaks off."""
    shard(tmp_path / "a.tar", members(10))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    (tmp_path / "a.tar").unlink()

    class Full(io.FileIO):
        def write(self, content):
            raise OSError(errno.ENOSPC, "No space left on device")

    opens = lambda file, mode: (Full if isinstance(file, int) else open)(file, mode)  # noqa: E731
    monkeypatch.setattr(tars, "open", opens, raising=False)
    with pytest.raises(OSError, match="No space left"):
        opened(f"webdataset:{tmp_path}")


@pytest.mark.parametrize("names", [("v1.5", "v1.6"), ("a.b.c", "a.b.d")])
def test_the_last_ending_is_the_ending(tmp_path, names):
    rows = []
    for number, name in enumerate(names):
        rows += [(f"{name}.PNG", picture(number)), (f"{name}.txt", f"{name}".encode())]
    source = opened(shard(tmp_path / "a.tar", rows))
    assert pairs(source) == {0: (names[0],), 1: (names[1],)} and not source.left


def test_an_input_and_an_output_of_one_key_are_a_pair_and_a_further_picture_is_counted(tmp_path):
    rows = [("s1.input.png", picture(1)), ("s1.output.txt", b"one")]
    rows += [("s2.png", picture(2)), ("s2.mask.png", picture(3)), ("s2.txt", b"two")]
    source = opened(shard(tmp_path / "a.tar", rows))
    assert pairs(source) == {1: ("one",), 2: ("two",)}
    assert source.left == (("a.tar/s2.mask", "a further image of a key"),)
    rows = [
        ("s1.png", picture(1)),
        ("s1.a.txt", b"one"),
        ("s1.b.txt", b"two"),
        ("s1.c.json", b"{}"),
    ]
    source = opened(shard(tmp_path / "b.tar", rows))
    assert pairs(source) == {1: ("one",)}
    assert source.left == (("b.tar/s1.b.txt", "a further text of a key"),)


def test_files_of_macos_are_no_data(tmp_path):
    fill(tmp_path, 3)
    fill(tmp_path, 3, name="._{}.png", text="Mac OS X")
    fill(tmp_path / "__MACOSX", 3, text="Mac OS X")
    fill(tmp_path / ".hidden", 3)
    assert pairs(opened(f"folder:{tmp_path}")) == {n: (f"picture {n}",) for n in range(3)}
    rows = [*members(3), ("._00000.png", b"x"), ("__MACOSX/a.png", b"x"), ("./b/._a.txt", b"x")]
    source = opened(shard(tmp_path / "t" / "a.tar", rows))
    assert len(source) == 3 and not faults(source)
    shutil.copy(tmp_path / "t" / "a.tar", tmp_path / "t" / "._a.tar")
    assert len(opened(f"webdataset:{tmp_path}/t")) == 3


@pytest.mark.parametrize("end", ["avif", "jfif", "jpe", "JPG", "tga", "webp", "jp2", "TIFF"])
def test_every_format_that_is_safely_decoded_is_found_by_its_ending(tmp_path, end):
    fill(tmp_path, 2)
    kind = {"avif": "AVIF", "tga": "TGA", "webp": "WEBP", "jp2": "JPEG2000", "TIFF": "TIFF"}
    (tmp_path / f"x.{end}").write_bytes(picture(90, kind.get(end, "JPEG")))
    (tmp_path / "x.txt").write_text("another")
    assert ("another",) in pairs(opened(f"folder:{tmp_path}")).values()


def test_pictures_of_a_format_that_is_not_read_are_faults_or_counted(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    (tmp_path / "a.txt").write_text("a drawing")
    (tmp_path / "readme.pdf").write_bytes(b"%PDF")
    source = opened(f"folder:{tmp_path}")
    assert [d for d in faults(source) if "a.eps: pictures of the format .eps are not read" in d]
    assert source.left == (("readme.pdf", "pictures of the format .pdf are not read"),)


def rows_of_csv(tmp_path, text, name="captions.csv"):
    fill(tmp_path, 4, text="")
    (tmp_path / name).write_text(text)
    return opened(f"folder:{tmp_path}")


def test_a_comma_in_the_last_of_two_columns_belongs_to_the_caption(tmp_path):
    source = rows_of_csv(tmp_path, "file_name,text\n0.png,a red box, on a wooden table\n1.png,b\n")
    assert pairs(source) == {0: ("a red box, on a wooden table",), 1: ("b",)}


def test_a_row_with_too_many_fields_is_a_fault(tmp_path):
    text = "file_name,text,style\n0.png,a red box, on a table,flat\n1.png,b,flat\n"
    source = rows_of_csv(tmp_path, text)
    assert pairs(source) == {1: ("b",)}
    assert "captions.csv, row 1: 4 fields (line 2), expected the 3" in faults(source)[0]


@pytest.mark.parametrize("count", [60, 3000])
def test_a_quotation_mark_that_never_closes_is_an_error_with_its_row(tmp_path, count):
    rows = [f'{n % 4}.png,"a box, {"x" * 50}"' for n in range(count)]
    rows[20] = '0.png,"a box'
    with pytest.raises(ValueError, match=r"captions.csv, row 21 \(line 22\): ") as caught:
        rows_of_csv(tmp_path, "\n".join(["file_name,text", *rows]))
    assert "\n" not in str(caught.value)
    rows[20:] = ['0.png,"a box', *(f"{n % 4}.png,a box" for n in range(count))]
    with pytest.raises(ValueError, match=r"captions.csv, row 21 \(line 22\): "):
        rows_of_csv(tmp_path, "\n".join(["file_name,text", *rows]))


def test_byte_order_marks_are_dropped_and_say_the_encoding(tmp_path):
    fill(tmp_path / "txt", 2, text="")
    (tmp_path / "txt" / "0.txt").write_bytes("a red box".encode("utf-8-sig"))
    (tmp_path / "txt" / "1.txt").write_bytes("a blue box".encode("utf-16"))
    boxes = {0: ("a red box",), 1: ("a blue box",)}
    assert pairs(opened(f"folder:{tmp_path}/txt")) == boxes
    rows = [{"file_name": f"{n}.png", "text": text[0]} for n, text in boxes.items()]
    text = "\n".join(map(json.dumps, rows))
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "txt" / "captions.jsonl").write_bytes(text.encode(encoding))
        assert pairs(opened(f"folder:{tmp_path}/txt")) == boxes
    inside = [("0.png", picture(0)), ("0.json", b"\xef\xbb\xbf" + json.dumps(rows[0]).encode())]
    assert pairs(opened(shard(tmp_path / "a.tar", inside))) == {0: ("a red box",)}


def test_a_json_line_of_great_depth_is_a_fault(tmp_path):
    fill(tmp_path, 2, text="")
    rows = [json.dumps({"file_name": f"{n}.png", "text": "a box"}) for n in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join([*rows, "[" * 100_000]))
    source = opened(f"folder:{tmp_path}")
    assert len(pairs(source)) == 2
    assert faults(source) == ["captions.jsonl, row 3: no JSON: it is nested too deeply"]


def test_a_second_list_and_pictures_in_no_list_are_counted(tmp_path):
    fill(tmp_path, 4, text="")
    row = json.dumps({"file_name": "0.png", "text": "a box"})
    (tmp_path / "captions.jsonl").write_text(row)
    (tmp_path / "captions.csv").write_text("file_name,text\n1.png,a box\n")
    source = opened(f"folder:{tmp_path}")
    assert len(source) == 1
    assert sorted(causes(source)) == [
        "a list beside or below the one that is used",
        *["a picture that is in no list"] * 3,
    ]


def test_a_file_name_that_is_no_unicode_can_be_written_down(tmp_path):
    fill(tmp_path, 2)
    name = os.fsencode(tmp_path) + b"/caf\xe9"
    with open(name + b".png", "wb") as file:
        file.write(picture(9))
    with open(name + b".txt", "w") as file:
        file.write("a cup")
    source = opened(f"folder:{tmp_path}")
    assert pairs(source)[9] == ("a cup",)
    keys = [source[n].key for n in range(3)]
    assert "\n".join(keys).encode() and any("caf" in key for key in keys)


# ---- Layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_the_imagefolder_of_hugging_face_is_read_with_its_splits(tmp_path, kind):
    for split, first in (("train", 0), ("test", 10)):
        fill(tmp_path / split, 5, text="", first=first)
        rows = [{"file_name": f"{n}.png", "text": f"t{n}"} for n in range(first, first + 5)]
        path = tmp_path / split / f"metadata.{kind}"
        if kind == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        elif kind == "csv":
            lines = [",".join(row.values()) for row in rows]
            path.write_text("\n".join(["file_name,text", *lines]))
        else:
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert pairs(opened(f"folder:{tmp_path}")) == {n: (f"t{n}",) for n in range(5)}
    assert pairs(opened(f"folder:{tmp_path}", "test")) == {n: (f"t{n}",) for n in range(10, 15)}


LISTS = {
    "captions.json": json.dumps([{"image": "0.png", "caption": "a, b"}]),
    "metadata.json": json.dumps({"0.png": "a, b"}),
    "captions.txt": "image,caption\n0.png,a, b\n",
    "captions.tsv": "image\tcaption\n0.png\ta, b\n",
    "flickr.token": "0.png#0\ta, b\n",
    "results.csv": "image_name| comment_number| comment\n0.png| 0| a, b\n",
    "metadata.csv": 'file_name;text\n0.png;"a, b"\n',
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("place", ["", "images", "some [v2]"])
def test_lists_of_captions_are_read_wherever_the_pictures_are(tmp_path, name, place):
    fill(tmp_path / place, 1, text="")
    (tmp_path / name).write_text(LISTS[name])
    assert pairs(opened(f"folder:{tmp_path}")) == {0: ("a, b",)}


@pytest.mark.parametrize("end", ["csv", "tsv", "jsonl"])
@pytest.mark.parametrize("place", ["", "cat"])  # a folder with one name is no class either
def test_a_list_is_known_by_what_it_holds_whatever_its_name(tmp_path, end, place):
    fill(tmp_path / place, 2, text="")
    fill(tmp_path / "dog", 1, text="", first=2)
    between = {"csv": ",", "tsv": "\t"}.get(end)
    rows = [{"image": f"{n}.png", "caption": f"picture {n}"} for n in range(3)]
    lines = [between.join(row.values()) for row in rows] if between else map(json.dumps, rows)
    first = [between.join(rows[0])] if between else []
    (tmp_path / f"labels.{end}").write_text("\n".join([*first, *lines]))
    (tmp_path / f"sizes.{end}").write_text("\n".join(["width,height", "3,4"]))
    source = opened(f"folder:{tmp_path}")
    assert pairs(source) == {n: (f"picture {n}",) for n in range(3)}
    assert source.left == ((f"sizes.{end}", "a file that is not a picture, text or list"),)


def test_captions_txt_may_have_tabs_and_no_line_of_names(tmp_path):
    source = rows_of_csv(tmp_path, "0.png\ta, b\n1.png\tc\nrubbish\n", "captions.txt")
    assert pairs(source) == {0: ("a, b",), 1: ("c",)}
    assert faults(source) == ["captions.txt, row 3: no tab between a file and its caption"]


def test_flickr8k_is_read_with_its_splits(tmp_path):
    fill(tmp_path / "Flicker8k_Dataset", 6, name="{}.jpg", text="")
    text = tmp_path / "Flickr8k_text"
    text.mkdir()
    rows = [f"{n}.jpg#{k}\tpicture {n}, {k}" for n in range(6) for k in range(2)]
    (text / "Flickr8k.token.txt").write_text("\n".join(rows))
    (text / "Flickr8k.lemma.token.txt").write_text("\n".join(rows))
    for name, numbers in (("train", range(3)), ("dev", [3]), ("test", [4, 5])):
        names = "".join(f"{n}.jpg\n" for n in numbers)
        (text / f"Flickr_8k.{name}Images.txt").write_text(names)
    splits = {s: pairs(opened(f"folder:{tmp_path}", s)) for s in listing.SPLITS}
    assert [sorted(found) for found in splits.values()] == [[0, 1, 2], [3], [4, 5]]
    assert splits["test"][4] == ("picture 4, 0", "picture 4, 1")


@pytest.mark.parametrize("end", [".caption", ".json", ".TXT"])
def test_captions_beside_pictures_have_several_endings(tmp_path, end):
    fill(tmp_path, 1, text="")
    text = json.dumps({"caption": "a box", "style": "flat"}) if end == ".json" else "a box"
    (tmp_path / f"0{end}").write_text(text)
    source = opened(f"folder:{tmp_path}")
    assert pairs(source) == {0: ("a box",)}
    assert source[0].extra == ({"style": "flat"} if end == ".json" else {})


def test_class_folders_caption_their_pictures(tmp_path):
    for number, split in enumerate(("train", "test")):
        fill(tmp_path / split / "001.Night_owl", 2, text="", first=10 * number)
        fill(tmp_path / split / "crow", 2, text="", first=10 * number + 5)
    found = pairs(opened(f"folder:{tmp_path}", "test"))
    assert found == {n: ("Night owl",) if n < 15 else ("crow",) for n in (10, 11, 15, 16)}


def folders_of(tmp_path, *names, text=""):
    for number, name in enumerate(names):
        fill(tmp_path / name, 3, text=text, first=3 * number)


@pytest.mark.parametrize("name", ["train", "test", "Val", "dev board", "test images", "eval"])
@pytest.mark.parametrize(
    "others", [("bus", "car"), ("猫", "犬"), ("steam train", "test tube", "x")]
)
def test_a_class_that_is_called_as_a_split_is_a_class_beside_others(tmp_path, name, others):
    folders_of(tmp_path, name, *others)
    source = opened(f"folder:{tmp_path}")
    assert {caption for (caption,) in pairs(source).values()} == {name, *others}
    assert {item.split for item in source.items} == {None} and not faults(source)
    assert source.notes[0].startswith("captions are the names of folders: ")
    plain = name != "dev board"
    assert any(f"{name} is taken for a class and no split, as " in n for n in source.notes) == plain
    assert source.notes[0] in described.describe(survey.survey({"train": source}))


def test_folders_are_splits_where_all_beside_them_are_or_have_plain_names(tmp_path):
    for names in (
        *(("train", "test"), ("test",), ("images", "test"), ("0", "1", "test"), ("a_val", "train")),
        *(("train", "test", "extra"), ("train", "validation", "bus", "car")),
    ):
        place = tmp_path / "-".join(names)
        folders_of(place, *names, text="a box {}")
        source = opened(f"folder:{place}", ignore_splits=True, **NONE)
        splits = {item.key.split("/")[0]: item.split for item in folder.items(str(place))}
        assert splits == {name: split_names.named(name) for name in names}
        assert len(source) == 3 * len(names) and not source.notes


def test_inside_the_folder_of_a_split_a_class_may_be_called_as_one(tmp_path):
    folders_of(tmp_path, "train/train", "train/car", "test/train", "test/car")
    expected = {n: ("train",) if n < 9 else ("car",) for n in range(6, 12)}
    assert pairs(opened(f"folder:{tmp_path}", "test")) == expected


def test_a_picture_beside_the_folders_of_classes_is_a_fault_and_the_rest_is_used(tmp_path):
    folders_of(tmp_path, "bus", "car")
    fill(tmp_path, 1, text="", first=20)
    source = opened(f"folder:{tmp_path}")
    assert pairs(source) == {n: ("bus",) if n < 3 else ("car",) for n in range(6)}
    found = survey.survey({"train": source})
    assert found["unusable"] == {"no caption": {"count": 1, "first": "20.png: 0 given"}}
    with pytest.raises(errors.UserError, match=r"1 of 7 records .*no caption 1, the first: 20.png"):
        survey.check(found)


@pytest.mark.parametrize("parts", [("train", "test"), ("images",)])
def test_pictures_without_any_caption_are_not_named_by_a_split_or_one_folder(tmp_path, parts):
    for number, part in enumerate(parts):
        fill(tmp_path / part, 2, text="", first=9 * number)
    count = 2 * len(parts)
    with pytest.raises(ValueError, match=rf"holds no captioned images, .* {count} pictures$"):
        folder.items(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.tar", "webdataset"), ("a.parquet", "parquet"), ("captions_val2014.json", "coco")],
)
def test_a_folder_of_another_kind_is_named_with_the_flag_for_it(tmp_path, name, kind):
    fill(tmp_path, 2, text="")
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=rf"try --config.data={kind}:{tmp_path}$"):
        opened(f"folder:{tmp_path}")


def test_linked_folders_are_searched_and_a_circle_ends(tmp_path):
    fill(tmp_path / "elsewhere", 2)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data")
    assert len(pairs(opened(f"folder:{tmp_path}/data"))) == 2


def test_braces_and_brackets_in_paths_of_shards(tmp_path):
    for n in range(3):
        shard(tmp_path / "set [v2]" / f"a-{n:04d}.tar", members(2, 2 * n))
    at = f"webdataset:{tmp_path}/set [v2]"
    assert len(opened(at)) == 6
    assert sorted(pairs(opened(f"{at}/a-{{0000..0001}}.tar"))) == [0, 1, 2, 3]
    assert len(opened(f"{at}/a-0002.tar")) == 2
    with pytest.raises(ValueError, match=r"there is no file .*a-0003.tar"):
        opened(f"{at}/a-{{0000..0003}}.tar")
    assert webdataset.expand("a{1..2}-{x,y}") == ["a1-x", "a1-y", "a2-x", "a2-y"]


def test_a_path_in_a_list_lies_in_the_folder_however_it_is_written(tmp_path):
    root = tmp_path / "data"
    fill(root / "sub", 4, text="")
    fill(tmp_path, 1, name="outside.png", text="", first=50)
    names = [r"sub\0.png", str(root / "sub" / "1.png"), "./sub/../sub/2.png", r".\sub\3.png"]
    names += ["../outside.png", str(tmp_path / "outside.png"), "/etc/passwd", r"..\outside.png"]
    rows = [json.dumps({"file_name": name, "text": "a box"}) for name in names]
    (root / "captions.jsonl").write_text("\n".join(rows))
    source = opened(f"folder:{root}")
    assert sorted(pairs(source)) == [0, 1, 2, 3]
    assert len(faults(source)) == 4
    assert all("lies outside of the folder" in detail for detail in faults(source))


def coco_files(root, rows, split="train"):
    shown = [{"id": n, "file_name": name} for n, (name, _) in enumerate(rows)]
    said = [{"image_id": n, "caption": caption} for n, (_, caption) in enumerate(rows)]
    content = json.dumps({"images": shown, "annotations": said})
    (root / f"captions_{split}2014.json").write_text("\ufeff" + content)


def test_equal_names_in_two_folders_of_coco_are_told_apart(tmp_path):
    fill(tmp_path / "images" / "train2014", 2, text="")
    for n in range(2):
        (tmp_path / "images" / "val2014").mkdir(exist_ok=True)
        (tmp_path / "images" / "val2014" / f"{n}.png").write_bytes(picture(100 + n))
    coco_files(tmp_path, [("0.png", "train 0"), ("1.png", "train 1")])
    coco_files(tmp_path, [("0.png", "val 0"), ("val2014/1.png", "val 1")], "val")
    assert pairs(opened(f"coco:{tmp_path}")) == {0: ("train 0",), 1: ("train 1",)}
    held_out = pairs(opened(f"coco:{tmp_path}", "validation"))
    assert held_out == {100: ("val 0",), 101: ("val 1",)}


@pytest.mark.parametrize("kind", ["folder", "coco"])
def test_a_file_that_is_not_there_is_no_picture_of_another_folder(tmp_path, kind):
    """One base name twice, and one of the folders is missing: a fault, and no wrong caption."""
    fill(tmp_path / "images" / "cats", 1, text="")
    rows = [("cats/0.png", "a cat"), ("dogs/0.png", "a dog")]
    if kind == "coco":
        coco_files(tmp_path, rows)
    else:
        lines = [json.dumps({"file_name": name, "caption": said}) for name, said in rows]
        (tmp_path / "captions.jsonl").write_text("\n".join(lines))
    source = opened(f"{kind}:{tmp_path}")
    assert pairs(source) == {0: ("a cat",)}
    (lost,) = faults(source)
    assert "dogs/0.png" in lost and "another" in lost


def test_a_file_of_karpathy_may_lie_anywhere_and_have_any_name(tmp_path):
    fill(tmp_path / "flickr30k-images", 3, text="")
    (tmp_path / "splits").mkdir()
    images = [
        {"filename": f"{n}.png", "split": s, "sentences": [{"raw": f"t{n}"}]}
        for n, s in enumerate(("train", "val", "test"))
    ]
    path = tmp_path / "splits" / "dataset_flickr30k.json"
    path.write_text(json.dumps({"images": images, "dataset": "flickr30k"}))
    assert [pairs(opened(f"coco:{tmp_path}", s)) for s in listing.SPLITS] == [
        {n: (f"t{n}",)} for n in range(3)
    ]


def test_the_captions_of_birds_may_lie_in_a_folder_of_the_same_name(tmp_path):
    birds = tmp_path / "CUB_200_2011"
    fill(birds / "images" / "001.Crow", 3, name="{}.jpg", text="")
    lines = [f"{n + 1} 001.Crow/{n}.jpg" for n in range(3)]
    (birds / "images.txt").write_text("\n".join(lines))
    for n in range(3):
        path = tmp_path / "text" / "text" / "001.Crow" / f"{n}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a crow\n")
    assert set(pairs(opened(f"cub:{tmp_path}")).values()) == {("a crow",)}


def test_a_number_of_items_can_be_asked_of_any_stored_data(tmp_path):
    fill(tmp_path, 30)
    source = opened(f"folder:{tmp_path}", size=10, **NONE)
    assert len(source) == 10 and source.name.endswith("train, the first 10")
    assert causes(source) == ["beyond the first 10 (--config.data_options.size=10)"] * 20
    assert pixels.read(source[0].image).shape == (16, 16, 3)
