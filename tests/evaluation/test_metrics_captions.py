"""Caption scores against the numbers of COCO's caption evaluation, and by hand."""

import gzip
import json
import pathlib

import numpy as np
import pytest

from udd_jax.evaluation.metrics import captions, intervals, java

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "metrics"
CASES = json.loads((FIXTURES / "nlgeval_cases.json").read_text())["cases"]
needs_java = pytest.mark.skipif(java.missing() is not None, reason=f"{java.missing()}")


@pytest.fixture(scope="module")
def coco():
    """A thousand human captions, each against four others."""
    with gzip.open(FIXTURES / "coco_human_loo1000.json.gz", "rt", encoding="utf-8") as file:
        return json.load(file)


@pytest.fixture(scope="module")
def tokenised(coco):
    return (
        [item["hypothesis_ptb"] for item in coco["items"]],
        [item["references_ptb"] for item in coco["items"]],
    )


# --- Recorded scores -------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_published_cases(case):
    hypotheses, references = case["hypotheses"], case["references"]
    bleu = captions.bleu(hypotheses, references)
    ours = {f"Bleu_{n + 1}": value for n, value in enumerate(bleu)}
    ours["ROUGE_L"] = captions.rouge_l(hypotheses, references).mean()
    ours["CIDEr"] = captions.cider_d(hypotheses, references).mean()
    for name, value in ours.items():
        assert abs(value - case["expected"][name]) < 1e-5
        np.testing.assert_allclose(value, case["pycocoevalcap_1_2_here"][name], rtol=1e-10)


def test_bleu_of_a_thousand_captions(coco, tokenised):
    expected = [coco["expected"][f"Bleu_{n}"] for n in (1, 2, 3, 4)]
    np.testing.assert_allclose(captions.bleu(*tokenised), expected, rtol=1e-10)


def test_rouge_and_cider_of_each_of_a_thousand_captions(coco, tokenised):
    for name, score in (("ROUGE_L", captions.rouge_l), ("CIDEr", captions.cider_d)):
        ours = score(*tokenised)
        np.testing.assert_allclose(ours.mean(), coco["expected"][name], rtol=1e-10)
        each = [item["per_image"][name] for item in coco["items"]]
        np.testing.assert_allclose(ours, each, rtol=1e-10, atol=1e-12)


def test_the_plain_tokenizer_is_nearly_the_ptb_one(coco):
    pairs = [
        (text, expected)
        for item in coco["items"]
        for text, expected in zip(
            [item["hypothesis"], *item["references"]],
            [item["hypothesis_ptb"], *item["references_ptb"]],
            strict=True,
        )
    ]
    different = [text for text, expected in pairs if captions.tokenize(text) != expected]
    assert len(pairs) == 5000 and len(different) == 7  # full stops of abbreviations


def test_report_holds_every_score_within_its_interval(tokenised):
    hypotheses, references = (part[:100] for part in tokenised)
    report = captions.report(hypotheses, references)
    assert list(report) == ["BLEU_1", "BLEU_2", "BLEU_3", "BLEU_4", "ROUGE_L", "CIDEr_D"]
    for n, value in enumerate(captions.bleu(hypotheses, references), 1):
        np.testing.assert_allclose(report[f"BLEU_{n}"].value, value, rtol=1e-12)
    for estimate in report.values():
        assert estimate.low < estimate.value < estimate.high and estimate.count == 100


# --- By hand ---------------------------------------------------------------------------------


def test_bleu_clips_a_word_that_is_repeated():
    # Papineni's example: seven times "the" against two in the reference.
    value = captions.bleu(["the the the the the the the"], [["the cat is on the mat now"]])
    np.testing.assert_allclose(value[0], 2 / 7)


def test_bleu_punishes_brevity_against_the_closest_reference():
    near, far = "a red circle at dawn", "a red circle above a blue square and more"
    value = captions.bleu(["a red circle"], [[near, far]])
    np.testing.assert_allclose(value[:3], np.exp(1 - 5 / 3), rtol=1e-6)


def test_a_perfect_caption_scores_one_and_ten():
    texts = ["a small red circle above a square", "one large blue triangle in the corner"]
    references = [[text] for text in texts]
    np.testing.assert_allclose(captions.bleu(texts, references), 1, rtol=1e-8)
    np.testing.assert_allclose(captions.rouge_l(texts, references), 1)
    # The word that both items have weighs nothing, the others do.
    np.testing.assert_allclose(captions.cider_d(texts, references), 10)


