"""The `denoise_fn` of a chain: a network, its parameters, and what is constant during the chain."""

from dataclasses import dataclass
from typing import Any

import jax

from udd_jax.networks.transformer import Transformer


@dataclass(frozen=True, eq=False)
class Denoiser:
    """The `denoise_fn` of a network with its parameters.

    `still` names a modality that has no free position in any sample of the batch and stays constant
    during the chain. With block attention its keys and values are computed once for the chain.
    `paint` is a function (xt, t, free) -> float[B, 1, L, L] for `layers.Painted`, and `bias` one
    whose result is added to all scores (`sampling.weights`); `features`: as `Vocab.features`;
    `without`: names of modalities that are absent in all rows, if the network leaves them out.
    """

    model: Transformer
    params: Any
    still: str | None = None
    paint: Any = None
    bias: Any = None
    features: tuple | None = None
    without: tuple[str, ...] | None = None

    def __call__(self, xt, t, free, cache=None):
        variables, added = {"params": self.params}, {"paint": self.paint, "bias": self.bias}
        options = {name: make(xt, t, free) for name, make in added.items() if make is not None}
        options |= {} if self.features is None else {"soft": self.features}
        options |= {"without": self.without} if self.without else {}
        if cache is None:
            return self.model.apply(variables, xt, t, free, **options)
        return self.model.apply(variables, xt, t, free, cache, **options, method="with_cache")

    def prepare(self, xt, t, free):
        """The function for a chain that begins with these inputs (`diffusion.denoiser.prepare`)."""
        cache = None
        if self.still and self.model.block_attention:
            variables = {"params": self.params}
            cache = self.model.apply(variables, xt, t, free, self.still, method="cache")
        return jax.tree_util.Partial(self, cache=cache)
