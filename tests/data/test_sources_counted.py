"""What the data have and nothing uses: files, fields and captions are counted, and said."""

import collections
import json
import os
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from tests.data.test_sources_cases import NONE, causes, faults, fill, opened, pairs, picture, shard
from udd_jax import errors
from udd_jax.data import described, marks, survey
from udd_jax.data.sources import listing

OTHER = "a file that is not a picture, text or list"


def unused(source):
    """{what is not used: how often}, as the survey counts it."""
    found = survey.survey({"train": source})
    for what, row in found["unused"].items():
        assert f"not used: {what}, {row['count']} (the first: " in described.describe(found)
    return {what: row["count"] for what, row in found["unused"].items()}


def left(source):
    return collections.Counter(causes(source))


# ---- The content decides ------------------------------------------------------------------------


PICTURES = {
    "a": ("PNG", "a"),
    "b.image": ("JPEG", "b"),
    "v1.5": ("WEBP", "v1.5"),
    "c.heic": ("JPEG", "c"),
    "d.bin": ("TIFF", "d"),
    "e.PNG": ("BMP", "e"),
    "f.dat": ("GIF", "f.dat"),
}


@pytest.mark.parametrize("layout", ["folder", "list"])
def test_a_picture_is_known_by_its_content_where_its_name_does_not_say_it(tmp_path, layout):
    rows = []
    for n, (name, (kind, text)) in enumerate(PICTURES.items()):
        (tmp_path / name).write_bytes(picture(30 * n, kind))
        rows.append({"file": name, "text": name})
        if layout == "folder":
            (tmp_path / f"{text}.txt").write_text(name)
    if layout == "list":
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "notes").write_text("P1 is not a picture, and #define is none")
    (tmp_path / "x.unknown").write_bytes(b"\x89PNG\r\n\x1a\n, but no header")
    (tmp_path / "readme.md").write_bytes(picture(1))
    os.mkfifo(tmp_path / "pipe")
    source = opened(f"folder:{tmp_path}")
    assert sorted(pairs(source).values()) == sorted((name,) for name in PICTURES)
    assert not faults(source)
    assert left(source) == {OTHER: 4} and {key for key, _ in source.left} == {
        *("notes", "x.unknown", "readme.md", "pipe")
    }


def test_only_files_whose_names_say_nothing_are_opened(tmp_path, monkeypatch):
    fill(tmp_path, 3)
    for name in ("a.json", "list.csv", "b.wav", "c.tar", "d.npy", "e.parquet", "raw.dng"):
        (tmp_path / name).write_bytes(b"")
    for name in ("f", "g.unknown", "h.heic"):
        (tmp_path / name).write_bytes(b"")
    looked = []
    monkeypatch.setattr(marks, "is_picture", lambda place: looked.append(place))
    opened(f"folder:{tmp_path}")
    assert {os.path.basename(place) for place in looked} == {"f", "g.unknown", "h.heic"}


@pytest.mark.parametrize(
    "kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "ICO", "AVIF"]
)
def test_the_mark_of_a_picture_is_found_in_a_file_and_in_bytes(tmp_path, kind):
    content = picture(1, kind)
    (tmp_path / "x").write_bytes(content)
    assert marks.is_picture(content) and marks.is_picture(tmp_path / "x")
    assert marks.marks(content[: marks.LENGTH])
    for other in (b"", b"P", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"rubbish", content[3:], content[:5]):
        assert not marks.is_picture(other)
    assert not marks.is_picture(tmp_path) and not marks.is_picture(tmp_path / "none")


