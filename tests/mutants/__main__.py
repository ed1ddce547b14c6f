"""Runs the changes, each in a fork that finds the libraries imported and most programs compiled."""

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import pathlib
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from tests import mutants
from tests.mutants.mutant import ROOT, Mutant

RESULTS = ROOT / "tests" / "mutants.json"
LIMIT = 100  # seconds of the processor; a change that makes a loop endless is noticed, too
OWN = ("udd_jax", "configs", "tests")


def prepare(folder: pathlib.Path):
    """Imports what the package imports; what is compiled is kept for the next change."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    for name in ("hypothesis", "pytest", "udd_jax.stages"):
        importlib.import_module(name)
    sys.dont_write_bytecode = False


def test(command: str, copy: pathlib.Path, output) -> int:
    """Becomes a process that runs pytest in `copy`, with the package as it is there."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    os.chdir(copy)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    for name in [name for name in sys.modules if name.split(".")[0] in OWN]:
        del sys.modules[name]
    sys.path[:] = [str(copy), *(p for p in sys.path if pathlib.Path(p or ".").resolve() != ROOT)]
    options = '-x -n 0 -m "not slow" -W ignore::pytest.PytestAssertRewriteWarning'
    return sys.modules["pytest"].main(shlex.split(f"{options} {command}"))


def run(mutant: Mutant, copy: pathlib.Path) -> dict:
    """Makes the change in `copy`, runs its tests, and undoes it."""
    (file,) = mutant.places(copy)
    text = file.read_text()
    file.write_text(text.replace(mutant.old, mutant.new))
    compiled = pathlib.Path(importlib.util.cache_from_source(file))
    compiled.unlink(missing_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = os.fork()
        if not process:
            try:
                os._exit(test(mutant.tests, copy, output))
            except BaseException:
                traceback.print_exc()
                os._exit(70)
        try:
            code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            file.write_text(text)
            compiled.unlink(missing_ok=True)
        output.seek(0)
        said = output.read()
    by = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    ended = {0: "SURVIVED", 1: "killed", 2: "killed", -signal.SIGKILL: "killed"}
    result = ended.get(code, "no tests")
    if result == "no tests":
        print(said[-2000:])
    by = "time" if code == -signal.SIGKILL else by[1].split("::")[-1] if by else ""
    return {"result": result, "by": by, "seconds": round(time.perf_counter() - start)}


def main():
    parser = argparse.ArgumentParser(description=mutants.__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a pattern in the name")
    parser.add_argument("--new", action="store_true", help="those without a result")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the tests end with it
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results = {m.name: results[m.name] for m in mutants.MUTANTS if m.name in results}
    commit = subprocess.check_output(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True
    ).strip()
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "tree"
        ignored = shutil.ignore_patterns(".git", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        prepare(pathlib.Path(folder))
        for mutant in mutants.MUTANTS:
            if re.search(options.only, mutant.name) and not (
                options.new and mutant.name in results
            ):
                results[mutant.name] = run(mutant, copy) | {"commit": commit}
                print(f"{results[mutant.name]['result']:9} {mutant.name}", flush=True)
                part = RESULTS.with_suffix(".part")
                part.write_text(json.dumps(results, indent=1) + "\n")
                os.replace(part, RESULTS)
    counted = [row["result"] for row in results.values()]
    print(f"{counted.count('killed')} of {len(counted)} killed, {len(mutants.MUTANTS)} in the list")
    raise SystemExit(counted.count("killed") < len(counted))


if __name__ == "__main__":
    main()
