"""The claim of claims: killed at any moment, the job ends with the numbers of a job left alone.

A job runs once undisturbed; then again, killed with SIGKILL and started again each time with the
same command. `pytest -m slow` kills a very small job twice; UDD_LONG=1 the smoke job, at 25 random
moments and more. With -s the stage and moment of every kill is printed.
"""

import contextlib
import itertools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from udd_jax import checkpoint, logbook

ROOT = pathlib.Path(__file__).parent.parent
KILLS = 25

SMOKE = (
    "-m",
    "udd_jax.main",
    "--config=configs/t2i.py:smoke",
    "--config.vq.save_every=10",
    "--config.vq.log_every=5",
    "--workdir",
)
SMALL = (
    "-c",
    "import sys, tiny; from udd_jax import jobs; c = tiny.config()\n"
    "c.vq.update({'save_every': 10, 'log_every': 5}); jobs.run(c, sys.argv[1], until='diffusion')",
)

pytestmark = pytest.mark.slow
long = pytest.mark.skipif(not os.environ.get("UDD_LONG"), reason="takes minutes: UDD_LONG=1")


class Job:
    """A job in a folder, as a process of its own; what is compiled is kept beside the folder."""

    def __init__(self, folder, command=SMOKE):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "cache"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        }
        with (folder / "output.txt").open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, folder],
                cwd=ROOT,
                env=env,
                stdout=output,
                stderr=output,
            )
        self.started = time.monotonic()

    def seconds(self):
        return time.monotonic() - self.started

    def runs(self):
        return self.process.poll() is None

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        return self.process.wait(120)

    def finish(self):
        code = self.process.wait(1200)
        assert code == 0, (self.folder / "output.txt").read_text()[-3000:]


def stage(folder) -> str:
    """The first stage of the job whose result is not there."""
    results = {
        "text tokenizer": "text.model",
        "image tokenizer": "vq/tokenizer",
        "token cache": "tokens/index.npy",
        "diffusion": "weights",
        "evaluation": "evaluation.json",
        "report": "report.html",
    }
    return next((name for name, path in results.items() if not (folder / path).exists()), "end")


def writes_checkpoint(folder) -> bool:
    for path in folder.glob("**/checkpoints/*"):
        if path.name[:1].isdigit() and not (path / checkpoint.MANIFEST).exists():
            return True
    return False


def arrays(folder) -> dict:
    """All arrays of the latest checkpoint by name, and its metadata."""
    keeper = checkpoint.Checkpoints(folder)
    manifest = json.loads((sorted(keeper.directory.iterdir())[-1] / "manifest.json").read_text())
    example = {name: np.zeros(s, d) for name, (s, d) in manifest["arrays"].items()}
    return keeper.restore(example)[0] | {"metadata": manifest["metadata"]}


def numbers(folder) -> dict:
    """What the job leaves, without times."""
    found = {}
    for name in ("text.model", "vq/tokenizer", "weights"):
        found[name] = (folder / name).read_bytes()
    for path in sorted((folder / "tokens").glob("*.np*")):
        found[path.name] = path.read_bytes()
    for part in (folder, folder / "vq"):
        lines = logbook.Logbook(part).lines()
        found[f"{part.name} metrics"] = [
            {k: v for k, v in line.items() if k not in logbook.TIMES} for line in lines
        ]
        found[f"{part.name} state"] = arrays(part / "checkpoints")
    return found


def require_same(folder, whole):
    found, expected = numbers(folder), numbers(whole)
    expected = {name.replace(whole.name, folder.name): value for name, value in expected.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            assert found[name].keys() == value.keys()
            for key, array in value.items():
                assert np.array_equal(found[name][key], array), f"{name}: {key}"
        else:
            assert found[name] == value, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and the seconds of another that finds its programs compiled."""
    folder = tmp_path_factory.mktemp("survival")
    Job(folder / "whole").finish()
    job = Job(folder / "again")
    job.finish()
    seconds = job.seconds()
    require_same(folder / "again", folder / "whole")
    return folder / "whole", seconds


def in_the_tokenizer(folder) -> bool:
    saved = any(folder.glob(f"vq/checkpoints/*/{checkpoint.MANIFEST}"))
    return saved and stage(folder) == "image tokenizer"


def in_the_cache(folder) -> bool:
    return (folder / "tokens").exists() and stage(folder) == "token cache"


DELICATE = {
    "a tokenizer": in_the_tokenizer,
    "the token cache": in_the_cache,
    "a checkpoint write": writes_checkpoint,
}


def kill(job) -> list[str]:
    """Kills a job that stands still while its moment is written down; the delicate ones it is."""
    job.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, job.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    now = [what for what, holds in DELICATE.items() if holds(job.folder)]
    place = ", in ".join([stage(job.folder), *now])
    print(f"{job.folder.name}: killed after {job.seconds():.2f} s, in: {place}", flush=True)
    assert job.kill() == -signal.SIGKILL
    return now


def kill_in(folder, moment, command=SMOKE, wait=0.0) -> list[str]:
    """Starts a job and kills it `wait` seconds after a moment begins; [] if it never does."""
    job = Job(folder, command)
    while job.runs() and not moment(folder):
        time.sleep(0.001)
    time.sleep(wait)
    return kill(job) if job.runs() else []


def test_a_small_job_killed_twice_leaves_the_same_numbers(tmp_path):
    Job(tmp_path / "whole", SMALL).finish()
    for moment in (in_the_tokenizer, lambda f: stage(f) == "diffusion" and writes_checkpoint(f)):
        assert kill_in(tmp_path / "killed", moment, SMALL)
    Job(tmp_path / "killed", SMALL).finish()
    require_same(tmp_path / "killed", tmp_path / "whole")


def test_sigterm_before_there_is_anything_to_save_ends_with_75(tmp_path):
    job = Job(tmp_path / "stopped")
    while job.runs() and not (job.folder / "config.json").exists():
        time.sleep(0.01)
    assert job.kill(signal.SIGTERM) == 75


@long
def test_killed_at_random_moments_the_numbers_are_the_same(whole):
    """At 25 wall times that are uniform over the whole job; then in what they seldom met."""
    folder, seconds = whole
    chance, kills, met = random.Random(0), 0, dict.fromkeys(DELICATE, 0)

    def count(now):
        met.update({what: met[what] + 1 for what in now})

    for number in itertools.count():
        killed = folder.parent / f"run{number}"
        while kills < KILLS:
            job, moment = Job(killed), chance.uniform(0, seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(moment)
                break  # it was done before
            count(kill(job))
            kills += 1
        for what, holds in DELICATE.items() if kills == KILLS else ():
            for _ in range(max(0, 3 - met[what])):
                count(kill_in(killed, holds, wait=chance.uniform(0, 0.02)))
        Job(killed).finish()
        require_same(killed, folder)
        if kills == KILLS and min(met.values()) >= 3:
            break
    print(f"{KILLS} at random, {number + 1} jobs; met: {met}")


@long
def test_sigterm_ends_with_75_and_a_second_start_goes_on(whole):
    folder, _ = whole
    job = Job(folder.parent / "stopped")
    while job.runs() and not (job.folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    started = time.monotonic()
    assert job.kill(signal.SIGTERM) == 75
    assert time.monotonic() - started < 30
    Job(job.folder).finish()
    require_same(job.folder, folder)
