"""Claims about the loop: a run in pieces is the run in one piece, and bad steps are survived."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from udd_jax.runtime import checkpoints, files, logbook, stopping
from udd_jax.training import loop


@functools.partial(jax.jit, donate_argnums=0)
def toy_step(state, batch, step):
    noise = jax.random.normal(jax.random.fold_in(jax.random.key(3), step), (4,))
    loss, grad = jax.value_and_grad(lambda w: jnp.square(w - batch - noise).mean())(state["w"])
    new = {"w": state["w"] - 0.1 * grad, "count": state["count"] + 1}
    state, skipped = loop.apply_if_finite(new, state, loss, jnp.linalg.norm(grad))
    return state, {"loss": loss, "skipped": skipped}


def batch_at(step):
    return np.random.default_rng(step).normal(size=4).astype(np.float32)


def run(folder, steps=20, step_fn=toy_step, batch_at=batch_at, keep=3, **options):
    options = {"log_every": 4, "save_every": 6, **options}
    return loop.fit(
        step_fn,
        {"w": jnp.zeros(4), "count": jnp.int32(0)},
        steps=steps,
        batch_at=batch_at,
        checkpoints=checkpoints.Checkpoints(folder / "checkpoints", keep=keep),
        logbook=logbook.Logbook(folder),
        description="toy",
        **options,
    )


def lines(folder):
    return [
        {k: v for k, v in line.items() if k not in logbook.TIMES}
        for line in logbook.Logbook(folder).lines()
    ]


def same(a, b):
    return all(np.array_equal(a[name], b[name]) for name in ("w", "count"))


class Killed(Exception):
    pass


def killing_at(*steps):
    """A batch_at that fails at each of these steps the first time: the process dies there."""
    left = set(steps)

    def batch(step):
        if step in left:
            left.remove(step)
            raise Killed
        return batch_at(step)

    return batch


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return run(folder, evaluate=lambda s, done: {"bound": float(s["w"][0])}), folder


def test_resume_is_bit_exact_in_state_and_metrics(whole, tmp_path):
    batch = killing_at(3, 8, 13, 17)
    for _ in range(4):
        with pytest.raises(Killed):
            run(tmp_path, batch_at=batch, evaluate=lambda s, d: {"bound": float(s["w"][0])})
    state = run(tmp_path, evaluate=lambda s, d: {"bound": float(s["w"][0])})
    assert same(state, whole[0])
    assert lines(tmp_path) == lines(whole[1]) and len(lines(tmp_path)) == 9
    assert state["count"] == 20


def test_finished_run_is_returned_as_it_was(whole):
    before = lines(whole[1])
    assert same(run(whole[1], batch_at=None), whole[0])
    assert lines(whole[1]) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_exits_with_75(whole, tmp_path, number):
    def batch(step):
        if step == 9:
            signal.raise_signal(number)
        return batch_at(step)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, batch_at=batch)
    assert stopped.value.code == 75
    assert signal.getsignal(number) is before
    assert checkpoints.Checkpoints(tmp_path / "checkpoints").latest_step() == 10
    assert same(run(tmp_path), whole[0])
    expected = [line for line in lines(whole[1]) if "bound" not in line]
    assert lines(tmp_path) == expected


def test_a_signal_after_the_last_step_stops_the_run_before_its_next_stage(whole, tmp_path):
    def evaluate(state, done):
        if done == 20:
            signal.raise_signal(signal.SIGTERM)
        return {"bound": float(state["w"][0])}

    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, evaluate=evaluate)
    assert stopped.value.code == 75
    assert same(run(tmp_path, evaluate=evaluate), whole[0])
    assert lines(tmp_path) == lines(whole[1])


def test_bad_step_is_skipped_and_counted(tmp_path):
    def batch(step):
        return batch_at(step) * (np.inf if step in (2, 9, 10) else 1)

    state = run(tmp_path, batch_at=batch)
    assert np.isfinite(state["w"]).all() and state["count"] == 17
    assert [line["skipped"] for line in lines(tmp_path)] == [1, 1, 3, 3, 3]
    losses = [float(toy_loss) for toy_loss in by_hand(batch)]
    first = [loss for loss in losses[:4] if np.isfinite(loss)]
    assert len(first) == 3 and np.isclose(lines(tmp_path)[0]["loss"], np.mean(first))
    assert np.isclose(lines(tmp_path)[0]["loss_max"], max(first))


def by_hand(batch):
    state = {"w": jnp.zeros(4), "count": jnp.int32(0)}
    for step in range(4):
        state, metrics = toy_step(state, batch(step), step)
        yield metrics["loss"]


@pytest.mark.parametrize("lag", [0, 2])  # of a CPU, of anything else
def test_several_bad_steps_stop_the_run_with_what_replays_them(tmp_path, monkeypatch, lag):
    monkeypatch.setattr(loop, "in_flight", lambda: lag)

    def batch(step):
        return batch_at(step) * (np.nan if step >= 7 else 1)

    with pytest.raises(
        ValueError, match=rf"{3 + lag} steps in a row, from step 7 on .samples \[7, 8\]"
    ) as e:
        run(tmp_path, batch_at=batch, patience=3, ids_at=lambda step: [step, step + 1])
    assert "\n" not in str(e.value)
    example = {"state": {"w": jnp.zeros(4), "count": jnp.int32(0)}, "batch": batch_at(0)}
    replay, metadata = checkpoints.Checkpoints(tmp_path / "replay").restore(example)
    assert metadata == {"step": 7, "ids": [7, 8]}
    assert same(replay["state"], run(tmp_path / "until", steps=7))
    _, metrics = toy_step(replay["state"], replay["batch"], metadata["step"])
    assert metrics["skipped"] == 1


def test_best_checkpoint_is_kept_by_its_score(tmp_path):
    keeper = checkpoints.Checkpoints(tmp_path / "c", keep=1, best="bound")
    loop.fit(
        toy_step, {"w": jnp.zeros(4), "count": jnp.int32(0)}, steps=12, batch_at=batch_at,
        checkpoints=keeper, logbook=logbook.Logbook(tmp_path), description="toy", save_every=3,
        evaluate=lambda state, done: {"bound": abs(done - 6)},
    )  # fmt: skip
    assert keeper.steps() == [6, 12] and keeper.best_step() == 6


def test_failed_save_stops_the_run_and_says_so(whole, tmp_path, monkeypatch):
    write = files.write_json

    def full(path, value):
        if value["step"] == 12:
            raise OSError(28, "No space left on device")
        write(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", full)
        with pytest.raises(OSError, match=r"step 12 was not written .*No space .* step 6 is kept"):
            run(tmp_path)
    assert same(run(tmp_path), whole[0])


def test_the_exit_code_is_what_the_environment_says(tmp_path, monkeypatch):
    def batch(step):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return batch_at(step)

    monkeypatch.setenv("UDD_EXIT_CODE", "99")
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, batch_at=batch)
    assert stopped.value.code == 99
    for wrong in ("again", "0", "256", ""):
        monkeypatch.setenv("UDD_EXIT_CODE", wrong)
        with pytest.raises(ValueError, match=f"UDD_EXIT_CODE = '{wrong}', expected a number from"):
            stopping.end_at_once()


def test_every_line_says_how_long_a_step_and_its_data_took_and_how_much_memory(whole):
    for line in logbook.Logbook(whole[1]).lines():
        if "loss" in line:
            assert line["step_seconds"] >= line["data_seconds"] >= 0 and line["memory_gib"] > 0
            assert line["loss_max"] >= line["loss"]


def test_profile_writes_a_trace_of_a_few_steps_if_there_are_as_many(tmp_path):
    for steps, count in ((2, 0), (6, 1)):
        folder = tmp_path / str(steps)
        run(folder, steps=steps, profile=str(folder / "profile"))
        assert len(list(folder.glob("profile/**/*.xplane.pb"))) == count


@pytest.mark.slow
def test_sigterm_gives_75_in_a_process_of_its_own(tmp_path):
    here = pathlib.Path(__file__).parents[2]
    code = (
        "import pathlib, sys, time; from tests.training import test_loop as t\n"
        "def batch(step):\n"
        "    time.sleep(0.05); print(step, flush=True); return t.batch_at(step)\n"
        "t.run(pathlib.Path(sys.argv[1]), steps=100000, batch_at=batch, save_every=10**6)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(here)}
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env
    )
    for line in process.stdout:
        if line.strip() == "12":
            process.send_signal(signal.SIGTERM)
            break
    output, _ = process.communicate()
    assert process.wait() == 75 and "SIGTERM, saved after step" in output
    (saved,) = (tmp_path / "checkpoints").iterdir()
    manifest = json.loads((saved / checkpoints.MANIFEST).read_text())
    assert manifest["metadata"]["loop"][0] == manifest["step"] >= 11


def test_a_metric_that_the_last_step_of_a_window_lacks_is_logged():
    window = [{"loss": 1.0, "matching": 2.0}, {"loss": 3.0, "matching": None}, {"loss": 5.0}]
    found = loop._means(window)
    assert found == {"loss": 3.0, "loss_max": 5.0, "matching": 2.0}
