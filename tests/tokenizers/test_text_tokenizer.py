"""Captions to ids and back: training, blanks, cuts, round trips, damaged files."""

import pickle
import random
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from udd_jax.tokenizers import text_tokenizer

SENTENCES = (
    "there is a small red circle above and left of a large blue square with below it in the upper",
    "lower right corner picture showing only one object two green yellow purple orange cyan white",
    "triangle to near beside",
)
WORDS = [word for sentence in SENTENCES for word in sentence.split()]
WORDS = list(dict.fromkeys(WORDS))


def captions(count: int, seed: int = 0) -> list[str]:
    """Sentences of every word, with very unequal frequencies."""
    rng = random.Random(seed)
    lines = [" ".join(rng.choices(WORDS[:30], k=8)) for _ in range(count)]
    return [*lines, " ".join(WORDS)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return text_tokenizer.train_sentencepiece(
        captions(300), tmp_path_factory.mktemp("t") / "text.model", 600
    )


# SentencePiece


@pytest.mark.parametrize("count", [0, 20, 300])
def test_every_word_of_a_small_corpus_is_one_piece(tmp_path, count):
    tokenizer = text_tokenizer.train_sentencepiece(
        captions(count), tmp_path / "text.model", vocab_size=1024
    )
    assert [len(tokenizer.pieces(word)) for word in WORDS] == [1] * len(WORDS)
    assert len(tokenizer.pieces(" ".join(WORDS))) == len(WORDS)
    assert [tokenizer.piece(tokenizer.pieces(word)[0]) for word in WORDS] == WORDS


def test_vocab_size_is_an_upper_bound_and_a_small_corpus_stays_below_it(tmp_path, small):
    assert small.vocab_size < 600
    tight = text_tokenizer.train_sentencepiece(captions(300), tmp_path / "text.model", 330)
    assert tight.vocab_size == 330
    again = text_tokenizer.train_sentencepiece(captions(300), tmp_path / "text.model", 50_000)
    assert again.hash == text_tokenizer.load(tmp_path / "text.model").hash
    assert again.vocab_size == small.vocab_size


def test_training_depends_on_the_captions_and_not_on_their_order(tmp_path, small):
    lines = captions(300)
    random.Random(1).shuffle(lines)
    assert text_tokenizer.train_sentencepiece(lines, tmp_path / "a.model", 600).hash == small.hash
    assert (
        text_tokenizer.train_sentencepiece(lines[:50], tmp_path / "b.model", 600).hash != small.hash
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.model", "b.model"]


def test_which_of_equally_rare_letters_have_room_hangs_on_no_order(tmp_path):
    lines = [chr(ord("\u0430") + i) for i in range(32)] + [chr(ord("a") + i) for i in range(26)]
    first, second = (
        text_tokenizer.train_sentencepiece(order, tmp_path / "text.model", 320)
        for order in (lines, lines[::-1])
    )
    assert first.hash == second.hash


def test_a_text_of_just_the_length_is_whole_also_if_it_ends_in_a_broken_character(small):
    ids = small.pieces("a \ufffd")
    assert small.encode(["a \ufffd"], len(ids)).tolist() == [ids]


def test_padding_is_id_zero_and_drops_out_wherever_it_stands(small):
    ids = small.encode(["a small red circle", ""], length=6)
    assert ids.dtype == np.int32 and ids.shape == (2, 6)
    assert small.pad_id == 0 and (ids[0, 4:] == 0).all() and (ids[1] == 0).all()
    a, b, c, d = ids[0, :4]
    assert small.decode(np.array([[0, a, 0, b, c, 0, d], [0] * 7])) == ["a small red circle", ""]


@hypothesis.given(strategies.text(max_size=40))
@hypothesis.settings(max_examples=100, deadline=None)
def test_any_text_comes_back_as_its_lower_case_normal_form(small, raw):
    hypothesis.assume("\u2581" not in raw)  # the mark of a space
    wanted = text_tokenizer.normalise(raw).lower()
    ids = small.pieces(raw)
    assert 1 not in ids  # bytes spell what the model lacks
    assert small.decode(np.asarray([ids], int).reshape(1, -1)) == [text_tokenizer.normalise(wanted)]


@hypothesis.given(strategies.text(max_size=60))
@hypothesis.settings(max_examples=100, deadline=None)
def test_normal_form_is_stable_and_clean(raw):
    once = text_tokenizer.normalise(raw)
    assert text_tokenizer.normalise(once) == once
    assert once.split() == once.split(" ") or once == ""
    once.encode()  # no surrogates


def test_the_normal_form_has_one_form_of_each_character():
    forms = {"ﬁsh": "fish", "ｒｅｄ": "red", "①": "1", "e\u0301": "é", "ｶﾞ": "ガ"}
    assert {raw: text_tokenizer.normalise(raw) for raw in forms} == forms


def test_control_characters_and_surrogates_leave_a_caption(small):
    assert (
        text_tokenizer.normalise("a\x00 small\ud800\t\nred  \x1b circle\u3000")
        == "a small red circle"
    )
    assert small.pieces("a\x00 small\ud83d red") == small.pieces("a small red")


def test_lower_case_captions_make_capitals_equal_and_mixed_ones_do_not(tmp_path, small):
    assert small.pieces("A Small RED circle") == small.pieces("a small red circle")
    mixed = text_tokenizer.train_sentencepiece(
        ["Red and red", "red Flag"], tmp_path / "t.model", 400
    )
    assert mixed.pieces("Red") != mixed.pieces("red")
    assert mixed.decode(mixed.encode(["Red Flag"], 4)) == ["Red Flag"]


def test_a_script_larger_than_the_vocabulary_is_spelled_in_bytes(tmp_path):
    lines = ["".join(chr(0x4E00 + i + j) for i in range(20)) for j in range(0, 2000, 20)]
    tokenizer = text_tokenizer.train_sentencepiece(lines, tmp_path / "text.model", 400)
    assert tokenizer.vocab_size <= 400
    assert tokenizer.decode(tokenizer.encode(lines, 80)) == lines


def test_a_huge_caption_neither_stops_training_nor_encoding(tmp_path):
    tokenizer = text_tokenizer.train_sentencepiece(
        ["x" * 100_000, "a red bird"], tmp_path / "t.model", 400
    )
    assert (tokenizer.encode(["x" * 100_000], 8) > 1).all()


@pytest.mark.parametrize("lines", [[], ["", "  ", "\x00"]])
def test_captions_without_text_are_one_line_and_leave_no_file(tmp_path, lines):
    with pytest.raises(ValueError, match="captions: no caption has any text") as error:
        text_tokenizer.train_sentencepiece(lines, tmp_path / "text.model", 400)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


def test_a_vocabulary_without_room_for_letters_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vocab_size: 300 is less than 320"):
        text_tokenizer.train_sentencepiece(["a"], tmp_path / "text.model", 300)


def test_save_load_and_pickle_keep_the_tokenizer(tmp_path, small):
    small.save(tmp_path / "any.name")
    for other in (text_tokenizer.load(tmp_path / "any.name"), pickle.loads(pickle.dumps(small))):
        assert (other.hash, other.vocab_size, other.kind) == (
            small.hash,
            small.vocab_size,
            small.kind,
        )
        assert other.pieces("a large blue square") == small.pieces("a large blue square")


# The interface


@pytest.mark.parametrize("length", range(1, 14))
def test_a_long_text_is_cut_at_a_whole_character(small, length):
    text = "a \U0001f680 small \u8d64\u3044 circle"  # characters that bytes spell
    [shown] = small.decode(small.encode([text], length))
    assert "\ufffd" not in shown and text.startswith(shown)
    [again] = small.decode(small.encode([shown], length))
    assert again == shown


def test_each_id_of_a_text_knows_its_word(small):
    text = "a xyz \u8d64 circle"
    ids = small.pieces(text)
    words = small.words(ids)
    assert sorted(set(words)) == [0, 1, 2, 3] and words == sorted(words) and len(ids) > 4
    assert [words.count(n) for n in (0, 3)] == [1, 1] and words.count(1) >= 3
    assert small.words(small.pieces("\u8d64\u3044")) == list(range(7))  # a space and six bytes
    assert small.words([]) == []


def test_a_long_text_is_cut_unless_strict(small):
    prompt = " ".join(WORDS[:7])
    np.testing.assert_array_equal(
        small.encode([prompt], 5), small.encode([" ".join(WORDS[:5])], 5, strict=True)
    )
    with pytest.raises(ValueError, match=r'"there is a small red circle above" has 7 .* length 5;'):
        small.encode([prompt], 5, strict=True)
    with pytest.raises(ValueError, match='prompt: " " is empty'):
        small.encode(["a circle", " "], 5, strict=True)
    with pytest.raises(ValueError, match="expected a list of strings"):
        small.encode("a circle", 5)


def test_blanks_are_free_and_words_and_padding_are_given(small):
    ids, free = small.encode_with_blanks("a ___ circle above a _____", 8, blank_tokens=2)
    a, circle, above = (small.pieces(word)[0] for word in ("a", "circle", "above"))
    assert ids.dtype == np.int32 and free.dtype == bool
    assert ids.tolist() == [a, 0, 0, circle, above, a, 0, 0]
    assert free.tolist() == [False, True, True, False, False, False, True, True]
    ids, free = small.encode_with_blanks("___", 3)
    assert ids.tolist() == [0, 0, 0] and free.tolist() == [True, False, False]
    assert not small.encode_with_blanks("a __ circle", 8)[1].any()  # three underscores at least
    ids, free = small.encode_with_blanks("a circle", 3)
    assert ids.tolist() == small.encode(["a circle"], 3)[0].tolist() and not free.any()


def test_prompts_with_blanks_that_cannot_be_are_one_line(small):
    with pytest.raises(ValueError, match=r'"a ___ circle" has 4 pieces, .* length 3'):
        small.encode_with_blanks("a ___ circle", 3, blank_tokens=2)
    with pytest.raises(ValueError, match='prompt: "" is empty'):
        small.encode_with_blanks("", 3)
    with pytest.raises(ValueError, match="blank_tokens: 0"):
        small.encode_with_blanks("___", 3, blank_tokens=0)


@pytest.mark.parametrize("kind", ["sentencepiece", "clip", "huggingface"])
def test_any_ids_in_range_decode_to_text_that_is_utf8(kind, request, small):
    tokenizer = small if kind == "sentencepiece" else request.getfixturevalue(f"{kind}_small")
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, (200, 12))
    ids[0] = np.minimum(np.arange(12) + 200, tokenizer.vocab_size - 1)
    texts = tokenizer.decode(ids)
    assert len(texts) == 200 and all(t.encode() is not None for t in texts)
    assert tokenizer.decode(np.zeros((0, 12), int)) == []
    assert tokenizer.decode(np.full((1, 3), tokenizer.pad_id)) == [""]
    assert all(isinstance(tokenizer.piece(i), str) for i in range(tokenizer.vocab_size))
    assert tokenizer.piece(tokenizer.pad_id) == ""
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError, match=f"token ids: {bad} is outside"):
            tokenizer.decode(np.array([[0, bad]]))


