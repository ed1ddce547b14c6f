"""What is in the data is found, said and refused before anything is trained."""

import gzip
import inspect
import json
import shutil

import numpy as np
import pyarrow
import pytest
from absl import flags
from ml_collections import config_flags
from PIL import Image
from pyarrow import parquet as table

from configs import t2i
from tests.data.test_sources_cases import fill, picture, shard
from udd_jax import build, errors, stages
from udd_jax.data import described, pixels, reading, sources, survey, token_cache
from udd_jax.data.sources import cub, folder, listing, parquet, tfds, webdataset
from udd_jax.runtime import files, run_folder
from udd_jax.tokenizers import text_tokenizer


def opened(path, **options):
    return {s: sources.open_source(f"folder:{path}", s, **options) for s in listing.SPLITS}


def mixed(path):
    """A folder with one fault of every kind."""
    fill(path, 30, text="a red box, number {}")
    (path / "0.png").write_bytes(b"broken")
    (path / "1.txt").unlink()
    (path / "2.txt").write_bytes("caf\xe9".encode("cp1252"))
    (path / "3.txt").write_text("x" * 20_000 + "\nfine")
    (path / "lonely.txt").write_text("no picture")
    (path / "30.png").write_bytes(picture(5, compress_level=0))
    (path / "30.txt").write_text("as 5")
    return path


def test_a_survey_counts_all_that_is_wrong_with_the_first_of_each(tmp_path):
    found = survey.survey(opened(mixed(tmp_path), validation=0.1, test=0.3))
    assert sum(row["records"] for row in found["splits"].values()) >= 30
    assert found["unusable"]["broken image"] == {
        "count": 1,
        "first": "0.png: image: the 6 bytes given is not an image of a format that is read",
    }
    assert found["unusable"]["no caption"] == {"count": 1, "first": "1.png: 0 given"}
    assert found["repaired"]["surrogates replaced"] == {"count": 1, "first": "2.png: 'caf\\udce9'"}
    assert found["dropped"]["caption too long"]["count"] == 1
    left = found["left"]["a text without a picture of its name"]
    assert left == {"count": 1, "first": "lonely.txt"}
    assert found["sizes"] == {"16 x 16": sum(r["records"] for r in found["splits"].values()) - 1}
    assert json.loads(json.dumps(found)) == found
    text = described.describe(found, f"folder:{tmp_path}")
    for words in (
        "test: ",
        "(30.0% by a hash of the picture)",
        "16 x 16 pixels, all square",
        "unusable: broken image, 1 (the first: 0.png: ",
        "captions dropped: caption too long, 1",
        "left out: a text without a picture of its name, 1 (the first: lonely.txt)",
    ):
        assert words in text


def test_every_picture_is_in_a_split_or_counted(tmp_path):
    found = survey.survey(opened(mixed(tmp_path), validation=0.3, test=0.3))
    dropped = sum(r["count"] for c, r in found["left"].items() if c.startswith("its pixels"))
    assert sum(row["records"] for row in found["splits"].values()) + dropped == 31


def test_too_much_that_is_unusable_is_refused_until_it_is_mended(tmp_path):
    fill(tmp_path, 60)
    for n in range(30):
        (tmp_path / f"{n}.txt").rename(tmp_path / f"{n}.away")
    options = {"validation": 0, "test": 0}
    words = r"30 of 60 records \(split train\) cannot be used \(no caption 30, the first: 0.png: "
    with pytest.raises(
        ValueError, match=words + r".*--config.skip_limit=0.5; .*on what it has$"
    ) as caught:
        survey.check(survey.survey(opened(tmp_path, **options)))
    assert "\n" not in str(caught.value)
    survey.check(survey.survey(opened(tmp_path, **options)), 0.5)
    for n in range(30):
        (tmp_path / f"{n}.away").rename(tmp_path / f"{n}.txt")
    survey.check(survey.survey(opened(tmp_path, **options)))


@pytest.mark.parametrize("bad", [29, 57])  # .29 * 100 and .57 * 100 are rounded down
def test_the_limit_that_a_message_names_is_enough(tmp_path, bad):
    fill(tmp_path, 100)
    for n in range(bad):
        (tmp_path / f"{n}.txt").rename(tmp_path / f"{n}.away")
    found = survey.survey(opened(tmp_path, validation=0, test=0))
    with pytest.raises(ValueError, match=rf"--config\.skip_limit=0\.{bad};"):
        survey.check(found, bad / 100 - 0.001)
    survey.check(found, bad / 100)


