"""The measuring networks against PyTorch builds of them, with random weights in published names.

What those builds give is recorded (feature_twins.py), so that the comparison runs without PyTorch;
where it is there, the recording is held against the builds.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from tests.helpers import feature_twins, torch_writer
from tests.helpers.feature_twins import CLIP
from udd_jax.evaluation import feature_networks
from udd_jax.networks import features, pretrained
from udd_jax.runtime import trees


def close(ours, theirs, tolerance=1e-4):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("network", ["inception", "clip", "lpips"])
def test_the_recording_is_what_pytorch_makes(network):
    torch = pytest.importorskip("torch", reason="the builds need PyTorch: pip install -e .[torch]")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = feature_twins.run(network)
    torch.set_num_threads(threads)
    state, expected = feature_twins.recorded(network)
    assert {n: list(v.shape) for n, v in state.items()} == json.loads(found.pop("shapes"))
    assert found.keys() == expected.keys()
    for name, value in found.items():
        close(value, expected[name], 1e-5)


# --- Inception -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inception():
    return feature_twins.recorded("inception")


@pytest.mark.slow
def test_inception_equals_pytorch(inception):
    state, expected = inception
    module = features.InceptionV3()
    variables = pretrained.load(module, state, jnp.zeros((1, 75, 75, 3)))
    pooled, logits = jax.jit(module.apply)(variables, feature_twins.pictures("inception"))
    close(pooled, expected["features"])
    close(logits, expected["logits"])


@pytest.mark.slow
def test_inception_measures_pictures_of_any_size_with_the_users_file(inception, tmp_path):
    state = inception[0] | {"fc.bias": np.ones(1008, np.float32)}  # in the file, in no use
    torch_writer.save(tmp_path / "pt_inception-2015-12-05-6726825d.pth", state)
    images = np.random.default_rng(0).integers(0, 256, (1, 40, 60, 3), np.uint8)
    ours = feature_networks.load(str(tmp_path))["inception"].images(images)
    module = features.InceptionV3()
    variables = pretrained.load(module, state, jnp.zeros((1, 75, 75, 3)))
    pooled, logits = jax.jit(module.apply)(variables, pretrained.pixels_for_inception(images))
    close(ours[:, :2048], pooled)
    close(ours[:, 2048:], jax.nn.softmax(logits))


# --- CLIP ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    """(the weights, what PyTorch makes of them, our two encoders)"""
    state, expected = feature_twins.recorded("clip")
    return state, expected, pretrained.clip(state)


def test_clip_image_encoder_equals_pytorch(clip):
    close(clip[2][0](feature_twins.pictures("clip")), clip[1]["images"])


def test_clip_text_encoder_equals_pytorch(clip):
    ids = pretrained.clip_ids([[5, 7, 1], list(range(20)), []], CLIP["context"], start=48)
    assert np.array_equal(ids, feature_twins.texts())
    close(clip[2][1](ids), clip[1]["texts"])


def test_words_after_the_end_token_do_not_matter(clip):
    ids = pretrained.clip_ids([[5, 7, 1], [5, 7, 1]], CLIP["context"], start=48)
    ids[1, 5:] = 9
    a, b = clip[2][1](ids)
    np.testing.assert_allclose(a, b, rtol=1e-6)


def test_clip_of_the_hugging_face_port_loads_to_the_same_arrays(clip):
    state = clip[0]
    port = {}
    renamed = {
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
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
def lpips():
    """(the weights, what PyTorch makes of them, our distance with its slope)"""
    state, expected = feature_twins.recorded("lpips")
    module, example = features.Lpips(), jnp.zeros((1, 16, 16, 3))
    variables = pretrained.load(module, state, example, example)

    @jax.jit
    def distance_and_slope(a, variables, b):
        def total(a):
            distance = module.apply(variables, a, b)
            return distance.sum(), distance

        (_, distance), slope = jax.value_and_grad(total, has_aux=True)(a)
        return distance, slope

    return state, expected, lambda a, b: distance_and_slope(a, variables, b)


@pytest.mark.slow
def test_lpips_equals_pytorch(lpips):
    close(lpips[2](*feature_twins.pictures("lpips"))[0], lpips[1]["distance"])


@pytest.mark.slow
def test_lpips_of_equals_is_zero_with_a_finite_slope(lpips):
    black = np.full((2, 16, 24, 3), -1, np.float32)
    distance, slope = lpips[2](black, black)
    np.testing.assert_allclose(distance, 0, atol=1e-12)
    assert np.isfinite(slope).all()


@pytest.mark.slow
def test_lpips_measures_with_the_users_two_files(lpips, tmp_path):
    linear = {name: value for name, value in lpips[0].items() if name.startswith("lin")}
    trunk = {name: value for name, value in lpips[0].items() if name not in linear}
    torch_writer.save(tmp_path / "vgg16-397923af.pth", trunk)
    trees.save_tree(tmp_path / "vgg.safetensors", linear)
    images = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    ours = feature_networks.load(str(tmp_path))["lpips"].distance(*images)
    close(ours, lpips[2](*(images / np.float32(127.5) - 1))[0])
    function, weights = feature_networks.perceptual(str(tmp_path))  # the same, to train with
    close(jax.jit(function)(weights, *(images / np.float32(127.5) - 1)), ours)
    (tmp_path / "vgg.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lpips weights: no vgg"):
        feature_networks.perceptual(str(tmp_path))


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


@pytest.mark.parametrize("name", ["clean", "legacy_pytorch"])
@pytest.mark.parametrize("size", ["small", "large"])
def test_pictures_are_resized_as_clean_fid_does_it(name, size):
    image, rows, expected = feature_twins.resized(name, size)
    ours = pretrained.pixels_for_inception(image[None], name)[0]
    scaled = (expected - 128) / 128 if name == "clean" else expected / 127.5 - 1
    np.testing.assert_allclose(ours[rows], scaled, atol=2e-6)


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


def test_another_networks_file_is_refused(lpips):
    text, ids = features.ClipText(5, 8, 0, 1, 3), jnp.zeros((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"ClipText: .* lack 5 of 5 .*another network"):
        pretrained.load(text, lpips[0], ids)
    with pytest.raises(ValueError, match=r"CLIP.*lack visual\.conv1\.weight"):
        pretrained.clip(lpips[0])


def test_a_wrong_shape_is_named(lpips):
    state = lpips[0] | {"features.5.bias": np.zeros(7)}
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
