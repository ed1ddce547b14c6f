"""A run of four modalities, never trained: from the config to files, numbers and the report."""

import copy
import dataclasses
import functools
import json
import pickle
import re
import shlex
import types

import ml_collections
import numpy as np
import pytest

from configs import any as any_config
from tests.demo import test_steering
from tests.helpers import tiny
from udd_jax import build, generate, modalities, pipeline, stages, values
from udd_jax.data import layouts, pixels, sounds, sources, token_cache
from udd_jax.data.reading import Views
from udd_jax.demo import recipes, requests, steering, views
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, rules, samples
from udd_jax.evaluation.report import contact_sheet, rule_sections
from udd_jax.runtime import files
from udd_jax.steering import chains, stepwise
from udd_jax.tokenizers.spectrogram import Spectrogram
from udd_jax.training import further, plan
from udd_jax.values import Result

NAMES = ("image", "layout", "sound", "text")


def config():
    c = tiny.shrink(any_config.get_config("smoke"), 4, 2)
    c.modalities.sound.vq.model.update({"n_embed": 12, "ch": 8})
    c.evaluate.update({"samples": 4, "batch_size": 4})
    return c


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny.make(tmp_path_factory.mktemp("any"), config())


@pytest.fixture(scope="module")
def pipe(run):
    return pipeline.Pipeline.load(run)


# ---- By way of another ---------------------------------------------------------------------------


def test_a_rule_by_way_of_another_modality_is_two_rules_and_leaves_it_out(pipe):
    asked = {"given": {"layout": np.arange(64).reshape(1, 8, 8) % 4}, "num": 2}
    made = pipe.generate("sound,text|layout", begin_with="image", seed=3, **asked)
    assert set(made.values) == {"layout", "sound", "text"}
    ids = {n: np.asarray(v) for n, v in pipe.vocab.split(made.tokens).items()}
    given = {"layout": ids["layout"], "image": ids["image"]}
    rest = pipe.generate("sound,text|layout,image", given=given, seed=3)
    np.testing.assert_array_equal(made.tokens, rest.tokens)


def test_what_a_call_begins_with_is_not_by_way_of_what_the_run_begins_with(pipe):
    asked = {"given": {"text": "a red circle"}, "seed": 3}
    made = pipe.generate("layout,sound|text", begin_with="layout", **asked)
    direct = pipe.with_config(begin_with=()).generate(
        "layout,sound|text", begin_with="layout", **asked
    )
    np.testing.assert_array_equal(made.tokens, direct.tokens)


def test_what_a_run_begins_with_is_a_setting_that_a_call_may_turn_off(pipe):
    assert list(pipe.config.begin_with) == ["image"]
    asked = {"given": {"text": "a red circle"}, "seed": 3}
    made = pipe.generate("layout|text", **asked)
    through = pipe.generate("layout|text", begin_with="image", **asked)
    np.testing.assert_array_equal(made.tokens, through.tokens)
    direct = pipe.generate("layout|text", begin_with=(), **asked)
    plain = pipe.with_config(begin_with=()).generate("layout|text", **asked)
    np.testing.assert_array_equal(direct.tokens, plain.tokens)
    assert (direct.tokens != made.tokens).any()


@pytest.mark.parametrize("begin_with", (None, ()))
@pytest.mark.parametrize(
    "given, message",
    [
        (None, r"^task 'sound\|text': given 'text' is missing$"),
        (
            {"text": "a red circle", "image": np.zeros((32, 32, 3), np.uint8)},
            r"^task 'sound\|text': 'image' is not given in it, expected text$",
        ),
    ],
)
def test_what_a_rule_lacks_is_said_of_the_rule_that_was_asked_for(pipe, given, message, begin_with):
    with pytest.raises(UserError, match=message):
        pipe.generate("sound|text", given=given, begin_with=begin_with)


def test_the_states_of_a_call_in_steps_are_those_of_all_its_steps(pipe):
    """The first half is of the image, and all else is masked until that is there."""
    given = {"layout": np.zeros((2, 8, 8), int)}
    asked = {"given": given, "num": 2, "sampler": "first_hitting"}
    made = pipe.generate("text,image|layout", trace=6, **asked)
    hidden = {
        m.name: (made.states[..., where] == pipe.vocab.mask_id).mean(axis=(1, 2))
        for m, where in zip(pipe.vocab.modalities, pipe.vocab.slices, strict=True)
    }
    assert hidden["image"][0] > 0 and not hidden["image"][3:].any()
    assert (hidden["text"][:3] == 1).all() and (np.diff(hidden["text"][2:]) < 0).all()
    assert not hidden["layout"].any() and len(made.states) == 6
    np.testing.assert_array_equal(made.states[-1], made.tokens)
    assert len(pipe.generate("text,image|layout", **asked).states) == 0


