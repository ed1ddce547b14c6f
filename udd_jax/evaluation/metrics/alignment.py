"""How well image and caption match, by the embeddings of CLIP and by human judges.

- CLIP score (Hessel et al. 2021, arXiv 2104.08718): the cosine c of the two embeddings, reported as
  c and as 2.5 max(c, 0).
- R-precision (Xu et al. 2018, arXiv 1711.10485): how often an image ranks its own caption first
  among n, with n - 1 captions drawn from the other images. Computed as the exact expectation over
  these draws.
- TeTIm-Eval (Galatolo et al. 2022, arXiv 2212.07839): scores by category of caption, and human
  judges who label each image as real or generated. An accuracy of one half means that judges cannot
  tell the two apart.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import arrays, intervals, likelihood

REAL, GENERATED = "real", "generated"


def cosine(images, texts) -> np.ndarray:
    """The cosine of image i and text i: two arrays [n, D] -> float64[n].

    Raises:
      ValueError: different shapes, NaN, or an embedding of length zero.
    """
    images, texts = _unit("images", images), _unit("texts", texts)
    if images.shape != texts.shape:
        raise UserError(
            f"CLIP score: embeddings of shapes {images.shape} and {texts.shape}, expected one text "
            "an image"
        )
    return (images * texts).sum(1)


def clip_score(images, texts) -> dict[str, intervals.Estimate]:
    """{"cosine", "clip_score"}: the mean cosine, and the mean of 2.5 max(cosine, 0)."""
    cosines = cosine(images, texts)
    return {
        "cosine": intervals.bootstrap(cosines),
        "clip_score": intervals.bootstrap(2.5 * np.maximum(cosines, 0)),
    }


def r_precision(images, texts, among: int = 100, equal=None) -> intervals.Estimate:
    """The share of images [n, D] whose own text [n, D] has the highest cosine among `among`.

    `equal` as in `likelihood.rivals`: pairs of items with the same caption.

    Raises:
      ValueError: as `cosine`, or too few items.
    """
    cosine(images, texts)
    scores = _unit("images", images) @ _unit("texts", texts).T
    return intervals.bootstrap(likelihood.recall_among(scores, among, equal))


def by_category(values, categories: Sequence[str]) -> dict[str, intervals.Estimate]:
    """The mean of item scores in each category, with its interval, in order of first appearance.

    "mean of categories" is the mean of these means; every category has the same weight.

    Args:
      values: [n]; bool values are shares, with intervals inside 0..1.
      categories: n names.

    Raises:
      ValueError: different counts.
    """
    values = np.asarray(values)
    if len(values) != len(categories):
        raise UserError(f"categories: {len(values)} scores and {len(categories)} categories")
    names = list(dict.fromkeys(categories))
    report = {
        name: intervals.bootstrap(values[[category == name for category in categories]])
        for name in names
    }
    # The sizes of the categories are fixed, so each category is resampled separately.
    error = [estimate.standard_error for estimate in report.values()]
    mean = float(np.mean([estimate.value for estimate in report.values()]))
    count, method = len(values), "errors of the categories, combined"
    if None in error:
        warning = "a category has 1 item: no interval"
        overall = intervals.Estimate(mean, None, None, None, count, "none", warning)
    else:
        together = float(np.sqrt(np.square(error).sum()) / len(names))
        freedom = max(count - len(names), 1)
        limits = {"least": 0, "most": 1} if values.dtype == bool else {}
        overall = intervals.spread(mean, together, freedom, count, method, **limits)
    return {**report, "mean of categories": overall}


def judged(answers: Sequence[Mapping[str, str]], key: Mapping[str, str]) -> dict:
    """The scores of human judges, from their answers and the answer key.

    Args:
      answers: for each judge {image id: "real" or "generated"}; an image that is missing was not
        answered.
      key: {image id: the truth}, all images.

    Returns:
      {"accuracy": share of right answers, "fooled": share of generated images called real,
      "doubted": share of real images called generated}, over all answers. Intervals are a bootstrap
      over images. A share without any answer is `Unmeasured`.

    Raises:
      ValueError: an unknown image or answer, or no answers at all.
    """
    right = {picture: [] for picture in key}
    for i, sheet in enumerate(answers):
        for picture, answer in sheet.items():
            if picture not in key or answer not in (REAL, GENERATED):
                raise UserError(
                    f"judge {i}: {picture!r} is called {answer!r}; expected a picture of the "
                    f"answer key, called {REAL!r} or {GENERATED!r}"
                )
            right[picture].append(answer == key[picture])
    if not any(right.values()):
        raise UserError("judges: the sheets hold no answers")

    def share(kinds, wrong):
        rows = [
            (len(given) - sum(given) if wrong else sum(given), len(given))
            for picture, given in right.items()
            if given and key[picture] in kinds
        ]
        if not rows:
            return intervals.Unmeasured(f"no answers about {' or '.join(kinds)} pictures")
        return intervals.bootstrap(rows, lambda mean: mean[..., 0] / mean[..., 1])

    return {
        "accuracy": share((REAL, GENERATED), wrong=False),
        "fooled": share((GENERATED,), wrong=True),
        "doubted": share((REAL,), wrong=True),
    }


def _unit(name: str, embeddings) -> np.ndarray:
    embeddings = np.asarray(arrays.checked(name, embeddings), np.float64)
    length = np.linalg.norm(embeddings, axis=1, keepdims=True)
    if not (length > 0).all():
        raise UserError(f"{name}: {int((length == 0).sum())} embeddings have length zero")
    return embeddings / length
