"""`--mode=sample`: what it writes, and one line for each kind of bad input."""

import fcntl
import io
import json
import pathlib
import sys
import types

import numpy as np
import pytest

from udd_jax import generate, pipeline, sample_files, stages
from udd_jax.data import pixels

DEFAULTS = {
    "task": "t2i", "given": [], "prompt": [], "image": [], "mask": None, "negative_prompt": None,
    "blank_tokens": 1, "num": None, "batch_size": 4, "out": None, "seed": 0,
    "weight": [], "best_of": 1, "share": None, "rounds": None, "extend": [],
    "length": None,
    "by": "bound", "paint": [], "scorer": [], "dual_encoder": None, "weights": None,
    "weigh": [], "begin_with": None, "begin_steps": None, "factor": None,
}  # fmt: skip


def generated(folder, **changes):
    """`generate.sample` with these flags; those that are no flag of DEFAULTS are settings."""
    settings = {name: value for name, value in changes.items() if name not in DEFAULTS}
    typed = {name: value for name, value in changes.items() if name in DEFAULTS}
    return generate.sample(folder, types.SimpleNamespace(**DEFAULTS | typed), settings)


@pytest.fixture(autouse=True)
def one_pipeline(tiny_run, monkeypatch):
    """Loads the run once for all of this file, so that it is compiled once."""
    if not hasattr(one_pipeline, "pipe"):
        one_pipeline.pipe = pipeline.Pipeline.load(tiny_run)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: one_pipeline.pipe)


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "a.png"
    pixels.write_png(path, rng.integers(0, 256, (32, 32, 3), np.uint8))
    return path


def sampled(tmp_path, **changes):
    place = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    out = generated(tmp_path, out=str(place), **changes)
    return out, [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def test_each_prompt_gets_its_images_and_a_sheet(tmp_path):
    prompts = ["a red circle", "a blue square"]
    out, lines = sampled(tmp_path, prompt=prompts, num=2)
    assert [line["caption"] for line in lines] == [prompts[0]] * 2 + [prompts[1]] * 2
    for line in lines:
        assert pixels.read(out / line["image"]).shape == (32, 32, 3)
        assert line["settings"]["sampler"] == "ancestral"
        assert (line["task"], line["seed"]) == ("t2i", 0)
    assert (out / "sheet.png").exists()


def test_a_rule_with_what_it_is_given_is_the_task_with_its_flags(tmp_path, picture):
    _, lines = sampled(tmp_path, prompt=["a red circle", "a blue square"], num=2)
    _, same = sampled(
        tmp_path, task="image|text", given=["text=a red circle", "text=a blue square"], num=2
    )
    assert [line | {"task": ""} for line in lines] == [line | {"task": ""} for line in same]
    _, lines = sampled(tmp_path, task="text|image", given=[f"image={picture}"], num=4)
    assert lines[0]["given"] == {"image": str(picture)} and len(lines) == 4


def test_a_line_says_all_that_makes_its_sample_again(tmp_path):
    options = {"negative_prompt": "a blue square", "guidance": 2.0, "seed": 5, "num": 2}
    out, lines = sampled(tmp_path, prompt=["a red circle", "a square"], **options)
    line = lines[3]
    again = one_pipeline.pipe.text_to_image(
        [line["given"]["text"]],
        negative=line["negative_prompt"],
        seed=line["seed"],
        first=line["index"],
        **line["settings"],
    )
    np.testing.assert_array_equal(again.images[0], pixels.read(out / line["image"]))


def test_a_line_of_several_steps_makes_its_sample_again_with_the_settings_of_each(
    tmp_path, monkeypatch
):
    rules = {"image": {"temperature": 0.5}, "text|image": {"top_r": 0.5}}
    own = one_pipeline.pipe.with_config(begin_with=("image",), sample_rules=rules)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: own)
    _, lines = sampled(tmp_path, task="pair", num=2, temperature=0.9)
    line = lines[1]
    assert line["settings"] == {"temperature": 0.9}
    again = own.pairs(1, seed=line["seed"], first=line["index"], **line["settings"])
    assert again.captions == [line["caption"]]


