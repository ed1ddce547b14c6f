"""Requests that wait become batches: one thread computes, everyone else has a Future.

    service = Service(pipe)
    service.generate(request).result()        # a Result, the same as if it had been alone

A request that is cancelled while it waits is dropped. One that is being computed ends with its
batch, and nobody sees it.
"""

import collections
import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Hashable
from typing import Any

import jax.numpy as jnp
import numpy as np

from udd_jax.demo.requests import MOST, Request
from udd_jax.diffusion import tasks
from udd_jax.errors import UserError

WAITING = 128  # requests that may wait
FRAMES = 12  # intermediate states of each chain
TIMES = 16  # noise levels of a likelihood


@dataclasses.dataclass(frozen=True)
class _Job:
    group: Hashable
    rows: int
    item: Any
    compute: Callable[[list], list]  # the items of one group -> their results
    future: concurrent.futures.Future


class Service:
    """Computes requests with a pipeline, in one thread. Close it at the end."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.batches = collections.deque(maxlen=1000)  # the requests of each batch, for the curious
        self._jobs, self._change, self._closed = collections.deque(), threading.Condition(), False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def generate(self, request: Request) -> concurrent.futures.Future:
        """The Future of the Result of a request. ValueError if too many requests wait."""
        return self._submit(request.group, len(request), request, self._generate)

    def score(self, image: np.ndarray, text: str, seed: int = 0) -> concurrent.futures.Future:
        """The Future of log2 p of each token of a pair, float64[L]: `Pipeline.log_likelihood`."""

        def compute(_):
            options = {"times": TIMES, "seed": seed, "each": True}
            return [self.pipe.log_likelihood(image[None], [text], **options)[0]]

        return self._submit(object(), 1, None, compute)

    def close(self) -> None:
        """Ends the thread after the batch that it computes; requests that wait are cancelled."""
        with self._change:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._change.notify()
        self._thread.join()

    def _submit(self, group, rows, item, compute):
        future = concurrent.futures.Future()
        with self._change:
            if len(self._jobs) >= WAITING:
                raise UserError(f"{WAITING} requests wait already: try again in a minute")
            self._jobs.append(_Job(group, rows, item, compute, future))
            self._change.notify()
        return future

    def _work(self):
        while True:
            with self._change:
                self._change.wait_for(lambda: self._jobs or self._closed)
                if self._closed:
                    return
                batch = self._next()
            batch = [job for job in batch if job.future.set_running_or_notify_cancel()]
            if batch:
                self._compute(batch)

    def _next(self) -> list[_Job]:
        """Takes the first job, and those of its group that fit in its batch."""
        group, rows, batch, others = self._jobs[0].group, 0, [], []
        for job in self._jobs:
            fits = job.group == group and rows + job.rows <= MOST and not job.future.cancelled()
            (batch if fits else others).append(job)
            rows += job.rows if fits else 0
        self._jobs = collections.deque(job for job in others if not job.future.cancelled())
        return batch

    def _compute(self, batch):
        self.batches.append(len(batch))
        try:
            results = batch[0].compute([job.item for job in batch])
        except Exception as error:
            for job in batch:
                job.future.set_exception(error)
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)

    def _generate(self, requests):
        first = requests[0]
        join = lambda parts: {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}  # noqa: E731
        result = self.pipe.generate(
            first.task,
            sum(map(len, requests)),
            given=join([request.given for request in requests]),
            masks=tasks.Masks(*map(np.concatenate, zip(*(r.masks for r in requests), strict=True))),
            negative=first.negative and join([request.negative for request in requests]),
            keys=jnp.concatenate([request.keys for request in requests]),
            trace=FRAMES,
            **first.settings,
        )
        ends = np.cumsum([len(request) for request in requests]).tolist()
        return [result.rows(end - len(r), end) for r, end in zip(requests, ends, strict=True)]
