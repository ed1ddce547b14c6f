"""The measuring networks against PyTorch builds of them, with random weights in published names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from udd_jax import features
from udd_jax.metrics import pretrained


@pytest.fixture(scope="module")
def torch():
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield torch
    torch.set_num_threads(threads)


def close(ours, theirs, tolerance=1e-4):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# --- Inception -------------------------------------------------------------------------------


class TorchInception:
    """The network in torch.nn.functional. Weights are drawn when a layer first runs and kept in
    `state` under torchvision's names."""

    def __init__(self, torch, seed):
        self.torch, self.f, self.state = torch, torch.nn.functional, {}
        self.generator = torch.Generator().manual_seed(seed)

    def weight(self, name, *shape, scale=1.0, shift=0.0):
        if name not in self.state:
            drawn = self.torch.randn(shape, generator=self.generator)
            self.state[name] = drawn * scale + shift
        return self.state[name]

    def conv(self, x, name, out, kernel, stride=1, padding=0):
        kernel = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        fan_in = x.shape[1] * kernel[0] * kernel[1]
        w = self.weight(f"{name}.conv.weight", out, x.shape[1], *kernel, scale=(2 / fan_in) ** 0.5)
        x = self.f.conv2d(x, w, stride=stride, padding=padding)
        mean = self.weight(f"{name}.bn.running_mean", out, scale=0.1)
        var = self.weight(f"{name}.bn.running_var", out, scale=0.1).abs_().add_(0.5)
        self.state[f"{name}.bn.running_var"] = var
        w = self.weight(f"{name}.bn.weight", out, scale=0.1, shift=1.0)
        b = self.weight(f"{name}.bn.bias", out, scale=0.1)
        return self.f.relu(self.f.batch_norm(x, mean, var, w, b, eps=0.001))

    def average(self, x):
        return self.f.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def mixed_5(self, x, m, pooled):
        a = self.conv(x, f"{m}.branch1x1", 64, 1)
        b = self.conv(x, f"{m}.branch5x5_1", 48, 1)
        b = self.conv(b, f"{m}.branch5x5_2", 64, 5, padding=2)
        c = self.conv(x, f"{m}.branch3x3dbl_1", 64, 1)
        c = self.conv(c, f"{m}.branch3x3dbl_2", 96, 3, padding=1)
        c = self.conv(c, f"{m}.branch3x3dbl_3", 96, 3, padding=1)
        d = self.conv(self.average(x), f"{m}.branch_pool", pooled, 1)
        return self.torch.cat([a, b, c, d], 1)

    def mixed_6a(self, x, m):
        a = self.conv(x, f"{m}.branch3x3", 384, 3, stride=2)
        b = self.conv(x, f"{m}.branch3x3dbl_1", 64, 1)
        b = self.conv(b, f"{m}.branch3x3dbl_2", 96, 3, padding=1)
        b = self.conv(b, f"{m}.branch3x3dbl_3", 96, 3, stride=2)
        return self.torch.cat([a, b, self.f.max_pool2d(x, 3, 2)], 1)

    def mixed_6(self, x, m, k):
        row, column = {"kernel": (1, 7), "padding": (0, 3)}, {"kernel": (7, 1), "padding": (3, 0)}
        a = self.conv(x, f"{m}.branch1x1", 192, 1)
        b = self.conv(x, f"{m}.branch7x7_1", k, 1)
        b = self.conv(b, f"{m}.branch7x7_2", k, **row)
        b = self.conv(b, f"{m}.branch7x7_3", 192, **column)
        c = self.conv(x, f"{m}.branch7x7dbl_1", k, 1)
        c = self.conv(c, f"{m}.branch7x7dbl_2", k, **column)
        c = self.conv(c, f"{m}.branch7x7dbl_3", k, **row)
        c = self.conv(c, f"{m}.branch7x7dbl_4", k, **column)
        c = self.conv(c, f"{m}.branch7x7dbl_5", 192, **row)
        d = self.conv(self.average(x), f"{m}.branch_pool", 192, 1)
        return self.torch.cat([a, b, c, d], 1)

    def mixed_7a(self, x, m):
        a = self.conv(x, f"{m}.branch3x3_1", 192, 1)
        a = self.conv(a, f"{m}.branch3x3_2", 320, 3, stride=2)
        b = self.conv(x, f"{m}.branch7x7x3_1", 192, 1)
        b = self.conv(b, f"{m}.branch7x7x3_2", 192, (1, 7), padding=(0, 3))
        b = self.conv(b, f"{m}.branch7x7x3_3", 192, (7, 1), padding=(3, 0))
        b = self.conv(b, f"{m}.branch7x7x3_4", 192, 3, stride=2)
        return self.torch.cat([a, b, self.f.max_pool2d(x, 3, 2)], 1)

    def mixed_7(self, x, m, pooled):
        row, column = {"kernel": (1, 3), "padding": (0, 1)}, {"kernel": (3, 1), "padding": (1, 0)}
        a = self.conv(x, f"{m}.branch1x1", 320, 1)
        b = self.conv(x, f"{m}.branch3x3_1", 384, 1)
        b1 = self.conv(b, f"{m}.branch3x3_2a", 384, **row)
        b2 = self.conv(b, f"{m}.branch3x3_2b", 384, **column)
        c = self.conv(x, f"{m}.branch3x3dbl_1", 448, 1)
        c = self.conv(c, f"{m}.branch3x3dbl_2", 384, 3, padding=1)
        c1 = self.conv(c, f"{m}.branch3x3dbl_3a", 384, **row)
        c2 = self.conv(c, f"{m}.branch3x3dbl_3b", 384, **column)
        d = self.conv(pooled, f"{m}.branch_pool", 192, 1)
        return self.torch.cat([a, b1, b2, c1, c2, d], 1)

    def __call__(self, x):
        x = self.conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = self.conv(x, "Conv2d_2a_3x3", 32, 3)
        x = self.conv(x, "Conv2d_2b_3x3", 64, 3, padding=1)
        x = self.conv(self.f.max_pool2d(x, 3, 2), "Conv2d_3b_1x1", 80, 1)
        x = self.f.max_pool2d(self.conv(x, "Conv2d_4a_3x3", 192, 3), 3, 2)
        for m, pooled in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
            x = self.mixed_5(x, m, pooled)
        x = self.mixed_6a(x, "Mixed_6a")
        for m, k in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
            x = self.mixed_6(x, m, k)
        x = self.mixed_7a(x, "Mixed_7a")
        x = self.mixed_7(x, "Mixed_7b", self.average(x))
        x = self.mixed_7(x, "Mixed_7c", self.f.max_pool2d(x, 3, 1, 1))
        pooled = x.mean((2, 3))
        return pooled, pooled @ self.weight("fc.weight", 1008, 2048, scale=0.05).T


