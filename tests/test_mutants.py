"""The list of mutants fits the source: each fragment is in one place, each change is Python."""

import ast
import collections

import pytest

from tests import mutants


def test_names_are_unique():
    counts = collections.Counter(m.name for m in mutants.MUTANTS)
    assert max(counts.values()) == 1


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=[m.name for m in mutants.MUTANTS])
def test_a_fragment_is_in_one_place_and_its_change_is_python(mutant):
    files = mutants.places(mutant)
    assert len(files) == 1, [str(file) for file in files]
    before = files[0].read_text()
    after = before.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(before))
    paths = [word for word in mutant.tests.split() if word.startswith("tests/")]
    assert paths and all((mutants.ROOT / path).is_file() for path in paths)
