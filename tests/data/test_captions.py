"""Captions come out of their files as they were written, whatever the editor put around them."""

import pytest

from udd_jax.data import captions

TEXT = "ein grünes Kästchen\n赤い丸"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_a_byte_order_mark_says_the_encoding_and_is_dropped(encoding):
    mark = "\ufeff" if encoding.endswith("e") else ""  # Python writes the mark of the others
    assert captions.decode((mark + TEXT).encode(encoding)) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_is_known_by_its_zeros(encoding):
    assert captions.decode("a red car\n".encode(encoding)) == "a red car\n"
    for other in (b"a\0red car", b"a cat" + 11 * b"\0", b"\0", b""):  # zeros are a fault of these
        assert captions.decode(other) == other.decode()


def test_bytes_of_another_encoding_are_left_for_the_cleaning_to_count():
    assert captions.decode("caf\xe9".encode("cp1252")) == "caf\udce9"


def test_captions_are_the_lines_that_are_not_blank():
    assert captions.lines(b"\xef\xbb\xbfa red box\r\n\r\na box\r") == ("a red box", "a box")
    assert captions.lines(b" \n\n") == (" ",)
    assert captions.lines(b"") == ()


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "9" * 10_000, "", "\udcff"])
def test_whatever_is_no_json_is_one_kind_of_error(text):
    with pytest.raises(ValueError, match="no JSON: ") as caught:
        captions.parse_json(text)
    assert "\n" not in str(caught.value)
