"""Unified discrete diffusion for images and text, in JAX and Flax.

    pipe = udd_jax.Pipeline.load("runs/t2i")
    pipe.text_to_image("a small red circle", num=4, seed=0).images

The packages, each with one question:

    diffusion     What is the noise?  The transition matrix, the objective, tasks.
    networks      What predicts x_0?
    sampling      How is x_0 reached?  One loop, samplers, guidance.
    tokenizers    How do pixels and words become codes, and codes pixels and words again?
    data          How do records become batches?
    training      How are the weights found?
    steering      How is a result pushed, chosen or changed?  Weights, candidates, edits.
    evaluation    How good is it?
    demo          How do I try it in a browser?
    convert       How do published weights get in and out?
    runtime       What does a long computation need?

`pipeline` is the Python interface, `values` what it takes, `hub` a folder to pass on, `main` the
command line, `command_line` its flags, `stages` the main job, `generate` sampling from the command
line, `embed` writes vectors as data, `build` goes from a config to its parts, `errors` says what a
user can fix.
"""

import importlib.metadata

_LAZY = ("Pipeline", "Result")
__all__ = ("Pipeline", "Result", "__version__")


def __getattr__(name):
    # Imported on first use: `python -m udd_jax.main --help` does not import JAX.
    if name in _LAZY:
        from udd_jax import pipeline

        return getattr(pipeline, name)
    if name == "__version__":
        try:
            return importlib.metadata.version("udd_jax")
        except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    raise AttributeError(f"module 'udd_jax' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *__all__})
