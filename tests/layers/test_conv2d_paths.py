"""The forms of the convolution and of its weight gradient that small cases on a CPU do not reach."""

import functools
import zlib
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES

import jaxnn
from jaxnn.layers._conv2d_geometry import Geometry

module = import_module("jaxnn.layers._conv2d_cpu")

CONV = {case.id: case for case in CASES if case.f is jaxnn.conv2d}


def assert_rule(case):
    """In float64, against JAX's derivative of the definition."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(zlib.crc32(case.id.encode()))
        args = [jnp.asarray(a) for a in case.make(rng)]
        y, vjp = jax.vjp(functools.partial(case.call, case.f), *args)
        dy = jnp.asarray(rng.standard_normal(y.shape))
        expected = jax.vjp(functools.partial(case.call, case.f.definition), *args)[1](dy)
        for ours, auto in zip(vjp(dy), expected, strict=True):
            np.testing.assert_allclose(ours, auto, rtol=1e-9, atol=1e-12)


@pytest.mark.one_in(8)
@pytest.mark.parametrize("id", [id for id in CONV if "NHWC" in id or id in ("conv2d-NCHW-stride", "conv2d-NCHW-all")])
def test_the_weight_gradient_elsewhere_than_on_a_cpu(id, monkeypatch):
    """The form for GPU and TPU, run here."""
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
    assert_rule(CONV[id])


@pytest.mark.one_in(2)
@pytest.mark.parametrize("id", [f"conv2d-{id}" for id in (
    "NHWC-large-filter", "NCHW-stride", "NHWC-depthwise", "NHWC-all", "NHWC-batch-0")])  # fmt: skip
def test_the_gradients_in_blocks_of_one_sample(id, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1)
    assert_rule(CONV[id])


@pytest.mark.parametrize("check_vma", [True, False])
def test_the_weight_gradient_in_blocks_on_two_devices(check_vma, monkeypatch):
    monkeypatch.setattr(module, "_samples_in", lambda *_: 1)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("d",))
    x, w = jnp.arange(4.0 * 2 * 5 * 5).reshape(4, 2, 5, 5), jnp.ones((3, 2, 2, 2))

    def gradient(x, w):
        dw = jax.grad(lambda w: jnp.sum(jaxnn.conv2d(x, w)))(w)
        return dw if check_vma else jax.lax.psum(dw, "d")

    P = jax.sharding.PartitionSpec
    sharded = jax.shard_map(gradient, mesh=mesh, in_specs=(P("d"), P()), out_specs=P(), check_vma=check_vma)
    expected = jax.grad(lambda w: jnp.sum(jaxnn.conv2d.definition(x, w)))(w)
    np.testing.assert_allclose(jax.jit(sharded)(x, w), expected, rtol=1e-5)


def test_the_weight_gradient_in_blocks_of_two_samples(monkeypatch):
    case = CONV["conv2d-NHWC-all"]
    case = case._replace(make=lambda rng: tuple(map(rng.standard_normal, ((6, 8, 7, 4), (2, 3, 2, 4), 4))))
    monkeypatch.setattr(module, "_samples_in", lambda *_: 2)
    assert_rule(case)


def test_the_blocks_of_a_low_precision_add_up_in_float32(monkeypatch):
    """A sum in bfloat16 would stay at 256."""
    monkeypatch.setattr(module, "_samples_in", lambda *_: 1)
    x, w = jnp.ones((300, 1, 1, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    y, vjp = jax.vjp(jaxnn.conv2d, x, w)
    assert vjp(jnp.ones_like(y))[1].item() == 300


@pytest.mark.parametrize(
    "number, limit, expected", [(12, 5, 4), (12, 4, 4), (7, 5, 1), (6, 6, 6), (6, 9, 6), (6, 0, 1), (0, 0, 0)]
)
def test_the_largest_divisor(number, limit, expected):
    assert module._largest_divisor(number, limit) == expected


@pytest.mark.one_in(6)
@pytest.mark.parametrize("samples, block", [(6, 1), (6, 6), (0, 1)])
@pytest.mark.parametrize("options", [
    {},
    {"dilation": (1, 2)},
    {"dilation": (2, 1), "padding": ((1, 0), (0, 3))},
    {"padding": "SAME", "stride": (2, 1)},
], ids=str)  # fmt: skip
def test_the_weight_gradient_from_rows_of_x_and_columns_of_dy(options, samples, block, monkeypatch):
    monkeypatch.setattr(module, "_samples_in", lambda *_: block)
    case, taken = CONV["conv2d-NHWC-all"], []
    splits = module._splits_taps
    monkeypatch.setattr(module, "_splits_taps", lambda *args: taken.append(splits(*args)) or taken[-1])
    case = case._replace(
        make=lambda rng: tuple(map(rng.standard_normal, ((samples, 8, 17, 3), (2, 3, 3, 2), 2))),
        options={"layout": "NHWC", **options},
    )
    assert_rule(case)
    assert taken and all(taken)


@pytest.mark.parametrize("column", [0, 1, 5, 9, 10])
@pytest.mark.parametrize("infinite", ["x", "dy"])
@pytest.mark.parametrize("options", [{}, {"dilation": (1, 2), "padding": (0, 1)}], ids=str)
def test_an_infinity_reaches_no_weight_that_never_meets_it(options, infinite, column, monkeypatch):
    """No product with a zero that stands for an output beyond the last, or for a pixel, and no pair that is not used."""
    monkeypatch.setattr(module, "_samples_in", lambda *_: 1)
    x, w = jnp.ones((2, 2, 4, 13)), jnp.ones((2, 2, 2, 3))
    dy = jnp.ones_like(jaxnn.conv2d(x, w, **options))
    x = x.at[1, 0, 1, column].set(jnp.inf) if infinite == "x" else x
    dy = dy.at[1, 0, 1, column].set(jnp.inf) if infinite == "dy" else dy
    ours, automatic = (
        jax.vjp(lambda w, f=f: f(x, w, **options), w)[1](dy)[0] for f in (jaxnn.conv2d, jaxnn.conv2d.definition)
    )
    np.testing.assert_array_equal(ours, automatic)


@pytest.mark.parametrize("filters, columns, stride, dilation, groups, splits", [
    ((3, 3, 16, 32), 4, 1, 1, 1, True),
    ((3, 3, 16, 33), 4, 1, 1, 1, False),
    ((3, 3, 16, 32), 3, 1, 1, 1, True),
    ((3, 3, 16, 32), 2, 1, 1, 1, False),
    ((3, 3, 16, 32), 10, 1, 2, 1, False),
    ((3, 3, 16, 32), 11, 1, 2, 1, True),
    ((2, 2, 16, 8), 1, 1, 1, 1, True),
    ((2, 2, 1024, 512), 4, 1, 1, 1, True),
    ((2, 2, 1024, 513), 4, 1, 1, 1, False),
    ((2, 4, 256, 227), 99, 1, 1, 1, True),
    ((2, 4, 256, 228), 99, 1, 1, 1, False),
    ((3, 3, 16, 32), 4, 2, 1, 1, False),
    ((3, 3, 16, 32), 4, 1, 1, 2, False),
    ((1, 3, 16, 10), 4, 1, 1, 1, True),
    ((1, 3, 16, 11), 4, 1, 1, 1, False),
    ((3, 1, 16, 1), 4, 1, 1, 1, False),
    ((5, 2, 4, 10), 4, 1, 1, 1, True),
    ((5, 2, 4, 11), 4, 1, 1, 1, False),
    ((3, 9, 16, 2), 99, 1, 1, 1, True),
    ((3, 10, 16, 2), 99, 1, 1, 1, False),
    ((3, 5, 16, 2), 99, 1, 2, 1, True),
    ((3, 1, 16, 0), 4, 1, 1, 1, False),
])  # fmt: skip
def test_which_weight_gradients_split_their_taps(filters, columns, stride, dilation, groups, splits):
    geometry = Geometry((3, stride), ((0, 0), (0, 0)), (9, dilation), groups, "NHWC", None)
    assert module._splits_taps(geometry, filters, columns) == splits


@pytest.fixture(params=[1, 3])
def more_rows(request, monkeypatch):
    """The convolutions with rows of zeros more, whatever JAX's version and their size."""
    monkeypatch.setattr(module, "rows_more", lambda *_: request.param)