@pytest.mark.parametrize("end", ["heic", "jxl", "HEIF"])
@pytest.mark.parametrize("layout", ["beside", "list", "class", "alone"])
def test_a_picture_that_needs_a_plugin_is_a_fault_or_counted(tmp_path, end, layout):
    texts = layout in ("beside", "alone")
    fill(tmp_path, 2, text="picture {}" if texts else "", name="a/{}.png")
    fill(tmp_path, 1, text="picture {}" if texts else "", name="b/{}.png", first=2)
    (tmp_path / "b" / f"x.{end}").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    if layout == "beside":
        (tmp_path / "b" / "x.txt").write_text("a photograph")
    if layout == "list":
        rows = [{"file": f, "text": "a"} for f in ("0.png", "1.png", "2.png", f"b/x.{end}")]
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = opened(f"folder:{tmp_path}")
    assert len(pairs(source)) == 3
    assert len(faults(source)) == (layout != "alone")
    assert len(source.left) == (layout == "alone")
    found = survey.survey({"train": source})
    assert found["splits"]["train"]["unusable"] == (layout != "alone")


def test_the_members_of_a_shard_are_known_by_their_content_too(tmp_path):
    rows = []
    for n, (name, (kind, text)) in enumerate(PICTURES.items()):
        rows += [(name, picture(30 * n, kind)), (f"{text}.txt", name.encode())]
    rows += [("g.png", picture(250)), ("g.text", b"g"), ("g.cls", b"7"), ("g.eps", b"%!PS")]
    rows += [("h.cls", b"7"), ("notes", b"P1"), ("g.TEXT", b"g"), ("g.heic", b"x")]
    source = opened(shard(tmp_path / "a.tar", rows))
    assert sorted(pairs(source).values()) == sorted((name,) for name in (*PICTURES, "g"))
    assert left(source) == {
        "a member that is not a picture, text or value": 3,
        "a second text of its key": 1,
    }
    assert sorted(faults(source)) == [
        f"a.tar/g.{end}: a second image of its key" for end in ("eps", "heic")
    ]


def test_links_in_a_shard_are_counted(tmp_path):
    shard(tmp_path / "a.tar", [("0.png", picture(0)), ("0.txt", b"a")])
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        for kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"{kind.decode()}.png")
            member.type, member.linkname = kind, "0.png"
            tar.addfile(member)
    source = opened(f"webdataset:{tmp_path}")
    assert len(pairs(source)) == 1 and left(source) == {"a link or device, and no file": 2}


