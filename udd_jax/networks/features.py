"""Networks that measure: Inception V3 for FID, CLIP's two encoders, LPIPS.

They are frozen. Their weights were published by others; `pretrained` loads them. The path of each
parameter, joined by dots, is its published PyTorch name: the kernel of the module
`Mixed_5b.branch1x1.conv` is `Mixed_5b.branch1x1.conv.weight`. So no table of names is needed.
tests/networks/test_features.py compares each network with a PyTorch build of it. All images are
[B, H, W, 3].
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp


class InceptionV3(nn.Module):
    """The Inception V3 of FID: the TensorFlow graph of 2015 with torchvision's names.

    It differs from torchvision's network in three places: average pooling does not count padding,
    the last block uses max pooling, and there are 1,008 classes. The logits have no bias, as in the
    original Inception score.

    Input: float32[B, H, W, 3] in [-1, 1], 299 x 299 (75 at least).
    Output: features float32[B, 2048] (pool3), logits float32[B, 1008].
    """

    @nn.compact
    def __call__(self, x):
        def conv(x, name, width, kernel=1, stride=1, padding="SAME"):
            kernel = (kernel, kernel) if isinstance(kernel, int) else kernel
            x = nn.Conv(width, kernel, stride, padding, use_bias=False, name=f"{name}.conv")(x)
            x = nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=f"{name}.bn")(x)
            return nn.relu(x)

        def chain(x, name, *steps):
            """Convolutions named name_1, name_2, ...; each step is (width, kernel)."""
            for i, (width, kernel) in enumerate(steps, 1):
                x = conv(x, f"{name}_{i}", width, kernel)
            return x

        def halve(x, name, width):
            return conv(x, name, width, 3, 2, "VALID")

        def average(x):
            return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)

        def maximum(x):
            return nn.max_pool(x, (3, 3), (1, 1), "SAME")

        def join(*branches):
            return jnp.concatenate(branches, -1)

        wide, tall = (1, 7), (7, 1)

        def block_a(x, name, pooled):
            return join(
                conv(x, f"{name}.branch1x1", 64),
                chain(x, f"{name}.branch5x5", (48, 1), (64, 5)),
                chain(x, f"{name}.branch3x3dbl", (64, 1), (96, 3), (96, 3)),
                conv(average(x), f"{name}.branch_pool", pooled),
            )

        def block_b(x, name):
            double = chain(x, f"{name}.branch3x3dbl", (64, 1), (96, 3))
            return join(
                halve(x, f"{name}.branch3x3", 384),
                halve(double, f"{name}.branch3x3dbl_3", 96),
                nn.max_pool(x, (3, 3), (2, 2)),
            )

        def block_c(x, name, k):
            steps = (k, 1), (k, tall), (k, wide), (k, tall), (192, wide)
            return join(
                conv(x, f"{name}.branch1x1", 192),
                chain(x, f"{name}.branch7x7", (k, 1), (k, wide), (192, tall)),
                chain(x, f"{name}.branch7x7dbl", *steps),
                conv(average(x), f"{name}.branch_pool", 192),
            )

        def block_d(x, name):
            seven = chain(x, f"{name}.branch7x7x3", (192, 1), (192, wide), (192, tall))
            return join(
                halve(conv(x, f"{name}.branch3x3_1", 192), f"{name}.branch3x3_2", 320),
                halve(seven, f"{name}.branch7x7x3_4", 192),
                nn.max_pool(x, (3, 3), (2, 2)),
            )

        def block_e(x, name, pool):
            three = conv(x, f"{name}.branch3x3_1", 384)
            double = chain(x, f"{name}.branch3x3dbl", (448, 1), (384, 3))
            return join(
                conv(x, f"{name}.branch1x1", 320),
                conv(three, f"{name}.branch3x3_2a", 384, (1, 3)),
                conv(three, f"{name}.branch3x3_2b", 384, (3, 1)),
                conv(double, f"{name}.branch3x3dbl_3a", 384, (1, 3)),
                conv(double, f"{name}.branch3x3dbl_3b", 384, (3, 1)),
                conv(pool(x), f"{name}.branch_pool", 192),
            )

        x = conv(x, "Conv2d_1a_3x3", 32, 3, 2, "VALID")
        x = conv(x, "Conv2d_2a_3x3", 32, 3, 1, "VALID")
        x = conv(x, "Conv2d_2b_3x3", 64, 3)
        x = nn.max_pool(x, (3, 3), (2, 2))
        x = conv(x, "Conv2d_3b_1x1", 80)
        x = conv(x, "Conv2d_4a_3x3", 192, 3, 1, "VALID")
        x = nn.max_pool(x, (3, 3), (2, 2))  # [B, 35, 35, 192]
        x = block_a(x, "Mixed_5b", 32)
        x = block_a(x, "Mixed_5c", 64)
        x = block_a(x, "Mixed_5d", 64)
        x = block_b(x, "Mixed_6a")  # [B, 17, 17, 768]
        x = block_c(x, "Mixed_6b", 128)
        x = block_c(x, "Mixed_6c", 160)
        x = block_c(x, "Mixed_6d", 160)
        x = block_c(x, "Mixed_6e", 192)
        x = block_d(x, "Mixed_7a")  # [B, 8, 8, 1280]
        x = block_e(x, "Mixed_7b", average)
        x = block_e(x, "Mixed_7c", maximum)
        features = x.mean((1, 2))  # [B, 2048]
        return features, nn.Dense(1008, use_bias=False, name="fc")(features)


class ClipBlock(nn.Module):
    """Pre-norm transformer block: attention of `heads` heads, MLP with x sigmoid(1.702 x).

    This is OpenAI's activation. Retrained CLIPs with the same names may use the exact GELU. The
    weights do not show which one, so do not load such a CLIP here.

    Input and output: float32[B, n, D].
    """

    heads: int
    causal: bool

    @nn.compact
    def __call__(self, x):
        batch, length, width = x.shape
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
        initial = nn.initializers.normal(0.02)
        h = norm(name="ln_1")(x)
        weight = self.param("attn.in_proj_weight", initial, (3 * width, width))
        bias = self.param("attn.in_proj_bias", nn.initializers.zeros, (3 * width,))
        qkv = (h @ weight.T + bias[None, None]).reshape(batch, length, 3, self.heads, -1)
        h = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, 2, 0), is_causal=self.causal)
        x = x + nn.Dense(width, name="attn.out_proj")(h.reshape(batch, length, width))
        h = nn.Dense(4 * width, name="mlp.c_fc")(norm(name="ln_2")(x))
        return x + nn.Dense(width, name="mlp.c_proj")(h * nn.sigmoid(1.702 * h))


class ClipImage(nn.Module):
    """CLIP's vision transformer: float32[B, S, S, 3] normalised pixels -> float32[B, embedding]."""

    patch: int
    width: int
    layers: int
    heads: int
    embedding: int

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, use_fast_variance=False)
        initial = nn.initializers.normal(self.width**-0.5)
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, "VALID", use_bias=False, name="visual.conv1")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        first = self.param("visual.class_embedding", initial, (self.width,))
        x = jnp.concatenate([jnp.tile(first, (x.shape[0], 1, 1)), x], 1)
        place = self.param("visual.positional_embedding", initial, x.shape[1:])
        x = norm(name="visual.ln_pre")(x + place[None])
        for i in range(self.layers):
            x = ClipBlock(self.heads, False, name=f"visual.transformer.resblocks.{i}")(x)
        x = norm(name="visual.ln_post")(x[:, 0])
        return x @ self.param("visual.proj", initial, (self.width, self.embedding))


