"""Single changes of the core, each with the fast tests that must notice it.

    python -m tests.mutants                  run all
    python -m tests.mutants --only=bound     those whose name matches the pattern
    python -m tests.mutants --new            those without a result in mutants.json

Each change is made in a temporary copy of the tree, in which the tests of its line are run with
`pytest -x -n 0 -m "not slow"`. A change that a test notices is killed; one that passes SURVIVED: a
claim is missing, or the change has no meaning and should leave the list. `tests/mutants.json` holds
the results. A fragment must be in one place of the package that its line names, so that moving code
from file to file leaves the list as it is; `tests/test_mutants.py` sees to that.
"""

from tests.mutants import (
    captions,
    diffusion,
    learning,
    metrics,
    networks,
    sampling,
    tokenizers,
)

PARTS = (diffusion, sampling, learning, metrics, networks, tokenizers, captions)
MUTANTS = tuple(mutant for part in PARTS for mutant in part.MUTANTS)
