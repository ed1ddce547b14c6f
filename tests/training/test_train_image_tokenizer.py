"""Claims about the training of the image tokenizer, on a world of five noisy 4 x 4 tiles."""

import dataclasses
import os
import pathlib
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from udd_jax.data import records, sources
from udd_jax.data.sources import shapes
from udd_jax.runtime import trees
from udd_jax.tokenizers import codebook, image_tokenizer, reconstruction, vqgan
from udd_jax.training import finish, pictures, train_image_tokenizer

TILES = np.random.default_rng(5).integers(0, 2, (5, 4, 4, 3)) * 160 + 48


def draw(numbers, rng):
    """int[9] -> uint8[12, 12, 3]: tiles in a 3 x 3 grid, with noise."""
    image = TILES[numbers].reshape(3, 3, 4, 4, 3).swapaxes(1, 2).reshape(12, 12, 3)
    return (image + rng.normal(0, 4, image.shape)).round().astype(np.uint8)


@dataclasses.dataclass
class Tiles:
    """A source of them."""

    size: int = 64
    seed: int = 0
    name = "tiles"

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        return records.Record(str(index), draw(rng.integers(0, 5, 9), rng), ("tiles",))


def make_config(**vq):
    config = ml_collections.ConfigDict({"seed": 0, "image_size": 12, "workers": 0})
    config.mesh = {"data": 1, "model": 1}
    config.vq = {
        "file": "",
        "model": {
            "n_embed": 12,
            "embed_dim": 8,
            "z_channels": 8,
            "ch": 16,
            "ch_mult": (1,),
            "num_res_blocks": 0,
            "attn_resolutions": (),
            "quantiser": "ema",
            "patch": 4,
            "local_encoder": True,
            "local_decoder": True,
        },
        "pictures": 0,
        "steps": 60,
        "batch_size": 16,
        "learning_rate": 1e-2,
        "warmup": 5,
        "beta1": 0.9,
        "beta2": 0.99,
        "clip": 1.0,
        "plain_steps": 20,
        "loss": "l2",
        "commitment": 1.0,
        "decay": 0.9,
        "restart": {"until": 0.8, "threshold": 0.02, "factor": 2.0},
        "merge": 5.0,
        "temperature": (0.9, 1e-6),
        "perceptual": 0.0,
        "adversarial": {
            "weight": 0.0, "start": 0, "channels": 4, "layers": 1, "learning_rate": 1e-3,
        },
        "log_every": 10,
        "save_every": 15,
        "keep": 1,
    }  # fmt: skip
    with config.unlocked():
        config.vq.update(vq)
    return config


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Every call of `train` compiles its own step, mostly the same one."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: (config, folder, tokenizer)."""
    config, folder = make_config(), tmp_path_factory.mktemp("vq")
    return config, folder, train_image_tokenizer.train(config, folder, Tiles())


def lines(folder):
    return train_image_tokenizer.logbook.Logbook(folder).lines()


def test_training_tells_every_tile_and_repeats_it(run):
    _, _, tokenizer = run
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 5, (40, 9))
    images = np.stack([draw(n, rng) for n in numbers])
    codes = tokenizer.encode(images)
    # One code a tile, whatever the noise, and as many codes as there are tiles.
    assert tokenizer.codes == 5
    assert len(set(zip(numbers.ravel().tolist(), codes.ravel().tolist(), strict=True))) == 5
    decoded = reconstruction.psnr(tokenizer.decode(codes), images)
    assert decoded.mean() > 15  # one colour for all has 10


def test_scores_are_logged_and_kept_with_the_tokenizer(run):
    _, folder, tokenizer = run
    rows = lines(folder)
    assert rows[-1]["step"] == 60 and rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    assert {"psnr", "perplexity", "restarted", "quantiser_loss"} <= rows[-1].keys()
    about = trees.load_tree(folder / "tokenizer")[1]["about"]
    assert about["step"] == 60 and about["codes"] == 5 and about["usage"] == 1.0
    assert about["psnr"] > 15 and 4 < about["perplexity"] <= 5
    assert image_tokenizer.load(folder / "tokenizer").hash == tokenizer.hash