@pytest.mark.parametrize("layout", ["folder", "tar", "tar.gz", "parquet"])
def test_a_picture_that_was_mended_is_read_anew_in_the_same_process(tmp_path, layout):
    pack = gzip.compress if layout == "tar.gz" else lambda content: content

    def write(third):
        names = [(f"{n}.png", third if n == 3 else picture(n)) for n in range(20)]
        if layout == "folder":
            fill(tmp_path, 20)
            (tmp_path / "3.png").write_bytes(third)
        elif layout == "parquet":
            rows = [{"image": content, "text": "a box"} for _, content in names]
            table.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        else:
            texts = [(f"{n}.txt", b"a box") for n in range(20)]
            shard(tmp_path / "plain", [*names, *texts])
            path = tmp_path / f"a.{layout}"
            path.write_bytes(pack((tmp_path / "plain").read_bytes()))
            (tmp_path / "plain").unlink()

    kind = {"folder": "folder", "parquet": "parquet"}.get(layout, "webdataset")
    for third, faults in ((b"broken" * 20, 1), (picture(3), 0), (picture(3)[:50], 1)):
        write(third)
        data = {"train": sources.open_source(f"{kind}:{tmp_path}", "train", validation=0, test=0)}
        assert survey.survey(data)["splits"]["train"]["unusable"] == faults


def test_captions_in_another_encoding_are_an_error_with_the_first(tmp_path):
    fill(tmp_path, 30)
    for n in range(20):
        (tmp_path / f"{n}.txt").write_bytes("ein K\xe4stchen".encode("cp1252"))
    with pytest.raises(ValueError, match=r"20 of 30 captions are not UTF-8 .the first: 0.png: "):
        survey.check(survey.survey(opened(tmp_path, validation=0, test=0)))


def test_captions_that_are_cut_and_characters_that_are_lacking_are_said(tmp_path):
    fill(tmp_path / "data", 30, text="a red box {}")
    for n in range(10):
        (tmp_path / "data" / f"{n}.txt").write_text("a red box " * 9)
    data = opened(tmp_path / "data", validation=0, test=0)
    captions = [f"a red box {n}" for n in range(40)]
    tokenizer = text_tokenizer.train_sentencepiece(captions, tmp_path / "text.model", 320)
    (tmp_path / "data" / "11.txt").write_text("a 赤い box")
    data = opened(tmp_path / "data", validation=0, test=0)
    found = survey.texts(data, tokenizer, 8)
    assert (found["captions"], found["cut"]) == (30, 10 + (len(tokenizer.pieces("a 赤い box")) > 8))
    assert found["longest"] == found["covers"] == len(tokenizer.pieces("a red box " * 9))
    assert found["lacking"] == {"赤": 1, "い": 1}
    first, second = described.describe_texts(found)
    assert first.startswith("text.length=8 cuts 11 of 30 captions (36.7%); the longest has ")
    assert first.endswith(f"--config.text.length={found['covers']} keeps 98% whole")
    assert second.startswith("characters that the vocabulary lacks") and "(2): 赤 い; " in second


def test_an_embedded_world_is_not_read(tmp_path):
    data = {s: sources.open_source("shapes", s, size=3) for s in listing.SPLITS}
    found = survey.survey(data)
    assert found["splits"]["train"]["records"] == 3 and not found["sizes"]
    survey.check(found)


def test_pictures_without_a_caption_are_unusable_or_trained_on_alone(tmp_path):
    fill(tmp_path, 30)
    for n in range(10):
        (tmp_path / f"{n}.txt").unlink()
    data = opened(tmp_path, validation=0, test=0)
    told = r"10 of 30 records \(split train\) cannot be used .* --config.incomplete=True trains"
    with pytest.raises(ValueError, match=told):
        survey.check(survey.survey(data))
    found = survey.survey(data, incomplete=True)
    survey.check(found)
    assert found["splits"]["train"]["unusable"] == 0
    assert "used as they are: no caption, 10 (the first: 0.png)" in described.describe(found)


def test_too_few_pictures_for_a_validation_are_said(tmp_path):
    fill(tmp_path, 3)
    found = survey.survey(opened(tmp_path))
    survey.check(found)
    text = described.describe(found)
    assert "train: 3 pictures, 3 captions (what no other split takes)" in text
    assert "5.0% of 3 pictures is less than one" in text and "no validation: " in text
    assert "3 pictures are few: expect them to be learned by heart" in text
    many = {"train": found["splits"]["train"] | {"records": described.FEW}}
    assert "by heart" not in described.describe(found | {"splits": many})


