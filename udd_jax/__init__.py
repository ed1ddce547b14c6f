"""Unified discrete diffusion for images and text, in JAX and Flax.

pipe = udd_jax.Pipeline.load("runs/t2i")
pipe.text_to_image(["a small red circle"], seed=0).images
"""


def __getattr__(name):
    # Imported on first use: `python -m udd_jax.main --help` does not import JAX.
    if name in ("Pipeline", "Result"):
        from udd_jax import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'udd_jax' has no attribute {name!r}")