@pytest.mark.parametrize(
    ("rule", "names"),
    [
        *((rule, ["image"]) for rule in ("pair", "text|sound", "layout,sound")),
        *((rule, []) for rule in ("t2i", "i2t", "text", "image", "infill", "text|image,sound")),
    ],
)
def test_a_run_begins_with_what_is_not_given_where_something_else_is_wanted(pipe, rule, names):
    assert stepwise.usual(pipe, rule) == names
    assert bool(stepwise.levels(pipe, rule)) == bool(names)


def test_samples_by_way_of_one_modality_are_not_taken_for_those_by_way_of_another(pipe):
    by_way = [pipe.with_config(begin_with=(name,)) for name in ("image", "sound")]
    first, second = (stepwise.levels(one, "text|layout") for one in by_way)
    assert first != second and first[0]["rule"] == "image|layout"


def test_a_run_that_begins_with_something_unknown_is_refused_at_the_start():
    c = config()
    c.begin_with = ("voice",)
    with pytest.raises(
        ValueError, match="begin_with names 'voice', expected some of image, layout"
    ):
        stages.check(c)


def test_the_evaluation_of_pairs_begins_as_the_run_does(pipe):
    items = held_out.read(pipe, 4)
    kept, _ = samples._generate(pipe, items, "pair", np.arange(4), seed=3)
    made = pipe.pairs(4, seed=3, batch_size=4)
    np.testing.assert_array_equal(kept.tokens, made.tokens)
    assert kept.captions == made.captions


def test_the_page_begins_as_the_command_line_does(pipe):
    request = requests.make(pipe, "layout|text", text="a red circle", count=2, seed=3)
    (found,) = request.compute(pipe, [request])
    alone = pipe.generate("layout|text", given={"text": "a red circle"}, num=2, seed=3)
    np.testing.assert_array_equal(found.tokens, alone.tokens)


# ---- On the page ---------------------------------------------------------------------------------


def test_a_request_of_the_page_reads_the_files_of_a_visitor(pipe, tmp_path):
    layouts.write(tmp_path / "l.json", np.arange(64).reshape(8, 8) % 4)
    task = requests.rule(pipe, ["sound", "image"], ["layout"])
    request = requests.make(pipe, task, more={"layout": tmp_path / "l.json"}, count=2)
    assert task == "image,sound|layout"
    np.testing.assert_array_equal(request.given["layout"], [np.arange(64) % 4] * 2)
    assert recipes.command(task, given={"layout": "layout.json"}, settings={}) == (
        "udd_jax --mode=sample '--task=image,sound|layout' --given=layout=layout.json --num=1 "
        "--seed=0"
    )
    assert recipes.python(task, given={"layout": "layout.json"}, settings={}).splitlines()[-1] == (
        'result = pipe.generate("image,sound|layout", given={"layout": "layout.json"}, num=1, '
        "seed=0)"
    )


def test_a_rule_or_a_file_of_the_page_that_makes_no_sense_is_a_sentence(pipe, tmp_path):
    with pytest.raises(ValueError, match="the sound is given and made: take away one"):
        requests.rule(pipe, ["sound"], ["sound", "text"])
    with pytest.raises(ValueError, match="nothing is to be made"):
        requests.rule(pipe, [], ["text"])
    (tmp_path / "l.json").write_text("no layout")
    with pytest.raises(ValueError, match=r"^l.json is not a layout"):
        requests.make(pipe, "text|layout", more={"layout": tmp_path / "l.json"})
    with pytest.raises(ValueError, match="the file of the layout cannot be read"):
        requests.make(pipe, "text|layout", more={"layout": tmp_path / "gone.json"})
    with pytest.raises(ValueError, match="the layout is missing"):
        requests.make(pipe, "text|layout")


