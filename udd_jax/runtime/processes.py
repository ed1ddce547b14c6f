"""One run of many processes: how they join, wait for each other, and take turns."""

import contextlib
import os

import jax
from jax.experimental import multihost_utils

from udd_jax.errors import UserError
from udd_jax.runtime import stopping


def join(environment=os.environ) -> None:
    """Joins a group of processes if the environment says so; call it before anything else.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID describe the group in full.
    UDD_DISTRIBUTED=1 leaves it to JAX, which knows TPU pods, SLURM and Open MPI. From then on
    stopping.py answers SIGTERM. ValueError if one of the three is missing.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    if any(name in environment for name in names):
        for name in names:
            if name not in environment:
                raise UserError(f"{name} is not set, expected all of {', '.join(names)}")
        for name in names[1:]:
            if not environment[name].isdecimal():
                raise UserError(f"{name} = {environment[name]!r}, expected a number")
        address, count, index = (environment[name] for name in names)
        jax.distributed.initialize(address, int(count), int(index))
    elif environment.get("UDD_DISTRIBUTED") == "1":
        jax.distributed.initialize()
    else:
        return
    stopping.take_back(jax.process_index(), jax.process_count())


def wait_for_all(name: str) -> None:
    """Waits until every process has called this."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def in_turn():
    """The first process runs the block; the others wait, then run it and find its results."""
    if jax.process_index() > 0:
        wait_for_all("turn")
    yield
    if jax.process_index() == 0:
        wait_for_all("turn")
