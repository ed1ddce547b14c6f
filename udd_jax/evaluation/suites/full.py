"""The suite "full": measures that need more time, feature networks or Java.

    pictures        Frechet distance, KID, Inception score, precision and recall of images from
                    held-out captions, against the images of the same items (image_sets.py)
    agreement       CLIP score, R-precision, and the report by category
    captions        BLEU, METEOR, ROUGE-L, CIDEr-D, SPICE against all captions of the item; length,
                    variety, copies of training captions
    retrieval       the caption of an image, the image of a caption (retrieval.py)
    round_trips     image -> text -> image and text -> image -> text
    memory          pairs and their nearest training pairs; duplicates
    reconstruction  of the image tokenizer: SSIM, LPIPS, Frechet distance
    recognition     names of pictures, read by a classifier of real ones (recognition.py)
    judges          the answers of human judges (judges.py)
    steering        edits, painted words, scorers, the best of some (steering.py)
    speed           samples a second, cold and warm; network calls; peak memory

`measure` returns a tree of these. Its leaves are numbers, dicts of an `intervals.Estimate`, or
{"unmeasured": why}. Slow results are stored next to the samples and reused: samples of round trips,
scores of pairs, features (by content).
"""

import contextlib
import dataclasses
import functools
import itertools
import subprocess
import time

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from udd_jax import values
from udd_jax.data import reading
from udd_jax.errors import UserError
from udd_jax.evaluation import (
    feature_networks,
    held_out,
    image_sets,
    manifest,
    nearest_training,
    recognition,
    retrieval,
    samples,
)
from udd_jax.evaluation.metrics import agreement, alignment, captions, intervals, java, memory
from udd_jax.evaluation.suites import judges, steering
from udd_jax.runtime import provenance

JUDGES = "judges"  # a folder of the run
SHOWN = 8  # neighbours and round trips kept for the page
LACKS = "(none)"  # the category of records that lack the field
NOTHING = "<nothing>"  # replaces an empty caption: a word that no reference has


def measure(pipe, workdir, items, drawn, files, nets, timed) -> dict:
    """All parts, in the order above.

    drawn: {task: samples} of the suite "main"; files: of `image_sets.ready`; nets: of
    `feature_networks.load`; timed: name -> a context manager that measures the time of a part.
    """
    folder, options = workdir / samples.FOLDER, pipe.config.evaluate
    kinds = categories(items, options.category)
    training = nearest_training.open_cache(workdir)
    parts = {
        "pictures": lambda: image_sets.measure(pipe, items, drawn["t2i"], files, workdir, nets),
        "agreement": lambda: agreements(items, drawn["t2i"], kinds, nets["clip"]),
        "captions": lambda: captioning(pipe, items, drawn["i2t"]),
        "retrieval": lambda: retrieved(pipe, items, kinds, folder),
        "round_trips": lambda: round_trips(pipe, items, drawn, folder),
        "memory": lambda: remembered(pipe, items, drawn["pair"], training, folder),
        "reconstruction": lambda: image_sets.reconstructed(pipe, items, workdir, nets),
        "recognition": lambda: recognition.measure(pipe, items, drawn, workdir, folder),
        "judges": lambda: judged(items, drawn["t2i"], workdir / JUDGES, options),
        "steering": lambda: steering.measure(pipe, items, folder, options),
        "speed": lambda: speed(pipe, drawn, options),
    }
    for name, part in parts.items():
        with timed(name):
            parts[name] = plain(part())
    return parts


def plain(tree):
    """The tree with each Estimate and Unmeasured as a dict."""
    if isinstance(tree, dict):
        return {name: plain(value) for name, value in tree.items()}
    return dataclasses.asdict(tree) if dataclasses.is_dataclass(tree) else tree


def unmeasured(tree, name: str = "") -> dict[str, str]:
    """{name: reason} of the measures that were not taken; the name is "part: ...: leaf"."""
    if not isinstance(tree, dict):
        return {}
    if "unmeasured" in tree:
        return {name: tree["unmeasured"]}
    found = {}
    for key, value in tree.items():
        found |= unmeasured(value, f"{name}: {key}" if name else key.replace("_", " "))
    return found