def test_a_negative_prompt_leads_an_edit_and_an_infilling(tmp_path, picture):
    options = {"image": [str(picture)], "prompt": ["a red circle"], "guidance": 2.0, "num": 4}
    pixels.write_png(tmp_path / "m.png", np.full((32, 32, 3), 255, np.uint8))
    for task, more in (("edit", {"rounds": 1}), ("infill", {"mask": str(tmp_path / "m.png")})):
        found = []
        for away in ({}, {"negative_prompt": "a blue square"}):
            out, lines = sampled(tmp_path, task=task, **options, **more, **away)
            found.append(np.stack([pixels.read(out / line["image"]) for line in lines]))
        assert (found[0] != found[1]).any()


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "infill", "prompt": ["a ___ circle"], "blank_tokens": 2, "mask": "m.png"},
        {"task": "edit", "prompt": ["a red circle"], "rounds": 1, "share": 0.5},
        {"task": "outpaint", "extend": ["left:8"]},
        {"prompt": ["a red circle", "a square"], "best_of": 2},
    ],
    ids=lambda changes: changes.get("task", "best of"),
)
def test_the_flags_in_a_line_make_its_sample_again_from_any_folder(
    tmp_path, picture, changes, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    pixels.write_png(tmp_path / "m.png", np.full((32, 32, 3), 255, np.uint8))
    if "best_of" not in changes:
        changes = {"image": [picture.name], **changes}
    out, lines = sampled(tmp_path, num=2, **changes)
    line = lines[-1]
    assert line["run"] == str(tmp_path)
    monkeypatch.chdir("/")
    flags = {"num": line["index"] + 1}
    flags |= {name: line[name] for name in line.keys() & DEFAULTS.keys() - {"image"}}
    flags["given"] = [f"{name}={value}" for name, value in line["given"].items()]
    new, again = sampled(tmp_path, **flags)
    assert again[line["index"]] == line
    np.testing.assert_array_equal(*(pixels.read(folder / line["image"]) for folder in (out, new)))


def test_what_is_in_the_folder_stays_and_new_samples_are_numbered_on(tmp_path):
    flag = {"prompt": ["a red circle"], "out": str(tmp_path / "out")}
    out = generated(tmp_path, num=4, **flag)
    old = {path.name: path.read_bytes() for path in out.glob("image-*.png")}
    generated(tmp_path, num=4, seed=1, **flag)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == [f"image-{i:04d}.png" for i in range(8)]
    assert [line["seed"] for line in lines] == [0] * 4 + [1] * 4
    assert all((out / name).read_bytes() == content for name, content in old.items())


def test_a_folder_that_cannot_be_and_a_seed_that_none_has_are_refused_before_sampling(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(one_pipeline.pipe.__class__, "stream", None)  # a call would raise
    (tmp_path / "file").write_text("")
    for out in ("file", "file/below"):
        with pytest.raises(ValueError, match=r"--out=.*file.* cannot be a folder"):
            generated(tmp_path, prompt=["a circle"], out=str(tmp_path / out))
    for seed in (-1, 2**32, 2**63):
        with pytest.raises(ValueError, match=rf"--seed = {seed}, expected 0 to 4294967295"):
            generated(tmp_path, prompt=["a circle"], seed=seed)


def test_the_home_folder_may_be_the_place_of_the_samples(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    out = generated(tmp_path, prompt=["a red circle"], out="~/x")
    assert out == tmp_path / "x" and (out / "image-0000.png").exists()
    assert not (tmp_path / "~").exists()


def test_a_run_of_the_package_stays_as_it_is_and_its_samples_are_in_the_current_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = sorted(pipeline.PACKAGED.rglob("*"))
    assert generated(pipeline.PACKAGED, prompt=["a red circle"]) == pathlib.Path("generated")
    assert (tmp_path / "generated" / "image-0000.png").exists()
    assert sorted(pipeline.PACKAGED.rglob("*")) == before


def test_a_terminal_in_ascii_gets_escapes_and_the_list_of_samples_the_letters(
    tmp_path, monkeypatch
):
    written = io.BytesIO()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding="ascii"))
    out, (line,) = sampled(tmp_path, prompt=["a caf\xe9 \u732b"])
    sys.stdout.flush(), sys.stderr.flush()
    assert line["caption"] == line["given"]["text"] == "a caf\xe9 \u732b"
    assert b"a caf\\xe9 \\u732b\n" in written.getvalue()
    assert (out / "sheet.png").exists()


def test_a_sheet_of_many_is_bounded(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sample_files, "SHEET", 3)
    out, lines = sampled(tmp_path, prompt=["a red circle"], num=4)
    assert len(lines) == 4 and "sheet.png shows the first 3 of 4" in capsys.readouterr().out
    monkeypatch.setattr(sample_files, "SHEET", 4)
    wider, _ = sampled(tmp_path, prompt=["a red circle"], num=4)
    widths = [pixels.read(folder / "sheet.png").shape[1] for folder in (out, wider)]
    assert widths[0] < widths[1]


def test_an_image_gets_a_caption(tmp_path, picture):
    _, lines = sampled(tmp_path, task="i2t", image=[str(picture)], num=4)
    assert len(lines) == 4
    _, lines = sampled(tmp_path, task="i2t", image=[str(picture)], num=4, length="2")
    assert [line["length"] for line in lines] == ["2"] * 4
    assert max(len(line["caption"].split()) for line in lines) <= 2
    rule = {"task": "text|image", "given": [f"image={picture}"]}
    _, same = sampled(tmp_path, num=4, length="2", **rule)
    assert [line["caption"] for line in same] == [line["caption"] for line in lines]


@pytest.mark.parametrize("task", ["pair", "image", "text"])
def test_what_comes_from_nothing_has_what_the_task_says(tmp_path, task):
    _, lines = sampled(tmp_path, task=task, num=4)
    assert all(("image" in line) == (task != "text") for line in lines)
    assert all(("caption" in line) == (task != "image") for line in lines)


def test_infilling_pastes_the_given_pixels_back(tmp_path, picture):
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    pixels.write_png(tmp_path / "m.png", np.repeat(mask[..., None], 3, axis=-1))
    changes = {"image": [str(picture)], "mask": str(tmp_path / "m.png"), "num": 4}
    out, lines = sampled(tmp_path, task="infill", prompt=["a ___ circle"], **changes)
    assert all(line["caption"].endswith(" circle") for line in lines)
    composite = pixels.read(out / "composite-0000.png")
    np.testing.assert_array_equal(composite[:, 16:], pixels.read(picture)[:, 16:])
    drawn = pixels.read(out / "image-0000.png")
    np.testing.assert_array_equal(composite[:, :16], drawn[:, :16])


def test_weights_make_one_condition_of_all_prompts(tmp_path, capsys):
    prompts = ["a red circle", "a blue square"]
    out, lines = sampled(tmp_path, prompt=prompts, weight=["1", ".5:linear"], num=4)
    assert "at most 3 network calls a step" in capsys.readouterr().out
    assert [line["given"] for line in lines] == [{"text": prompts}] * 4
    assert lines[0]["weight"] == ["1", ".5:linear"]
    asked = [(prompts[0], 1), (prompts[1], 0.5, "linear")]
    again = one_pipeline.pipe.text_to_image(prompts=asked, num=4)
    np.testing.assert_array_equal(again.images[3], pixels.read(out / "image-0003.png"))


def test_an_edit_an_outpainting_and_the_best_of_some_are_flags(tmp_path, picture):
    image = {"image": [str(picture)], "num": 4}
    out, lines = sampled(tmp_path, task="edit", prompt=["a red circle"], rounds=1, **image)
    same = one_pipeline.pipe.edit(pixels.read(picture), "a red circle", rounds=1, num=4)
    assert len(lines) == 4 and lines[0]["caption"] == "a red circle"
    np.testing.assert_array_equal(same.images[0], pixels.read(out / lines[0]["image"]))
    out, lines = sampled(tmp_path, task="outpaint", extend=["left:8"], **image)
    wide = pixels.read(out / lines[3]["image"])
    np.testing.assert_array_equal(wide[:, 8:], pixels.read(picture))
    out, lines = sampled(tmp_path, prompt=["a red circle"], best_of=4)
    best = one_pipeline.pipe.text_to_image("a red circle", best_of=4).images[0]
    np.testing.assert_array_equal(best, pixels.read(out / lines[0]["image"]))


def test_the_settings_of_an_edit_are_those_of_infilling(tmp_path, picture, monkeypatch):
    rules = {"infill": {"sampler": "entropy_bounded"}}
    own = one_pipeline.pipe.with_config(sample_rules=rules)
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: own)
    asked = {"task": "edit", "prompt": ["a red circle"], "image": [str(picture)], "rounds": 1}
    _, lines = sampled(tmp_path, bound=0.2, **asked)
    settings = lines[0]["settings"]
    assert (settings["sampler"], settings["bound"]) == ("entropy_bounded", 0.2)
    with pytest.raises(ValueError, match=r"^--steps = 3 changes nothing, sampler entropy"):
        sampled(tmp_path, steps=3, **asked)


