"""Bad input to `trace`: one line that names what is wrong, and the cure."""

import jax
import jax.numpy as jnp
import pytest
from graphs import T, W, X
from jax import lax

import jaxnn
from jaxnn.graph import trace


def branch(x):
    return x if x > 0 else -x


def raises(x):
    raise RuntimeError("no such file\nand a second line")


def callback(x):
    return jax.pure_callback(lambda a: a, jax.ShapeDtypeStruct((), jnp.float32), jnp.sum(x))


def looped(x):
    return lax.while_loop(lambda c: c < 3, lambda c: 2 * c, jnp.sum(jnp.abs(x)))


def with_effect(x):
    from jax.experimental import io_callback

    return io_callback(lambda a: a, jax.ShapeDtypeStruct((), jnp.float32), jnp.sum(x))


def complex_inside(x):
    return jnp.abs(jnp.fft.fft(x))[1]


@jax.custom_vjp
def misshapen(x):
    return jnp.sum(x)


misshapen.defvjp(lambda x: (misshapen(x), None), lambda _, dy: (dy,))


@pytest.mark.parametrize(
    ("f", "args", "error", "message"),
    [
        ("loss", (X,), TypeError, "`f` (str 'loss') must be a function of arrays"),
        (jnp.sin, (X,), TypeError, "`f` (sin) must return one floating-point scalar; it returns an array of shape (3,): sum it, or index it"),
        (lambda x: (x[0], x), (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns a tuple of 2 values: return the loss alone, without auxiliary values"),
        (lambda x: None, (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns a NoneType: return the loss alone"),
        (lambda x: "done", (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns a str: return the loss alone"),
        (lambda x: jnp.argmax(x), (X,), TypeError, "`f` (<lambda>) must return one floating-point scalar; it returns int32"),
        (lambda: 1.0, (), TypeError, "`args` (none) must include a floating-point array to differentiate"),
        (lambda t: 1.0, (T,), TypeError, "`args` (t: int32[]) must include a floating-point array to differentiate"),
        (jnp.sum, (X[:0],), TypeError, "`args` (a: float32[0]) must include a floating-point array to differentiate"),
        (lambda z: 1.0, (lax.complex(X, X),), TypeError, "`z` (dtype complex64) must be real; pass its real and its imaginary part"),
        (complex_inside, (X,), TypeError, "`f` (complex_inside) must compute in real numbers, but `fft` (test_trace_errors.py:"),
        (branch, (1.0,), TypeError, "`f` (branch) must not branch in Python on the value of an array"),
        (raises, (X,), ValueError, "`f` (raises) must run on `args`, but raises RuntimeError: no such file"),
        (jaxnn.linear, (X, W.T), ValueError, "`f` (linear) must run on `args`, but raises ValueError: `w` (shape (3, 2)) must have 3 input features"),
        (lambda x: x, (X, X), ValueError, "`f` (<lambda>) must run on `args`, but raises TypeError: "),
        (callback, (X,), ValueError, "`pure_callback` (test_trace_errors.py:"),
        (looped, (X,), ValueError, "`while` (test_trace_errors.py:"),
        (lambda x: misshapen(x), (X,), ValueError, "`misshapen` (test_trace_errors.py:"),
        (with_effect, (X,), TypeError, "`f` (with_effect) must be a pure function, without `io_callback`"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("own_errors")
def test_bad_input_gives_one_clear_line(f, args, error, message):
    with pytest.raises(error) as raised:
        trace(f, *args)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


def test_trace_inside_of_a_transformation_is_refused():
    with pytest.raises(TypeError, match="`args` must be arrays that have values; call trace outside"):
        jax.jit(lambda x: trace(jnp.sum, x))(X)
    with pytest.raises(TypeError, match="must not close over the values of a surrounding"):
        jax.grad(lambda x: trace(lambda y: y * x, 1.0))(2.0)
