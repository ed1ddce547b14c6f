"""The device of a measurement: what it is, and what its maker promises."""

import os
import platform as machine

from udd_jax.runtime import provenance
from udd_jax.training import plan


def surroundings(device) -> dict:
    """What everything ran on."""
    import jax

    return {
        "commit": provenance.commit() or "",
        "jax": jax.__version__,
        "device": device.device_kind,
        "machine": f"{machine.machine()}, {len(os.sched_getaffinity(0))} cores",
        "load": os.getloadavg()[0],
        "memory_setting": os.environ.get("GLIBC_TUNABLES", ""),
    }


# A piece of the name that a device gives itself -> the chip in plan.CHIPS.
KINDS = {
    "H100": "H100",
    "H200": "H200",
    "A100": "A100 80GB",
    "TPU v4": "TPU v4",
    "TPU v5 lite": "TPU v5e",
    "TPU v5e": "TPU v5e",
    "TPU v5": "TPU v5p",  # also "TPU v5p"
    "TPU v6 lite": "TPU v6e",
    "TPU v6e": "TPU v6e",
}


def peak_of(device) -> float | None:
    """FLOP/s of the chip by its maker, bfloat16; None where there is no such number."""
    return next((plan.CHIPS[c][0] for k, c in KINDS.items() if k in device.device_kind), None)
