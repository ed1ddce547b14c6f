"""CLIP's merges, against ids by hand and the recorded ids and texts of the published code."""

import gzip

import numpy as np
import pytest

from tests.helpers import recorded
from udd_jax.tokenizers import text_tokenizer

END = 256  # a byte's number at the end of a word


def letter(character):
    return ord(character) - ord("!")  # the visible bytes come first


@pytest.fixture(scope="module")
def merges(tmp_path_factory):
    """A file like CLIP's with three merges, ids 512 to 514."""
    pytest.importorskip("ftfy", reason="CLIP's published cleaning needs ftfy")
    path = tmp_path_factory.mktemp("clip") / "merges.txt.gz"
    path.write_bytes(gzip.compress(b'"bpe"\na b\nab c</w>\nb c</w>\n'))
    return path


def test_pairs_merge_in_the_order_of_the_file_and_words_know_their_end(merges):
    tokenizer = text_tokenizer.load(merges)
    a, b, c, x = map(letter, "abcx")
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (517, 0)
    words = {"abc": [513], "bc": [514], "ab": [a, END + b], "xbc": [x, 514], "abx": [512, END + x]}
    for word, ids in words.items():
        assert tokenizer.pieces(word) == ids
    assert tokenizer.pieces("<|startoftext|>abc<|endoftext|>") == [515, 513, 516]
    assert tokenizer.encode(["bc abc", "a b c"], 3).tolist() == [
        [514, 513, 0],
        [END + a, END + b, END + c],
    ]
    assert tokenizer.decode([[514, 513, 0], [a, END + b, 0]]) == ["bc abc ", "ab "]
    cut = text_tokenizer.load(merges, 515)
    assert (cut.vocab_size, cut.pieces("abc")) == (515, [512, END + c])


def test_clip_captions_are_cleaned_and_split_as_published(merges):
    pieces = text_tokenizer.load(merges).pieces
    assert pieces(" ABC\t\n bc ") == pieces("abc bc") == [513, 514]
    assert pieces("&amp;lt;") == [END + letter("<")]  # unescaped twice
    assert pieces("<&amp;lt;") == pieces("<<")  # also where ftfy leaves entities alone
    assert (
        pieces("a\u2019s") == pieces("a's") == [END + letter("a"), letter("'"), END + letter("s")]
    )
    assert pieces("12") == [END + letter("1"), END + letter("2")]
    assert pieces("!?a") == [0, END + letter("?"), END + letter("a")]  # 0: padding, and "!" too
    assert pieces("\u00e9") == [127, END + 102]  # its two bytes, C3 and A9


@pytest.mark.parametrize("ending", ["s", "t", "re", "ve", "m", "ll", "d"])
def test_a_contraction_is_a_word_of_its_own(merges, ending):
    *others, last = map(letter, ending)
    expected = [END + letter("a"), letter("'"), *others, END + last]
    assert text_tokenizer.load(merges).pieces(f"a'{ending}") == expected
    assert text_tokenizer.load(merges).pieces("a'x") == [END + letter(c) for c in "a'x"]


@pytest.mark.parametrize(("name", "classes"), [("clip7936", 8192), ("clip16384", 16640)])
def test_clip_ids_and_texts_equal_the_recorded_ones(clip_file, name, classes):
    stored = recorded.PUBLISHED.arrays("tokenizer")
    texts = recorded.PUBLISHED.json_of("tokenizer_sentences")
    tokenizer = text_tokenizer.load(clip_file, classes)
    assert tokenizer.vocab_size == classes and tokenizer.pad_id == 0
    ids = [tokenizer.pieces(sentence) for sentence in texts["sentences"]]
    bounds = stored[f"{name}_offsets"]
    assert bounds.tolist() == [0, *np.cumsum([len(i) for i in ids])]
    assert [i for row in ids for i in row] == stored[f"{name}_flat"].tolist()
    padded = tokenizer.encode(texts["sentences"], 128)
    np.testing.assert_array_equal(padded, stored[f"{name}_padded128"])
    assert tokenizer.decode(padded) == texts[f"{name}_decoded"]


def test_a_saved_cut_of_the_merges_is_the_same_tokenizer(tmp_path, clip_file):
    for classes in (600, 16640):
        tokenizer = text_tokenizer.load(clip_file, classes)
        tokenizer.save(tmp_path / "text.model")
        again = text_tokenizer.load(tmp_path / "text.model")
        assert (again.hash, again.vocab_size) == (tokenizer.hash, classes)
    assert text_tokenizer.load(clip_file).vocab_size == 8192
    with pytest.raises(ValueError, match=r"classes=500 is not in 514\.\."):
        text_tokenizer.load(clip_file, 500)


def test_a_word_of_a_hundred_thousand_letters_takes_no_quadratic_time(clip_small):
    assert len(clip_small.pieces("q" * 100_000)) > 1000