def categories(items, field: str) -> list[str] | None:
    """The category of each item, or None.

    It is the category of its scene if the data are an embedded world with categories, else the
    field of its record that `evaluate.category` names, LACKS where the record has none. ValueError
    if all records lack the field.
    """
    if items.world and items.world.category:
        return list(map(items.world.category, items.scenes))
    if not field:
        return None
    known = sorted({str(name) for extra in items.extra for name in extra})
    if field not in known:
        raise UserError(
            f"evaluate.category = {field!r} is not a field of the data, expected one of "
            f"{', '.join(known) or 'none'}"
        )
    return [str(extra.get(field, LACKS)) for extra in items.extra]


# ---- Agreement ----------------------------------------------------------------------------------


def agreements(items, drawn, kinds, clip) -> dict:
    """CLIP score and R-precision of images with their captions, and scores by category."""
    texts, report, values = items.captions[: len(drawn)], {}, {}
    if items.world:
        values["agreement"] = agreement.agreed(items.world, drawn.images, texts)
    lack = clip if isinstance(clip, intervals.Unmeasured) else None
    if not lack and clip.texts is None:
        why = f"CLIP's text encoder needs {feature_networks.MERGES} beside its weights"
        lack = intervals.Unmeasured(why)
    if lack:
        report |= {"CLIP score": lack, "R-precision": lack}
    else:
        of_images = np.concatenate([clip.images(b) for b in image_sets.batched(drawn.images)])
        starts = range(0, len(texts), image_sets.ROWS)
        of_texts = np.concatenate([clip.texts(texts[i : i + image_sets.ROWS]) for i in starts])
        report["CLIP score"] = alignment.clip_score(of_images, of_texts)
        equal = retrieval.equal_texts(texts)
        among = min(100, len(texts) - int(equal.sum(1).max()) + 1)
        if among > 1:
            report[f"R-precision among {among}"] = alignment.r_precision(
                of_images, of_texts, among, equal
            )
        values["CLIP score"] = 2.5 * np.maximum(alignment.cosine(of_images, of_texts), 0)
    if kinds is None:
        why = "the data name no categories: evaluate.category may name a field of their records"
        report["by category"] = intervals.Unmeasured(why)
    else:
        report["by category"] = {
            name: alignment.by_category(scores, kinds[: len(drawn)])
            for name, scores in values.items()
        } or intervals.Unmeasured("nothing gives single pictures a score here")
    if items.world and items.world.category:  # also name the categories that no item has
        none = intervals.Unmeasured(f"none of the {len(kinds)} items is of this category")
        for scores in report["by category"].values():
            scores |= {name: none for name in items.world.categories if name not in scores}
    return report


# ---- Captions -----------------------------------------------------------------------------------


def captioning(pipe, items, drawn) -> dict:
    """The caption measures: generated captions against all captions of their images."""
    lack = java.missing()
    tokenize = (lambda texts: list(map(captions.tokenize, texts))) if lack else java.tokenize
    references = items.references[: len(drawn)]
    counts = np.cumsum([0, *map(len, references)])
    flat = tokenize([text for texts in references for text in texts])
    split = [flat[a:b] for a, b in itertools.pairwise(counts)]
    truth = [[text for text in texts if text.split()] or [NOTHING] for texts in split]
    raw = tokenize(list(drawn.captions))
    told = [text if text.split() else NOTHING for text in raw]
    report = {
        "count": len(told),
        "references of an image": float(np.mean([len(texts) for texts in truth])),
        "tokenizer": "plain" if lack else "PTB",
        "empty": sum(text == NOTHING for text in told),
        **captions.report(told, truth),
        "METEOR": _meteor(told, truth, lack),
        "SPICE": java.spice(told, truth),
        "length": intervals.bootstrap([float(len(text.split())) for text in raw]),
        "length of the references": intervals.bootstrap(
            [np.mean([len(text.split()) for text in texts]) for texts in truth]
        ),
    }
    for n in (1, 2):
        if any(len(text.split()) >= n for text in told):
            report[f"distinct-{n}"] = captions.distinct(told, n)
    known = (captions.tokenize(text) for text in reading.captions(held_out.source(pipe, "train")))
    plain_told = [captions.tokenize(text) or NOTHING for text in drawn.captions]
    return report | {"copied from training": captions.copied(plain_told, known)}


