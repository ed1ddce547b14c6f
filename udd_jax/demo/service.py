"""Requests that wait become batches: one thread computes, everyone else has a Future.

    service = Service(pipe)
    service.submit(request).result()          # the same as if it had been alone

A request (`requests`) that is cancelled while it waits is dropped. One that is being computed ends
with its batch, and nobody sees it.
"""

import collections
import concurrent.futures
import threading
from typing import NamedTuple

from udd_jax.demo import requests
from udd_jax.errors import UserError

WAITING = 128  # requests that may wait


class _Job(NamedTuple):
    request: requests.Request | requests.Alone
    future: concurrent.futures.Future


class Service:
    """Computes requests with a pipeline, in one thread. Close it at the end."""

    def __init__(self, pipe):
        self.pipe = pipe
        self.batches = collections.deque(maxlen=1000)  # the requests of each batch, for the curious
        self._jobs, self._change, self._closed = collections.deque(), threading.Condition(), False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, request) -> concurrent.futures.Future:
        """The Future of the result of a request. ValueError if too many wait."""
        future = concurrent.futures.Future()
        with self._change:
            if len(self._jobs) >= WAITING:
                raise UserError(f"{WAITING} requests wait already: try again in a minute")
            self._jobs.append(_Job(request, future))
            self._change.notify()
        return future

    def close(self) -> None:
        """Ends the thread after the batch that it computes; requests that wait are cancelled."""
        with self._change:
            self._closed = True
            for job in self._jobs:
                job.future.cancel()
            self._change.notify()
        self._thread.join()

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
        group, rows, batch, others = self._jobs[0].request.group, 0, [], []
        for job in self._jobs:
            fits = job.request.group == group and rows + len(job.request) <= requests.MOST
            fits = fits and not job.future.cancelled()
            (batch if fits else others).append(job)
            rows += len(job.request) if fits else 0
        self._jobs = collections.deque(job for job in others if not job.future.cancelled())
        return batch

    def _compute(self, batch):
        self.batches.append(len(batch))
        try:
            asked = [job.request for job in batch]
            results = asked[0].compute(self.pipe, asked)
        except Exception as error:
            for job in batch:
                job.future.set_exception(error)
            return
        for job, result in zip(batch, results, strict=True):
            job.future.set_result(result)
