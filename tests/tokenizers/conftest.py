"""CLIP's published merges, which are not part of the repository."""

import os
import pathlib

import pytest

from udd_jax.tokenizers import text_tokenizer

HERE = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clip_file():
    default = HERE.parent.parent / "shared" / "fixtures" / "clip_bpe"
    path = pathlib.Path(os.environ.get("UDD_CLIP_BPE", default))
    path = path / "bpe_simple_vocab_16e6.txt.gz" if path.is_dir() else path
    if not path.is_file():
        pytest.skip("CLIP's merges are absent: set UDD_CLIP_BPE to bpe_simple_vocab_16e6.txt.gz")
    pytest.importorskip("ftfy", reason="CLIP's published cleaning needs ftfy")
    return path


@pytest.fixture(scope="module")
def clip_small(clip_file):
    return text_tokenizer.load(clip_file)