@pytest.fixture(scope="module")
def inception_twin(torch):
    """The twin, two odd pictures float32[2, 107, 139, 3], what it makes of them."""
    twin = TorchInception(torch, seed=1)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 107, 139, 3)).astype(np.float32)
    return twin, pixels, twin(torch.from_numpy(pixels).permute(0, 3, 1, 2))


def inception_state(twin):
    state = {name: value.numpy() for name, value in twin.state.items()}
    return state | {"fc.bias": np.ones(1008, np.float32)}  # in the file, in no use


@pytest.mark.slow
def test_inception_equals_pytorch(inception_twin):
    twin, pixels, expected = inception_twin
    module = features.InceptionV3()
    variables = pretrained.load(module, inception_state(twin), jnp.zeros((1, 75, 75, 3)))
    apply = jax.jit(module.apply, compiler_options={"xla_backend_optimization_level": 0})
    for ours, theirs in zip(apply(variables, pixels), expected, strict=True):
        close(ours, theirs)


@pytest.mark.slow
def test_inception_measures_pictures_of_any_size(torch, inception_twin):
    twin = inception_twin[0]
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), np.uint8)
    pixels = torch.from_numpy(pretrained.pixels_for_inception(images))
    pooled, logits = twin(pixels.permute(0, 3, 1, 2))
    ours, probabilities = pretrained.inception(inception_state(twin))(images)
    close(ours, pooled)
    close(probabilities, torch.softmax(logits, 1))


# --- CLIP ------------------------------------------------------------------------------------

CLIP = {"size": 24, "patch": 8, "width": 128, "layers": 2, "text_width": 64, "text_layers": 3}
CLIP |= {"vocabulary": 50, "context": 9, "embedding": 20}