def test_a_rule_in_two_steps_with_weights_is_made_again_by_both_recipes(
    pipe, run, tmp_path, monkeypatch
):
    monkeypatch.setattr(requests, "FRAMES", 0)
    rule, text = "image,layout|text", "a small red circle"
    fields = {"weigh_text": 0.5, "weigh_sound": 1, "begin_with": ["layout"]}
    steered = steering.read(pipe, rule, fields, steering.RULE_WAYS)
    shown = {"text": text, "count": 2, "seed": 3, "steered": steered}
    request = requests.make(pipe, rule, **shown)
    result = request.compute(pipe, [request])[0]
    options = {"num": 2, "seed": 3, "weigh": {"text": 0.5}, "begin_with": "layout"}
    again = pipe.generate(rule, given={"text": text}, **options)
    np.testing.assert_array_equal(result.tokens, again.tokens)
    words = shlex.split(recipes.command(rule, settings={}, **shown))
    assert words[4:6] == ["--weigh=text=0.5", "--begin_with=layout"]
    source = recipes.python(rule, settings={}, **shown)
    assert 'weigh={"text": 0.5}, begin_with=["layout"]' in source
    test_steering.made_again(
        pipe, run, tmp_path, {}, rule, result, monkeypatch, settings={}, **shown
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weigh_sound": 0.5}, "weigh 'sound': it is not given in the task, expected text"),
        ({"weigh_text": None}, "weigh 'text': None, expected finite numbers, at least 0"),
        ({"begin_with": ["text"]}, "begin_with 'text': task 'image,layout|text' can begin with"),
        ({"begin_with": ["image", "layout"]}, "expected some, and not all, of what a rule"),
    ],
)
def test_ways_of_a_rule_that_make_no_sense_are_a_sentence(pipe, fields, message):
    steered = steering.read(pipe, "image,layout|text", fields, steering.RULE_WAYS)
    with pytest.raises(ValueError, match=message):
        requests.make(pipe, "image,layout|text", text="a circle", steered=steered)
    assert (
        steering.read(pipe, "text", {"begin_with": [], "weigh_text": 1}, steering.RULE_WAYS) == []
    )


def test_each_kind_has_a_view_on_the_page(pipe):
    found = {"layout": np.zeros((2, 8, 8), int), "sound": np.zeros((2, 8192), np.float32)}
    shown = views.others(pipe, found)
    assert shown.count("<audio controls") == shown.count("<img") == 2


# ---- The list -----------------------------------------------------------------------------------


def test_a_config_from_before_has_an_image_and_a_text():
    old = ml_collections.ConfigDict({"text": {"length": 5}, "data_options": {}, "image_size": 8})
    assert modalities.kinds(old) == {"image": "image", "text": "text"}
    assert modalities.source_options(old) == {"image_size": 8} and not modalities.further(old)
    assert not modalities.token_weights(old)


def test_the_order_of_the_sequence_is_that_of_the_names():
    vocab = plan.vocab_of(config())
    assert [m.name for m in vocab.modalities] == sorted(NAMES) == list(NAMES)
    assert [m.grid for m in vocab.modalities] == [(4, 4), (8, 8), (8, 2), None]
    assert modalities.token_weights(config()) == {"layout": 0.25}


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"smell": {"kind": "smell"}}, "modalities.smell.kind = 'smell', expected one of image"),
        ({"speech": {"kind": "text"}}, "modalities.speech of kind 'text': expected a name"),
        ({"map": {"kind": "layout"}}, "modalities.map: grid and classes are missing"),
        ({"sound": {"kind": "sound", "band": 3}}, "modalities.sound.band is unknown, expected"),
        ({"text": None}, "modalities has no 'text', expected image and text at least"),
        ({"sound": 3}, "modalities.sound = 3, expected a row such as {'kind': ...}"),
        ({"first": {"like": "image"}, "zz": 3}, "modalities.zz = 3, expected a row such as"),
        ({"samples": {"kind": "sound"}}, "'samples' is a task or a file of a run"),
        ({"a": {"kind": ["text"]}}, r"modalities.a.kind = \['text'\], expected one of image"),
        (
            {"long": {"kind": "length"}, "short": {"kind": "length"}},
            "modalities long and short are of kind length: expected one",
        ),
    ],
)
def test_a_bad_list_is_one_line(rows, message):
    listed = {"image": {"kind": "image"}, "text": {"kind": "text"}} | rows
    with pytest.raises(UserError, match=message):
        modalities.rows({"modalities": {n: row for n, row in listed.items() if row}})


@pytest.mark.parametrize(
    "name", [*tasks.ALIASES, "every", "edit", "outpaint", "upscale", "vq", "weights"]
)
@pytest.mark.parametrize("row", [{"kind": "length"}, {"like": "text"}])
def test_a_modality_is_not_named_like_a_task_or_a_file_of_a_run(name, row):
    listed = {"image": {"kind": "image"}, "text": {"kind": "text"}} | {name: row}
    message = f"^modalities.{name}.* expected another name|^modalities.{name} of kind"
    with pytest.raises(UserError, match=message):
        modalities.rows({"modalities": listed, "text": {"length": 3}})


