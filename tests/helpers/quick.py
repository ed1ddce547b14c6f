"""What makes XLA compile quickly: most of the time of the tests goes there."""

import os

FLAGS = " ".join(
    [
        "--xla_backend_optimization_level=0",  # half of the time
        "--xla_cpu_use_fusion_emitters=false",  # a third of the rest
    ]
)
# `compiler_options` for claims about last bits: as programs are compiled outside of tests.
EXACT = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": True}


def environment(**more: str) -> dict[str, str]:
    """The environment of a process with one device that compiles quickly, and `more`."""
    return os.environ | {"XLA_FLAGS": FLAGS} | more
