"""The arithmetic around the network, beside the network: a reverse step and the loss.

    python benchmarks/arithmetic.py [--layers=2] [--width=1024] [--batch=1] [--repeats=2]

At 1024 + 128 positions and 2887 + 8192 classes, with the published schedule. Ratios within one
run: a reverse step (truncation on, guidance off) against the network's forward pass alone, and a
gradient of the loss against that of a plain sum of logits. Seconds are of the processor, the least
of the repeats, so that a busy machine can be measured; bytes are the compiler's own count of what a
program holds at once besides its inputs, in units of the logits (float32). The arithmetic costs the
same beside any network: the default is the published width and a tenth of its 20 layers.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp

from udd_jax.diffusion import objective, schedules, transition, vocab
from udd_jax.networks import transformer
from udd_jax.networks.denoiser import Denoiser
from udd_jax.sampling import reverse
from udd_jax.sampling.settings import Settings

LAYOUT = vocab.image_text((32, 32), image_classes=2887, text_classes=8192, text_length=128)
LOGITS = 4 * sum(m.length * m.classes for m in LAYOUT.modalities)  # bytes of a sample


def programs(model, batch: int) -> tuple[dict, tuple]:
    """Two pairs of functions by name, and the arguments of all."""
    kernel = transition.make_kernel(LAYOUT, schedules.linear(model.steps))
    params = jax.jit(lambda: transformer.init(model, jax.random.key(0), fan_in=True))()
    shape = (batch, LAYOUT.length)
    free, absent = jnp.ones(shape, bool), jnp.zeros((batch, 2), bool)
    x0 = jnp.zeros(shape, jnp.int32).at[:, 1024:].set(LAYOUT.offsets[1])
    t = jnp.full((batch, 2), model.steps // 2)
    xt = transition.q_sample(kernel, jax.random.key(1), x0, transition.free_times(LAYOUT, t, free))
    settings = Settings(steps=1, top_r=0.86)

    def forward(params, xt):
        return model.apply({"params": params}, xt, t, free)

    def reverse_step(params, xt):  # the loop's body, once
        denoise_fn = Denoiser(model, params)
        return reverse.sample(kernel, denoise_fn, jax.random.key(2), xt, free, absent, settings)

    def plain(params, xt):
        return sum(y.sum() for y in forward(params, xt))

    def loss(params, xt):
        kl, nll = objective.loss_terms(kernel, forward(params, xt), x0, xt, t, free)
        return (kl + 0.01 * nll).sum()

    functions = {
        "forward pass": forward,
        "reverse step": reverse_step,
        "gradient of a plain sum": jax.grad(plain),
        "gradient of the loss": jax.grad(loss),
    }
    return functions, (params, xt)


def rows(model, batch: int, repeats: int):
    """Yields a row a program: seconds, bytes held in units of the logits, and what the second of a
    pair costs against the first."""
    first = None
    functions, inputs = programs(model, batch)
    for name, function in functions.items():
        program = jax.jit(function).lower(*inputs).compile()
        seconds = []
        for _ in range(repeats):
            start = time.process_time()
            jax.block_until_ready(program(*inputs))
            seconds.append(time.process_time() - start)
        memory = program.memory_analysis()
        held = memory.temp_size_in_bytes + memory.output_size_in_bytes
        row = {"name": name, "seconds": min(seconds), "held": held / (batch * LOGITS)}
        if first:
            row["ratio"] = row["seconds"] / first["seconds"]
            row["added"] = row["held"] - first["held"]
        first = None if first else row
        yield row


def network(layers: int, width: int) -> transformer.Transformer:
    """The published layout, heads of 64."""
    return transformer.Transformer(
        LAYOUT, 500, layers=layers, width=width, heads=width // 64, rezero=1.0
    )


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("layers", 2), ("width", 1024), ("batch", 1), ("repeats", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args(arguments)
    model = network(options.layers, options.width)
    print(f"{options}, logits {LOGITS / 2**20:.1f} MiB a sample", flush=True)
    for row in rows(model, options.batch, options.repeats):
        ratio = f"  {row['ratio']:.3f} x, {row['added']:+.2f} logits" if "ratio" in row else ""
        print(
            f"{row['name']:24} {row['seconds']:8.3f} s {row['held']:7.2f} logits held{ratio}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