@pytest.mark.more
@pytest.mark.one_in(12)
@pytest.mark.parametrize("id", [id for id in CONV if id.endswith(("padding", "asymmetric", "batch-0"))])
def test_the_convolution_with_more_rows(id, more_rows):
    case = CONV[id]
    assert_rule(case)
    args = [jnp.asarray(a, jnp.float32) for a in case.make(np.random.default_rng(0))]
    np.testing.assert_allclose(case.call(case.f, *args), case.call(case.f.definition, *args), rtol=1e-5, atol=1e-5)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("height", [5, 6])
def test_the_convolution_with_more_rows_by_strides(height, more_rows):
    x, w = jax.random.normal(jax.random.key(0), (2, height, 7)), jnp.ones((3, 2, 2, 2))
    y = jaxnn.conv2d(x, w, stride=(1, 2))
    np.testing.assert_allclose(y, jaxnn.conv2d.definition(x, w, stride=(1, 2)), rtol=1e-5, atol=1e-5)


@pytest.mark.more
def test_the_convolution_with_more_rows_for_each_of_several_filters(more_rows):
    x, w = jax.random.normal(jax.random.key(0), (3, 4, 2, 5, 5)), jax.random.normal(jax.random.key(1), (3, 3, 2, 2, 2))
    np.testing.assert_allclose(
        jax.vmap(jaxnn.conv2d)(x, w), jax.vmap(jaxnn.conv2d.definition)(x, w), rtol=1e-5, atol=1e-5
    )


