"""Low-rank adapters begin at the finished run, change only matrices, and leave plain weights."""

import jax
import numpy as np
import pytest

from configs import own
from tests.data.test_sources_cases import fill
from tests.helpers import tiny
from tests.training.test_train_diffusion import VOCAB, setting
from udd_jax import build
from udd_jax.networks import transformer
from udd_jax.runtime import trees
from udd_jax.training import adapters, recipe, start, train_diffusion

RANK = 2


def weights():
    """Three blocks, as the network names them."""
    draw = np.random.default_rng(0).normal
    block = {"in": {"kernel": draw(size=(3, 4, 5)), "bias": draw(size=(3, 5))}}
    return jax.tree.map(
        np.float32,
        {"blocks": {"mlp": block}, "text_head": {"kernel": draw(size=(4, 7))}, "rezero": draw()},
    )


def test_merged_weights_begin_as_those_of_the_finished_run_to_the_bit():
    base = weights()
    merged = adapters.merge(base, adapters.create(base, RANK, jax.random.key(0)))
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(), base, merged
    )
    assert all(jax.tree.leaves(same))


def test_merging_adds_the_product_of_each_layer_to_its_own_matrix_and_nothing_else():
    base = weights()
    low = adapters.create(base, RANK, jax.random.key(0))
    assert [p.shape for p in jax.tree.leaves(low)] == [(3, 4, RANK), (3, RANK, 5)]
    pair = low["blocks"]["mlp"]["in"]["kernel"]
    pair["up"] = np.random.default_rng(1).normal(size=(3, RANK, 5)).astype(np.float32)
    merged = adapters.merge(base, low)
    for n in range(3):
        wanted = base["blocks"]["mlp"]["in"]["kernel"][n] + pair["down"][n] @ pair["up"][n]
        np.testing.assert_allclose(merged["blocks"]["mlp"]["in"]["kernel"][n], wanted, rtol=1e-5)
    np.testing.assert_array_equal(merged["text_head"]["kernel"], base["text_head"]["kernel"])


def test_the_gradient_of_adapters_at_the_start_moves_up_and_not_down():
    base = weights()
    low = adapters.create(base, RANK, jax.random.key(0))
    loss = adapters.over(lambda p, x: (p["blocks"]["mlp"]["in"]["kernel"] * x).sum(), base)
    pair = jax.grad(loss)(low, 2.0)["blocks"]["mlp"]["in"]["kernel"]
    down = low["blocks"]["mlp"]["in"]["kernel"]["down"]
    wanted = 2 * np.asarray(down).sum(1)[:, :, None] * np.ones((3, RANK, 5))
    np.testing.assert_allclose(pair["up"], wanted, rtol=1e-5)
    assert not pair["down"].any()


def test_a_loss_without_a_base_is_the_same_function():
    assert adapters.over(len, None) is len


@pytest.mark.slow
def test_adapters_learn_and_leave_plain_weights_that_differ_by_their_rank(tmp_path):
    config, _, model, *_ = setting()
    config = config.copy_and_resolve_references()
    config.train.update({"steps": 3, "warmup": 0, "save_every": 2, "batch_size": 4})
    config.train.learning_rate = 0.1
    config.train.adapters.rank, config.mesh.data = RANK, 1
    base = jax.device_get(transformer.init(model, jax.random.key(5)))
    batch = {"image": np.ones((4, 4), np.int32), "text": np.ones((4, 3), np.int32)}
    found = train_diffusion.train(
        config, tmp_path, VOCAB, 0, lambda step: batch, start=base, held_out=batch
    )
    old, new = trees.flatten(base), trees.flatten(found)
    assert {name: p.shape for name, p in old.items()} == {name: p.shape for name, p in new.items()}
    matrices = {n for n, p in old.items() if n.endswith("/kernel") and p.ndim == 3}
    changed = {name for name in old if not np.array_equal(old[name], new[name])}
    assert changed and changed <= matrices
    for name in changed:
        ranks = np.linalg.matrix_rank(np.float64(new[name]) - old[name], tol=1e-6)
        assert (ranks <= RANK).all()
    assert trees.flatten(trees.load_tree(tmp_path / "weights")[0]).keys() == old.keys()


def test_adapters_without_a_run_and_a_run_that_is_not_there_are_refused_at_the_start(tmp_path):
    config = own.get_config()
    config.train.adapters.rank = 4
    with pytest.raises(ValueError, match=r"--config\.init_from="):
        start.check(config)
    config.init_from = str(tmp_path)
    with pytest.raises(ValueError, match=r"init_from = .* has no file 'config.json'"):
        start.check(config)
    config.init_from = "gs://bucket/run"
    with pytest.raises(ValueError, match=r"init_from = 'gs://bucket/run' is in a bucket: copy"):
        start.check(config)
    config.init_from = "udd_jax/assets/shapes"
    start.check(config)


def test_ones_own_data_take_the_sizes_and_tokenizers_of_the_run_that_they_start_from(tmp_path):
    fill(tmp_path, 12)
    config = own.get_config()
    config.data, config.init_from = f"folder:{tmp_path}", "udd_jax/assets/shapes"
    filled = recipe.fill(config)
    there = build.read_config(config.init_from)
    assert filled.model.layers == there.model.layers and filled.image_size == there.image_size
    vocab = build.make_vocab(filled, build.load_tokenizers("udd_jax/assets/shapes"))
    reused = trees.flatten(start.weights(filled, vocab))
    old = trees.flatten(build.load_weights("udd_jax/assets/shapes"))
    assert all(np.array_equal(reused[name], old[name]) for name in old)
    assert filled.vq.file.endswith(build.IMAGE) and not recipe.open_fields(filled)


def test_adapters_refuse_a_network_of_other_sizes():
    config = build.read_config("udd_jax/assets/shapes")
    with config.unlocked():
        config.train.adapters = {"rank": 2}
    config.init_from = "udd_jax/assets/shapes"
    config.model.mlp_ratio = 3
    vocab = build.make_vocab(config, build.load_tokenizers(config.init_from))
    with pytest.raises(ValueError, match=r"arrays differ .the first: blocks/mlp"):
        start.weights(config, vocab)


def test_a_student_has_no_adapters(tiny_run):
    c = tiny.config()
    c.init_from, c.train.loss, c.train.adapters.rank = str(tiny_run), "distilled", 4
    with pytest.raises(
        ValueError, match=r"train\.adapters\.rank = 4 with train\.loss = 'distilled'"
    ):
        start.check(c)