ROWS = {  # of each kind, with all that it needs
    "sound": {},
    "layout": {"grid": (8, 8), "classes": 4},
    "embedding": {"dimensions": 32, "residuals": 4, "codes": 64},
    "features": {"count": 2, "width": 16},
    "coarse": {},
    "length": {},
}


def listed_with(kind: str, row: dict) -> dict:
    """A list with one more row, `a`, of a kind or like another."""
    own = row if "like" in row else {"kind": kind, **ROWS[kind], **row}
    both = {"image": {"kind": "image"}, "text": {"kind": "text"}}
    return {"modalities": both | {"a": own}, "text": {"length": 3}}


WHOLE, PAIR = "a whole number of at least", r"\(rows, columns\), two whole numbers of at least 1"


def test_no_field_and_no_schedule_are_none():
    """As in runs of before."""
    found = modalities.rows(listed_with("sound", {"field": None, "schedule": None}))
    assert found["a"]["field"] is None


@pytest.mark.parametrize(
    "kind, field, value, expected",
    [
        ("layout", "grid", 8, PAIR),
        ("layout", "grid", (8,), PAIR),
        ("layout", "grid", (8, 0), PAIR),
        ("layout", "grid", "88", PAIR),
        ("layout", "classes", "4", f"{WHOLE} 1"),
        ("layout", "classes", True, f"{WHOLE} 1"),
        ("features", "count", "2", f"{WHOLE} 1"),
        ("features", "width", 0, f"{WHOLE} 1"),
        ("features", "dropped", 1.5, "a number from 0 to 1"),
        ("sound", "rate", "8000", f"{WHOLE} 1"),
        ("sound", "samples", 8192.0, f"{WHOLE} 1"),
        ("sound", "window", None, f"{WHOLE} 2"),
        ("sound", "scale", 3, "one of mel, log"),
        ("sound", "high", 0, "a number above 0"),
        ("sound", "floor", float("nan"), "a number"),
        ("sound", "vq", 3, "settings, such as {'steps': 800}"),
        ("sound", "field", 3, "a string"),
        ("embedding", "dimensions", 0, f"{WHOLE} 1"),
        ("embedding", "codes", 1, f"{WHOLE} 2"),
        ("embedding", "vectors", 4096.0, f"{WHOLE} 1"),
        ("coarse", "factor", 3, "one of 2, 4"),
        ("coarse", "preview", -0.1, "a number from 0 to 1"),
        ("length", "weight", "a", "a number of at least 0"),
        ("length", "weight", -1, "a number of at least 0"),
        ("length", "schedule", 3, "a string"),
    ],
)
def test_a_field_of_another_type_or_out_of_its_range_is_one_line(kind, field, value, expected):
    modalities.rows(listed_with(kind, {}))
    said = re.escape(f"modalities.a.{field} = {value!r}, expected ")
    with pytest.raises(UserError, match=f"^{said}{expected}$"):
        modalities.rows(listed_with(kind, {field: value}))


@pytest.mark.parametrize("field, value", [("weight", -0.5), ("segment", 3), ("field", ["x"])])
def test_a_field_of_a_reference_is_of_its_type_and_in_its_range(field, value):
    row = {"like": "text", "segment": "seen", "field": "also", "weight": 0}
    modalities.rows(listed_with("", row))
    with pytest.raises(UserError, match=f"^modalities.a.{field} = .*, expected a "):
        modalities.rows(listed_with("", row | {field: value}))


def test_a_row_of_a_file_has_lists_for_pairs_and_whole_numbers_for_others():
    row = {"grid": [8, 4], "weight": 1}
    assert modalities.rows(listed_with("layout", row))["a"]["grid"] == [8, 4]


def test_every_setting_of_a_spectrogram_is_a_field_of_a_sound():
    names = {field.name for field in dataclasses.fields(Spectrogram)}
    assert names == set(modalities.KINDS["sound"].own) - {"vq", "field"}


def test_a_command_with_one_side_of_a_grid_is_one_line():
    c = any_config.get_config("smoke")
    c.modalities.layout.grid = (8,)
    with pytest.raises(UserError, match=r"^modalities.layout.grid = \(8,\), expected \(rows"):
        stages.check(c)


