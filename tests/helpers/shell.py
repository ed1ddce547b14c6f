"""The command line in this process: its flags, and what they start."""

import contextlib
import signal
import sys
import warnings

from absl.testing import flagsaver

from udd_jax import command_line, main


@contextlib.contextmanager
def flags():
    """A function that reads words as the command line does, and returns those that are not flags.

    Afterwards every flag is as before.
    """
    argv = sys.argv

    def parse(*words):
        sys.argv = ["udd_jax", *words]
        sys.modules.pop("config_config", None)  # what an earlier config left there
        for name in command_line.TAKES:
            command_line.FLAGS[name].unparse()
        for name in [name for name in command_line.FLAGS if name.startswith("config.")]:
            delattr(command_line.FLAGS, name)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            rest = command_line.parse(sys.argv)
        command_line.check(command_line.FLAGS.mode)
        return rest[1:]

    command_line.FLAGS.mark_as_parsed()
    try:
        with flagsaver.flagsaver():
            yield parse
    finally:
        sys.argv = argv


def run(*words) -> None:
    """Runs the command `udd_jax WORDS` without a process of its own; its errors are raised."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with flags() as parse:
            main.main(["udd_jax", *parse(*words)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
