"""What a run does when it is told to stop: SIGTERM from a scheduler, SIGINT from a person.

In a training the loop hears of it (`noting`), saves and ends. Elsewhere there is nothing to save:
the process ends at once, and what it was at is done again. Either way the exit code says that the
same command goes on: 75 (EX_TEMPFAIL), or what the environment's UDD_EXIT_CODE says.

Many processes have to stop after the same step. JAX agrees on it, and takes SIGTERM for that from
`jax.distributed.initialize` on, so that nothing else would hear of it; `Together` takes it back and
tells JAX while there is a training.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time


def exit_code() -> int:
    """The exit code of a run that was stopped; ValueError if UDD_EXIT_CODE cannot be one."""
    code = os.environ.get("UDD_EXIT_CODE", "75")
    if not code.isdecimal() or not 0 < int(code) < 256:
        raise ValueError(f"UDD_EXIT_CODE = {code!r}, expected a number from 1 to 255")
    return int(code)


def end_at_once() -> None:
    """From now on SIGTERM ends the process with `exit_code()`; ValueError as there."""
    code = exit_code()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))


def take_back(index: int, count: int) -> None:
    """Answers SIGTERM again after `jax.distributed.initialize`, as process `index` of `count`."""
    if count > 1:
        Together(first=index == 0)
    else:
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


class Together:
    """Answers SIGTERM in one of many processes, even while it waits for the others.

    Python runs a handler between two of its own instructions only, so a thread watches.
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
        """Nothing: the watcher has heard of it already."""

    def watch(self):
        while True:
            if os.read(self.read, 1)[0] == signal.SIGTERM:
                if self.training:
                    self.tell_jax(signal.SIGTERM)
                else:
                    self.end()

    def end(self):
        # Without the first process JAX aborts the others: it lets them go ahead. And a process that
        # ends in order would wait for minutes until all do.
        time.sleep(5 if self.first else 0)
        os._exit(self.code)


@contextlib.contextmanager
def noting():
    """A list that gets the name of the first SIGTERM or SIGINT; the next one acts as before.

    Of many processes it stays empty: JAX knows.
    """
    received, previous = [], {}

    def put_back():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(number, _):
        received.append(signal.Signals(number).name)
        put_back()

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
