"""The feature networks in PyTorch, with random weights, and their outputs for random images.

Weights are drawn by name (`weight`), so that they need no file and no PyTorch: the recording in
`fixtures/features` holds the published names with their shapes, and the outputs.

    python -m tests.helpers.feature_twins        writes the recording: needs PyTorch and clean-fid

A test compares our networks with the recording, wherever it runs, and another, where PyTorch is
there, compares the recording with these builds. Images are [B, H, W, 3].
"""

import json
import math
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parents[1] / "fixtures" / "features"
CLIP = {"size": 24, "patch": 8, "width": 128, "layers": 2, "text_width": 64, "text_layers": 3}
CLIP |= {"vocabulary": 50, "context": 9, "embedding": 20}
KEPT = slice(5, None, 100)  # of the rows of a resized picture
VGG = [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]  # width and depth of each stage


def uniform(name: str, shape) -> np.ndarray:
    """float32 in [-1, 1): of the bits of a generator, which stay the same in every NumPy."""
    bits = np.random.PCG64(zlib.crc32(name.encode())).random_raw(math.prod(shape))
    return ((bits >> 40).astype(np.float32) / 2**23 - 1).reshape(shape)


def weight(name: str, shape) -> np.ndarray:
    """An array of a network that neither dies out nor explodes, float32 in PyTorch's layout."""
    drawn = uniform(name, shape)
    if name.endswith("running_var"):
        return 1 + drawn / 2
    if ".model.1." in name:  # LPIPS weighs by what is not negative
        return (1 + drawn) / 2
    if name.endswith(".weight") and len(shape) == 1:  # of a normalisation
        return 1 + drawn / 4
    if len(shape) == 4 or name == "fc.weight":  # in front of a relu
        return drawn * np.float32(math.sqrt(6 / math.prod(shape[1:])))
    return drawn / 4


def recorded(network: str) -> tuple[dict, dict]:
    """(the weights by published name, the recorded arrays) of "inception", "clip" or "lpips"."""
    with np.load(FOLDER / f"{network}.npz") as file:
        arrays = dict(file)
    shapes = json.loads(str(arrays.pop("shapes")))
    return {name: weight(name, shape) for name, shape in shapes.items()}, arrays


def pictures(network: str) -> np.ndarray:
    """Images of odd sizes: float32 in [-1, 1) for Inception, two sets for LPIPS; uint8 for CLIP."""
    shape = {"inception": (2, 107, 139, 3), "clip": (3, 24, 24, 3), "lpips": (2, 2, 16, 24, 3)}
    drawn = uniform(f"pictures of {network}", shape[network])
    return ((drawn + 1) * 128).astype(np.uint8) if network == "clip" else drawn


def texts() -> np.ndarray:
    """int32[3, context]: a short one, one that fills the context, an empty one."""
    rows = np.zeros((3, CLIP["context"]), np.int32)
    rows[0, :5] = 48, 5, 7, 1, 49
    rows[1] = 48, *range(7), 49
    rows[2, :2] = 48, 49
    return rows


def resized(name: str, size: str) -> tuple[np.ndarray, slice, np.ndarray]:
    """An image, the rows of the result that are kept, and these rows by clean-fid, 0..255."""
    with np.load(FOLDER / "resized.npz") as file:
        return odd_picture(size), KEPT, file[f"{name}_{size}"]


