"""The house: a file imports from lower floors only, and only the networks know linen."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent / "udd_jax"

FLOORS = [
    {
        "vocab",
        "schedules",
        "sharding",
        "stopping",
        "checkpoint",
        "text",
        "images",
        "page",
        "pickles",
        "lock",
        "logbook",
        "costs",
        "draws",
        "pieces",
        "data.records",
        "data.hashing",
    },
    {
        "tasks",
        "times",
        "diffusion",
        "fused",
        "transformer",
        "vqgan",
        "codebook",
        "features",
        "data.*",
    },
    {"reveal", "guidance", "truncation", "metrics.*", "loop", "bucket"},
    {"sampling"},
    {"pipeline", "train", "train_vq", "published", "convert", "plan"},
    {
        "samples",
        "scores",
        "manifest",
        "neighbours",
        "retrieval",
        "networks",
        "pictures",
        "judges",
        "full",
        "evaluate",
        "contest",
        "tuning",
        "compare",
        "gallery",
        "findings",
        "report",
        "commands",
        "replay",
    },
    {"jobs"},
    {"main"},
]
NETWORKS = {"transformer", "vqgan", "features"}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name != "__init__.py":
            yield name, ast.parse(path.read_text())


MODULES = dict(modules())


def floor(name: str) -> int:
    package = name.split(".")[0] + ".*"
    found = [i for i, names in enumerate(FLOORS) if name in names]
    return (found or [i for i, names in enumerate(FLOORS) if package in names])[0]


def imports(tree):
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("udd_jax"):
            inner = node.module.split(".")[1:]
            for alias in node.names:
                path = [*inner, alias.name]
                while path and not (ROOT.joinpath(*path).with_suffix(".py").exists()):
                    path = path[:-1]
                if path:
                    yield ".".join(path)


def name_of(value):
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("name", "tree"), list(MODULES.items()), ids=name_of)
def test_a_file_imports_no_higher_floor(name, tree):
    for other in imports(tree):
        same_package = name.split(".")[0] == other.split(".")[0]
        neighbours = floor(other) == floor(name)
        assert floor(other) < floor(name) or neighbours, f"{name} imports {other}"
        if neighbours and not same_package:
            back = MODULES[other]
            assert name not in set(imports(back)), f"{name} and {other} import each other"


@pytest.mark.parametrize(("name", "tree"), list(MODULES.items()), ids=name_of)
def test_only_networks_import_linen(name, tree):
    linen = any(
        (isinstance(node, ast.Import) and any("flax.linen" in a.name for a in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "flax.linen")
        for node in ast.walk(tree)
    )
    assert linen == (name in NETWORKS)


def test_every_module_has_a_floor():
    assert all(isinstance(floor(name), int) for name in MODULES)
