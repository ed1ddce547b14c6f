"""Compares the set of generated images with a set of real ones, by feature networks.

Frechet distance, KID, precision and recall compare features of Inception and of CLIP. The Inception
score uses Inception's class probabilities only. Images pass through a network in small batches, and
their features go to a file that is named by their content (metrics/cache.py). So 30,000 images need
only the memory of a batch, and the features of a set are computed once.
"""

import itertools

import numpy as np

from udd_jax.evaluation import feature_networks, held_out, manifest, samples
from udd_jax.evaluation.metrics import cache, frechet, intervals, memory, quality
from udd_jax.tokenizers import reconstruction

FEATURES = "features"  # a folder of the run
STATES = 2048  # number of Inception's features; its class probabilities follow them in a row
COMPARED = ("Frechet distance", "KID", "precision", "recall")
ROWS = 32  # images in a batch


def measure(pipe, items, drawn, files, workdir, nets) -> dict:
    """The measures of the generated images, by each network.

    The images are those in `files` (of `ready`; one file in memory at a time), compared with the
    first of the split, or those in `drawn` if `files` is None, compared with `items`. nets: of
    `feature_networks.load`. Returns {network: {measure: Estimate or Unmeasured}}, and the number
    and kind of the images.
    """
    asked, without = pipe.config.evaluate.pictures, items.left_out
    count = sum(map(samples.count, files)) if files else len(drawn)

    def real():
        if not files:
            return batched(items.images[:count])
        examples = held_out.stream(pipe, asked, without=without)
        return batched(example.pixels[0] for example in examples)

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
    """{measure: Estimate} for COMPARED, from features [n, D] of generated and of real images."""
    few = intervals.Unmeasured(f"{min(len(made), len(real))} pictures are too few")
    found = dict.fromkeys(COMPARED, few)
    if min(len(made), len(real)) >= 2:
        found |= {"Frechet distance": frechet.fid(made, real), "KID": quality.kid(made, real)}
    if min(len(made), len(real)) > quality.NEIGHBOURS:
        found |= quality.precision_recall(made, real)
    return found


def ready(pipe, workdir, without=frozenset()) -> list | None:
    """Generates the `evaluate.pictures` images to measure; this process makes its share.

    Returns their files, or None if `evaluate.pictures` is 0: then the samples of task t2i are used.
    without: keys of the items that are left out of the measurement.
    """
    options = pipe.config.evaluate
    if not options.pictures:
        return None
    stream = held_out.stream(pipe, options.pictures, without=without)
    found = [(example.captions[0], example.key) for example in stream]  # no pixels
    texts, keys = map(list, zip(*found, strict=True))
    ids = pipe.codecs["text"].encode(texts, strict=False)
    digest = memory.digests([ids])[0][:16]
    return samples.make(
        pipe,
        held_out.Items("", None, texts, None, ids, [], digest, keys, []),
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
    """Yields uint8[ROWS, S, S, C] from single images; the last batch may be smaller."""
    rows = []
    for picture in pictures:
        rows.append(picture)
        if len(rows) == ROWS:
            yield np.stack(rows)
            rows = []
    if rows:
        yield np.stack(rows)


def reconstructed(pipe, items, workdir, nets) -> dict:
    """Measures of held-out images that the image tokenizer encoded and decoded."""
    shown = pipe.tokenizers["image"].decode(items.codes)
    small = f"the pictures have a side below {reconstruction.WINDOW} pixels, the window of SSIM"
    report = {"SSIM": intervals.Unmeasured(small)}
    if reconstruction.window_fits(shown):
        report["SSIM"] = intervals.bootstrap(reconstruction.ssim(shown, items.images))
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