def test_files_that_are_no_vocabulary_are_one_line(tmp_path, small):
    small.save(tmp_path / "good.model")
    whole = (tmp_path / "good.model").read_bytes()
    files = {
        "empty": b"",
        "picture": b"\x89PNG\r\n",
        "cut.model": whole[: len(whole) // 2],
        "cut.gz": b"\x1f\x8b\x08\x00\x00",
        "list.json": b"[1]",
        "other.json": b'{"a": 1}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in [*files, "absent", "."]:
        with pytest.raises(ValueError, match="text tokenizer") as error:
            text_tokenizer.load(tmp_path / name)
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)
    with pytest.raises(ValueError, match="classes=8192 is for CLIP merges"):
        text_tokenizer.load(tmp_path / "good.model", classes=8192)


# Hugging Face


@pytest.fixture(scope="module")
def huggingface_file(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer.json needs `tokenizers`")
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[MASK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[MASK]"], show_progress=False
    )
    model.train_from_iterator(captions(100), trainer)
    model.enable_padding(pad_id=0, pad_token="[PAD]", length=9)
    model.enable_truncation(4)
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def huggingface_small(huggingface_file):
    return text_tokenizer.load(huggingface_file)


def test_a_hugging_face_file_keeps_the_one_interface(tmp_path, huggingface_small):
    tokenizer = huggingface_small
    assert tokenizer.kind == "huggingface" and tokenizer.pad_id == 0
    prompt = "There is a small red circle"
    assert len(tokenizer.pieces(prompt)) == 6  # neither padded to 9 nor cut to 4
    assert tokenizer.decode(tokenizer.encode([prompt], 8)) == ["there is a small red circle"]
    assert tokenizer.pieces("red\ud800") == tokenizer.pieces("red")
    tokenizer.save(tmp_path / "text.model")
    assert text_tokenizer.load(tmp_path / "text.model").hash == tokenizer.hash


def test_a_hugging_face_files_unmarked_padding_and_added_tokens_are_no_text(tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="tokenizer.json needs `tokenizers`")
    words = tokenizers.models.WordLevel({"[PAD]": 0, "red": 1, "[UNK]": 2}, unk_token="[UNK]")
    model = tokenizers.Tokenizer(words)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="[UNK] $A", special_tokens=[("[UNK]", 2)]
    )
    model.save(str(tmp_path / "tokenizer.json"))
    tokenizer = text_tokenizer.load(tmp_path / "tokenizer.json")
    assert tokenizer.decode(np.array([[1, 0, 0]])) == ["red"]
    assert tokenizer.pieces("red") == [1]  # nor does it begin with what the file would add


def test_packages_that_are_extras_are_asked_for_by_name(monkeypatch, huggingface_file, clip_small):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ValueError, match="pip install tokenizers"):
        text_tokenizer.load(huggingface_file)
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ValueError, match="pip install ftfy"):
        clip_small.pieces("a bird")