def _meteor(told, truth, lack):
    if lack:
        return intervals.Unmeasured(f"METEOR needs pycocoevalcap and Java: {lack}")
    try:
        return java.meteor(told, truth)[0]
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return intervals.Unmeasured(f"METEOR's Java program failed: {error}")


# ---- Both ---------------------------------------------------------------------------------------


def retrieved(pipe, items, kinds, folder) -> dict:
    """Retrieval by likelihood in both directions, among items with different captions."""
    options = pipe.config.evaluate
    if not options.retrieval:
        return dict.fromkeys(retrieval.WAYS, intervals.Unmeasured("evaluate.retrieval = 0"))
    count = min(options.retrieval, len(items))
    return retrieval.measure(
        pipe,
        items,
        retrieval.equal_captions(items, count),
        folder / "retrieval.npz",
        among=options.among,
        times=options.bound_times,
        seed=options.seed,
        made_of=manifest.made_of(pipe),
        categories=None if items.world else kinds,
    )


def _ids(pipe, name: str, tokens) -> np.ndarray:
    """The local ids of a modality in samples int32[n, L], as its tokenizer gives them."""
    split = {n: np.asarray(ids, np.int32) for n, ids in pipe.vocab.split(tokens).items()}
    return pipe.vocab.joined(name, split)


def round_trips(pipe, items, drawn, folder) -> dict:
    """Round trips: the result against the beginning, and for chance against another item."""
    options = pipe.config.evaluate
    count = min(options.round_trips, len(drawn["i2t"]), len(drawn["t2i"]))
    if not count:
        return {"all": intervals.Unmeasured("evaluate.round_trips = 0")}
    ids = _ids(pipe, "text", drawn["i2t"].tokens[:count])
    codes = _ids(pipe, "image", drawn["t2i"].tokens[:count])
    there = dataclasses.replace(
        items,
        images=drawn["t2i"].images[:count],
        captions=drawn["i2t"].captions[:count],
        codes=codes,
        ids=ids,
        hash=memory.digests([np.concatenate([ids, codes], axis=1)])[0][:16],
    )
    back = {
        task: samples.obtain(
            pipe,
            there,
            task,
            folder / "back" / f"{task}.npz",
            count=count,
            batch_size=min(options.batch_size, count),
            seed=values.later_seed(options.seed),
            made_of=manifest.made_of(pipe),
        )
        for task in ("t2i", "i2t")
    }
    first, last = items.codes[:count], _ids(pipe, "image", back["t2i"].tokens)
    tokenized = [
        [captions.tokenize(text) or NOTHING for text in texts]
        for texts in (items.captions[:count], back["i2t"].captions)
    ]
    same = [[text] for text in tokenized[0]]
    other = same[1:] + same[:1]
    report = {
        "image to text to image": {
            "codes kept": intervals.bootstrap((first == last).mean(1)),
            "codes kept by chance": intervals.bootstrap((np.roll(first, 1, 0) == last).mean(1)),
        },
        "text to image to text": {
            "the same caption": intervals.bootstrap(
                [a == b for a, b in zip(*tokenized, strict=True)]
            ),
            "ROUGE-L": intervals.bootstrap(captions.rouge_l(tokenized[1], same)),
            "ROUGE-L by chance": intervals.bootstrap(captions.rouge_l(tokenized[1], other)),
        },
    }
    if items.world:
        agrees = functools.partial(agreement.agreed, items.world)
        shown, told = items.images[:count], items.captions[:count]
        both = agrees(shown, there.captions) & agrees(back["t2i"].images, there.captions)
        report["image to text to image"]["both images fit the text"] = intervals.bootstrap(both)
        both = agrees(there.images, told) & agrees(there.images, back["i2t"].captions)
        report["text to image to text"]["both texts fit the image"] = intervals.bootstrap(both)
    few = slice(min(SHOWN, count))
    some = {"images": items.images[few], "back_images": back["t2i"].images[few]}
    some |= {"middle_images": there.images[few], "middle_texts": there.captions[few]}
    some |= {"texts": items.captions[few], "back_texts": back["i2t"].captions[few]}
    samples.write(folder / "round_trips.npz", some)
    return {"count": count, **report}


