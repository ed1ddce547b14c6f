"""Captions of scripts without spaces become pieces that compose."""

import itertools

import numpy as np
import pytest

from udd_jax.tokenizers import text_tokenizer, unspaced

# (start, one of these, middle, one of these, end)
CHINESE = ("红色", "蓝色", "绿色", "黄色"), "的", ("圆形", "方块", "三角", "小猫")
JAPANESE = ("赤い", "青い", "みどりの", "きいろい"), "", ("まる", "しかく", "ねこ", "いぬ")
THAI = ("แมว", "สุนัข", "วงกลม", "สี่เหลี่ยม"), "สี", ("แดง", "น้ำเงิน", "เขียว", "เหลือง")
WORDS = {
    "Chinese": ("一只", *CHINESE, "在桌子上"),
    "Japanese": ("", *JAPANESE, "の絵です"),
    "Thai": ("รูป", *THAI, ""),
}


def captions(language):
    first, some, between, others, last = WORDS[language]
    return [first + a + between + b + last for a, b in itertools.product(some, others)]


@pytest.mark.parametrize("language", WORDS)
def test_a_caption_that_was_never_seen_is_made_of_pieces_that_were(language, tmp_path):
    every = captions(language)
    held_out = every[::5]  # the diagonal: each word is in other captions, this pair in none
    seen = [caption for caption in every if caption not in held_out] * 16
    tokenizer = text_tokenizer.train_sentencepiece(seen, tmp_path / "text.model", 1024)
    used = {i for caption in seen for i in tokenizer.pieces(caption)}
    for caption in held_out:
        pieces = tokenizer.pieces(caption)
        assert set(pieces) <= used  # neither bytes nor pieces that no caption taught
        assert tokenizer.decode(np.array([pieces])) == [text_tokenizer.normalise(caption)]
    assert min(len(tokenizer.pieces(caption)) for caption in seen) >= 3
    assert all(tokenizer.piece(i) not in every for i in used)


def test_what_never_comes_apart_is_one_piece(tmp_path):
    seen = captions("Chinese") * 16
    tokenizer = text_tokenizer.train_sentencepiece(seen, tmp_path / "text.model", 1024)
    pieces = [tokenizer.piece(i) for i in tokenizer.pieces(seen[0])]
    assert "一只" in pieces and "在桌子上" in pieces


def test_texts_with_spaces_are_not_cut_and_mixed_ones_only_where_they_have_none():
    spaced = ["a small red circle", "ein kleiner Kreis", "un círculo", "маленький круг", "작은 원"]
    assert unspaced.cut(spaced) == spaced
    c = unspaced.CUT
    assert unspaced.cut(["a 红圆 x"]) == [f"a {c}红{c}圆{c} x"]
    assert unspaced.cut(["ก็ดี"]) == [f"{c}ก็{c}ดี{c}"]  # marks stay with their letter
