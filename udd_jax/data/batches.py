"""The pairs of a training step: a pure function of (seed, step).

    global example g = step * B + b        epoch e = g // n
    item  = permute(g mod n, n; seed, e)   every item once an epoch, each epoch in a new order
    view, caption = draw(seed, e, item)    one of the item's cached views, one of its captions

There is no iterator, and therefore no state to save. A run that resumes, also with another number
of processes, continues with the same data. A process reads its own contiguous share of a batch; the
shares in order are the batch.
"""

import concurrent.futures
import functools

import numpy as np

from udd_jax.data import hashing, reading
from udd_jax.errors import UserError

_ORDER, _VIEW, _CAPTION = range(3)  # the purpose of a draw


def _examples(step: int, batch_size: int, size: int):
    if size < 1:
        raise UserError(f"the data set has {size} items, expected at least 1")
    example = int(step) * batch_size + np.arange(batch_size, dtype=np.int64)
    return np.divmod(example, size)


def indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The items of the global batch of `step` (from 0), int64[batch_size] in [0, size)."""
    epoch, place = _examples(step, batch_size, size)
    return hashing.permute(place, size, hashing.draw(_ORDER, seed, epoch))


def _share(seed, step, batch_size, size, process_index, process_count):
    """Epochs and items, int64[B / count] each, for the rows of one process."""
    if batch_size % process_count:
        raise UserError(
            f"batch_size is {batch_size}, expected a multiple of the {process_count} processes"
        )
    share = batch_size // process_count
    mine = slice(process_index * share, (process_index + 1) * share)
    epoch, _ = _examples(step, batch_size, size)
    return epoch[mine], indices(seed, step, batch_size, size)[mine]


def make(
    cache, seed: int, step: int, batch_size: int, process_index=0, process_count=1, lacking=None
) -> dict:
    """This process's share of the batch of `step`, read from a token cache.

    Args:
        cache: a `token_cache.TokenCache`.
        seed, step, batch_size: of the global batch.
        process_index, process_count: the share, rows [index * B / count, (index + 1) * B / count).
        lacking: {modality: the id at all its places in an item that does not have it}, 0 if it is
            not in it.

    Returns:
        {"image": int32[B / count, N], "text": int32[B / count, M]}, and further modalities.

    Raises:
        ValueError: batch_size is not a multiple of process_count.
    """
    epoch, items = _share(seed, step, batch_size, len(cache), process_index, process_count)
    views = hashing.draw(_VIEW, seed, epoch, items) % np.uint64(cache.views)
    counts = cache.captions[items]
    captions = hashing.draw(_CAPTION, seed, epoch, items) % np.maximum(counts, 1).astype(np.uint64)
    found = cache.pairs(items, views.astype(np.int64), captions.astype(np.int64))
    for name, gone in cache.lacking.items():
        found[name][gone[items]] = (lacking or {}).get(name, 0)
    return found


def make_images(
    source, views, seed: int, step: int, batch_size: int, process_index=0, process_count=1
) -> dict:
    """The same directly from a source: decoded pictures, with fresh crops in every epoch.

    Args:
        source: of records.
        views: a `reading.Views`; with a count of 1, always the plain view.
        seed, step, batch_size, process_index, process_count: as in `make`.

    Returns:
        {"image": uint8[B / count, S, S, C], "captions": list of B / count texts, "extra": the
        fields `extra` of their records, "faults": list of (position, cause, detail)}. An item that
        cannot be used is in `faults`, and the next usable item of the source takes its place.

    Raises:
        ValueError: batch_size is not a multiple of process_count, or no item can be used.
    """
    batch, faults = [], []
    share = _share(seed, step, batch_size, len(source), process_index, process_count)
    for epoch, item in zip(*map(np.ndarray.tolist, share), strict=True):
        view = 0 if views.count == 1 else 1 + epoch
        for attempt in range(len(source)):
            example = reading.example(source, (item + attempt) % len(source), views, (view,))
            faults += [(example.position, *fault) for fault in example.faults]
            if example.pixels is not None:
                break
        else:
            raise UserError(f"none of the {len(source)} items of {source.name} can be used")
        own = example.captions or ("",)
        caption = hashing.draw(_CAPTION, seed, epoch, item) % np.uint64(len(own))
        batch.append((example.pixels[0], own[int(caption)], example.extra))
    pixels, captions, extra = map(list, zip(*batch, strict=True))
    return {"image": np.stack(pixels), "captions": captions, "extra": extra, "faults": faults}


class Decoded:
    """`make_images(step)` of a source for the steps in order, decoded ahead of time by Grain.

        batch_at = Decoded(source, views, seed, 64, steps=1000)
        batch_at(7), batch_at(8), ...      # a resumed run starts at its step

    Any order of steps is correct; consecutive steps are fast. `share`: (process_index,
    process_count); threads, workers: as in `reading.in_order`.
    """

    def __init__(self, source, views, seed, batch_size, *, steps, share=(0, 1), **options):
        names = ("process_index", "process_count")
        self._batch_at = functools.partial(
            make_images,
            source,
            views,
            seed,
            batch_size=batch_size,
            **dict(zip(names, share, strict=True)),
        )
        self._steps, self._options, self._next = steps, options, None

    def __call__(self, step: int) -> dict:
        if step != self._next:
            coming = range(step, max(self._steps, step + 1))
            self._batches = reading.in_order(self._batch_at, coming, **self._options)
        self._next = step + 1
        if self._next == self._steps:  # there are no further batches
            self._next = None
        return next(self._batches)


class Ahead:
    """Calls `batch_at(step)` for the coming steps in background threads.

        batch_at = Ahead(lambda step: make(cache, seed, step, 64))
        batch_at(0), batch_at(1), ...      # the same values, mostly computed already

    Any order of steps is correct; consecutive steps are fast. The call for a step raises the error
    that its thread met.
    """

    def __init__(self, batch_at, depth: int = 2, threads: int = 1):
        self._batch_at, self._depth, self._waiting = batch_at, depth, {}
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, "batches")

    def __call__(self, step: int):
        coming = range(step, step + self._depth + 1)
        for other in [s for s in self._waiting if s not in coming]:
            self._waiting.pop(other).cancel()
        for other in coming:
            if other not in self._waiting:
                self._waiting[other] = self._threads.submit(self._batch_at, other)
        return self._waiting.pop(step).result()

    def close(self):
        """Ends the threads; drops the batches that nobody has asked for."""
        self._threads.shutdown(cancel_futures=True)