def test_a_missing_tokenizer_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file 'vq/tokenizer', the tokenizer of the im"):
        build.load_tokenizers(tmp_path, config())


def test_data_without_a_modality_are_one_line():
    with pytest.raises(ValueError, match="glyphs has no 'layout'"):
        sources.open_source("glyphs", "train", size=1, further=("layout", "sound"))


# ---- The token cache ----------------------------------------------------------------------------


def test_the_cache_keeps_the_ids_of_every_modality(tmp_path, pipe):
    source = sources.open_source("shapes", "train", size=5, further=("layout", "sound"))
    encode = further.encoders(pipe.config, pipe.tokenizers)
    cache = token_cache.write_cache(
        source,
        pipe.codecs["image"].encode,
        lambda texts: pipe.codecs["text"].encode(texts, False),
        tmp_path,
        settings={},
        views=Views(32),
        batch_size=4,
        encode_further=encode,
    )
    rows = cache.pairs([3, 0, 4], [0, 0, 0], [1, 0, 2])
    assert {n: ids.shape[1] for n, ids in rows.items()} == {
        m.name: m.length for m in pipe.vocab.modalities
    }
    for name in ("layout", "sound"):
        truth = encode[name]([source[i].extra[name] for i in (3, 0, 4)])
        np.testing.assert_array_equal(rows[name], truth)
    texts = pipe.codecs["text"].encode([source[3].captions[1]], False)[0]
    np.testing.assert_array_equal(rows["text"][0], texts)
    assert cache.read([1])["text"].shape == (1, 4, 13)


# ---- Generation ---------------------------------------------------------------------------------


DEFAULTS = dict.fromkeys(("negative_prompt", "mask", "num", "share", "rounds", "out"))
DEFAULTS |= dict.fromkeys(("dual_encoder", "weights", "length", "begin_with"))
DEFAULTS |= dict.fromkeys(("begin_steps", "factor"))
DEFAULTS |= {
    n: [] for n in ("given", "prompt", "image", "weight", "extend", "paint", "scorer", "weigh")
}
DEFAULTS |= {"by": "bound"}
DEFAULTS |= {"seed": 0, "batch_size": 4, "best_of": 1, "blank_tokens": 1}


@pytest.fixture
def sample(pipe, run, monkeypatch):
    """`generate.sample` with these flags; the run is loaded and compiled once."""
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)
    return functools.partial(_sample, run)


def _sample(folder, out, **typed):
    return generate.sample(folder, types.SimpleNamespace(**DEFAULTS | {"out": out} | typed))


def test_each_kind_is_written_as_a_file_of_its_own(sample, tmp_path):
    task, given = "sound,layout,image|text", ["text=a small red circle"]
    out = sample(tmp_path / "a", task=task, given=given, num=2)
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert [line["sound"] for line in lines] == ["sound-0000.wav", "sound-0001.wav"]
    assert lines[1]["layout"] == "layout-0001.json" and lines[1]["image"] == "image-0001.png"
    assert lines[0]["given"] == {"text": "a small red circle"}
    wave, rate = sounds.read(out / "sound-0001.wav")
    assert rate == 8000 and wave.shape == (8192,)
    assert layouts.read(out / "layout-0001.json").shape == (8, 8)
    images = [pixels.read(out / f"image-000{i}.png") for i in range(2)]
    expected = contact_sheet.sheet(images, ["a small red circle"] * 2)
    np.testing.assert_array_equal(pixels.read(out / "sheet.png"), expected)

    given = [f"sound={out}/sound-0000.wav", f"layout={out}/layout-0001.json"]
    back = sample(tmp_path / "b", task="text|sound,layout", given=given)
    (line,) = [json.loads(line) for line in (back / "samples.jsonl").read_text().splitlines()]
    assert isinstance(line["caption"], str) and set(line["given"]) == {"sound", "layout"}
    seen = layouts.picture(layouts.read(out / "layout-0001.json"))  # a text is below what it tells
    expected = contact_sheet.sheet([seen], [line["caption"]])
    np.testing.assert_array_equal(pixels.read(back / "sheet.png"), expected)


def test_what_it_says_to_try_next_reads_files_that_are_there(sample, tmp_path, capsys):
    np.save(tmp_path / "map.npy", np.eye(8, dtype=int))
    sample(tmp_path / "a", task="sound|layout", given=[f"layout={tmp_path}/map.npy"])
    lines = [line for line in capsys.readouterr().out.splitlines() if "--task=" in line]
    assert [line.split('"')[1] for line in lines] == ["text|layout", "text|sound"]
    for line, file in zip(lines, ("layout-0000.json", "sound-0000.wav"), strict=True):
        assert line.endswith(f"={tmp_path}/a/{file}") and (tmp_path / "a" / file).exists()


