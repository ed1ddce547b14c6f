"""Retrieval by the likelihood of the model: which caption belongs to an image, and vice versa.

For image i and caption j in a group of n held-out items

    s[i, j] = the bound on log2 p(text j | image i), in bits, with the same noise for all pairs

The same noise makes the scores comparable. The caption of an image is the maximum of its row; the
image of a caption is the maximum of its column. A short or common caption is likely for every
image. So a third score subtracts log2 p(text j), the likelihood of the caption alone, from s[i, j].

Groups are filled in order with items whose captions differ (in an embedded world: no caption is
true of the image of another item). Then exactly one answer is right, and chance is 1 / n.
"""

import json
import pathlib

import numpy as np

from udd_jax.evaluation import samples
from udd_jax.evaluation.metrics import alignment, intervals, likelihood

ALONE = "caption of an image, beyond what it costs alone"
WAYS = ("caption of an image", "image of a caption", ALONE)


def equal_texts(texts) -> np.ndarray:
    """Which texts are equal, bool[n, n]."""
    number = np.unique(list(texts), return_inverse=True)[1]
    return number[:, None] == number[None]


def equal_captions(items, count: int | None = None) -> np.ndarray:
    """Whether the caption of item j is not wrong for the image of item i, bool[n, n].

    In an embedded world it may be true of another image, too, and one that cannot be parsed, such
    as one that is cut, may be; elsewhere it has to be equal. count: of the first items; None: all.
    """
    texts, world = items.captions[:count], items.world
    if not world:
        return equal_texts(texts)
    meanings = [world.parse_caption(text) for text in texts]
    return np.array(
        [[m is None or world.agrees(scene, m) for m in meanings] for scene in items.scenes[:count]]
    )


def groups(equal: np.ndarray, size: int) -> np.ndarray:
    """Groups of items of which no two are equal, int64[G, size]; equal: bool[N, N].

    Each item joins the first group that it fits. Groups that stay incomplete are left out.
    """
    found = []
    for item in range(len(equal)):
        for group in found:
            if len(group) < size and not equal[item, group].any() and not equal[group, item].any():
                group.append(item)
                break
        else:
            found.append([item])
    return np.array([g for g in found if len(g) == size], np.int64).reshape(-1, size)


def measure(pipe, items, equal, path, *, among, times, seed, made_of, categories=None) -> dict:
    """For each of `WAYS` the share of right answers: ranked first, and among the first five.

    among: the group size n; times: noise levels of the bound; made_of: hashes of the model. The
    scores are kept in the file `path` and reused. categories: a name for each item; adds the shares
    by name. `Unmeasured` if no group can be filled.
    """
    chosen = groups(equal, among)
    if not len(chosen):
        few = f"{len(items)} items make no group of {among} different ones"
        return dict.fromkeys(WAYS, intervals.Unmeasured(few))
    about = {"items": items.hash, "among": among, "times": times, "seed": seed, **made_of}
    given, alone = _kept(pathlib.Path(path), json.dumps(about), chosen) or _scores(
        pipe, items, chosen, times, seed, json.dumps(about), path
    )
    tables = {WAYS[0]: given, WAYS[1]: given.swapaxes(1, 2)}
    if np.isfinite(alone).all():
        tables[ALONE] = given - alone
    report = {}
    for way, table in tables.items():
        hits = {k: np.concatenate([likelihood.recall_at(t, k) for t in table]) for k in (1, 5)}
        report[way] = {f"first {k}": intervals.bootstrap(h) for k, h in hits.items() if k < among}
        if categories is not None:
            names = [categories[item] for item in chosen.ravel()]
            report[way]["by_category"] = alignment.by_category(hits[1], names)
    if ALONE not in report:
        report[ALONE] = intervals.Unmeasured("this network knows no caption without an image")
    return report | {"among": among, "chance": 1 / among}


def _scores(pipe, items, chosen, times, seed, about, path):
    """Scores (caption given image float64[G, n, n], caption alone float64[G, 1, n])."""
    count, size = chosen.shape
    image, text = np.repeat(chosen, size, axis=1).ravel(), np.tile(chosen, (1, size)).ravel()

    def bits(task, image, text):
        pairs = {"image": items.codes[image], "text": items.ids[text]}
        return pipe.score(pairs, task=task, times=times, seed=seed, common=True).sum(1)

    given = bits("i2t", image, text).reshape(count, size, size)
    if pipe.model.time == "shared":
        alone = np.full((count, 1, size), np.nan)
    else:
        alone = bits("text", chosen.ravel(), chosen.ravel()).reshape(count, 1, size)
    samples.write(path, {"given": given, "alone": alone, "chosen": chosen, "about": about})
    return given, alone


def _kept(path, about, chosen):
    file = samples.stored(path)
    if file and str(file["about"]) == about and np.array_equal(file["chosen"], chosen):
        return file["given"], file["alone"]
    return None