def test_rouge_by_hand():
    # Common subsequence "a c d": precision 3/4, recall 3/5.
    value = captions.rouge_l(["a c x d"], [["a b c d e"]])
    np.testing.assert_allclose(value, 2.44 * 0.75 * 0.6 / (0.6 + 1.44 * 0.75))
    np.testing.assert_allclose(captions.rouge_l(["x"], [["a b"]]), 0)


def test_tokenizer_splits_clitics_and_drops_punctuation():
    text = 'The dog\'s  bowl: it isn’t "full", is it? Re-fill... at 6:55!'
    assert captions.tokenize(text) == "the dog 's bowl it is n't full is it re-fill at 6:55"


def test_length_and_variety_by_hand():
    texts = ["a red circle", "a red square", "a"]
    np.testing.assert_array_equal(captions.lengths(texts), [3, 3, 1])
    assert captions.distinct(texts, 1) == 4 / 7
    assert captions.distinct(texts, 2) == 3 / 4
    with pytest.raises(ValueError, match="no caption has 4 words"):
        captions.distinct(texts, 4)


def test_copied_captions_are_counted_whatever_their_spacing():
    share = captions.copied(["a  red circle", "a blue circle"], ["a red circle ", "x"])
    assert share.value == 0.5 and share.count == 2


# --- Bad input -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "score", [captions.report, captions.bleu, captions.cider_d, captions.rouge_l]
)
def test_bad_captions_are_refused(score):
    with pytest.raises(ValueError, match="caption 1 is empty"):
        score(["a", "  "], [["a"], ["b"]])
    with pytest.raises(ValueError, match="references of caption 0"):
        score(["a"], [["a", ""]])
    with pytest.raises(ValueError, match="references of caption 0 are 'a b'"):
        score(["a"], ["a b"])
    with pytest.raises(ValueError, match="2 captions and references for 1"):
        score(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="none to score"):
        score([], [])


# --- Java ------------------------------------------------------------------------------------


def test_a_java_that_does_not_run_is_none(tmp_path, monkeypatch):
    """Such as the one of a Mac without Java, which says where to get it and exits with 1."""
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "the java on the PATH does not run" in java.missing()


def test_without_java_meteor_is_a_clear_error_and_spice_unmeasured(monkeypatch):
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    with pytest.raises(
        ValueError, match=r"METEOR needs pycocoevalcap and Java: .*no java on the PATH"
    ):
        java.meteor(["a"], [["a"]])
    with pytest.raises(ValueError, match="PTB tokenizer needs"):
        java.tokenize(["a"])
    assert "no java on the PATH" in java.spice(["a"], [["a"]]).unmeasured


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setattr(java.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install pycocoevalcap"):
        java.meteor(["a"], [["a"]])


@needs_java
def test_spice_without_its_models_is_unmeasured(tmp_path, monkeypatch):
    monkeypatch.setattr(java, "_package", lambda measure: tmp_path)
    ours = java.spice(["a"], [["a"]])
    assert isinstance(ours, intervals.Unmeasured) and "stanford-corenlp-3.6.0" in ours.unmeasured


@needs_java
def test_the_ptb_tokenizer_gives_the_recorded_tokens(coco):
    items = coco["items"]
    raw = [text for item in items for text in (item["hypothesis"], *item["references"])]
    ptb = [text for item in items for text in (item["hypothesis_ptb"], *item["references_ptb"])]
    assert java.tokenize(raw) == ptb


@needs_java
@pytest.mark.slow
def test_meteor_of_the_published_cases():
    corpus, single, french = CASES
    ours, _ = java.meteor(corpus["hypotheses"], corpus["references"])
    assert abs(ours.value - corpus["expected"]["METEOR"]) < 1e-5
    assert ours.low < ours.value < ours.high
    hypotheses = single["hypotheses"] + french["hypotheses"]
    references = single["references"] + french["references"]
    _, each = java.meteor(hypotheses, references)
    expected = [case["expected"]["METEOR"] for case in (single, french)]
    np.testing.assert_allclose(each, expected, atol=1e-5)
