"""Where compiled programs are kept on the disk, so that a second process does not compile again."""

import os
import pathlib

import jax

SECONDS = 0.5  # a program that compiles faster is not kept


def user_folder() -> pathlib.Path:
    """`$XDG_CACHE_HOME/udd_jax/compiled`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "udd_jax" / "compiled"


def keep(folder=None) -> None:
    """Keeps compiled programs in `folder`, by default in `user_folder()`.

    A folder that JAX has already, as from JAX_COMPILATION_CACHE_DIR, stays. Without a place to
    write nothing is kept.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    if folder is None:
        try:
            folder = user_folder()
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, RuntimeError):  # no home, or one that cannot be written
            return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", SECONDS)
