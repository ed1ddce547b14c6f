"""The image tokenizer's network: an image becomes a small grid of codes, and comes back.

    z = quant_conv(encoder(image))                       [B, h, w, embed_dim]
    code = argmin_k |z - e_k|^2                          one of K codebook rows e_k, a grid cell
    image ~ decoder(post_quant_conv(e_code))

The network is exactly that of the taming VQGAN (arXiv 2012.09841). Its field names are the keys of
the published `ddconfig`. Its parameter names are the published ones, with dots and lists written as
`down_0_block_1`, so that a converter only renames. Images are float32 in [-1, 1], NHWC;
`image_tokenizer.py` has the functions from and to uint8. The side of a cell is f = patch *
2^(levels - 1) pixels.

Two options are ours and off by default. `patch` moves p x p pixels into channels before the first
convolution and back after the last one, which makes small images cheap on a CPU. `local_encoder`
(and `local_decoder`) makes a code depend on its own f x f pixels only: 1 x 1 convolutions, unpadded
downsampling, statistics over the channels of one position, no attention. With image-wide
statistics, the code of a patch changes with the rest of the image, and a model of the codes has to
learn this noise.

How a codebook is learned (moving averages, restarts, k-means) is in `codebook.py`.
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from udd_jax.errors import UserError
from udd_jax.tokenizers import codebook

QUANTISERS = ("ema", "straight_through", "gumbel")


def space_to_depth(x, patch):
    """[B, H, W, C] -> [B, H / patch, W / patch, patch * patch * C], a patch row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // patch, w // patch, patch * patch * c)


