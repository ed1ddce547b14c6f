"""The page's server without a browser: it checks, batches, forgets, and says how to do it again."""

import base64
import concurrent.futures
import contextlib
import io
import re
import shlex
import threading
import types
import zlib

import numpy as np
import pytest
from PIL import Image

from udd_jax import pipeline
from udd_jax.data import pixels
from udd_jax.demo import painter, recipes, requests, service, views


@pytest.fixture(scope="module")
def served(pipe):
    made = service.Service(pipe)
    yield made
    made.close()


@pytest.fixture(scope="module")
def picture():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)


@contextlib.contextmanager
def busy(served):
    """The service computes until the block ends, so that everything else waits."""
    over, begun = threading.Event(), threading.Event()

    def compute(_):
        begun.set()
        over.wait(60)

    future = served.submit(requests.Alone(compute))
    assert begun.wait(60)
    yield
    over.set()
    future.result(60)


def test_requests_that_wait_are_one_batch_and_each_gets_its_own_samples(pipe, served):
    with busy(served):
        asked = [requests.make(pipe, "pair", count=n, seed=s) for n, s in ((1, 5), (2, 6), (1, 7))]
        futures = [served.submit(request) for request in asked]
    found = [future.result(120) for future in futures]
    assert served.batches[-1] == 3
    for request, result in zip(asked, found, strict=True):
        alone = pipe.pairs(len(request), seed=request.seed, trace=requests.FRAMES)
        np.testing.assert_array_equal(result.tokens, alone.tokens)
        assert result.captions == alone.captions


def test_requests_that_differ_in_more_than_the_seed_are_not_one_batch(pipe, served):
    with busy(served):
        tasks = ("pair", "text", "pair")
        futures = [served.submit(requests.make(pipe, task, seed=1)) for task in tasks]
    found = [future.result(120) for future in futures]
    assert list(served.batches)[-2:] == [2, 1]
    assert [result.images is None for result in found] == [False, True, False]


def test_a_batch_has_at_most_so_many_samples(pipe, served, monkeypatch):
    monkeypatch.setattr(requests, "MOST", 4)
    with busy(served):
        futures = [served.submit(requests.make(pipe, "pair", count=3, seed=s)) for s in (1, 2)]
        futures += [served.submit(requests.make(pipe, "pair", count=1, seed=3))]
    assert [len(future.result(120).tokens) for future in futures] == [3, 3, 1]
    assert list(served.batches)[-2:] == [2, 1]


def test_a_request_that_is_cancelled_while_it_waits_is_dropped_and_others_go_on(pipe, served):
    with busy(served):
        first, second = (served.submit(requests.make(pipe, "pair", seed=s)) for s in (1, 2))
        assert first.cancel()
    assert len(second.result(120).tokens) == 1
    with pytest.raises(concurrent.futures.CancelledError):
        first.result(1)


def test_a_fault_in_a_batch_reaches_its_requests_and_the_service_goes_on(served):
    def fault(_):
        raise RuntimeError("fault")

    with pytest.raises(RuntimeError, match="fault"):
        served.submit(requests.Alone(fault)).result(60)
    assert served.submit(requests.Alone(lambda pipe: 7)).result(60) == 7


def test_too_many_that_wait_are_refused(pipe, served, monkeypatch):
    monkeypatch.setattr(service, "WAITING", 1)
    request = requests.make(pipe, "pair")
    with busy(served):
        kept = served.submit(request)
        with pytest.raises(ValueError, match="1 requests wait already: try again"):
            served.submit(request)
    assert len(kept.result(120).tokens) == 1


def test_the_bits_of_a_pair_are_those_of_python(pipe, served, picture):
    found = served.submit(requests.score(pipe, picture, "a red circle", seed=3)).result(120)
    each = pipe.log_likelihood(picture[None], "a red circle", seed=3, each=True)[0]
    np.testing.assert_array_equal(found, each)
    shown = views.bits(pipe, picture, "a red circle", found)
    assert f"<strong>{-each.sum():.1f} bits" in shown


