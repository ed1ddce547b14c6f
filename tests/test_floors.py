"""The house: packages import in one direction, and only network files know linen.

main > stages, generate > evaluation, pipeline > convert, training > build > data
     > networks, tokenizers, sampling > diffusion, runtime
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "udd_jax"
FLOORS = (  # from the ground up; rooms of one floor do not import each other
    {"diffusion", "runtime"},
    {"networks", "tokenizers", "sampling"},
    {"data"},
    {"build"},
    {"training"},
    {"convert"},
    {"pipeline"},
    {"evaluation"},
    {"stages", "generate"},
    {"main"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LINEN = {"networks", "tokenizers"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py"
}


def imports(path):
    """Full names of what a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_lower_floors_and_its_own_room_only(name):
    room = name.split(".")[0]
    for other in imports(MODULES[name]):
        if other.startswith("udd_jax."):
            target = other.split(".")[1]
            assert target == room or LEVEL[target] < LEVEL[room], f"{name} imports {other}"
        assert not other.startswith("flax.linen") or room in LINEN, f"{name} imports linen"
