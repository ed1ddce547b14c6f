"""The origin of a number: versions, the commit, devices, peak memory. Computed only here."""

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
    """The version of Python and of each package; None if a package is not installed."""
    found = {"python": platform.python_version()} | dict.fromkeys(packages)
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def commit(digits: int = 40) -> str | None:
    """The commit of the checkout that has the package, with "-dirty" if files were changed.

    Without a checkout, as in a container, it is the value of UDD_COMMIT.
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
    """The versions, the commit and the devices of this process."""
    found = {name: version for name, version in versions().items() if version}
    at = commit()
    if at:
        found["commit"] = at
    return found | {"devices": [str(d) for d in jax.devices()]}


def machine() -> str:
    """The devices in a line: "2 CPU cores, no accelerator found", or "4 x NVIDIA H100 (gpu)"."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        split = f", as {len(devices)} devices" if len(devices) > 1 else ""
        return f"{cores} CPU core{'s' * (cores != 1)}{split}, no accelerator found"
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    each = f", {memory / 2**30:.0f} GiB each" if memory else ""
    return f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}{each})"


def peak_gib() -> float:
    """Peak memory so far, GiB: of the fullest device of this process.

    If devices do not report it, as on a CPU, it is the peak of the process.
    """
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(s.get("peak_bytes_in_use", 0) for s in stats)
    return round((peak or _own_peak()) / 2**30, 3)


def _own_peak() -> int:
    """Peak memory of this process, bytes. On Linux not `ru_maxrss`, which begins with what the
    process had that started this one."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
