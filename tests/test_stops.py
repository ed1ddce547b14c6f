"""A signal ends every mode at once, with one line and its code: 75 after SIGTERM, 130 after SIGINT.

Each test starts the command as a user does. A training, which saves first, is in
`test_survival.py`.
"""

import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.helpers import quick

CONFIG = "--config=configs/t2i.py:smoke"
# {mode: (the function that does its work, the words of a command)}
MODES = {
    "sample": ("udd_jax.generate.sample", ("--prompt=a circle",)),
    "evaluate": ("udd_jax.stages.evaluate_run", ("--workdir=run",)),
    "train": ("udd_jax.stages.run", (CONFIG, "--workdir=run")),
    "tokenize": ("udd_jax.stages.run", (CONFIG, "--workdir=run")),
    "data": ("udd_jax.stages.describe_data", (CONFIG,)),
    "plan": ("udd_jax.training.plan.describe", (CONFIG,)),
    "embed": ("udd_jax.embed.run", ("--workdir=run", "--out=data")),
    "replay": ("udd_jax.training.replay.run", ("--workdir=run",)),
    "export": ("udd_jax.stages.export", ("--workdir=run", "--out=small")),
    "convert": ("udd_jax.convert.command.run", ("--from=unid3", "--checkpoint=a.ckpt")),
}
FAST = ("sample", "evaluate")
# The command, where this function stays in its work and catches whatever a signal might raise.
HELD = """
import importlib, os, sys, time
from udd_jax import main
def hold(*arguments, **options):
    os.write(1, b"works\\n")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            os.write(1, b"caught\\n")
place, _, name = sys.argv.pop(1).rpartition(".")
setattr(importlib.import_module(place), name, hold)
main.keep_memory = lambda: None
main.command()
"""


def stopped(command, number, folder, moment, **environment) -> tuple[int, str, str]:
    """(exit code, what it printed, its errors) of a process that gets a signal at a moment.

    moment: waits for it, given the process.
    """
    env = quick.environment(PYTHONUNBUFFERED="1", UDD_KEEP_MEMORY="0", **environment)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, *command], cwd=folder, env=env, **pipes)
    safety = threading.Timer(300, process.kill)
    safety.start()
    moment(process)
    process.send_signal(number)
    out, err = process.communicate()
    safety.cancel()
    return process.returncode, out, err


@pytest.mark.parametrize(
    "mode", [pytest.param(m, marks=() if m in FAST else pytest.mark.slow) for m in MODES]
)
def test_sigterm_ends_every_mode_at_once_with_one_line_and_75(mode, tmp_path):
    work, words = MODES[mode]
    command = ("-c", HELD, work, f"--mode={mode}", *words)
    works = lambda process: "works\n" in process.stdout  # noqa: E731, or its end, where it dies
    code, out, err = stopped(command, signal.SIGTERM, tmp_path, works)
    assert (code, out, err.strip()) == (75, "", "stopped by SIGTERM")


TEMPORARY = """
import os, pathlib, signal, time
from udd_jax.runtime import stopping

stopping.end_at_once()
pathlib.Path("folder").mkdir()
for name in ("file", "folder/inside"):
    pathlib.Path(name).touch()
for name in ("file", "folder"):
    stopping.remove_at_end(name)
if not (child := os.fork()):
    time.sleep(60)
time.sleep(0.2)
os.kill(child, signal.SIGTERM)
os.waitpid(child, 0)
print("works" if os.path.exists("file") else "gone", flush=True)
time.sleep(60)
"""


def test_temporary_files_go_with_their_process_when_a_signal_ends_it(tmp_path):
    """And not with a process that was forked from it. They had filled the disk."""
    said = []
    moment = lambda process: said.append(process.stdout.readline())  # noqa: E731
    code, _, _ = stopped(("-c", TEMPORARY), signal.SIGTERM, tmp_path, moment)
    assert said == ["works\n"] and code == 75
    assert not (tmp_path / "file").exists() and not (tmp_path / "folder").exists()


def test_every_mode_but_the_page_which_closes_itself_is_stopped_here():
    from udd_jax import command_line

    assert MODES.keys() == command_line.MODES.keys() - {"demo"}


def test_ctrl_c_ends_a_mode_at_once_with_one_line_and_130(tmp_path):
    work, words = MODES["sample"]
    command = ("-c", HELD, work, "--mode=sample", *words)
    works = lambda process: process.stdout.readline()  # noqa: E731
    code, out, err = stopped(command, signal.SIGINT, tmp_path, works)
    assert (code, out, err.strip()) == (130, "", "stopped by Ctrl-C")


def test_an_exit_code_that_cannot_be_is_a_line_in_every_mode(tmp_path):
    env = quick.environment(UDD_EXIT_CODE="many", UDD_KEEP_MEMORY="0")
    command = [sys.executable, "-m", "udd_jax.main", "--mode=plan", CONFIG]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: UDD_EXIT_CODE = 'many', expected a number from 1 to 255\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_compiles_ends_at_once_and_never_by_a_segmentation_fault(number, tmp_path):
    expected = {signal.SIGTERM: (75, "stopped by SIGTERM"), signal.SIGINT: (130, "stopped by Ct")}
    command = ("-m", "udd_jax.main", "--mode=sample", "--prompt=a red circle", "--out=out")
    for seconds in (0.2, 1, 2, 3):  # nothing is compiled before, so it compiles for longer

        def compiles(process, seconds=seconds):
            process.stdout.readline()  # the line about the machine, before the first compilation
            time.sleep(seconds)

        new = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / f"{seconds}"), "XLA_FLAGS": ""}
        begun = time.monotonic()
        code, _, err = stopped(command, number, tmp_path, compiles, **new)
        assert (code, err.strip()[: len(expected[number][1])]) == expected[number]
        assert "Traceback" not in err and len(err.strip().splitlines()) == 1
        assert time.monotonic() - begun < 120
