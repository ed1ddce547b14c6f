"""The nearest training pair, against all pairs one by one, also with further modalities."""

import numpy as np
import pytest

from udd_jax.data import reading, token_cache
from udd_jax.data.records import Record
from udd_jax.diffusion.vocab import Modality, Vocab
from udd_jax.evaluation import nearest_training

COUNT, CODES, PIECES = 12, 5, 4  # classes of the image and of the text
IMAGE, TEXT = Modality("image", 4, CODES, (2, 2)), Modality("text", 3, PIECES)
VOCABS = {
    "two": Vocab((IMAGE, TEXT)),
    "four": Vocab((IMAGE, Modality("layout", 2, 3), Modality("sound", 5, 6), TEXT)),
}


@pytest.fixture(scope="module", params=VOCABS)
def trained(request, tmp_path_factory):
    """(vocabulary, cache of 12 items with two captions, image int[12, 4], text int[12, 2, 3])"""
    vocab, rng = VOCABS[request.param], np.random.default_rng(0)
    codes, texts = rng.integers(0, CODES, (COUNT, 4)), rng.integers(0, PIECES, (COUNT, 2, 3))
    further = [m for m in vocab.modalities if m.name not in ("image", "text")]
    source = Items(
        Record(
            str(n), np.full((8, 8, 3), n, np.uint8), (f"{n} 0", f"{n} 1"), {"sound": 0, "layout": 0}
        )
        for n in range(COUNT)
    )
    encode = {m.name: lambda rows, m=m: np.ones((len(rows), m.length), int) for m in further}
    cache = token_cache.write_cache(
        source,
        lambda pixels: codes[pixels[:, 0, 0, 0]],
        lambda said: np.array([texts[tuple(map(int, text.split()))] for text in said]),
        tmp_path_factory.mktemp("cache"),
        settings={},
        views=reading.Views(8),
        encode_further=encode,
        batch_size=5,
    )
    return vocab, cache, codes, texts


class Items(tuple):
    name = "items"


def test_the_nearest_pair_is_that_of_all_pairs_whatever_else_a_run_has(trained, monkeypatch):
    _, cache, codes, texts = trained
    monkeypatch.setattr(nearest_training, "BLOCK", 5)
    rng = np.random.default_rng(1)
    found = {"image": rng.integers(0, CODES, (7, 4)), "text": rng.integers(0, PIECES, (7, 3))}
    pairs, apart = nearest_training.nearest(cache, found)
    for i in range(7):
        differing = (codes != found["image"][i]).sum(1)[:, None] + (texts != found["text"][i]).sum(
            2
        )
        assert apart[i] == differing.min()
        own = (codes != pairs["image"][i]).sum(1)[:, None] + (texts != pairs["text"][i]).sum(2)
        assert own.min() == 0 and differing[np.argwhere(own == 0)[0][0]].min() == apart[i]
    exact = {"image": codes[3:4], "text": texts[3, 1:]}
    assert nearest_training.nearest(cache, exact)[1] == [0]


def test_the_pair_in_a_sample_is_its_image_and_its_text(trained):
    """What a sample has at the places of absent modalities is noise, and does not count."""
    vocab, cache, codes, texts = trained
    x = np.array(vocab.fuse({m.name: np.zeros((2, m.length), int) for m in vocab.modalities}))
    x[:, vocab.slices[vocab.index("image")]] = codes[:2] + vocab.offsets[vocab.index("image")]
    x[:, vocab.slices[vocab.index("text")]] = texts[:2, 1] + vocab.offsets[vocab.index("text")]
    pairs, apart = nearest_training.nearest(cache, nearest_training.pairs_of(vocab, x))
    assert apart.tolist() == [0, 0]
    np.testing.assert_array_equal(pairs["image"], codes[:2])
    np.testing.assert_array_equal(pairs["text"], texts[:2, 1])
