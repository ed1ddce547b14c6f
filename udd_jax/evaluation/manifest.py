"""The manifest of a result: everything that its numbers depend on.

protocol    two results must share it to be compared: data, items, settings, seed; for the suite
            "full" also the hashes of the feature networks and the tokenizer of captions
run         hashes of the weights and of the tokenizers
item_ids    of the split, in order; samples: how many of each task
versions, hardware, commit, seconds    for readers who want to reproduce the exact digits
"""

import dataclasses
import hashlib
import json
import os
import platform
import time

import jax
import numpy as np

from udd_jax import modalities
from udd_jax.data import pixels
from udd_jax.runtime import provenance, trees

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
    """The manifest as JSON values.

    measured_by: added to the protocol; counts: {task: number of samples}; seconds: of the whole
    evaluation.
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
        "versions": provenance.versions(PACKAGES),
        "hardware": {
            "device": device.device_kind,
            "devices": jax.device_count(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        },
        "commit": provenance.commit(digits=12),
        "seconds": seconds,
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


# What only the suite "full" reads: entries of the protocol, and fields of `evaluate`.
FULL = ("suite", "features", "resize", "caption_tokenizer")
FULL_OPTIONS = (
    *("retrieval", "among", "round_trips", "judged", "steering", "pictures", "category"),
)


def protocol(pipe, suite: str) -> dict:
    """The part of the protocol that follows from the config."""
    config = pipe.config
    options = config.evaluate.to_dict()
    options.pop("weights", None)  # a folder; the protocol has the hashes of the weights instead
    options.pop("aims", None)  # no number depends on what is asked of it
    split = options.pop("split", "test")
    for later in ("rules", "listener"):  # later fields, off
        if not options.get(later):
            options.pop(later, None)
    own = {"sample_rules": config.sample_rules.to_dict()} if config.get("sample_rules") else {}
    if first := config.get("begin_with"):
        own["begin_with"] = list(first)
    names = modalities.further(config)
    if (channels := modalities.image_channels(config)) != modalities.CHANNELS:
        own["image_channels"] = channels
    further = {"further": {n: modalities.rows(config)[n] for n in names}} if names else {}
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
                **own,
                **further,
            }
        )
    )


def of_main(protocol: dict) -> dict:
    """The entries of a protocol that the numbers of the suite "main" depend on."""
    options = {n: v for n, v in protocol.get("evaluate", {}).items() if n not in FULL_OPTIONS}
    return {n: v for n, v in protocol.items() if n not in FULL} | {"evaluate": options}


def made_of(pipe) -> dict:
    """The hashes of the weights and the tokenizers."""
    return {
        "weights": _hash(pipe.params),
        "image_tokenizer": pipe.tokenizers["image"].hash,
        "text_tokenizer": pipe.tokenizers["text"].hash[:16],
        **{f"{n}_tokenizer": pipe.tokenizers[n].hash for n in modalities.further(pipe.config)},
    }


def _hash(params) -> str:
    """16 hex digits of a SHA-256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, leaf in sorted(trees.flatten(params).items()):
        leaf = np.asarray(leaf)
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
    return digest.hexdigest()[:16]
