"""Claims about compiling for machines that are not there: it runs, and says what is wrong."""

import importlib.util
import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from jax.experimental import topologies

from configs import t2i
from udd_jax.runtime import sharding

PATH = pathlib.Path(__file__).parent.parent / "launch" / "compile_ahead.py"


@pytest.fixture(scope="module")
def ahead():
    spec = importlib.util.spec_from_file_location("compile_ahead", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def needs_compiler():
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        pytest.skip("libtpu is not installed")


def test_bad_topologies_are_one_line(ahead):
    for topology in ("v9:2x2", "v5e", "v5e:2"):
        with pytest.raises(ValueError, match="expected one of v4, v5e, v5p, v6e"):
            ahead.make_mesh(topology, -1, 1)


def test_without_its_compiler_the_command_ends_with_one_line_that_installs_it(ahead, monkeypatch):
    asked = {"config": t2i.get_config("smoke"), "topology": "v5e:2x2", "program": "train"}
    monkeypatch.setattr(ahead.flags, "FLAGS", types.SimpleNamespace(**asked, text=None, row=False))
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(SystemExit, match=r'^error: libtpu.* pip install -e "\.\[tpu\]"$') as end:
        ahead.main([])
    assert isinstance(end.value.code, str)  # which Python prints, and exits with 1


@pytest.mark.parametrize("topology", ["v4:2x2x2", "v5e:4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8"])
def test_the_hosts_of_a_slice_read_equal_slices_of_a_batch(ahead, monkeypatch, topology):
    needs_compiler()
    monkeypatch.setattr(jax, "process_count", lambda: 2)  # more than one
    for model in (1, 2, 4):
        mesh = ahead.make_mesh(topology, -1, model)
        hosts, found = sorted({chip.process_index for chip in mesh.devices.flat}), []
        for host in hosts:
            monkeypatch.setattr(jax, "process_index", lambda host=host: host)
            found.append(sharding.process_share(mesh))
        counts = {count for _, count in found}
        assert len(counts) == 1 and {index for index, _ in found} == {*range(*counts)}


def test_two_slices_share_the_axis_of_the_data():
    needs_compiler()
    both = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=2)
    mesh = sharding.arranged(both.devices, 8, 2)
    assert [row[0].slice_index for row in mesh.devices] == [0] * 4 + [1] * 4
    with pytest.raises(ValueError, match=r"mesh.data = 1 is not a multiple of the 2 slices"):
        sharding.arranged(both.devices, 1, 16)


def test_gathered_logits_are_noticed(ahead):
    from udd_jax.diffusion import vocab

    tokens = vocab.image_text((4, 4), image_classes=48, text_classes=96, text_length=6)
    for shape in ("(8, 16, 48)", "(128, 48)", "(48, 128)", "(8, 6, 96)"):
        assert ahead.gathers_logits(f"all-gather of ('f32', {shape})", tokens, 32)
        assert not ahead.gathers_logits(f"all-reduce of ('f32', {shape})", tokens, 32)
    for shape in ("(32, 48)", "(96,)", "(145, 32)", "(2, 32, 128)"):
        assert not ahead.gathers_logits(f"all-gather of ('f32', {shape})", tokens, 32)


def test_a_step_of_full_size_sounds_is_traced(ahead):
    """As it is for a slice; no array of it is made."""
    from configs import sound

    config = sound.get_config()
    step, arguments = ahead.train_program(config, sharding.make_mesh(data=4, model=2))
    batch = {name: rows.shape for name, rows in arguments[1].items()}
    assert batch == {"image": (64, 1), "sound": (64, 265), "text": (64, 77)}
    _, metrics = jax.eval_shape(step, *arguments)
    assert {"loss", "sound_nll", "text_nll"} <= set(metrics)


def test_the_sampler_of_full_size_sounds_is_traced(ahead):
    from configs import sound

    config = sound.get_config()
    program, arguments = ahead.sample_program(config, sharding.make_mesh(data=4, model=2))
    tokens = jax.eval_shape(program, *arguments)
    assert (tokens.shape, tokens.dtype) == ((config.evaluate.batch_size, 1 + 265 + 77), "int32")


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"sampler": "maskgit", "steps": 12}, 12),
        ({"sampler": "ancestral", "steps": 0}, 100),  # as many as the times of the run
        ({"sampler": "first_hitting", "steps": 25}, 29),  # one position of 16 + 13 a call
        ({"sampler": "best_first", "steps": 25, "group": 4}, 8),
    ],
)
def test_a_chain_has_as_many_calls_as_its_sampler_makes(ahead, changes, count):
    config = t2i.get_config()
    config.sample.update(changes)
    assert ahead.calls(config, ahead.plan.vocab_of(config)) == count


