"""A replayed step is the same step, and its report names the arrays that are not finite."""

import shutil

import numpy as np
import pytest

from udd_jax import build, main
from udd_jax.runtime import checkpoints, files, logbook
from udd_jax.training import replay, train_diffusion

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory):
    """A work folder, and a function that trains in it with other fields of `train`."""
    folder = tmp_path_factory.mktemp("replay")
    config = build.read_config(tiny_run)
    tokenizers = build.load_tokenizers(tiny_run)
    vocab, text = build.make_vocab(config, tokenizers), tokenizers["text"]

    def batch_at(step):
        rng = np.random.default_rng(step)
        return {
            m.name: rng.integers(0, m.classes, (8, m.length)).astype(np.int32)
            for m in vocab.modalities
        }

    def run(name, **fields):
        shutil.copytree(tiny_run, folder / name)
        config.train.update({"batch_size": 8, "log_every": 1, "save_every": 1, **fields})
        files.write_json(
            folder / name / build.CONFIG, {"config": config.to_dict(), "made_with": {}}
        )
        train_diffusion.train(config, folder / name, vocab, text.pad_id, batch_at, patience=3)

    return folder, run, batch_at


def test_a_step_taken_again_has_the_numbers_that_it_had(trained):
    folder, run, batch_at = trained
    run("good", steps=3)
    with pytest.raises(ValueError, match="no training has given up here"):
        replay.run(folder / "good")
    before = checkpoints.Checkpoints(folder / "good" / "checkpoints")
    arrays = before._manifest(2)["arrays"]
    state, _ = before.restore({name: np.zeros(s, d) for name, (s, d) in arrays.items()}, 2)
    kept = {f"state/{name}": leaf for name, leaf in state.items()}
    kept |= {f"batch/{name}": leaf for name, leaf in batch_at(2).items()}
    keeper = checkpoints.Checkpoints(folder / "good" / "replay")
    keeper.save(2, kept, {"step": 2, "ids": [4, 7]}, wait=True)
    keeper.close()
    step = replay.run(folder / "good")
    line = logbook.Logbook(folder / "good").lines()[-1]
    assert line["step"] == 3
    for name, value in step.metrics.items():
        assert np.isclose(value, line[name], rtol=1e-6), name
    said = replay.describe(step)
    assert "step 2 of the samples [4, 7]" in said
    assert "the state is finite" in said and "the gradient is finite" in said


def test_a_training_that_gave_up_is_replayed_by_a_command(trained, capsys):
    folder, run, _ = trained
    with pytest.raises(ValueError, match="not finite in 3 steps in a row, from step 2 on"):
        run("bad", steps=9, warmup=1, learning_rate=1e30)
    capsys.readouterr()  # what the training said
    main.FLAGS(["main", "--mode=replay", f"--workdir={folder / 'bad'}"])
    main.main(["main"])
    said = capsys.readouterr().out
    assert said.startswith("step 2\nloss nan") and "the state is finite" in said
    assert "not finite in the gradient: " in said
