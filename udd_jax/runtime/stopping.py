"""How a run stops: on SIGTERM from a scheduler, on SIGINT from a person.

In a training the loop learns of the signal (`noting`), saves and ends. Elsewhere, in every mode,
there is nothing to save: the process ends at once, and the next run does its unfinished work again.
The exit code after a SIGTERM, and after any signal in a training, says that the same command goes
on: 75 (EX_TEMPFAIL), or the value of UDD_EXIT_CODE in the environment. Elsewhere a SIGINT is a
person who wants no more: one line, and 130 as of any program.

Many processes have to stop after the same step. JAX coordinates this step: from
`jax.distributed.initialize` on it handles SIGTERM, and nothing else would learn of it. `Together`
takes the signal back, and tells JAX during a training.
"""

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time

from udd_jax.errors import UserError

TOGETHER = 0.5  # seconds
INTERRUPTED = 130  # the exit code after a SIGINT outside a training: 128 + 2


def exit_code() -> int:
    """The exit code of a run that was stopped; ValueError if UDD_EXIT_CODE cannot be one."""
    code = os.environ.get("UDD_EXIT_CODE", "75")
    if not code.isdecimal() or not 0 < int(code) < 256:
        raise UserError(f"UDD_EXIT_CODE = {code!r}, expected a number from 1 to 255")
    return int(code)


def end_at_once() -> None:
    """From now on SIGTERM ends the process with one line and `exit_code()`, which may raise
    ValueError.

    It does not unwind: an exception from a signal handler is lost where Python must not raise, as
    in a finaliser or a callback of the compiler, and has crashed compilations.
    """
    code = exit_code()

    def end(*_):
        _tell("stopped by SIGTERM")
        _end(code)

    signal.signal(signal.SIGTERM, end)


def end_on_interrupt() -> None:
    """From now on SIGINT (Ctrl-C) ends the process with one line and the code INTERRUPTED."""

    def end(*_):
        _tell("stopped by Ctrl-C")
        _end(INTERRUPTED)

    signal.signal(signal.SIGINT, end)


def _tell(line: str) -> None:
    """Writes a line from a signal handler, where `print` may be in the middle of a write."""
    with contextlib.suppress(Exception):
        os.write(sys.stderr.fileno(), f"\n{line}\n".encode())


def remove_at_end(path) -> None:
    """Removes a temporary file or folder when the process ends, also by a signal."""
    if not _TEMPORARY:
        atexit.register(_clean)
    _TEMPORARY.append((os.getpid(), str(path)))


_TEMPORARY: list[tuple[int, str]] = []  # a forked process has the list, and does not own the files


def _clean() -> None:
    for path in (path for owner, path in _TEMPORARY if owner == os.getpid()):
        with contextlib.suppress(Exception):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _end(code: int) -> None:
    _clean()
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # it may be in the middle of a write
            stream.flush()
    os._exit(code)


def take_back(index: int, count: int) -> None:
    """Handles SIGTERM again after `jax.distributed.initialize`, as process `index` of `count`."""
    if count > 1:
        Together(first=index == 0)
    else:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


class Together:
    """Handles SIGTERM in one of many processes, even while it waits for the others.

    Python runs a signal handler only between two of its own instructions, so a thread watches.
    """

    def __init__(self, first: bool):
        self.first, self.training, self.code = first, False, exit_code()
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        theirs = libc.signal(signal.SIGTERM, None)
        self.tell_jax = ctypes.CFUNCTYPE(None, ctypes.c_int)(theirs)
        self.read, write = os.pipe()
        os.set_blocking(write, False)
        signal.signal(signal.SIGTERM, self)
        signal.set_wakeup_fd(write)
        threading.Thread(target=self.watch, daemon=True).start()

    def __call__(self, number, frame):
        """Does nothing: the watching thread already knows."""

    def watch(self):
        while True:
            if os.read(self.read, 1)[0] == signal.SIGTERM:
                if self.training:
                    self.tell_jax(signal.SIGTERM)
                else:
                    self.end()

    def end(self):
        # JAX aborts the other processes when the first one ends, so it lets them end before it. A
        # process that shuts down in order would wait for minutes until all do.
        time.sleep(5 if self.first else 0)
        _clean()
        os._exit(self.code)


@contextlib.contextmanager
def noting():
    """A list that gets the name of the first SIGTERM or SIGINT; the next one acts as before.

    Those within TOGETHER seconds are one stop: `launch/run.sh` passes on what the terminal, or the
    end of the machine, says to the whole group. A line says so at once, since a step may be long,
    and the first one compiles. With many processes the list stays empty, because JAX handles the
    signal.
    """
    received, previous, times = [], {}, []

    def put_back():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number, _):
        times.append(time.monotonic())
        if len(times) == 1:
            received.append(signal.Signals(number).name)
            _tell(f"{received[0]}: stopping after this step; again ends at once")
        elif times[-1] - times[0] > TOGETHER:
            put_back()
            signal.raise_signal(number)

    together = signal.getsignal(signal.SIGTERM)
    if isinstance(together, Together):
        together.training = True
    elif threading.current_thread() is threading.main_thread():
        previous = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        put_back()
        if isinstance(together, Together):
            together.training = False
