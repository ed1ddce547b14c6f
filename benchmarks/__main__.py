"""How fast everything is: a table, and JSON.

    python -m benchmarks [--sizes=small,paper] [--on=cpu,gpu,tpu] [--only=train,...] [--out=FILE]

Groups of `--only`: train (a step and its parts), reverse (a sampling step), pairs (whole
generations from `--run`), start (compilation, memory), data (the input pipeline), arithmetic (what
the diffusion adds to the network). README.md beside this says how to read the table, and what was
found. More commands (`python -m benchmarks card --help`): `contest` trains the ways of the
literature side by side, `card` measures what wants a GPU, `table` prints what `card` found, `calls`
draws quality against network calls, `steering` measures what steering does, `promise` compares runs
of one config and computes floors, `speech` makes the recordings of `configs/speech.py`,
`recognised` says which way to sample drawings is recognised best, `weighing` what the weight of a
reference does, `upscaling` whether small pictures are drawn right at a larger size.

The JSON is written after each row. What a command cannot do it says in one line.

ms: by the clock, the median of the rounds; spread: between their quartiles, of the median;
products: as a ratio to a large matrix product of the same round, by the clock and by the
processor's time.
"""

import argparse
import functools
import json
import sys

from benchmarks import (
    arithmetic,
    calls,
    card,
    compiling,
    contest,
    data,
    devices,
    generating,
    promise,
    recognised,
    sizes,
    speech,
    steering,
    tables,
    timing,
    training,
    upscaling,
    weighing,
)
from benchmarks.options import in_one_line
from udd_jax import main as command_line
from udd_jax.runtime import files

COMMANDS = {
    **{"contest": contest, "card": card, "table": tables, "calls": calls, "steering": steering},
    **{"promise": promise, "speech": speech, "recognised": recognised},
    **{"weighing": weighing, "upscaling": upscaling},
}
GROUPS = ("train", "reverse", "pairs", "start", "data", "arithmetic")


def parse(arguments):
    parser = argparse.ArgumentParser(
        "python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--sizes", type=names, default=["small"], help=", ".join(sizes.SIZES))
    parser.add_argument("--on", type=names, default=["cpu"], help="cpu, gpu, tpu")
    parser.add_argument("--only", type=names, default=list(GROUPS), help=", ".join(GROUPS))
    parser.add_argument("--samplers", type=names, default=["", *generating.PAIRS])
    parser.add_argument("--run", default="udd_jax/assets/shapes", help="a finished run, for pairs")
    parser.add_argument("--count", type=int, default=64, help="pairs at once")
    parser.add_argument("--repeats", type=int, default=7, help="rounds")
    parser.add_argument("--side", type=int, default=0, help="of the product's matrices")
    parser.add_argument("--out", default="", help="file for the JSON")
    options = parser.parse_args(arguments)
    for name, allowed in (("sizes", sizes.SIZES), ("on", timing.SIDE), ("only", GROUPS)):
        for value in getattr(options, name):
            if value not in allowed:
                parser.error(f"--{name} = {value!r}, expected some of {', '.join(allowed)}")
    return options


def starts(options, platform: str) -> dict | RuntimeError:
    """{size: rows} of the group `start`; the error, if such a process fails."""
    try:
        return {size: list(compiling.rows(size, platform)) for size in options.sizes}
    except RuntimeError as error:
        return error


def measure(options, platform: str, device, begun: dict):
    """Yields (group, row) for all that was asked for, on one device. begun: of `starts`."""
    import jax.numpy as jnp

    asked, repeats, peak = options.only, options.repeats, devices.peak_of(device)
    side = options.side or timing.SIDE[platform]
    for size in options.sizes:
        p = sizes.parts(sizes.SIZES[size]())
        multiply, flops = timing.product(side, p.model.dtype)
        if "train" in asked or "reverse" in asked:
            alone = timing.rounds({"product": multiply}, multiply, repeats)["product"]
            row = timing.row("matrix product", alone, flops=flops)
            yield size, row | {"gflops": flops / row["seconds"] / 1e9}
        if "train" in asked:
            for row in training.rows(p, multiply, flops, peak, repeats):
                yield size, row
        if "reverse" in asked:
            for row in generating.reverse_rows(p, multiply, flops, peak, repeats):
                yield size, row
            for row in generating.kept_rows(p, multiply, repeats):
                yield size, row
        for row in begun.get(size, ()):
            yield size, row
    multiply, _ = timing.product(side, jnp.float32)
    if "pairs" in asked:
        for row in generating.pair_rows(
            options.run, options.samplers, options.count, multiply, repeats
        ):
            yield options.run, row
    if "data" in asked:
        for row in data.rows(repeats):
            yield "data", row
    if "arithmetic" in asked:
        for row in arithmetic.rows(arithmetic.network(layers=2, width=256), 1, repeats):
            yield "1152 positions, 2887 + 8192 classes, beside 2 layers of width 256", row


def line(row: dict) -> str:
    """A row as text: the columns of all rows, then what only some have."""
    columns = [f"{row['name']:34s}"]
    shown = {"name", "rounds"}
    if "seconds" in row:
        columns.append(f"{1e3 * row['seconds']:9.1f} ms")
        shown.add("seconds")
    if "products" in row:
        columns.append(f"{row['spread']:6.0%} spread")
        columns.append(f"{row['products']:8.3f} / {row['processor_products']:7.3f} products")
        shown |= {"spread", "processor", "products", "processor_products"}
    for name, value in row.items():
        if name not in shown and value is not None:
            percent = name in ("share", "utilisation", "mfu", "spread")
            columns.append(f"{name} {value:.1%}" if percent else f"{name} {value:.4g}")
    return "  ".join(columns)


def main(arguments=None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return in_one_line(COMMANDS[arguments[0]].main, arguments[1:])
    return in_one_line(run, parse(arguments))


def run(options) -> int:
    """Measures and prints, and writes the JSON after each row."""
    import jax

    begun, report = {}, []
    if "start" in options.only:  # before JAX starts here: it would hold the memory of a GPU
        begun = {platform: starts(options, platform) for platform in options.on}
    if options.on == ["cpu"]:
        jax.config.update("jax_platforms", "cpu")  # do not look for others
    save = functools.partial(write, options.out, report)
    for platform in options.on:
        try:
            device = jax.devices(platform)[0]
        except RuntimeError:
            print(f"{platform}: none here, nothing measured", flush=True)
            report.append({"on": platform, "found": False})
            save()
            continue
        if isinstance(begun.get(platform), RuntimeError):
            raise begun[platform]
        found = devices.surroundings(device)
        print(f"{platform}: {', '.join(f'{k} {v}' for k, v in found.items())}", flush=True)
        entry = {"on": platform, "found": True, **found, "rows": []}
        report.append(entry)
        save()
        of = None
        with jax.default_device(device):
            for group, row in measure(options, platform, device, begun.get(platform, {})):
                if group != of:
                    print(f"\n{group}", flush=True)
                    of = group
                print(line(row), flush=True)
                entry["rows"].append({"of": group, **row})
                save()
    return 0


def write(out: str, report: list) -> None:
    """Writes the report, if there is a file for it."""
    if out:
        files.write_text(out, json.dumps(report, indent=1))


if __name__ == "__main__":
    command_line.keep_memory()
    sys.exit(main())
