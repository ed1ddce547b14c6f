"""The list of mutants fits the source: each fragment is in one place, each change is Python."""

import ast
import collections
import functools

import pytest

from tests import mutants
from tests.mutants.mutant import ROOT


@functools.cache
def parsed(text: str) -> str:
    return ast.dump(ast.parse(text))


def test_names_are_unique():
    counts = collections.Counter(m.name for m in mutants.MUTANTS)
    assert max(counts.values()) == 1


@pytest.mark.parametrize("package", sorted({m.package for m in mutants.MUTANTS}))
def test_a_fragment_is_in_one_place_and_its_change_is_python(package):
    for mutant in (m for m in mutants.MUTANTS if m.package == package):
        files = mutant.places()
        assert len(files) == 1, (mutant.name, [str(file) for file in files])
        before = files[0].read_text()
        assert parsed(before.replace(mutant.old, mutant.new)) != parsed(before), mutant.name
        paths = [word for word in mutant.tests.split() if word.startswith("tests/")]
        assert paths and all((ROOT / path).is_file() for path in paths), mutant.name
