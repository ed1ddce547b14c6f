"""Batches of tokens that come from pictures: without a token cache, and the held-out ones.

With a token cache they come from there (`data/batches.py`).
"""

import json

import jax
import numpy as np

from udd_jax import modalities
from udd_jax.data import batches, reading, token_checks
from udd_jax.errors import UserError
from udd_jax.runtime import files
from udd_jax.training import further


def held_out(config, source, tokenizers: dict) -> dict | None:
    """The whole records among the first `config.train.held_out` of a source as a batch, or None.

    Returns {"image": int32[n, N], "text": int32[n, M_text]}, and the ids of further modalities.
    """
    count = min(config.train.held_out, len(source))
    if not count:
        return None
    read = reading.examples(source, 0, count, modalities.views(config))
    read = [example for example in read if example.pixels is not None]
    if not read:
        return None
    captions = [example.captions[0] for example in read]
    return {
        "image": tokenizers["image"].encode(np.concatenate([example.pixels for example in read])),
        "text": tokenizers["text"].encode(captions, config.text.length),
        **further.ids(config, tokenizers, [example.extra for example in read]),
    }


def straight(config, workdir, source, tokenizers: dict, share, views):
    """Batches without a token cache: step -> ids by name, as of `held_out`.

    `skipped.jsonl` lists each fault of the data once, also over restarts. The returned function
    raises ValueError if more than `config.skip_limit` of the items cannot be used.
    """
    path, names = (
        workdir / f"skipped{jax.process_index() or ''}.jsonl",
        ("position", "cause", "detail"),
    )
    before = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    listed = {tuple(fault[name] for name in names): None for fault in before}
    seen, c = {}, config  # of this start: files may be mended
    decoded = batches.Decoded(
        source,
        views,
        c.seed,
        c.train.batch_size,
        steps=c.train.steps,
        share=share,
        workers=c.workers,
    )

    def pairs_at(step):
        batch = decoded(step)
        new = [fault for fault in batch["faults"] if fault not in seen]
        seen.update(dict.fromkeys(new))
        if new:
            listed.update(dict.fromkeys(new))
            rows = [json.dumps(dict(zip(names, fault, strict=True))) + "\n" for fault in listed]
            files.write_bytes(path, "".join(rows).encode())
            unusable = {position for position, cause, _ in seen if reading.skipping([cause])}
            limit = c.get("skip_limit", token_checks.LIMIT)
            if reading.too_many(len(unusable), len(source), limit):
                raise UserError(
                    f"{source.name}: {len(unusable)} of {len(source)} items cannot be used, more "
                    f"than {limit:.0%}; {path} lists them: mend them, or set --config.skip_limit="
                )
        ids = tokenizers["text"].encode(batch["captions"], c.text.length)
        found = {"image": tokenizers["image"].encode(batch["image"]), "text": ids}
        return found | further.ids(config, tokenizers, batch["extra"])

    return pairs_at
