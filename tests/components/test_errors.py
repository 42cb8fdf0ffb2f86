"""Bad arguments are refused at trace time, in one line that names the argument, its value and the requirement."""

import re

import jax
import jax.numpy as jnp
import pytest

import jaxnn

pytestmark = pytest.mark.usefixtures("unchecked_annotations")
X, W, B = jnp.ones((2, 5)), jnp.ones((3, 4)), jnp.ones(3)
IMAGE, FILTER = jnp.ones((1, 3, 8, 8)), jnp.ones((4, 3, 3, 3))
KEY = jax.random.key(0)


def entropy(w=None, t=None, **options):
    w, t = jnp.ones((3, 5)) if w is None else w, jnp.zeros(2, int) if t is None else t
    return jaxnn.linear_cross_entropy(X, w, t, **options)


BAD = [
    (lambda: jaxnn.linear(X, W), ValueError, "`w` (shape (3, 4)) must have 5 input features to match `x` (shape (2, 5))"),
    (lambda: jaxnn.linear(X, jnp.ones((3, 5)), jnp.ones(2)), ValueError, "`b` (shape (2,)) must have shape (3,)"),
    (lambda: jaxnn.linear(jnp.float32(1), W), ValueError, "`x` (shape ()) must have at least one axis"),
    (lambda: jaxnn.linear(X, jnp.ones(5)), ValueError, "`w` (shape (5,)) must have two axes, (outputs, inputs)"),
    (lambda: jaxnn.linear(jnp.ones((2, 5), jnp.int32), W), TypeError, "`x` (dtype int32) must have a floating-point dtype, one of float16, bfloat16, float32, float64; convert it with `x.astype"),
    (lambda: jaxnn.linear("x", W), TypeError, "`x` (str) must be an array"),
    (lambda: jaxnn.linear(X, None), TypeError, "`w` (NoneType) must be an array"),
    (lambda: jaxnn.conv2d(IMAGE, jnp.ones((4, 2, 3, 3))), ValueError, "must have 3 input channels to match `x` (shape (1, 3, 8, 8)) in NCHW"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, jnp.ones(3)), ValueError, "`b` (shape (3,)) must have shape (4,)"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, stride=0), ValueError, "`stride` (0) must be at least 1"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, stride=1.5), TypeError, "`stride` (1.5) must be a static int"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, stride=True), TypeError, "`stride` (True) must be a static int"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, stride=(1, 2, 3)), ValueError, "`stride` ((1, 2, 3)) must be an int or a pair"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, padding=-1), ValueError, "`padding` (-1) must be at least 0"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, padding="FULL"), ValueError, "`padding` ('FULL') must be 'SAME', 'VALID'"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, padding=((1, 1), 2)), ValueError, "must be ((top, bottom), (left, right))"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, groups=2), ValueError, "`groups` (2) must divide the 3 channels"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, layout="CHWN"), ValueError, "`layout` ('CHWN') must be one of 'NCHW', 'NHWC'"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, dilation=4), ValueError, "along H it spans 9 of 8 pixels; add `padding` or lower `dilation`"),
    (lambda: jaxnn.conv2d(jnp.ones((8, 8)), FILTER), ValueError, "`x` (shape (8, 8)) must end in the three axes C, H, W"),
    (lambda: jaxnn.conv2d(IMAGE, jnp.ones((3, 3))), ValueError, "`w` (shape (3, 3)) must have the four axes O, I, H, W"),
    (lambda: jaxnn.relu(3), TypeError, "`x` (dtype int32) must have a floating-point dtype"),
    (lambda: jaxnn.relu(jnp.ones(2, jnp.complex64)), TypeError, "`x` (dtype complex64) must have a floating-point dtype"),
    (lambda: jaxnn.max_pool2d(jnp.ones((3, 3))), ValueError, "`x` (shape (3, 3)) must end in the three axes"),
    (lambda: jaxnn.max_pool2d(IMAGE, 9), ValueError, "`window` ((9, 9)) must fit into the padded `x` (shape (1, 3, 8, 8)) in NCHW"),
    (lambda: jaxnn.max_pool2d(IMAGE, 3, padding=2), ValueError, "`padding` ((2, 2)) must be at most half of `window` ((3, 3))"),
    (lambda: jaxnn.max_pool2d(IMAGE, 0), ValueError, "`window` (0) must be at least 1"),
    (lambda: jaxnn.dropout(X, 1.5, KEY), ValueError, "`rate` (1.5) must lie in [0, 1]"),
    (lambda: jaxnn.dropout(X, float("nan"), KEY), ValueError, "`rate` (nan) must lie in [0, 1]"),
    (lambda: jax.jit(lambda r: jaxnn.dropout(X, r, KEY))(0.5), TypeError, "must be a static float in [0, 1]"),
    (lambda: jaxnn.dropout(X, 0.5), ValueError, "`key` (None) must be a PRNG key when `rate` (0.5) > 0; pass"),
    (lambda: jaxnn.dropout(X, 0.5, 3), TypeError, "`key` (int) must be a PRNG key"),
    (lambda: jaxnn.dropout(X, 0.5, jax.random.split(KEY)), TypeError, "`key` (shape (2,)) must be a single PRNG key"),
    (lambda: jax.jit(lambda d: jaxnn.dropout(X, 0.5, KEY, deterministic=d))(True), TypeError, "must be a static bool; under jit"),
    (lambda: jaxnn.max_pool2d(IMAGE, padding="SAME"), TypeError, "`padding` ('SAME') must be an int or a pair of ints"),
    (lambda: jaxnn.conv2d(IMAGE, FILTER, jnp.ones((4, 1, 1))), ValueError, "drop axes of size 1 with `b.reshape(-1)`"),
    (lambda: jaxnn.l1_penalty({"f": jnp.ones(2), "g": object()}), TypeError, "`params['g']` (object) must be an array"),
    (lambda: jaxnn.dropout(X, 0.5, jnp.zeros(3, jnp.uint32)), TypeError, "`key` (shape (3,)) must be a single PRNG key"),
    (lambda: jaxnn.softmax(1.0), ValueError, "`axis` (-1) must be one of the axes of `x` (shape ())"),
    (lambda: jaxnn.softmax(X, -3), ValueError, "`axis` (-3) must be one of the axes of `x` (shape (2, 5))"),
    (lambda: jaxnn.cross_entropy(X, None), TypeError, "`targets` (NoneType) must be an array of numbers"),
    (lambda: jaxnn.nll(X, "ab"), TypeError, "`targets` (str) must be an array of numbers"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), ignore_index=2**40), ValueError, "`ignore_index` (1099511627776) must be at most"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), label_smoothing=None), TypeError, "`label_smoothing` (NoneType) must be a static float"),
    (lambda: jaxnn.binary_cross_entropy(0.0, 1j), TypeError, "`targets` (dtype complex64) must be floating, integer or boolean"),
    (lambda: jaxnn.relu(jnp.ones(2, jnp.float8_e4m3fn)), TypeError, "`x` (dtype float8_e4m3fn) must have a floating-point dtype, one of"),
    (lambda: jaxnn.max_pool2d(jnp.ones((2, 2, 0, 4)), padding=1), ValueError, "`window` ((2, 2)) must fit into the padded `x`"),
    (lambda: jaxnn.softmax(X, 2), ValueError, "`axis` (2) must be one of the axes of `x` (shape (2, 5))"),
    (lambda: jaxnn.softmax(X, (0, -2)), ValueError, "`axis` ((0, -2)) must name each axis once"),
    (lambda: jaxnn.softmax(X, [0, 1]), TypeError, "`axis` ([0, 1]) must be a static int or a tuple of ints, and not list"),
    (lambda: jaxnn.log_softmax(X, (0, 1.0)), TypeError, "`axis` ((0, 1.0)) must be a static int or a tuple of ints"),
    (lambda: jaxnn.softmax(X, where=X), TypeError, "`where` (dtype float32) must be boolean"),
    (lambda: jaxnn.log_softmax(X, where=jnp.ones((2, 4), bool)), ValueError, "`where` (shape (2, 4)) must broadcast to `x` (shape (2, 5))"),
    (lambda: jaxnn.nll(X, jnp.ones(2)), TypeError, "`targets` (dtype float32) must hold integer class ids"),
    (lambda: jaxnn.nll(X, jnp.ones(2, bool)), TypeError, "`targets` (dtype bool) must hold integer class ids"),
    (lambda: jaxnn.nll_loss(X, jnp.zeros(3, int)), ValueError, "`targets` (shape (3,)) must have shape (2,), that of `log_p` without"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), weight=jnp.ones(4)), ValueError, "`weight` (shape (4,)) must have shape (5,)"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), reduction="avg"), ValueError, "`reduction` ('avg') must be one of 'mean', 'sum', 'none'"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), label_smoothing=2), ValueError, "`label_smoothing` (2) must lie in [0, 1]"),
    (lambda: jaxnn.cross_entropy(X, X, ignore_index=1), ValueError, "`ignore_index` (1) must be None when `targets`"),
    (lambda: jaxnn.cross_entropy(X, X[:1]), ValueError, "`targets` (shape (1, 5)) must have the shape of `logits` (shape (2, 5))"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), ignore_index=0.5), TypeError, "`ignore_index` (0.5) must be a static int"),
    (lambda: jaxnn.cross_entropy(X, jnp.zeros(2, int), axis=5), ValueError, "`axis` (5) must be one of the axes of `logits`"),
    (lambda: jaxnn.binary_cross_entropy(X, X[0]), ValueError, "`targets` (shape (5,)) must have the shape of `logits` (shape (2, 5))"),
    (lambda: entropy(W), ValueError, "`w` (shape (3, 4)) must have 5 input features to match `x` (shape (2, 5)); `w` is (outputs, inputs)"),
    (lambda: entropy(t=jnp.ones(2)), TypeError, "`targets` (dtype float32) must hold integer class ids; convert it with `targets.astype(jnp.int32)`"),
    (lambda: entropy(t=jnp.zeros(3, int)), ValueError, "`targets` (shape (3,)) must have shape (2,), that of `x` without its last axis"),
    (lambda: entropy(b=jnp.ones(5)), ValueError, "`b` (shape (5,)) must have shape (3,) to match `w`'s outputs"),
    (lambda: entropy(weight=jnp.ones(5)), ValueError, "`weight` (shape (5,)) must have shape (3,), one weight a class"),
    (lambda: entropy(memory="small"), ValueError, "`memory` ('small') must be one of 'fast', 'lean'"),
    (lambda: entropy(reduction="avg"), ValueError, "`reduction` ('avg') must be one of 'mean', 'sum', 'none'"),
    (lambda: entropy(logit_softcap=0), ValueError, "`logit_softcap` (0) must be finite and above 0"),
    (lambda: entropy(logit_softcap=-1.0), ValueError, "`logit_softcap` (-1.0) must be finite and above 0"),
    (lambda: entropy(logit_softcap=float("inf")), ValueError, "`logit_softcap` (inf) must be finite and above 0"),
    (lambda: entropy(logit_softcap=True), TypeError, "`logit_softcap` (bool) must be a static float above 0; under jit"),
    (lambda: entropy(z_loss=-1e-4), ValueError, "`z_loss` (-0.0001) must be finite and at least 0"),
    (lambda: entropy(z_loss=float("nan")), ValueError, "`z_loss` (nan) must be finite and at least 0"),
    (lambda: jax.jit(lambda z: entropy(z_loss=z))(0.1), TypeError, "must be a static float at least 0; under jit pass it as a static argument"),
    (lambda: entropy(block_size=0), ValueError, "`block_size` (0) must be at least 1"),
    (lambda: entropy(block_size=-4), ValueError, "`block_size` (-4) must be at least 1"),
    (lambda: entropy(block_size=2.0), TypeError, "`block_size` (2.0) must be a static int"),
    (lambda: entropy(axis_name="model"), ValueError, "`axis_name` ('model') must name a mesh axis that is in scope; call it inside `shard_map`"),
    (lambda: jaxnn.squared_error(X, X[:, :1]), ValueError, "`y` (shape (2, 5)) must have the shape of `t` (shape (2, 1))"),
    (lambda: jaxnn.l2_penalty({"w": jnp.ones(2, int)}), TypeError, "`params['w']` (dtype int32) must have a floating-point dtype"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, words", BAD, ids=[words[:60] for _, _, words in BAD])
def test_the_message(call, error, words):
    with pytest.raises(error, match=re.escape(words)) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "f, args",
    [
        (jaxnn.linear, (X, W)),
        (jaxnn.conv2d, (IMAGE, jnp.ones((4, 2, 3, 3)))),
        (jaxnn.squared_error, (X, X[0])),
        (jaxnn.softmax, (X, 7)),
    ],
)
def test_the_definition_refuses_the_same(f, args):
    with pytest.raises(ValueError) as rule:
        f(*args)
    with pytest.raises(ValueError, match=re.escape(str(rule.value))):
        f.definition(*args)


