"""The claim of claims: stopped at any moment, the job ends with the numbers of a job left alone.

    python -m tests.soak --kills=1000                     until so many stops
    python -m tests.soak --kills=1000 --seconds=3600      or until so much time has gone
    python -m tests.soak --kills=1000 --short             only up to the token cache
    python -m tests.soak --kills=100 --job=any            with four modalities instead of two
    python -m tests.soak --kills=1000 --log=FILE          goes on from the stops that FILE has

The job is the smoke job, all stages, as small as it can be. It runs once undisturbed. Then it is
started again and again with the same command and stopped at a random moment, or in the first write
after one, in one of these ways:

    SIGKILL, SIGTERM, SIGINT    the exit code is -9, 75, or 130 (75 in a training)
    full                        from now on no file can grow beyond a random size
    read-only                   from now on nothing can be opened for writing, made, moved, removed

A disk that fails is one line and exit code 1, never a traceback. When the job gets to its end, all
that it left is compared bit for bit with the undisturbed run, and the next round begins in a new
folder; every tenth compiles its programs itself. Each job is a fork of a process that has imported
the package. `tests/soaked.txt` is the log of the last long run.
"""

import argparse
import collections
import concurrent.futures
import errno
import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback

import numpy as np

from udd_jax.runtime import checkpoints, files, logbook, provenance

CONFIGS = {
    "t2i": ("--config=configs/t2i.py:smoke",),
    "any": (
        "--config=configs/any.py:smoke",
        *("--config.modalities.sound.vq.steps=12", "--config.modalities.sound.vq.plain_steps=4"),
        *("--config.modalities.sound.vq.pictures=64", "--config.modalities.sound.vq.model.ch=8"),
        "--config.evaluate.rules=('sound|text', 'layout|image')",
    ),
}
COMMAND = (
    *("--config.data_options.size=64", "--config.mesh.data=1"),
    *("--config.vq.model.n_embed=16", "--config.vq.model.ch=8", "--config.vq.model.embed_dim=4"),
    *("--config.vq.model.z_channels=8", "--config.vq.pictures=64", "--config.vq.steps=12"),
    "--config.vq.warmup=2",
    *("--config.vq.plain_steps=4", "--config.vq.save_every=4", "--config.vq.log_every=2"),
    *("--config.model.width=16", "--config.diffusion.steps=6", "--config.sample.steps=2"),
    *("--config.train.steps=12", "--config.train.save_every=3", "--config.train.log_every=2"),
    *("--config.train.batch_size=8", "--config.evaluate.samples=4"),
    *("--config.evaluate.batch_size=4", "--config.evaluate.bound_samples=4"),
    *("--config.train.optimiser=adamw", "--config.train.held_out=0"),
)
SHORT = "--mode=tokenize"
WAYS = ("SIGKILL", "SIGTERM", "SIGINT", "full", "read-only")
CODES = {
    "SIGKILL": (-9,),
    "SIGTERM": (75, -15),
    "SIGINT": (130, 75),
    "full": (1,),
    "read-only": (1,),
}
SIZES = 12, 22  # powers of 2, of the largest size of a file on a full disk


def forbid_writing(until: float):
    """From the time `until` of `time.monotonic` on, this process finds its disk read-only."""

    def hook(event, arguments):
        writes = event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate") or (
            event == "open"
            and isinstance(arguments[2], int)
            and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes and time.monotonic() > until:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))

    sys.addaudithook(hook)


class Job:
    """The job in a folder, a process of its own; read_only_after: seconds, see `forbid_writing`."""

    def __init__(self, folder: pathlib.Path, cache: pathlib.Path, *more, read_only_after=None):
        self.folder, self.started, self.code = folder, time.monotonic(), None
        folder.mkdir(exist_ok=True)
        self.output = folder.with_suffix(".txt")
        self.output.touch()  # a job may end before it writes
        self.process = os.fork()
        if not self.process:
            code = 70
            try:
                code = self.become(cache, more, read_only_after)
            finally:  # nothing of the parent's blocks is left here, above all not its folder
                os._exit(code)

    def become(self, cache, more, read_only_after) -> int:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # before anything takes a while
        import jax

        from udd_jax import main
        from udd_jax.runtime import stopping

        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        stopping.end_on_interrupt()
        if read_only_after is not None:
            forbid_writing(self.started + read_only_after)
        sys.argv = ["udd_jax", *more, f"--workdir={self.folder}"]
        try:
            main.run()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 70
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def ended(self) -> bool:
        if self.code is None:
            done, status = os.waitpid(self.process, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if done else None
        return self.code is not None

    def wait(self, seconds: float = 1200, until=lambda: False) -> bool:
        """Waits so long, or until something holds; whether the job has ended."""
        end = time.monotonic() + seconds
        while not self.ended() and time.monotonic() < end and not until():
            time.sleep(0.002)
        return self.ended()

    def seconds(self) -> float:
        return time.monotonic() - self.started

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self):
        if not self.ended():
            os.kill(self.process, signal.SIGKILL)
            self.wait()

    def finish(self):
        try:
            assert self.wait() and self.code == 0, (self.code, self.said()[-3000:])
        finally:
            self.end()


