"""Whatever is typed, sent or found in a file: a result, or one line that a user can act on.

    pytest -n 0 -m long tests/test_any_input.py          10,000 inputs of each kind, new ones

Folders, lists and shards of data are in tests/data/test_sources_any_data.py.
"""

import base64
import hashlib
import inspect
import json
import pathlib
import shutil
import time
import types

import hypothesis
import ml_collections
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from hypothesis import strategies as st

import udd_jax
from configs import t2i
from udd_jax import build, command_line, stages
from udd_jax.demo import painter, requests
from udd_jax.errors import UserError
from udd_jax.evaluation.report import report
from udd_jax.runtime import checkpoints, trees
from udd_jax.sampling.settings import Settings
from udd_jax.tokenizers import image_tokenizer, text_tokenizer

SECONDS = 10  # longer is a hang
RUN = pathlib.Path(udd_jax.__file__).parent / "assets" / "shapes"
COMMON = {"deadline": None, "suppress_health_check": list(hypothesis.HealthCheck)}
MANY = hypothesis.settings(max_examples=10_000, derandomize=False, **COMMON)
LONG = {}
# The library that reads configs imports them in an old way.
pytestmark = [
    pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Generating overly large repr"),  # of the pipeline
]


def claim(few: int = 60, **given):
    """A claim for `few` inputs, and for 10,000 others in the long tests."""

    def decorate(test):
        LONG[test.__name__] = MANY(hypothesis.given(**given)(test))
        return hypothesis.settings(max_examples=few, **COMMON)(hypothesis.given(**given)(test))

    return decorate


def one_line(call, *arguments):
    """What `call` returns; None where it refuses, as `main` shows it: one line, and soon."""
    start = time.monotonic()
    try:
        return call(*arguments)
    except (UserError, OSError, flags.Error) as error:
        assert str(error).strip()
    finally:
        assert time.monotonic() - start < SECONDS


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
NESTED = st.sampled_from([b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"\0" * 9, b""])
NUMBERS = st.integers(-2, 3) | st.sampled_from([10**6, 10**12, -(10**9)]) | st.floats()


@st.composite
def damaged(draw, content: bytes):
    """A file that was cut, or in which some bytes are others, or that is anything at all."""
    if draw(st.booleans()):
        return draw(NESTED | st.binary(max_size=64))
    content = bytearray(content[: draw(st.integers(0, len(content)))])
    for _ in range(draw(st.integers(0, 3)) if content else 0):
        # Half of the changes are in the head, which says what the rest is.
        last = draw(st.sampled_from([min(len(content), 400), len(content)])) - 1
        content[draw(st.integers(0, last))] = draw(st.integers(0, 255))
    return bytes(content)


# ---- Files --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


@claim(content=damaged((RUN / build.TEXT).read_bytes()) | st.binary().map(lambda b: b"#" + b))
def test_any_file_is_a_text_tokenizer_or_refused(folder, content):
    (folder / "text").write_bytes(content)
    found = one_line(text_tokenizer.load, folder / "text")
    if found is not None:
        assert isinstance(found.decode(found.encode(["a red circle"], 8)), list)


@claim(content=damaged((RUN / build.IMAGE).read_bytes()))
def test_any_file_is_an_image_tokenizer_or_refused(folder, content):
    (folder / "image").write_bytes(content)
    one_line(image_tokenizer.load, folder / "image")


def sealed(header) -> bytes:
    """A file of `trees` with this header, whose checksum agrees where it can."""
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"].pop("sha256", None)
        digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + bytes(16))
        header["__metadata__"]["sha256"] = digest.hexdigest()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(16)


HALVED = JSON.map(json.dumps) | st.just("[]")
OWN = st.fixed_dictionaries({}, optional={"halved": HALVED, "metadata": HALVED}) | JSON
ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F99"]),
        "shape": st.lists(st.integers(-1, 4), max_size=2) | JSON,
        "data_offsets": st.lists(st.integers(-1, 16), min_size=2, max_size=2) | JSON,
    },
)
HEADERS = JSON | st.fixed_dictionaries(
    {"__metadata__": OWN}, optional={"a": ENTRY | JSON, "b": JSON}
)


@claim(few=40, header=HEADERS)
def test_a_file_with_any_header_is_a_tree_or_refused(folder, header):
    (folder / "tree").write_bytes(sealed(header))
    one_line(trees.load_tree, folder / "tree")
    one_line(image_tokenizer.load, folder / "tree")


@claim(
    content=damaged((RUN / build.CONFIG).read_bytes()) | JSON.map(lambda v: json.dumps(v).encode())
)
def test_a_folder_with_any_config_is_a_run_or_refused(folder, content):
    (folder / build.CONFIG).write_bytes(content)
    one_line(build.read_config, folder)


@pytest.fixture(scope="module")
def saved(folder):
    keeper = checkpoints.Checkpoints(folder / "saved")
    keeper.save(1, {"a": np.arange(3.0)}, {"loss": 1.0}, wait=True)
    keeper.close()
    return folder / "saved"


