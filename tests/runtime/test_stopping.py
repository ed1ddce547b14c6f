"""A run that is told to stop ends with the code that starts it again, whatever it is doing."""

import subprocess
import sys

import pytest

BEGIN = "import signal, sys; from udd_jax.runtime import stopping; stopping.end_at_once()\n"
FINALISER = """
class Last:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

print("said")
Last()
print("went on")
"""
SWALLOWED = """
print("said")
try:
    signal.raise_signal(signal.SIGTERM)
except BaseException:
    print("went on")
"""


def ended(code):
    """A process of its own that has run the code, with what it wrote."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("code", [FINALISER, SWALLOWED], ids=["finaliser", "swallowed"])
def test_sigterm_ends_where_an_exception_would_be_lost(code):
    done = ended(BEGIN + code)
    assert (done.returncode, done.stdout) == (75, "said\n"), done.stderr
    assert done.stderr.strip() == "stopped by SIGTERM"


INTERRUPTED = """
import os, signal, sys, time
from udd_jax.runtime import stopping
stopping.end_on_interrupt()
print("said")
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
finally:
    print("went on")
"""


def test_ctrl_c_outside_a_training_is_one_line_and_130():
    done = ended(INTERRUPTED)
    assert (done.returncode, done.stdout) == (130, "said\n")
    assert done.stderr.strip() == "stopped by Ctrl-C"


NOTED = """
import signal, time
from udd_jax.runtime import stopping
with stopping.noting() as received:
    signal.raise_signal(signal.SIGINT)
    print(received)
    time.sleep(stopping.TOGETHER)
    signal.raise_signal(signal.SIGINT)
    print("went on")
"""


def test_a_signal_in_a_training_is_answered_at_once_and_the_next_one_ends():
    code = "from udd_jax.runtime import stopping; stopping.end_on_interrupt()\n" + NOTED
    done = ended(code)
    assert (done.returncode, done.stdout) == (130, "['SIGINT']\n")
    said = "SIGINT: stopping after this step; again ends at once\n\nstopped by Ctrl-C"
    assert done.stderr.strip() == said


BOTH = """
import signal, time
from udd_jax.runtime import stopping
stopping.end_at_once()
with stopping.noting() as received:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGINT)
    print(received)
    time.sleep(stopping.TOGETHER)
    signal.raise_signal(signal.SIGTERM)
    print("went on")
"""


def test_all_signals_of_a_moment_are_one_stop_as_those_of_the_launching_script():
    done = ended(BOTH)
    assert (done.returncode, done.stdout) == (75, "['SIGINT']\n")
    assert done.stderr.count("stopping after this step") == 1
