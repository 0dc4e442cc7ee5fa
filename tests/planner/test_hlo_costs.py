"""Costs read from compiled programs, against counts by hand and XLA's own analysis."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gvm_jax.planner.hlo import Shape, parse, shapes_of
from gvm_jax.planner.hlo_costs import program_costs

N = 64
MATRIX = jax.ShapeDtypeStruct((N, N), jnp.float32)


def costs(function, *arguments, trips=1, **options):
    return program_costs(parse(jax.jit(function, **options).lower(*arguments).compile().as_text()), 4, trips)


def test_a_scan_counts_as_often_as_it_runs():
    def inner(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=5)[0]

    assert costs(inner, MATRIX, MATRIX).flops == 5 * 2 * N**3
    nested = costs(lambda x, w: jax.lax.fori_loop(2, 9, lambda i, x: inner(x, w), x), MATRIX, MATRIX)
    assert nested.flops == 7 * 5 * 2 * N**3


def test_a_loop_whose_end_depends_on_data_gets_the_count_it_is_given():
    def until_small(x):
        return jax.lax.while_loop(lambda x: jnp.abs(x).max() > 1, lambda x: x @ x, x)

    found = costs(until_small, MATRIX, trips=3)
    assert found.flops == 3 * 2 * N**3


def test_the_dearest_branch_counts():
    def choose(x, which):
        return jax.lax.switch(which, [lambda x: x, lambda x: jnp.tanh(x @ x) @ x, lambda x: x @ x], x)

    assert costs(choose, MATRIX, jax.ShapeDtypeStruct((), jnp.int32)).flops == 2 * 2 * N**3


def test_operations_and_traffic_without_loops_are_xlas():
    compiled = jax.jit(lambda x, w: (x @ w) @ w).lower(MATRIX, MATRIX).compile()
    found, xla = program_costs(parse(compiled.as_text()), 1), compiled.cost_analysis()
    assert found.flops == pytest.approx(xla["flops"], rel=0.01)
    assert found.bytes == pytest.approx(xla["bytes accessed"], rel=0.01)


def test_of_a_slice_and_of_an_update_the_part_counts():
    big = jax.ShapeDtypeStruct((1000, N), jnp.float32)

    def update(x, row, i):
        return jax.lax.dynamic_update_slice(x, row, (i, 0))

    row, index = jax.ShapeDtypeStruct((1, N), jnp.float32), jax.ShapeDtypeStruct((), jnp.int32)
    assert costs(update, big, row, index, donate_argnums=0).bytes < 10 * 4 * N
    read = costs(lambda x, i: 2 * jax.lax.dynamic_slice(x, (i, 0), (1, N)), big, index)
    assert read.bytes < 10 * 4 * N


def test_collectives_are_found_with_their_sizes(test_mesh):
    mesh = test_mesh(fsdp=4)
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("fsdp",), ()))

    def gathered(x):
        return jax.lax.with_sharding_constraint(jax.lax.with_sharding_constraint(x * 2, split), whole)

    (gather,) = costs(gathered, jax.ShapeDtypeStruct((8, N), jnp.float32, sharding=split)).collectives
    assert (gather.kind, gather.group, gather.bytes, gather.count) == ("all-gather", 4, 8 * N * 4, 1)
    assert gather.ring_bytes == 8 * N * 4 * 3 / 4
    summed = jax.jit(lambda x: jax.lax.scan(lambda c, _: (c + x.sum(0), None), jnp.zeros(N), None, length=3)[0])
    lowered = summed.lower(jax.ShapeDtypeStruct((8, N), jnp.float32, sharding=split)).compile()
    reduce = program_costs(parse(lowered.as_text()), 4).collectives[0]
    assert (reduce.kind, reduce.bytes) == ("all-reduce", N * 4)
    assert reduce.ring_bytes == reduce.count * 2 * N * 4 * 3 / 4


TPU = """HloModule jit_f, is_scheduled=true

%start_of_chain (p: bf16[4,8]) -> (bf16[4,8], bf16[16,8]) {
  %p = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %c = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) custom-call(%all-gather.1), custom_call_target="AsyncStart"
}

%async_collective_fusion.2 (p: bf16[4,8], q: f32[8,8]) -> f32[8,8] {
  %p = bf16[4,8]{1,0} parameter(0)
  %q = f32[8,8]{1,0} parameter(1)
  %all-gather.2 = bf16[16,8]{1,0} all-gather(%p), channel_id=7, \
replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %convolution.1 = f32[8,8]{1,0} convolution(%q, %q), dim_labels=bf_io->bf
}

%body (s: (s32[], bf16[4,8], f32[8,8])) -> (s32[], bf16[4,8], f32[8,8]) {
  %s = (s32[]{:T(128)}, bf16[4,8]{1,0}, /*index=2*/f32[8,8]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = bf16[4,8]{1,0} get-tuple-element(%s), index=1
  %y = f32[8,8]{1,0} get-tuple-element(%s), index=2
  %async-collective-start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}) fusion(%x), kind=kCustom, calls=%start_of_chain
  %fusion.2 = f32[8,8]{1,0} fusion(%x, %y), kind=kCustom, calls=%async_collective_fusion.2
  ROOT %t = (s32[]{:T(128)}, bf16[4,8]{1,0}, f32[8,8]{1,0}) tuple(%next, %x, %fusion.2)
}

%condition (s: (s32[], bf16[4,8], f32[8,8])) -> pred[] {
  %s = (s32[]{:T(128)}, bf16[4,8]{1,0}, f32[8,8]{1,0}) parameter(0)
  %end = s32[]{:T(128)} constant(10)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT
}

ENTRY %main (a: bf16[4,8], b: f32[8,8]) -> f32[8,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  %b = f32[8,8]{1,0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %t = (s32[]{:T(128)}, bf16[4,8]{1,0}, f32[8,8]{1,0}) tuple(%zero, %a, %b)
  %while = (s32[]{:T(128)}, bf16[4,8]{1,0}, f32[8,8]{1,0}) while(%t), condition=%condition, body=%body
  ROOT %r = f32[8,8]{1,0} get-tuple-element(%while), index=2
}
"""


def test_the_text_of_a_tpus_program_is_read():
    """The loop steps by two; the collective is spread over two fusions and counts once a turn."""
    found = program_costs(parse(TPU), 8)
    assert found.flops == 5 * 2 * 8**3
    (gather,) = found.collectives
    assert (gather.group, gather.bytes, gather.count) == (4, 16 * 8 * 2, 5)


def test_batched_products_in_a_convolutions_form_count_once():
    """A product for each of 8 rows, as the TPU's compiler writes it: window positions between rows meet nothing."""
    text = """HloModule m

ENTRY %main (a: f32[8,50,32], b: f32[8,74,32]) -> f32[8,50,74] {
  %a = f32[8,50,32]{2,1,0} parameter(0)
  %b = f32[8,74,32]{2,1,0} parameter(1)
  ROOT %c = f32[8,50,74]{2,1,0} convolution(%a, %b), window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0oi->0bf
}
"""
    assert program_costs(parse(text), 1).flops == 8 * 2 * 50 * 74 * 32


def test_on_chip_arrays_are_told_apart():
    shapes = shapes_of("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0:T(128)(2,1)S(1)}, s4[8]{0}, pred[])")
    assert shapes == (Shape("f32", (2, 3)), Shape("bf16", (4,), False), Shape("s4", (8,)), Shape("pred", ()))
    assert [shape.bytes for shape in shapes] == [24, 8, 8, 1]


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        parse("HloModule empty")
