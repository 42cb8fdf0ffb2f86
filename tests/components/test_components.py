"""Every case of the table, in four dtypes: the rule against loops and PyTorch; in float32 also by the checker.

An element may differ by c · eps of its dtype times its own response: how much the loops' result moves when inputs and
cotangent are perturbed relatively. It does not depend on the arrays' sizes. Low precision is judged at the rounded inputs. The
checker compares with autodiff of the definition, and numerically.
"""

import contextlib
import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, Case, forms_of, of_table

import jaxnn
from jaxnn import gradcheck

C = 8.0
TABLE = {case.id for case in of_table()}
DTYPES = "float32", "float64", "bfloat16", "float16"
by_id = functools.partial(pytest.mark.parametrize, ids=lambda v: v.id if isinstance(v, Case) else str(v))


def x64(dtype):
    return jax.enable_x64(True) if dtype == "float64" else contextlib.nullcontext()


def is_float(a):
    return np.issubdtype(np.asarray(a).dtype, np.floating)


def rounded(arrays, dtype):
    """The arrays as jax arrays of `dtype`, and the same values in float64."""
    # device_put: jnp.asarray would compile a copy for every shape.
    ours = [jax.device_put(np.asarray(a).astype(jnp.dtype(dtype)) if is_float(a) else np.asarray(a)) for a in arrays]
    exact = [
        np.asarray(o).astype(np.float64) if is_float(a) else np.asarray(a) for o, a in zip(ours, arrays, strict=True)
    ]
    return ours, exact


def differentiable(args):
    return tuple(i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating))


@functools.partial(jax.jit, static_argnums=0)
def value_and_cotangents(case, args, dy):
    argnums = differentiable(args)

    def of_floats(*floats):
        filled = list(args)
        for i, a in zip(argnums, floats, strict=True):
            filled[i] = a
        return case.call(case.f, *filled)

    y, vjp = jax.vjp(of_floats, *(args[i] for i in argnums))
    return y, vjp(dy)


class Hashable(Case):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


HASHABLE = [Hashable(*case) for case in CASES]


def perturbed(exact, rng):
    with np.errstate(all="ignore"):
        return [a * (1 + DELTA * rng.choice([-1.0, 1.0], a.shape)) if is_float(a) else a for a in exact]


DELTA = 1e-7
# With only three random directions, the terms of an element can nearly cancel in all of them; the error allowed is then
# less than the rounding error of its terms.
DIRECTIONS = 8


def responses(case, dy, exact):
    """How far value and cotangents move, per unit of relative perturbation, at each element."""
    rng = np.random.default_rng(1)
    value, *cotangents = case.oracle(*exact), *case.oracle_vjp(dy, *exact)
    largest = [np.abs(value) * 1.0, *(None if c is None else np.abs(c) * 1.0 for c in cotangents)]
    with np.errstate(all="ignore"):
        for _ in range(DIRECTIONS):
            moved_dy = dy * (1 + DELTA * rng.choice([-1.0, 1.0], np.shape(dy)))
            moved = exact if case.kinked else perturbed(exact, rng)
            results = [case.oracle(*moved), *case.oracle_vjp(moved_dy, *moved)]
            for k, (now, was) in enumerate(zip(results, [value, *cotangents], strict=True)):
                if was is not None:
                    largest[k] = np.fmax(largest[k], np.abs(now - was) / DELTA)
    return [value, *cotangents], largest


