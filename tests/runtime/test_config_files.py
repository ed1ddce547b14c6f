"""Config files are found from any folder, and may import each other wherever they are."""

import pathlib
import sys

import pytest

from udd_jax.runtime import config_files

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder; what `configs` meant before is put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "configs", sys.modules.get("configs"))
    return tmp_path


def test_without_one_here_the_config_is_that_of_the_package(elsewhere):
    packaged = str(config_files.FOLDER / "t2i.py")
    assert config_files.find("configs/t2i.py:smoke") == packaged + ":smoke"
    assert config_files.find("t2i.py") == packaged
    assert config_files.find("configs/none.py:smoke") == "configs/none.py:smoke"
    assert config_files.find("other/t2i.py") == "other/t2i.py"


def test_ones_own_comes_first_and_may_import_those_of_the_package(elsewhere):
    (elsewhere / "configs").mkdir()
    own = elsewhere / "configs" / "t2i.py"
    own.write_text(
        "from configs import base, mine\n"
        "def get_config(arg=''):\n"
        "    c = base.get_config()\n"
        "    c.name = mine.NAME + arg\n"
        "    return c\n"
    )
    (elsewhere / "configs" / "mine.py").write_text("NAME = 'mine-'\n")
    assert config_files.find("configs/t2i.py") == "configs/t2i.py"
    c = config_files.load("configs/t2i.py:smoke")
    assert c.name == "mine-smoke" and c.train.steps > 0


@pytest.mark.parametrize("flag", ("--config=", "-config=", "--config"))
def test_a_command_line_gets_the_path_that_exists(elsewhere, flag):
    value = "configs/i2t.py:smoke"
    words = [flag + value] if flag.endswith("=") else [flag, value]
    found = config_files.in_arguments(["job", *words, "--config.train.steps=3", "--configure=a"])
    assert found[-2:] == ["--config.train.steps=3", "--configure=a"]
    assert found[-3].removeprefix(flag) == f"{config_files.FOLDER / 'i2t.py'}:smoke"
    assert sys.modules["configs"].__path__[-1] == str(config_files.FOLDER)