def test_a_piece_without_a_letter_is_not_the_end_of_a_text(pipe, picture, monkeypatch):
    each = np.arange(pipe.vocab.length) / -10
    real = type(pipe.tokenizers["text"]).piece
    silent = pipe.codecs["text"].encode(["a red circle"], True)[0][1]
    piece = lambda self, i: "" if i == silent else real(self, i)  # noqa: E731
    monkeypatch.setattr(type(pipe.tokenizers["text"]), "piece", piece)
    shown = views.bits(pipe, picture, "a red circle", each)
    words = re.findall(r'scope="row">(.*?)</th>', shown)
    assert words[1] == "▁" and words.count("(end)") == 1 and words[-1] == "(padding)"


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("pair", {"count": 17}, "number of samples = 17, expected at most 16"),
        ("pair", {"count": 0}, "number of samples = 0, expected a whole number, at least 1"),
        ("pair", {"seed": 2**32}, "seed = 4294967296, expected 0 to 4294967295"),
        ("pair", {"seed": -1}, "seed = -1"),
        ("t2i", {"text": ""}, "prompt: "),
        ("t2i", {"text": "a" * 2001}, "the text has 2001 characters, expected at most 2000"),
        ("t2i", {"text": "red " * 20}, "more than the text length"),
        ("t2i", {"text": "red", "negative": "a" * 2001}, "the negative prompt has 2001"),
        ("t2i", {"text": "red", "settings": {"steps": 7}}, "more than the T = 6"),
        ("t2i", {"text": "red", "settings": {"temperature": 0}}, "sample.temperature = 0"),
        ("i2t", {}, "the picture is missing"),
        ("infill", {}, "images and captions are both missing"),
        ("infill", {"text": "a red circle"}, "nothing is missing"),
        ("infill", {"text": "a ___", "blank_tokens": 50}, "more than the text length"),
        ("infill", {"text": "a ___", "blank_tokens": 2**40}, "more than the text length"),
        (
            "infill",
            {"text": "a ___", "blank_tokens": None},
            "blank_tokens = None, expected a whole",
        ),
        (
            "infill",
            {"text": "a ___", "blank_tokens": 0},
            "blank_tokens = 0, expected a whole number",
        ),
    ],
)
def test_what_is_too_large_or_missing_is_refused_in_a_sentence(pipe, task, options, message):
    with pytest.raises(ValueError) as caught:
        requests.make(pipe, task, **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def head_of(width, height):
    """A PNG file whose head says a size, without the pixels."""
    file = io.BytesIO()
    Image.new("1", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = width.to_bytes(4) + height.to_bytes(4)
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a picture", "the file is not a picture of a format that is read"),
        (b"", "the file is not a picture"),
        (b"%!PS-Adobe", "the file is not a picture"),
        (head_of(6000, 6000), "6000 x 6000, expected at most 25,000,000 pixels"),
        (b"x" * (requests.BYTES + 1), "20,000,001 bytes, expected at most 20,000,000"),
    ],
    ids=["text", "empty", "postscript", "pixels", "bytes"],
)
def test_a_file_that_is_no_picture_or_too_large_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        requests.read_picture(data, 32)


def seen_by(channels: int):
    """What a page asks of the image tokenizer of a run."""
    return types.SimpleNamespace(image_size=32, grid=(4, 4), shape=(32, 32, channels))


