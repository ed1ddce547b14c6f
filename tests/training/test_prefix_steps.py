"""The first steps have the loss of the baseline, and the others that of the diffusion."""

import shutil

import jax
import numpy as np
import pytest

from udd_jax import build, stages
from udd_jax.runtime import checkpoints, files, logbook
from udd_jax.training import train_diffusion, turns

STEPS = 3


@pytest.fixture(scope="module")
def runs(tiny_run, tmp_path_factory):
    """Folders of three runs of 3 steps, the config and the vocabulary, and their batches."""
    folder = tmp_path_factory.mktemp("prefix")
    tokenizers = build.load_tokenizers(tiny_run)
    text = tokenizers["text"]

    def batch_at(step):
        rng = np.random.default_rng(step)
        return {
            m.name: rng.integers(0, m.classes, (4, m.length)).astype(np.int32)
            for m in build.make_vocab(build.read_config(tiny_run), tokenizers).modalities
        }

    def run(name, kind="diffusion", **fields):
        config = build.read_config(tiny_run)
        shutil.copytree(tiny_run, folder / name)
        with config.unlocked():
            config.model.kind = kind
            fields |= {"steps": STEPS, "batch_size": 4, "log_every": 1, "save_every": 1, "keep": 9}
            fields |= {"optimiser": "adamw", "held_out": 0}  # what compiles quickly
            config.train.update(fields)
        files.write_json(
            folder / name / build.CONFIG, {"config": config.to_dict(), "made_with": {}}
        )
        vocab = build.make_vocab(config, tokenizers)
        train_diffusion.train(config, folder / name, vocab, text.pad_id, batch_at)
        lines = logbook.Logbook(folder / name).lines()
        return config, vocab, folder / name, [line["loss"] for line in lines if "loss" in line]

    both = run("both", prefix_steps=2)
    return both, run("baseline", kind="autoregressive"), text.pad_id, batch_at


def test_the_first_steps_are_those_of_the_baseline_bit_for_bit(runs):
    (*_, both), (*_, baseline), *_ = runs
    assert both[:2] == baseline[:2]
    assert abs(both[2] - baseline[2]) > 1e-3


def test_the_next_step_is_the_diffusions_from_the_same_weights(runs):
    (config, vocab, folder, losses), _, pad_id, batch_at = runs
    _, loss_fn = train_diffusion.make_objective(config, vocab, pad_id)
    saved = checkpoints.Checkpoints(folder / "checkpoints")
    manifest = saved._manifest(2)["arrays"]
    state, _ = saved.restore({name: np.zeros(s, d) for name, (s, d) in manifest.items()}, 2)
    model, tx = build.make_model(config, vocab, pad_id), train_diffusion.optimiser
    tx, _ = tx.make_optimiser(config)
    shapes = jax.eval_shape(lambda: train_diffusion.create_state(model, tx, jax.random.key(0)))
    names = files_of(shapes)
    state = jax.tree.unflatten(jax.tree.structure(shapes), [state[name] for name in names])
    key = jax.random.fold_in(train_diffusion.step_key(config), 2)
    loss, _ = jax.jit(loss_fn)(state.params, state.times, key, vocab.fuse(batch_at(2)))
    assert np.isclose(float(loss), losses[2], rtol=1e-5)


def files_of(tree):
    """The names of the leaves of a state, in order, as a checkpoint has them."""
    from udd_jax.runtime import trees

    return list(trees.flatten(tree))


def test_a_finished_run_needs_no_such_start(tiny_run):
    config = build.read_config(tiny_run)
    with config.unlocked():
        config.train.prefix_steps, config.init_from = 5, str(tiny_run)
    assert turns.prefix_steps(config) == 0
    config.init_from = ""
    config.train.steps = 30
    assert turns.prefix_steps(config) == 5
    config.train.steps = 6  # a short training learns the diffusion, too
    assert turns.prefix_steps(config) == 4
    turn = turns.of(config, [1])
    assert [turn(step)[1] for step in (3, 4)] == [True, False]


def test_a_network_that_the_baseline_does_not_have_is_refused_before_any_stage(tiny_run):
    from configs import t2i

    config = t2i.get_config("smoke")
    config.model.block_attention = True
    with pytest.raises(ValueError, match=r"train\.prefix_steps = 10, expected 0 for this network"):
        stages.check(config)
    config.train.prefix_steps = 0
    stages.check(config)
    config.train.prefix_share = 0.5
    with pytest.raises(
        ValueError, match=r"train\.prefix_share = 0\.5, expected 0 for this network"
    ):
        stages.check(config)


def test_prefixes_keep_their_share_of_the_later_steps_in_every_part(tiny_run):
    """Of 6000 steps, a quarter; also of those that leave a modality out. Without a share, none."""
    config = build.read_config(tiny_run)
    with config.unlocked():
        config.model.absent = "left_out"
        config.train.mixture = {"pair": 0.6, "text": 0.4}
        config.train.update({"prefix_steps": 2, "prefix_share": 0.25})
    vocab = build.make_vocab(config, build.load_tokenizers(tiny_run))
    _, loss_at = train_diffusion.objectives(config, vocab, 0)
    later = [loss_at(step) for step in range(2, 6002)]
    counts = sorted(later.count(f) for f in set(later))
    np.testing.assert_allclose(np.array(counts) / 6000, [0.1, 0.15, 0.3, 0.45], atol=0.01)
    assert {loss_at(0), loss_at(1)} < set(later)
    config.train.prefix_share = 0.0
    _, loss_at = train_diffusion.objectives(config, vocab, 0)
    later = {loss_at(step) for step in range(2, 6002)}
    assert len(later) == 2 and not later & {loss_at(0), loss_at(1)}


def test_where_both_losses_go_on_a_token_weighs_alike_in_them(tiny_run):
    """The auxiliary loss weighs -log p by lambda T, in the mean over the times, the bound by 1."""
    config = build.read_config(tiny_run)
    tokenizers = build.load_tokenizers(tiny_run)
    vocab, params = build.make_vocab(config, tokenizers), build.load_weights(tiny_run)
    rng, found = np.random.default_rng(0), []
    x0 = vocab.fuse({m.name: rng.integers(0, m.classes, (4, m.length)) for m in vocab.modalities})
    for share in (0.0, 0.5):
        with config.unlocked():
            config.train.update({"prefix_steps": 1, "prefix_share": share})
        _, loss_at = train_diffusion.objectives(config, vocab, 0)
        loss, (metrics, _) = jax.jit(loss_at(0))(params, None, jax.random.key(0), x0)
        assert metrics["loss"] == loss
        found.append(float(loss))
    assert found[1] == pytest.approx(
        (1 + config.train.auxiliary * config.diffusion.steps) * found[0]
    )