def test_what_the_evaluation_asks_for_is_looked_for_at_the_start(tmp_path):
    fill(tmp_path, 60)
    for n in range(60):
        (tmp_path / f"{n}.json").write_text(json.dumps({"style": "flat" if n % 2 else "3D"}))
    data = opened(tmp_path, test=0.5)
    size = len(data["test"])
    assert survey.asked(data, "test") == size
    assert 0 < survey.asked(data, "test", "style=flat", "style") < size
    message = r"evaluate.only is 'split_kind=pair', .* of the \d+ items .*\(the fields are style\)"
    with pytest.raises(ValueError, match=message):
        survey.asked(data, "test", "split_kind=pair")
    with pytest.raises(ValueError, match=r"evaluate.category is 'kind', .*the fields are style"):
        survey.asked(data, "test", category="kind")
    assert survey.asked(opened(tmp_path, test=0), "test", "style=none") == 0
    assert survey.asked({"test": sources.open_source("shapes", "test", size=3)}, "test") == 3


def test_pictures_that_are_equal_only_at_the_size_of_the_run_are_in_one_split(tmp_path):
    rng = np.random.default_rng(0)
    for n in range(12):
        inner = rng.integers(0, 256, (16, 16, 3), np.uint8)
        border = np.full((16, 4, 3), 7, np.uint8)
        for split, image in (("train", np.hstack([border, inner, border])), ("test", inner)):
            if split == "train" or n < 5:
                (tmp_path / split).mkdir(exist_ok=True)
                pixels.write_png(tmp_path / split / f"{n}.png", image)
                (tmp_path / split / f"{n}.txt").write_text("dots")
    assert len(opened(tmp_path)["train"]) == 12  # the whole pictures differ
    config = config_of(tmp_path)
    config.image_size = 16
    data = stages.open_data(config)
    assert (len(data["train"]), len(data["test"])) == (7, 5)
    assert data["train"].left[0] == ("train/0.png", "its pixels are in test")
    views = stages.views(config)
    shown = {s: {reading.example(data[s], i, views).pixels.tobytes() for i in range(len(data[s]))}
             for s in ("train", "test")}  # fmt: skip
    assert len(shown["train"]) == 7 and not shown["train"] & shown["test"]


