"""Captions against reference captions: BLEU, ROUGE-L, CIDEr-D; length, variety, copies.

The scores equal those of COCO's caption evaluation (`pycocoevalcap`: BLEU-1..4, ROUGE_L and
"CIDEr"), but need no Java. They read TOKENISED text: tokens separated by white space, case kept.
COCO's own numbers use the lower-cased output of the Stanford PTB tokenizer without punctuation
(`metrics.java.tokenize`). `tokenize` here is a simple replacement that gives the same tokens for
nearly all COCO captions (tests/evaluation/test_metrics_captions.py says how many). A report says
which of the two it used.

- BLEU (Papineni et al. 2002), of the corpus: clipped n-gram precision, geometric mean, brevity
  penalty against the closest reference. The counts include COCO's constants 1e-15 and 1e-9, which
  decide the score of a corpus without a common 4-gram.
- ROUGE-L (Lin 2004): the longest common subsequence; the best precision and the best recall over
  the references, combined with beta = 1.2.
- CIDEr-D (Vedantam et al. 2015, arXiv 1411.5726): cosine of n-gram TF-IDF vectors with clipped
  counts, n = 1..4, times exp(-(difference of lengths)^2 / 72), times 10. The weight of an n-gram is
  log(number of items / number of items whose references have it), so a single item scores 0.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import intervals

ORDERS = 4
_TOKEN = re.compile(r"[^\W_]+(?:[-./&':][^\W_]+)*|[$%&#@*+=/]")
_CLITIC = re.compile(r"(?<=\w)('s|'m|'d|'ll|'re|'ve|n't)$")


def tokenize(text: str) -> str:
    """Lower-cases, drops punctuation, splits clitics ("it's" -> "it 's"), joins by spaces."""
    words = _TOKEN.findall(text.lower().replace("’", "'"))
    return " ".join(_CLITIC.sub(r" \1", word) for word in words)


def report(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], seed: int = 0
) -> dict[str, intervals.Estimate]:
    """BLEU_1..4, ROUGE_L and CIDEr_D of tokenised captions, with bootstrap intervals over items.

    Args:
      hypotheses: one tokenised caption for each item.
      references: for each item at least one tokenised reference.
      seed: of the bootstrap.

    Raises:
      ValueError: no items, different counts, or an empty caption (the message names it).
    """
    _check(hypotheses, references)
    rows, count = bleu_counts(hypotheses, references), len(hypotheses)
    scores = {
        f"BLEU_{n}": intervals.bootstrap(
            rows, lambda mean, n=n: bleu_of_counts(mean * count)[..., n - 1], seed
        )
        for n in range(1, ORDERS + 1)
    }
    scores["ROUGE_L"] = intervals.bootstrap(rouge_l(hypotheses, references), seed=seed)
    scores["CIDEr_D"] = intervals.bootstrap(cider_d(hypotheses, references), seed=seed)
    return scores


def bleu(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """BLEU-1..4 of the corpus, float64[4]."""
    return bleu_of_counts(bleu_counts(hypotheses, references).sum(0))


def bleu_counts(hypotheses, references) -> np.ndarray:
    """The counts that each item adds to BLEU, float64[n, 10].

    Columns: length; closest reference length (the shorter of two equally close ones); the number of
    n-grams in the caption, n = 1..4; the number of those found in the references, n = 1..4.
    """
    _check(hypotheses, references)
    rows = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        own, others = _ngrams(hypothesis), [_ngrams(text) for text in texts]
        length = len(hypothesis.split())
        closest = min((abs(len(t.split()) - length), len(t.split())) for t in texts)[1]
        offered = [max(length - n, 0) for n in range(ORDERS)]
        found = [
            sum(min(c, max(o[n].get(gram, 0) for o in others)) for gram, c in own[n].items())
            for n in range(ORDERS)
        ]
        rows.append([length, closest, *offered, *found])
    return np.array(rows, np.float64)


def bleu_of_counts(counts: np.ndarray) -> np.ndarray:
    """BLEU-1..4 of summed `bleu_counts`: float64[..., 10] -> float64[..., 4]."""
    length, closest = counts[..., :1], counts[..., 1:2]
    offered, found = counts[..., 2 : 2 + ORDERS], counts[..., 2 + ORDERS :]
    precision = (found + 1e-15) / (offered + 1e-9)
    n = np.arange(1, ORDERS + 1).reshape((1,) * (counts.ndim - 1) + (-1,))
    mean = np.exp(np.cumsum(np.log(precision), -1) / n)
    ratio = (length + 1e-15) / (closest + 1e-9)
    return mean * np.exp(np.minimum(1 - 1 / ratio, 0))


def rouge_l(hypotheses, references, beta: float = 1.2) -> np.ndarray:
    """ROUGE-L of each item, float64[n]."""
    _check(hypotheses, references)
    scores = []
    for hypothesis, texts in zip(hypotheses, references, strict=True):
        own, others = hypothesis.split(), [text.split() for text in texts]
        common = [_common_subsequence(own, other) for other in others]
        precision = max(common) / len(own)
        recall = max(c / len(other) for c, other in zip(common, others, strict=True))
        below = recall + beta**2 * precision
        scores.append((1 + beta**2) * precision * recall / below if below else 0.0)
    return np.array(scores)


def cider_d(hypotheses, references, sigma: float = 6.0) -> np.ndarray:
    """CIDEr-D of each item, float64[n]; the corpus score is the mean."""
    _check(hypotheses, references)
    grams = [[_ngrams(text) for text in texts] for texts in references]
    items_with = Counter()
    for texts in grams:
        items_with.update({gram for text in texts for order in text for gram in order})
    rarest = math.log(len(references))  # the weight of an n-gram that no reference has
    rarity = {gram: rarest - math.log(items) for gram, items in items_with.items()}

    def weigh(text):  # -> for each order ({gram: weight}, norm)
        vectors = []
        for order in text:
            weights = {gram: count * rarity.get(gram, rarest) for gram, count in order.items()}
            vectors.append((weights, math.sqrt(sum(w * w for w in weights.values()))))
        return vectors

    scores = []
    for hypothesis, texts, raw in zip(hypotheses, grams, references, strict=True):
        own, total = weigh(_ngrams(hypothesis)), 0.0
        for text, written in zip(texts, raw, strict=True):
            gap = len(hypothesis.split()) - len(written.split())
            penalty = math.exp(-(gap**2) / (2 * sigma**2))
            for (mine, norm), (theirs, other_norm) in zip(own, weigh(text), strict=True):
                if norm and other_norm:
                    dot = sum(
                        min(w, theirs[gram]) * theirs[gram]
                        for gram, w in mine.items()
                        if gram in theirs
                    )
                    total += penalty * dot / (norm * other_norm)
        scores.append(10 * total / (ORDERS * len(texts)))
    return np.array(scores)


def lengths(captions: Sequence[str]) -> np.ndarray:
    """The number of tokens in each tokenised caption, float64[n]."""
    _check(captions)
    return np.array([len(caption.split()) for caption in captions], np.float64)


def distinct(captions: Sequence[str], n: int) -> float:
    """Distinct-n: different n-grams / all n-grams (Li et al. 2016, arXiv 1510.03055).

    It falls as the set grows.

    Raises:
      ValueError: an empty caption, or no caption with n words.
    """
    _check(captions)
    grams = Counter()
    for caption in captions:
        grams.update(_of_order(caption.split(), n))
    if not grams:
        raise UserError(f"distinct-{n}: no caption has {n} words")
    return len(grams) / grams.total()


def copied(captions: Sequence[str], training: Iterable[str]) -> intervals.Estimate:
    """The share of captions that equal a training caption word for word; both are tokenised."""
    _check(captions)
    known = {" ".join(text.split()) for text in training}
    return intervals.bootstrap([" ".join(caption.split()) in known for caption in captions])


def _check(hypotheses, references=None) -> None:
    if not len(hypotheses):
        raise UserError("captions: none to score")
    for i, hypothesis in enumerate(hypotheses):
        if not hypothesis.split():
            raise UserError(f"captions: caption {i} is empty; generate it again or leave it out")
    if references is None:
        return
    if len(references) != len(hypotheses):
        raise UserError(
            f"captions: {len(hypotheses)} captions and references for {len(references)}; one list "
            "of references for each is expected"
        )
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not texts or not all(text.split() for text in texts):
            raise UserError(
                f"captions: references of caption {i} are {texts!r}, expected a list of texts, "
                "none of them empty"
            )


def _of_order(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _ngrams(text: str) -> list[Counter]:
    """Counts of the 1-grams, 2-grams, ... of a tokenised text."""
    words = text.split()
    return [Counter(_of_order(words, n)) for n in range(1, ORDERS + 1)]


def _common_subsequence(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, row by row."""
    row = [0] * (len(b) + 1)
    for word in a:
        previous = row
        row = [0]
        for j, other in enumerate(b):
            row.append(previous[j] + 1 if word == other else max(previous[j + 1], row[j]))
    return row[-1]