class ClipText(nn.Module):
    """CLIP's text encoder: int32[B, context] from `clip_ids` -> float32[B, embedding].

    The embedding is taken at the end token, which has the highest id.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    embedding: int

    @nn.compact
    def __call__(self, ids):
        initial = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocabulary, self.width, name="token_embedding")(ids)
        x = x + self.param("positional_embedding", initial, x.shape[1:])[None]
        for i in range(self.layers):
            x = ClipBlock(self.heads, True, name=f"transformer.resblocks.{i}")(x)
        x = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name="ln_final")(x)
        x = x[jnp.arange(len(ids)), ids.argmax(1)]
        return x @ self.param("text_projection", initial, (self.width, self.embedding))


class Lpips(nn.Module):
    """LPIPS 0.1 with VGG16 (Zhang et al. 2018, arXiv 1801.03924): the distance of two images.

        d = sum over five layers of mean over positions of w . (f_a/|f_a| - f_b/|f_b|)^2

    Input: two float32[B, H, W, 3] in [-1, 1], at least 16 x 16. Output: float32[B], 0 for equal
    images. The gradient is finite everywhere, also where all channels of a layer are 0.
    """

    @nn.compact
    def __call__(self, a, b):
        shift = jnp.array([-0.030, -0.088, -0.188]).reshape(1, 1, 1, 3)
        scale = jnp.array([0.458, 0.448, 0.450]).reshape(1, 1, 1, 3)
        x = (jnp.concatenate([a, b]) - shift) / scale
        layer, distance = 0, 0.0  # torchvision numbers convolutions, ReLUs and pools together
        for i, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
            if i:
                x, layer = nn.max_pool(x, (2, 2), (2, 2)), layer + 1
            for _ in range(depth):
                x = nn.relu(nn.Conv(width, (3, 3), padding=1, name=f"features.{layer}")(x))
                layer += 2
            square = jnp.square(x).sum(-1, keepdims=True)
            silent = square == 0
            unit = jnp.where(silent, 0, x / (jnp.sqrt(jnp.where(silent, 1, square)) + 1e-10))
            of_a, of_b = jnp.split(unit, 2)
            weigh = nn.Conv(1, (1, 1), use_bias=False, name=f"lin{i}.model.1")
            distance += weigh(jnp.square(of_a - of_b)).mean((1, 2, 3))
        return distance