@claim(few=30, data=st.data())
def test_a_checkpoint_with_any_damage_is_restored_whole_or_refused(folder, saved, data):
    shutil.rmtree(folder / "copy", ignore_errors=True)
    shutil.copytree(saved, folder / "copy")
    files = sorted(path for path in (folder / "copy").rglob("*") if path.is_file())
    path = files[data.draw(st.integers(0, len(files) - 1))]
    before = path.read_bytes()
    path.write_bytes(data.draw(damaged(before)))
    keeper = checkpoints.Checkpoints(folder / "copy", say=lambda line: None)
    found = one_line(keeper.restore, {"a": np.zeros(3)})
    if found is not None:
        np.testing.assert_array_equal(found[0]["a"], np.arange(3.0))
        assert found[1] == {"loss": 1.0}


LINES = st.lists(
    st.fixed_dictionaries({}, optional={"task": JSON, "right": JSON, "reason": JSON}) | JSON,
    max_size=4,
).map(lambda rows: "\n".join(map(json.dumps, rows)).encode())


@claim(content=LINES | st.binary(max_size=40) | NESTED)
def test_any_list_of_samples_is_verdicts_or_refused(folder, content):
    (folder / "samples.jsonl").write_bytes(content)
    one_line(report.verdicts, folder / "samples.jsonl")


# ---- What is typed ------------------------------------------------------------------------------


def fields(config, prefix="") -> list[str]:
    """The names of all fields of a config, with dots."""
    found = []
    for name, value in config.items():
        inner = isinstance(value, ml_collections.ConfigDict)
        found += fields(value, f"{prefix}{name}.") if inner else [prefix + name]
    return found


TYPED = (
    NUMBERS | st.text(max_size=4) | st.sampled_from(["", "none", "true", "cosine", "(1,2)", "[]"])
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(fields(t2i.get_config("smoke"))), TYPED), min_size=1, max_size=2
)


def typed(argv) -> None:
    """What `main` does with a command line before it does anything."""
    with flagsaver.flagsaver():
        command_line.FLAGS.unparse_flags()
        words = command_line.parse(["udd_jax", *argv])
        assert words
        command_line.check(command_line.FLAGS.mode)
        command_line.typed_settings()
        if command_line.CONFIG.value is not None:
            stages.check(command_line.CONFIG.value)


@claim(few=20, changes=CHANGES)
def test_any_field_of_a_config_is_checked_before_a_stage_begins(changes):
    one_line(typed, ["--config=configs/t2i.py:smoke", *(f"--config.{n}={v}" for n, v in changes)])


WORDS = st.lists(
    st.one_of(
        st.builds(
            lambda name, value: f"--{name}={value}",
            st.sampled_from(sorted(command_line.TAKES)),
            TYPED | st.sampled_from(["sample", "plan", "image|text", "left:8", "configs/t2i.py"]),
        ),
        st.text(max_size=8).filter(lambda word: "help" not in word),
    ),
    max_size=5,
)


@claim(argv=WORDS)
def test_any_command_line_is_understood_or_refused(argv):
    assert isinstance(command_line.about(argv), str | None)
    one_line(typed, argv)


@claim(
    changes=st.dictionaries(
        st.sampled_from(sorted(Settings.__dataclass_fields__)), JSON, max_size=3
    )
)
def test_any_settings_of_a_sampler_are_settings_or_refused(changes):
    one_line(lambda: Settings(**changes))


# ---- What a page sends --------------------------------------------------------------------------


ASKED = st.fixed_dictionaries(
    {},
    optional={
        "text": st.text(max_size=30) | st.sampled_from(["a red circle", "a ___ circle", "___" * 9]),
        "negative": st.text(max_size=5),
        "blank_tokens": st.integers(-1, 40) | JSON,
        "count": st.integers(-1, 18) | JSON,
        "seed": st.integers(-1, 2**33) | JSON,
        "settings": st.dictionaries(
            st.sampled_from([*Settings.__dataclass_fields__, "speed"]), NUMBERS | JSON, max_size=2
        ),
    },
)
TASKS = st.sampled_from(["t2i", "i2t", "pair", "image", "text", "infill", "text|image", "a|b", ""])


@claim(task=TASKS | st.text(max_size=6), asked=ASKED)
def test_any_request_is_rows_of_tokens_or_refused(pipe, task, asked):
    made = one_line(lambda: requests.make(pipe, task, **asked))
    if made is not None:
        assert 1 <= len(made) <= requests.MOST and hash(made.group) is not None


PNG = painter.value(np.zeros((32, 32, 3), np.uint8))["image"]
SEEN_BY = types.SimpleNamespace(image_size=32, grid=(4, 4), shape=(32, 32, 3))
SENT = st.fixed_dictionaries(
    {},
    optional={
        "image": st.text(max_size=9)
        | st.text(max_size=9).map(lambda text: painter.START + text)
        | damaged(base64.b64decode(PNG.partition(",")[2])).map(
            lambda data: painter.START + base64.b64encode(data).decode()
        )
        | JSON,
        "mask": st.text("01", max_size=16) | st.just("01" * 8) | JSON,
    },
)


@claim(sent=SENT | JSON)
def test_any_painted_picture_is_a_picture_or_refused(sent):
    found = one_line(painter.read, sent, SEEN_BY)
    if found is not None and found[0] is not None:
        assert found[0].shape == (32, 32, 3) and found[1].shape == (32, 32)


@pytest.mark.long
@pytest.mark.parametrize("name", list(LONG))
def test_so_it_is_for_very_many(name, request):
    wanted = inspect.signature(LONG[name]).parameters
    LONG[name](**{name: request.getfixturevalue(name) for name in wanted})
