"""What a finished command says to try next: tasks that the run knows, as the flags take them."""

import shlex
import types

import pytest

from configs import any as any_config
from configs import compose, speech, t2i
from tests.demo import test_steering
from udd_jax import generate, hints, modalities
from udd_jax.training import plan

CONFIGS = {
    "t2i": t2i.get_config(),
    "pyramid": t2i.get_config("pyramid"),
    "any": any_config.get_config(),
    "compose": compose.get_config(),
    "speech": speech.get_config(),
}


THERE = {"image": "out/a.png", "coarse": "out/a.png", "sound": "out/a.wav", "layout": "out/a.json"}


def tries(name, task, there=THERE):
    config = CONFIGS[name]
    pipe = types.SimpleNamespace(vocab=plan.vocab_of(config), config=config)
    pipe.kinds = modalities.kinds(config)
    return pipe, hints.tries(pipe, "udd_jax --mode=sample", task, there)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_said_can_be_typed(name):
    pipe, lines = tries(name, "t2i")
    assert 1 <= len(lines) <= hints.MOST and "--prompt" not in lines[0]
    for line in lines:
        flags, _ = test_steering.flags(shlex.split(line))
        asked = generate._asked(flags)
        generate._check(flags, asked, pipe.vocab)


def test_a_run_without_pictures_is_not_asked_for_any():
    assert tries("speech", "text")[1] == [
        'udd_jax --mode=sample --task="sound,text"',
        'udd_jax --mode=sample --task="sound|text" --given text="a small red circle"',
        'udd_jax --mode=sample --task="text|sound" --given sound=out/a.wav',
    ]
    assert len(tries("speech", "text", {})[1]) == 2  # no sound is there to be given


def test_most_lines_are_about_what_is_neither_image_nor_text():
    start = "udd_jax --mode=sample"
    assert tries("any", "sound|text", {"sound": "out/my sound.wav"})[1] == [
        f'{start} --prompt="a small red circle" --num=16',
        f"{start} --task=\"text|sound\" --given sound='out/my sound.wav'",
        f'{start} --task="layout|text" --given text="a small red circle"',
    ]
    assert [line.split()[2] for line in tries("pyramid", "t2i")[1]] == [
        *("--task=pair", "--task=i2t", "--task=text")
    ]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("kinds", [(), ("image",), ("sound",), ("layout", "image")])
def test_what_is_given_in_a_line_is_there(name, kinds):
    there = {kind: THERE[kind] for kind in kinds}
    pipe, _ = tries(name, None)
    for task in pipe.config.train.mixture:
        for line in tries(name, task, there)[1]:
            flags, _ = test_steering.flags(shlex.split(line))
            asked = generate._asked(flags)
            paths = [p for n, rows in asked.items() if pipe.kinds[n] != "text" for p in rows]
            assert set(paths) <= set(there.values())


def test_the_task_that_was_done_is_not_said_again():
    for task in ("t2i", "image|text"):
        _, lines = tries("t2i", task)
        assert [line.split()[2] for line in lines] == ["--task=pair", "--task=i2t", "--task=text"]
    assert len(tries("t2i", "infill")[1]) == 3


def test_a_run_of_one_task_has_nothing_else_to_try():
    pipe, _ = tries("t2i", None)
    pipe.config = pipe.config.copy_and_resolve_references()
    pipe.config.train.mixture = {"i2t": 1.0, "t2i": 0.0}
    assert hints.tries(pipe, "udd_jax", "i2t", {"image": "a.png"}) == []
    assert hints.tries(pipe, "udd_jax", None, {}) == []
    assert hints.tries(pipe, "udd_jax", None, {"image": "a.png"}) == [
        "udd_jax --task=i2t --image=a.png"
    ]