@pytest.mark.parametrize("content", [b"", bytes(10240), b"x", bytes(700), b"x" * 2000])
def test_an_empty_shard_is_counted(tmp_path, content):
    shard(tmp_path / "a.tar", [("0.png", picture(0)), ("0.txt", b"a")])
    (tmp_path / "b.tar").write_bytes(content)
    source = opened(f"webdataset:{tmp_path}")
    assert pairs(source) == {0: ("a",)}
    assert len(faults(source)) + len(source.left) > 0
    zeros = bool(content) and not content.strip(b"\0")
    assert (source.left == (("b.tar", "a shard without any item"),)) == zeros


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_a_shard_that_is_gone_is_counted_where_its_statistics_are(tmp_path, kind):
    end = "tar" if kind == "webdataset" else "parquet"
    said = {"successes": 2, "failed_to_download": 3}
    for n in range(3):
        (tmp_path / f"{n:05d}_stats.json").write_text(json.dumps(said))
    for n in range(2):
        rows = [{"jpg": picture(2 * n + k), "caption": "a"} for k in range(2)]
        if kind == "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"{n:05d}.parquet")
        else:
            files = [(f"{k}.png", row["jpg"]) for k, row in enumerate(rows)]
            files += [(f"{k}.txt", b"a") for k in range(2)]
            shard(tmp_path / f"{n:05d}.tar", files)
    for path in (f"{tmp_path}", f"{tmp_path}/*.{end}", f"{tmp_path}/0000?.{end}"):
        source = opened(f"{kind}:{path}")
        assert len(pairs(source)) == 4
        lost = [detail for detail in faults(source) if "the shard 00002 is not there" in detail]
        assert len(lost) == len(faults(source)) == 2
        failed = "img2dataset did not store it (failed_to_download)"
        assert left(source)[failed] == (9 if kind == "webdataset" else 3)  # rows say the others
    for path in (f"00001.{end}", f"{{00000..00001}}.{end}", f"*1.{end}"):
        assert not faults(opened(f"{kind}:{tmp_path}/{path}"))


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_other_files_in_a_folder_of_shards_are_counted(tmp_path, kind):
    if kind == "webdataset":
        shard(tmp_path / "a.tar", [("0.png", picture(0)), ("0.txt", b"a")])
    else:
        rows = [{"image": picture(0), "text": "a"}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    fill(tmp_path / "more", 1, first=5)
    for name in ("state.json", "x_stats.json", ".hidden"):
        (tmp_path / name).write_text("{}")
    source = opened(f"{kind}:{tmp_path}")
    assert len(pairs(source)) == 1
    keys = ["more/5.png", "more/5.txt", "x_stats.json"]
    assert source.left == tuple((key, "a file that is not a shard") for key in keys)
    name = "a.tar" if kind == "webdataset" else "a.parquet"
    assert not opened(f"{kind}:{tmp_path}/{name}").left


# ---- Captions beside a picture ------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["folder", "shard"])
@pytest.mark.parametrize(
    ("texts", "field", "chosen", "others"),
    [
        ({".txt": "a", ".caption": "b", ".json": {"text": "c"}}, None, "a", (".caption", ".json")),
        ({".text": "a", ".caption": "b"}, None, "a", (".caption",)),
        ({".caption": "a", ".json": {"caption": "b"}}, None, "a", (".json",)),
        ({".txt": " ", ".json": {"caption": "a"}}, None, "a", ()),
        ({".txt": "", ".caption": "a"}, None, "a", ()),
        ({".txt": "a", ".json": {"caption": "a ", "style": "flat"}}, None, "a", ()),
        ({".txt": "a", ".json": {"style": "flat"}}, None, "a", ()),
        ({".txt": "a", ".json": {"prompt": "b"}}, "prompt", "b", (".txt",)),
        ({".json": {"caption": None, "text": "a"}}, None, "a", ()),
        ({".json": ["a"]}, None, "a", ()),
    ],
)
def test_one_rule_decides_between_the_texts_of_a_picture(
    tmp_path, layout, texts, field, chosen, others
):
    files = {end: json.dumps(text) if end == ".json" else text for end, text in texts.items()}
    if layout == "shard":
        rows = [("0.png", picture(0)), *((f"0{end}", t.encode()) for end, t in files.items())]
        spec = shard(tmp_path / "a.tar", rows)
    else:
        fill(tmp_path, 1, text="")
        for end, text in files.items():
            (tmp_path / f"0{end}").write_text(text)
        spec = f"folder:{tmp_path}"
    source = opened(spec, caption_field=field, **NONE)
    assert pairs(source) == {0: (chosen,)}
    counted = unused(source)
    assert len(counted) == len(others) == sum(counted.values())
    for end in others:
        (what,) = [what for what in counted if what.startswith(f"the captions of {end} beside ")]
        assert ("--config.data_options.caption_field=" in what) == (end == ".json")
    assert source[0].extra == ({"style": "flat"} if "style" in str(files) else {})


@pytest.mark.parametrize("layout", ["list", "beside", "shard", "parquet", "csv"])
def test_other_fields_with_captions_are_counted_with_the_flag_that_chooses_them(tmp_path, layout):
    rows = [
        {"file": f"{n}.png", "caption": f"picture {n}", "Prompt": "p", "text": f"picture {n}"}
        for n in range(3)
    ]
    rows[0]["text"] = "another"
    kind = {"shard": "webdataset", "parquet": "parquet"}.get(layout, "folder")
    if kind == "folder":
        fill(tmp_path, 3, text="")
    if layout == "list":
        (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    if layout == "csv":
        lines = [",".join(row.values()) for row in rows]
        (tmp_path / "captions.csv").write_text("\n".join([",".join(rows[0]), *lines]))
    if layout == "beside":
        for n, row in enumerate(rows):
            (tmp_path / f"{n}.json").write_text(json.dumps(row))
    if layout == "shard":
        files = [(f"{n}.png", picture(n)) for n in range(3)]
        files += [(f"{n}.json", json.dumps(row).encode()) for n, row in enumerate(rows)]
        shard(tmp_path / "a.tar", files)
    if layout == "parquet":
        rows = [row | {"image": picture(n), "mask": picture(n)} for n, row in enumerate(rows)]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = opened(f"{kind}:{tmp_path}")
    assert pairs(source) == {n: (f"picture {n}",) for n in range(3)}
    counted = unused(source)
    chooses = "(--config.data_options.caption_field= chooses another)"
    masks = {
        "the column mask (--config.data_options.image_field=, or modalities.NAME.field, chooses "
        "another)": 3
    }
    assert counted == {
        f"the field text {chooses}": 1,
        f"the field Prompt {chooses}": 3,
        **(masks if layout == "parquet" else {}),
    }
    other = opened(f"{kind}:{tmp_path}", caption_field="Prompt", **NONE)
    assert set(pairs(other).values()) == {("p",)}


def test_what_a_further_row_of_a_picture_says_differently_is_counted(tmp_path):
    fill(tmp_path, 2, text="")
    rows = [
        {"file": "0.png", "text": "a", "style": "flat", "artist": "x"},
        {"file": "0.png", "text": "b", "style": "3D", "artist": "x", "year": 7, "split": "train"},
        {"file": "1.png", "text": "c", "split": "test"},
        {"file": "1.png", "text": "d", "split": "train"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = opened(f"folder:{tmp_path}")
    assert pairs(source) == {0: ("a", "b")}
    assert source[0].extra == {"style": "flat", "artist": "x", "year": 7}
    assert unused(source) == {"another value of the field style in a further row of a picture": 1}
    test = opened(f"folder:{tmp_path}", "test")
    assert pairs(test) == {1: ("c", "d")}
    assert unused(test) == {"another split in a further row of a picture": 1}


def test_columns_of_one_name_are_kept(tmp_path):
    fill(tmp_path, 1, text="")
    (tmp_path / "captions.csv").write_text("file,caption,style,caption,style\n0.png,a,flat,b,3D\n")
    source = opened(f"folder:{tmp_path}")
    assert pairs(source) == {0: ("a",)}
    assert source[0].extra == {"style": "flat", "caption 2": "b", "style 2": "3D"}


def test_a_column_of_a_parquet_file_gives_the_splits(tmp_path):
    words = ["train", "val", "test", "train", None, "holdout"]
    rows = [{"image": picture(n), "text": f"t{n}", "split": w} for n, w in enumerate(words)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    sizes = [sorted(pairs(opened(f"parquet:{tmp_path}", s))) for s in listing.SPLITS]
    assert sizes == [[0, 3, 4], [1], [2, 5]]
    assert not unused(opened(f"parquet:{tmp_path}"))


# ---- Files --------------------------------------------------------------------------------------


def test_files_beside_a_list_are_counted(tmp_path):
    fill(tmp_path, 3)
    row = json.dumps({"file_name": "0.png", "text": "a box"})
    (tmp_path / "captions.jsonl").write_text(row)
    for name in ("labels.csv", "readme.md", "unknown"):
        (tmp_path / name).write_text("x")
    source = opened(f"folder:{tmp_path}")
    assert pairs(source) == {0: ("a box",)}
    assert left(source) == {
        "a picture that is in no list": 2,
        "a text that is in no list": 3,
        OTHER: 3,
    }


def test_two_texts_of_one_name_are_counted(tmp_path):
    fill(tmp_path, 1)
    (tmp_path / "0.TXT").write_text("another")
    source = opened(f"folder:{tmp_path}")
    assert len(pairs(source)) == 1 and left(source) == {"a second text of its name": 1}


def flickr(root, names):
    """The lists of Flickr8k for six pictures; names: {split: the pictures in its list}."""
    fill(root / "Flicker8k_Dataset", 6, name="{}.jpg", text="")
    rows = [f"{n}.jpg#{k}\tpicture {n}, {k}" for n in range(6) for k in range(2)]
    (root / "Flickr8k.token.txt").write_text("\n".join(rows))
    for split, numbers in names.items():
        lines = "".join(f"{n}.jpg\n" for n in numbers)
        (root / f"Flickr_8k.{split}Images.txt").write_text(lines)


def test_names_in_the_lists_of_flickr_that_no_caption_has_are_counted(tmp_path):
    flickr(tmp_path, {"train": range(3), "dev": [3, 70], "test": [4, 80, 81]})
    (tmp_path / "readme.txt").write_text("about")
    sources_ = [opened(f"folder:{tmp_path}", s) for s in listing.SPLITS]
    assert [sorted(pairs(source)) for source in sources_] == [[0, 1, 2, 5], [3], [4]]
    assert left(sources_[0]) == {
        "a name in a list of a split, and in no list of captions": 3,
        "a text that is in no list": 1,
    }


def test_pictures_that_img2dataset_stored_and_that_are_gone_are_counted(tmp_path):
    fill(tmp_path / "00000", 5)
    (tmp_path / "00000.parquet").write_bytes(b"")
    said = {"successes": 7, "failed_to_download": 3, "failed_to_resize": 0}
    for name in ("00000", "00001"):
        (tmp_path / f"{name}_stats.json").write_text(json.dumps(said))
    source = opened(f"folder:{tmp_path}")
    assert len(pairs(source)) == 5
    assert left(source) == {
        "img2dataset did not store it (failed_to_download)": 6,
        "a picture that img2dataset stored is not there": 2 + 7,
    }


def test_no_message_of_a_fault_has_a_second_line(tmp_path):
    fill(tmp_path, 1)
    (tmp_path / "a\nb.bin").write_bytes(b"x")
    (key, _) = opened(f"folder:{tmp_path}").left[0]
    assert key == r"a\nb.bin"


# ---- COCO ---------------------------------------------------------------------------------------


def coco(root, rows, captions, name="captions_train2014.json"):
    """An annotation file. rows: {id: file}; captions: (id, caption)."""
    root.mkdir(exist_ok=True)
    shown = [{"id": n, "file_name": file} for n, file in rows.items()]
    said = [{"image_id": n, "caption": caption} for n, caption in captions]
    (root / name).write_text(json.dumps({"images": shown, "annotations": said}))
    return f"coco:{root}"


def test_pictures_and_captions_of_coco_that_have_no_other_half_are_counted(tmp_path):
    fill(tmp_path / "data" / "images", 4, text="")
    (tmp_path / "data" / "images" / "x.heic").write_bytes(b"x")
    rows = {n: f"{n}.png" for n in (0, 1, 7, 8)} | {9: "x.heic"}
    spec = coco(tmp_path / "data", rows, [(n, f"a {n}") for n in (0, 0, 7, 70, 80, 80, 9)])
    source = opened(spec)
    assert pairs(source) == {0: ("a 0", "a 0")}
    assert [fault.split("; ")[0] for fault in sorted(faults(source))] == [
        "0 given",  # 1.png has no caption
        "7.png: there is no image 7.png",
        "8.png: there is no image 8.png",
        "x.heic: pictures of the format .heic are not read",
    ]
    assert left(source) == {
        "a caption of an image that its file does not list": 3,
        "a picture that is in no list": 2,
    }


def test_the_pictures_of_coco_may_be_in_another_folder_that_an_option_names(tmp_path):
    fill(tmp_path / "pictures", 3, text="")
    (tmp_path / "pictures" / "2.png").rename(tmp_path / "pictures" / "two")
    spec = coco(tmp_path / "lists", {0: "0.png", 2: "two"}, [(0, "a"), (2, "b")])
    with pytest.raises(
        errors.UserError, match=r"none of 2 .*; --config.data_options.images= names"
    ):
        opened(spec)
    source = opened(spec, images=str(tmp_path / "pictures"), **NONE)
    assert pairs(source) == {0: ("a",), 2: ("b",)}
    assert left(source) == {"a picture that is in no list": 1}
    with pytest.raises(
        errors.UserError, match=r"is not a folder, .* --config.data_options.images=$"
    ):
        opened(spec, images=str(tmp_path / "none"), **NONE)


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "3", '"annotations"', '{"images": 3, "annotations": []}', "[" * 10_000),
        '{"images": [{"id": 1, "file_name": 7}], "annotations": []}',
        '{"images": [{"id": [], "file_name": "a"}], "annotations": []}',
        '{"images": [3], "annotations": []}',
        '{"images": [], "annotations": [{"caption": "a"}]}',
        '{"images": [], "annotations": [{"image_id": {}, "caption": "a"}]}',
        '{"images": [{"filename": 3, "sentences": []}]}',
        '{"images": [{"filename": "a", "sentences": [{}]}]}',
        '{"images": [{"filename": "a", "filepath": 3, "sentences": []}]}',
        '{"images": [{"filename": "a", "sentences": [], "split": "fold1"}]}',
        b"\xff\xfe{",
    ],
)
@pytest.mark.parametrize("name", ["captions_train2014.json", "dataset_coco.json"])
def test_a_list_of_coco_that_is_none_is_refused_in_one_line(tmp_path, content, name):
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(errors.UserError, match="expected") as caught:
        opened(f"coco:{tmp_path}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_caption_of_coco_that_is_no_text_is_dropped_and_counted(tmp_path):
    fill(tmp_path / "data", 2, text="")
    spec = coco(tmp_path / "data", {0: "0.png", 1: "1.png"}, [(0, 3), (0, "a"), (1, {"a": []})])
    source = opened(spec)
    assert pairs(source) == {0: ("a",)}
    found = survey.survey({"train": source})
    assert found["dropped"]["caption is no text"]["count"] == 2


# ---- CUB ----------------------------------------------------------------------------------------


def cub(root, names, lines=None, flags=None):
    """Birds with a caption each. names: of the pictures; lines: of images.txt, as bytes."""
    birds = root / "CUB_200_2011"
    for n, name in enumerate(names):
        for place in (birds / "images" / name, root / "text_c10" / name):
            place.parent.mkdir(parents=True, exist_ok=True)
        (birds / "images" / name).write_bytes(picture(n))
        (root / "text_c10" / name).with_suffix(".txt").write_text(f"bird {n}\n")
    lines = (
        [os.fsencode(f"{n + 1} {name}") for n, name in enumerate(names)] if lines is None else lines
    )
    (birds / "images.txt").write_bytes(b"\n".join(lines))
    if flags is not None:
        (birds / "train_test_split.txt").write_text("\n".join(flags))
    return f"cub:{root}"


BIRDS = ("001.Crow/a.jpg", "001.Crow/b.jpg", "002.Owl/c.jpg")


def test_lines_of_cub_that_cannot_be_read_are_faults_and_the_rest_is_used(tmp_path):
    lines = [b"1 001.Crow/a.jpg", b"word", b"", b"2 001.Crow/b.jpg  ", b"3 001.Crow/none.jpg"]
    lines += [b"4 ../../../etc/passwd", b"5 001.Crow/a.jpg"]
    source = opened(cub(tmp_path, BIRDS, lines))
    assert pairs(source) == {0: ("bird 0",), 1: ("bird 1",)}
    assert sorted(faults(source)) == [
        "../../../etc/passwd: '../../../etc/passwd' lies outside of the folder "
        f"{tmp_path}/CUB_200_2011/images",
        "001.Crow/none.jpg: there is no file '001.Crow/none.jpg'",
        "images.txt, line 2: 'word', expected two words",
    ]
    assert left(source) == {
        "a second line of a picture": 1,
        "a picture that is in no list": 1,
        "a text without a picture of its name": 1,
    }


def test_names_of_cub_may_be_in_another_encoding(tmp_path):
    name = os.fsdecode("001.Möwe/é.jpg".encode("latin-1"))
    source = opened(cub(tmp_path, (*BIRDS, name)))
    assert len(pairs(source)) == 4 and not faults(source)
    (tmp_path / "testclasses.txt").write_bytes("002.Owl\n003.Möwe\n".encode("latin-1"))
    source = opened(f"cub:{tmp_path}")
    assert len(source) == 3 and left(source) == {"a class that no picture has": 1}
    assert len(opened(f"cub:{tmp_path}", "test")) == 1


def test_a_word_in_the_split_of_cub_that_is_none_is_refused_in_one_line(tmp_path):
    spec = cub(tmp_path, BIRDS, flags=["1 1", "2", "3 0"])
    assert sorted(pairs(opened(spec))) == [0, 1] and sorted(pairs(opened(spec, "test"))) == [2]
    assert faults(opened(spec)) == ["train_test_split.txt, line 2: '2', expected two words"]
    with pytest.raises(errors.UserError, match=r"picture 2: split is '7', expected 1 for train or"):
        opened(cub(tmp_path, BIRDS, flags=["1 1", "2 7"]))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("ann_train", "valid", "eval")])
def test_lists_of_one_folder_that_are_named_by_splits_are_all_used(tmp_path, names):
    fill(tmp_path / "images", 9, text="")
    for i, name in enumerate(names):
        rows = [f"images/{n}.png,picture {n}" for n in range(3 * i, 3 * i + 3)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["file_name,caption", *rows]))
    for i, split in enumerate(("train", "validation", "test")):
        source = opened(f"folder:{tmp_path}", split)
        assert [source[n].captions for n in range(len(source))] == [
            (f"picture {n}",) for n in range(3 * i, 3 * i + 3)
        ]
    assert not left(opened(f"folder:{tmp_path}"))


