"""The coverage-guided fuzzing, for a few inputs."""

import pytest

from tests import fuzz


@pytest.mark.slow
@pytest.mark.parametrize(("parser", "code"), [("captions", 0), ("careless", 1)])
def test_a_parser_that_raises_anything_but_one_line_fails(monkeypatch, tmp_path, parser, code):
    pytest.importorskip("atheris", reason="atheris is missing: pip install atheris")
    assert fuzz.main([f"--only={parser}", "--runs=200", f"--keep={tmp_path}"]) == code
    assert len(list(tmp_path.iterdir())) == code  # the input that failed is kept