@pytest.fixture(scope="module")
def clip_twin(torch):
    """(state dict, encode_image, encode_text) of a small CLIP out of torch.nn modules."""
    nn = torch.nn

    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.attn = nn.MultiheadAttention(width, width // 64)
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            parts = {"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)}
            self.mlp = nn.ModuleDict(parts)

        def forward(self, x, mask):
            h = self.ln_1(x)
            x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
            h = self.mlp["c_fc"](self.ln_2(x))
            return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))

    class Stack(nn.Module):
        def __init__(self, width, layers):
            super().__init__()
            self.resblocks = nn.ModuleList([Block(width) for _ in range(layers)])

        def forward(self, x, mask=None):
            x = x.permute(1, 0, 2)
            for block in self.resblocks:
                x = block(x, mask)
            return x.permute(1, 0, 2)

    class Visual(nn.Module):
        def __init__(self, size, patch, width, layers, embedding, **_):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.empty(width))
            self.positional_embedding = nn.Parameter(torch.empty((size // patch) ** 2 + 1, width))
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = Stack(width, layers)
            self.proj = nn.Parameter(torch.empty(width, embedding))

        def forward(self, x):
            x = self.conv1(x).flatten(2).permute(0, 2, 1)
            first = self.class_embedding.expand(len(x), 1, -1)
            x = torch.cat([first, x], 1) + self.positional_embedding
            return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj

    class Clip(nn.Module):
        def __init__(self, text_width, text_layers, vocabulary, context, embedding, **_):
            super().__init__()
            self.visual = Visual(**CLIP)
            self.transformer = Stack(text_width, text_layers)
            self.token_embedding = nn.Embedding(vocabulary, text_width)
            self.positional_embedding = nn.Parameter(torch.empty(context, text_width))
            self.ln_final = nn.LayerNorm(text_width)
            self.text_projection = nn.Parameter(torch.empty(text_width, embedding))
            self.logit_scale = nn.Parameter(torch.empty(()))

        def text(self, ids):
            mask = torch.full((ids.shape[1],) * 2, float("-inf")).triu(1)
            x = self.token_embedding(ids) + self.positional_embedding
            x = self.ln_final(self.transformer(x, mask))
            return x[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection

    torch.manual_seed(2)
    twin = Clip(**CLIP).eval()
    for name, value in twin.named_parameters():
        value.copy_(torch.randn(value.shape) * 0.15 + (name.endswith("weight") and "ln_" in name))
    return {name: v.numpy() for name, v in twin.state_dict().items()}, twin.visual, twin.text


@pytest.fixture(scope="module")
def clip_ours(clip_twin):
    return pretrained.clip(clip_twin[0])


def test_clip_image_encoder_equals_pytorch(torch, clip_twin, clip_ours):
    images = np.random.default_rng(0).integers(0, 256, (3, 24, 24, 3), np.uint8)
    pixels = torch.from_numpy(pretrained.pixels_for_clip(images, 24)).permute(0, 3, 1, 2)
    close(clip_ours[0](images), clip_twin[1](pixels))


def test_clip_text_encoder_equals_pytorch(torch, clip_twin, clip_ours):
    ids = pretrained.clip_ids([[5, 7, 1], list(range(20)), []], CLIP["context"], start=48)
    close(clip_ours[1](ids), clip_twin[2](torch.from_numpy(ids).long()))


def test_words_after_the_end_token_do_not_matter(clip_ours):
    ids = pretrained.clip_ids([[5, 7, 1], [5, 7, 1]], CLIP["context"], start=48)
    ids[1, 5:] = 9
    a, b = clip_ours[1](ids)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_clip_of_the_hugging_face_port_loads_to_the_same_arrays(clip_twin):
    state = clip_twin[0]
    port = {}
    renamed = {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
        "logit_scale": "logit_scale",
    }
    for side, tower in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
        for i in range(CLIP["layers"] if side == "vision_model" else CLIP["text_layers"]):
            theirs, ours = f"{side}.encoder.layers.{i}", f"{tower}.resblocks.{i}"
            for kind in ("weight", "bias"):
                split = np.split(state[f"{ours}.attn.in_proj_{kind}"], 3)
                for letter, part in zip("qkv", split, strict=True):
                    port[f"{theirs}.self_attn.{letter}_proj.{kind}"] = part
                for a, b in (
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ):
                    renamed[f"{ours}.{a}.{kind}"] = f"{theirs}.{b}.{kind}"
    for kind in ("weight", "bias"):
        renamed[f"visual.ln_pre.{kind}"] = f"vision_model.pre_layrnorm.{kind}"
        renamed[f"visual.ln_post.{kind}"] = f"vision_model.post_layernorm.{kind}"
        renamed[f"ln_final.{kind}"] = f"text_model.final_layer_norm.{kind}"
    port |= {theirs: state[ours] for ours, theirs in renamed.items()}
    port["visual_projection.weight"] = state["visual.proj"].T
    port["text_projection.weight"] = state["text_projection"].T
    back = pretrained.clip_names(port)
    assert back.keys() == state.keys()
    assert all(np.array_equal(back[name], state[name]) for name in state)


# --- LPIPS -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lpips_state():
    generator = np.random.default_rng(3)
    state, channels, layer = {}, 3, 0
    for i, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for _ in range(depth):
            scale = (2 / (9 * channels)) ** 0.5
            shape = (width, channels, 3, 3)
            drawn = generator.standard_normal(shape, np.float32) * np.float32(scale)
            state[f"features.{layer}.weight"] = drawn
            bias = generator.standard_normal(width, np.float32) * np.float32(0.1)
            state[f"features.{layer}.bias"] = bias
            channels, layer = width, layer + 2
        layer += 1
        state[f"lin{i}.model.1.weight"] = generator.random((1, width, 1, 1), np.float32)
    return state


@pytest.fixture(scope="module")
def lpips_ours(lpips_state):
    module, example = features.Lpips(), jnp.zeros((1, 16, 16, 3))
    variables = pretrained.load(module, lpips_state, example, example)

    @jax.jit
    def distance_and_slope(a, variables, b):
        def total(a):
            distance = module.apply(variables, a, b)
            return distance.sum(), distance

        (_, distance), slope = jax.value_and_grad(total, has_aux=True)(a)
        return distance, slope

    return lambda a, b: distance_and_slope(a, variables, b)


@pytest.mark.slow
def test_lpips_equals_pytorch(torch, lpips_state, lpips_ours):
    f = torch.nn.functional
    state = {name: torch.from_numpy(value) for name, value in lpips_state.items()}
    images = np.random.default_rng(0).uniform(-1, 1, (2, 2, 16, 24, 3)).astype(np.float32)

    def trunk(x):
        shift = torch.tensor([-0.030, -0.088, -0.188])[None, :, None, None]
        x = (x - shift) / torch.tensor([0.458, 0.448, 0.450])[None, :, None, None]
        out = []
        for layer in range(30):  # torchvision's vgg16.features
            if f"features.{layer}.weight" in state:
                weight, bias = (state[f"features.{layer}.{k}"] for k in ("weight", "bias"))
                x = f.relu(f.conv2d(x, weight, bias, padding=1))
            elif layer in (4, 9, 16, 23):
                x = f.max_pool2d(x, 2, 2)
            if layer in (3, 8, 15, 22, 29):  # the relus that close a stage
                out.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return out

    a, b = (trunk(torch.from_numpy(x).permute(0, 3, 1, 2)) for x in images)
    expected = sum(
        f.conv2d((x - y).square(), state[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
        for i, (x, y) in enumerate(zip(a, b, strict=True))
    )
    close(lpips_ours(*images)[0], expected)


@pytest.mark.slow
def test_lpips_of_equals_is_zero_with_a_finite_slope(lpips_ours):
    black = np.full((2, 16, 24, 3), -1, np.float32)
    distance, slope = lpips_ours(black, black)
    np.testing.assert_allclose(distance, 0, atol=1e-12)
    assert np.isfinite(slope).all()


# --- Pixels ----------------------------------------------------------------------------------


def test_clean_resizing_antialiases_and_does_not_round():
    stripes = np.zeros((1, 598, 598, 3), np.uint8)
    stripes[:, :, ::2, 1] = 255  # one pixel wide, gone at half the width
    pixels = pretrained.pixels_for_inception(stripes, "clean")
    assert pixels.shape == (1, 299, 299, 3) and pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[..., 1][:, :, 2:-2], (127.5 - 128) / 128, atol=1e-5)
    assert np.array_equal(pixels[..., 0], np.full((1, 299, 299), -1))


def test_clean_resizing_overshoots_by_bicubic_and_is_cut_to_the_range():
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 200
    resized = pretrained.resize_clean(edge, 32)
    assert resized.min() == 0 and 200 < resized.max() <= 255
    # The published weights of the cubic with a = -1/2 at the first pixel centre left of the edge.
    distance = np.array([1.625, 0.625, 0.375, 1.375])
    near = lambda d: (1.5 * d - 2.5) * d * d + 1  # noqa: E731
    far = lambda d: ((-0.5 * d + 2.5) * d - 4) * d + 2  # noqa: E731
    weights = np.where(distance < 1, near(distance), far(distance))
    # Output pixel 16 lies at 4.125 - 0.5 of the input: taps 2, 3, 4, 5.
    np.testing.assert_allclose(resized[0, 16, 0], 200 * weights[2:].sum(), rtol=1e-5)


def test_legacy_resizing_equals_pytorch_interpolate(torch):
    images = np.random.default_rng(0).integers(0, 256, (2, 320, 40, 3), np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    expected = torch.nn.functional.interpolate(pixels, (299, 299), mode="bilinear") * 2 - 1
    ours = pretrained.pixels_for_inception(images, "legacy_pytorch")
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_clip_pixels_keep_the_middle_of_a_wide_image():
    image = np.zeros((1, 30, 90, 3), np.uint8)
    image[:, :, 30:60] = 255
    pixels = pretrained.pixels_for_clip(image, 30)
    assert pixels.shape == (1, 30, 30, 3)
    expected = (1 - 0.4578275) / 0.26130258
    np.testing.assert_allclose(pixels[..., 1], np.full((1, 30, 30), expected), rtol=1e-6)


def test_pillow_resizes_a_square_as_clip_does():
    image = np.random.default_rng(1).integers(0, 256, (1, 50, 50, 3), np.uint8)
    small = Image.fromarray(image[0]).resize((24, 24), Image.Resampling.BICUBIC)
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[None, None]
    deviation = np.array([0.26862954, 0.26130258, 0.27577711])[None, None]
    expected = (np.asarray(small) / 255 - mean) / deviation
    np.testing.assert_allclose(pretrained.pixels_for_clip(image, 24)[0], expected, atol=1e-5)


# --- Weights ---------------------------------------------------------------------------------


def test_missing_weights_say_which_file_and_where(tmp_path):
    with pytest.raises(ValueError, match=r"inception.*pt_inception-2015-12-05.*mseitzer") as caught:
        pretrained.find_weights(tmp_path, "inception")
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_are_found_under_any_known_ending(tmp_path):
    (tmp_path / "ViT-B-32.safetensors").touch()
    assert pretrained.find_weights(tmp_path, "clip") == tmp_path / "ViT-B-32.safetensors"


def test_another_networks_file_is_refused(lpips_state):
    text, ids = features.ClipText(5, 8, 0, 1, 3), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"ClipText: .* lack 5 of 5 .*another network"):
        pretrained.load(text, lpips_state, ids)
    with pytest.raises(ValueError, match=r"CLIP.*lack visual\.conv1\.weight"):
        pretrained.clip(lpips_state)


def test_a_wrong_shape_is_named(lpips_state):
    state = lpips_state | {"features.5.bias": np.zeros(7)}
    example = jnp.zeros((1, 16, 16, 3))
    with pytest.raises(ValueError, match=r"features\.5\.bias.*\(7,\).*\(128,\)"):
        pretrained.load(features.Lpips(), state, example, example)


def test_unknown_resizing_and_float_images_are_refused():
    image = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'nearest'.*'clean' or 'legacy_pytorch'"):
        pretrained.pixels_for_inception(image, "nearest")
    with pytest.raises(ValueError, match="uint8"):
        pretrained.pixels_for_clip(image / 255)


def test_the_hash_sees_names_and_values_not_order():
    state = {"a": np.arange(3), "b": np.ones(2)}
    assert pretrained.state_hash(state) == pretrained.state_hash(dict(reversed(state.items())))
    assert pretrained.state_hash(state) != pretrained.state_hash(state | {"a": np.arange(3) + 1})
    assert pretrained.state_hash({"a": state["a"]}) != pretrained.state_hash({"c": state["a"]})