def stage(folder) -> str:
    """The first stage of the job whose result is not there."""
    results = {
        "text tokenizer": "text.model",
        "image tokenizer": "vq/tokenizer",
        **({"sound tokenizer": "sound/tokenizer"} if (folder / "sound").exists() else {}),
        "token cache": "tokens/index.npy",
        "diffusion": "weights",
        "evaluation": "evaluation.json",
        "report": "report.html",
    }
    return next((name for name, path in results.items() if not (folder / path).exists()), "end")


def writing(folder) -> bool:
    """Whether a file or a checkpoint is half written."""
    found = (path for path in folder.rglob("checkpoints/[0-9]*") if path.is_dir())
    return any(folder.rglob("*.tmp")) or any(
        not (path / checkpoints.MANIFEST).exists() for path in found
    )


def arrays(folder) -> dict:
    """All arrays of the latest checkpoint by name, and its metadata."""
    keeper = checkpoints.Checkpoints(folder)
    manifest = json.loads((sorted(keeper.directory.iterdir())[-1] / "manifest.json").read_text())
    example = {name: np.zeros(s, d) for name, (s, d) in manifest["arrays"].items()}
    return keeper.restore(example)[0] | {"metadata": manifest["metadata"]}


def numbers(folder) -> dict:
    """What the job leaves, without times, read by a process of its own.

    A new one and no fork: the process that forks jobs must not compute with JAX itself, and one
    that has, as that of the tests, cannot be forked.
    """
    new = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, new) as pool:
        return pool.submit(_numbers, folder).result()


def _numbers(folder) -> dict:
    made = sorted(folder.glob("*/tokenizer"))  # of the image, and of a sound
    whole = [path for path in (folder / "text.model", folder / "weights", *made) if path.exists()]
    found = {str(path.relative_to(folder)): path.read_bytes() for path in whole}
    for path in sorted((folder / "tokens").glob("*.np*")):
        found[path.name] = path.read_bytes()
    parts = {f"{path.parent.name} tokenizer": path.parent for path in made}
    if "weights" in found:
        parts["diffusion"] = folder
    for name, part in parts.items():
        lines = logbook.Logbook(part).lines()
        found[f"{name} metrics"] = [
            {k: v for k, v in line.items() if k not in logbook.TIMES} for line in lines
        ]
        found[f"{name} state"] = arrays(part / "checkpoints")
    if (folder / "evaluation.json").exists():
        found["evaluation"] = files.read_json(folder / "evaluation.json")
        del found["evaluation"]["speed"], found["evaluation"]["manifest"]  # they have times
        for rates in found["evaluation"].get("rules", {}).values():
            del rates["seconds"]
    return found


def require_same(folder, expected: dict):
    found = numbers(folder)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert found[name].keys() == value.keys()
            for key, array in value.items():
                assert np.array_equal(found[name][key], array), f"{name}: {key}"
        else:
            assert found[name] == value, name
    assert not list(folder.rglob("*.tmp"))