# ---- Memory -------------------------------------------------------------------------------------


def remembered(pipe, items, drawn, training, folder) -> dict:
    """The distance of generated pairs to training, compared with that of held-out pairs.

    Also the share of duplicates.
    """
    made = nearest_training.pairs_of(pipe.vocab, drawn.tokens)
    repeats, equals = memory.duplicates(np.concatenate([*made.values()], axis=1))
    report = {"duplicates": repeats, "largest group of equals": max(map(len, equals), default=1)}
    if training is None:
        why = "the run has no token cache, so that its training pairs are not known"
        return report | {"nearest training pair": intervals.Unmeasured(why)}
    others, kind = items, "held-out"
    with contextlib.suppress(ValueError):  # if the split exists: it is most like training
        others, kind = held_out.read(pipe, len(drawn), "validation"), "validation"
    pairs, apart = nearest_training.nearest(training, made)
    _, apart_truth = nearest_training.nearest(training, others.tokens)
    nearest = np.argsort(apart, kind="stable")[:SHOWN]
    some = {"images": drawn.images[nearest], "captions": [drawn.captions[i] for i in nearest]}
    some |= {
        "near_images": pipe.tokenizers["image"].decode(pairs["image"][nearest]),
        "apart": apart[nearest],
    }
    some |= {"near_captions": pipe.codecs["text"].decode(pairs["text"][nearest])}
    samples.write(folder / "neighbours.npz", some)
    return report | {
        "tokens apart from the nearest training pair": intervals.bootstrap(apart),
        f"the same of {kind} pairs": intervals.bootstrap(apart_truth),
        "equal to a training pair": intervals.bootstrap(apart == 0),
        f"{kind} pairs equal to one": intervals.bootstrap(apart_truth == 0),
        f"nearer than 99 % of {kind} pairs": memory.memorised(apart, apart_truth),
    }


# ---- Judges, speed ------------------------------------------------------------------------------


def judged(items, drawn, folder, options):
    """Writes the sheets for judges of these samples, and scores the answers to them.

    An answer sheet that cannot be read is no reason to lose the other measures.
    """
    count = min(options.judged, len(drawn))
    texts = items.captions[:count]
    judges.update(folder, items.images[:count], drawn.images[:count], texts, options.seed)
    try:
        return judges.score(folder)
    except UserError as error:
        return intervals.Unmeasured(str(error))


def speed(pipe, drawn, options) -> dict:
    """The time of one batch of pairs: a first call with compilation, then a second call."""
    count, fresh = options.batch_size, dataclasses.replace(pipe)
    seconds = []
    with _no_compilation_cache():
        for _ in range(2):
            started = time.perf_counter()
            fresh.generate("pair", count, batch_size=count, seed=options.seed)
            seconds.append(time.perf_counter() - started)
    return {
        "batch": count,
        "seconds, cold": seconds[0],
        "seconds, warm": seconds[1],
        "samples a second, cold": count / seconds[0],
        "samples a second, warm": count / seconds[1],
        "network calls a sample": float(np.mean(drawn["pair"].calls)),
        "peak memory, GiB": provenance.peak_gib(),
        "devices": jax.device_count(),
    }


@contextlib.contextmanager
def _no_compilation_cache():
    """Turns the compilation cache off, so that programs are compiled and not read from the disk."""
    folder = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_compilation_cache_dir", folder)
        compilation_cache.reset_cache()
