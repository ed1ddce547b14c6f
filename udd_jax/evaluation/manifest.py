"""What a number depends on, written down beside it.

protocol    what two results must share to be compared: data, items, settings, seed, and of the
            suite "full" the hashes of feature networks and how captions are tokenised
run         hashes of the weights and of the tokenizers
item_ids    of the split, in order; samples: how many of each task
and versions, hardware, commit, seconds, for who wants the same digits again.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import time

import jax
import numpy as np

from udd_jax.data import pixels
from udd_jax.runtime import trees

PACKAGES = ("udd_jax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy", "pillow")
PACKAGES += ("sentencepiece", "pycocoevalcap")


def make(
    pipe,
    items,
    suite: str,
    measured_by: dict | None = None,
    counts: dict | None = None,
    seconds: float | None = None,
) -> dict:
    """Everything that the numbers depend on.

    measured_by: is added to the protocol; counts: samples of each task; seconds: of the whole.
    """
    device = jax.devices()[0]
    about = {"items": items.hash, "item_count": len(items)}
    return {
        "protocol": protocol(pipe, suite) | (measured_by or {}) | about,
        "run": made_of(pipe),
        "source": items.name,
        "item_ids": items.keys,
        "samples": counts,
        "parameters": sum(int(np.prod(p.shape)) for p in jax.tree.leaves(pipe.params)),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "hardware": {
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        },
        "commit": _commit(),
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def protocol(pipe, suite: str) -> dict:
    """What follows from the config of that which two results must share to be compared."""
    config = pipe.config
    options = config.evaluate.to_dict()
    options.pop("weights", None)  # a folder; the weights' hashes are what counts
    split = options.pop("split", "test")
    return json.loads(
        json.dumps(
            {
                "suite": suite,
                "data": config.data,
                "data_options": config.data_options.to_dict(),
                "split": split,
                "image_size": config.image_size,
                "crop": pixels.CROP,
                "filter": pixels.FILTER,
                "evaluate": options,
                "settings": dataclasses.asdict(pipe.settings()),
            }
        )
    )


def made_of(pipe) -> dict:
    """The hashes of what is measured."""
    return {
        "weights": _hash(pipe.params),
        "image_tokenizer": pipe.image.hash,
        "text_tokenizer": pipe.text.hash[:16],
    }


def _hash(params) -> str:
    """16 hex digits of names, shapes and values."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(params).items()):
        leaf = np.asarray(leaf)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()[:16]


def peak_gib() -> float:
    """Of the first accelerator, or of the process where there is none."""
    stats = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return round(stats.get("peak_bytes_in_use", resident) / 2**30, 3)


def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None


def _commit() -> str | None:
    """The commit of the checkout that the package stands in, "-dirty" where it was changed."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return done.stdout.strip()
    return None