def assert_close(name, ours, truth, response, dtype, factor=C):
    ours = np.asarray(ours).astype(np.float64)
    assert ours.shape == np.shape(truth), name
    assert np.array_equal(np.isnan(ours), np.isnan(truth)), f"{name}: NaN at different places"
    eps, largest = float(jnp.finfo(dtype).eps), float(jnp.finfo(dtype).max)
    smallest = (
        float(jnp.finfo(dtype).smallest_normal) if dtype == "bfloat16" else float(jnp.finfo(dtype).smallest_subnormal)
    )
    smallest = max(
        smallest, float(jnp.finfo(jnp.float32).smallest_normal) if dtype != "float64" else 0.0
    )  # XLA flushes
    with np.errstate(all="ignore"):
        error = np.where(np.isnan(truth) | (ours == truth), 0.0, np.abs(ours - truth))
        overflow = np.isinf(ours) & (np.abs(truth) > largest * (1 - eps)) & (np.sign(ours) == np.sign(truth))
        excess = np.where(overflow, 0.0, error) - factor * (
            eps * np.where(np.isfinite(response), response, 0.0) + smallest
        )
    if excess.size and excess.max() > 0:
        at = np.unravel_index(np.argmax(excess), excess.shape)
        raise AssertionError(f"{name}{[int(i) for i in at]}: {ours[at]} for {truth[at]}, response {response[at]}")


def arguments(case, dtype):
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    ours, exact = rounded(case.make(rng), dtype)
    out = jax.eval_shape(functools.partial(case.call, case.f), *ours)
    dy, exact_dy = (a[0] for a in rounded([rng.standard_normal(out.shape)], out.dtype))
    return ours, exact, dy, exact_dy


def in_each_dtype(cases):
    """The table of components in every dtype, and one in eight of the other cases in float32; all with JAXNN_ALL=1."""
    for (i, case), dtype in itertools.product(enumerate(cases), DTYPES):
        runs = case.id in TABLE or (dtype == "float32" and i % 8 == 0)
        yield pytest.param(case, dtype, marks=() if runs else pytest.mark.more, id=f"{case.id}-{dtype}")


@pytest.mark.parametrize("case, dtype", list(in_each_dtype(HASHABLE)))
def test_rule_against_loops_and_torch(case, dtype):
    with x64(dtype):
        ours, exact, dy, exact_dy = arguments(case, dtype)
        y, cotangents = value_and_cotangents(case, ours, dy)
        argnums = differentiable(ours)
        for i, ct in zip(argnums, cotangents, strict=True):
            assert (ct.shape, ct.dtype) == (ours[i].shape, ours[i].dtype), "a cotangent has its primal's type"
        truths, limits = responses(case, exact_dy, exact)
        assert_close("y", y, truths[0], limits[0], str(y.dtype) if dtype == "float64" else dtype)
        for i, ct in zip(argnums, cotangents, strict=True):
            assert_close(f"cotangent of argument {i}", ct, truths[1 + i], limits[1 + i], dtype)

    if case.torch is not None:
        torch = pytest.importorskip("torch")
        plain = len(exact) - len(case.keywords)  # torch has no gradient for class weights
        leaves = [
            torch.tensor(a, requires_grad=i < plain) if is_float(a) else torch.tensor(a).long()
            for i, a in enumerate(exact)
        ]
        torch_y = case.torch(torch.nn.functional, *leaves)
        torch_y.backward(torch.tensor(exact_dy).reshape(torch_y.shape))
        assert_close("y against torch", y, torch_y.detach().numpy(), limits[0], dtype)
        for i, ct in zip(argnums, cotangents, strict=True):
            if leaves[i].requires_grad:
                assert_close(
                    f"cotangent of argument {i} against torch", ct, leaves[i].grad.numpy(), limits[1 + i], dtype
                )


