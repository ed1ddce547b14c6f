"""Claims about counting: what a program computes, moves and sends, no more and no less."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from udd_jax.runtime import costs, sharding


def layers(x, weights):
    """Five products whose inner dimension is split over `model`: five sums over it."""

    def layer(x, w):
        y = sharding.constrain(x @ w, "data", None)
        return sharding.constrain(jnp.tanh(y), "data", "model"), None

    return jax.lax.scan(layer, x, weights)[0]


def test_flops_are_the_matrix_products_times_the_loops():
    x, weights = jnp.zeros((4, 8)), jnp.zeros((5, 8, 8))
    jaxpr = jax.make_jaxpr(layers)(x, weights)
    assert costs.flops(jaxpr.jaxpr, 1) == 5 * 2 * 4 * 8 * 8
    grad = jax.make_jaxpr(jax.grad(lambda x, w: layers(x, w).sum(), argnums=(0, 1)))(x, weights)
    assert costs.flops(grad.jaxpr, 1) == 3 * 5 * 2 * 4 * 8 * 8

    def forever(x):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ weights[0], x)

    assert costs.flops(jax.make_jaxpr(forever)(x).jaxpr, 7) == 7 * 2 * 4 * 8 * 8


def test_collectives_in_a_loop_count_as_often_as_it_runs():
    mesh = sharding.make_mesh(2, 4)
    with sharding.use(mesh):
        x = jax.ShapeDtypeStruct(
            (4, 8), jnp.float32, sharding=NamedSharding(mesh, P("data", "model"))
        )
        weights = jax.ShapeDtypeStruct(
            (5, 8, 8), jnp.float32, sharding=NamedSharding(mesh, P(None, "model", None))
        )
        hlo = jax.jit(layers).lower(x, weights).compile().as_text()
    moved, kinds, largest = costs.traffic(hlo)
    count, size = kinds["all-reduce"]
    assert count == 5 and size == 5 * 2 * 8 * 4  # [4 / 2, 8] float32, five times
    assert largest[0][0].startswith("all-reduce of ('f32', (2, 8))")
    assert moved > 5 * (2 * 8 * 4 + 2 * 2 * 4 + 2 * 8 * 4)  # a layer's weights, input and output


def test_a_loop_runs_as_often_as_its_text_or_its_condition_says():
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

%unsigned (u: (f32[4], u32[])) -> pred[] {
  %u = (f32[4], u32[]) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%u), index=1
  %m = u32[]{:T(128)} constant(7)
  ROOT %fewer = pred[] compare(%j, %m), direction=LT
}

%by_twos (b: (f32[4], u32[])) -> (f32[4], u32[]) {
  %b = (f32[4], u32[]) parameter(0)
  %x = f32[4] get-tuple-element(%b), index=0
  %k = u32[]{:T(128)} get-tuple-element(%b), index=1
  %one = u32[]{:T(128)} constant(1)
  %two = u32[]{:T(128)} constant(2)
  %other = u32[]{:T(128)} add(%k, %one)
  %next = u32[]{:T(128)} add(%k, %two)
  ROOT %both = (f32[4], u32[]) tuple(%x, %next)
}
"""
    computations, _ = costs.parse(hlo)
    count = lambda rest: costs.trips(rest, computations, 100)  # noqa: E731
    assert (
        count('%t), condition=%open, body=%b, backend_config={"known_trip_count":{"n":"20"}}') == 20
    )
    assert count("%t), condition=%bounded, body=%b") == 8
    assert count("%t), condition=%hidden, body=%b") == 8
    assert count("%t), condition=%open, body=%b") == 100
    assert count("%t), condition=%unsigned, body=%by_twos") == 4


def moved(instructions: str, more: str = "") -> float:
    return costs.traffic(f"{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{instructions}\n}}").moved


def test_what_stays_in_the_core_costs_nothing():
    text = """
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  %start = (f32[8,4]{1,0:T(8,128)S(1)}, f32[8,4]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p)
  %near = f32[8,4]{1,0:T(8,128)S(1)} copy-done(%start)
  %twice = f32[8,4]{1,0:T(8,128)S(1)} add(%near, %near)
"""
    assert moved(text) == 8 * 4 * 4  # read once; the sum happens in the core
    out = text + "  ROOT %out = f32[8,4]{1,0:T(8,128)} multiply(%twice, %near)"
    assert moved(out) == 2 * 8 * 4 * 4


def test_of_what_is_sliced_the_slice_counts_and_of_an_update_the_update():
    text = """
  %p = f32[8,4]{1,0} parameter(0)
  %some = f32[2,4]{1,0} slice(%p), slice={[0:2], [0:4]}
  %start = ((f32[8,4]{1,0}), f32[2,4]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[2:4]}
  %near = f32[2,4]{1,0:S(1)} slice-done(%start)
"""
    assert moved(text) == (2 + 1) * 2 * 4 * 4  # read and written; read
    fused = """
%body (a: f32[8,4], b: f32[1,4], i: s32[]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %u = f32[8,4]{1,0} dynamic-update-slice(%a, %b, %i, %i)
}
"""
    text = """
  %p = f32[8,4]{1,0} parameter(0)
  %q = f32[1,4]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[8,4]{1,0} fusion(%p, %q, %i), kind=kLoop, calls=%body
"""
    assert moved(text, fused) == 2 * 1 * 4 * 4 + 4  # the row is read and written; the index


def test_collectives_of_several_arrays_count_all_of_them_and_two_sided_ones_one_side():
    hlo = """
ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %q = f32[16]{0} parameter(1)
  %sum = (f32[8]{0}, f32[16]{0}) all-reduce(%p, %q), channel_id=1, to_apply=%add
  %start = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=2
  %half = f32[4]{0} reduce-scatter(%p), channel_id=3, to_apply=%add
}
"""
    kinds = costs.traffic(hlo).collectives
    assert kinds["all-reduce"] == [1, 24 * 4]
    assert kinds["collective-permute"] == [1, 8 * 4]
    assert kinds["reduce-scatter"] == [1, 8 * 4]
