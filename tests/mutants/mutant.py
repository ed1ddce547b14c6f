"""A single change of the source, and where it is made."""

import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]


class Mutant(NamedTuple):
    """In `package`, a folder of udd_jax, the one `old` becomes `new`; `tests` for pytest."""

    name: str
    package: str
    old: str
    new: str
    tests: str

    def places(self, root: pathlib.Path = ROOT) -> list[pathlib.Path]:
        """The files of the package that hold the fragment, as often as they hold it."""
        files = sorted((root / "udd_jax" / self.package).rglob("*.py"))
        return [file for file in files for _ in range(file.read_text().count(self.old))]


def of(package: str, tests: str, *changes: tuple[str, str, str]) -> list[Mutant]:
    """Changes (name, old, new) of a package with the same tests."""
    return [Mutant(name, package, old, new, tests) for name, old, new in changes]
