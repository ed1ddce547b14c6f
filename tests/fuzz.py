"""Bytes that are parsed: whatever they are, a result or one line, by coverage-guided fuzzing.

    pip install atheris
    python -m tests.fuzz                                  10,000 inputs of each parser
    python -m tests.fuzz --only=shard,weights --runs=1000

Atheris (libFuzzer) changes valid files so that new branches of the package, and of the parts of the
standard library in OTHERS, are reached. A parser may return, or raise UserError or OSError; any
other exception, more than 10 seconds, or more than 4 GB, is a failure, and its input is kept in
`--keep`. `tests/fuzzed.txt` is the log of the last run. Everything that is not bytes, such as flags
and requests, is in tests/test_any_input.py.
"""

import argparse
import io
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile

import numpy as np

SECONDS, MEGABYTES, LONGEST = 10, 4096, 1 << 14
OTHERS = ("tarfile", "zipfile", "csv", "json")
CARELESS = "careless"  # takes any bytes for a number: it shows that a fault is found


def _png() -> bytes:
    from udd_jax.data import pixels

    return pixels.encode_png(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def _shard() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, content in (("a.png", _png()), ("a.txt", b"a box"), ("b.json", b'["a"]')):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def _tree() -> bytes:
    from udd_jax.runtime import trees

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "tree")
        trees.save_tree(path, {"a": np.arange(6.0).reshape(2, 3)}, {"step": 1})
        return path.read_bytes()


def _weights() -> bytes:
    from tests.helpers import torch_writer

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "weights.pth")
        torch_writer.save(path, {"state_dict": {"a": np.arange(6, dtype=np.float32)}})
        return path.read_bytes()


def _sound() -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(64.0)), 8000, format="WAV")
    return file.getvalue()


def _array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.arange(6).reshape(2, 3))
    return file.getvalue()


def _packaged(name: str) -> bytes:
    import udd_jax

    return (pathlib.Path(udd_jax.__file__).parent / "assets" / "shapes" / name).read_bytes()


# ---- The parsers: from a path --------------------------------------------------------------------


def _open(kind):
    def parse(path):
        from udd_jax.data import described, sources, survey
        from udd_jax.data.sources import listing

        splits = listing.SPLITS
        data = {s: sources.open_source(f"{kind}:{path}", s, test=0.2) for s in splits}
        described.describe(survey.survey(data))

    return parse


def _table(path):
    from udd_jax.data.sources import tables

    list(tables.rows(path))


def _call(module: str, name: str, content=False):
    """A function of a module, of a path or of the bytes."""

    def parse(path):
        import importlib

        function = getattr(importlib.import_module(f"udd_jax.{module}"), name)
        return function(path.read_bytes() if content else path)

    return parse


# {name: (file name, what parses it, a function that makes a valid file)}
PARSERS = {
    "weights": ("a.pth", _call("convert.tensor_files", "read"), _weights),
    "safetensors": ("a.safetensors", _call("convert.tensor_files", "read"), _tree),
    "tree": ("tree", _call("runtime.trees", "load_tree"), _tree),
    "image tokenizer": (
        "tokenizer",
        _call("tokenizers.image_tokenizer", "load"),
        lambda: _packaged("vq/tokenizer"),
    ),
    "text tokenizer": (
        "text.model",
        _call("tokenizers.text_tokenizer", "load"),
        lambda: _packaged("text.model"),
    ),
    "tokenizer.json": (
        "tokenizer.json",
        _call("tokenizers.text_tokenizer", "load"),
        lambda: b'{"model": {"type": "BPE", "vocab": {"a": 0, "[PAD]": 1}, "merges": []}}',
    ),
    "shard": ("a.tar", _open("webdataset"), _shard),
    "json": ("a.json", _table, lambda: b'{"a.png": ["a box"], "b.png": {"text": "c"}}'),
    "jsonl": ("a.jsonl", _table, lambda: b'{"file_name": "a.png", "text": "a box"}\n' * 2),
    "csv": ("a.csv", _table, lambda: b'file_name,text\na.png,"a, box"\nb.png,c\n'),
    "captions": ("a.txt", _call("data.captions", "lines", content=True), lambda: b"a box\r\nb"),
    "picture": ("a.png", _call("data.pixels", "read"), _png),
    "sound": ("a.wav", _call("data.sounds", "read", content=True), _sound),
    "layout": ("a.npy", _call("data.layouts", "read", content=True), _array),
    "samples": (
        "samples.jsonl",
        _call("evaluation.report.report", "verdicts"),
        lambda: b'{"task": "t2i", "right": true, "reason": null}\n',
    ),
}


def main(arguments=None) -> int:
    options = parse(arguments)
    if options.child:
        return fuzz(options.child, options.runs, pathlib.Path(options.keep))
    failed = 0
    for name in options.only:
        command = [sys.executable, "-m", "tests.fuzz", f"--child={name}", f"--keep={options.keep}"]
        done = subprocess.run(
            [*command, f"--runs={options.runs}"], capture_output=True, text=True, check=False
        )
        output = done.stdout + done.stderr
        runs = re.search(r"number_of_executed_units: *(\d+)", output)
        reached = re.findall(r"cov: (\d+)", output)
        bad = done.returncode != 0
        failed += bad
        ran = f"{runs and runs[1]} inputs, {reached[-1] if reached else '?'} branches"
        print(f"{name}: {ran}{', FAILED' if bad else ''}", flush=True)
        if bad:
            print(output[-3000:], flush=True)
    return int(failed > 0)


def parse(arguments):
    parser = argparse.ArgumentParser(
        "python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = lambda text: text.split(",")  # noqa: E731
    parser.add_argument("--only", type=names, default=list(PARSERS), help=", ".join(PARSERS))
    parser.add_argument("--runs", type=int, default=10_000, help="inputs of each parser")
    parser.add_argument("--keep", default="fuzz", help="folder for inputs that fail")
    parser.add_argument("--child", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for name in options.only:
        if name not in PARSERS and name != CARELESS:
            parser.error(f"--only = {name!r}, expected some of {', '.join(PARSERS)}")
    return options


def fuzz(name: str, runs: int, keep: pathlib.Path) -> int:
    """Ends the process: 0 if every input was parsed or refused."""
    import atheris

    file, parse_file, make = PARSERS.get(
        name, ("a", lambda path: int(path.read_bytes()), lambda: b"1")
    )
    folder = pathlib.Path(tempfile.mkdtemp())
    path = folder / "in" / file
    for place in (folder / "corpus", path.parent, keep):
        place.mkdir(parents=True, exist_ok=True)
    with atheris.instrument_imports(include=["udd_jax", *OTHERS]):
        from udd_jax.errors import UserError

        valid = make()
        path.write_bytes(valid)
        parse_file(path)  # imports what it needs; a valid file is no failure
    (folder / "corpus" / "valid").write_bytes(valid)

    def one(content: bytes) -> None:
        path.write_bytes(content)
        try:
            parse_file(path)
        except (UserError, OSError) as error:
            assert "\n" not in str(error)

    options = [f"-runs={runs}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEGABYTES}", "-seed=1"]
    options += [f"-max_len={max(LONGEST, len(valid))}", "-print_final_stats=1"]
    options += [f"-artifact_prefix={keep}/{name.replace(' ', '_')}-"]
    atheris.Setup([sys.argv[0], *options, str(folder / "corpus")], one)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