def test_the_size_of_a_large_photograph_is_told_as_it_is(tmp_path):
    Image.new("RGB", (1300, 900), "red").save(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("red")
    data = {"train": sources.open_source(f"folder:{tmp_path}", "train", image_size=32)}
    assert survey.survey(data)["sizes"] == {"1300 x 900": 1}


@pytest.mark.parametrize(
    ("size", "line"),
    [
        ((64, 96), "1 of 4 are cut to become 96 x 64 and lose 33.3% of their area on average; "),
        (64, "3 of 4 are cut to become 64 x 64 and lose 33.3% of their area on average; "),
        (None, "3 of 4 are not square"),
    ],
)
def test_what_is_cut_off_is_counted_by_the_size_of_the_run(tmp_path, size, line):
    for n, shape in enumerate([(96, 64), (96, 64), (48, 32), (48, 48)]):  # width, height
        Image.new("RGB", shape, (n, 0, 0)).save(tmp_path / f"{n}.png")
        (tmp_path / f"{n}.txt").write_text("a box")
    found = survey.survey(opened(tmp_path, image_size=size, validation=0, test=0))
    assert line in described.describe(json.loads(json.dumps(found)))
    for n in range(3) if size == (64, 96) else ():
        Image.new("RGB", (96, 64), (n, 0, 0)).save(tmp_path / f"{n}.png")
    (tmp_path / "3.png").unlink()
    if size == (64, 96):
        found = survey.survey(opened(tmp_path, image_size=size, validation=0, test=0))
        assert "96 x 64 pixels, none is cut to become 96 x 64" in described.describe(found)


def test_the_scripts_of_characters_that_are_lacking_are_said_with_their_shares(tmp_path):
    lacking = {"赤": 30, "い": 10, "я": 40, "ж": 10, "\u0301": 1, "☃": 5, "🙂": 4}
    text = {"length": 8, "captions": 9, "cut": 0, "longest": 3, "covers": 3, "lacking": lacking}
    words = "CYRILLIC (50.0%), CJK (30.0%), HIRAGANA (10.0%), symbols (9.0%), COMBINING (1.0%)"
    assert f"; {words} of these; " in described.describe_texts(text)[1]
    line = described.describe_texts(text | {"characters": 1000})[1]
    assert "CYRILLIC (5.0%), CJK (3.0%), " in line and " of all characters; --c" in line
    many = described.describe_texts(text | {"lacking": lacking | {"α": 1, "א": 1}})[1]
    assert "COMBINING (1.0%) and 2 other scripts of these" in many
    fill(tmp_path, 4, text="aб")
    found = survey.texts(opened(tmp_path), _Latin(), 8)
    assert found["lacking"] == {"б": 4} and found["characters"] == 8


class _Latin:
    """A tokenizer of the first 128 characters."""

    pieces = staticmethod(lambda text: [ord(letter) for letter in text if ord(letter) < 128])
    piece = staticmethod(chr)
    decode = staticmethod(lambda rows: ["".join(map(chr, row)) for row in rows])


# ---- As the job does it -------------------------------------------------------------------------


def config_of(path):
    config = t2i.get_config("smoke")
    config.data = f"folder:{path}"
    return config


def test_the_mode_data_says_what_there_is_and_what_the_texts_need(tmp_path, capsys):
    fill(tmp_path, 30, text="a small red box, number {}")
    stages.describe_data(config_of(tmp_path))
    shown = capsys.readouterr().out
    for words in ("train: ", "test: ", "16 x 16 pixels", "text.length=13 cuts 0 of 30 captions"):
        assert words in shown


def test_a_folder_is_claimed_when_its_data_have_passed_and_decided_anew_before(tmp_path):
    path, run = tmp_path / "data", tmp_path / "run"
    with pytest.raises(ValueError, match="is not a folder"):
        stages.run(config_of(path), run)
    fill(path, 60, text="")
    (path / "1.txt").write_text("a box")
    with pytest.raises(ValueError, match=r"of 5\d records .split train. cannot be used .no capti"):
        stages.run(config_of(path), run)
    assert not (run / "config.json").exists() and not (run / stages.SURVEY).exists()
    fill(path, 60)
    config = config_of(path)
    data = stages.open_data(config)
    found = stages.look(config, data, run)
    found["text"] = {}
    files.write_json(run / stages.SURVEY, found)
    assert stages.look(config, data, run) == json.loads(json.dumps(found))
    fill(path, 1, text="another", first=7)
    assert "text" not in stages.look(config, stages.open_data(config), run)


def test_what_the_evaluation_measures_is_said_with_the_survey(tmp_path, capsys):
    fill(tmp_path, 60)
    for n in range(60):
        (tmp_path / f"{n}.json").write_text(json.dumps({"style": "flat" if n % 2 else "3D"}))
    config = config_of(tmp_path)
    config.data_options.test = 0.5
    data = stages.open_data(config)
    size, flat = len(data["test"]), survey.asked(data, "test", "style=flat")
    stages.look(config, data)
    assert (
        f"evaluation: of {size} of the {size} items of the split test\n" in capsys.readouterr()[0]
    )
    config.evaluate.only, config.evaluate.category = "style=flat", "style"
    stages.look(config, data)
    line = f"evaluation: of {flat} of the {size} items of the split test with style=flat "
    assert line in capsys.readouterr()[0] and flat < size
    config.data_options.test = 0.0
    stages.look(config, stages.open_data(config))
    assert "evaluation: of training pictures, since the split test is" in capsys.readouterr()[0]


@pytest.mark.parametrize("known", [False, True])
def test_the_survey_is_shown_before_an_evaluation_is_refused(tmp_path, capsys, known):
    fill(tmp_path / "data", 60)
    config = config_of(tmp_path / "data")
    data = stages.open_data(config)
    if known:
        files.write_json(tmp_path / stages.SURVEY, stages.look(config, data))
        capsys.readouterr()
    config.evaluate.category = "kind"
    with pytest.raises(errors.UserError, match=r"evaluate.category is 'kind'"):
        stages.look(config, data, tmp_path)
    assert "pictures, " in capsys.readouterr().out


def test_a_survey_of_before_is_held_to_a_limit_of_now(tmp_path, capsys):
    fill(tmp_path / "data", 60)
    for n in range(3):
        (tmp_path / "data" / f"{n}.txt").unlink()
    config = config_of(tmp_path / "data")
    config.skip_limit = 0.2
    data = stages.open_data(config)
    files.write_json(tmp_path / stages.SURVEY, stages.look(config, data, tmp_path))
    capsys.readouterr()
    stages.look(config, data, tmp_path)
    assert "no caption, 3" not in capsys.readouterr().out  # it was said before
    config.skip_limit = 0.01
    with pytest.raises(errors.UserError, match=r"no caption 3.*--config.skip_limit=0.0"):
        stages.look(config, data, tmp_path)
    assert "no caption, 3" in capsys.readouterr().out


def test_a_survey_of_before_that_is_refused_is_made_anew(tmp_path):
    fill(tmp_path / "data", 60)
    good = (tmp_path / "data" / "3.png").read_bytes()
    (tmp_path / "data" / "3.png").write_bytes(b"broken")
    config = config_of(tmp_path / "data")
    config.skip_limit = 0.2
    data = stages.open_data(config)
    files.write_json(tmp_path / stages.SURVEY, stages.look(config, data, tmp_path))
    config.skip_limit = 0.001
    with pytest.raises(errors.UserError, match="broken image 1"):
        stages.look(config, data, tmp_path)
    (tmp_path / "data" / "3.png").write_bytes(good)
    assert not stages.look(config, stages.open_data(config), tmp_path)["unusable"]


def test_data_that_moved_go_on_and_data_that_changed_do_not(tmp_path):
    here, there, run = tmp_path / "here", tmp_path / "there", tmp_path / "run"
    fill(here, 30)
    run.mkdir()

    def start(path):
        """What a start of the job does before its first stage."""
        config = config_of(path)
        data = stages.open_data(config)
        before = run / stages.SURVEY
        moved = before.exists() and survey.same(files.read_json(before), data)
        files.write_json(before, json.loads(json.dumps(stages.look(config, data, run))))
        run_folder.claim(config, run, ("data",) if moved else ())
        token_cache.write_shards(
            data["train"],
            lambda pictures: np.zeros((len(pictures), 2), np.int32),
            lambda captions: np.zeros((len(captions), 3), np.int32),
            run / "tokens",
            settings={},
            views=reading.Views(8),
        )

    start(here)
    here.rename(there)
    with pytest.raises(ValueError, match=r"is not a folder.*--config\.data=, and a run goes on"):
        start(here)
    start(there)
    assert build.read_config(run).data == f"folder:{there}"
    fill(there, 1, text="another", first=7)
    with pytest.raises(ValueError, match="put the data back, or delete"):
        start(there)
    shutil.copytree(there, here)
    fill(here, 1, text="a third", first=8)
    with pytest.raises(ValueError, match=r"belongs to another config .data: "):
        start(here)


def test_shards_that_were_refused_are_written_anew_when_the_files_are_mended(tmp_path):
    fill(tmp_path / "data", 20)
    (tmp_path / "data" / "3.png").write_bytes(b"broken")

    def write(shard_size):
        return token_cache.write_cache(
            opened(tmp_path / "data", validation=0, test=0)["train"],
            lambda pixels: pixels.reshape(len(pixels), -1)[:, :4].astype(np.int32),
            lambda captions: np.array([[len(caption)] for caption in captions]),
            tmp_path / f"tokens{shard_size}",
            settings={},
            views=stages.views(t2i.get_config("smoke")),
            skip_limit=0.01,
            shard_size=shard_size,
        )

    for shard_size in (5, 100):
        (tmp_path / "data" / "3.png").write_bytes(b"broken")
        with pytest.raises(ValueError, match=r"1 of 20 records are unusable .broken image 1"):
            write(shard_size)
        (tmp_path / "data" / "3.png").write_bytes(picture(3))
        assert len(write(shard_size)) == 20


@pytest.mark.filterwarnings("ignore:the load_module")
def test_every_option_of_every_source_is_a_field_that_a_flag_can_set(monkeypatch):
    known = set(t2i.get_config().data_options)
    for module in (cub, folder, parquet, tfds, webdataset):
        own = set(inspect.signature(module.source).parameters) - {"path", "split", "shares"}
        own -= set(sources.ASKED)
        assert own <= known, module
    assert set(sources.SHARED) <= known
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    given = {"caption_field": "prompt", "validation": "0.25", "trust_splits": "True", "size": "7"}
    words = [f"--config.data_options.{name}={value}" for name, value in given.items()]
    command = ["job", "--config=configs/t2i.py", *words, "--config.skip_limit=0.5"]
    monkeypatch.setattr("sys.argv", command)
    values(command)
    options = values.config.data_options
    assert [options[name] for name in given] == ["prompt", 0.25, True, 7]
    assert values.config.skip_limit == 0.5


def test_the_small_config_takes_ones_own_data(tmp_path):
    fill(tmp_path, 300, text="")
    (tmp_path / "captions.jsonl").write_text(
        "\n".join(json.dumps({"file": f"{n}.png", "prompt": "a box"}) for n in range(300))
    )
    config = config_of(tmp_path)
    config.data_options.validation = 0.0
    data = stages.open_data(config)
    assert [len(data[s]) for s in ("train", "validation")] == [256, 0]
    assert data["train"].left[-1][1] == "beyond the first 256 (--config.data_options.size=256)"
