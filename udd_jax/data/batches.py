"""Which pairs a training step sees: a pure function of (seed, step).

    global example g = step * B + b        epoch e = g // n
    item  = permute(g mod n, n; seed, e)   every item once an epoch, a new order each
    view, caption = draw(seed, e, item)    one of the item's cached views, one of its captions

There is no iterator and so no state to save: a run that resumes, or goes on with another number of
processes, continues with the same data. A process reads its own contiguous share of a batch;
the shares in order are the batch.
"""

import concurrent.futures

import numpy as np

from udd_jax.data import hashing

_ORDER, _VIEW, _CAPTION = range(3)  # what a draw is for


def _examples(step: int, batch_size: int, size: int):
    if size < 1:
        raise ValueError(f"the data set has {size} items, expected at least 1")
    example = int(step) * batch_size + np.arange(batch_size, dtype=np.int64)
    return np.divmod(example, size)


def indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The items of the global batch of `step` (from 0), int64[batch_size] in [0, size)."""
    epoch, place = _examples(step, batch_size, size)
    return hashing.permute(place, size, hashing.draw(_ORDER, seed, epoch))


def make(cache, seed: int, step: int, batch_size: int, process_index=0, process_count=1) -> dict:
    """This process's share of the batch of `step`, read from a token cache.

    Args:
        cache: a `tokens.TokenCache`.
        seed, step, batch_size: of the global batch.
        process_index, process_count: the share, rows [index * B / count, (index + 1) * B / count).

    Returns:
        {"image": int32[B / count, N], "text": int32[B / count, M]}.

    Raises:
        ValueError: batch_size is no multiple of process_count.
    """
    if batch_size % process_count:
        raise ValueError(
            f"batch_size is {batch_size}, expected a multiple of the {process_count} processes"
        )
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    items = indices(seed, step, batch_size, len(cache))[mine]
    epoch = _examples(step, batch_size, len(cache))[0][mine]
    views = hashing.draw(_VIEW, seed, epoch, items) % np.uint64(cache.views)
    counts = cache.captions[items].astype(np.uint64)
    captions = hashing.draw(_CAPTION, seed, epoch, items) % counts
    return cache.pairs(items, views.astype(np.int64), captions.astype(np.int64))


class Ahead:
    """Calls `batch_at(step)` for the coming steps in a background thread.

        batch_at = Ahead(lambda step: make(cache, seed, step, 64))
        batch_at(0), batch_at(1), ...      # the same values, mostly waiting already

    Any order of steps is right; consecutive ones are fast. An error in the thread is raised by
    the call whose step it belongs to.
    """

    def __init__(self, batch_at, depth: int = 2):
        self._batch_at, self._depth, self._waiting = batch_at, depth, {}
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="batches")

    def __call__(self, step: int):
        coming = range(step, step + self._depth + 1)
        for other in [s for s in self._waiting if s not in coming]:
            self._waiting.pop(other).cancel()
        for other in coming:
            if other not in self._waiting:
                self._waiting[other] = self._thread.submit(self._batch_at, other)
        return self._waiting.pop(step).result()

    def close(self):
        """Ends the thread; batches not yet asked for are dropped."""
        self._thread.shutdown(cancel_futures=True)
