"""Pictures by feature networks: generated ones and real ones, as sets.

Frechet distance, KID, precision and recall compare features of Inception and of CLIP; the Inception
score looks at Inception's classes alone. Pictures go through a network a few at a time and their
features into a file, named by their content (metrics/cache.py): 30,000 of them need no more memory
than a batch, and a set is measured once.
"""

import itertools

import numpy as np

from udd_jax.evaluation import feature_networks, held_out, manifest, samples
from udd_jax.evaluation.metrics import cache, frechet, intervals, memory, quality
from udd_jax.tokenizers import reconstruction

FEATURES = "features"  # a folder of the run
STATES = 2048  # features of the Inception network, in front of its class probabilities
COMPARED = ("Frechet distance", "KID", "precision", "recall")
ROWS = 32  # pictures that go through a network at once


def measure(pipe, drawn, files, workdir, nets) -> dict:
    """Measures of generated pictures by each network: those in `files`, one of which is in memory
    at a time, or else those drawn."""
    count = pipe.config.evaluate.pictures or len(drawn)

    def real():
        return batched(example.pixels[0] for example, _ in held_out.stream(pipe, count))

    def made():
        kept = (samples.load(file).images for file in files) if files else [drawn.images]
        return batched(itertools.chain.from_iterable(kept))

    report = {"count": count, "reference": "pictures of the items whose captions were given"}
    for name in ("inception", "clip"):
        net = nets[name]
        if isinstance(net, intervals.Unmeasured):
            scores = ("Inception score",) if name == "inception" else ()
            report[name] = dict.fromkeys((*COMPARED, *scores), net)
            continue
        tables = [_features(workdir, batches, name, net) for batches in (made, real)]
        report[name] = compared(*(table[:, : _width(name)] for table in tables))
        if name == "inception":
            rows = tables[0][:, STATES:]
            splits = min(10, len(rows))
            report[name]["Inception score"] = quality.inception_score(rows, splits)
    return report


def compared(made, real) -> dict:
    """Of features [n, D] of generated and of real pictures all that compares the two."""
    few = intervals.Unmeasured(f"{min(len(made), len(real))} pictures are too few")
    found = dict.fromkeys(COMPARED, few)
    if min(len(made), len(real)) >= 2:
        found |= {"Frechet distance": frechet.fid(made, real), "KID": quality.kid(made, real)}
    if min(len(made), len(real)) > quality.NEIGHBOURS:
        found |= quality.precision_recall(made, real)
    return found


def ready(pipe, workdir) -> list | None:
    """Makes this process's share of the `evaluate.pictures` images that are measured; their files,
    or None where those of the task t2i do."""
    options = pipe.config.evaluate
    if not options.pictures:
        return None
    texts = [example.captions[0] for example, _ in held_out.stream(pipe, options.pictures)]
    ids = pipe.codecs["text"].encode(texts, strict=False)
    digest = memory.digests([ids])[0][:16]
    return samples.make(
        pipe,
        held_out.Items("", None, texts, None, ids, [], digest, [], []),
        "t2i",
        workdir / samples.FOLDER / "pictures" / "t2i.npz",
        count=len(texts),
        batch_size=min(options.batch_size, len(texts)),
        seed=options.seed,
        made_of=manifest.made_of(pipe),
    )


def _width(name: str) -> int | None:
    return STATES if name == "inception" else None


def _features(workdir, batches, name, net):
    identity = f"{name} {net.hash} {feature_networks.RESIZE}"
    return cache.features(workdir / FEATURES, batches, net.images, identity)


def batched(pictures):
    """uint8[ROWS, S, S, 3] of single pictures, the last one shorter."""
    rows = []
    for picture in pictures:
        rows.append(picture)
        if len(rows) == ROWS:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


def reconstructed(pipe, items, workdir, nets) -> dict:
    """Held-out images through the image tokenizer and back."""
    shown = pipe.tokenizers["image"].decode(items.codes)
    report = {"SSIM": intervals.bootstrap(reconstruction.ssim(shown, items.images))}
    lpips, inception = nets["lpips"], nets["inception"]
    if isinstance(lpips, intervals.Unmeasured):
        report["LPIPS"] = lpips
    else:
        pairs = zip(batched(shown), batched(items.images), strict=True)
        report["LPIPS"] = intervals.bootstrap(np.concatenate([lpips.distance(*p) for p in pairs]))
    if isinstance(inception, intervals.Unmeasured):
        return report | dict.fromkeys(COMPARED, inception)
    tables = [
        _features(workdir, lambda those=those: batched(those), "inception", inception)
        for those in (shown, items.images)
    ]
    return report | compared(*(table[:, :STATES] for table in tables))
