"""Everything that wants a GPU, measured in one call within so many minutes, without a network.

    python -m benchmarks card --minutes=9 --out=DIR [--size=paper] [--only=train,...] [--data=SPEC]
    python -m benchmarks table DIR                    the same numbers as tables in Markdown

Each part (card_parts.py) is a process of its own and a list of rows. It has a share of the minutes;
what it leaves goes to the parts after it. A row that fails, a part that dies and one that runs out
of time are recorded, and the others go on. The same command again measures what is missing: rows
that succeeded are kept, and compiled programs are in DIR/cache. After every row DIR/card.json is
written. It is of one commit, one kind of device and one --data: others are refused.
"""

import argparse
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

from benchmarks import card_parts, tables
from udd_jax.errors import UserError
from udd_jax.runtime import files, provenance

FILE = "card.json"
LEAST = 1.0  # seconds: with less left a part is not started
KIND = "import jax; print(jax.devices()[0].device_kind)"


def child(part: str, asked: card_parts.Asked, done: frozenset, pipe) -> None:
    """Measures the rows of a part that are not `done`, and sends ("begun", name) and ("row", name,
    row) through the pipe. A row that raises is {"failed": why}."""
    rows = {}
    try:
        rows = card_parts.begin(part, asked)
    except Exception as error:
        pipe.send(("row", "all", {"failed": reason(error)}))
    for name, measure in rows.items():
        if name in done:
            continue
        pipe.send(("begun", name))
        started = time.perf_counter()
        try:
            row = measure()
        except Exception as error:
            row = {"failed": reason(error)}
        pipe.send(("row", name, row | {"took": round(time.perf_counter() - started, 2)}))
    pipe.send(("end",))


def reason(error: Exception) -> str:
    """An exception in one line of at most 300 characters."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


def watch(part: str, asked: card_parts.Asked, done: frozenset, seconds: float, say) -> None:
    """Runs `child` in a process for at most so many seconds; say(name, row) gets each row.

    Nothing of JAX has started here, so that a fork is safe and no part waits for imports.
    """
    fork = multiprocessing.get_context("fork")
    mine, its = fork.Pipe(duplex=False)
    process = fork.Process(target=child, args=(part, asked, done, its), daemon=False)
    process.start()
    its.close()
    end, at, message = time.monotonic() + seconds, "start", None
    try:
        while mine.poll(max(0.0, end - time.monotonic())):
            message = mine.recv()
            if message[0] == "row":
                say(*message[1:])
            elif message[0] == "begun":
                at = message[1]
            else:
                return
        say(at, {"failed": f"ran out of its {seconds:.0f} s"})
    except EOFError:
        process.join()
        say(at, {"failed": f"the process ended with code {process.exitcode}"})
    finally:
        process.join(2 if message == ("end",) else 0)
        process.kill()
        process.join()


def origin(asked: card_parts.Asked) -> dict:
    """Where all numbers of a card come from: {"size", "commit", "device", "data"}."""
    # In a process of its own: JAX must not start here.
    found = subprocess.run([sys.executable, "-c", KIND], capture_output=True, text=True)
    said = (found.stderr if found.returncode else found.stdout).strip().splitlines() or [""]
    if found.returncode:
        raise UserError(f"JAX finds no device: {said[-1]}")
    about = {"commit": provenance.commit(), "device": said[-1], "data": asked.data}
    return {"size": asked.size, **about}


def run(out, minutes: float, parts: dict, asked: card_parts.Asked, about: dict) -> dict:
    """Measures what is missing in `out` and returns the content of its card.json.

    parts: {name: share of the minutes}; about: of `origin`. UserError if the card is of another.
    """
    path, end = pathlib.Path(out) / FILE, time.monotonic() + 60 * minutes
    report = files.read_json(path) if path.exists() else {**about, "parts": {}}
    for name, value in about.items():
        if report.get(name) != value:
            raise UserError(
                f"{path} is of {name} {report.get(name)}, and here it is {value}: choose another "
                "--out"
            )
    left = dict(parts)
    for part in parts:
        now = time.monotonic()
        share = (end - now) * left.pop(part) / (sum(left.values()) + parts[part])
        rows = report["parts"].setdefault(part, {})
        done = frozenset(name for name, row in rows.items() if "failed" not in row)

        def say(name, row, rows=rows, part=part):
            rows[name] = row
            print(f"{part:10s} {name:34s} {tables.text(row)}", flush=True)
            files.write_json(path, report)

        for name in set(rows) - done:
            del rows[name]
        if share < LEAST:
            say("start", {"failed": f"only {share:.1f} s of the minutes were left"})
        else:
            watch(part, asked._replace(seconds=share), done, share, say)
    return report


def main(arguments) -> int:
    names = lambda text: text.split(",")  # noqa: E731
    shares = {name: part.share for name, part in card_parts.PARTS.items()}
    parser = argparse.ArgumentParser(
        "python -m benchmarks card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of all parts together")
    parser.add_argument("--out", required=True, help="folder for the numbers and pictures")
    parser.add_argument("--size", default="paper", choices=list(card_parts.SCALES))
    parser.add_argument("--only", type=names, default=list(shares), help=", ".join(shares))
    parser.add_argument("--data", default="webdataset:data/emoji", help="of the part emoji")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes = {options.minutes}, expected more than 0")
    for name in options.only:
        if name not in shares:
            parser.error(f"--only = {name!r}, expected some of {', '.join(shares)}")
    out = pathlib.Path(options.out).absolute()
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(out / "cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    asked = card_parts.Asked(options.size, out, options.data)
    chosen = {name: share for name, share in shares.items() if name in options.only}
    report = run(out, options.minutes, chosen, asked, origin(asked))
    files.write_text(out / "tables.md", tables.markdown(report))
    print(f"\n{out / FILE}, {out / 'tables.md'}")
    return 0
