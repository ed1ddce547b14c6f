"""The house: packages import in one direction, only network files know linen, and files are short.

main > stages, generate, embed, demo > sample_files > evaluation > pipeline
     > convert, hub, steering > training > build > values, modalities > data
     > networks, tokenizers, sampling > command_line > diffusion, runtime > errors
"""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "udd_jax"
FLOORS = (  # from the ground up; rooms of one floor do not import each other
    {"errors"},
    {"diffusion", "runtime"},
    {"command_line", "hints"},
    {"networks", "tokenizers", "sampling"},
    {"data", "fields"},
    {"values", "modalities"},
    {"build"},
    {"training"},
    {"convert", "hub", "steering"},
    {"pipeline"},
    {"evaluation"},
    {"sample_files"},
    {"stages", "generate", "embed", "demo"},
    {"main"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
LINEN = {"networks", "tokenizers"}
LONG, WHY = 400, "In one file"  # lines; a longer file says why in a sentence that begins like this
FIRST = (  # to read first, and together a chapter that one reads
    "diffusion.transition",
    "networks.transformer",
    "sampling.reverse",
    "training.train_diffusion",
)
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


def lines(name):
    return len(MODULES[name].read_text().splitlines())


@pytest.mark.parametrize("name", MODULES)
def test_a_long_file_says_why_it_is_one(name):
    about = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    assert lines(name) <= LONG or WHY in about, f"{lines(name)} lines: split it, or say why"


def test_the_four_files_to_read_first_are_1300_lines_at_most():
    assert sum(map(lines, FIRST)) <= 1300


@pytest.mark.parametrize("name", MODULES)
def test_one_file_alone_renames_files(name):
    """`runtime/files.py`. A `replace` with one argument alone is that of a path."""
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call, one = ast.unparse(node.func), len(node.args) == 1 and not node.keywords
            renames = call.endswith(".rename") or call in ("os.replace", "shutil.move")
            renames |= call.endswith(".replace") and call != "dataclasses.replace" and one
            assert not renames or name == "runtime.files", f"line {node.lineno}: {call}"
