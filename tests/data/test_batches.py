"""A batch is a pure function of (seed, step), however many processes read it."""

import dataclasses
import functools
import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from udd_jax.data import batches, hashing, reading, records


class TableCache:
    """Three views and one to four captions an item; a token says where it comes from."""

    views = 3

    def __init__(self, size):
        self.captions, self.lacking = np.arange(size) % 4 + 1, {}

    def __len__(self):
        return len(self.captions)

    def pairs(self, indices, views, captions):
        assert (views < self.views).all() and (captions < self.captions[indices]).all()
        return {"image": np.stack([indices, views], 1), "text": np.stack([indices, captions], 1)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**63))
def test_a_shuffle_holds_every_item_once(size, key):
    shuffled = hashing.permute(np.arange(size), size, key)
    np.testing.assert_array_equal(np.sort(shuffled), np.arange(size))


def test_shuffles_of_four_items_are_uniform_over_all_orders():
    keys = np.repeat(np.arange(4800), 4)
    orders = hashing.permute(np.tile(np.arange(4), 4800), 4, hashing.draw(keys)).reshape(-1, 4)
    counts = [(orders == order).all(1).sum() for order in itertools.permutations(range(4))]
    assert sum(counts) == 4800
    assert stats.chisquare(counts).pvalue > 1e-3


def test_neighbours_in_a_large_shuffle_are_uncorrelated():
    shuffled = hashing.permute(np.arange(20000), 20000, 7)
    for lag in (1, 2, 64):
        assert abs(np.corrcoef(shuffled[lag:], shuffled[:-lag])[0, 1]) < 0.03
    assert abs(np.corrcoef(shuffled, np.arange(20000))[0, 1]) < 0.03


def test_draws_are_uniform_and_depend_on_the_order_of_their_parts():
    place = np.arange(20000)
    assert stats.kstest(hashing.uniform(3, place), "uniform").pvalue > 1e-3
    assert stats.kstest(hashing.uniform(place, 3), "uniform").pvalue > 1e-3
    assert len(np.unique(hashing.draw(place[:200, None], place[None, :200]))) == 40000


def test_draws_are_the_recorded_numbers():
    # A change of these would give every run that resumes other data.
    assert [int(hashing.draw(*parts)) for parts in ((0,), (1,), (1, 2))] == [
        16294208416658607535,
        10451216379200822465,
        13608149317741381227,
    ]
    np.testing.assert_array_equal(batches.indices(0, 3, 7, 11), [2, 2, 7, 9, 3, 6, 5])


@pytest.mark.parametrize(("size", "batch_size"), [(5, 2), (10, 3), (7, 7), (4, 9), (1, 3)])
def test_every_item_comes_once_an_epoch_across_uneven_batches(size, batch_size):
    stream = np.concatenate([batches.indices(1, step, batch_size, size) for step in range(20)])
    epochs = stream[: len(stream) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(size), (len(epochs), 1)))


def test_epochs_and_seeds_differ_in_order():
    first, second = (batches.indices(0, step, 100, 100) for step in (0, 1))
    assert (first != second).mean() > 0.9
    assert (first != batches.indices(1, 0, 100, 100)).mean() > 0.9


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_shares_of_all_processes_in_order_are_the_global_batch(processes):
    cache = TableCache(size=13)
    for step in range(5):
        whole = batches.make(cache, 4, step, 6)
        shares = [batches.make(cache, 4, step, 6, p, processes) for p in range(processes)]
        for name in ("image", "text"):
            got = np.concatenate([share[name] for share in shares])
            np.testing.assert_array_equal(got, whole[name])


def test_views_and_captions_change_with_the_epoch_and_are_uniform():
    cache = TableCache(size=40)
    seen = [batches.make(cache, 0, step, 40) for step in range(300)]
    views = np.concatenate([batch["image"][:, 1] for batch in seen])
    assert stats.chisquare(np.bincount(views, minlength=3)).pvalue > 1e-3
    texts = np.concatenate([batch["text"] for batch in seen])
    four = texts[cache.captions[texts[:, 0]] == 4, 1]
    assert stats.chisquare(np.bincount(four, minlength=4)).pvalue > 1e-3
    one_item = [batch["text"][batch["text"][:, 0] == 3, 1].item() for batch in seen[:40]]
    assert len(set(one_item)) == 4


def test_the_caption_does_not_hang_on_the_view():
    cache = TableCache(size=40)
    seen = [batches.make(cache, 0, step, 40) for step in range(300)]
    views, texts = (np.concatenate([b[name] for b in seen]) for name in ("image", "text"))
    pairs = np.stack([views[:, 1], texts[:, 1]], 1)[cache.captions[texts[:, 0]] == 3]
    assert stats.chisquare(np.bincount(pairs @ [3, 1], minlength=9)).pvalue > 1e-3


