"""A small network that names a picture or a spectrogram: for measuring, trained by
`evaluation.recognition`.

Patches to 16 x 16 cells, strided convolutions to 4 x 4, a dense layer to unit features f, and a
unit vector w_c for each name: the logit of name c is `SHARP` f . w_c. So the features of a picture
and the vectors of the names lie on one sphere, and distances on it mean something.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

SHARP = 16.0
CELLS = 16  # of a side, at most


class Classifier(nn.Module):
    """Pictures float32[B, height, width, channels] in [-1, 1] -> (features float32[B, F], logits
    float32[B, C])."""

    classes: int
    features: int = 64

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        patch = tuple(max(1, side // CELLS) for side in x.shape[1:3])
        x = nn.relu(nn.Conv(64, patch, patch, "VALID", name="patches")(x))
        for name in ("half", "quarter"):
            x = nn.relu(nn.Conv(128, (3, 3), (2, 2), name=name)(x))
        f = nn.Dense(self.features, name="features")(x.reshape(len(x), -1))
        f = f / jnp.linalg.norm(f, axis=-1, keepdims=True).clip(1e-6)  # a blank picture may be 0
        names = self.param("names", nn.initializers.normal(), (self.classes, self.features))
        names = names / jnp.linalg.norm(names, axis=-1, keepdims=True)
        return f, SHARP * f @ names.T
