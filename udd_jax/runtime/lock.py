"""One run for each work folder: a lock that a dead process cannot keep.

The kernel holds the lock (`flock`) on the file `lock` in the folder, so the lock ends with the
process, however the process ends. The file says who holds the lock. If it says so and the lock is
free, a killed run left it behind. In a run of many processes the first one holds the lock. An
object store (`gs://`) has no locks: there the scheduler must not start a run twice.
"""

import contextlib
import datetime
import fcntl
import json
import os
import pathlib
import socket

import jax

from udd_jax.errors import UserError
from udd_jax.runtime import files

FILE = "lock"


@contextlib.contextmanager
def hold(directory, say=print, flag="--workdir"):
    """Holds the work folder while the block runs; makes the folder if it is missing.

    ValueError: another run holds it. `say` gets a line about a run that was killed. flag: what
    names the folder on the command line.
    """
    if files.in_bucket(directory) or (jax.distributed.is_initialized() and jax.process_index() > 0):
        yield
        return
    path = pathlib.Path(directory) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{directory} is in use by {_holder(path)}: "
                f"wait for it, stop it, or choose another {flag}"
            ) from None
        except OSError as error:
            say(f"{directory} cannot be locked ({error.strerror}): start no second run in it")
        if path.stat().st_size:
            say(f"{directory} was left by {_holder(path)}, which was killed: going on")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "process": os.getpid(), "since": now}
        file.truncate(0)
        file.write(json.dumps(holder) + "\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(path) -> str:
    try:
        return "process {process} on {host} since {since}".format(**json.loads(path.read_text()))
    except (ValueError, KeyError):
        return "another process"
