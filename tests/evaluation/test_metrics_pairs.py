"""Likelihood, alignment of pictures with captions, and memory, on cases worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from udd_jax.evaluation.metrics import alignment, arrays, intervals, likelihood, memory

# --- Likelihood ------------------------------------------------------------------------------


def test_bits_per_token_with_their_standard_error():
    nats = np.log(2) * np.array([[1.0, 2, 3], [2, 2, 5], [0, 0, 0], [1, 1, 1]])
    ours = likelihood.bits_per_token(nats, 3)
    means = np.array([2, 3, 0, 1])
    np.testing.assert_allclose(ours.value, 1.5)
    np.testing.assert_allclose(ours.standard_error, means.std(ddof=1) / 2)
    assert ours.count == 4
    totals = likelihood.bits_per_token(nats.sum(1), [3, 3, 3, 3])
    np.testing.assert_allclose([totals.value, totals.low], [ours.value, ours.low])


def test_long_items_weigh_more_in_bits_per_token():
    ours = likelihood.bits_per_token(np.log(2) * np.array([1.0, 30.0]), [1, 10])
    np.testing.assert_allclose(ours.value, 31 / 11)


def test_delta_method_agrees_with_the_bootstrap():
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 20, 300)
    bits = tokens * (2 + 0.3 * generator.standard_normal(300)) + generator.standard_normal(300)
    ours = likelihood.bits_per_token(bits * np.log(2), tokens)
    rows = np.stack([bits, tokens], 1)
    other = intervals.bootstrap(rows, lambda mean: mean[..., 0] / mean[..., 1])
    np.testing.assert_allclose(ours.value, other.value)
    np.testing.assert_allclose(ours.standard_error, other.standard_error, rtol=0.1)


def test_bad_likelihoods_are_refused():
    with pytest.raises(ValueError, match=r"1 of 2 items .* not finite, 1 have no tokens"):
        likelihood.bits_per_token([np.inf, 1], [1, 0])
    with pytest.raises(ValueError, match=r"2 items, token counts of \(3,\)"):
        likelihood.bits_per_token([1, 1], [1, 2, 3])
    assert likelihood.bits_per_token([1.0], 2).low is None


SCORES = np.array(
    [
        [9.0, 1.0, 2.0, 3.0],  # right one first
        [5.0, 4.0, 0.0, 1.0],  # second
        [1.0, 7.0, 7.0, 7.0],  # ties with two: third
        [4.0, 3.0, 2.0, 1.0],  # last
    ]
)


def test_rank_of_the_right_candidate_by_hand():
    better, wrong = likelihood.rivals(SCORES)
    np.testing.assert_array_equal(better, [0, 1, 2, 3])
    np.testing.assert_array_equal(wrong, [3, 3, 3, 3])
    np.testing.assert_array_equal(likelihood.recall_at(SCORES), [1, 0, 0, 0])
    np.testing.assert_array_equal(likelihood.recall_at(SCORES, 3), [1, 1, 1, 0])
    assert likelihood.recall_at(np.zeros((5, 5))).sum() == 0  # a constant score finds nothing


def test_recall_among_n_is_the_mean_over_all_draws():
    scores = np.random.default_rng(0).standard_normal((7, 7)) + np.eye(7)
    for n in (2, 4, 7):
        expected = [
            np.mean(
                [
                    all(scores[i, j] < scores[i, i] for j in others)
                    for others in itertools.combinations(sorted({*range(7)} - {i}), n - 1)
                ]
            )
            for i in range(7)
        ]
        np.testing.assert_allclose(likelihood.recall_among(scores, n), expected)


def test_equal_candidates_count_neither_way():
    equal = np.zeros((4, 4), bool)
    equal[1, 0] = True
    better, wrong = likelihood.rivals(SCORES, equal)
    np.testing.assert_array_equal(better, [0, 0, 2, 3])
    np.testing.assert_array_equal(wrong, [3, 2, 3, 3])


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\), expected \[N, N\]"):
        likelihood.recall_at(SCORES[:, :3])
    with pytest.raises(ValueError, match="1 scores are NaN"):
        likelihood.recall_at(np.where(SCORES == 9, np.nan, SCORES))
    with pytest.raises(ValueError, match=r"among 5: 3 wrong candidates.*4 are needed"):
        likelihood.recall_among(SCORES, 5)


# --- Alignment -------------------------------------------------------------------------------


def test_clip_score_by_hand():
    images = np.array([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0]])
    texts = np.array([[3.0, 4.0], [-2.0, 0.0], [5.0, 0.0]])
    np.testing.assert_allclose(alignment.cosine(images, texts), [1, -1, 0.5**0.5])
    ours = alignment.clip_score(images, texts)
    np.testing.assert_allclose(ours["cosine"].value, 0.5**0.5 / 3)
    np.testing.assert_allclose(ours["clip_score"].value, 2.5 * (1 + 0.5**0.5) / 3)


def test_r_precision_of_aligned_and_of_unrelated_embeddings():
    generator = np.random.default_rng(0)
    texts = generator.standard_normal((40, 8))
    assert alignment.r_precision(2 * texts, texts, 20).value == 1
    chance = alignment.r_precision(generator.standard_normal((40, 8)), texts, 10)
    assert abs(chance.value - 0.1) < 4 * chance.standard_error


def test_r_precision_does_not_punish_equal_captions():
    texts = np.eye(4)[[0, 1, 2, 2]]
    # Of the three pairs of distractors, one leaves the equal caption out.
    np.testing.assert_allclose(alignment.r_precision(texts, texts, 3).value, (2 + 2 / 3) / 4)
    equal = np.all(texts[:, None] == texts[None], 2)
    assert alignment.r_precision(texts, texts, 3, equal=equal).value == 1


def test_bad_embeddings_are_refused():
    x = np.ones((3, 2))
    with pytest.raises(ValueError, match="texts: 1 embeddings have length zero"):
        alignment.clip_score(x, x * [[1], [0], [1]])
    with pytest.raises(ValueError, match="images: 3 of 3 feature rows hold NaN"):
        alignment.clip_score(x * np.nan, x)
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(2, 2\)"):
        alignment.clip_score(x, x[:2])


def test_categories_are_reported_apart_and_weigh_the_same_together():
    values = [1, 1, 1, 0, 0, 1]
    ours = alignment.by_category(values, ["cat"] * 4 + ["tree"] * 2)
    assert list(ours) == ["cat", "tree", "mean of categories"]
    assert [e.value for e in ours.values()] == [0.75, 0.5, 0.625]
    assert [e.count for e in ours.values()] == [4, 2, 6]
    error = math.hypot(ours["cat"].standard_error, ours["tree"].standard_error) / 2
    np.testing.assert_allclose(ours["mean of categories"].standard_error, error)
    assert alignment.by_category([1, 0, 1], ["a", "a", "b"])["mean of categories"].low is None
    with pytest.raises(ValueError, match="6 scores and 1 categories"):
        alignment.by_category(values, ["cat"])


def test_the_mean_of_shares_is_a_share_at_its_ends_too():
    hits = np.array([True, True, False, True, True, True])
    mean = alignment.by_category(hits, list("aaabbb"))["mean of categories"]
    assert mean.value == pytest.approx(5 / 6) and mean.high == 1 and 0 < mean.low < mean.value
    scores = alignment.by_category(hits.astype(float), list("aaabbb"))["mean of categories"]
    assert scores.high > 1  # of scores nobody knows their ends


def test_judges_are_scored_against_the_answer_key():
    key = {"1": "real", "2": "generated", "3": "generated", "4": "real"}
    answers = [
        {"1": "real", "2": "real", "3": "generated"},
        {"1": "generated", "2": "real", "4": "real"},
    ]
    ours = alignment.judged(answers, key)
    assert ours["accuracy"].value == 3 / 6
    assert ours["fooled"].value == 2 / 3
    assert ours["doubted"].value == 1 / 3
    assert ours["accuracy"].low <= 0.5 <= ours["accuracy"].high


def test_sheets_that_do_not_fit_the_key_are_refused():
    key = {"1": "real", "2": "real"}
    with pytest.raises(ValueError, match="judge 1: '9' is called 'real'"):
        alignment.judged([{}, {"9": "real"}], key)
    with pytest.raises(ValueError, match=r"called 'fake'; expected .* 'real' or 'generated'"):
        alignment.judged([{"1": "fake"}], key)
    with pytest.raises(ValueError, match="no answers"):
        alignment.judged([{}], key)
    only_real = alignment.judged([{"1": "real"}], key)
    assert only_real["fooled"] == intervals.Unmeasured("no answers about generated pictures")


# --- Memory ----------------------------------------------------------------------------------


def test_nearest_training_tokens_by_hand():
    training = [[1, 2, 3], [1, 2, 4], [7, 7, 7]]
    index, differing = memory.nearest_tokens([[1, 2, 9], [7, 7, 7], [5, 5, 5]], training)
    np.testing.assert_array_equal(index, [0, 2, 0])
    np.testing.assert_array_equal(differing, [1, 0, 3])
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(3, 3\)"):
        memory.nearest_tokens([[1, 2]], training)


def test_a_reciting_model_is_told_from_one_that_learned():
    generator = np.random.default_rng(0)
    training, held_out, fresh = generator.standard_normal((3, 500, 6))
    recited = np.concatenate([training[:250], fresh[250:]])
    usual, of_fresh, of_recited = (
        arrays.nearest(samples, training)[1][:, 0] for samples in (held_out, fresh, recited)
    )
    of_fresh, of_recited = (memory.memorised(found, usual) for found in (of_fresh, of_recited))
    assert of_fresh.value < 0.03 and 0.5 <= of_recited.value < 0.52


def test_duplicates_are_counted_once_less_than_they_occur():
    images = np.zeros((5, 2, 2, 3), np.uint8)
    images[1], images[3] = 1, 1
    share, groups = memory.duplicates(images)
    assert share.value == 3 / 5 and groups == [[0, 2, 4], [1, 3]]
    share, groups = memory.duplicates(["a", "b", "c"])
    assert share.value == 0 and groups == []


def test_equal_bytes_of_another_shape_are_no_duplicates():
    a, b = np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8)
    assert len({*memory.digests([a, b, a.astype(bool), a.copy()])}) == 3


def test_a_bootstrap_interval_holds_95_percent_of_a_normal_distribution():
    found = intervals.bootstrap(np.random.default_rng(0).normal(size=400))
    assert 3.7 < (found.high - found.low) / found.standard_error < 4.15  # 2 x 1.96 = 3.92
