"""Claims about many devices and many processes: they train the model that one device trains.

`pytest -m slow` has two meshes. `pytest -m long` has the others, a run of four processes that two
go on with and then one, two and four processes that go on as they were, and the whole job in two.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from configs import t2i
from tests.helpers import quick
from udd_jax import build
from udd_jax.diffusion import transition, vocab
from udd_jax.evaluation.suites import main as main_suite
from udd_jax.networks import transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.runtime import files, logbook, processes, sharding
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings
from udd_jax.training import train_diffusion

ROOT = pathlib.Path(__file__).parents[2]
VOCAB = vocab.image_text((4, 4), image_classes=16, text_classes=24, text_length=7)
STEPS = 20

pytestmark = pytest.mark.slow
LONG = pytest.mark.long


def config(data, model):
    c = t2i.get_config("smoke")
    c.mesh.update({"data": data, "model": model})
    c.model.heads = 8
    c.train.update({"steps": STEPS, "batch_size": 16, "log_every": 1, "save_every": 5})
    c.train.prefix_steps = 0  # the diffusion alone; after a start so short its loss is far larger
    return c


def batch(step, share=(0, 1)):
    """This process's slice of a global batch of random tokens."""
    rng = np.random.default_rng(step)
    size = 16 // share[1]
    return {
        m.name: rng.integers(0, m.classes, (16, m.length))[share[0] * size :][:size].astype(
            np.int32
        )
        for m in VOCAB.modalities
    }


def run(folder, data, model, before=lambda step: None):
    """Trains in `folder` as this process's part of the run; the averaged weights."""
    c = config(data, model)
    share = sharding.process_share(sharding.make_mesh(data, model))

    def batch_at(step):
        before(step)
        return batch(step, share)

    return train_diffusion.train(c, folder, VOCAB, 0, batch_at)


def losses(folder):
    steps, values = logbook.Logbook(folder).columns()["loss"]
    assert steps == list(range(1, STEPS + 1))
    return np.array(values)


def sample(weights, data, model):
    """Tokens of eight pairs, drawn on a mesh."""
    c, mesh = config(data, model), sharding.make_mesh(data, model)
    kernel = transition.make_kernel(VOCAB, build.make_schedules(c, VOCAB))
    network = build.make_model(c, VOCAB)

    @jax.jit
    def draw(params, x, free, absent):
        denoise_fn = Denoiser(network, params)
        settings = Settings(steps=5)
        return reverse.sample(kernel, denoise_fn, jax.random.key(0), x, free, absent, settings)

    inputs = (
        np.zeros((8, VOCAB.length), np.int32),
        np.ones((8, VOCAB.length), bool),
        np.zeros((8, 2), bool),
    )
    with sharding.use(mesh):
        placed = sharding.shard_tree(mesh, weights)
        return np.asarray(draw(placed, *sharding.shard_batch(mesh, inputs)))


@pytest.fixture(scope="module", autouse=True)
def quick_compiler():
    """Compiling is most of the time here, and what is compiled need not be fast."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses, averaged weights and samples of a run on one device."""
    folder = tmp_path_factory.mktemp("alone")
    weights = run(folder, 1, 1)
    return losses(folder), weights, sample(weights, 1, 1)


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=LONG) for shape in ((8, 1), (4, 2), (1, 8))] + [(2, 4)]
)
def test_every_mesh_trains_and_samples_alike(alone, tmp_path, shape):
    run(tmp_path, *shape)
    assert np.abs(losses(tmp_path) - alone[0]).max() < 1e-5
    assert np.array_equal(sample(alone[1], *shape), alone[2])


