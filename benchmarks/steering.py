"""What steering does: edits, painted words, scorers, the best of some, the dual encoder.

    python -m benchmarks steering --run=RUN [--only=edits,painted,scorers,best_of,match]
                                  [--count=64] [--seed=100] [--items_seed=100] [--out=FILE]
                                  [--dual_encoder=RUN] [--plot=FILE.svg] [--set=NAME=VALUE ...]

The measures are those of the suite `full` (udd_jax/evaluation/suites/steering.py), with more items.
--items_seed: of the data of the edits; 7 has the items on which their default share was chosen, 0
those of the share before, any other fresh ones. --set: settings of the sampler, or an option of a
part such as share=.4 of edits. --plot: the shares of the scorers against their scales. What a run
cannot do, or what only the world of its data could judge, is a line with the reason.
"""

import argparse
import json
import time

from benchmarks.options import named
from udd_jax import pipeline
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out
from udd_jax.evaluation.report import page
from udd_jax.evaluation.suites import full
from udd_jax.evaluation.suites import steering as suite
from udd_jax.runtime import files

PARTS = {
    "edits": lambda pipe, items, o, more: suite.edits(
        pipe, items.world, o.count, o.seed, o.items_seed, **more
    ),
    "painted": lambda pipe, items, o, more: suite.painted(
        pipe, items.world, o.count, o.seed, **more
    ),
    "scorers": lambda pipe, items, o, more: suite.scored(
        pipe, items.world, o.count, o.seed, **more
    ),
    "best_of": lambda pipe, items, o, more: suite.best_of(pipe, items, o.count, o.seed, **more),
    "match": lambda pipe, items, o, more: suite.match(pipe, items),
}


NEED = {"edits": "steering", "painted": "steering", "scorers": "steering", "best_of": "name"}
KNOWN = "what is right is known in an embedded world only"


def parse(arguments):
    parser = argparse.ArgumentParser(
        "python -m benchmarks steering",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--run", default="udd_jax/assets/shapes", help="a finished run")
    parser.add_argument("--only", type=names, default=list(PARTS), help=", ".join(PARTS))
    parser.add_argument("--count", type=int, default=64, help="samples or items of each part")
    parser.add_argument("--seed", type=int, default=100)
    parser.add_argument("--items_seed", type=int, default=100)
    parser.add_argument("--dual_encoder", default="", help="a run whose dual encoder is used")
    parser.add_argument("--set", action="append", default=[], help="NAME=VALUE")
    parser.add_argument("--plot", default="", help="file for a plot of the scorers")
    parser.add_argument("--out", default="", help="file for the JSON")
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in PARTS:
            parser.error(f"--only = {name!r}, expected some of {', '.join(PARTS)}")
    return options


def leaves(tree: dict, path: str = ""):
    """(name, number, standard error or None, reason or None) of every leaf of a part."""
    for name, leaf in tree.items():
        name = f"{path}: {name}" if path else name
        if isinstance(leaf, dict) and "value" in leaf:
            yield name, leaf["value"], leaf["standard_error"], None
        elif isinstance(leaf, dict) and "unmeasured" in leaf:
            yield name, None, None, leaf["unmeasured"]
        elif isinstance(leaf, dict):
            yield from leaves(leaf, name)
        else:
            yield name, leaf, None, None


def plot(found: dict) -> str | None:
    """An SVG of shares against scales, one panel for each scorer. None if none was measured."""
    panels = {}
    for kind in dict.fromkeys(name.split(",")[0] for name in found if ", scale " in name):
        rows = {n: part for n, part in found.items() if n.startswith(f"{kind}, scale ")}
        scales = [float(name.split()[-1]) for name in rows]
        panels[f"scale of the scorer {kind}"] = {
            what: (scales, [part[what]["value"] for part in rows.values()])
            for what in ("right", "readable")
        }
    return page.panels(panels) if panels else None


def main(arguments) -> int:
    options = parse(arguments)
    pipe = pipeline.Pipeline.load(options.run)
    if options.dual_encoder:
        pipe = pipe.with_dual_encoder(options.dual_encoder)
    more = named(options.set)
    items, found = held_out.read(pipe, options.count), {}
    for name in options.only:
        start = time.perf_counter()
        print(f"\n{name}", flush=True)
        try:
            if name in NEED and getattr(items.world, NEED[name], None) is None:
                raise UserError(KNOWN)
            found[name] = full.plain(PARTS[name](pipe, items, options, more)[0])
        except UserError as error:
            found[name] = {"unmeasured": str(error)}
        print(f"  {time.perf_counter() - start:.0f} s", flush=True)
        for label, number, error, reason in leaves({name: found[name]}):
            shown = f"{number:.3f}" if isinstance(number, float) else number
            print(
                f"  {label:60} {reason or shown}{f' +- {error:.3f}' if error else ''}", flush=True
            )
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"count": options.count, "seed": options.seed, **found}, file, indent=1)
    if options.plot and (drawn := plot(found.get("scorers", {}))):
        files.write_text(options.plot, drawn)
    elif options.plot:
        print(f"{options.plot} is not written: no scorer was measured", flush=True)
    return 0
