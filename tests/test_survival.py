"""The claim of claims: killed at any moment, the job ends with the numbers of a job left alone.

The smoke job runs once undisturbed; then again, killed with SIGKILL at random moments and at
chosen ones, and started again each time with the same command. `pytest -m slow -s` prints the
stage and moment of every kill.
"""

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

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not os.environ.get("UDD_LONG"), reason="25 kills of the smoke job: UDD_LONG=1"
    ),
]


class Job:
    """The smoke job in a folder, as a process of its own."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "udd_jax.main", "--config=configs/t2i.py:smoke"]
        env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
        with (folder / "output.txt").open("a") as output:
            self.process = subprocess.Popen(
                [*command, f"--workdir={folder}"], cwd=ROOT, env=env, stdout=output, stderr=output
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
    """An undisturbed run, its seconds, and the seconds until its first stage."""
    folder = tmp_path_factory.mktemp("survival") / "whole"
    job, first = Job(folder), None
    while job.runs():
        if first is None and (folder / "config.json").exists():
            first = job.seconds()
        time.sleep(0.01)
    seconds = job.seconds()
    job.finish()
    return folder, seconds, first


def report(folder, job, seconds, what="at a random moment"):
    writing = ", writing a checkpoint" if writes_checkpoint(folder) else ""
    print(f"killed {what} after {seconds:6.2f} s, in {stage(folder)}{writing}", flush=True)


def test_killed_at_random_moments_the_numbers_are_the_same(whole, tmp_path):
    folder, seconds, first = whole
    chance = random.Random(0)
    moments = sorted(chance.uniform(0, seconds - first) for _ in range(KILLS))
    killed = tmp_path / "killed"
    for before, moment in zip([0, *moments], moments, strict=False):
        # What the last process had not saved is done again: without it, nothing would advance.
        wait = chance.uniform(0, 2 * first) + moment - before
        job = Job(killed)
        while job.runs() and job.seconds() < wait:
            time.sleep(0.002)
        if not job.runs():
            job.finish()
            break
        report(killed, job, job.seconds())
        job.kill()
    Job(killed).finish()
    require_same(killed, folder)


def test_killed_in_the_delicate_moments_the_numbers_are_the_same(whole, tmp_path):
    folder, _, _ = whole
    killed = tmp_path / "killed"
    moments = {
        "writing a checkpoint": (writes_checkpoint, 6),
        "in the image tokenizer": (lambda f: (f / "vq" / "metrics.jsonl").exists()
                                   and stage(f) == "image tokenizer", 3),
        "in the token cache": (lambda f: (f / "tokens").exists()
                               and stage(f) == "token cache", 3),
    }  # fmt: skip
    chance = random.Random(1)
    left = {what: count for what, (_, count) in moments.items()}
    while any(left.values()):
        job = Job(killed)
        while job.runs():
            now = [what for what, (holds, _) in moments.items() if left[what] and holds(killed)]
            if now:
                time.sleep(chance.uniform(0, 0.05))
                report(killed, job, job.seconds(), now[0])
                job.kill()
                left[now[0]] -= 1
                break
            time.sleep(0.001)
        else:
            job.finish()
            break
    else:
        Job(killed).finish()
    assert max(left.values()) <= 1, left  # the stages are short: one moment may have been missed
    require_same(killed, folder)


def test_sigterm_ends_with_75_and_a_second_start_goes_on(whole, tmp_path):
    folder, _, _ = whole
    job = Job(tmp_path / "stopped")
    while job.runs() and not (job.folder / "metrics.jsonl").exists():
        time.sleep(0.01)
    started = time.monotonic()
    assert job.kill(signal.SIGTERM) == 75
    assert time.monotonic() - started < 30
    Job(job.folder).finish()
    require_same(job.folder, folder)
