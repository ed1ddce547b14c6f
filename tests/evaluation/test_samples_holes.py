"""What infilling hides of held-out captions: ids, so that a caption is never encoded again."""

import numpy as np
import pytest

from udd_jax.evaluation import samples
from udd_jax.tokenizers import text_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    captions = [f"a {colour} box" for colour in ("red", "blue", "green")] * 5
    path = tmp_path_factory.mktemp("text") / "text.model"
    return text_tokenizer.train_sentencepiece(captions, path, 320)


CAPTIONS = ["a red box", "a violet box \U0001f680\U0001f680", "box", "", "\u8d64\u3044\u7bb1"]


@pytest.mark.parametrize("length", [3, 9, 13])
def test_half_of_the_words_are_hidden_with_all_their_ids_and_a_cut_caption_stays_as_it_is(
    tokenizer, length
):
    ids = tokenizer.encode(CAPTIONS, length)
    halves, hidden, blanks = samples._holes(tokenizer, ids, (8, 8), seed=1, first=0)
    assert (halves.sum((1, 2)) == 32).all()
    assert not hidden[ids == tokenizer.pad_id].any()
    for row, free, blanked in zip(ids, hidden, blanks, strict=True):
        words = np.array(tokenizer.words(row[row != tokenizer.pad_id].tolist()), int)
        missing = set(words[free[: len(words)]].tolist())
        assert len(missing) == (len(set(words.tolist())) + 1) // 2
        assert free.sum() == np.isin(words, list(missing)).sum()
        assert blanked.split().count("___") == len(missing)
    assert [b for b in blanks[0].split() if b != "___"] == [
        word for word, gone in zip(["a", "red", "box"], hidden[0], strict=False) if not gone
    ]


def test_a_file_that_is_cut_off_is_no_file_of_samples(tmp_path):
    samples.write(tmp_path / "a.npz", {"tokens": np.zeros((4, 300), np.int32), "about": "{}"})
    whole = (tmp_path / "a.npz").read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        assert samples.load(tmp_path / "a.npz") is None