def test_of_lists_of_splits_in_two_formats_one_is_used(tmp_path):
    fill(tmp_path / "images", 4, text="")
    for split, numbers in (("train", (0, 1)), ("test", (2, 3))):
        rows = [{"file_name": f"images/{n}.png", "caption": f"picture {n}"} for n in numbers]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        lines = [f"{row['file_name']},{row['caption']}" for row in rows]
        (tmp_path / f"{split}.csv").write_text("\n".join(["file_name,caption", *lines]))
    source = opened(f"folder:{tmp_path}", "test")
    assert [source[n].captions for n in range(len(source))] == [("picture 2",), ("picture 3",)]
    assert left(source) == {"a list beside or below the one that is used": 2}


def test_a_picture_in_the_current_folder_is_found_once(tmp_path, monkeypatch):
    fill(tmp_path, 2, text="")
    rows = [{"file": f"images/{n}.png", "text": f"{n}"} for n in range(2)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    source = opened("folder:.")
    assert [source[n].captions for n in range(2)] == [("0",), ("1",)] and len(pairs(source)) == 2


def test_rows_without_the_name_of_a_picture_are_counted_one_by_one(tmp_path):
    fill(tmp_path, 2, text="")
    rows = ["0.png,picture 0", *[",a caption"] * 5, "1.png,picture 1"]
    (tmp_path / "captions.csv").write_text("\n".join(["file_name,caption", *rows]))
    source = opened(f"folder:{tmp_path}")
    assert len(source) == 7 and len(pairs(source)) == 2
    said = [detail for detail in faults(source) if "has an empty file_name, expected" in detail]
    assert len(said) == 5 and "row 2" in said[0]


def test_a_file_that_moved_is_found_among_many_of_its_name_by_its_folder(tmp_path):
    for folder in range(40):
        fill(tmp_path / "imgs" / f"v{folder}", 1, text="", first=0)
    rows = [{"file": f"frames/v{n}/0.png", "text": f"{n}"} for n in range(40)]
    (tmp_path / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = opened(f"folder:{tmp_path}")
    found = {source[n].key: source[n].captions for n in range(len(source))}
    assert found == {f"imgs/v{n}/0.png": (f"{n}",) for n in range(40)}
