"""Steering on the page's server: it is checked, computed, and said how to do it again."""

import contextlib
import dataclasses
import shlex
import types

import numpy as np
import pytest

from udd_jax import command_line, generate, pipeline
from udd_jax.data import pixels
from udd_jax.demo import painter, recipes, requests, steering

TEXT = "a red circle"
UPPER = {"image": "", "mask": "1" * 8 + "0" * 8, "at": 0}


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@pytest.fixture
def answered(pipe, monkeypatch):
    """A function that computes a request as the service does, without states."""
    monkeypatch.setattr(requests, "FRAMES", 0)  # the numbers of a chain are in test_service.py
    return lambda make: make().compute(pipe, [make()])[0]


def flags(words):
    """The flags and settings of a command line, as the real parser takes them."""
    command_line.FLAGS.unparse_flags()
    try:
        command_line.parse(words)
        command_line.check("sample")
        names = [name for name, modes in command_line.TAKES.items() if "sample" in modes]
        given = {name: command_line.FLAGS[name].value for name in names if name != "config"}
        return types.SimpleNamespace(**given), command_line.typed_settings()
    finally:
        for name in command_line.FLAGS:
            command_line.FLAGS[name].unparse()


def made_again(pipe, tiny_run, folder, files, task, result, monkeypatch, **shown):
    """Compares a result with those of the Python lines and of the command line."""
    monkeypatch.setattr(pipeline.Pipeline, "load", lambda directory: pipe)  # loaded already
    for name, image in files.items():
        pixels.write_png(folder / name, image)
    with contextlib.chdir(folder):
        found = {}
        exec(recipes.python(task, tiny_run, **shown), found)
        words = shlex.split(recipes.command(task, tiny_run, **shown))
        out = generate.sample(tiny_run, *flags([*words, f"--out={folder / 'out'}"]))
    again = getattr(found["result"], "images", found["result"])
    np.testing.assert_array_equal(again, result.images)
    for i, image in enumerate(result.images):
        np.testing.assert_array_equal(pixels.read(out / f"image-{i:04d}.png"), image)


ASKED = {
    "text": TEXT, "weight": 1, "prompts": [("a square", -0.5), ("", 3)], "count": 2,
    "phrases": [("red", UPPER), ("", painter.value())], "strength": 0.5,
    "like_kind": "content", "like_scale": 2, "best_of": 2,
}  # fmt: skip


@pytest.mark.long
def test_all_ways_at_once_are_made_again_by_both_recipes(
    pipe, answered, tiny_run, picture, tmp_path, monkeypatch
):
    steered = steering.read(pipe, "t2i", ASKED | {"like": painter.value(picture)})
    assert len(steered) == 4
    shown = {"text": TEXT, "count": 2, "seed": 3, "steered": steered}
    result = answered(lambda: requests.make(pipe, "t2i", **shown))
    files = {name: image for way in steered for name, image in way.files.items()}
    assert list(files) == ["paint-1.png", "like.png"]
    shown |= {"settings": {}}
    made_again(pipe, tiny_run, tmp_path, files, "t2i", result, monkeypatch, **shown)


def test_the_recipes_name_all_that_steers(pipe, picture):
    steered = steering.read(pipe, "t2i", ASKED | {"like": painter.value(picture)})
    shown = {"text": TEXT, "count": 2, "seed": 3, "settings": {}, "steered": steered}
    assert shlex.split(recipes.command("t2i", **shown))[2:] == [
        "--prompt=a red circle", "--weight=1", "--prompt=a square", "--weight=-0.5",
        "--paint=red=paint-1.png:0.5", "--best_of=2", "--scorer=content=like.png:2", "--num=2",
        "--seed=3",
    ]  # fmt: skip
    assert recipes.python("t2i", **shown).splitlines()[-1] == (
        'result = pipe.text_to_image(prompts=[("a red circle", 1), ("a square", -0.5)], '
        'paint=[("red", Image.open("paint-1.png"), 0.5)], best_of=2, '
        'scorers=[(pipe.scorer("content", "like.png"), 2)], num=2, seed=3)'
    )


def test_an_edit_and_an_extension_are_made_again_by_both_recipes(
    pipe, answered, tiny_run, picture, tmp_path, monkeypatch
):
    shown, files = {"text": TEXT, "count": 2, "seed": 3}, {"image.png": picture}
    settings = {"guidance": 1.0}
    request = requests.edit(pipe, picture, share=0.5, rounds=2, settings=settings, **shown)
    edited = answered(lambda: request)
    options = {**shown, "image": True, "settings": request.settings}
    made_again(pipe, tiny_run, tmp_path, files, "edit", edited, monkeypatch, **options)
    request = requests.outpaint(pipe, picture, extend={"left": 8}, **shown)
    wide = answered(lambda: request)
    assert wide.images.shape == (2, 32, 40, 3)
    way = steering.Steered({}, ["--extend=left:8"], {"extend": "{'left': 8}"})
    options |= {"settings": request.settings, "steered": [way]}
    (tmp_path / "wide").mkdir()
    made_again(pipe, tiny_run, tmp_path / "wide", files, "outpaint", wide, monkeypatch, **options)


def test_the_states_of_an_edit_are_those_of_its_rounds(pipe, picture):
    options = {"rounds": 4, "guidance": 1.0, "seed": 3, "num": 2}
    found = pipe.edit(picture, TEXT, trace=2, **options)
    assert found.states.shape == (2, *found.tokens.shape)
    np.testing.assert_array_equal(found.states[-1], found.tokens)
    two = pipe.edit(picture, TEXT, **options | {"rounds": 2})
    np.testing.assert_array_equal(found.states[0], two.tokens)
    one = pipe.edit(picture, TEXT, **options | {"rounds": 1})
    np.testing.assert_array_equal(found.calls, 4 * one.calls)  # each hides as many codes