def run_many(folder, count, model=1, stop_at=-1):
    """Runs `count` processes; with `stop_at` the last one gets SIGTERM at that step."""
    common = [sys.executable, __file__, str(folder), str(count // model), str(model)]
    stops = [-1] * (count - 1) + [stop_at]
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    started = start([[*common, str(at)] for at in stops], folder, cache)
    try:
        return [process.wait(600) for process in started]
    finally:
        for process in started:
            process.kill()


def start(commands, folder, more):
    """Processes that are one run, each with one device and its output in a file."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = []
    for index, command in enumerate(commands):
        env = quick.environment(**more)
        env |= {
            "PYTHONPATH": str(ROOT),
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(len(commands)),
            "JAX_PROCESS_ID": str(index),
        }
        with (folder / f"process{index}.txt").open("a") as output:
            started.append(
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output)
            )
    return started


@LONG
def test_four_processes_then_two_then_one_train_the_model_that_one_trains(alone, tmp_path):
    """Each is stopped, saves, and the next ones go on, with the losses of a run by one process."""
    assert run_many(tmp_path, 4, model=2, stop_at=4) == [75] * 4
    assert 4 <= logbook.Logbook(tmp_path).lines()[-1]["step"] < 11
    assert run_many(tmp_path, 2, stop_at=11) == [75] * 2
    assert 11 <= logbook.Logbook(tmp_path).lines()[-1]["step"] < STEPS
    weights = run(tmp_path, 1, 1)
    assert np.abs(losses(tmp_path) - alone[0]).max() < 1e-5
    for ours, theirs in zip(jax.tree.leaves(weights), jax.tree.leaves(alone[1]), strict=True):
        assert np.allclose(ours, theirs, atol=1e-5)


@LONG
@pytest.mark.parametrize("count, model", [(2, 1), (4, 2)])
def test_processes_train_save_and_resume_to_the_same_numbers(alone, tmp_path, count, model):
    assert run_many(tmp_path, count, model, stop_at=7) == [75] * count
    before = logbook.Logbook(tmp_path).lines()[-1]["step"]
    assert 7 <= before < STEPS
    assert run_many(tmp_path, count, model, stop_at=before) == [75] * count  # in its first step
    assert before < logbook.Logbook(tmp_path).lines()[-1]["step"] < STEPS
    assert run_many(tmp_path, count, model) == [0] * count
    assert np.abs(losses(tmp_path) - alone[0]).max() < 1e-5


WAITING = """
import jax, sys, time
from udd_jax.runtime import processes, stopping
stopping.end_at_once()
processes.join()
print("joined", flush=True)
processes.wait_for_all("what never comes") if jax.process_index() else time.sleep(600)
"""


def test_sigterm_ends_processes_that_wait_for_each_other(tmp_path):
    started = start([[sys.executable, "-c", WAITING]] * 2, tmp_path, {"UDD_EXIT_CODE": "76"})
    files = [tmp_path / f"process{index}.txt" for index in range(2)]
    while not all("joined" in file.read_text() for file in files):
        assert all(process.poll() is None for process in started), files[0].read_text()
        time.sleep(0.05)
    time.sleep(1)
    for process in started:
        process.send_signal(signal.SIGTERM)
    assert [process.wait(600) for process in started] == [76, 76]


@LONG
def test_the_whole_job_runs_in_two_processes(tmp_path):
    """The same command in each, as the launch files start it; stopped once on the way."""
    command = [sys.executable, "-m", "udd_jax.main", "--config=configs/t2i.py:smoke"]
    command += [f"--workdir={tmp_path / 'run'}"]
    more = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    started = start([command] * 2, tmp_path, more)
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        assert all(process.poll() is None for process in started)
        time.sleep(0.1)
    started[1].send_signal(signal.SIGTERM)
    assert [process.wait(600) for process in started] == [75, 75]
    started = start([command] * 2, tmp_path, more)
    assert [process.wait(600) for process in started] == [0, 0]
    steps, values = logbook.Logbook(tmp_path / "run").columns()["loss"]
    assert steps[-1] == t2i.get_config("smoke").train.steps and np.isfinite(values).all()
    manifest = json.loads((tmp_path / "run" / "tokens" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["items"] == 256
    assert (tmp_path / "run" / "report.html").exists()
    # Two processes shared the evaluation out; one finds the same numbers.
    shutil.copytree(tmp_path / "run", tmp_path / "one")
    shutil.rmtree(tmp_path / "one" / main_suite.FOLDER)
    together, again = (tmp_path / name / main_suite.RESULT for name in ("run", "one"))
    again.unlink()
    command = [sys.executable, "-m", "udd_jax.main", "--mode=evaluate"]
    assert start([[*command, f"--workdir={tmp_path / 'one'}"]], tmp_path, more)[0].wait(600) == 0
    results = [files.read_json(path) for path in (together, again)]
    assert all(result.pop("speed") and result.pop("manifest") for result in results)
    assert results[0] == results[1]


def main():
    folder, data, model, stop_at = sys.argv[1], *map(int, sys.argv[2:])
    processes.join()

    def before(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3)  # all know of it before the step ends

    weights = run(pathlib.Path(folder), data, model, before)
    assert transformer.count_parameters(weights) > 0


if __name__ == "__main__":
    main()