def test_uneven_shares_and_empty_data_are_errors():
    with pytest.raises(ValueError, match="batch_size is 5, expected a multiple of the 2"):
        batches.make(TableCache(9), 0, 0, 5, 0, 2)
    with pytest.raises(ValueError, match="has 0 items"):
        batches.indices(0, 0, 4, 0)


def test_batches_read_ahead_are_the_same_in_any_order_of_steps():
    main, threads = threading.get_ident(), []

    def batch_at(step):
        threads.append(threading.get_ident())
        return step * 10

    ahead = batches.Ahead(batch_at, depth=2)
    assert [ahead(step) for step in (0, 1, 2, 9, 10, 3, 3, 0)] == [0, 10, 20, 90, 100, 30, 30, 0]
    ahead.close()
    assert main not in threads


def test_an_error_while_reading_ahead_belongs_to_its_own_step():
    def batch_at(step):
        if step == 2:
            raise ValueError("damaged")
        return step

    ahead = batches.Ahead(batch_at, depth=3)
    assert [ahead(0), ahead(1)] == [0, 1]
    with pytest.raises(ValueError, match="damaged"):
        ahead(2)
    assert ahead(3) == 3
    ahead.close()


@dataclasses.dataclass(frozen=True)
class Ramps:
    """Pictures with their number in a channel and a slope in another; some are broken."""

    size: int
    bad: tuple[int, ...] = ()
    name: str = "ramps"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = np.full((24, 24, 3), index, np.uint8)
        image[:, :, 1] = np.arange(0, 240, 10)
        picture = b"broken" if index in self.bad else image
        return records.Record(str(index), picture, (f"{index} a", f"{index} b"))


@pytest.mark.parametrize("processes", [1, 2])
def test_pictures_and_tokens_come_in_the_same_order_under_any_number_of_processes(processes):
    source, views = Ramps(7), reading.Views(12, count=2)
    for step in range(4):
        parts = [
            batches.make_images(source, views, 3, step, 4, p, processes) for p in range(processes)
        ]
        pixels = np.concatenate([part["image"] for part in parts])
        captions = [caption for part in parts for caption in part["captions"]]
        items = batches.indices(3, step, 4, 7)
        np.testing.assert_array_equal(pixels[:, 6, 6, 0], items)
        assert [int(caption.split()[0]) for caption in captions] == items.tolist()
        whole = batches.make_images(source, views, 3, step, 4)
        np.testing.assert_array_equal(pixels, whole["image"])
        assert captions == whole["captions"]


def test_crops_of_a_picture_are_new_in_every_epoch_unless_one_view_is_asked_for():
    def slopes(count):
        views = reading.Views(12, count=count)
        return {batches.make_images(Ramps(1), views, 0, s, 1)["image"].tobytes() for s in range(9)}

    assert len(slopes(2)) > 6 and len(slopes(1)) == 1


def test_a_broken_picture_is_named_and_the_next_one_takes_its_place():
    source, views = Ramps(5, bad=(2, 3)), reading.Views(12)
    batch = batches.make_images(source, views, 0, 0, 5)
    items = batches.indices(0, 0, 5, 5)
    expected = [4 if item in (2, 3) else item for item in items]
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], expected)
    assert {(position, cause) for position, cause, _ in batch["faults"]} == {
        (2, "broken image"),
        (3, "broken image"),
    }
    with pytest.raises(ValueError, match="none of the 2 items of ramps can be used"):
        batches.make_images(Ramps(2, bad=(0, 1)), views, 0, 0, 2)


def test_pictures_read_in_order_by_grain_are_those_read_one_by_one():
    source, views = Ramps(9), reading.Views(12, count=2)
    batch_at = functools.partial(batches.make_images, source, views, 5, batch_size=3)
    for step, batch in enumerate(reading.in_order(batch_at, range(2, 8), threads=2), 2):
        np.testing.assert_array_equal(batch["image"], batch_at(step)["image"])
    assert step == 7


@dataclasses.dataclass(frozen=True)
class Watched(Ramps):
    """Remembers which of its items were read."""

    read: list = dataclasses.field(default_factory=list)

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def test_pictures_decoded_ahead_are_those_of_the_step_in_any_order_and_of_ones_share_alone():
    views, watched = reading.Views(12, count=2), Watched(64)
    decoded = batches.Decoded(watched, views, 5, 4, steps=5, share=(1, 2), threads=2)
    for step in (0, 1, 4, 2, 3, 4, 6):  # a run may go on at any step, and past the last one
        expected = batches.make_images(Ramps(64), views, 5, step, 4, 1, 2)
        np.testing.assert_array_equal(decoded(step)["image"], expected["image"])
    others = [batches.indices(5, step, 4, 64)[:2] for step in range(7)]
    assert len(set(watched.read)) == 12 and not set(watched.read) & set(np.ravel(others))