def test_painted_words_and_scorers_are_flags(tmp_path, picture):
    mask = np.repeat(np.arange(32)[None, :, None] < 16, 32, axis=0).repeat(3, axis=2)
    pixels.write_png(tmp_path / "left.png", mask * np.uint8(255))
    asked = {"paint": [f"red circle={tmp_path / 'left.png'}:9"], "scorer": [f"style={picture}:2"]}
    out, lines = sampled(tmp_path, prompt=["a red circle"], num=4, **asked)
    assert lines[0]["paint"] == asked["paint"] and lines[0]["scorer"] == asked["scorer"]
    pipe = one_pipeline.pipe
    options = {"paint": [("red circle", mask[..., 0], 9.0)]}
    options["scorers"] = [(pipe.scorer("style", str(picture)), 2.0)]
    same = pipe.text_to_image("a red circle", num=4, **options)
    np.testing.assert_array_equal(same.images[0], pixels.read(out / lines[0]["image"]))


def test_an_image_of_another_size_is_resized_with_a_word_about_it(tmp_path, capsys):
    pixels.write_png(tmp_path / "b.png", np.zeros((40, 50, 3), np.uint8))
    sampled(tmp_path, task="i2t", image=[str(tmp_path / "b.png")], num=4)
    assert "b.png is 50 x 40: resized and cut to 32" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "--prompt is missing, --task=t2i needs it"),
        ({"prompt": [" "]}, "--prompt is empty"),
        ({"prompt": ["a circle " * 9]}, "prompt"),
        ({"prompt": ["a circle"], "num": 0}, "--num = 0, expected at least 1"),
        ({"prompt": ["a circle"], "steps": 99}, "sample.steps = 99 is more than the T = 6"),
        ({"prompt": ["a circle"], "top_r": 1.5}, "sample.top_r = 1.5"),
        ({"prompt": ["a circle"], "batch_size": 0}, "--batch_size = 0"),
        ({"prompt": ["a circle"], "image": ["x.png"]}, "--image means nothing for --task=t2i"),
        ({"task": "pair", "prompt": ["a circle"]}, "--prompt means nothing for --task=pair"),
        ({"task": "i2t"}, "--image is missing"),
        ({"task": "text|image"}, "--image is missing, --task=text|image needs it"),
        ({"task": "image|sound"}, "task 'image|sound' names 'sound': expected"),
        ({"task": "image|text", "given": ["text"]}, "--given=text: expected --given NAME=VALUE"),
        (
            {"given": ["text=a", "sound=b"]},
            "--given sound= means nothing for --task=t2i: it is not a modality of this run, "
            "expected some of image, text",
        ),
        ({"given": ["txt=a"]}, "--given txt= means nothing for --task=t2i: it is not a modality"),
        ({"given": ["=x"]}, "--given==x: expected --given NAME=VALUE, as --given text=..."),
        ({"given": [" =x"]}, "--given= =x: expected --given NAME=VALUE, as --given text=..."),
        (
            {"prompt": ["a"], "weigh": ["text=.5", "text = 3"]},
            "--weigh=text = 3: text has a weight already, expected one of each",
        ),
        ({"prompt": ["a"], "mask": "m.png"}, "--mask means nothing for --task=t2i"),
        (
            {"task": "infill", "prompt": ["a ___"], "scorer": ["palette=a.png:64"]},
            "--scorer means nothing for --task=infill",
        ),
        (
            {"task": "text", "negative_prompt": "a"},
            "--negative_prompt means nothing for --task=text",
        ),
        (
            {"task": "infill", "prompt": ["a ___"], "negative_prompt": "b"},
            "--negative_prompt means nothing for --task=infill",
        ),
        (
            {"task": "outpaint", "image": ["a.png"], "extend": ["left:8", "left:4"]},
            "--extend=left:4: left is there already, expected one of each",
        ),
        (
            {"prompt": ["a"], "negative_prompt": "b"},
            "--negative_prompt changes nothing, guidance is off: add --guidance=2",
        ),
        ({"prompt": ["a"], "blank_tokens": 2}, "--blank_tokens means nothing for --task=t2i"),
        (
            {"prompt": ["a"], "sampler": "threshold", "steps": 2},
            "--steps = 2 changes nothing, sampler threshold runs until no position is masked: "
            "leave it out, or set --sampler=maskgit",
        ),
        ({"prompt": ["a"], "eta": 0.5}, "does not read it, only remdm_cap and remdm_rescale"),
        ({"prompt": ["a"], "guidance_schedule": "linear"}, "changes nothing, guidance is off"),
        (
            {"task": "pair", "begin_with": "text", "begin_steps": 2, "sampler": "threshold"},
            "--begin_steps = 2 changes nothing, sampler threshold runs until no position is masked",
        ),
        ({"prompt": ["a", "b"], "weight": ["1"]}, "2 of --prompt, 1 of --weight: expected as many"),
        ({"prompt": ["a"], "weight": ["x"]}, "--weight=x, expected a number such as .5"),
        ({"prompt": ["a", "b"], "weight": ["1", "-1"]}, "prompts (1, -1) sum to 0"),
        ({"task": "pair", "weight": ["1"]}, "--weight means nothing for --task=pair"),
        ({"prompt": ["a"], "best_of": 0}, "--best_of = 0, expected at least 1"),
        ({"task": "image", "best_of": 2}, "task 'image' has no other direction"),
        ({"prompt": ["a"], "length": "3"}, "--length means nothing for --task=t2i"),
        ({"prompt": ["a"], "best_of": 2, "by": "match"}, "this run has no dual encoder: train one"),
        ({"prompt": ["a"], "by": "match"}, "--by means nothing"),
        ({"task": "pair", "paint": ["a=m.png"]}, "--paint means nothing for --task=pair"),
        ({"prompt": ["a"], "paint": ["a"]}, "--paint=a, expected PHRASE=MASK or PHRASE=MASK:WEIG"),
        ({"prompt": ["a"], "paint": ["a=m.png:x"]}, "--paint=a=m.png:x, expected PHRASE=MASK"),
        ({"prompt": ["a"], "scorer": ["match=blue:x"]}, "--scorer=match=blue:x, expected NAME=V"),
        ({"prompt": ["a"], "scorer": ["taste=blue:1"]}, "scorer 'taste' does not exist, expected"),
        ({"prompt": ["a"], "scorer": ["match=blue:1"]}, "this run has no dual encoder: train one"),
        ({"prompt": ["a"], "scorer": ["clip=blue:1"]}, "the scorer clip needs its files: name the"),
        ({"task": "text", "scorer": ["style=a.png:1"]}, "--scorer means nothing for --task=text"),
        ({"prompt": ["a"], "weights": "clip"}, "--weights means nothing for --task=t2i"),
        ({"prompt": ["a"], "share": 0.5}, "--share means nothing for --task=t2i"),
        ({"task": "edit", "prompt": ["a"]}, "--image is missing, --task=edit needs it"),
        ({"task": "outpaint", "image": ["a.png"]}, "--extend is missing, --task=outpaint needs it"),
        ({"task": "infill"}, "infilling needs one or both"),
        ({"task": "infill", "prompt": ["a circle"]}, "nothing is missing"),
        ({"task": "infill", "prompt": ["a ___"], "mask": "m.png"}, "--mask needs the --image"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError) as caught:
        generated(tmp_path, out=str(tmp_path / "out"), **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_spaces_around_the_name_of_a_given_value_do_not_count():
    flags = types.SimpleNamespace(**DEFAULTS | {"given": [" text =a red circle", "text= b"]})
    assert generate._asked(flags) == {"text": ["a red circle", " b"]}


def test_a_file_that_is_no_picture_and_a_folder_are_errors(tmp_path):
    (tmp_path / "no.png").write_bytes(b"hello")
    for path in (tmp_path / "no.png", tmp_path, tmp_path / "missing.png"):
        with pytest.raises((ValueError, OSError)) as caught:
            generated(tmp_path, task="i2t", image=[str(path)])
        assert str(path) in str(caught.value)


def test_a_mask_of_another_size_is_an_error(tmp_path, picture):
    pixels.write_png(tmp_path / "m.png", np.full((8, 8, 3), 255, np.uint8))
    changes = {"image": [str(picture)], "mask": str(tmp_path / "m.png")}
    with pytest.raises(ValueError, match="8 x 8 pixels, the image is 32 x 32"):
        generated(tmp_path, task="infill", prompt=["a ___"], **changes)


def test_finished_batches_stay_when_the_next_one_is_stopped(tmp_path, monkeypatch):
    def stopped(self, *arguments, **options):
        results = whole(self, *arguments, **options)
        yield next(results)
        raise KeyboardInterrupt

    whole = pipeline.Pipeline.stream
    monkeypatch.setattr(pipeline.Pipeline, "stream", stopped)
    with pytest.raises(KeyboardInterrupt):
        sampled(tmp_path, task="pair", num=7)
    lines = (tmp_path / "out0" / "samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2, 3]
    assert all((tmp_path / "out0" / json.loads(line)["image"]).exists() for line in lines)


def test_a_half_line_of_a_killed_command_is_cut_off(tmp_path):
    asked = {"task": "text", "out": str(tmp_path / "out")}
    file = generated(tmp_path, num=2, **asked) / "samples.jsonl"
    file.write_bytes(file.read_bytes() + b'{"task": "te')
    generated(tmp_path, num=1, **asked)
    assert [json.loads(line)["index"] for line in file.read_text().splitlines()] == [0, 1, 0]


def test_two_commands_do_not_write_their_samples_into_one_folder(tmp_path):
    path, said = tmp_path / "samples.jsonl", "is in use: another command writes its samples"
    with path.open("ab+") as held, path.open("ab+") as lines:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=said):
            sample_files._whole_lines(lines, tmp_path)


@pytest.mark.parametrize("mode", ["sample", "export"])
def test_results_are_not_written_to_a_folder_that_is_called_like_a_bucket(mode):
    with pytest.raises(ValueError, match="--out=gs://b/x is not a folder of a disk: name one"):
        if mode == "sample":
            generate._folder("gs://b/x")
        else:
            stages.export(pipeline.PACKAGED, "gs://b/x")


def test_a_sample_does_not_depend_on_how_many_are_made(tmp_path):
    _, lines = sampled(tmp_path, task="text", num=6)
    _, fewer = sampled(tmp_path, task="text", num=2)
    assert [line["caption"] for line in lines[:2]] == [line["caption"] for line in fewer]


def test_it_says_on_what_it_runs_what_it_made_and_three_things_to_try(tmp_path, capsys):
    out, _ = sampled(tmp_path, task="image", num=4)
    said, shown = capsys.readouterr()
    first, made, following, *tries = said.splitlines()
    assert "no accelerator found" in first
    assert made == f"4 samples of image, listed in samples.jsonl: {out}"
    assert (following, len(tries)) == ("next:", 3)
    assert all(line.startswith("  udd_jax --mode=sample --workdir=") for line in tries)
    assert "samples: 4/4 samples" in shown


def test_the_folder_of_a_packaged_run_gets_no_results(tmp_path):
    assert generate._home(generate.pipeline.PACKAGED) == pathlib.Path()
    assert generate._home(tmp_path / "shapes") == tmp_path / "shapes"
