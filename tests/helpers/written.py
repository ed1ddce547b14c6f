"""Small data sets as `datasets`, `webdataset` and img2dataset write them.

    python -m tests.helpers.written tests/fixtures/written

The libraries are no dependency of the tests. What they wrote is recorded in the folder above, and a
slow test writes it anew where they are installed. Picture n has the first red value 20 n and the
caption "t0", "t1", ...; LABELS are the classes n % 3. Pictures 2 and 4 of img2dataset's sets could
not be downloaded.
"""

import importlib.util
import io
import json
import pathlib
import sys

import numpy as np
from PIL import Image

COUNT, LOST = 7, (2, 4)
LABELS = ["cat", "night_owl", "dog"]
DOWNLOADED = ("webdataset", "files", "parquet")  # output formats of img2dataset


def picture(number):
    return Image.fromarray(np.full((16, 16, 3), [20 * number, 255 - 20 * number, 7], np.uint8))


def datasets_parquet(root):
    """Two splits without a caption column; the classes are a `ClassLabel`."""
    import datasets

    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=LABELS)}
    columns = {"image": list(map(picture, range(COUNT))), "label": [n % 3 for n in range(COUNT)]}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    root.mkdir(parents=True)
    made.select(range(5)).to_parquet(root / "train-00000-of-00001.parquet")
    made.select(range(5, COUNT)).to_parquet(root / "test-00000-of-00001.parquet")


def datasets_disk(root):
    """Two splits of `save_to_disk`."""
    import datasets

    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    columns = {
        "image": list(map(picture, range(COUNT))),
        "text": [f"t{n}" for n in range(COUNT)],
    }
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    parts = {"train": made.select(range(5)), "test": made.select(range(5, COUNT))}
    datasets.DatasetDict(parts).save_to_disk(root)


def webdataset(root):
    """Shards of three samples, and one compressed shard with two-part endings."""
    import webdataset as wds

    root.mkdir(parents=True)
    with wds.ShardWriter(f"{root}/a-%06d.tar", maxcount=3, verbose=0) as writer:
        for n in range(COUNT - 1):
            said = {"txt": f"t{n}", "json": {"number": n}}
            writer.write({"__key__": f"sub/{n:03d}", "png": picture(n)} | said)
    with wds.TarWriter(f"{root}/b.tar.gz") as writer:
        n = COUNT - 1
        sample = {"input.png": picture(n), "output.txt": f"t{n}", "number.cls": n}
        writer.write({"__key__": f"sub/{n:03d}"} | sample)


def downloaded(root, kind):
    """A shard of img2dataset by its own writer, with its statistics beside it."""
    import pyarrow

    # The writer alone: the package imports a logging service and a decoder of video.
    place = pathlib.Path(importlib.util.find_spec("img2dataset").origin).with_name("writer.py")
    spec = importlib.util.spec_from_file_location("writer", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    writers = {
        "webdataset": module.WebDatasetSampleWriter,
        "files": module.FilesSampleWriter,
        "parquet": module.ParquetSampleWriter,
    }
    texts = ("url", "caption", "key", "status", "error_message")
    fields = [(name, pyarrow.string()) for name in texts]
    fields += [("similarity", pyarrow.float64()), ("width", pyarrow.int32())]
    fields += [("txt", pyarrow.string())] if kind == "parquet" else []
    root.mkdir(parents=True)
    writer = writers[kind](0, str(root), True, 5, pyarrow.schema(fields), "png")
    for n in range(COUNT):
        lost, file = n in LOST, io.BytesIO()
        picture(n).save(file, "PNG")
        row = {"url": f"http://example.org/{n}", "caption": f"t{n}", "key": f"{n:09d}"}
        row |= {"status": "failed_to_download" if lost else "success", "similarity": 0.3}
        row |= {"error_message": "HTTP Error 404" if lost else None, "width": None if lost else 16}
        writer.write(None if lost else file.getvalue(), row["key"], row["caption"], row)
    writer.close()
    counts = {"count": COUNT, "successes": COUNT - len(LOST), "failed_to_download": len(LOST)}
    said = counts | {"failed_to_resize": 0, "duration": 1.5, "status_dict": {"HTTP Error 404": 2}}
    (root / "00000_stats.json").write_text(json.dumps(said, indent=4))


def write(root: pathlib.Path) -> None:
    """All sets, each in a folder of its own."""
    datasets_parquet(root / "datasets_parquet")
    datasets_disk(root / "datasets_disk")
    webdataset(root / "webdataset")
    for kind in DOWNLOADED:
        downloaded(root / f"img2dataset_{kind}", kind)


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[1]))