@pytest.mark.slow
def test_resume_is_bit_exact(run, tmp_path, monkeypatch):
    config, _, whole = run
    at = pictures.Pictures.at

    def until_the_lights_go_out(self, step, *args):
        if step == 34:  # after the checkpoint of step 30, itself after the k-means
            raise InterruptedError
        return at(self, step, *args)

    with monkeypatch.context() as patch:
        patch.setattr(pictures.Pictures, "at", until_the_lights_go_out)
        with pytest.raises(InterruptedError):
            train_image_tokenizer.train(config, tmp_path, Tiles())
    assert not (tmp_path / "tokenizer").exists()
    assert train_image_tokenizer.train(config, tmp_path, Tiles()).hash == whole.hash


def test_pictures_are_the_same_kept_or_read_again(monkeypatch):
    kept = pictures.Pictures(Tiles(10), make_config())
    monkeypatch.setattr(pictures, "MOST_BYTES", 0)
    read = pictures.Pictures(Tiles(10), make_config())
    assert read.kept is None and len(kept.kept) == 10
    for step in (0, 3):
        np.testing.assert_array_equal(kept.at(step, 4), read.at(step, 4))
    halves = [kept.at(3, 4, (i, 2)) for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), kept.at(3, 4))


def test_a_source_without_a_usable_picture_is_an_error():
    class Broken(Tiles):
        def __getitem__(self, index):
            return records.Record("0", b"no image", ("words",))

    with pytest.raises(ValueError, match="none of the 3 items of tiles can be used"):
        pictures.Pictures(Broken(3), make_config())


def test_codebook_starts_at_the_encoders_own_vectors(run):
    config, _, _ = run
    model = train_image_tokenizer.make_model(config)
    image = np.stack([Tiles()[i].image for i in range(32)])
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 12, 12, 3)))["params"]
    state = train_image_tokenizer.TrainState(0, params, None, None, {}, {})
    state = train_image_tokenizer.start_codebook(model, state, image, 16, jax.random.key(1))
    z = finish.pool_vectors(model, params, image, jax.random.key(2))
    assert z.shape == (32 * 9, 8)
    rows = np.asarray(vqgan.rows(state.params))
    error = ((z - rows[np.asarray(codebook.nearest(z, rows))]) ** 2).sum(-1).mean()
    assert error < 0.02 * z.var(0).sum()
    np.testing.assert_allclose(state.averages.sums / state.averages.counts[:, None], rows, 1e-5)


def test_gumbel_codebook_starts_as_the_nearest_row():
    rng = np.random.default_rng(0)
    rows, z = np.float32(rng.normal(size=(9, 4))), np.float32(rng.normal(size=(50, 1, 1, 4)))
    module = vqgan.Quantizer("gumbel", 9, 4, beta=0.25)
    empty = {"quantize": {"embed": rows, "proj": None}}
    params = vqgan.with_rows(empty, rows, 0.3)["quantize"]
    codes = module.apply({"params": params}, z, method="codes")
    np.testing.assert_array_equal(codes, codebook.nearest(z, rows))


def one_step(config, out, step=0, perceptual=None):
    """The metrics of a step of a network whose one weight, 3, multiplies `out(x, ...)`."""

    def apply(variables, x, key, temperature, plain):
        images, loss = out(x, temperature)
        y = variables["params"]["w"] * images
        return vqgan.Output(y, x, jnp.zeros(x.shape[:3], jnp.int32), jnp.asarray(loss))

    model = types.SimpleNamespace(
        apply=apply, n_embed=2, quantiser="gumbel", codebooks=("quantize",)
    )
    params = {"w": jnp.array(3.0)}
    tx, judge_tx = train_image_tokenizer.make_optimisers(config)
    state = train_image_tokenizer.TrainState(jnp.array(step), params, tx.init(params), None, {}, {})
    train_step = train_image_tokenizer.make_step(config, model, None, tx, judge_tx, perceptual)
    white = np.full((1, 2, 2, 3), 255, np.uint8)
    return train_step(state, white, jax.random.key(0), 7.0)[1]


@pytest.mark.parametrize(("loss", "value", "slope"), [("l1", 2.0, 1.0), ("l2", 4.0, 4.0)])
def test_the_loss_is_that_of_its_name_and_lpips_adds_to_it(loss, value, slope):
    config = make_config(loss=loss, perceptual=0.5, commitment=0.0)
    plain = one_step(config, lambda x, _: (x, 0.0))
    np.testing.assert_allclose([plain["loss"], plain["gradient_norm"]], [value, slope], rtol=1e-6)

    def perceptual(weights, x, y):
        return weights * (y - x).mean((1, 2, 3))

    seen = one_step(config, lambda x, _: (x, 0.0), perceptual=perceptual)
    expected = [value + 0.5 * 7 * 2, slope + 0.5 * 7]
    np.testing.assert_allclose([seen["loss"], seen["gradient_norm"]], expected, rtol=1e-6)