@pytest.mark.parametrize("task", ("sound|text", "layout|text", "layout,sound|text", "sound|layout"))
def test_a_sheet_shows_what_is_no_picture_as_well(sample, tmp_path, task):
    """A layout in its colours, else a sound by its spectrogram, low bands below."""
    told = "a small red circle" if "text" in task else ""
    np.save(tmp_path / "map.npy", np.eye(8, dtype=int))
    given = ["text=" + told] if told else [f"layout={tmp_path}/map.npy"]
    out = sample(tmp_path / "a", task=task, given=given, num=2)
    sheet = pixels.read(out / "sheet.png")
    if "layout" in task.partition("|")[0]:
        shown = [layouts.picture(layouts.read(out / f"layout-000{i}.json")) for i in range(2)]
    else:
        settings = Spectrogram.of(config().modalities.sound)
        waves = np.stack([sounds.read(out / f"sound-000{i}.wav")[0] for i in range(2)])
        shown = list(settings.picture(waves)[:, ::-1])
    expected = contact_sheet.sheet(shown, [told] * 2)
    assert sheet.shape == expected.shape
    near = abs(sheet.astype(int) - expected) <= 8  # a WAV has 16 bits a sample
    assert near.mean() > 0.99


@pytest.mark.parametrize(
    "task, given, message",
    [
        ("sound|text", [], "--prompt is missing, --task=sound|text needs it"),
        ("sound|text", ["text=a", "layout=b.json"], "--given layout= means nothing"),
        ("smell|text", ["text=a"], "task 'smell|text' names 'smell': expected FREE"),
        ("sound|", [], "nothing is given, expected FREE"),
        ("|sound", [], "nothing is generated, expected FREE"),
    ],
)
def test_a_rule_that_does_not_fit_is_one_line(sample, tmp_path, task, given, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        sample(tmp_path / "a", task=task, given=given)
    assert not (tmp_path / "a").exists()


def test_every_given_token_stays_and_values_come_from_arrays(pipe):
    (record,) = sources.open_source("shapes", "test", size=1, further=("layout", "sound"))
    given = {name: record.extra[name] for name in ("layout", "sound")}
    result = pipe.generate("image|layout,sound", given=given, num=3)
    ids = pipe.vocab.split(result.tokens)
    for name, value in given.items():
        np.testing.assert_array_equal(ids[name][2], pipe.codecs[name].encode(value[None], True)[0])
    assert set(result.values) == {"image", "layout", "sound"} and len(result.images) == 3
    assert isinstance(Result.join([result, result]).values["sound"], np.ndarray)


@pytest.mark.parametrize("begin_with", (None, ()))
def test_a_single_value_counts_for_all_values_of_another_modality(pipe, begin_with):
    sound, maps = np.zeros(8192, np.float32), np.arange(128).reshape(2, 8, 8) % 4
    asked = {"num": 2, "begin_with": begin_with, "seed": 3}
    one = pipe.generate("text|sound,layout", given={"sound": sound, "layout": maps}, **asked)
    given = {"sound": np.stack([sound] * 2), "layout": maps}
    two = pipe.generate("text|sound,layout", given=given, **asked)
    np.testing.assert_array_equal(one.tokens, two.tokens)
    given["layout"] = np.concatenate([maps, maps[:1]])
    with pytest.raises(UserError, match=r"^different numbers of samples: sound 2, layout 3$"):
        pipe.generate("text|sound,layout", given=given, **asked)
    with pytest.raises(UserError, match=r"^different numbers of samples: sound 1, count 2$"):
        pipe.generate("text|sound", 2, given={"sound": sound}, begin_with=begin_with)


def test_nested_lists_of_numbers_are_arrays(pipe):
    maps = np.arange(128).reshape(2, 8, 8) % 4
    for given in (maps[1], maps, list(maps)):
        found = values.ids(pipe, "layout", np.array(given).tolist())
        np.testing.assert_array_equal(found, values.ids(pipe, "layout", given))
    sound = np.sin(np.arange(8192.0) / 9)
    found = values.ids(pipe, "sound", sound.tolist())
    np.testing.assert_array_equal(found, values.ids(pipe, "sound", sound))
    np.testing.assert_array_equal(found, values.ids(pipe, "sound", [sound.tolist()]))


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("layout", np.zeros((4, 4), int), "is int64[4, 4], expected int[8, 8], or ids int[n, 64]"),
        ("sound", np.zeros((2, 9), int), "is int64[2, 9], expected float[8192], or ids int[n, 16]"),
        ("layout", [[0] * 8] * 7 + [[0]], "given list '[[0, 0, "),
        ("layout", [[0.5] * 8] * 8, "layouts are float64[1, 8, 8], expected int[B, 8, 8]"),
        ("sound", np.full(8192, np.nan), "sounds have numbers that are not finite: leave them out"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(pipe, name, value, message):
    with pytest.raises(UserError) as caught:
        values.ids(pipe, name, value)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_another_vocoder_is_put_into_a_pipeline_that_was_used_already(pipe):
    asked = {"given": {"text": "a small red circle"}, "seed": 3}
    before = pipe.generate("sound|text", **asked)
    constant = lambda settings, pictures: np.full((len(pictures), settings.samples), 0.25)  # noqa: E731
    mine = dataclasses.replace(pipe.tokenizers["sound"], vocoder=constant)
    with pytest.raises(TypeError):
        pipe.tokenizers["sound"] = mine
    heard = pipe.with_tokenizer("sound", mine)
    after = heard.generate("sound|text", **asked)
    assert (after.values["sound"] == 0.25).all() and heard._sample is pipe._sample
    np.testing.assert_array_equal(after.tokens, before.tokens)
    again = pipe.generate("sound|text", **asked).values["sound"]
    np.testing.assert_array_equal(again, before.values["sound"])


def test_a_pipeline_can_be_copied_and_its_tokenizers_pickled():
    own = pipeline.Pipeline.load().tokenizers
    copied = copy.deepcopy(pipeline.Pipeline.load()).tokenizers
    for again in (copied, pickle.loads(pickle.dumps(own))):
        assert again["image"].hash == own["image"].hash
        with pytest.raises(TypeError, match=r"use pipe\.with_tokenizer"):
            again["image"] = None
        with pytest.raises(TypeError, match=r"use pipe\.with_tokenizer"):
            again.update(image=None)


def test_a_tokenizer_with_other_codes_is_refused(pipe):
    with pytest.raises(
        UserError, match=r"^with_tokenizer: 'smell' is not a modality, expected one of"
    ):
        pipe.with_tokenizer("smell", pipe.tokenizers["sound"])
    for other in (pipe.tokenizers["image"], None):
        with pytest.raises(UserError, match=r"of 'sound' is .*, expected '.*': this network knows"):
            pipe.with_tokenizer("sound", other)


def test_a_folder_to_pass_on_has_every_tokenizer(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "sound_tokenizer.safetensors").exists()
    again = pipeline.Pipeline.from_pretrained(tmp_path / "out")
    assert again.vocab == pipe.vocab
    assert again.tokenizers["sound"].hash == pipe.tokenizers["sound"].hash


def test_the_ids_of_a_modality_that_a_task_leaves_out_may_be_missing(pipe):
    tokens = {"text": np.ones((2, 13), int), "sound": np.ones((2, 16), int)}
    whole = chains.scored(pipe.vocab, "sound|text", tokens)
    assert sorted(whole) == sorted(NAMES) and not whole["layout"].any()
    with pytest.raises(
        ValueError, match=r"^score: task 'image\|text' needs 'image', which is miss"
    ):
        chains.scored(pipe.vocab, "image|text", {"text": tokens["text"]})


# ---- Numbers and the report ---------------------------------------------------------------------


def test_every_stands_for_all_directions(pipe):
    assert rules.every(("a", "b")) == ["a|b", "b|a", "a,b"]
    assert rules.every(("a", "b", "v"), ("v",)) == [
        "a|b", "a|v", "b|a", "b|v", "a|b,v", "b|a,v", "a,b",
    ]  # fmt: skip
    found = rules.asked(pipe.config, pipe.vocab)
    assert len(found) == 4 * 3 + 4 + 1 and "sound|image,layout,text" in found


def test_every_rule_gets_its_numbers_and_its_samples_in_the_report(pipe, tmp_path):
    asked = ("text|sound", "image,layout,sound,text")
    measured = pipe.with_config(evaluate={"rules": asked, "samples": 4, "batch_size": 4})
    items = held_out.read(measured, 4)
    found = rules.measure(measured, items, tmp_path, {})
    for rule in asked:
        assert found[rule]["count"] == 4 and found[rule]["given_tokens_changed"] == 0
    assert len(found[asked[1]]["pairwise"]) == 6 and found[asked[1]]["agreement"]["count"] == 4
    again = rules.measure(measured, items, tmp_path, {})
    assert again == found  # the samples are read, with the seconds that they took
    page = rule_sections.show(tmp_path, {"rules": found}, measured.config.to_dict())
    assert page.count("<audio controls") == 8 and "Directions" in page and "all at once" in page


def test_samples_of_other_sounds_are_not_taken_for_those_of_these(pipe, monkeypatch):
    items, stream = held_out.read(pipe, 2), held_out.stream

    def quieter(*args, **options):
        for example in stream(*args, **options):
            example.extra["sound"] = example.extra["sound"] * 0.5
            yield example

    monkeypatch.setattr(held_out, "stream", quieter)
    assert held_out.read(pipe, 2).hash != items.hash


def test_the_directions_do_not_depend_on_how_a_rule_is_written(tmp_path):
    right = {"agreement": {"rate": 0.5, "error": 0.1}}
    written = {"sound|text, image": right, "text,sound,image": right, "image|text": right}
    matrix = rule_sections._matrix(["image", "text", "sound"], written)
    assert matrix.count("50.0 %") == 3 and "all at once" in matrix
    short = rule_sections._matrix(["image", "text"], {"t2i": right})
    assert short == rule_sections._matrix(["image", "text"], {"image|text": right})
    np.savez(tmp_path / "t2i.npz", image=np.zeros((1, 2, 2, 3), np.uint8), text=["a word"])
    rows = {"image": {"kind": "image"}, "text": {"kind": "text"}}
    shown = rule_sections._samples(tmp_path / "t2i.npz", "t2i", rows)
    assert "text, given" in shown and "image, generated" in shown


def test_the_truth_agrees_with_itself_and_not_with_another_scene(pipe):
    items = held_out.read(pipe, 4)
    read = {name: rules._truth(pipe, items, name, 4) for name in NAMES}
    assert rules._agree(items.world, read) == [True] * 4
    read["sound"] = [*read["sound"][1:], None]
    assert rules._agree(items.world, read) == [False] * 4


def test_a_rule_of_any_run_is_parsed(pipe):
    assert tasks.parse(pipe.vocab, "sound|text") == (("sound",), ("text",))
    assert pipe.can("layout|sound") and not pipe.can("smell|sound") and pipe.guidable


@pytest.mark.long
def test_the_main_job_learns_four_modalities_from_data_to_report(tmp_path):
    c = config()
    c.data_options.size = 32
    c.vq.update({"steps": 4, "plain_steps": 1, "warmup": 1, "pictures": 32, "batch_size": 8})
    c.modalities.sound.vq.update({"steps": 4, "plain_steps": 1, "pictures": 32})
    c.train.update({"steps": 4, "warmup": 1, "batch_size": 8, "held_out": 4})
    c.evaluate.update({"bound_samples": 4, "rules": ("sound|text", "layout|image")})
    stages.run(c, tmp_path)
    result = files.read_json(tmp_path / "evaluation.json")
    assert set(result["rules"]) == {"sound|text", "layout|image"} and result["errors"] == []
    assert (tmp_path / "sound" / "tokenizer").exists()
    page = (tmp_path / "report.html").read_text()
    assert "Any from any" in page and "<audio controls" in page
    stages.export(tmp_path, tmp_path / "out")
    exported = pipeline.Pipeline.load(tmp_path / "out")
    assert [m.name for m in exported.vocab.modalities] == list(NAMES)


def test_a_negative_prompt_of_what_no_weighted_prompt_has_is_refused(pipe):
    ids = {"sound": np.zeros((1, pipe.vocab.modalities[pipe.vocab.index("sound")].length), int)}
    prompts, given = [("a red circle", 0.7), ("a blue square", 0.6)], ids
    with pytest.raises(ValueError, match="negative has 'sound', and no prompt has: expected one"):
        pipe.generate("image|text,sound", given=given, prompts=prompts, negative=ids)


def test_a_run_of_records_that_lack_some_knows_what_is_absent(pipe):
    everything = dict.fromkeys(pipe.config.train.mixture, 0.0) | {",".join(NAMES): 1.0}
    assert not pipe.with_config(train={"mixture": everything}).guidable
    assert pipe.with_config(train={"mixture": everything}, incomplete=True).guidable