SEEN_BY = seen_by(3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_painted_picture_comes_back_bit_for_bit(picture, channels):
    picture = pixels.in_channels(picture, channels)
    picture = np.where(np.eye(32)[..., None] == 1, picture, picture // 2)  # also half clear
    sent = painter.value(picture) | {"mask": "1" + "0" * 14 + "1"}
    image, mask = painter.read(sent, seen_by(channels))
    np.testing.assert_array_equal(image, picture)
    assert mask[:8, :8].all() and mask[24:, 24:].all() and mask.sum() == 128
    assert painter.read(painter.value(), SEEN_BY) == (None, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "file:///etc/passwd"}, "was not sent as a PNG"),
        ({"image": painter.START + "%%%"}, "was not sent as a PNG"),
        ({"image": painter.START + base64.b64encode(b"text").decode()}, "is not a picture"),
        ({"mask": "1" * 15}, "the mask does not fit"),
        ({"mask": "x" * 16}, "the mask does not fit"),
    ],
)
def test_a_value_that_no_page_sends_is_refused(picture, change, message):
    with pytest.raises(ValueError, match=message):
        painter.read(painter.value(picture) | change, SEEN_BY)


def test_a_view_shows_texts_and_runs_none_of_them():
    hostile = '<img src=x onerror="alert(1)">'
    for shown in (views.note(hostile), views.captions([hostile])):
        assert "<img" not in shown and "&lt;img" in shown


CASES = {
    "t2i": {
        "text": "a red circle",
        "count": 2,
        "seed": 3,
        "settings": {"sampler": "maskgit", "steps": 2},
    },
    "i2t": {"image": True, "count": 3},
    "pair": {"count": 4, "seed": 1},
    "image": {"count": 1},
    "text": {"count": 2, "seed": 9},
    "infill": {"image": True, "mask": True, "text": 'a "___" circle', "blank_tokens": 2},
}


@pytest.mark.parametrize("task", CASES)
def test_the_lines_of_python_make_the_result_again(
    pipe, served, tiny_run, picture, task, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline.Pipeline, "load", {str(tiny_run): pipe}.get)  # loaded already
    case, mask = {"settings": {}, **CASES[task]}, np.zeros((32, 32), bool)
    mask[8:16, :24] = True
    hidden = pixels.hide(picture, mask)
    pixels.write_png(tmp_path / "image.png", hidden)
    pixels.write_png(tmp_path / "mask.png", np.repeat(mask[..., None] * np.uint8(255), 3, 2))
    given = {"image": hidden if "image" in case else None}
    given["mask"] = mask if "mask" in case else None
    request = requests.make(pipe, task, **{**case, **given})
    result = served.submit(request).result(120)
    lines = recipes.python(task, tiny_run, **case)
    with contextlib.chdir(tmp_path):
        found = {}
        exec(lines, found)
    np.testing.assert_array_equal(found["result"].tokens, result.tokens)


def test_the_command_names_all_that_matters_and_quotes_it():
    line = recipes.command("infill", "my runs/a", **{**CASES["infill"], "settings": {"top_r": 0.9}})
    assert shlex.split(line) == [
        "udd_jax", "--mode=sample", "--workdir=my runs/a", "--task=infill", "--image=image.png",
        "--mask=mask.png", '--prompt=a "___" circle', "--blank_tokens=2", "--num=1", "--seed=0",
        "--top_r=0.9",
    ]  # fmt: skip
    assert recipes.command("t2i", text="a b", count=2, settings={}) == (
        "udd_jax --mode=sample '--prompt=a b' --num=2 --seed=0"
    )


def test_a_chain_has_its_moments_and_the_last_is_seen(pipe, served):
    result = served.submit(requests.make(pipe, "pair")).result(120)
    shown = views.chain(pipe, result)
    assert shown.count('class="moment"') == requests.FRAMES
    assert shown.count('class="moment" hidden') == requests.FRAMES - 1
    assert 'class="moment">' in shown.rpartition('class="moment" hidden')[2]


def test_a_chain_of_texts_alone_has_no_picture(pipe, served):
    result = served.submit(requests.make(pipe, "text")).result(120)
    shown = views.chain(pipe, result)
    assert "<img" not in shown and shown.count('class="pieces"') == requests.FRAMES