def test_the_loss_of_the_codes_is_added_by_its_weight():
    for commitment, expected in ((0.0, 4.0), (0.25, 4.0 + 0.25 * 7)):
        config = make_config(commitment=commitment)
        found = one_step(config, lambda x, _: (x, 7.0))
        np.testing.assert_allclose([found["loss"], found["quantiser_loss"]], [expected, 7.0], 1e-6)


def test_gumbel_noise_cools_from_hot_to_cold_along_half_a_cosine():
    config = make_config(temperature=(0.9, 0.1), steps=100)
    found = [
        float(one_step(config, lambda x, temperature: (x, temperature), step)["quantiser_loss"])
        for step in (0, 50, 100)
    ]
    np.testing.assert_allclose(found, [0.9, 0.5, 0.1], rtol=1e-5)


def test_balance_is_the_ratio_of_the_gradients():
    kernel = jnp.array([[1.0, 2.0]])

    def terms(kernel):
        return 3 * kernel.sum(), 0.5 * (kernel**2).sum()

    expected = np.sqrt(18) / (np.sqrt(5) + 1e-4)
    np.testing.assert_allclose(
        train_image_tokenizer.adaptive_weight(terms, kernel), expected, rtol=1e-6
    )
    assert jax.grad(lambda k: train_image_tokenizer.adaptive_weight(terms, k))(kernel).tolist() == [
        [0, 0]
    ]


def test_hinge_asks_no_more_than_a_margin_of_one():
    judge = types.SimpleNamespace(apply=lambda variables, x: x * variables["params"])
    real, fake = jnp.array([2.0, 0.5]), jnp.array([-3.0, 1.0])
    # real: (0 + .5) / 2; fake: (0 + 2) / 2
    np.testing.assert_allclose(
        train_image_tokenizer.hinge_loss(1.0, judge, real, fake), (0.25 + 1.0) / 2
    )


# The longer ones.


@pytest.mark.slow
def test_rebuilding_uses_its_codes_at_no_higher_error(run, tmp_path):
    """ReFiT on a codebook of which under 40 % is used."""
    config, _, trained = run
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.vq.rebuild = {"codes": 5, "steps": 10, "learning_rate": 2e-6}
    images = np.stack([Tiles(seed=1)[i].image for i in range(64)])
    rows = np.array(vqgan.rows(trained.params))
    rows[np.setdiff1d(np.arange(12), trained.used_to_full[:3])] = 1e3
    params = trained.params | {"quantize": {"embedding": rows}}
    before = image_tokenizer.ImageTokenizer(trained.module, params)
    after = train_image_tokenizer.rebuild(config, tmp_path, before, Tiles())

    def error(tokenizer):
        z = finish.pool_vectors(tokenizer.module, tokenizer.params, images, jax.random.key(0))
        rows = np.asarray(vqgan.rows(tokenizer.params))
        return ((z - rows[np.asarray(codebook.nearest(z, rows))]) ** 2).sum(-1).mean()

    assert finish.score(before, images)["usage"] < 0.4
    assert finish.score(after, images)["usage"] >= 0.95
    assert error(after) <= error(before)
    for part in ("encoder", "quant_conv"):
        jax.tree.map(np.testing.assert_array_equal, after.params[part], before.params[part])
    kernel = [t.params["decoder"]["conv_out"]["kernel"] for t in (before, after)]
    assert (np.asarray(kernel[0]) != np.asarray(kernel[1])).any()


def test_rebuilding_a_gumbel_tokenizer_is_an_error(tmp_path):
    config = make_config(rebuild={"codes": 5, "steps": 1, "learning_rate": 1e-6})
    config.vq.model.quantiser = "gumbel"
    tokenizer = image_tokenizer.ImageTokenizer(train_image_tokenizer.make_model(config), {})
    with pytest.raises(ValueError, match="a gumbel tokenizer has no nearest rows"):
        train_image_tokenizer.rebuild(config, tmp_path, tokenizer, Tiles())


@pytest.mark.slow
@pytest.mark.parametrize("quantiser", ["straight_through", "gumbel"])
def test_the_other_quantisers_learn_the_tiles_too(quantiser, tmp_path):
    config = make_config(steps=150, merge=0)
    config.vq.model.quantiser = quantiser
    if quantiser == "gumbel":
        config.vq.commitment = 5e-4  # its loss pulls towards evenly likely codes
    tokenizer = train_image_tokenizer.train(config, tmp_path, Tiles())
    assert tokenizer.codes == 12
    score = finish.score(tokenizer, np.stack([Tiles(seed=1)[i].image for i in range(32)]))
    assert score["psnr"] > 20


