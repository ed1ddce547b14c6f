"""The rules alone, for a run whose held-out records all lack something, such as their picture.

Each rule of `evaluate.rules` is measured on the records that have what it names. The result has the
same form as that of the suite "main", without samples and scores of image and text.
"""

import functools

from udd_jax.errors import UserError
from udd_jax.evaluation import held_out, manifest, rules, samples
from udd_jax.runtime import logbook

LACKING = "no held-out record has a value of every modality, so `evaluate.rules` alone are measured"


def measure(pipe, workdir, suite: str, say=logbook.say) -> dict:
    """The result, JSON values; `suite` is its name. Writes samples and listeners to `workdir`."""
    spent = {}
    timed = functools.partial(logbook.timed, spent)
    folder, options = workdir / samples.FOLDER, pipe.config.evaluate
    with timed("conditions"):
        asked = rules.named(pipe.config, pipe.vocab)
        if not asked:
            raise UserError(f"{LACKING}, but there are none: set --config.evaluate.rules=")
        names = asked[0]  # each rule reads items of its own
        items = held_out.read(pipe, options.samples, names=names)
    with timed("rules"):
        found = rules.sections(pipe, None, workdir, folder, manifest.made_of(pipe), say)
    judged = {rule: rates for rule, rates in found["rules"].items() if "agreement" in rates}
    counts = {rule: rates["count"] for rule, rates in found["rules"].items()}
    total = round(sum(spent.values()), 3)
    made = {"counts": counts, "seconds": total}
    return {
        "suite": suite,
        "headline": [_row(rule, rates["agreement"]) for rule, rates in judged.items()],
        "scores": {},
        "bounds": {},
        **found,
        "unmeasured": {"images and texts": LACKING},
        "aims": options.get("aims", True),
        "speed": {"seconds": spent, "total_seconds": total},
        "manifest": manifest.make(pipe, items, suite, **made),
    }


def _row(rule: str, rate: dict) -> dict:
    """A row of the headline; there are no aims."""
    row = {"task": rule, "name": "sound and text have one name", "value": rate["rate"]}
    row |= {"error": rate["error"], "better": "higher"}
    return row | dict.fromkeys(("aim", "floor", "met"))
