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


def tries(name, task):
    config = CONFIGS[name]
    pipe = types.SimpleNamespace(vocab=plan.vocab_of(config), config=config)
    pipe.kinds = modalities.kinds(config)
    return pipe, hints.tries(pipe, "udd_jax --mode=sample", task, "out/a.png")


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
        'udd_jax --mode=sample --task="text|sound" --given sound=a.wav',
    ]


def test_the_task_that_was_done_is_not_said_again():
    for task in ("t2i", "image|text"):
        _, lines = tries("t2i", task)
        assert [line.split()[2] for line in lines] == ["--task=pair", "--task=i2t", "--task=text"]
    assert len(tries("t2i", "infill")[1]) == 3


def test_a_run_of_one_task_has_nothing_else_to_try():
    pipe, _ = tries("t2i", None)
    pipe.config = pipe.config.copy_and_resolve_references()
    pipe.config.train.mixture = {"i2t": 1.0, "t2i": 0.0}
    assert hints.tries(pipe, "udd_jax", "i2t", "a.png") == []
    assert hints.tries(pipe, "udd_jax", None, "a.png") == ["udd_jax --task=i2t --image=a.png"]
