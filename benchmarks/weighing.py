"""Does the weight of a reference steer? What a picture has of each, over the weight of one.

    python -m benchmarks weighing --run=runs/compose [--rule="image|first,second"] [--of=first]
                                  [--weights=0,.1,.25,.5,1,2,4,10] [--count=256] [--seed=5]

The run is one of the world `compose`, whose pictures can be read. Of the attributes in which the
two references of an item differ, a picture has a share from each, and a row the means of these
shares over the pictures, with their errors: the attributes of one picture hang together. It also
has the share of the pictures that can be read. One that cannot be read has nothing of either.
"""

import argparse
import math

import numpy as np

from udd_jax import pipeline
from udd_jax.data.sources.shapes import compose
from udd_jax.errors import UserError
from udd_jax.evaluation import held_out
from udd_jax.evaluation.metrics import agreement
from udd_jax.runtime import files


def run(folder, rule: str, weights, of: str, count: int, seed: int) -> list[dict]:
    """One row for each weight: {"weight", "first", "second", "readable"}, each a rate.

    UserError: the run is not of the world `compose`, or has no reference `of`.
    """
    pipe = pipeline.Pipeline.load(folder)
    items = held_out.read(pipe, count)
    if items.world is None or items.world.name != compose.WORLD.name:
        raise UserError(
            f"weighing: {folder} is no run of the world compose, see configs/compose.py"
        )
    if of not in compose.NAMES:
        raise UserError(f"--of={of}, expected one of {', '.join(compose.NAMES)}")
    told = [m.name for m in pipe.vocab.modalities if m.name in rule.partition("|")[2]]
    given, rows = {name: items.values(name) for name in told}, []
    for weight in weights:
        made = pipe.generate(rule, given=given, weigh={of: weight}, seed=seed)
        seen = items.world.read_images(made.images)
        rows.append({"weight": weight} | shares(items.scenes, seen))
        print(line(rows[-1]), flush=True)
    return rows


def shares(scenes, seen) -> dict:
    """The rates of a row. seen: what each picture shows, or None."""
    had = {name: [] for name in compose.NAMES}
    for scene, found in zip(scenes, seen, strict=True):
        first, second = map(compose.values, scene.references)
        shown = compose.values(found.shown.objects[0]) if found else (None,) * len(first)
        rows = [row for row in zip(first, second, shown, strict=True) if row[0] != row[1]]
        if rows:
            had["first"].append(np.mean([value == a for a, _, value in rows]))
            had["second"].append(np.mean([value == b for _, b, value in rows]))
    readable = {"readable": agreement.rate([found is not None for found in seen])}
    return {name: mean(each) for name, each in had.items()} | readable


def mean(each) -> dict:
    """The rate of pictures that each have a share in [0, 1]: as `agreement.rate` of whole ones."""
    count = len(each)
    if not count:
        return agreement.rate(each)
    error = math.sqrt(np.var(each) / count + 1 / (4 * count**2)) / (1 + 1 / count)
    return {"rate": float(np.mean(each)), "error": error, "count": count}


def line(row: dict) -> str:
    rates = (f"{name} {row[name]['rate']:.3f} ± {row[name]['error']:.3f}" for name in (*row,)[1:])
    return f"weight {row['weight']:g}: {', '.join(rates)}"


def main(arguments) -> None:
    numbers = lambda text: [float(number) for number in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser("python -m benchmarks weighing", description=__doc__)
    parser.add_argument("--run", required=True)
    parser.add_argument("--rule", default="image|first,second")
    parser.add_argument("--of", default="first")
    parser.add_argument("--weights", type=numbers, default=[0, 0.1, 0.25, 0.5, 1, 2, 4, 10])
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--out", help="a JSON file for the rows")
    o = parser.parse_args(arguments)
    rows = run(o.run, o.rule, o.weights, o.of, o.count, o.seed)
    if o.out:
        files.write_json(o.out, rows)
