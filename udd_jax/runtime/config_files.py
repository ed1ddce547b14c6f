"""Finds config files from any folder: the user's own first, then those of the package.

`configs/` is next to the package in a checkout, and inside it when installed (setup.py). A config
file anywhere may say `from configs import t2i`: its own folder is searched first.
"""

import importlib
import importlib.util
import pathlib
import sys
import types

_PACKAGE = pathlib.Path(__file__).parents[1]
FOLDER = next(f for f in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if f.exists())
_FLAG = "--config"


def find(name: str) -> str:
    """`name` (a path, after a colon its argument) with the path of an existing file if one exists.

    `configs/t2i.py:smoke` is the file of the package if the current folder does not have it.
    """
    path, colon, argument = name.partition(":")
    packaged = FOLDER / pathlib.Path(path).name
    ours = pathlib.Path(path).parent.name in ("", FOLDER.name) and packaged.exists()
    if ours and not pathlib.Path(path).exists():
        path = str(packaged)
    return path + colon + argument


def make_importable(path: str = "") -> None:
    """Lets `from configs import NAME` find files next to `path`, then those of the package."""
    folders = [str(pathlib.Path(path).absolute().parent)] if path else []
    package = types.ModuleType(FOLDER.name)
    package.__path__ = [*folders, str(FOLDER)]
    sys.modules[FOLDER.name] = package


def in_arguments(argv: list[str]) -> list[str]:
    """The command line whose `--config` is an existing file, if one exists, and can import."""
    argv = list(argv)
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag.replace("--", "-", 1) != _FLAG[1:]:
            continue
        if equals:
            argv[i] = f"{flag}={find(value)}"
        elif i + 1 < len(argv):
            value = argv[i + 1]
            argv[i + 1] = find(value)
        make_importable(find(value).partition(":")[0])
    return argv


def load(name: str):
    """The config of a file such as `configs/t2i.py:cub`, as the command line would read it."""
    path, _, argument = find(name).partition(":")
    make_importable(path)
    spec = importlib.util.spec_from_file_location(f"config_{pathlib.Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()