def forms_of_others():
    """The rules that have a form of their own for a GPU or a TPU, in float32; those of the table also in bfloat16."""
    names = {"conv2d", "max_pool2d", "softmax", "log_softmax", "cross_entropy"}
    for i, case in enumerate(case for case in HASHABLE if case.id.split("-")[0].split()[0] in names):
        for dtype in ("float32", "bfloat16") if case.id in TABLE else ("float32",):
            marks = () if i % 16 == 0 else pytest.mark.more
            yield pytest.param(case, dtype, marks=marks, id=f"{case.id}-{dtype}")


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("case, dtype", list(forms_of_others()))
def test_forms_of_other_platforms_against_loops(case, dtype, platform):
    ours, exact, dy, exact_dy = arguments(case, dtype)
    with forms_of(platform):
        y, cotangents = jax.jit(functools.partial(value_and_cotangents.__wrapped__, case))(ours, dy)
    truths, limits = responses(case, exact_dy, exact)
    assert_close("y", y, truths[0], limits[0], dtype)
    for i, ct in zip(differentiable(ours), cotangents, strict=True):
        assert_close(f"cotangent of argument {i}", ct, truths[1 + i], limits[1 + i], dtype)


def test_a_certain_prediction_costs_plus_zero():
    l = jaxnn.cross_entropy(jnp.array([0.0, -jnp.inf]), 0)
    assert l == 0 and not np.signbit(l)


def has_infinities(case):
    rng = np.random.default_rng(zlib.crc32(case.id.encode()))
    return any(is_float(a) and not np.all(np.isfinite(a)) for a in case.make(rng))


@pytest.mark.one_in(8)
@by_id("case", list(filter(has_infinities, HASHABLE)))
def test_rule_against_loops_without_jit(case):
    """XLA makes 0 · ∞ into 0 where it sees that the 0 was a bool: operation by operation it is NaN."""
    ours, exact, dy, exact_dy = arguments(case, "float32")
    y, cotangents = value_and_cotangents.__wrapped__(case, ours, dy)
    truths, limits = responses(case, exact_dy, exact)
    assert_close("y", y, truths[0], limits[0], "float32")
    for i, ct in zip(differentiable(ours), cotangents, strict=True):
        assert_close(f"cotangent of argument {i}", ct, truths[1 + i], limits[1 + i], "float32")


@pytest.mark.one_in(3)
@pytest.mark.parametrize("f", [jaxnn.cross_entropy, jaxnn.nll_loss, jaxnn.nll], ids=lambda f: f.__name__)
def test_class_weights_of_another_dtype(f):
    x, labels = jnp.array([[0.25, 0.75, 0.5], [0.5, 0.125, 0.375]]), jnp.array([0, 2])
    weight = jnp.array([1.0, 2.0, 0.5])
    gradient = jax.grad(lambda w: f(x, labels, weight=w))
    narrow = gradient(weight.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_allclose(narrow.astype(jnp.float32), gradient(weight), rtol=2**-7)


@pytest.mark.parametrize("f", [jaxnn.cross_entropy, jaxnn.nll_loss, jaxnn.nll], ids=lambda f: f.__name__)
def test_no_classes_and_their_weights(f):
    x, labels = jnp.zeros((2, 0)), jnp.array([0, 1])
    assert jnp.isnan(f(x, labels, weight=jnp.zeros(0)))
    assert jax.grad(lambda w: f(x, labels, weight=w))(jnp.zeros(0)).shape == (0,)


def test_no_classes_and_smoothing():
    x = jnp.zeros((2, 0))
    for targets in (x, jnp.array([0, 1])):
        gradient = jax.grad(lambda x, t=targets: jaxnn.cross_entropy(x, t, label_smoothing=0.1, reduction="sum"))(x)
        assert gradient.shape == (2, 0)


def test_a_row_that_is_left_out_has_no_second_derivative_of_nll():
    """Whatever its probabilities are; 0 of them, for one."""
    p = jnp.array([[0.0, 1.0], [0.25, 0.75]])
    second = jax.jacrev(jax.grad(lambda p: jaxnn.nll(p, jnp.array([7, 0]), ignore_index=7, reduction="sum")))(p)
    expected = np.zeros((2, 2, 2, 2))
    expected[1, 0, 1, 0] = 1 / 0.25**2
    np.testing.assert_allclose(second, expected, rtol=1e-6)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("f", [jaxnn.cross_entropy, jaxnn.nll_loss, jaxnn.nll], ids=lambda f: f.__name__)
def test_class_weights_of_a_single_row(f):
    x, weight = jnp.array([0.25, 0.5, 0.25]), jnp.array([1.0, 2.0, 0.5])
    plain = f(x, 1)
    assert float(f(x, 1, weight=weight, reduction="sum")) == pytest.approx(2 * float(plain))
    assert float(f(x, 1, weight=weight)) == pytest.approx(float(plain))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("f", [jaxnn.cross_entropy, jaxnn.nll_loss, jaxnn.nll], ids=lambda f: f.__name__)
def test_class_weights_narrower_than_the_logits(f):
    with jax.enable_x64(True):
        x, weight = jnp.array([[0.25, 0.5, 0.25]]), jnp.array([1.0, 2.0, 0.5], jnp.float32)
        assert f(x, jnp.array([1]), weight=weight).dtype == jnp.float64
        assert jax.grad(lambda w: f(x, jnp.array([1]), weight=w, reduction="sum"))(weight).dtype == jnp.float32


@pytest.mark.one_in(3)
@pytest.mark.parametrize("bad", [-1, 3, 100])
@pytest.mark.parametrize("f", [jaxnn.cross_entropy, jaxnn.nll_loss, jaxnn.nll], ids=lambda f: f.__name__)
def test_a_bad_label_leaves_the_weighted_gradient_of_other_rows_alone(f, bad):
    """It counts for 1 in the mean."""
    x, weight = jnp.array([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]]), jnp.array([1.0, 2.0, 0.5])
    dx = jax.grad(f)(x, jnp.array([1, bad]), weight=weight)
    alone = jax.grad(f)(x[0], 1, reduction="sum")
    np.testing.assert_allclose(dx[0], 2 * alone / (2 + 1), rtol=1e-6)
    assert jnp.isnan(dx[1]).all()


