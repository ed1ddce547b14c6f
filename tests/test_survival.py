"""The claim of claims: killed at any moment, the job ends with the numbers of a job left alone.

A job runs once undisturbed; then again, killed with SIGKILL and started again each time with the
same command. `pytest -m slow` kills a very small job twice; `pytest -m long` the smoke job, at 25
random moments and at 9 chosen ones. With -s the stage and moment of every kill is printed.
`tests/soak.py` stops a job in other ways, as often as one likes; what it found is in soaked.txt.
"""

import contextlib
import itertools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from tests import soak
from tests.helpers import quick
from udd_jax.runtime import checkpoints

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
    "import sys; from tests.helpers import tiny; from udd_jax import stages; c = tiny.config()\n"
    "c.vq.update({'save_every': 10, 'log_every': 5})\n"
    "stages.run(c, sys.argv[1], until='diffusion')",
)

pytestmark = pytest.mark.slow
LONG = pytest.mark.long


class Job:
    """A job in a folder, as a process of its own; what is compiled is kept beside the folder."""

    def __init__(self, folder, command=SMOKE):
        self.folder, self.born = folder, time.time()
        folder.mkdir(exist_ok=True)
        env = quick.environment() | {
            "PYTHONPATH": str(ROOT),
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
        return self.process.wait(600)

    def finish(self):
        code = self.process.wait(1200)
        assert code == 0, (self.folder / "output.txt").read_text()[-3000:]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run, and the seconds of another that finds its programs compiled."""
    folder = tmp_path_factory.mktemp("survival")
    Job(folder / "whole").finish()
    job = Job(folder / "again")
    job.finish()
    seconds = job.seconds()
    soak.require_same(folder / "again", soak.numbers(folder / "whole"))
    return folder / "whole", seconds


def touched(job, pattern):
    """The paths in the work folder that this process, and none before it, has made or changed."""
    for path in job.folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime > job.born:
                yield path


def in_the_tokenizer(job) -> bool:
    return soak.stage(job.folder) == "image tokenizer" and any(touched(job, "vq/metrics.jsonl"))


def in_the_cache(job) -> bool:
    return soak.stage(job.folder) == "token cache" and any(touched(job, "tokens/*"))


def writes_checkpoint(job) -> bool:
    found = touched(job, "**/checkpoints/[0-9]*")
    return any(not (path / checkpoints.MANIFEST).exists() for path in found)


DELICATE = {
    "a tokenizer": in_the_tokenizer,
    "the token cache": in_the_cache,
    "a checkpoint write": writes_checkpoint,
}


def kill(job) -> list[str]:
    """Kills a job that stands still while its moment is written down; which delicate ones it is."""
    job.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, job.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    now = [what for what, holds in DELICATE.items() if holds(job)]
    place = ", in ".join([soak.stage(job.folder), *now])
    print(f"{job.folder.name}: killed after {job.seconds():.2f} s, in: {place}", flush=True)
    assert job.kill() == -signal.SIGKILL
    return now


def kill_in(folder, moment, command=SMOKE, wait=0.0) -> list[str]:
    """Starts a job and kills it `wait` seconds after a moment begins; [] if it never does."""
    job = Job(folder, command)
    while job.runs() and not moment(job):
        time.sleep(0.001)
    time.sleep(wait)
    return kill(job) if job.runs() else []


def test_a_small_job_killed_twice_leaves_the_same_numbers(tmp_path):
    Job(tmp_path / "whole", SMALL).finish()
    saved = f"vq/checkpoints/*/{checkpoints.MANIFEST}"
    for moment in (
        lambda job: in_the_tokenizer(job) and any(touched(job, saved)),
        lambda job: soak.stage(job.folder) == "diffusion" and writes_checkpoint(job),
    ):
        assert kill_in(tmp_path / "killed", moment, SMALL)
    Job(tmp_path / "killed", SMALL).finish()
    soak.require_same(tmp_path / "killed", soak.numbers(tmp_path / "whole"))


def test_sigterm_before_there_is_anything_to_save_ends_with_75(tmp_path):
    job = Job(tmp_path / "stopped")
    while job.runs() and not (job.folder / "config.json").exists():
        time.sleep(0.01)
    assert job.kill(signal.SIGTERM) == 75


@LONG
def test_stopped_at_random_moments_in_every_way_the_numbers_are_the_same(tmp_path):
    """Signals, a full disk and a read-only one, up to the token cache (tests/soak.py)."""
    command = [sys.executable, "-m", "tests.soak", "--short", "--kills=6", "--seconds=45"]
    env = quick.environment() | {"PYTHONPATH": str(ROOT)}
    env.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "all the same bit for bit" in result.stdout


@LONG
def test_killed_at_random_moments_the_numbers_are_the_same(whole):
    """At 25 wall times that are uniform over the whole job."""
    folder, seconds = whole
    chance, kills = random.Random(0), 0
    for number in itertools.count():
        killed = folder.parent / f"run{number}"
        while kills < KILLS:
            job, moment = Job(killed), chance.uniform(0, seconds)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(moment)
                break  # it was done before
            kill(job)
            kills += 1
        Job(killed).finish()
        soak.require_same(killed, soak.numbers(folder))
        if kills == KILLS:
            return


@LONG
def test_killed_in_the_delicate_moments_the_numbers_are_the_same(whole):
    """In those that random times seldom meet, three times each at least."""
    folder, _ = whole
    chance, met = random.Random(1), dict.fromkeys(DELICATE, 0)
    for number in itertools.count():
        killed = folder.parent / f"delicate{number}"
        for what, holds in DELICATE.items():
            for _ in range(max(0, 3 - met[what])):
                now = kill_in(killed, holds, wait=chance.uniform(0, 0.05))
                met.update({name: met[name] + 1 for name in now})
        Job(killed).finish()
        soak.require_same(killed, soak.numbers(folder))
        if min(met.values()) >= 3:
            return


@LONG
def test_sigterm_ends_with_75_and_a_second_start_goes_on(whole):
    folder, _ = whole
    job = Job(folder.parent / "stopped")
    while job.runs() and not (job.folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    started = time.monotonic()
    assert job.kill(signal.SIGTERM) == 75
    assert time.monotonic() - started < 30
    Job(job.folder).finish()
    soak.require_same(job.folder, soak.numbers(folder))
