"""Claims about files and folders that are whole or not there."""

import pytest

from udd_jax.runtime import files


@pytest.mark.parametrize("several", [False, True])
def test_a_folder_is_whole_or_not_there(tmp_path, several):
    out = tmp_path / "a" / "run"
    with pytest.raises(KeyboardInterrupt), files.whole(out, several) as folder:
        files.write_text(folder / "deep" / "1", "one")
        raise KeyboardInterrupt
    assert list(out.parent.iterdir()) == []
    out.mkdir()  # an empty one may be there
    with files.whole(out, several) as folder:
        files.write_text(folder / "deep" / "2", "two")
        assert list(out.iterdir()) == []
    assert [path.relative_to(out.parent) for path in out.parent.rglob("2")] == [
        out.relative_to(out.parent) / "deep" / "2"
    ]
    with pytest.raises(OSError), files.whole(out, several) as folder:
        folder.mkdir()
    assert list(tmp_path.rglob("*.tmp")) == [] and (out / "deep" / "2").read_text() == "two"


def test_what_a_killed_writer_left_is_not_in_the_next_folder(tmp_path):
    (tmp_path / "run.tmp").mkdir()
    (tmp_path / "run.tmp" / "old").write_text("")
    with files.whole(tmp_path / "run") as folder:
        files.write_text(folder / "new", "")
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "new"]


def test_a_file_that_several_write_has_a_path_for_each(tmp_path, monkeypatch):
    with files.whole(tmp_path / "a", several=True) as one:
        monkeypatch.setattr(files.os, "getpid", lambda: 1)
        with files.whole(tmp_path / "a", several=True) as other:
            one.write_text("one")
            other.write_text("other")
        assert (tmp_path / "a").read_text() == "other" and one.read_text() == "one"
    assert (tmp_path / "a").read_text() == "one" and len(list(tmp_path.iterdir())) == 1
