"""Data as the public libraries write them: recorded in `tests/fixtures/written`, and made anew."""

import importlib.util
import json
import os
import pathlib

import pyarrow
import pytest
from pyarrow import ipc

from tests.data.test_sources_cases import NONE, causes, fill, opened, pairs, picture
from tests.helpers import written
from udd_jax.data import survey
from udd_jax.data.sources import parquet

RECORDED = pathlib.Path(__file__).parents[1] / "fixtures" / "written"
LIBRARIES = ("datasets", "webdataset", "img2dataset")


def reds(numbers, caption="t{}".format):
    return {20 * n: (caption(n),) for n in numbers}


def check_labels(root):
    names = ["cat", "night owl", "dog"]
    for split, numbers in (("train", range(5)), ("test", range(5, 7))):
        source = opened(f"parquet:{root}", split)
        assert pairs(source) == reds(numbers, lambda n: names[n % 3])
        assert causes(source) == []


def check_disk(root):
    assert pairs(opened(f"parquet:{root}")) == reds(range(5))
    assert pairs(opened(f"parquet:{root}", "test")) == reds(range(5, 7))


def check_shards(root):
    source = opened(f"webdataset:{root}")
    assert pairs(source) == reds(range(7))
    assert [source[n].extra for n in range(6)] == [{"number": n} for n in range(6)]


def check_downloads(kind, root):
    spec = f"{'folder' if kind == 'files' else kind}:{root}"
    source = opened(spec)
    assert pairs(source) == reds(n for n in range(7) if n not in written.LOST)
    assert all(source[n].extra["similarity"] == 0.3 for n in range(len(source)))
    assert causes(source) == ["img2dataset did not store it (failed_to_download)"] * 2
    found = survey.survey({"train": source})
    assert not found["unusable"] and len(source) == 5
    survey.check(found, 0.0)


CHECKS = {
    "datasets_parquet": check_labels,
    "datasets_disk": check_disk,
    "webdataset": check_shards,
    **{
        f"img2dataset_{kind}": lambda root, kind=kind: check_downloads(kind, root)
        for kind in written.DOWNLOADED
    },
}


@pytest.mark.parametrize("name", CHECKS)
def test_what_the_libraries_wrote_is_read_with_all_that_could_not_be_downloaded(name):
    CHECKS[name](RECORDED / name)


def need():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the libraries
def test_what_the_libraries_write_today_is_read(tmp_path):
    need()
    written.write(tmp_path / "made")
    for name, check in CHECKS.items():
        check(tmp_path / "made" / name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_imagefolder_is_read_as_datasets_reads_it(tmp_path):
    need()
    import datasets

    for split, first in (("train", 0), ("test", 10)):
        folder = tmp_path / "data" / split
        fill(folder, 5, text="", first=first)
        rows = [{"file_name": f"{n}.png", "text": f"t{n}"} for n in range(first, first + 5)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = str(tmp_path / "data")
    read = datasets.load_dataset("imagefolder", data_dir=data, cache_dir=str(tmp_path / "cache"))
    for split in ("train", "test"):
        theirs = {row["image"].getpixel((0, 0))[0]: (row["text"],) for row in read[split]}
        assert pairs(opened(f"folder:{data}", split, **NONE)) == theirs


def test_rows_of_addresses_without_pictures_are_refused_with_what_to_do(tmp_path):
    import pyarrow
    from pyarrow import parquet

    row = {"SAMPLE_ID": 1, "URL": "http://example.org/a.jpg", "TEXT": "a cat", "similarity": 0.31}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "part-00000.parquet")
    with pytest.raises(ValueError, match="download them first") as error:
        opened(f"parquet:{tmp_path}")
    assert "\n" not in str(error.value)


def test_captions_in_the_column_of_laion_are_read_whatever_its_capitals(tmp_path):
    import pyarrow
    from pyarrow import parquet

    rows = [{"TEXT": f"t{n}", "jpg": picture(n), "NSFW": "UNLIKELY"} for n in range(2)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "part-00000.parquet")
    source = opened(f"parquet:{tmp_path}")
    assert [source[n].captions for n in range(2)] == [("t0",), ("t1",)]
    assert source[0].extra == {"NSFW": "UNLIKELY"}


@pytest.mark.parametrize(
    "said",
    ['{"successes": 1e999}', "[]", '{"successes": 9999999999}', '{"failed_to_download": 3}', ""],
)
def test_a_file_of_statistics_that_is_none_is_not_believed(tmp_path, said):
    fill(tmp_path, 3)
    (tmp_path / "x_stats.json").write_text(said)
    assert causes(opened(f"folder:{tmp_path}")) == ["a text without a picture of its name"]


def test_an_arrow_file_of_many_groups_is_checked_once_and_again_when_it_is_written_anew(tmp_path):
    def write(count):
        rows = [
            {"image": {"bytes": picture(20 * n), "path": None}, "text": f"t{n}"}
            for n in range(count)
        ]
        table = pyarrow.Table.from_pylist(rows)
        with ipc.new_stream(tmp_path / "data.arrow", table.schema) as file:
            file.write_table(table, max_chunksize=1)

    write(6)
    before = parquet._arrow.cache_info().misses
    assert len(pairs(opened(f"parquet:{tmp_path}"))) == 6
    assert parquet._arrow.cache_info().misses == before + 1
    write(3)
    os.utime(tmp_path / "data.arrow", ns=(1, 1))
    assert len(pairs(opened(f"parquet:{tmp_path}"))) == 3