UNPADDED = ((0, 0), (0, 0))


@pytest.mark.parametrize("more, changed", [
    (3, {}),
    (2, {"pads": ((1, 0), (0, 0))}),
    (1, {"pads": ((1, 1), (1, 1))}),
    (0, {"pads": ((2, 1), (0, 0))}),
    (0, {"pads": ((4, 4), (4, 4))}),
    (0, {"pads": ((0, 0), (2, 1))}),
    (5, {"dilation": (2, 1), "rows": 12}),
    (3, {"dilation": (1, 2), "pads": ((0, 0), (2, 2))}),
    (0, {"rows": 9}),
    (0, {"filters": (3, 3, 16, 31)}),
    (0, {"groups": 2}),
    (0, {"spread": (2, 1)}),
    (3, {"stride": (1, 2)}),
    (0, {"stride": (2, 1)}),
    (3, {"dtype": "bfloat16"}),
    (0, {"dtype": "float64"}),
    (0, {"version": (0, 11, 0)}),
], ids=str)  # fmt: skip
def test_how_many_rows_more_a_convolution_gets(more, changed, monkeypatch):
    given = {"rows": 10, "filters": (3, 3, 16, 32), "groups": 1, "pads": UNPADDED, "spread": (1, 1), "stride": (1, 1)}
    given |= {"dilation": (1, 1), "dtype": "float32", "version": (0, 10, 2)} | changed
    geometry = Geometry((1, 1), UNPADDED, given["dilation"], given["groups"], "NHWC", None)
    monkeypatch.setattr(jax, "__version_info__", given["version"])
    with jax.enable_x64(True):
        x, w = jnp.zeros((1, given["rows"], 1, 1), given["dtype"]), jnp.zeros(given["filters"])
        assert module.rows_more(geometry, x, w, given["stride"], given["pads"], given["spread"]) == more


@pytest.mark.parametrize("form, changed", [
    (None, {}),
    ("_by_product", {"filters": (1, 1, 6, 6)}),
    (None, {"filters": (1, 1, 6, 6), "stride": (1, 2)}),
    (None, {"filters": (1, 1, 6, 6), "spread": (2, 1)}),
    (None, {"filters": (1, 1, 6, 6), "pads": ((0, 0), (0, 1))}),
    (None, {"filters": (1, 2, 6, 6)}),
    ("_by_groups", {"filters": (1, 1, 3, 6), "groups": 2}),
    ("_by_groups", {"filters": (3, 3, 2, 96), "groups": 32}),
    (None, {"filters": (3, 3, 2, 99), "groups": 33}),
    ("correlate", {"filters": (3, 3, 1, 99), "groups": 33}),
    ("correlate", {"filters": (3, 3, 1, 12), "groups": 6}),
    ("correlate", {"filters": (3, 3, 3, 2), "groups": 2}),
    ("_by_groups", {"filters": (3, 3, 1, 0), "groups": 2}),
    ("_by_groups", {"filters": (3, 3, 0, 2), "groups": 2}),
    ("correlate", {"filters": (8, 8, 1, 99), "groups": 33}),
    (None, {"filters": (5, 13, 1, 99), "groups": 33}),
    (None, {"filters": (3, 3, 1, 6)}),
    (None, {"filters": (3, 3, 6, 1)}),
], ids=str)  # fmt: skip
def test_which_form_a_convolution_has_on_a_cpu(form, changed, monkeypatch):
    monkeypatch.setattr(jax, "__version_info__", (0, 12, 0))
    given = {"filters": (3, 3, 6, 6), "groups": 1, "pads": UNPADDED, "spread": (1, 1), "stride": (1, 1)} | changed
    geometry = Geometry((9, 9), UNPADDED, (1, 1), given["groups"], "NHWC", None)
    x, w = jnp.zeros((2, 8, 8, 6)), jnp.zeros(given["filters"])
    chosen = module.faster_form(lambda x, w: x, geometry, x, w, given["stride"], given["pads"], given["spread"])
    assert (chosen and chosen.func.__name__) == form