def test_numpy_arrays_and_python_numbers_are_welcome():
    import numpy as np

    assert float(jaxnn.relu(-1.5)) == 0.0
    assert jaxnn.linear(np.ones((2, 5), np.float32), np.ones((3, 5), np.float32)).shape == (2, 3)
    assert float(jaxnn.cross_entropy([0.0, 0.0], np.int64(1))) == pytest.approx(np.log(2))
    assert jaxnn.dropout(np.ones(4, np.float32), np.float32(0.0)).shape == (4,)


def test_lists_of_traced_numbers_and_labels_under_jit_are_welcome():
    loss = jax.jit(lambda a, b, t: jaxnn.cross_entropy([a, b], t))
    assert float(loss(0.0, 0.0, 1)) == pytest.approx(0.6931472)


def test_integers_of_any_width_are_labels():
    for dtype in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint32):
        assert float(jaxnn.cross_entropy(jnp.zeros((1, 3)), jnp.array([2], dtype), ignore_index=-100)) > 1


def test_labels_that_int32_cannot_hold_do_not_wrap_round_to_a_class():
    import numpy as np

    rows = jaxnn.cross_entropy(jnp.ones((3, 3)), np.array([2**32, 1, -(2**32)]), reduction="none")
    assert [bool(nan) for nan in jnp.isnan(rows)] == [True, False, True]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    "x, w", [((2, 0, 4, 4), (3, 0, 2, 2)), ((2, 3, 4, 4), (0, 3, 2, 2)), ((0, 3, 4, 4), (2, 3, 2, 2))]
)
def test_convolutions_over_nothing(x, w):
    def total(x, w):
        return jaxnn.conv2d(x, w).sum()

    assert float(total(jnp.ones(x), jnp.ones(w))) == 0.0
    dx, dw = jax.grad(total, (0, 1))(jnp.ones(x), jnp.ones(w))
    assert dx.shape == x and dw.shape == w and not dx.any() and not dw.any()


def test_smoothing_without_classes():
    assert jnp.isnan(jaxnn.cross_entropy(jnp.ones((2, 0)), jnp.zeros(2, int), label_smoothing=0.1))
