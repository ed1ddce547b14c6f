"""Claims about the lock: the living keep it, the dead do not."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from udd_jax.runtime import lock


def test_second_run_is_refused_while_the_first_lives(tmp_path):
    folder = tmp_path / "run"
    with lock.hold(folder):
        expected = (
            rf"is in use by process {os.getpid()} on {socket.gethostname()} since 20.*Z?: wait"
        )
        with pytest.raises(ValueError, match=expected), lock.hold(folder):
            pass
    said = []
    with lock.hold(folder, say=said.append):
        pass
    assert said == []


def test_lock_of_a_killed_process_is_recognised(tmp_path):
    code = "import sys, time; from udd_jax.runtime import lock\n" \
           "with lock.hold(sys.argv[1]): print('held', flush=True); time.sleep(600)"  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {process.pid} on"), lock.hold(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    said = []
    with lock.hold(tmp_path, say=said.append):
        assert str(os.getpid()) in (tmp_path / "lock").read_text()
    assert len(said) == 1 and f"process {process.pid}" in said[0] and "was killed" in said[0]