@pytest.mark.slow
def test_the_judge_waits_for_its_start_and_then_learns(tmp_path):
    config = make_config(adversarial={
        "weight": 0.1, "start": 30, "channels": 4, "layers": 1, "learning_rate": 1e-3,
    })  # fmt: skip
    train_image_tokenizer.train(config, tmp_path, Tiles())
    rows = lines(tmp_path)
    assert rows[0]["judge_loss"] == pytest.approx(rows[2]["judge_loss"], abs=0.05)
    assert rows[-1]["judge_loss"] < 0.95 * rows[2]["judge_loss"]


def test_a_step_in_which_only_the_judge_is_not_finite_is_skipped(monkeypatch):
    config = make_config(adversarial={
        "weight": 0.1, "start": 0, "channels": 4, "layers": 1, "learning_rate": 1e-3,
    })  # fmt: skip
    images = jnp.asarray(np.stack([Tiles()[i].image for i in range(8)]))
    model = train_image_tokenizer.make_model(config)
    params = model.init(jax.random.key(0), np.zeros((1, 12, 12, 3), np.float32))["params"]
    state = train_image_tokenizer.create_state(config, model, params)
    judge = train_image_tokenizer.make_discriminator(config)
    parts = (config, model, judge, *train_image_tokenizer.make_optimisers(config))

    def after(hinge):
        monkeypatch.setattr(train_image_tokenizer, "hinge_loss", hinge)
        step = jax.jit(train_image_tokenizer.make_step(*parts))
        new, metrics = step(state, images, jax.random.key(1))
        old = {"params": state.params, "judge": state.judge}
        pairs = zip(*(jax.tree.leaves(tree) for tree in (
            {"params": new.params, "judge": new.judge}, old)), strict=True)  # fmt: skip
        return metrics, all(np.array_equal(a, b) for a, b in pairs)

    usual = train_image_tokenizer.hinge_loss
    metrics, same = after(usual)
    assert not metrics["skipped"] and not same
    metrics, same = after(lambda *args: usual(*args) * jnp.nan)
    assert np.isfinite(metrics["loss"]) and metrics["skipped"] and same


@pytest.mark.slow
def test_a_mesh_trains_the_same_tokenizer(run, tmp_path):
    config, _, one = run
    config = config.copy_and_resolve_references()
    config.mesh.data = 4
    many = train_image_tokenizer.train(config, tmp_path, Tiles())
    images = np.stack([Tiles(seed=1)[i].image for i in range(32)])
    assert many.codes == one.codes
    close = np.abs(
        many.decode(many.encode(images)).astype(int) - one.decode(one.encode(images)).astype(int)
    )
    assert close.mean() < 2


@pytest.mark.long
def test_shapes_are_read_right_from_16_codes(tmp_path):
    from configs import t2i

    tokenizer = train_image_tokenizer.train(
        t2i.get_config(), tmp_path, shapes.source("train", 4096)
    )
    images, _, scenes = shapes.arrays("test", 1000)
    codes = tokenizer.encode(images)
    assert codes.shape == (1000, 16)
    read = shapes.drawing.read_images(tokenizer.decode(codes))
    assert np.mean([a == b for a, b in zip(read, scenes, strict=True)]) >= 0.99
    rng = np.random.default_rng(0)
    again = tokenizer.encode(np.stack([shapes.drawing.render(scene, rng) for scene in scenes]))
    assert (again != codes).mean() < 0.01  # the noise redrawn


EMOJI = pathlib.Path(
    os.environ.get("UDD_EMOJI", pathlib.Path(__file__).parents[2] / "../shared/data/emoji")
)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not there")
def test_drawings_held_out_come_back_at_24_decibels_through_most_of_the_codes(tmp_path):
    from configs import t2i

    config = t2i.get_config("emoji_fine")
    data = [
        sources.open_source(f"webdataset:{EMOJI}", s, **config.data_options)
        for s in ("train", "test")
    ]
    tokenizer = train_image_tokenizer.train(config, tmp_path, *data)
    assert tokenizer.grid == (16, 16)
    score = finish.score(tokenizer, pictures.Pictures(data[1], config).sample(740))
    assert score["psnr"] >= 24 and score["usage"] >= 0.8
