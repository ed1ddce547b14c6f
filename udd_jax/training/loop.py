"""The loop of both trainers: restore, step, log, save, stop.

    for step in range(done, steps):
        state, metrics = step_fn(state, batch_at(step), step)

A run may be killed at any moment; the same command continues it. All randomness is a function of
the step (`fold_in(key, step)`, `batch_at(step)`), and a checkpoint also holds the variables of the
loop. So an interrupted run writes the same numbers as an uninterrupted one, bit for bit (on the
same mesh).

If the loss or the gradient of a step is not finite, the state does not change: `step_fn` uses
`apply_if_finite` and sets `metrics["skipped"]`. Several such steps in a row end the run and leave a
folder from which the step can be replayed.

The loop does not wait for the step that it has just started. Metrics stay on the device until a
line is logged, and the loop reads only the flag of the step two before.
"""

import contextlib
import math
import time

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from udd_jax.errors import UserError
from udd_jax.runtime import checkpoints, provenance, stopping
from udd_jax.runtime import logbook as logbooks


def in_flight() -> int:
    """The number of steps that may be dispatched before an earlier one has ended.

    0 on a CPU: there each such step needs its own working memory and saves no time.
    """
    return 0 if jax.default_backend() == "cpu" else 2


def apply_if_finite(new, old, *values):
    """Returns `(new, 0.0)` if all `values` (a loss, a gradient norm) are finite, else `(old, 1.0)`.

    For use inside a jitted step; new and old are trees of the same shapes and dtypes.
    """
    ok = jnp.stack([jnp.isfinite(value).all() for value in values]).all()
    return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old), jnp.where(ok, 0.0, 1.0)


def fit(
    step_fn,
    state,
    *,
    steps: int,
    batch_at,
    checkpoints: checkpoints.Checkpoints,
    logbook: logbooks.Logbook,
    description: str,
    log_every: int = 20,
    save_every: int = 500,
    evaluate=None,
    ids_at=None,
    patience: int = 5,
    profile: str | None = None,
):
    """Runs steps 0 .. `steps` - 1, or those after the latest checkpoint, and returns the state.

    Args:
        step_fn: (state, batch, step) -> (state, metrics), a dict of scalars with "loss" and, if the
            step can be skipped, "skipped". It may donate the state.
        state: the state at step 0. The caller must not use it afterwards.
        steps: the total number of steps.
        batch_at: step -> batch.
        checkpoints, logbook: where the state and the metrics are written; closed at the end.
        description: the name of the training in messages.
        log_every, save_every: periods in steps.
        evaluate: (state, done) -> scores, before a checkpoint that is due. They are logged and
            stored as its metadata, so that the best checkpoint can be kept.
        ids_at: step -> ids of the samples of a batch, for an error message.
        patience: how many steps in a row may fail to be finite.
        profile: a folder for a trace of a few steps.

    Raises:
        SystemExit: after SIGTERM or SIGINT, when the checkpoint is written; the code is 75 or
            UDD_EXIT_CODE (stopping.py). A second signal ends the process at once.
        ValueError: `patience` steps in a row were not finite.
        OSError: a checkpoint could not be written.
    """
    done, skipped, row, window, scores = 0, 0, 0, [], {}
    restored = checkpoints.restore(state)
    if restored is not None:
        jax.tree.map(lambda x: x.delete() if isinstance(x, jax.Array) else None, state)
        state, scores = restored
        done, skipped, row, window = scores.pop("loop")
        logbooks.say(f"{description}: goes on after step {done} of {steps}")
    logbook.cut(done)

    if _must_stop([], done):  # many processes stop at the step after the last that JAX was told
        raise SystemExit(stopping.exit_code())
    first, since, flags, spent, waited, stop = done, done, [], 0.0, 0.0, ""
    lag = in_flight()
    with (
        contextlib.closing(checkpoints),
        contextlib.closing(logbook),
        stopping.noting() as received,
        logbooks.progress(steps, description, start=done) as bar,
    ):
        while done < steps:
            start = time.perf_counter()
            if profile and done == first + 3:
                jax.profiler.start_trace(profile)
            batch = batch_at(done)
            waited += time.perf_counter() - start
            state, metrics = step_fn(state, batch, done)
            done += 1
            window.append(metrics)
            flags.append(metrics.get("skipped", 0))

            stop = _must_stop(received, done)
            log = done % log_every == 0 or done == steps
            due = done % save_every == 0 or done == steps
            test, save = evaluate is not None and due, due or stop
            while len(flags) > (0 if log or test or save or row >= patience else lag):
                bad = bool(flags.pop(0))
                skipped, row = skipped + bad, (row + 1) * bad
            if row >= patience:
                _give_up(state, done - row, row, batch_at, ids_at, checkpoints.directory.parent)
            if profile and first + 3 < done == min(first + 8, steps):
                jax.profiler.stop_trace()
            spent += time.perf_counter() - start

            if log:
                means = _means(_to_host(window))
                count = done - since  # some of the window may be of before a restart
                times = {"step_seconds": spent / count, "data_seconds": waited / count}
                logbook.write(
                    done, **means, skipped=skipped, **times, memory_gib=provenance.peak_gib()
                )
                bar.set_postfix(loss=f"{means['loss']:.4g}", refresh=False)
                window, since, spent, waited = [], done, 0.0, 0.0
            if test:
                scores = evaluate(state, done)
                logbook.write(done, **scores)
            if save:
                window = _to_host(window)
                loop = [done, skipped, row, window]
                checkpoints.save(done, state, _finite(scores) | {"loop": loop}, wait=bool(stop))
            checkpoints.check()
            bar.update()
            if stop:
                break
        # The last save takes a while, too. Of many processes, a later signal is lost.
        if stop := stop or _must_stop(received, done + 1):
            logbooks.say(f"{description}: {stop}, saved after step {done} of {steps}")
            raise SystemExit(stopping.exit_code())
    return state


def _must_stop(received: list[str], done: int) -> str:
    if jax.process_count() > 1:
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(done) else ""
    return received[0] if received else ""


def _give_up(state, step, row, batch_at, ids_at, workdir):
    """Saves what `replay` needs, then raises. The state has not changed since `step`."""
    ids = None if ids_at is None else [int(i) for i in ids_at(step)]
    folder = workdir / "replay"
    replay = checkpoints.Checkpoints(folder, keep=1)
    replay.save(step, {"state": state, "batch": batch_at(step)}, {"step": step, "ids": ids})
    replay.close()
    raise UserError(
        f"the loss or the gradient was not finite in {row} steps in a row, from step {step} on"
        + (f" (samples {ids[:8]}{' and more' if len(ids) > 8 else ''})" if ids else "")
        + f": state and batch are in {folder}; lower the learning rate or look at the data"
    )


def _to_host(window: list[dict]) -> list[dict]:
    return [_finite(metrics) for metrics in jax.device_get(window)]


def _finite(scalars: dict) -> dict:
    """Scalars as floats. NaN and infinity become None, since JSON does not have them."""
    scalars = {k: math.nan if v is None else float(v) for k, v in scalars.items()}
    return {name: value if math.isfinite(value) else None for name, value in scalars.items()}


def _means(window: list[dict]) -> dict:
    """The mean of each metric over the steps in which it is finite, and the highest loss."""
    means = {}
    for name in dict.fromkeys(name for metrics in window for name in metrics):
        values = [m[name] for m in window if m.get(name) is not None]
        means[name] = math.fsum(values) / len(values) if values else math.nan
        if name == "loss":
            means["loss_max"] = max(values, default=math.nan)
    means.pop("skipped", None)
    return means