def odd_picture(size: str) -> np.ndarray:
    """uint8[H, W, 3] of noise and edges, smaller or larger than 299."""
    shape = {"small": (40, 27, 3), "large": (413, 640, 3)}[size]
    image = ((uniform(f"{size} picture", shape) + 1) * 128).astype(np.uint8)
    image[: shape[0] // 2, : shape[1] // 3] = 0
    image[: shape[0] // 2, shape[1] // 3 : shape[1] // 2] = 255
    return image


# ---- The builds ---------------------------------------------------------------------------------


class Weights:
    """Weights as tensors; what was asked for is noted."""

    def __init__(self):
        self.shapes = {}

    def __call__(self, name, *shape):
        import torch

        self.shapes[name] = list(shape)
        return torch.from_numpy(weight(name, shape))


def tensor(images):
    """[B, H, W, 3] -> [B, 3, H, W]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)


def inception(w: Weights, images):
    """float32[B, H, W, 3] -> (features [B, 2048], logits [B, 1008]), in torchvision's names."""
    import torch
    import torch.nn.functional as f

    def conv(x, name, out, kernel, stride=1, padding=0):
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        kernels = w(f"{name}.conv.weight", out, x.shape[1], *kernel)
        x = f.conv2d(x, kernels, stride=stride, padding=padding)
        names = "running_mean", "running_var", "weight", "bias"
        return f.relu(f.batch_norm(x, *(w(f"{name}.bn.{n}", out) for n in names), eps=0.001))

    def average(x):
        return f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
    flat, tall = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}

    def mixed_5(x, m, pooled):
        a = conv(x, f"{m}.branch1x1", 64, 1)
        b = conv(x, f"{m}.branch5x5_1", 48, 1)
        b = conv(b, f"{m}.branch5x5_2", 64, 5, padding=2)
        c = conv(x, f"{m}.branch3x3dbl_1", 64, 1)
        c = conv(c, f"{m}.branch3x3dbl_2", 96, 3, padding=1)
        c = conv(c, f"{m}.branch3x3dbl_3", 96, 3, padding=1)
        d = conv(average(x), f"{m}.branch_pool", pooled, 1)
        return torch.cat([a, b, c, d], 1)

    def mixed_6a(x, m):
        a = conv(x, f"{m}.branch3x3", 384, 3, stride=2)
        b = conv(x, f"{m}.branch3x3dbl_1", 64, 1)
        b = conv(b, f"{m}.branch3x3dbl_2", 96, 3, padding=1)
        b = conv(b, f"{m}.branch3x3dbl_3", 96, 3, stride=2)
        return torch.cat([a, b, f.max_pool2d(x, 3, 2)], 1)

    def mixed_6(x, m, k):
        a = conv(x, f"{m}.branch1x1", 192, 1)
        b = conv(x, f"{m}.branch7x7_1", k, 1)
        b = conv(b, f"{m}.branch7x7_2", k, **row)
        b = conv(b, f"{m}.branch7x7_3", 192, **column)
        c = conv(x, f"{m}.branch7x7dbl_1", k, 1)
        c = conv(c, f"{m}.branch7x7dbl_2", k, **column)
        c = conv(c, f"{m}.branch7x7dbl_3", k, **row)
        c = conv(c, f"{m}.branch7x7dbl_4", k, **column)
        c = conv(c, f"{m}.branch7x7dbl_5", 192, **row)
        d = conv(average(x), f"{m}.branch_pool", 192, 1)
        return torch.cat([a, b, c, d], 1)

    def mixed_7a(x, m):
        a = conv(x, f"{m}.branch3x3_1", 192, 1)
        a = conv(a, f"{m}.branch3x3_2", 320, 3, stride=2)
        b = conv(x, f"{m}.branch7x7x3_1", 192, 1)
        b = conv(b, f"{m}.branch7x7x3_2", 192, **row)
        b = conv(b, f"{m}.branch7x7x3_3", 192, **column)
        b = conv(b, f"{m}.branch7x7x3_4", 192, 3, stride=2)
        return torch.cat([a, b, f.max_pool2d(x, 3, 2)], 1)

    def mixed_7(x, m, pooled):
        a = conv(x, f"{m}.branch1x1", 320, 1)
        b = conv(x, f"{m}.branch3x3_1", 384, 1)
        b1 = conv(b, f"{m}.branch3x3_2a", 384, **flat)
        b2 = conv(b, f"{m}.branch3x3_2b", 384, **tall)
        c = conv(x, f"{m}.branch3x3dbl_1", 448, 1)
        c = conv(c, f"{m}.branch3x3dbl_2", 384, 3, padding=1)
        c1 = conv(c, f"{m}.branch3x3dbl_3a", 384, **flat)
        c2 = conv(c, f"{m}.branch3x3dbl_3b", 384, **tall)
        d = conv(pooled, f"{m}.branch_pool", 192, 1)
        return torch.cat([a, b1, b2, c1, c2, d], 1)

    x = conv(tensor(images), "Conv2d_1a_3x3", 32, 3, stride=2)
    x = conv(x, "Conv2d_2a_3x3", 32, 3)
    x = conv(x, "Conv2d_2b_3x3", 64, 3, padding=1)
    x = conv(f.max_pool2d(x, 3, 2), "Conv2d_3b_1x1", 80, 1)
    x = f.max_pool2d(conv(x, "Conv2d_4a_3x3", 192, 3), 3, 2)
    for m, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = mixed_5(x, m, pooled)
    x = mixed_6a(x, "Mixed_6a")
    for m, k in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = mixed_6(x, m, k)
    x = mixed_7a(x, "Mixed_7a")
    x = mixed_7(x, "Mixed_7b", average(x))
    x = mixed_7(x, "Mixed_7c", f.max_pool2d(x, 3, 1, 1))
    pooled = x.mean((2, 3))
    return pooled, pooled @ w("fc.weight", 1008, 2048).T


def clip(w: Weights, pixels, ids):
    """A small CLIP: (float32[B, S, S, 3] -> [B, D], int[B, context] -> [B, D]), OpenAI's names."""
    import torch
    import torch.nn.functional as f

    def norm(x, name):
        return f.layer_norm(x, x.shape[-1:], w(f"{name}.weight", x.shape[-1]), bias(x, name))

    def bias(x, name, width=0):
        return w(f"{name}.bias", width or x.shape[-1])

    def block(x, name, mask):
        width = x.shape[-1]
        h = norm(x, f"{name}.ln_1").transpose(0, 1)  # [L, B, D]
        inner = w(f"{name}.attn.in_proj_weight", 3 * width, width)
        outer = w(f"{name}.attn.out_proj.weight", width, width)
        biases = w(f"{name}.attn.in_proj_bias", 3 * width), bias(x, f"{name}.attn.out_proj")
        h = f.multi_head_attention_forward(
            h, h, h, width, width // 64, inner, biases[0], None, None, False, 0.0, outer, biases[1],
            need_weights=False, attn_mask=mask,
        )[0].transpose(0, 1)  # fmt: skip
        x = x + h
        up = w(f"{name}.mlp.c_fc.weight", 4 * width, width)
        h = f.linear(norm(x, f"{name}.ln_2"), up, bias(x, f"{name}.mlp.c_fc", 4 * width))
        down = w(f"{name}.mlp.c_proj.weight", width, 4 * width)
        return x + f.linear(h * torch.sigmoid(1.702 * h), down, bias(x, f"{name}.mlp.c_proj"))

    size, patch, width = CLIP["size"], CLIP["patch"], CLIP["width"]
    x = f.conv2d(tensor(pixels), w("visual.conv1.weight", width, 3, patch, patch), stride=patch)
    x = x.flatten(2).permute(0, 2, 1)
    first = w("visual.class_embedding", width).expand(len(x), 1, -1)
    places = w("visual.positional_embedding", (size // patch) ** 2 + 1, width)
    x = norm(torch.cat([first, x], 1) + places, "visual.ln_pre")
    for i in range(CLIP["layers"]):
        x = block(x, f"visual.transformer.resblocks.{i}", None)
    image = norm(x[:, 0], "visual.ln_post") @ w("visual.proj", width, CLIP["embedding"])

    width, context = CLIP["text_width"], CLIP["context"]
    mask = torch.full((context, context), float("-inf")).triu(1)
    x = w("token_embedding.weight", CLIP["vocabulary"], width)[torch.from_numpy(ids).long()]
    x = x + w("positional_embedding", context, width)
    for i in range(CLIP["text_layers"]):
        x = block(x, f"transformer.resblocks.{i}", mask)
    ends = torch.from_numpy(ids.argmax(1)).long()
    x = norm(x, "ln_final")[torch.arange(len(ids)), ends]
    return image, x @ w("text_projection", width, CLIP["embedding"])


def lpips(w: Weights, a, b):
    """float32[B, H, W, 3] twice -> [B]; torchvision's vgg16.features and LPIPS's own names."""
    import torch
    import torch.nn.functional as f

    def stages(x):
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        x = (x - shift) / torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        layer = 0  # convolutions, relus and pools alike
        for i, (width, depth) in enumerate(VGG):
            if i:
                x, layer = f.max_pool2d(x, 2, 2), layer + 1
            for _ in range(depth):
                kernels = w(f"features.{layer}.weight", width, x.shape[1], 3, 3)
                x = f.relu(f.conv2d(x, kernels, w(f"features.{layer}.bias", width), padding=1))
                layer += 2
            yield x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)

    return sum(
        f.conv2d((x - y).square(), w(f"lin{i}.model.1.weight", 1, x.shape[1], 1, 1)).mean((1, 2, 3))
        for i, (x, y) in enumerate(zip(stages(tensor(a)), stages(tensor(b)), strict=True))
    )


def run(network: str) -> dict:
    """The outputs for `pictures` (and `texts`), NumPy arrays, and the shapes of all weights."""
    import torch

    from udd_jax.networks import pretrained

    w, shown = Weights(), pictures(network)
    with torch.no_grad():
        if network == "inception":
            names, out = ("features", "logits"), inception(w, shown)
        elif network == "clip":
            pixels = pretrained.pixels_for_clip(shown, CLIP["size"])
            names, out = ("images", "texts"), clip(w, pixels, texts())
        else:
            names, out = ("distance",), (lpips(w, *shown),)
    arrays = {name: value.numpy() for name, value in zip(names, out, strict=True)}
    return arrays | {"shapes": json.dumps(w.shapes)}


def resize(name: str, size: str) -> np.ndarray:
    """The rows of `resized`, by clean-fid."""
    from cleanfid import resize

    return resize.build_resizer(name)(odd_picture(size))[KEPT]


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in ("inception", "clip", "lpips"):
        np.savez_compressed(FOLDER / f"{name}.npz", **run(name))
    kinds = [(name, size) for name in ("clean", "legacy_pytorch") for size in ("small", "large")]
    found = {f"{name}_{size}": resize(name, size) for name, size in kinds}
    np.savez_compressed(FOLDER / "resized.npz", **found)
