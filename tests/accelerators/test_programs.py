"""The count of a compiled program: on programs written by hand, whose bytes are known, and on compiled ones."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxnn.accelerators import hlo, loops, programs

K = 1024
SQUARE = 64 * 64 * 4  # bytes of f32[64,64]


def counted(text, platform="cuda"):
    return programs.facts_of_text(f"HloModule test\n\n{text}", platform)


def compiled(f, *shapes, dtype=jnp.float32):
    args = [jax.ShapeDtypeStruct(s, dtype) if isinstance(s, tuple) else s for s in shapes]
    return jax.jit(f).lower(*args).compile()


def array(text):
    return hlo.parse(f"ENTRY %e (x: f32[]) -> f32[] {{\n  ROOT %x = {text} parameter(0)\n}}").entry.root.arrays


@pytest.mark.parametrize(
    "shape, nbytes, space",
    [
        ("f32[3,5]{1,0}", 60, 0),
        ("f32[]", 4, 0),
        ("bf16[3,5]{0,1}", 30, 0),
        ("pred[7]{0}", 7, 0),
        ("u4[3]{0:E(4)}", 2, 0),
        ("f32[9,64]{1,0:T(8,128)}", 16 * 128 * 4, 0),
        ("f32[9,64]{0,1:T(8,128)}", 64 * 128 * 4, 0),  # the rows lie along the lanes
        ("bf16[9,64]{1,0:T(8,128)(2,1)S(1)}", 16 * 128 * 2, 1),
        ("f32[3,3,32,64]{3,2,1,0:T(8,128)S(1)SC(0:2)}", 9 * 32 * 128 * 4, 1),  # copied in parts
        ("s32[]{:T(128)S(6)}", 512, 6),
        ("pred[24]{0:T(512)(128)(4,1)}", 512, 0),
        ("f32[<=8,3]{1,0}", 96, 0),
        ("token[]", 0, 0),
    ],
)
def test_the_bytes_of_an_array_are_those_of_its_tiles(shape, nbytes, space):
    assert [(a.nbytes, a.space) for a in array(shape)] == [(nbytes, space)]


def test_a_tuple_has_the_arrays_of_its_elements_and_comments_do_not_count():
    arrays = array("((f32[2]{0}, s8[3]{0}), /*index=1*/(), pred[4]{0})")
    assert [a.nbytes for a in arrays] == [8, 3, 4]


@pytest.mark.parametrize(
    "line, message",
    [
        ("ROOT %x = f33[2]{0} parameter(0)", "a shape"),
        ("ROOT %x = f32[2]{0:Q(3)} parameter(0)", "a layout"),
        ("ROOT %x = f32[2]{0:T(*,128)} parameter(0)", "a layout"),
        ("ROOT %x : f32[2]", "an instruction"),
        ("ROOT %x = f32[2]{0} parameter(0", "a bracket"),
        ("%x = f32[2]{0} parameter(0)", "no root"),
        ("ROOT %x = f32[2]{0} conjure()", "conjure"),
    ],
)
def test_what_is_not_understood_is_refused(line, message):
    with pytest.raises(hlo.UnknownProgram, match=message):
        counted(f"ENTRY %e (x: f32[2]) -> f32[2] {{\n  {line}\n}}")


def test_a_text_without_a_program_is_refused():
    with pytest.raises(hlo.UnknownProgram, match="no entry"):
        counted("")


ELEMENTWISE = """
ENTRY %e (x: f32[64,64], y: f32[64,64]) -> (f32[64,64], f32[64,64]) {
  %x = f32[64,64]{1,0} parameter(0)
  %y = f32[64,64]{1,0} parameter(1)
  %z = f32[64,64]{1,0} add(%x, %y), metadata={op_name="jit(f)/add"}
  %same = f32[4096]{0} bitcast(%z)
  ROOT %both = (f32[64,64]{1,0}, f32[64,64]{1,0}) tuple(%z, %x)
}
"""


def test_a_kernel_reads_its_operands_and_writes_its_result():
    found = counted(ELEMENTWISE)
    assert (found.bytes, found.launches, found.largest[0].source) == (3 * SQUARE, 1, "jit(f)/add")


FUSION = """
%sliced (p0: f32[64,64], p1: s32[]) -> (f32[1,64], f32[64,64]) {
  %p0 = f32[64,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  %more = f32[1,64]{1,0} exponential(%row)
  %updated = f32[64,64]{1,0} dynamic-update-slice(%p0, %more, %p1, %zero)
  ROOT %both = (f32[1,64]{1,0}, f32[64,64]{1,0}) tuple(%more, %updated)
}

ENTRY %e (x: f32[64,64], i: s32[]) -> (f32[1,64], f32[64,64]) {
  %x = f32[64,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = (f32[1,64]{1,0}, f32[64,64]{1,0}) fusion(%x, %i), kind=kLoop, calls=%sliced
}
"""


def test_a_fusion_reads_the_slices_that_it_takes_and_writes_an_update_in_place():
    kernel = counted(FUSION).kernels[0]
    assert (kernel.read, kernel.written) == (4 * 64 + 4, 2 * 4 * 64)


def test_an_update_of_what_the_fusion_makes_itself_is_no_update_in_place():
    made = "%made = f32[64,64]{1,0} negate(%p0)\n  %updated = f32[64,64]{1,0} dynamic-update-slice(%made"
    text = FUSION.replace("%updated = f32[64,64]{1,0} dynamic-update-slice(%p0", made)
    kernel = counted(text).kernels[0]
    assert (kernel.read, kernel.written) == (SQUARE + 4, 4 * 64 + SQUARE)


def test_overlapping_slices_read_an_array_once():
    slices = "%a = f32[63,64]{1,0} slice(%p), slice={[0:63], [0:64]}\n  %b = f32[63,64]{1,0} slice(%p), slice={[1:64], [0:64]}"
    text = f"""
%fused (p: f32[64,64]) -> f32[63,64] {{
  %p = f32[64,64]{{1,0}} parameter(0)
  {slices}
  ROOT %c = f32[63,64]{{1,0}} add(%a, %b)
}}

ENTRY %e (x: f32[64,64]) -> f32[63,64] {{
  %x = f32[64,64]{{1,0}} parameter(0)
  ROOT %f = f32[63,64]{{1,0}} fusion(%x), kind=kLoop, calls=%fused
}}
"""
    assert counted(text).kernels[0].read == SQUARE


UPDATES = """
ENTRY %e (x: f32[64,64], u: f32[1,64], i: s32[], k: s32[2,1], rows: f32[2,64]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %u = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %k = s32[2,1]{1,0} parameter(3)
  %rows = f32[2,64]{1,0} parameter(4)
  %taken = f32[2,64]{1,0} gather(%x, %k), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, index_vector_dim=1, slice_sizes={1,64}
  %put = f32[64,64]{1,0} dynamic-update-slice(%x, %u, %i, %i)
  ROOT %added = f32[64,64]{1,0} scatter(%put, %k, %rows), update_window_dims={1}, inserted_window_dims={0}, scatter_dims_to_operand_dims={0}, index_vector_dim=1, to_apply=%add
}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}
"""


def test_gather_reads_its_rows_and_updates_write_theirs():
    taken, put, added = counted(UPDATES).kernels
    assert (taken.read, taken.written) == (2 * 256 + 8, 2 * 256)
    assert (put.read, put.written) == (256 + 8, 256)
    assert (added.read, added.written) == (2 * 256 + 8 + 2 * 256, 2 * 256)  # adds to what is there


LOOP = """
%body (s: (s32[], f32[64,64], s32[])) -> (s32[], f32[64,64], s32[]) {
  %s = (s32[], f32[64,64]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[64,64]{1,0} get-tuple-element(%s), index=1
  %last = s32[] get-tuple-element(%s), index=2
  %step = s32[] constant(2)
  %next = s32[] add(%i, %step)
  %y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[64,64]{1,0}, s32[]) tuple(%next, %y, %last)
}

%compared (p0: s32[], p1: s32[]) -> pred[] {
  %p0 = s32[] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %lt = pred[] compare(%p0, %p1), direction=LT
}

%condition (s: (s32[], f32[64,64], s32[])) -> pred[] {
  %s = (s32[], f32[64,64]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %last = s32[] get-tuple-element(%s), index=2
  ROOT %f = pred[] fusion(%i, %last), kind=kLoop, calls=%compared
}

ENTRY %e (x: f32[64,64], n: s32[]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(1)
  %ten = s32[] constant(10)
  %first = s32[] copy(%zero)
  %start = (s32[], f32[64,64]{1,0}, s32[]) tuple(%first, %x, %ten)
  %loop = (s32[], f32[64,64]{1,0}, s32[]) while(%start), condition=%condition, body=%body
  ROOT %y = f32[64,64]{1,0} get-tuple-element(%loop), index=1
}
"""
EACH = 2 * SQUARE + SQUARE + 8 + 4 + 8 + 1  # the product, the counter's step, and the condition


def test_a_loop_counts_as_often_as_it_runs():
    found = counted(LOOP)
    assert not found.open_loops
    assert found.flops == 5 * 2 * 64**3  # 1, 3, 5, 7, 9
    assert found.bytes == 5 * EACH + 8  # and the copy of the first number
    assert found.launches == 5 * 3 + 1


@pytest.mark.parametrize(
    "change, count",
    [
        (("direction=LT", "direction=LE"), 5),
        (("constant(10)", "constant(1)"), 0),
        (("constant(10)", "constant(9)"), 4),
        (("constant(10)", "constant(9)", "direction=LT", "direction=NE"), 4),
        (("compare(%p0, %p1), direction=LT", "compare(%p1, %p0), direction=GT"), 5),
        (("add(%i, %step)", "subtract(%i, %step)", "constant(10)", "constant(-4)", "direction=LT", "direction=GE"), 3),
        (("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}'), 7),
    ],
)
def test_how_often_a_loop_runs(change, count):
    text = LOOP
    for old, new in zip(change[::2], change[1::2], strict=True):
        text = text.replace(old, new)
    found = counted(text)
    assert not found.open_loops and found.flops == count * 2 * 64**3


@pytest.mark.parametrize(
    "old, new",
    [
        ("tuple(%first, %x, %ten)", "tuple(%first, %x, %n)"),  # the length is an argument
        ("tuple(%next, %y, %last)", "tuple(%next, %y, %next)"),  # it changes
        ("add(%i, %step)", "multiply(%i, %step)"),
        ("direction=LT", "direction=EQ"),
        ("direction=LT", "direction=GT"),  # it never ends, or never begins
    ],
)
def test_a_loop_of_unknown_length_counts_once_and_is_named(old, new):
    found = counted(LOOP.replace(old, new))
    assert found.open_loops == ("loop",) and found.flops == 2 * 64**3
    turn = found.of_a_turn()
    assert (turn.flops, turn.launches) == (found.flops, found.launches - 1), "without the copy before the loop"
    assert turn.bytes == found.bytes - 8


def test_the_branch_that_moves_most_counts_and_calls_are_followed():
    text = """
%little (p: f32[64,64]) -> f32[64] {
  %p = f32[64,64]{1,0} parameter(0)
  ROOT %r = f32[64]{0} slice(%p), slice={[0:1], [0:64]}
}

%much (q: f32[64,64]) -> f32[64] {
  %q = f32[64,64]{1,0} parameter(0)
  %z = f32[] constant(0)
  ROOT %r = f32[64]{0} reduce(%q, %z), dimensions={0}, to_apply=%add
}

ENTRY %e (x: f32[64,64], i: s32[]) -> f32[64] {
  %x = f32[64,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %one = f32[64]{0} conditional(%i, %x, %x), branch_computations={%little, %much}
  ROOT %two = f32[64]{0} call(%x), to_apply=%little
}
"""
    assert counted(text).bytes == (SQUARE + 4 + 256) + 2 * 256


COLLECTIVES = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %e (x: f32[9,64], y: f32[4]) -> (f32[9,64], f32[36,64]) {
  %x = f32[9,64]{1,0:T(8,128)} parameter(0)
  %y = f32[4]{0:T(128)} parameter(1)
  %start = (f32[9,64]{1,0:T(8,128)}, f32[4]{0:T(128)}) all-reduce-start(%x, %y), replica_groups={{0,1,2,3}}, to_apply=%add
  %done = (f32[9,64]{1,0:T(8,128)}, f32[4]{0:T(128)}) all-reduce-done(%start)
  %sum = f32[9,64]{1,0:T(8,128)} get-tuple-element(%done), index=0
  %all = f32[36,64]{1,0:T(8,128)} all-gather(%sum), replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %both = (f32[9,64]{1,0:T(8,128)}, f32[36,64]{1,0:T(8,128)}) tuple(%sum, %all)
}
"""


def test_collectives_are_listed_with_their_bytes_without_padding():
    found = counted(COLLECTIVES, "tpu").collectives
    assert [(c.kind, c.bytes, c.in_loop) for c in found] == [
        ("all-reduce", 4 * (9 * 64 + 4), False),
        ("all-gather", 4 * 9 * 64, False),
    ]


def test_a_collective_in_a_loop_is_said_to_be_in_one():
    text = LOOP.replace(
        "dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}", "all-reduce(%x), to_apply=%add"
    )
    (found,) = counted(text).collectives
    assert found == programs.Collective("all-reduce", SQUARE, 5, True)


ASYNC = """
ENTRY %e (x: f32[64,64]) -> f32[64,64] {
  %x = f32[64,64]{1,0} parameter(0)
  %start = (f32[64,64]{1,0:S(1)}, f32[64,64]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %done = f32[64,64]{1,0:S(1)} copy-done(%start)
  %part = ((f32[64,64]{1,0}), f32[8,64]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8], [0:64]}
  %parted = f32[8,64]{1,0:S(1)} slice-done(%part)
  ROOT %y = f32[64,64]{1,0} negate(%done)
}
"""


def test_copies_into_the_chips_own_memory_move_bytes_of_the_main_memory_once():
    found = counted(ASYNC, "tpu")
    assert found.bytes == 2 * SQUARE + 2 * 8 * 256 + 2 * SQUARE
    assert found.main_bytes == SQUARE + 8 * 256 + SQUARE
    assert counted(ASYNC.replace("slice-done", "slice-update"), "tpu") == found
    assert counted(ASYNC, "cuda").main_bytes == found.bytes  # its space 1 is a part of the main memory


@pytest.mark.parametrize(
    "f, shapes, flops",
    [
        (lambda a, b: a @ b, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), [(2, 3, 5), (2, 5, 7)], 2 * 2 * 3 * 5 * 7),
        (lambda a, b: jnp.concatenate([a @ b, a @ b + 1]), [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
        (lambda a, b: a + b, [(3, 5), (3, 5)], 0),
    ],
)
def test_products_count_two_operations_for_each_multiplication(f, shapes, flops):
    assert programs.facts(compiled(f, *shapes), "cpu").flops in (flops, 2 * flops)  # a CPU may repeat what is small


CONVOLUTION = """
ENTRY %e (x: f32[2,5,5,3], w: f32[3,3,3,7]) -> f32[2,{size},{size},7] {{
  %x = f32[2,5,5,3]{{3,2,1,0}} parameter(0)
  %w = f32[3,3,3,7]{{3,2,1,0}} parameter(1)
  ROOT %y = f32[2,{size},{size},7]{{3,2,1,0}} convolution(%x, %w), window={{size=3x3{window}}}, dim_labels=b01f_01io->b01f
}}
"""


@pytest.mark.parametrize(
    "window, size, pairs",
    [
        ("", 3, 9),
        (" pad=1_1x1_1", 5, 13),  # 2 + 3 + 3 + 3 + 2
        (" pad=1_1x1_1 stride=2x2", 3, 7),
        (" pad=2_2x2_2 lhs_dilate=2x2", 11, 15),  # each of 5 numbers meets 3 weights
        (" rhs_dilate=2x2", 1, 3),
        (" pad=2_2x2_2 rhs_reversal=1x1", 7, 15),
    ],
)
def test_a_convolution_leaves_out_the_zeros_of_its_padding(window, size, pairs):
    assert counted(CONVOLUTION.format(window=window, size=size)).flops == 2 * 2 * 3 * 7 * pairs**2


def test_the_products_of_a_library_are_counted_and_an_unknown_kernel_is_named():
    text = """
ENTRY %e (x: f32[4,8], w: f32[16,8]) -> f32[4] {
  %x = f32[4,8]{1,0} parameter(0)
  %w = f32[16,8]{1,0} parameter(1)
  %p = (f32[4,16]{1,0}, s8[0]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %y = f32[4,16]{1,0} get-tuple-element(%p), index=0
  ROOT %z = f32[4]{0} custom-call(%y), custom_call_target="somebodys_kernel"
}
"""
    found = counted(text.replace('["1"]', "[1]").replace("[1]", '["1"]'))
    assert (found.flops, found.opaque) == (2 * 4 * 16 * 8, ("z",))


@pytest.mark.parametrize(
    "kind, shapes",
    [
        ("Forward", ("2,5,5,3", "3,3,3,7", "2,3,3,7")),
        ("BackwardInput", ("2,3,3,7", "3,3,3,7", "2,5,5,3")),
        ("BackwardFilter", ("2,5,5,3", "2,3,3,7", "3,3,3,7")),
    ],
)
def test_cudnns_three_convolutions_count_alike(kind, shapes):
    a, b, y = shapes
    text = f"""
ENTRY %e (x: f32[{a}], w: f32[{b}]) -> f32[{y}] {{
  %x = f32[{a}]{{3,2,1,0}} parameter(0)
  %w = f32[{b}]{{3,2,1,0}} parameter(1)
  %r = (f32[{y}]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %w), window={{size=3x3}}, dim_labels=b01f_01io->b01f, custom_call_target="__cudnn$conv{kind}"
  ROOT %z = f32[{y}]{{3,2,1,0}} get-tuple-element(%r), index=0
}}
"""
    assert counted(text).flops == 2 * 2 * 3 * 7 * 81


def test_a_scan_that_is_compiled_here_counts_its_trips():
    def f(x):
        return lax.scan(lambda c, _: (jnp.sin(c @ c), c[0, 0]), x, None, length=6)

    found = programs.facts(compiled(f, (32, 32)), "cpu")
    assert found.flops == 6 * 2 * 32**3 and not found.open_loops


def test_a_loop_whose_length_is_an_argument_is_open():
    def f(x, n):
        return lax.while_loop(lambda c: c[1] < n, lambda c: (jnp.sin(c[0] @ c[0]), c[1] + 1), (x, 0))

    found = programs.facts(compiled(f, (32, 32), jax.ShapeDtypeStruct((), jnp.int32)), "cpu")
    assert found.flops == 2 * 32**3 and len(found.open_loops) == 1


def test_memory_is_what_lives_at_once():
    @functools.partial(jax.jit, donate_argnums=0)
    def f(x):
        return x + 1

    found = programs.facts(f.lower(jax.ShapeDtypeStruct((K, K), jnp.float32)).compile(), "cpu")
    assert found.memory - found.temporary_bytes == 4 * K * K


def test_a_counter_that_goes_away_from_its_end_has_no_count():
    assert loops._count("NE", 0, 10, 2) == 5 and loops._count("NE", 0, 10, -2) is None
