"""Every record is tokenized once, whatever kills the writer, and read back as it was written."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from udd_jax.data import batches, token_cache
from udd_jax.data.reading import Views
from udd_jax.data.records import Record

SIDE, BATCH = 8, 4
SETTINGS = {"image": {"hash": "vq-1"}, "text": {"hash": "sp-1", "length": 5}}


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Pictures that carry their number, with one to three captions; some records are bad."""

    size: int
    bad: tuple[int, ...] = ()
    name: str = "numbers"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        image = np.full((SIDE, SIDE, 3), index, np.uint8)
        image[:, : SIDE // 2, 1] = 255 - index
        if index in self.bad:
            return Record(f"n{index}", b"no image", (f"{index}",))
        return Record(f"n{index}", image, tuple(f"{index} {c}" for c in range(index % 3 + 1)))


def encode_images(pixels):
    assert pixels.shape == (BATCH, SIDE, SIDE, 3) and pixels.dtype == np.uint8
    return np.stack([pixels[:, 0, 0, 0], pixels[:, 0, 0, 1], pixels[:, 0, -1, 1]], 1).astype(int)


def encode_texts(captions):
    assert len(captions) == BATCH
    return np.array([[len(c), *map(int, (c + " 0").split()[:2]), 0, 60000] for c in captions])


def write(directory, source=Numbers(23), views=Views(SIDE), images=encode_images, **options):  # noqa: B008
    options = {"settings": SETTINGS, "batch_size": BATCH, "shard_size": 7} | options
    return token_cache.write_cache(source, images, encode_texts, directory, views=views, **options)


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    directory = tmp_path_factory.mktemp("cache")
    write(directory)
    return directory


def test_tokens_come_back_as_they_were_encoded(written):
    cache = token_cache.TokenCache(written)
    assert len(cache) == 23 and cache.views == 1
    np.testing.assert_array_equal(cache.captions, np.arange(23) % 3 + 1)
    order = np.random.default_rng(0).permutation(23)
    captions = order % (order % 3 + 1)
    pairs = cache.pairs(order, np.zeros(23, int), captions)
    np.testing.assert_array_equal(pairs["image"], np.stack([order, 255 - order, order], 1))
    np.testing.assert_array_equal(pairs["text"][:, 1], order)
    np.testing.assert_array_equal(pairs["text"][:, 2], captions)
    assert pairs["text"].dtype == pairs["image"].dtype == np.int32
    assert (pairs["text"][:, 4] == 60000).all()


def test_reading_whole_items_gives_every_caption_and_repeats_the_few(written):
    cache = token_cache.TokenCache(written)
    items = cache.read([2, 0, 22])
    assert items["image"].shape == (3, 1, 3) and items["text"].shape == (3, 3, 5)
    np.testing.assert_array_equal(items["captions"], [3, 1, 2])
    np.testing.assert_array_equal(items["text"][:, :, 2], [[0, 1, 2], [0, 0, 0], [0, 1, 0]])


def test_batches_from_a_cache_pair_captions_with_their_own_image(written):
    cache = token_cache.TokenCache(written)
    for step in range(8):
        batch = batches.make(cache, 0, step, 10)
        np.testing.assert_array_equal(batch["image"][:, 0], batch["text"][:, 1])


@dataclasses.dataclass(frozen=True)
class SomeAlone(Numbers):
    """Every third picture has no caption."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        return record if index % 3 else dataclasses.replace(record, captions=("",))


def test_a_picture_without_a_caption_is_kept_where_that_is_asked_for(tmp_path):
    def texts(captions):  # a row of padding for no caption
        return encode_texts([c or "99 99" for c in captions])

    options = {"settings": SETTINGS, "batch_size": BATCH, "shard_size": 7}
    parts = SomeAlone(23), encode_images, texts
    with pytest.raises(ValueError, match=r"of 23 records are unusable \(no caption"):
        token_cache.write_cache(*parts, tmp_path / "a", views=Views(SIDE), **options)
    views = Views(SIDE, incomplete=True)
    cache = token_cache.write_cache(*parts, tmp_path / "b", views=views, **options)
    alone = np.arange(23) % 3 == 0
    assert len(cache) == 23 and (cache.captions == np.where(alone, 0, np.arange(23) % 3 + 1)).all()
    assert cache.manifest["faults"] == {"without caption": 8}
    for step in range(4):
        found = batches.make(cache, 0, step, 10, lacking={"text": 77})
        own = found["image"][:, 0]
        assert (found["text"][own % 3 == 0] == 77).all()
        assert (found["text"][own % 3 > 0, 1] == own[own % 3 > 0]).all()
    assert "incomplete" not in write(tmp_path / "c").manifest["views"]  # as caches begun before


def test_several_views_are_kept_with_the_plain_one_first(tmp_path):
    views = Views(SIDE, count=5, flip=True)
    cache = write(tmp_path, views=views, images=lambda p: p[:, 0].reshape(BATCH, -1)[:, 1::3])
    items = cache.read(np.arange(23))["image"]
    assert items.shape == (23, 5, 8)
    np.testing.assert_array_equal(items[3, 0], [252] * 4 + [3] * 4)
    mirrored = (items[:, 1:, 0] < items[:, 1:, -1]).mean()
    assert 0.3 < mirrored < 0.7
    assert token_cache.TokenCache(tmp_path).manifest["views"]["count"] == 5


class Killed(BaseException):
    pass


def killed_after(calls):
    left = [calls]

    def encode(pixels):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return encode_images(pixels)

    return encode


@pytest.mark.parametrize("calls", range(7))
def test_a_killed_writer_continues_and_ends_with_the_same_bytes(tmp_path, written, calls):
    with pytest.raises(Killed):
        write(tmp_path, images=killed_after(calls))
    write(tmp_path)
    assert contents(tmp_path) == contents(written)


def test_complete_shards_are_not_tokenized_again(tmp_path):
    with pytest.raises(Killed):
        write(tmp_path, images=killed_after(4))  # two shards of two calls each
    done = []
    write(tmp_path, images=lambda pixels: done.append(1) or encode_images(pixels))
    assert len(done) == 3
    write(tmp_path, images=killed_after(0))


def test_progress_counts_every_position_once_also_when_resuming(tmp_path):
    seen = []
    with pytest.raises(Killed):
        write(tmp_path, images=killed_after(5))
    write(tmp_path, source=Numbers(23), progress=seen.append)
    assert sum(seen) == 23


def test_several_processes_write_the_same_cache_as_one(tmp_path, written):
    options = {"settings": SETTINGS, "views": Views(SIDE), "batch_size": BATCH, "shard_size": 7}
    for process in (1, 0, 2):
        options |= {"process_index": process, "process_count": 3}
        token_cache.write_shards(Numbers(23), encode_images, encode_texts, tmp_path, **options)
        if process == 1:
            with pytest.raises(ValueError, match=r"no token cache|has no shard"):
                token_cache.finish(tmp_path)
    token_cache.finish(tmp_path)
    assert contents(tmp_path) == contents(written)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": SETTINGS | {"image": {"hash": "vq-2"}}}, "settings.image.hash is 'vq-1' in"),
        ({"settings": SETTINGS | {"more": 1}}, "settings.more is None in the token cache and 1"),
        ({"settings": {"text": SETTINGS["text"]}}, "settings.image is {'hash': 'vq-1'} in"),
        ({"views": Views(SIDE, count=2)}, "views.count is 1 in the token cache and 2 now"),
        ({"source": Numbers(24)}, "records is 23 in the token cache and 24 now"),
        ({"source": Numbers(23, name="other")}, "source is 'numbers' in the token cache"),
        ({"dtype": "int32"}, "dtype is 'uint16' in the token cache and 'int32' now"),
    ],
)
def test_a_cache_refuses_other_tokenizers_and_settings(written, change, message):
    before = contents(written)
    with pytest.raises(ValueError, match=message):
        write(written, **change)
    assert contents(written) == before
    if "settings" in change:
        with pytest.raises(ValueError, match=message):
            token_cache.TokenCache(written, change["settings"])


def copy(source, directory):
    for name, content in contents(source).items():
        (directory / name).write_bytes(content)


@pytest.mark.parametrize("name", ["shard-00001.arrayrecord", "index.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_found_by_its_checksum(tmp_path, written, name, damage):
    copy(written, tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "missing":
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content if damage == "flipped" else content[:-9])
    expected = f"{name} is missing" if damage == "missing" else f"{name} is damaged"
    with pytest.raises(ValueError, match=expected):
        token_cache.TokenCache(tmp_path).read([10])


def test_a_damaged_manifest_and_an_unfinished_cache_are_one_line_errors(tmp_path, written):
    with pytest.raises(ValueError, match="holds no token cache"):
        token_cache.TokenCache(tmp_path)
    copy(written, tmp_path)
    (tmp_path / "manifest.json").write_text('{"complete": tr')
    with pytest.raises(ValueError, match=r"manifest.json is damaged"):
        token_cache.TokenCache(tmp_path)
    (tmp_path / "manifest.json").write_text('{"complete": false}')
    with pytest.raises(ValueError, match="an unfinished token cache"):
        token_cache.TokenCache(tmp_path)


def test_bad_records_are_skipped_counted_and_listed(tmp_path):
    cache = write(tmp_path, source=Numbers(23, bad=(6, 7, 20)), skip_limit=0.2)
    assert len(cache) == 20
    np.testing.assert_array_equal(cache.positions, np.delete(np.arange(23), [6, 7, 20]))
    assert cache.manifest["faults"] == {"broken image": 3}
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["n6", "n7", "n20"]
    pairs = cache.pairs(np.arange(20), np.zeros(20, int), np.zeros(20, int))
    np.testing.assert_array_equal(pairs["image"][:, 0], cache.positions)


def test_too_many_bad_records_are_an_error_that_a_higher_limit_settles(tmp_path):
    source = Numbers(23, bad=(1, 2))
    with pytest.raises(ValueError, match=r"2 of 23 records are unusable \(broken image 2\)"):
        write(tmp_path, source=source, skip_limit=0.05)
    assert len(write(tmp_path, source=source, skip_limit=0.1)) == 21


def test_a_write_that_fails_is_one_line_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    class Full(token_cache.array_record_module.ArrayRecordWriter):
        def close(self):
            super().close()
            raise RuntimeError("close() failed: No space left on device\nat byte 9")

    with monkeypatch.context() as patch:
        patch.setattr(token_cache.array_record_module, "ArrayRecordWriter", Full)
        with pytest.raises(OSError, match="No space left on device; make room and run") as caught:
            write(tmp_path)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]
    assert len(write(tmp_path)) == 23


def test_a_token_that_does_not_fit_is_an_error_and_not_wrapped(tmp_path):
    with pytest.raises(ValueError, match=r"expected 0..255 for dtype uint8"):
        write(tmp_path, dtype="uint8")


def test_an_item_out_of_range_is_an_error(written):
    with pytest.raises(IndexError):
        token_cache.TokenCache(written).read([23])
    with pytest.raises(IndexError):
        token_cache.TokenCache(written).read([-1])


WRITER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.data import test_token_cache

def slowly(pixels):
    time.sleep(0.02)
    return test_token_cache.encode_images(pixels)

test_token_cache.write(sys.argv[1], source=test_token_cache.Numbers(200), images=slowly)
"""


@pytest.mark.slow
def test_kills_at_random_moments_neither_repeat_nor_lose_a_record(tmp_path):
    here, environment = pathlib.Path(__file__).parents[2], os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "killed"), str(here)]
    rng, kills = np.random.default_rng(0), 0
    while kills < 5:
        writer = subprocess.Popen(command, cwd=here, env=environment)
        while not (tmp_path / "killed" / "manifest.json").exists() and writer.poll() is None:
            time.sleep(0.01)
        shards = list((tmp_path / "killed").glob("*.arrayrecord"))
        while len(list((tmp_path / "killed").glob("*.arrayrecord"))) == len(shards):
            time.sleep(0.01)
            if writer.poll() is not None:
                break
        time.sleep(rng.uniform(0, 0.2))
        writer.kill()
        if writer.wait() == 0:
            break
        kills += 1
    assert kills == 5
    assert subprocess.run(command, cwd=here, env=environment).returncode == 0
    write(tmp_path / "whole", source=Numbers(200))
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_whole_cache_is_written_anew_where_a_lower_limit_refuses_it(tmp_path):
    write(tmp_path, source=Numbers(23, bad=(1, 2)), skip_limit=0.1)
    with pytest.raises(ValueError, match="2 of 23 records are unusable"):
        write(tmp_path, source=Numbers(23, bad=(1, 2)), skip_limit=0.05)
    mended = Numbers(23, bad=(2,))
    assert len(write(tmp_path, source=mended, skip_limit=0.05)) == 22
    token_cache.TokenCache(tmp_path, verify=True)
