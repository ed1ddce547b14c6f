"""Two results side by side."""

import pytest

from udd_jax.evaluation import compare
from udd_jax.runtime import files


def result(**changes) -> dict:
    """A result of the suite "full" with a number of every kind."""
    made = {
        "headline": [
            {"task": "i2t", "name": "caption agrees", "value": 0.75, "error": 0.03},
        ],
        "tokenizer": {"psnr": {"value": 26.0, "standard_error": 0.1}},
        "bounds": {"pair": {"value": 0.6, "standard_error": 0.01}},
        "full": {
            "captions": {"distinct-1": 0.5, "tokenizer": "PTB"},
            "pictures": {"FID": {"value": 12.5, "standard_error": None}},
        },
        "speed": {"samples_a_second": 20.0, "total_seconds": 4000.0, "seconds": {"t2i": 3.0}},
        "manifest": {
            "protocol": {"settings": {"steps": 5, "top_r": 0.75}, "items": "ab", "split": "test"},
            "run": {"weights": "w1", "image_tokenizer": "i1", "text_tokenizer": "t1"},
            "versions": {"jax": "0.10.2"},
            "hardware": {"cores": 2},
        },
    }
    for path, value in changes.items():
        *way, last = path.split("__")
        here = made
        for name in way:
            here = here[name]
        here[last] = value
    return made


def shown(tmp_path, first, second) -> list[str]:
    for name, made in (("a", first), ("b", second)):
        files.write_json(tmp_path / name / "evaluation.json", made)
    return compare.show(tmp_path / "a", tmp_path / "b/evaluation.json").splitlines()


def test_numbers_stand_side_by_side_with_their_difference(tmp_path):
    other = [{"task": "i2t", "name": "caption agrees", "value": 1.0, "error": 0.04}]
    lines = shown(tmp_path, result(), result(headline=other))
    rows = {line.split("  ")[0]: line.split() for line in lines}
    # .25 apart, in errors of hypot(.03, .04) = .05
    assert rows["i2t: caption agrees"][-4:] == ["0.7500", "1.0000", "+0.2500", "+5.0"]
    assert rows["pictures: FID"][-3:] == ["12.5000", "12.5000", "+0.0000"]
    assert rows["captions: distinct-1"][-3:] == ["0.5000", "0.5000", "+0.0000"]
    assert rows["speed: total seconds"][-3:] == ["4000", "4000", "+0.0000"]
    assert "captions: tokenizer" not in rows
    assert all(len(line) <= 100 for line in lines[2:])


def test_rules_stand_side_by_side_too(tmp_path):
    rules = lambda rate: {"sound|text": {"agreement": {"rate": rate, "error": 0.03}}, "text": {}}  # noqa: E731
    first, second = result(), result()
    first["rules"], second["rules"] = rules(0.75), rules(0.875)
    row = next(x for x in shown(tmp_path, first, second) if x.startswith("sound|text: agreement"))
    assert row.split()[2:5] == ["0.7500", "0.8750", "+0.1250"]


def test_what_one_of_them_lacks_leaves_a_gap(tmp_path):
    lines = shown(tmp_path, result(), result(full__pictures={}))
    row = next(line for line in lines if line.startswith("pictures: FID"))
    assert row.split()[2:] == ["12.5000"]
    lines = shown(tmp_path, result(full__pictures={}), result())
    row = next(line for line in lines if line.startswith("pictures: FID"))
    assert row.split()[2:] == ["12.5000"] and row.endswith("12.5000")


def test_what_the_two_are_comes_first(tmp_path):
    other = result(manifest__run__weights="w2", manifest__versions__jax="0.10.3")
    lines = shown(tmp_path, result(), other)
    assert lines[0].startswith("A  weights w1") and lines[1].startswith("B  weights w2")
    assert lines[2] == "versions.jax: 0.10.2 and 0.10.3"


def test_bits_a_token_of_other_tokens_are_not_set_side_by_side(tmp_path):
    lines = shown(tmp_path, result(), result(manifest__run__image_tokenizer="i2"))
    assert [line.split()[-1] for line in lines if "bits a token" in line] == ["0.6000"] * 2


def test_a_result_of_another_suite_is_one_line(tmp_path):
    files.write_json(tmp_path / "samplers.json", {"manifest": {"protocol": {}}, "rows": []})
    with pytest.raises(ValueError, match="is not of the suite main or full: it has no headline"):
        compare.show(tmp_path / "samplers.json", tmp_path / "samplers.json")


def test_results_of_different_protocols_are_refused_by_name(tmp_path):
    other = result(manifest__protocol__settings={"steps": 9, "top_r": 0.75, "top_k": 3})
    other["manifest"]["protocol"]["items"] = "cd"
    with pytest.raises(ValueError) as caught:
        shown(tmp_path, result(), other)
    assert str(caught.value) == (
        "not comparable, the protocols differ in settings.steps (5 and 9), items (ab and cd), "
        "settings.top_k (nothing and 3)"
    )


def test_what_changes_no_number_of_both_makes_no_other_protocol(tmp_path):
    of = {"suite": "full", "features": {"clip": "a"}, "items": "ab", "data": "folder:/a"}
    evaluate = {"samples": 8, "batch_size": 4, "retrieval": 200, "category": "style"}
    first = result(manifest__protocol=of | {"evaluate": evaluate})
    other = {"suite": "main", "items": "ab", "data": "folder:/b"}
    changed = evaluate | {"batch_size": 2, "retrieval": 9, "category": ""}
    second = result(manifest__protocol=other | {"evaluate": changed})
    assert shown(tmp_path, first, second)  # main with full, moved data, another batch
    full = result(manifest__protocol=of | {"evaluate": changed})
    with pytest.raises(ValueError, match=r"evaluate.retrieval \(200 and 9\), evaluate.category"):
        shown(tmp_path, first, full)
    second["manifest"]["protocol"]["items"] = "cd"
    with pytest.raises(ValueError, match=r"items \(ab and cd\), data \(folder:/a and folder:/b\)"):
        shown(tmp_path, first, second)


def test_what_is_no_result_is_refused(tmp_path):
    files.write_json(tmp_path / "evaluation.json", {"scores": {}})
    with pytest.raises(ValueError, match=r"no manifest\.protocol"):
        compare.show(tmp_path, tmp_path)
