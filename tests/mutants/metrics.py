"""The metrics."""

from tests.mutants.mutant import of

AGREEMENT = "tests/evaluation/test_agreement.py"
PAIRS = "tests/evaluation/test_metrics_pairs.py"
FEATURES = "tests/evaluation/test_metrics_features.py"

MUTANTS = (
    # ---- Metrics --------------------------------------------------------------------------------
    *of(
        "evaluation/metrics",
        AGREEMENT,
        (
            "agreement: no items are all right",
            '{"rate": 0.0, "error": 1.0',
            '{"rate": 1.0, "error": 1.0',
        ),
        (
            "agreement: the plain error of a share",
            "math.sqrt(share * (1 - share) / count + 1 / (4 * count**2)) / (1 + 1 / count)",
            "math.sqrt(share * (1 - share) / count)",
        ),
        (
            "agreement: an unreadable image agrees",
            "return UNREADABLE\n",
            "return None\n",
        ),
        ("agreement: an unparsable caption agrees", "return UNPARSABLE\n", "return None\n"),
        (
            "agreement: unparsable captions are grouped, too",
            "if meaning is not None:\n                groups",
            "if True:\n                groups",
        ),
        (
            "agreement: reasons as shares of the failures",
            "counts[reason] / max(len(found), 1)",
            "counts[reason] / max(len(found) - counts[None], 1)",
        ),
        (
            "agreement: the reader is judged by its own reading",
            "told = [verdict(world, scene, m) for scene, (_, m) in zip(truth, pairs, strict=True)]",
            "told = [verdict(world, *pair) for pair in pairs]",
        ),
        (
            "agreement: images that are read right count as errors",
            "rate([scene != t for",
            "rate([scene == t for",
        ),
        ("variation: without items it is 0", '{"tv": 1.0, "noise"', '{"tv": 0.0, "noise"'),
        (
            "variation: twice as large",
            '"tv": math.fsum(map(abs, excess.values())) / 2',
            '"tv": math.fsum(map(abs, excess.values()))',
        ),
        ("variation: of the law of the last item", "excess[key] -= p / count", "excess[key] = -p"),
        ("variation: noise of one item", "p * (1 - p) / count**2", "p * (1 - p) / count"),
        (
            "variation: conditions are mixed",
            "[(condition, outcome) for condition, _, outcome in rows]",
            "[(rows[0][0], outcome) for condition, _, outcome in rows]",
        ),
        ("infilling: words alone", "kept = image & words", "kept = words"),
        ("infilling: image alone", "kept = image & words", "kept = image"),
        (
            "infilling: kept is enough to be consistent",
            '"consistency": rate(agrees & kept)',
            '"consistency": rate(kept)',
        ),
        (
            "infilling: generated pixels are compared, given ones are not",
            "np.where(free_pixels, 0, error)",
            "np.where(free_pixels, error, 0)",
        ),
        ("infilling: the limit of one pixel", "world.residual * count", "world.residual"),
        (
            "infilling: one tile that fits is enough",
            "(total <= world.residual * count).all((1, 2))",
            "(total <= world.residual * count).any((1, 2))",
        ),
        ("infilling: an unreadable image is explained", "return read & (total", "return (total"),
        (
            "infilling: a blank may be several words",
            'pattern = r"\\S+".join',
            'pattern = r".+".join',
        ),
        ("infilling: text after the caption", "re.fullmatch(pattern", "re.match(pattern"),
    ),
    *of(
        "evaluation/metrics",
        PAIRS,
        (
            "bits: nats",
            "reshape(len(nats), -1).sum(1) / math.log(2)",
            "reshape(len(nats), -1).sum(1)",
        ),
        (
            "bits: the mean of ratios",
            "value = bits.sum() / tokens.sum()",
            "value = (bits / tokens).mean()",
        ),
        (
            "bits: the error of as many tokens as items",
            "len(bits) / (len(bits) - 1)) / tokens.sum()",
            "len(bits) / (len(bits) - 1)) / len(bits)",
        ),
        (
            "bits: the spread around the mean bits",
            "np.square(bits - value * tokens).sum()",
            "np.square(bits - bits.mean()).sum()",
        ),
        ("retrieval: equal scores win", "(scores >= np.diag(scores)", "(scores > np.diag(scores)"),
        (
            "retrieval: against the best of its column",
            "np.diag(scores)[:, None]) & wrong",
            "np.diag(scores)[None]) & wrong",
        ),
        (
            "retrieval: the same caption twice is wrong",
            "wrong &= ~np.asarray(equal, bool)",
            "wrong &= np.asarray(~np.zeros_like(equal), bool)",
        ),
        (
            "retrieval: one more of k",
            "return rivals(scores, equal)[0] < k",
            "return rivals(scores, equal)[0] <= k",
        ),
        (
            "retrieval: among n others",
            "math.comb(int(w - b), n - 1) / math.comb(int(w), n - 1)",
            "math.comb(int(w - b), n) / math.comb(int(w), n)",
        ),
    ),
    *of(
        "evaluation/metrics",
        f"{PAIRS} {FEATURES}",
        ("intervals: 90 %", "[(1 - LEVEL) / 2, (1 + LEVEL) / 2]", "[1 - LEVEL, LEVEL]"),
        ("intervals: the error of the population", "drawn.std(ddof=1)", "2 * drawn.std()"),
        (
            "intervals: every resample from the first items",
            "drawn += count * np.arange(parts)[:, None]",
            "drawn += 0 * np.arange(parts)[:, None]",
        ),
        (
            "intervals: equal items have no width",
            "if share and value in (0, 1):",
            "if False:",
        ),
        (
            "intervals: all wrong is all right",
            "if value == 0 else (1 - reach, 1.0)",
            "if value == 1 else (1 - reach, 1.0)",
        ),
        (
            "intervals: the error of one group",
            "np.sqrt((groups - 1) / groups * np",
            "np.sqrt(1 / groups * np",
        ),
        (
            "intervals: one degree of freedom more",
            "spread(value, error, groups - 1, count",
            "spread(value, error, groups, count",
        ),
        ("intervals: not clipped below", "max(value - reach, least)", "value - reach"),
        ("intervals: not clipped above", "min(value + reach, most)", "value + reach"),
    ),
    *of(
        "evaluation",
        "tests/test_sizes.py tests/test_modalities.py tests/evaluation/test_suite_steering.py "
        "tests/evaluation/test_suite_full.py -k "
        "'odd_side or other_sounds or cannot_be_read or leaves_out'",
        (
            "samples: the last row of an odd side is given",
            "slice(middle, None) if side % 2 else slice(middle)",
            "slice(middle, 2 * middle) if side % 2 else slice(middle)",
        ),
        (
            "held out: sounds are not hashed",
            "for name in sorted(asked & {*modalities.stored(pipe.config)}):",
            "for name in ():",
        ),
        ("retrieval: a caption that is cut is wrong", "[m is None or world", "[m and world"),
        (
            "held out: what is left out is compared",
            "if _has(example, wanted) and example.key not in without:",
            "if _has(example, wanted):",
        ),
    ),
    *of(
        "evaluation/metrics",
        FEATURES,
        (
            "frechet: n in the denominator",
            "self.scatter / (self.count - 1)",
            "self.scatter / self.count",
        ),
        ("frechet: the mean of two means", "gap * (other.count / count)", "gap * 0.5"),
        (
            "frechet: scatter within the parts alone",
            "self.scatter + other.scatter + correction",
            "self.scatter + other.scatter + 0 * correction",
        ),
        ("frechet: deviations from zero", "deviation = block - mean[None]", "deviation = block"),
        ("frechet: means are not compared", "np.square(a.mean - b.mean).sum() + trace", "trace"),
        ("frechet: half of the overlap", "+ trace - 2 * shared", "+ trace - shared"),
        (
            "frechet: the diagonal of the overlap",
            "np.linalg.svd(overlap, compute_uv=False).sum()",
            "np.trace(overlap[: min(overlap.shape), : min(overlap.shape)])",
        ),
        ("frechet: roots of roots", "np.sqrt(values[first:])", "values[first:]"),
        (
            "kernel distance: with the diagonal",
            "_kernel_sum(z, z) - _kernel_diagonal(z)",
            "_kernel_sum(z, z)",
        ),
        (
            "kernel distance: a square",
            "+ 1) ** 3\n\n\ndef _kernel_sum",
            "+ 1) ** 2\n\n\ndef _kernel_sum",
        ),
        (
            "kernel distance: not divided by the width",
            "(x @ y.T / x.shape[1] + 1)",
            "(x @ y.T + 1)",
        ),
        (
            "kernel distance: one cross term",
            "- 2 * _kernel_sum(x, y) / (n * m)",
            "- _kernel_sum(x, y) / (n * m)",
        ),
        (
            "inception: the average is even",
            "np.log(np.where(average > 0, average, 1))",
            "np.log(1 / average.shape[1])",
        ),
        (
            "inception: no exponential",
            "np.exp((part * ratio).sum(1).mean())",
            "(part * ratio).sum(1).mean()",
        ),
        (
            "inception: every part is the whole",
            "np.asarray(probabilities[start:end], np.float64)",
            "np.asarray(probabilities[0:end], np.float64)",
        ),
        (
            "precision: the neighbours of the generated",
            "(square <= other_reach[None, there]).any(1)",
            "(square <= reach[here, None]).any(1)",
        ),
        (
            "recall: all neighbourhoods",
            "(square <= reach[here, None]).any(0)",
            "(square <= reach[here, None]).all(0)",
        ),
        (
            "precision: a sample is its own neighbour",
            "neighbours, same=True)[1][:, -1]",
            "neighbours, same=False)[1][:, -1]",
        ),
    ),
)
