"""Times of several programs, taken in turn, and what they are as large matrix products.

Other work on the machine hits all programs of a round alike, so that ratios within a round can be
compared where seconds cannot. Each program comes right after a matrix product: its ratio is to
that one.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}  # of the matrices of the product


class Times(NamedTuple):
    """Seconds, one a round, float[n] each; `product` is that of the matrix product before."""

    clock: np.ndarray
    processor: np.ndarray  # of all threads of this process
    product: np.ndarray  # by the clock
    product_processor: np.ndarray

    def __sub__(self, other: "Times") -> "Times":
        """What a program takes beyond another one of the same rounds; the products are its own."""
        return self._replace(
            clock=self.clock - other.clock, processor=self.processor - other.processor
        )


def product(side: int, dtype) -> tuple[Callable[[], None], float]:
    """A matrix product in a dtype, and its FLOPs."""
    a = jnp.ones((side, side), dtype)
    multiply = jax.jit(lambda a: a @ a)
    return lambda: jax.block_until_ready(multiply(a)), 2.0 * side**3


def rounds(programs: dict, multiply, repeats: int) -> dict[str, Times]:
    """Times of functions without arguments that end when their work has ended, by name.

    Each is called twice before, which compiles it and warms what it touches.
    """
    for run in (multiply, *programs.values()):
        run()
        run()
    found = {name: [] for name in programs}
    for _ in range(repeats):
        for name, run in programs.items():
            before = _now()
            multiply()
            between = _now()
            run()
            found[name].append([*(_now() - between), *(between - before)])
    return {name: Times(*np.transpose(times)) for name, times in found.items()}


def _now() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


def row(name: str, times: Times, **more) -> dict:
    """A row of the table: medians, the spread (quartiles apart, over the median), products."""
    low, middle, high = np.percentile(times.clock, (25, 50, 75))
    return {
        "name": name,
        "seconds": float(middle),
        "spread": float((high - low) / abs(middle)) if middle else 0.0,
        "processor": float(np.median(times.processor)),
        "products": float(np.median(times.clock / times.product)),
        "processor_products": float(np.median(times.processor / times.product_processor)),
        "rounds": len(times.clock),
    } | more
