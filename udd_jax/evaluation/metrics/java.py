"""Caption measures that exist only in Java, called through the package `pycocoevalcap`.

That package contains METEOR (Denkowski and Lavie 2014) and the Stanford PTB tokenizer. SPICE
(Anderson et al. 2016, arXiv 1607.08822) also needs Stanford CoreNLP, which the package would
download on first use. This module downloads nothing: without those files SPICE is `Unmeasured`.
"""

import importlib.util
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from udd_jax.errors import UserError
from udd_jax.evaluation.metrics import captions, intervals

# The PTB tokenizer's tokens for punctuation; COCO's evaluation drops them.
_PUNCTUATION = {"''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-"} | set(".?!,:;-")
_PUNCTUATION |= {"--", "..."}
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def missing() -> str | None:
    """One line that says what METEOR and the PTB tokenizer lack on this machine, or None."""
    lacks = []
    if importlib.util.find_spec("pycocoevalcap") is None:
        lacks.append("the package is not installed (pip install pycocoevalcap, or udd_jax[eval])")
    if shutil.which("java") is None:
        lacks.append("there is no java on the PATH (install a Java runtime)")
    elif subprocess.run(["java", "-version"], capture_output=True, check=False).returncode:
        lacks.append("the java on the PATH does not run (install a Java runtime)")
    return "; ".join(lacks) or None


def tokenize(texts: Sequence[str]) -> list[str]:
    """Lower-cased PTB tokens without punctuation, joined by spaces, as in COCO's evaluation.

    Raises:
      ValueError: pycocoevalcap or Java is missing.
    """
    command = ["java", "-cp", "stanford-corenlp-3.4.1.jar"]
    command += ["-Dfile.encoding=UTF-8", "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    lines = "".join(" ".join(text.split()) + "\n" for text in texts)
    done = subprocess.run(
        command,
        cwd=_package("the PTB tokenizer") / "tokenizer",
        input=lines.encode(),
        capture_output=True,
        check=True,
    )
    out = done.stdout.decode().split("\n")[: len(texts)]
    return [" ".join(w for w in line.split() if w not in _PUNCTUATION) for line in out]


def meteor(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[intervals.Estimate, np.ndarray]:
    """METEOR of tokenised captions: (corpus score, score of each item float64[n]).

    The corpus score is not the mean of the item scores. Its interval is that of the mean, shifted
    to the corpus score.

    Raises:
      ValueError: pycocoevalcap or Java is missing, or a caption is empty.
    """
    captions.lengths(hypotheses)
    _package("METEOR")
    from pycocoevalcap.meteor import meteor as package

    scorer = package.Meteor()
    try:
        value, scores = scorer.compute_score(*_tables(hypotheses, references))
    finally:
        for stream in (scorer.meteor_p.stdout, scorer.meteor_p.stderr):
            stream.close()
    mean = intervals.bootstrap(scores)
    shift = value - mean.value
    ends = [None if end is None else end + shift for end in (mean.low, mean.high)]
    method = mean.method + " (of their mean, moved to the corpus score)"
    return (
        intervals.Estimate(value, *ends, mean.standard_error, mean.count, method, mean.warning),
        np.array(scores),
    )


def spice(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]]
) -> intervals.Estimate | intervals.Unmeasured:
    """SPICE of tokenised captions; `Unmeasured` if its models are missing or its program fails."""
    lack = missing()
    if lack:
        return intervals.Unmeasured(f"SPICE needs pycocoevalcap and Java: {lack}")
    library = _package("SPICE") / "spice" / "lib"
    absent = [name for name in _SPICE_MODELS if not (library / name).is_file()]
    if absent:
        return intervals.Unmeasured(
            f"SPICE needs {' and '.join(absent)} of Stanford CoreNLP 3.6.0 in the folder spice/lib "
            "of pycocoevalcap"
        )
    from pycocoevalcap.spice import spice as package

    try:
        _, scores = package.Spice().compute_score(*_tables(hypotheses, references))
    except (OSError, subprocess.CalledProcessError) as error:
        return intervals.Unmeasured(f"SPICE's Java program failed: {error}")
    return intervals.bootstrap([score["All"]["f"] for score in scores])


def _package(measure: str) -> pathlib.Path:
    lack = missing()
    if lack:
        raise UserError(f"{measure} needs pycocoevalcap and Java: {lack}")
    locations = importlib.util.find_spec("pycocoevalcap").submodule_search_locations
    return pathlib.Path(os.fspath(next(iter(locations))))


def _tables(hypotheses, references) -> tuple[dict, dict]:
    """The package's arguments: {item: its references}, {item: [its caption]}."""
    return (
        {i: list(texts) for i, texts in enumerate(references)},
        {i: [text] for i, text in enumerate(hypotheses)},
    )