def test_what_is_steered_is_computed_alone_and_what_is_not_in_batches(pipe):
    steered = steering.read(pipe, "t2i", {"text": TEXT, "best_of": 2, "count": 1})
    first, second = (requests.make(pipe, "t2i", text=TEXT, steered=steered) for _ in range(2))
    assert first.group == first.group != second.group
    plain = [requests.make(pipe, "t2i", text=TEXT, seed=seed) for seed in (1, 2)]
    assert plain[0].group == plain[1].group != first.group


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"prompts": [("a square", -1)]}, "the weights of the prompts (1, -1) sum to 0"),
        ({"prompts": [("a", 1)] * 4}, "there are 5 prompts, expected at most 4"),
        ({"weight": None}, "weight None, expected a finite number"),
        ({"phrases": [("blue", UPPER)]}, "'blue' is not in the prompt 'a red circle'"),
        ({"phrases": [("red", painter.value())]}, "'red' has no place: paint where it belongs"),
        ({"phrases": [("", UPPER)]}, "there is a painted place without its words"),
        ({"phrases": [("red", {"mask": "1"})]}, "the mask does not fit the picture"),
        ({"phrases": [("red", UPPER)], "strength": -1}, "weight -1, expected a finite number"),
        ({"best_of": 17}, "best of = 17, expected at most 16"),
        ({"best_of": 16, "count": 8}, "8 samples of 16 candidates are 128, expected at most 64"),
        ({"best_of": 2, "by": "taste"}, "rerank: by = 'taste'"),
        ({"best_of": 2, "by": "match"}, "this run has no dual encoder"),
        ({"like": {"image": "file:///etc/passwd"}}, "was not sent as a PNG"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_steering_that_makes_no_sense_is_refused_in_a_sentence(pipe, asked, message):
    asked = {"text": TEXT, "count": 1, **asked}
    with pytest.raises(ValueError) as caught:
        steered = steering.read(pipe, "t2i", asked)
        requests.make(pipe, "t2i", text=TEXT, count=asked["count"], steered=steered)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": None}, "the picture is missing: choose one"),
        ({"text": ""}, "prompt"),
        ({"rounds": 65}, "rounds = 65, expected at most 64"),
        ({"rounds": 0}, "rounds = 0, expected a whole number, at least 1"),
        ({"share": 0}, "share = 0, expected a number in (0, 1]"),
        ({"count": 17}, "number of samples = 17, expected at most 16"),
        ({"extend": {"left": 33}}, "a side has 33 new pixels, at most 32"),
        ({"extend": {}}, "extend: nothing is to be added"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_edit_that_makes_no_sense_is_refused_before_it_is_computed(
    pipe, picture, options, message
):
    make = requests.outpaint if "extend" in options else requests.edit
    with pytest.raises(ValueError) as caught:
        make(pipe, **{"image": picture, "text": TEXT, **options})
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_shows_only_what_it_can(pipe):
    assert steering.ways(pipe, "t2i") == ["prompts", "paint", "best_of", "scorers"]
    assert steering.ways(pipe, "i2t") == ["best_of"]
    assert steering.ways(pipe, "infill") == steering.ways(pipe, "image") == ["scorers"]
    assert steering.ways(pipe, "text") == []
    matched = dataclasses.replace(pipe, matcher=object())  # its gradient reaches an image alone
    assert "scorers" not in steering.ways(matched, "i2t") + steering.ways(matched, "text")
    assert steering.rankings(pipe, "pair") == ["bound"]
    others = ("i2t", "image", "infill", "t2i", "text")
    unguided = pipe.with_config(train={"mixture": dict.fromkeys(others, 0.0)})
    assert "prompts" not in steering.ways(unguided, "t2i")
    plain = pipe.with_config(model={"kind": "autoregressive"})
    assert steering.ways(plain, "t2i") == ["best_of"]


def test_fields_that_are_left_as_they_are_steer_nothing(pipe):
    asked = {"text": TEXT, "weight": 1, "prompts": [("", 1)], "best_of": 1, "count": 4}
    asked |= {"phrases": [("", painter.value())], "like": painter.value(), "like_scale": 16}
    assert steering.read(pipe, "t2i", asked) == []


def test_the_best_of_several_pairs_that_begin_with_the_image_are_those_of_python(pipe):
    ordered = pipe.with_config(begin_with=("image",))
    steered = steering.read(ordered, "pair", {"best_of": 2, "count": 2})
    request = requests.make(ordered, "pair", count=2, seed=3, steered=steered)
    found = request.compute(ordered, [request])[0]
    np.testing.assert_array_equal(found.tokens, ordered.pairs(2, seed=3, best_of=2).tokens)


def test_guidance_that_the_page_has_from_another_task_is_left_out_where_nothing_could_lead(pipe):
    picture, half = pipe.example(1)[0][0], np.arange(32)[:, None].repeat(32, 1) < 16
    settings = {"guidance": 3.0, "temperature": 0.9}
    asked = [
        requests.make(pipe, "image", settings=settings),
        requests.make(pipe, "text", settings=settings),
        requests.make(pipe, "infill", image=picture, mask=half, settings=settings),
        requests.outpaint(pipe, picture, "", {"left": 8}, settings=settings),
    ]
    for request in asked:
        assert request.settings == {"temperature": 0.9}
        assert type(request).compute(pipe, [request])
    kept = (
        requests.make(pipe, "t2i", text=TEXT, settings=settings),
        requests.make(pipe, "pair", settings=settings),
        requests.outpaint(pipe, picture, TEXT, {"left": 8}, settings=settings),
    )
    assert all(request.settings == settings for request in kept)
