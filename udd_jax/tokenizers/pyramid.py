"""A picture as codes of two levels, a coarse grid and a fine one, which are trained together.

    h2 = Encoder(x)              h1 = its features on the coarse grid
    z1 = VQ1(conv h1)            z2 = VQ2(conv Dec([Up(z1); h2]))
    image ~ Decoder([Up(z1); z2])

This is the two-level tokenizer of Frido (arXiv 2208.13753). In a share `preview` of the rows of a
training, z2 is zero, so that the coarse codes alone decode to a picture, the preview. Up is a
linear map from each coarse vector to those of its fine cells: if it only repeated the vector, local
cells would all show the same. A coarse cell has `factor` times the side of a fine one.

Everything else is as in `vqgan.py`, also `local_encoder`: then a coarse code depends on its own
coarse cell only, and a fine code on the pixels of its cell and the coarse code above it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.errors import UserError
from udd_jax.tokenizers import vqgan

FACTORS = (2, 4)
_Linear = functools.partial(nn.Dense, kernel_init=vqgan.SPREAD)  # of each cell
ZEROED = 2  # `fold_in` number of the key that draws the rows without a fine level


class Pyramid(vqgan.VQGAN):
    """A `VQGAN` with a coarse level; its own fields and codes are those of the fine level.

    coarse_embed: K1, codes of the coarse level. factor: fine cells along the side of a coarse one,
    2 or 4. preview: the share of rows of a training that are decoded without the fine level.
    Codes are int32[B, N1 + N2], the coarse ones first. Raises ValueError if sizes do not fit.
    """

    coarse_embed: int = 256
    factor: int = 2
    preview: float = 0.25

    codebooks = ("coarse_quantize", "quantize")

    @property
    def coarse_grid(self) -> tuple[int, int]:
        return self.grid[0] // self.factor, self.grid[1] // self.factor

    @property
    def levels(self):
        """((grid, codes) of the coarse level, of the fine level)."""
        return (self.coarse_grid, self.coarse_embed), (self.grid, self.n_embed)

    def setup(self):
        super().setup()
        if self.factor not in FACTORS or self.quantiser == "gumbel":
            raise UserError(
                f"modalities of kind coarse: factor = {self.factor}, vq.model.quantiser = "
                f"{self.quantiser!r}, expected 2 or 4, and 'ema' or 'straight_through'"
            )
        if any(side % self.factor for side in self.grid):
            raise UserError(
                f"modalities of kind coarse: the fine grid is {self.grid[0]} x {self.grid[1]}, "
                f"expected multiples of factor = {self.factor}"
            )
        local = self.local_encoder
        self.down = [vqgan.Downsample(local) for _ in range(self.factor // 2)]
        self.coarse_block = vqgan.ResnetBlock(self.z_channels, local)
        self.coarse_conv = _Linear(self.embed_dim)
        self.coarse_quantize = vqgan.Quantizer(
            self.quantiser, self.coarse_embed, self.embed_dim, self.beta
        )
        self.up = _Linear(self.factor**2 * self.embed_dim)
        self.fine_block = vqgan.ResnetBlock(self.z_channels, local)

    def _coarse(self, h):
        """Features of the fine grid -> vectors of the coarse one, float[B, h1, w1, E]."""
        for down in self.down:
            h = down(h)
        return self.coarse_conv(self.coarse_block(h))

    def _fine(self, h, coarse):
        """Features and coarse rows -> vectors of the fine grid, float[B, h2, w2, E]."""
        return self.quant_conv(self.fine_block(jnp.concatenate([self._up(coarse), h], axis=-1)))

    def _up(self, coarse):
        return vqgan.depth_to_space(self.up(coarse), self.factor)

    def encode(self, images):
        """float[B, S, S, 3] in [-1, 1] -> pre-quantisation vectors of both levels, a pair."""
        h = self.encoder(images)
        z = self._coarse(h)
        return z, self._fine(h, self.coarse_quantize.rows(self.coarse_quantize.codes(z)))

    def encode_codes(self, images):
        """float[B, S, S, 3] in [-1, 1] -> int32[B, N1 + N2]."""
        coarse, fine = self.encode(images)
        codes = self.coarse_quantize.codes(coarse), self.quantize.codes(fine)
        return jnp.concatenate([c.reshape(len(images), -1) for c in codes], axis=1)

    def decode(self, rows):
        """Rows of both levels, a pair -> float[B, S, S, 3], about [-1, 1]."""
        coarse, fine = rows
        joined = jnp.concatenate([self._up(coarse), fine], axis=-1)
        return self.decoder(self.post_quant_conv(joined))

    def decode_codes(self, codes):
        """int32[B, N1 + N2] -> float[B, S, S, 3]."""
        size = int(np.prod(self.coarse_grid))
        fine = self.quantize.rows(codes[:, size:].reshape(-1, *self.grid))
        return self.decode((self._coarse_rows(codes[:, :size]), fine))

    def preview_codes(self, codes):
        """Coarse codes int32[B, N1] -> the preview float[B, S, S, 3]."""
        nothing = jnp.zeros((len(codes), *self.grid, self.embed_dim))
        return self.decode((self._coarse_rows(codes), nothing))

    def _coarse_rows(self, codes):
        return self.coarse_quantize.rows(codes.reshape(-1, *self.coarse_grid))

    def __call__(self, images, key=None, temperature=1.0, plain=False):
        """One training pass -> `vqgan.Output`, whose z and codes are pairs.

        `key` draws the rows without a fine level; without a key, all have it.
        """
        h = self.encoder(images)
        z1 = self._coarse(h)
        rows1, loss1, codes1 = self.coarse_quantize(z1)
        rows1 = jnp.where(plain, z1, rows1)
        z2 = self._fine(h, rows1)
        rows2, loss2, codes2 = self.quantize(z2)
        rows2 = jnp.where(plain, z2, rows2)
        if key is not None:
            shape = (len(images), 1, 1, 1)
            zeroed = jax.random.bernoulli(jax.random.fold_in(key, ZEROED), self.preview, shape)
            rows2 = jnp.where(zeroed, 0, rows2)
        loss = jnp.where(plain, 0, loss1 + loss2)
        return vqgan.Output(self.decode((rows1, rows2)), (z1, z2), (codes1, codes2), loss)
