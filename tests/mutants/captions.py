"""The metrics of captions."""

from tests.mutants.mutant import of

TESTS = (
    "tests/evaluation/test_metrics_captions.py "
    "-k 'published_cases or bleu or rouge or perfect or clitics or variety or copied'"
)

MUTANTS = (
    *of(
        "evaluation/metrics",
        TESTS,
        (
            "bleu: repeated words count",
            "sum(min(c, max(o[n].get(gram, 0) for o in others))",
            "sum(c * (max(o[n].get(gram, 0) for o in others) > 0)",
        ),
        (
            "bleu: found in all references",
            "sum(min(c, max(o[n].get(gram, 0) for o in others))",
            "sum(min(c, min(o[n].get(gram, 0) for o in others))",
        ),
        (
            "bleu: the shortest reference",
            "closest = min((abs(len(t.split()) - length)",
            "closest = min((len(t.split()) - length",
        ),
        (
            "bleu: long captions gain",
            "np.exp(np.minimum(1 - 1 / ratio, 0))",
            "np.exp(1 - 1 / ratio)",
        ),
        (
            "bleu: the product",
            "np.exp(np.cumsum(np.log(precision), -1) / n)",
            "np.exp(np.cumsum(np.log(precision), -1))",
        ),
        (
            "bleu: as many n-grams as words",
            "max(length - n, 0) for n in range(ORDERS)",
            "max(length, 0) for n in range(ORDERS)",
        ),
        ("rouge: the worst recall", "recall = max(c / len(other)", "recall = min(c / len(other)"),
        (
            "rouge: beta on the other",
            "below = recall + beta**2 * precision",
            "below = precision + beta**2 * recall",
        ),
        (
            "rouge: a common substring",
            "else max(previous[j + 1], row[j]))",
            "else 0)",
        ),
        ("cider: not clipped", "min(w, theirs[gram]) * theirs[gram]", "w * theirs[gram]"),
        ("cider: the penalty of half the variance", "(2 * sigma**2)", "(sigma**2)"),
        (
            "cider: the sum over references",
            "10 * total / (ORDERS * len(texts))",
            "10 * total / ORDERS",
        ),
        (
            "cider: every n-gram is rare",
            "rarest - math.log(items) for gram, items",
            "rarest for gram, items",
        ),
        (
            "cider: an item counts once a reference",
            "items_with.update({gram for text in texts for order in text for gram in order})",
            "items_with.update([gram for text in texts for order in text for gram in order])",
        ),
        ("words: capitals", "_TOKEN.findall(text.lower()", "_TOKEN.findall(text"),
        ("words: clitics stay", '_CLITIC.sub(r" \\1", word)', "word"),
        (
            "distinct: n-grams that come once",
            "return len(grams) / grams.total()",
            "return sum(c == 1 for c in grams.values()) / grams.total()",
        ),
        (
            "copied: spaces count",
            '" ".join(caption.split()) in known',
            "caption in known",
        ),
    ),
)
