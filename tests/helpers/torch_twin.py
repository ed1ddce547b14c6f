"""The blocks of the taming VQGAN in PyTorch, as small as they can be said, to compare with.

Built from the description of the architecture (arXiv 2012.09841): GroupNorm(32, eps 1e-6), swish,
residual blocks, attention over all positions at the chosen resolutions, and names as published, so
that `state_dict` has the keys of a published checkpoint. Needs PyTorch: a test skips without it.
"""

import torch
from torch import nn
from torch.nn import functional as F


def _norm(channels):
    return nn.GroupNorm(32, channels, eps=1e-6)


class Resnet(nn.Module):
    def __init__(self, inner, outer):
        super().__init__()
        self.norm1, self.conv1 = _norm(inner), nn.Conv2d(inner, outer, 3, padding=1)
        self.norm2, self.conv2 = _norm(outer), nn.Conv2d(outer, outer, 3, padding=1)
        if inner != outer:
            self.nin_shortcut = nn.Conv2d(inner, outer, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.norm = _norm(channels)
        for name in ("q", "k", "v", "proj_out"):
            setattr(self, name, nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))  # [B, C, hw]
        weights = torch.softmax(q.transpose(1, 2) @ k * x.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Resample(nn.Module):
    def __init__(self, channels, down):
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(channels, channels, 3, *((2, 0) if down else (1, 1)))

    def forward(self, x):
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2))


class Level(nn.Module):
    """Blocks at one resolution, then or before which it changes."""

    def __init__(self, inner, outer, blocks, attention, resample):
        super().__init__()
        self.block = nn.ModuleList(Resnet(inner if i == 0 else outer, outer) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(outer) for _ in range(blocks if attention else 0))
        if resample:
            setattr(self, resample, Resample(outer, resample == "downsample"))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        for name in ("downsample", "upsample"):
            if hasattr(self, name):
                x = getattr(self, name)(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.block_1, self.block_2 = Resnet(channels, channels), Resnet(channels, channels)
        self.attn_1 = Attention(channels)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, attn_resolutions, resolution, z_channels):
        super().__init__()
        widths = [ch, *(ch * m for m in ch_mult)]
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        levels, last = [], len(ch_mult) - 1
        for i in range(last + 1):
            attention = resolution // 2**i in attn_resolutions
            resample = "downsample" if i < last else None
            levels.append(Level(widths[i], widths[i + 1], num_res_blocks, attention, resample))
        self.down = nn.ModuleList(levels)
        self.mid = Middle(widths[-1])
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z_channels, 3, padding=1)

    def forward(self, x):
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self, ch, ch_mult, num_res_blocks, attn_resolutions, resolution, z_channels):
        super().__init__()
        widths = [*(ch * m for m in ch_mult), ch * ch_mult[-1]]
        self.conv_in = nn.Conv2d(z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1])
        levels = []
        for i in range(len(ch_mult)):
            attention = resolution // 2**i in attn_resolutions
            resample = "upsample" if i > 0 else None
            levels.append(Level(widths[i + 1], widths[i], num_res_blocks + 1, attention, resample))
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(ch * ch_mult[0])
        self.conv_out = nn.Conv2d(ch * ch_mult[0], 3, 3, padding=1)

    def forward(self, z):
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Codebook(nn.Module):
    """The rows of a codebook, and for Gumbel the projection to logits, under their names."""

    def __init__(self, kind, n_embed, embed_dim, z_channels):
        super().__init__()
        if kind == "gumbel":
            self.proj = nn.Conv2d(z_channels, n_embed, 1)
            self.embed = nn.Embedding(n_embed, embed_dim)
        else:
            self.embedding = nn.Embedding(n_embed, embed_dim)


class VQ(nn.Module):
    """`ddconfig` is what a published configuration has under that name."""

    def __init__(self, kind, n_embed, embed_dim, ddconfig):
        super().__init__()
        self.encoder, self.decoder = Encoder(**ddconfig), Decoder(**ddconfig)
        z_channels = ddconfig["z_channels"]
        self.quantize = Codebook(kind, n_embed, embed_dim, z_channels)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)

    def encode(self, images):
        """float[B, 3, S, S] -> float[B, E, h, w]."""
        return self.quant_conv(self.encoder(images))

    def decode(self, rows):
        return self.decoder(self.post_quant_conv(rows))