@pytest.mark.parametrize("dtype, unit", [("bfloat16", 2.0**-8), ("float16", 2.0**-11)])
@pytest.mark.parametrize("f", [jaxnn.softmax, jaxnn.log_softmax], ids=lambda f: f.__name__)
def test_a_low_precision_is_rounded_once(f, dtype, unit):
    """The exponentials and their sum are computed in float32: in the logits' precision they would err by percents."""
    x = jnp.asarray(np.random.default_rng(0).normal(scale=5.0, size=(8, 100)), dtype)
    wide = np.asarray(x, np.float64)
    exp = np.exp(wide - wide.max(-1, keepdims=True))
    exact = exp / exp.sum(-1, keepdims=True)
    exact = exact if f is jaxnn.softmax else np.log(exact)
    normal = np.abs(exact) > jnp.finfo(dtype).smallest_normal
    np.testing.assert_allclose(np.asarray(f(x), np.float64)[normal], exact[normal], rtol=1.01 * unit)


def checked(case, level):
    args, *_ = arguments(case, "float32")
    # The definition of dropout draws other bits than its rule, whose own body is the reference then.
    reference = None if case.f is jaxnn.dropout else functools.partial(case.call, case.f.definition)
    return gradcheck.check(functools.partial(case.call, case.f), *args, reference=reference, level=level)


FINITE = [case for case in CASES if not case.nan]  # the others follow conventions that autodiff does not


@pytest.mark.one_in(3)
@by_id("case", [pytest.param(case, marks=() if case.id in TABLE else pytest.mark.more) for case in FINITE])
def test_rule_by_the_quick_check(case):
    assert (report := checked(case, "rule")).ok, report


@pytest.mark.one_in(18)
@by_id("case", list({case.f.__name__: case for case in reversed(FINITE)}.values()))
def test_rule_by_the_full_check(case):
    report = checked(case, "full")
    assert report.ok, report
    assert not [row for row in report.rows if row.status == "UNSUPPORTED" and row.check != "precision"], report
