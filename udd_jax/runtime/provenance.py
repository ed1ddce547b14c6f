"""What made a number: versions, the commit, devices, the peak of memory. Reckoned here only."""

import contextlib
import importlib.metadata
import os
import pathlib
import platform
import resource
import subprocess
import sys

import jax

PACKAGES = ("udd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def versions(packages=PACKAGES) -> dict[str, str | None]:
    """The version of Python and of each package, None where it is not installed."""
    found = {"python": platform.python_version()} | dict.fromkeys(packages)
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(digits: int = 40) -> str | None:
    """The commit of the checkout that the package stands in, "-dirty" where it was changed.

    Where there is no checkout, as in a container, it is what UDD_COMMIT says.
    """
    root = pathlib.Path(__file__).parents[2]
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", f"--abbrev={digits}"]
        command.append("--exclude=*")  # no tags
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
            return done.stdout.strip()
    return os.environ.get("UDD_COMMIT")


def provenance() -> dict:
    """What this process is: versions, commit and devices."""
    found = {name: version for name, version in versions().items() if version}
    at = commit()
    if at:
        found["commit"] = at
    return found | {"devices": [str(d) for d in jax.devices()]}


def peak_gib() -> float:
    """GiB, the most so far: of the fullest device of this process, or, where devices do not say it,
    as on a CPU, of the process itself."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(s.get("peak_bytes_in_use", 0) for s in stats)
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return round((peak or own) / 2**30, 3)
