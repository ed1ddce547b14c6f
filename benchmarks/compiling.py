"""What a first train step costs, with an empty persistent cache and with a full one; and memory.

    python -m benchmarks.compiling SIZE      one such start, as a line of JSON

Each start is a process of its own, so that its peak is that of a train step alone.
"""

import json
import os
import subprocess
import sys
import tempfile
import time

GIB = 2**30


def start(size: str) -> dict:
    """Builds a train step, compiles it and runs it three times, in this process."""
    begun = time.perf_counter()
    import jax

    from benchmarks import sizes, training
    from udd_jax.runtime import provenance

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)  # as main.py has it
    p = sizes.parts(sizes.SIZES[size]())
    step, state = training.make_step(p)
    arguments = p.batch, jax.random.key(1)
    ready = time.perf_counter()
    lowered = step.lower(state, *arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    sizes_ = compiled.memory_analysis()
    for _ in range(3):
        state, metrics = compiled(state, *arguments)
        jax.block_until_ready(metrics)
    return {
        "start_seconds": ready - begun,
        "trace_seconds": traced - ready,
        "compile_seconds": done - traced,
        "peak_gib": provenance.peak_gib(),
        "state_gib": sizes_.argument_size_in_bytes / GIB,
        "working_gib": sizes_.temp_size_in_bytes / GIB,
        "counted_gib": counted(p) and counted(p) / GIB,
    }


def counted(p) -> float | None:
    """Bytes of a state of AdamW by hand: weights, their average and two moments in float32."""
    import jax

    from udd_jax.networks import transformer

    if p.config.train.optimiser != "adamw":
        return None
    shapes = jax.eval_shape(lambda: transformer.init(p.model, jax.random.key(0)))
    return 4.0 * 4 * transformer.count_parameters(shapes)


def rows(size: str, platform: str):
    """A cold and a warm start."""
    command = [sys.executable, "-m", "benchmarks.compiling", size]
    with tempfile.TemporaryDirectory() as cache:
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PLATFORMS": platform}
        for name in ("cold start", "warm start"):
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
            yield {"name": name, **json.loads(done.stdout.splitlines()[-1])}


if __name__ == "__main__":
    print(json.dumps(start(sys.argv[1])))