@pytest.mark.parametrize("by_products, changed", [
    (True, {}),
    (False, {"dy": (2, 5, 6, 3)}),
    (True, {"dy": (9, 4, 6, 3)}),
    (False, {"dy": (2, 0, 5, 3)}),
    (False, {"groups": 3}),
    (False, {"stride": (1, 2)}),
], ids=str)  # fmt: skip
def test_which_input_gradients_are_products_on_a_cpu(by_products, changed):
    given = {"dy": (2, 5, 5, 3), "groups": 1, "stride": (1, 1)} | changed
    geometry = Geometry(given["stride"], UNPADDED, (1, 1), given["groups"], "NHWC", None)
    assert module.meets_many_zeros(geometry, (2, 5, 10, 4), given["dy"]) == by_products


@pytest.mark.parametrize("samples, inputs, filters, groups", [
    (0, 3, 3, 3), (0, 3, 6, 3), (0, 4, 4, 2), (2, 2, 0, 2), (2, 0, 2, 2), (2, 0, 0, 2), (0, 66, 66, 33), (0, 2, 3, 1),
    (2, 0, 3, 1), (2, 2, 0, 1),
])  # fmt: skip
@pytest.mark.parametrize("window, padding", [((1, 1), 0), ((2, 3), 0), ((2, 2), 1)])
def test_an_empty_axis_in_every_form(samples, inputs, filters, groups, window, padding):
    shapes = (samples, 3, 3, inputs), (*window, inputs // groups, filters)
    options = {"layout": "NHWC", "groups": groups, "padding": padding}
    assert_rule(CONV["conv2d-NHWC-plain"]._replace(
        make=lambda rng: tuple(map(rng.standard_normal, shapes)), options=options))  # fmt: skip


def test_a_grouped_convolution_of_many_groups():
    """More groups than are convolved one by one, and more than one channel each."""
    make = lambda rng: (rng.standard_normal((2, 66, 3, 3)), rng.standard_normal((66, 2, 2, 2)))  # noqa: E731
    assert_rule(CONV["conv2d-NCHW-groups"]._replace(make=make, options={"groups": 33}))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_taps_of_a_low_precision_add_up_in_float32(dtype):
    """A sum of 1024 and 63 quarters, in the low precision, would stay at 1,024; one of 300 ones at 256 in bfloat16."""
    w = jnp.full((2, 1, 8, 8), 0.25, dtype).at[:, :, 0, 0].set(1024)
    expected = jnp.asarray(1024 + 63 / 4, dtype).item()
    assert jaxnn.conv2d(jnp.ones((1, 2, 8, 8), dtype), w, groups=2).ravel().tolist() == [expected] * 2
    loss = lambda w: jnp.sum(jaxnn.conv2d(jnp.ones((300, 2, 1, 1), dtype), w, groups=2))  # noqa: E731
    assert jax.grad(loss)(w[:, :, :1, :1]).ravel().tolist() == [300, 300]
    # The input's gradient by products: of 16 pixels the eighth meets 8 of the 9 taps, 1024 and 7 too small to add alone.
    small = 1024 * jnp.finfo(dtype).eps.item() / 4
    w, x = jnp.full((1, 1, 1, 9), small, dtype).at[..., 0].set(1024), jnp.ones((1, 1, 1, 16), dtype)
    dx = jax.grad(lambda x: jnp.sum(jaxnn.conv2d(x, w)))(x)
    assert dx[0, 0, 0, 7].item() == jnp.asarray(1024 + 7 * small, dtype).item() > 1024