@pytest.mark.parametrize("sampler", ["threshold", "entropy_bounded", "autoregressive"])
def test_a_sampler_whose_calls_the_samples_decide_is_refused(ahead, sampler):
    config = t2i.get_config()
    config.sample.sampler = sampler
    with pytest.raises(ValueError, match=f"sample.sampler = '{sampler}' has no number of network "):
        ahead.calls(config, ahead.plan.vocab_of(config))


def test_a_program_that_is_too_large_is_one_line(ahead):
    def lowered(text):
        def compile():
            raise jax.errors.JaxRuntimeError(text)

        return types.SimpleNamespace(compile=compile)

    text = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 71.9G.\nand more"
    message = (
        r"^the program DOES NOT FIT into the 16 GiB of a device: lower --config.train.batch_size or"
        r".*\. The compiler says: RESOURCE_EXHAUSTED: .* Used 71.9G.$"
    )
    with pytest.raises(ValueError, match=message):
        ahead.compile_for(lowered(text), 16, "train.batch_size")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        ahead.compile_for(lowered("INTERNAL: a fault"), 16, "train.batch_size")


def test_of_steps_that_leave_out_something_the_largest_is_compiled(ahead, monkeypatch):
    config, seen = t2i.get_config("emoji"), {}
    vocab = ahead.plan.vocab_of(config)
    parts = ahead.turns.parts(config, vocab)
    assert len(parts) > 1 and ahead.largest(config, vocab) == ((), parts[()])
    config.train.mixture = {"text": 0.6, "image": 0.4}
    assert ahead.largest(config, vocab) == (("text",), {"image": 0.4})  # 64 codes, fewer pieces

    def make(config, vocab, pad_id, **asked):
        seen.update(asked)
        raise LookupError

    monkeypatch.setattr(ahead.train_diffusion, "make_objective", make)
    with pytest.raises(LookupError):
        ahead.train_program(config, None)
    assert seen == {"mixture": {"image": 0.4}, "without": ("text",)}


def test_the_report_says_what_its_time_is_of(ahead):
    result = dict.fromkeys(("devices", "batch", "used", "state", "memory", "flops", "moved"), 1)
    result |= {"mesh": "1 x 1", "collectives": {}, "largest": [], "times": {"FLOPs": 0.25}}
    result |= {"bound": 0.25, "mfu": 0.5, "rematerialised": 0, "logits_gathered": [], "seconds": 1}
    chain = result | {"of": "a chain of 29 calls", "steps": 1, "without": ()}
    assert "250.0 ms a chain of 29 calls (FLOPs 250.0 ms)" in ahead.describe(chain)
    assert "kinds" not in ahead.describe(chain)
    step = result | {"of": "a step", "steps": 3, "without": ("text",)}
    said = ahead.describe(step)
    assert "250.0 ms a step" in said and "the largest of 3 kinds: without text\n" in said


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "sample"])
def test_smoke_size_compiles_for_a_slice(program):
    needs_compiler()
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = str(PATH.parent.parent)
    done = subprocess.run(
        [sys.executable, str(PATH), "--config=configs/t2i.py:smoke", "--topology=v5e:2x2",
         "--config.mesh.model=2", f"--program={program}",
         "--config.vq.model.n_embed=80"],  # 64 is how wide a layer of the MLP is
        cwd=PATH.parent.parent, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 x 2 (data x model), 4 devices" in done.stdout and ": fits" in done.stdout
    assert "all-reduce" in done.stdout
    assert " 0 involuntary full rematerialisations, 0 all-gathers of logits" in done.stdout


@pytest.mark.parametrize("name", ["matching", "vectors"])
def test_terms_and_features_have_their_parameters_and_their_numbers(ahead, name):
    from configs import any as any_config
    from configs import t2i

    config = t2i.get_config() if name == "matching" else any_config.get_config("vectors")
    config.train.update({"matching": 0.1} if name == "matching" else {})
    step, arguments = ahead.train_program(config, sharding.make_mesh(data=4, model=2))
    if name == "vectors":
        assert arguments[1]["vectors"].shape == (config.train.batch_size, 2, 16)
    jax.eval_shape(step, *arguments)