def disturb(start, seconds: float, chance: random.Random) -> tuple[str, str] | None:
    """Starts the job and stops it: (in which way, at what); None if it got to its end before."""
    way, moment = chance.choice(WAYS), seconds * chance.random() ** 2  # sooner: more stops an hour
    in_a_write = chance.random() < 1 / 3
    size = int(2 ** chance.uniform(*SIZES))
    job = start(read_only_after=moment if way == "read-only" else None)
    folder = job.folder
    try:
        if job.wait(moment) or (in_a_write and job.wait(until=lambda: writing(folder))):
            if way == "read-only" and job.code == 1:
                pass  # it met the disk before this process looked
            else:
                assert job.code == 0, (job.code, job.said()[-3000:])
                return None
        at = f"{stage(folder)}{', in a write' if writing(folder) else ''}"
        after = job.seconds()
        if way.startswith("SIG"):
            if not job.ended():
                os.kill(job.process, signal.Signals[way])
        elif way == "full":
            resource.prlimit(job.process, resource.RLIMIT_FSIZE, (size, size))
            at += f", {size} bytes"
        job.wait()
    finally:
        job.end()
    assert job.code in (0, *CODES[way]), (way, job.code, job.said()[-3000:])
    if not way.startswith("SIG"):
        said = job.said()
        assert "Traceback" not in said, said[-3000:]
        assert job.code == 0 or re.search(r"^error: ", said, re.MULTILINE), said[-3000:]
    return way, f"{way} after {after:.1f} s, in: {at}, exit code {job.code}"


def earlier(log: str) -> tuple[collections.Counter, int]:
    """What a log has: ({way: stops} of the rounds that came to their end, the number of these).

    SystemExit, one line, if a round of it failed.
    """
    if failed := re.search(r"^round \d+: FAILED.*", log, re.MULTILINE):
        sys.exit(
            f"the log has a round that failed, mend its cause and begin a new one: {failed[0]}"
        )
    stops, rounds, since = collections.Counter(), 0, collections.Counter()
    for line in log.splitlines():
        if stop := re.match(rf"round \d+: ({'|'.join(WAYS)}) after", line):
            since[stop[1]] += 1
        elif re.match(r"round \d+: at its end, the same", line):
            stops, rounds, since = stops + since, rounds + 1, collections.Counter()
        elif re.match("whole: ", line):  # another call; what it did not end says nothing
            since.clear()
    return stops, rounds


def soak(more, what: str, kills: int, seconds: float, seed: int, say, log: str = "") -> None:
    """Stops jobs in all ways, and compares what they leave.

    more: flags; what: the job in a word. say: gets each line of the log. log: of earlier calls,
    whose stops count.
    """
    importlib.import_module("udd_jax.stages")  # once for all forks
    stops, rounds = earlier(log)
    what = f"{what}, {provenance.commit() or 'no commit'}"  # without JAX, see `numbers`
    chance = random.Random(f"{seed} {stops.total()}")
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as base:
        base = pathlib.Path(base)
        shared = os.environ.get("JAX_COMPILATION_CACHE_DIR", base / "compiled")
        for name in ("whole", "again"):
            job = Job(base / name, shared, *more)
            job.finish()
            say(f"{name}: undisturbed, {job.seconds():.1f} s, {what}")
        expected, usual = numbers(base / "whole"), job.seconds()
        require_same(base / "again", expected)

        def on():
            return stops.total() < kills and time.monotonic() < end

        while on():
            cache = base / f"compiled{rounds}" if rounds % 10 == 9 else shared
            start = functools.partial(Job, base / f"round{rounds}", cache, *more)
            try:
                while on() and (stopped := disturb(start, usual, chance)):
                    stops[stopped[0]] += 1
                    say(f"round {rounds}: {stopped[1]}")
                start().finish()
                require_same(base / f"round{rounds}", expected)
            except AssertionError as error:
                say(f"round {rounds}: FAILED, {' '.join(str(error).split())[:2000]}")
                raise
            say(f"round {rounds}: at its end, the same bit for bit")
            rounds += 1
    ways = ", ".join(f"{stops[way]} {way}" for way in WAYS)
    say(f"{stops.total()} stops ({ways}), {rounds} rounds, all the same bit for bit")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new stop after")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=CONFIGS, default="t2i")
    parser.add_argument("--short", action="store_true", help="up to the token cache")
    parser.add_argument("--log", type=pathlib.Path, help="a file: its stops count, and it grows")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the job ends with it

    def say(line):
        print(line, flush=True)
        if options.log:
            with options.log.open("a") as file:
                print(line, file=file)

    more = (*CONFIGS[options.job], *COMMAND, *((SHORT,) if options.short else ()))
    log = options.log.read_text() if options.log and options.log.exists() else ""
    what = options.job + " --short" * options.short
    soak(more, what, options.kills, options.seconds, options.seed, say, log)


if __name__ == "__main__":
    main()