def depth_to_space(x, patch):
    """The inverse of `space_to_depth`."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, patch, patch, c // patch**2).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * patch, w * patch, c // patch**2)


# U(-a, a) with variance 1 / fan in. The usual truncated normal takes far longer to compile.
SPREAD = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
_Conv = functools.partial(nn.Conv, kernel_init=SPREAD)


def _conv(features, kernel, name):
    return _Conv(features, (kernel, kernel), padding="SAME", name=name)


def _norm(x, local, name):
    """GroupNorm with 32 groups (the largest divisor below that for narrow layers), eps 1e-6."""
    groups = next(g for g in range(min(32, x.shape[-1]), 0, -1) if x.shape[-1] % g == 0)
    if local:  # one position has too few channels for 32 groups to mean anything
        groups = 1
    axes = (-1,) if local else None
    return nn.GroupNorm(
        groups, epsilon=1e-6, reduction_axes=axes, use_fast_variance=False, name=name
    )(x)


class ResnetBlock(nn.Module):
    """norm, swish, conv, norm, swish, conv; a 1 x 1 conv as shortcut where the width changes."""

    features: int
    local: bool = False

    @nn.compact
    def __call__(self, x):
        kernel = 1 if self.local else 3
        h = nn.swish(_norm(x, self.local, "norm1"))
        h = _conv(self.features, kernel, "conv1")(h)
        h = nn.swish(_norm(h, self.local, "norm2"))
        h = _conv(self.features, kernel, "conv2")(h)
        if x.shape[-1] != self.features:
            x = _conv(self.features, 1, "nin_shortcut")(x)
        return x + h


class AttnBlock(nn.Module):
    """One head of self-attention over all positions, scale C^-1/2, residual."""

    @nn.compact
    def __call__(self, x):
        b, h, w, c = x.shape
        normed = _norm(x, False, "norm")
        q, k, v = (_conv(c, 1, name)(normed).reshape(b, h * w, c) for name in "qkv")
        weights = nn.softmax(q @ k.swapaxes(1, 2) * c**-0.5)  # [B, hw, hw]
        return x + _conv(c, 1, "proj_out")((weights @ v).reshape(b, h, w, c))


class Downsample(nn.Module):
    """Pads right and below, then a 3 x 3 conv of stride 2; if local, 2 x 2 without padding."""

    local: bool = False

    @nn.compact
    def __call__(self, x):
        kernel, pad = (2, (0, 0)) if self.local else (3, (0, 1))
        conv = _Conv(x.shape[-1], (kernel, kernel), 2, padding=(pad, pad), name="conv")
        return conv(x)


class Upsample(nn.Module):
    """Nearest neighbour, twice the size, then a conv."""

    local: bool = False

    @nn.compact
    def __call__(self, x):
        x = x.repeat(2, axis=1).repeat(2, axis=2)
        return _conv(x.shape[-1], 1 if self.local else 3, "conv")(x)


class Encoder(nn.Module):
    """float[B, S, S, 3] -> float[B, S / f, S / f, z_channels]."""

    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    z_channels: int
    patch: int
    local: bool

    @nn.compact
    def __call__(self, x):
        kernel = 1 if self.local else 3
        size = self.resolution // self.patch
        h = _conv(self.ch, kernel, "conv_in")(space_to_depth(x, self.patch))
        for i, mult in enumerate(self.ch_mult):
            for j in range(self.num_res_blocks):
                h = ResnetBlock(self.ch * mult, self.local, name=f"down_{i}_block_{j}")(h)
                if size in self.attn_resolutions and not self.local:
                    h = AttnBlock(name=f"down_{i}_attn_{j}")(h)
            if i < len(self.ch_mult) - 1:
                h = Downsample(self.local, name=f"down_{i}_downsample")(h)
                size //= 2
        h = _middle(h, self.local)
        return _conv(self.z_channels, kernel, "conv_out")(
            nn.swish(_norm(h, self.local, "norm_out"))
        )


class Decoder(nn.Module):
    """float[B, S / f, S / f, z_channels] -> float[B, S, S, 3]; `up_0` is the highest resolution."""

    resolution: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    attn_resolutions: tuple[int, ...]
    patch: int
    local: bool
    channels: int

    @nn.compact
    def __call__(self, z):
        kernel = 1 if self.local else 3
        size = self.resolution // self.patch // 2 ** (len(self.ch_mult) - 1)
        h = _conv(self.ch * self.ch_mult[-1], kernel, "conv_in")(z)
        h = _middle(h, self.local)
        for i, mult in reversed(list(enumerate(self.ch_mult))):
            for j in range(self.num_res_blocks + 1):
                h = ResnetBlock(self.ch * mult, self.local, name=f"up_{i}_block_{j}")(h)
                if size in self.attn_resolutions and not self.local:
                    h = AttnBlock(name=f"up_{i}_attn_{j}")(h)
            if i > 0:
                h = Upsample(self.local, name=f"up_{i}_upsample")(h)
                size *= 2
        h = nn.swish(_norm(h, self.local, "norm_out"))
        return depth_to_space(
            _conv(self.channels * self.patch**2, kernel, "conv_out")(h), self.patch
        )


def _middle(h, local):
    h = ResnetBlock(h.shape[-1], local, name="mid_block_1")(h)
    if not local:
        h = AttnBlock(name="mid_attn_1")(h)
    return ResnetBlock(h.shape[-1], local, name="mid_block_2")(h)


class Quantizer(nn.Module):
    """From vectors to codes and back; `kind` says how gradients pass.

    "ema", "straight_through": the nearest codebook row; the vector gets the gradient of the row
        unchanged. The loss pulls vectors to rows (times `beta`). With "straight_through" it also
        pulls rows to vectors. With "ema" rows get no gradient and follow by moving averages
        instead (`codebook.ema_update`). The published code has `beta` on the wrong one of the two
        terms ("legacy"); here it is on the commitment, as in the paper.
    "gumbel": a 1 x 1 projection to K logits, and a soft sample of the rows at a temperature; the
        loss is the divergence of the logits from the uniform distribution, in nats.
    """

    kind: str
    n_embed: int
    embed_dim: int
    beta: float

    def setup(self):
        shape = (self.n_embed, self.embed_dim)
        if self.kind == "gumbel":
            self.proj = _Conv(self.n_embed, (1, 1))
            self.embed = self.param("embed", nn.initializers.normal(1.0), shape)
        else:
            self.embedding = self.param(
                "embedding", nn.initializers.normal(1 / self.n_embed), shape
            )

    def codes(self, z, noise=0.0):
        """float[..., E] -> int32[...]: the nearest row, or the largest of logits + noise.

        With Gumbel noise, float[..., K], this code is a draw from the softmax of the logits.
        """
        if self.kind == "gumbel":
            return jnp.argmax(self.proj(z) + noise, axis=-1).astype(jnp.int32)
        return codebook.nearest(z, self.embedding)

    def rows(self, codes):
        """int32[...] -> float[..., E]."""
        return (self.embed if self.kind == "gumbel" else self.embedding)[codes]

    def __call__(self, z, key=None, temperature=1.0):
        """float[..., E] -> (quantised float[..., E], loss float[], codes int32[...])."""
        if self.kind == "gumbel":
            logits = self.proj(z)
            noise = jax.random.gumbel(key, logits.shape, logits.dtype)
            soft = nn.softmax((logits + noise) / temperature)
            log_p = nn.log_softmax(logits)
            loss = jnp.mean(jnp.sum(jnp.exp(log_p) * log_p, -1)) + np.log(self.n_embed)
            return soft @ self.embed, loss, jnp.argmax(logits, axis=-1).astype(jnp.int32)
        codes = codebook.nearest(z, self.embedding)
        rows = self.embedding[codes]
        loss = self.beta * jnp.mean((z - jax.lax.stop_gradient(rows)) ** 2)
        if self.kind == "straight_through":
            loss += jnp.mean((rows - jax.lax.stop_gradient(z)) ** 2)
        return z + jax.lax.stop_gradient(rows - z), loss, codes


def rows(params, name="quantize"):
    """The codebook `name`, float[K, E], among the parameters of a VQGAN."""
    quantizer = params[name]
    return quantizer["embed" if "embed" in quantizer else "embedding"]


def with_rows(params, codebook_rows, variance, name="quantize"):
    """The parameters with another codebook `name`, float[K, E].

    The logits of a Gumbel quantiser become those of Gaussians around the rows, with this variance
    in each dimension, so that the largest logit belongs to the nearest row.
    """
    if "embed" not in params[name]:
        return params | {name: {"embedding": codebook_rows}}
    kernel = (codebook_rows.T / variance)[None, None]
    proj = {"kernel": kernel, "bias": -(codebook_rows**2).sum(-1) / (2 * variance)}
    return params | {name: {"embed": codebook_rows, "proj": proj}}


@flax.struct.dataclass
class Output:
    """The result of one pass: images float[B,S,S,3], z float[B,h,w,E], codes int32[B,h,w], loss.

    With several codebooks, z and codes are tuples with one for each of them.
    """

    images: jax.Array
    z: jax.Array
    codes: jax.Array
    loss: jax.Array


class VQGAN(nn.Module):
    """Encoder, codebook and decoder. The defaults are the published f = 8 network for 256 x 256.

    `resolution` is the side of the images, or (height, width). `n_embed` is K, `embed_dim` the
    width of a codebook row, `attn_resolutions` the heights of the feature maps with attention.
    Raises ValueError if the sizes do not fit together.
    """

    resolution: int | tuple[int, int] = 256
    n_embed: int = 8192
    embed_dim: int = 256
    z_channels: int = 256
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: tuple[int, ...] = (32,)
    quantiser: str = "gumbel"
    beta: float = 0.25
    patch: int = 1
    local_encoder: bool = False
    local_decoder: bool = False
    channels: int = 3

    codebooks = ("quantize",)  # names of the parameters that have codebooks, coarse ones first

    @property
    def levels(self):
        """((grid, codes),) of each codebook."""
        return ((self.grid, self.n_embed),)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        whole = isinstance(self.resolution, int)
        return (self.resolution,) * 2 if whole else tuple(self.resolution)

    @property
    def cell(self):
        """The side of the cell of a code in pixels: f."""
        return self.patch * 2 ** (len(self.ch_mult) - 1)

    @property
    def grid(self):
        """(h, w), codes down and across."""
        return self.size[0] // self.cell, self.size[1] // self.cell

    def setup(self):
        if self.quantiser not in QUANTISERS:
            raise UserError(
                f"vq quantiser is {self.quantiser!r}, expected one of {', '.join(QUANTISERS)}"
            )
        if self.size[0] % self.cell or self.size[1] % self.cell:
            raise UserError(
                f"vq resolution {self.resolution} is not a multiple of the cell {self.cell} "
                f"(patch {self.patch} times 2 to the levels of ch_mult less one)"
            )
        shared = (self.size[0], self.ch, self.ch_mult, self.num_res_blocks)
        shared += (self.attn_resolutions,)
        self.encoder = Encoder(*shared, self.z_channels, self.patch, self.local_encoder)
        self.decoder = Decoder(*shared, self.patch, self.local_decoder, self.channels)
        self.quantize = Quantizer(self.quantiser, self.n_embed, self.embed_dim, self.beta)
        self.quant_conv = _Conv(self.embed_dim, (1, 1))
        self.post_quant_conv = _Conv(self.z_channels, (1, 1))

    def encode(self, images):
        """float[B, S, S, 3] in [-1, 1] -> pre-quantisation vectors float[B, h, w, embed_dim]."""
        return self.quant_conv(self.encoder(images))

    def encode_codes(self, images, noise=0.0):
        """float[B, S, S, 3] in [-1, 1] -> int32[B, h, w].

        The published encoder adds Gumbel noise, float[B, h, w, K], so that its codes are draws.
        """
        return self.quantize.codes(self.encode(images), noise)

    def decode(self, rows):
        """float[B, h, w, embed_dim] -> float[B, S, S, 3], about [-1, 1]."""
        return self.decoder(self.post_quant_conv(rows))

    def decode_codes(self, codes):
        """int32[B, h, w] -> float[B, S, S, 3]."""
        return self.decode(self.quantize.rows(codes))

    def __call__(self, images, key=None, temperature=1.0, plain=False):
        """One training pass -> Output. `plain` skips the codebook: an autoencoder for warming up.

        `key` and `temperature` are for the Gumbel quantiser; the others ignore them.
        """
        z = self.encode(images)
        rows, loss, codes = self.quantize(z, key, temperature)
        rows, loss = jnp.where(plain, z, rows), jnp.where(plain, 0, loss)
        return Output(self.decode(rows), z, codes, loss)


class Discriminator(nn.Module):
    """PatchGAN: float[B, S, S, 3] -> logits float[B, s, s, 1], one for each overlapping patch.

    4 x 4 convs of stride 2, leaky relu 0.2. GroupNorm replaces the published BatchNorm, so that the
    logits of an image do not depend on the rest of its batch, and no statistics are stored.
    """

    ch: int = 64
    layers: int = 3

    @nn.compact
    def __call__(self, x):
        for i in range(self.layers + 1):
            stride = 2 if i < self.layers else 1
            features = self.ch * min(2**i, 8)
            x = _Conv(features, (4, 4), stride, padding=((1, 1), (1, 1)), name=f"conv_{i}")(x)
            if i > 0:
                x = _norm(x, False, f"norm_{i}")
            x = nn.leaky_relu(x, 0.2)
        return _Conv(1, (4, 4), 1, padding=((1, 1), (1, 1)), name="conv_out")(x)
