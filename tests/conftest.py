"""Every test runs on the CPU, on eight devices, with strict ranks and the same examples.

Most of the time goes into compilation, so that tests share what they compile, with those of the
next session too: the folder is `.pytest_cache/d/compiled`, and `pytest --cache-clear` empties it.
"""

import gc
import os
import shutil

from tests.helpers import quick

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8", quick.FLAGS]
).strip()

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.load_profile("fixed")
jax.config.update("jax_numpy_rank_promotion", "raise")
MOST_BYTES = 2**30  # of compiled programs


def pytest_collection_modifyitems(config, items):
    """Tests that are marked `long` run only where the selection names them."""
    if "long" not in config.option.markexpr:
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_collection_finish():
    """Leaves the imported modules to themselves: a quarter of tracing was collecting garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


def pytest_sessionstart(session):
    """Programs of sources that are gone are never asked for again: a large folder starts anew."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        folder = session.config.cache.mkdir("compiled")
        if sum(f.stat().st_size for f in folder.iterdir()) > MOST_BYTES:
            shutil.rmtree(folder)


@pytest.fixture(scope="session")
def compiled(pytestconfig):
    """A folder for compiled programs, of tests and of the jobs that they start.

    A program that was cut when its writer was killed is compiled again (the filter of that warning
    is in pyproject.toml).
    """
    return pytestconfig.cache.mkdir("compiled")


@pytest.fixture(scope="session", autouse=True)
def _compile_once(compiled):
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(compiled))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """The folder of a run that was never trained (tests/helpers/tiny.py)."""
    from tests.helpers import tiny

    return tiny.make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pipe(tiny_run):
    """The pipeline of that run."""
    from udd_jax import pipeline

    return pipeline.Pipeline.load(tiny_run)


@pytest.fixture(scope="module")
def pictures(pipe):
    """The first four pictures of its data, and their captions."""
    return pipe.example(4)
