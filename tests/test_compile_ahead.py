"""Claims about compiling for machines that are not there: the counts are right, and it runs."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from udd_jax import sharding

PATH = pathlib.Path(__file__).parent.parent / "launch" / "compile_ahead.py"


@pytest.fixture(scope="module")
def ahead():
    spec = importlib.util.spec_from_file_location("compile_ahead", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def layers(x, weights):
    """Five products whose inner dimension is split over `model`: five sums over it."""

    def layer(x, w):
        y = sharding.constrain(x @ w, "data", None)
        return sharding.constrain(jnp.tanh(y), "data", "model"), None

    return jax.lax.scan(layer, x, weights)[0]


def test_flops_are_the_matrix_products_times_the_loops(ahead):
    x, weights = jnp.zeros((4, 8)), jnp.zeros((5, 8, 8))
    jaxpr = jax.make_jaxpr(layers)(x, weights)
    assert ahead.count_flops(jaxpr.jaxpr, 1) == 5 * 2 * 4 * 8 * 8
    grad = jax.make_jaxpr(jax.grad(lambda x, w: layers(x, w).sum(), argnums=(0, 1)))(x, weights)
    assert ahead.count_flops(grad.jaxpr, 1) == 3 * 5 * 2 * 4 * 8 * 8

    def forever(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ weights[0], x)

    assert ahead.count_flops(jax.make_jaxpr(forever)(x).jaxpr, 7) == 7 * 2 * 4 * 8 * 8


def test_collectives_in_a_loop_count_as_often_as_it_runs(ahead):
    mesh = sharding.make_mesh(2, 4)
    with sharding.use(mesh):
        x = jax.ShapeDtypeStruct(
            (4, 8), jnp.float32, sharding=NamedSharding(mesh, P("data", "model"))
        )
        weights = jax.ShapeDtypeStruct(
            (5, 8, 8), jnp.float32, sharding=NamedSharding(mesh, P(None, "model", None))
        )
        hlo = jax.jit(layers).lower(x, weights).compile().as_text()
    moved, kinds, largest = ahead.count_compiled(hlo, loops=1)
    count, size = kinds["all-reduce"]
    assert count == 5 and size == 5 * 2 * 8 * 4  # [4 / 2, 8] float32, five times
    assert largest[0][0].startswith("all-reduce of ('f32', (2, 8))")
    assert moved > 5 * (2 * 8 * 4 + 2 * 2 * 4 + 2 * 8 * 4)  # a layer's weights, input and output


def test_a_loop_runs_as_often_as_its_text_or_its_condition_says(ahead):
    hlo = """
%bounded (p: (s32[])) -> pred[] {
  %p = (s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(8)
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

%hidden (q: (s32[])) -> pred[] {
  %q = (s32[]) parameter(0)
  ROOT %f = pred[] fusion(%q), kind=kLoop, calls=%bounded
}

%open (r: (pred[])) -> pred[] {
  %r = (pred[]) parameter(0)
  ROOT %go = pred[] get-tuple-element(%r), index=0
}
"""
    computations, _ = ahead.parse(hlo)
    count = lambda rest: ahead.trips(rest, computations, 100)  # noqa: E731
    assert (
        count('%t), condition=%open, body=%b, backend_config={"known_trip_count":{"n":"20"}}') == 20
    )
    assert count("%t), condition=%bounded, body=%b") == 8
    assert count("%t), condition=%hidden, body=%b") == 8
    assert count("%t), condition=%open, body=%b") == 100


def test_bad_topologies_are_one_line(ahead):
    for topology in ("v9:2x2", "v5e", "v5e:2"):
        with pytest.raises(ValueError, match="expected one of v4, v5e, v5p, v6e"):
            ahead.make_mesh(topology, -1, 1)


def test_gathered_logits_are_noticed(ahead):
    from udd_jax import vocab

    tokens = vocab.image_text((4, 4), image_classes=48, text_classes=96, text_length=6)
    for shape in ("(8, 16, 48)", "(128, 48)", "(48, 128)", "(8, 6, 96)"):
        assert ahead.gathers_logits(f"all-gather of ('f32', {shape})", tokens, 32)
        assert not ahead.gathers_logits(f"all-reduce of ('f32', {shape})", tokens, 32)
    for shape in ("(32, 48)", "(96,)", "(145, 32)", "(2, 32, 128)"):
        assert not ahead.gathers_logits(f"all-gather of ('f32', {shape})", tokens, 32)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["train", "sample"])
def test_smoke_size_compiles_for_a_slice(program):
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        pytest.skip("libtpu is not installed")
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["PYTHONPATH"] = str(PATH.parent.parent)
    done = subprocess.run(
        [sys.executable, str(PATH), "--config=configs/t2i.py:smoke", "--topology=v5e:2x2",
         "--config.mesh.model=2", f"--program={program}"],
        cwd=PATH.parent.parent, env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 x 2 (data x model), 4 devices" in done.stdout and ": fits" in done.stdout
    assert "all-reduce" in done.stdout
    assert " 0 involuntary full rematerialisations, 0 all-gathers of logits" in done.stdout
