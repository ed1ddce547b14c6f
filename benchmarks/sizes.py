"""The sizes that are measured, as configs, and what is built from one."""

from typing import Any, NamedTuple

import jax
import numpy as np

from configs import t2i
from udd_jax import build
from udd_jax.diffusion import transition, vocab
from udd_jax.networks import transformer
from udd_jax.training import plan


def paper():
    """The published size: 20 layers of width 1024, 1024 + 128 tokens of 2887 + 8192 classes."""
    return t2i.get_config("coco")


def small():
    """The published network, smaller: 6 layers of width 256, 256 + 64 tokens, batch 4, float32."""
    c = paper()
    c.name = "small"
    c.image_size = 128
    c.vq.model.n_embed = 1024
    c.text.update({"vocab_size": 1024, "length": 64})
    c.model.update({"layers": 6, "width": 256, "heads": 8, "rezero": 1.0})
    # What is recomputed costs 3 % of a step and spares 0.4 GiB.
    c.model.update({"dtype": "float32", "remat": "dots", "implementation": "flat"})
    c.train.batch_size = 4
    return c


def shapes():
    """configs/t2i.py, with as many codes and words as its tokenizers come to."""
    c = t2i.get_config()
    c.name = "shapes"
    c.vq.model.n_embed = 169
    c.text.vocab_size = 283
    return c


def tiny():
    """A size at which everything can be tried in seconds. Nothing is to be learned from it."""
    c = small()
    c.name = "tiny"
    c.image_size = 32
    c.vq.model.n_embed = 31
    c.text.update({"vocab_size": 37, "length": 5})
    c.model.update({"layers": 1, "width": 32, "heads": 2})
    return c


SIZES = {"tiny": tiny, "shapes": shapes, "small": small, "paper": paper}


class Parts(NamedTuple):
    """What a config leads to."""

    config: Any
    vocab: vocab.Vocab
    kernel: transition.Kernel
    model: transformer.Transformer

    @property
    def batch(self) -> dict[str, np.ndarray]:
        """Random tokens, {name: int32[B, length]}, B the config's batch; of features, random
        numbers float32[B, length, inputs]."""
        rng, size = np.random.default_rng(0), self.config.train.batch_size
        return {
            m.name: rng.standard_normal((size, m.length, m.inputs), np.float32)
            if m.inputs
            else rng.integers(0, m.classes, (size, m.length), dtype=np.int32)
            for m in self.vocab.modalities
        }


def parts(config) -> Parts:
    layout = plan.vocab_of(config)
    kernel = transition.make_kernel(layout, build.make_schedules(config, layout))
    return Parts(config, layout, kernel, build.make_model(config, layout))


def network_inputs(p: Parts) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noisy tokens of the middle of the way, their times, all positions free."""
    x0 = p.vocab.fuse(p.batch)
    free = np.ones(x0.shape, bool)
    t = np.full((len(x0), len(p.vocab.modalities)), p.kernel.steps // 2, np.int32)
    position_t = transition.free_times(p.vocab, t, free)
    return transition.q_sample(p.kernel, jax.random.key(1), x0, position_t), t, free
