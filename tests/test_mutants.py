"""The list of mutants fits the source: each fragment is in one place, each change is Python."""

import ast
import collections
import pathlib

import pytest

from tests import mutants
from tests.mutants.mutant import ROOT


def test_names_are_unique():
    counts = collections.Counter(m.name for m in mutants.MUTANTS)
    assert max(counts.values()) == 1


@pytest.mark.parametrize("package", sorted({m.package for m in mutants.MUTANTS}))
def test_a_fragment_is_in_one_place_and_its_change_is_python(package):
    texts = [path.read_text() for path in (ROOT / "udd_jax" / package).rglob("*.py")]
    for mutant in (m for m in mutants.MUTANTS if m.package == package):
        assert sum(text.count(mutant.old) for text in texts) == 1, mutant.name
        assert mutant.old != mutant.new, mutant.name
        (text,) = (text for text in texts if mutant.old in text)
        ast.parse(text.replace(mutant.old, mutant.new), mutant.name)
        paths = [word for word in mutant.tests.split() if word.startswith("tests/")]
        assert paths and all(pathlib.Path(ROOT, path).is_file() for path in paths), mutant.name
