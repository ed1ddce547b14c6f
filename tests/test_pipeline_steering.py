"""Steering through the Python face, on a run that was never trained."""

import numpy as np
import pytest

from udd_jax.steering import painted

A, B = "a red circle", "a small blue square"
ALL = np.ones((32, 32), bool)
HALF = np.arange(32)[None].repeat(32, 0) < 16


def test_weights_1_and_0_are_one_prompt_bit_for_bit(pipe):
    bare = pipe.text_to_image(A, num=4, seed=2)
    for prompts in ([(A, 1), (B, 0)], [(B, 0), (A, 1)], [(A, 0.25), (A, 0.75)]):
        result = pipe.text_to_image(prompts=prompts, num=4, seed=2)
        np.testing.assert_array_equal(result.tokens, bare.tokens)
        assert result.branches == 1 and result.captions == [A] * 4


def test_weighted_prompts_steer_and_say_their_calls(pipe):
    bare = pipe.text_to_image(A, num=4, seed=2)
    result = pipe.text_to_image(prompts=[(A, 1), (B, 0.5)], num=4, seed=2)
    assert result.branches == 3 and (result.tokens != bare.tokens).any()
    size = pipe._sample._cache_size()
    other = pipe.text_to_image(prompts=[(B, 1), ([A], 0.7, "linear")], num=4, seed=2)
    assert pipe._sample._cache_size() == size  # new prompts and weights need no compilation
    assert (other.tokens != result.tokens).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompts": [(A, 1), (B, -1)]}, r"the weights of the prompts \(1, -1\) sum to 0"),
        ({"prompts": [({"sound": A}, 1)]}, r"'sound' is not a modality"),
        ({"prompts": [(A, 1)], "given": {"text": B}}, r"prompts and given both have 'text'"),
        ({"prompts": [(A, 1)], "guide": print}, r"prompts and guide are both given"),
        ({"prompts": [([A, B], 1), ([A] * 3, 1)]}, r"prompts: 2 and 3 of 'text'"),
        ({"given": {"text": A}, "best_of": 0}, r"best_of = 0, expected a whole number, at least 1"),
        ({"given": {"text": A}, "best_of": 2, "by": "taste"}, r"by = 'taste', expected 'bound'"),
        (
            {"given": {"text": A}, "best_of": 2, "by": lambda ids: ids["image"]},
            r"by: the function returned \[2, 16\], expected \[2\], a number for each candidate",
        ),
        (
            {"given": {"text": A}, "best_of": 2, "by": "match"},
            r"this run has no dual encoder: train",
        ),
        (
            {"given": {"text": A}, "paint": [("square", HALF)]},
            r"'square' is not in the prompt 'a re",
        ),
        (
            {"given": {"text": A}, "paint": [("red", HALF[1:])]},
            r"paint 0: the mask is bool\[31, 32\], exp",
        ),
        (
            {"given": {"text": A}, "paint": [("red", ~ALL)]},
            r"paint 0: expected a mask with white",
        ),
        ({"given": {"text": A}, "paint": [("red", HALF, "x")]}, r"paint 0: weight 'x', expected a"),
        ({"given": {"text": A}, "paint": ["red"]}, r"paint 0: 'red', expected \(phrase, mask"),
    ],
)
def test_bad_steering_is_one_line(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe.generate("t2i", **options)


def test_a_negative_prompt_that_no_branch_reads_is_one_line(pipe):
    for prompts in ([(A, 0.5), (B, 0.5)], [(A, 1.0)]):
        with pytest.raises(ValueError, match="negative changes nothing, the weights of the p"):
            pipe.text_to_image(prompts=prompts, negative=B)
    bare = pipe.text_to_image(prompts=[(A, 2.0)], num=4, seed=2)
    away = pipe.text_to_image(prompts=[(A, 2.0)], num=4, seed=2, negative=B)
    assert (bare.tokens != away.tokens).any()


def test_painted_words_steer_and_a_weight_of_0_changes_no_bit(pipe):
    bare = pipe.text_to_image(A, num=4, seed=2)
    nothing = pipe.text_to_image(A, num=4, seed=2, paint=[("red circle", HALF, 0)])
    np.testing.assert_array_equal(nothing.tokens, bare.tokens)
    painted = pipe.text_to_image(A, num=4, seed=2, paint=[("red circle", HALF, 9.0)])
    assert (painted.tokens != bare.tokens).any() and (bare.branches, painted.branches) == (1, 3)
    with pytest.raises(ValueError, match="1 phrases and 2 masks for 4 prompts, expected one or"):
        pipe.text_to_image([A] * 4, paint=[("red circle", np.stack([HALF, HALF]))])
    each = pipe.text_to_image([A] * 2, num=2, seed=2, paint=[("red", np.stack([HALF, HALF]))])
    same = pipe.text_to_image([A] * 2, num=2, seed=2, paint=[("red", HALF)])
    np.testing.assert_array_equal(each.tokens, same.tokens)
    with pytest.raises(ValueError, match="paint is for images of a given text"):
        pipe.pairs(2, paint=[("red", HALF)])


def test_the_words_of_a_phrase_are_found_in_the_prompt(pipe):
    ids = pipe.codecs["text"].encode([B, "a circle above a blue square"], True)
    words = painted._words(pipe, ["Blue square"] * 2, ids)
    for row, own in zip(ids, words, strict=True):
        assert pipe.codecs["text"].decode([row[own]]) == ["blue square"]


def test_the_best_of_4_is_the_candidate_of_the_largest_bound(pipe):
    """In the other direction; the batches do not matter."""
    all_of_them = pipe.text_to_image([A, B], num=4, seed=3)
    ids = {k: np.asarray(v) for k, v in pipe.vocab.split(all_of_them.tokens).items()}
    bits = pipe.score(ids, task="i2t", times=8, common=True).sum(1).reshape(2, 4)
    ranking = pipe.rerank(ids["image"], ids["text"], num=4)
    np.testing.assert_allclose(ranking.scores, bits)
    np.testing.assert_array_equal(ranking.order, (-bits).argsort(axis=1))
    best = [pipe.text_to_image([A, B], best_of=4, seed=3, batch_size=n).tokens for n in (64, 5)]
    np.testing.assert_array_equal(*best)
    np.testing.assert_array_equal(
        best[0], all_of_them.tokens[np.array([0, 4]) + ranking.order[:, 0]]
    )


def test_candidates_are_ranked_by_a_function_of_ones_own(pipe):
    def darkest(tokens):
        return -tokens["image"].sum(1)

    all_of_them = pipe.images(4, seed=1)
    captions = [A] * 4
    ranking = pipe.rerank(all_of_them.images, captions, num=4, by=darkest)
    ids = pipe.codecs["image"].encode(all_of_them.images)
    np.testing.assert_array_equal(ranking.order[0], ids.sum(1).argsort(kind="stable"))
    with pytest.raises(ValueError, match="task 'image' has no other direction"):
        pipe.images(2, best_of=2)
    with pytest.raises(ValueError, match="4 candidates are not a multiple of num = 3"):
        pipe.rerank(all_of_them.images, captions, num=3)


def test_an_option_that_a_scorer_does_not_have_is_one_line(pipe, pictures):
    picture = pictures[0][0]
    assert pipe.scorer("like", picture, style=0.5)
    with pytest.raises(ValueError, match=r"^scorer 'palette': weights is unknown, it has no opt"):
        pipe.scorer("palette", picture, weights="a")
    with pytest.raises(ValueError, match=r"^scorer 'like': scale is .* some of content, style$"):
        pipe.scorer("like", picture, scale=2)


def test_an_edit_changes_a_share_of_the_codes_in_each_round(pipe, pictures):
    images, _ = pictures
    before = pipe.codecs["image"].encode(images)
    after = pipe.edit(images, A, rounds=1, share=0.25, seed=1)
    changed = np.asarray(pipe.vocab.split(after.tokens)["image"]) != before
    assert changed.any() and (changed.sum(1) <= 4).all() and after.captions == [A] * 4
    again = pipe.edit(images, A, rounds=1, share=0.25, seed=1)
    np.testing.assert_array_equal(after.tokens, again.tokens)
    with pytest.raises(ValueError, match=r"share = 2, expected a number in \(0, 1\]"):
        pipe.edit(images, A, share=2)


def test_an_edit_of_a_picture_does_not_depend_on_how_many_others_are_edited(pipe, pictures):
    images, _ = pictures
    many = pipe.edit(images, A, rounds=2, seed=1)
    first = pipe.edit(images[:1], A, rounds=2, seed=1)
    np.testing.assert_array_equal(first.tokens, many.tokens[:1])


def test_what_leads_each_picture_leads_all_its_edits_and_extensions(pipe, pictures):
    images, captions = pictures[0][:2], pictures[1][:2]
    asked = {"negative": {"text": captions}, "weigh": {"text": [0.5, 2.0]}, "guidance": 2.0}
    each = {"negative": {"text": [c for c in captions for _ in "ab"]}, "guidance": 2.0}
    each["weigh"] = {"text": [0.5, 0.5, 2.0, 2.0]}
    twice = np.repeat(images, 2, axis=0)
    both = pipe.edit(images, A, rounds=1, seed=1, num=2, **asked)
    np.testing.assert_array_equal(both.tokens, pipe.edit(twice, A, rounds=1, seed=1, **each).tokens)
    alike = pipe.edit(images, A, rounds=1, seed=1, num=2, guidance=2.0)
    assert (both.tokens != alike.tokens).any()
    both = pipe.outpaint(images, A, extend={"left": 8}, seed=1, num=2, **asked)
    wide = pipe.outpaint(twice, A, extend={"left": 8}, seed=1, **each)
    np.testing.assert_array_equal(both, wide)


def test_outpainting_keeps_the_picture(pipe, pictures):
    images, captions = pictures
    wide = pipe.outpaint(images, captions, extend={"left": 8}, seed=1)
    assert wide.shape == (4, 32, 40, 3)
    np.testing.assert_array_equal(wide[:, :, 8:], images)
    assert (wide[:, :, :8] != pipe.outpaint(images, extend={"left": 8}, seed=2)[:, :, :8]).any()
