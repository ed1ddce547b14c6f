"""Files of numbers from anyone: read as NumPy reads them, or refused in one line, everywhere."""

import io
import pathlib
import types

import numpy as np
import pytest
from hypothesis import strategies as st

from tests.data import test_sources_any_data as any_data
from udd_jax import values
from udd_jax.data import arrays, layouts
from udd_jax.data.sources import readers


def npy(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(**named) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **named)
    return file.getvalue()


def claiming(shape: str, dtype: str = "<f4", content: bytes = b"") -> bytes:
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


GOOD = npy(np.arange(6, dtype=np.float32).reshape(2, 3))
DAMAGED = {
    "nothing": (b"", "magic"),
    "words": (b"no numbers at all", "magic"),
    "magic alone": (b"\x93NUMPY", "EOF|magic"),
    "cut off": (GOOD[:-5], r"\[2, 3\] of float32 are 24 bytes, and it has 19"),
    "too long": (GOOD + b"more", r"are 24 bytes, and it has 28"),
    "cut in its header": (GOOD[:40], "EOF|header"),
    "objects": (npy(np.array([{"a": 1}]), allow_pickle=True), "it holds object, expected whole"),
    "text": (npy(np.array(["a", "b"])), "it holds <U1"),
    "dates": (npy(np.array(["2020-01-01"], "M8[D]")), "it holds datetime64"),
    "complex": (npy(np.ones(2, complex)), "it holds complex128"),
    "an archive": (npz(a=np.zeros((2, 3))), "it is an archive"),
    "a bomb": (npz(a=np.zeros(1 << 24, np.uint8)), "it is an archive"),
    "much from nothing": (claiming("(1 << 40,)"), "header|malformed|invalid"),
    "a large claim": (claiming("(1099511627776, 3)"), "are 13194139533312 bytes, and it has 0"),
    "a negative side": (claiming("(-2, -3)", content=bytes(24)), r"\[-2, -3\]"),
    "a program": (claiming("__import__('os').listdir()"), "header|malformed"),
    "a later format": (b"\x93NUMPY\x03\x00" + GOOD[8:], r"its format is \(3, 0\)"),
}
TOKENIZER = types.SimpleNamespace(grid=(2, 3))


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore:Reading `.npy`")
def test_a_damaged_file_is_the_same_line_wherever_numbers_are_read(name, tmp_path):
    content, cause = DAMAGED[name]
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    read = {
        "given": lambda: values.vectors(str(path), None, None),
        "stored": lambda: readers._array((2, 3), content),
        "layout": lambda: layouts.read(path),
        "given layout": lambda: values.maps(str(path), TOKENIZER, 8),
    }
    for function in read.values():
        with pytest.raises(ValueError, match="not an array of numbers .*" + f"({cause})") as error:
            function()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "<i8", ">i2", "|u1", "|b1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3), (2, 3, 4)])
def test_a_whole_file_is_read_as_numpy_reads_it(dtype, order, shape, tmp_path):
    array = np.asarray(np.arange(np.prod(shape)).reshape(shape) % 7, dtype, order=order)
    path = tmp_path / "a.npy"
    path.write_bytes(npy(array))
    for found in (arrays.read(path), arrays.read(path.read_bytes())):
        theirs = np.load(path, allow_pickle=False)
        assert found.dtype == theirs.dtype.newbyteorder("=") and found.flags.writeable
        np.testing.assert_array_equal(found, theirs)


def test_a_header_of_the_second_format_is_read():
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(3), version=(2, 0))
    np.testing.assert_array_equal(arrays.read(file.getvalue()), [0, 1, 2])


@any_data.claim(st.binary(max_size=60), st.integers(0, len(GOOD)), st.booleans())
@pytest.mark.filterwarnings("ignore")
def test_any_bytes_are_numbers_or_one_line(found, where, whole):
    content = GOOD[:where] + found + (GOOD[where + len(found) :] if whole else b"")
    try:
        assert arrays.read(content).dtype.kind in arrays.NUMBERS
    except ValueError as error:
        assert type(error).__name__ == "UserError" and "\n" not in str(error)


def test_files_that_cannot_be_read_or_joined_are_one_line(tmp_path):
    with pytest.raises(
        ValueError, match=r"gone.npy is not an array of numbers \(.npy\): No such file"
    ):
        arrays.read(tmp_path / "gone.npy")
    with pytest.raises(ValueError, match=r"is not an array of numbers .*directory"):
        arrays.read(pathlib.Path(tmp_path))
    for name, shape in (("a", (2, 3)), ("b", (3, 3))):
        np.save(tmp_path / f"{name}.npy", np.zeros(shape))
    both = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    with pytest.raises(ValueError, match=r"shapes \[2, 3\] and \[3, 3\], expected one shape"):
        values.vectors(both, None, None)
    with pytest.raises(ValueError, match="no values are given"):
        values.vectors([], None, None)
    with pytest.raises(ValueError, match="rows of different lengths"):
        readers._array((2, 2), [[1.0], [1.0, 2.0]])


def test_the_picture_of_numbers_has_a_square_for_each():
    shown = arrays.picture(np.array([[-2.0, 0.0, 1.0]]))
    assert shown.shape == (8, 24, 3) and shown.dtype == np.uint8
    blue, white, red = (shown[4, x].astype(int) for x in (4, 12, 20))
    assert (blue == (33, 102, 172)).all() and (white == 247).all()
    np.testing.assert_allclose(red, (np.array([178, 24, 43]) + 247) / 2, atol=0.5)  # half as large
    assert arrays.picture(np.zeros(64)).shape == (16, 256, 3)  # two lines of 32
    assert arrays.picture(np.ones((2, 16))).shape == (16, 128, 3)
    assert arrays.picture(np.ones(33)).shape == (16, 17 * 8, 3)
