"""The emoji drawings, where they are, are as the page of the data says."""

import collections
import os
import pathlib
import re

import pytest

from tests.helpers import documented
from udd_jax.data import pixels, sources

EMOJI = pathlib.Path(
    os.environ.get("UDD_EMOJI", documented.ROOT / ".." / "shared" / "data" / "emoji")
)
PAGE = (documented.ROOT / "docs" / "data.md").read_text().partition("## The emoji set")[2]
PAGE = PAGE.partition("\n## ")[0]

pytestmark = pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not there")


@pytest.fixture(scope="module")
def records():
    """{split: the items of its shards}."""
    shares = {"validation": 0, "test": 0}
    open_split = lambda split: sources.open_source(f"webdataset:{EMOJI}", split, **shares)  # noqa: E731
    return {split: open_split(split) for split in ("train", "test")}


def test_the_counts_of_the_styles_are_those_of_the_table(records):
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    counts = {s: collections.Counter(i.extra["style"] for i in items.items)
              for s, items in records.items()}  # fmt: skip
    assert {style: (int(a), int(b)) for style, a, b in rows} == {
        style: (counts["train"][style], counts["test"][style]) for style in counts["train"]
    }
    assert len(rows) == 4


def test_keys_captions_and_pictures_follow_the_rules_of_the_page(records):
    styles = collections.defaultdict(set)
    for source in records.values():
        for item in source.items:
            name, keywords, style = (item.extra[n] for n in ("name", "keywords", "style"))
            expected = [name, *([", ".join([name, *keywords])] if keywords else [])]
            assert list(item.captions) == [*expected, f"{name}, {style} style"]
            assert item.key.rpartition("/")[2] == f"{style}-{item.extra['codepoints']}"
            assert len(keywords) <= 6 and "fe0f" not in item.extra["codepoints"]
            styles[item.extra["codepoints"]].add(style)
        for i in range(0, len(source), 97):
            assert pixels.read(source[i].image).shape == (64, 64, 3)
    assert f"The set has {len(styles):,} emoji" in PAGE
    assert f"{sum(len(found) == 4 for found in styles.values()):,} of them in all four" in PAGE


def test_a_test_drawing_is_a_pair_if_training_has_its_emoji_and_a_concept_if_not(records):
    trained = {item.extra["codepoints"] for item in records["train"].items}
    kinds = collections.Counter(item.extra["split_kind"] for item in records["test"].items)
    for item in records["test"].items:
        assert (item.extra["split_kind"] == "pair") == (item.extra["codepoints"] in trained)
    for kind, count in kinds.items():
        assert f"`{kind}` ({count})" in PAGE
