"""Rules, each with something odd about it. What their derivative is stands beside them."""

import os
import time

import jax
import jax.numpy as jnp
import numpy as np


def _rule(f, bwd, **options):
    """Give a function of one array a rule whose residual is the argument."""
    rule = jax.custom_vjp(f, **options)
    rule.defvjp(lambda x: (f(x), x), bwd)
    return rule


@jax.custom_vjp
def sine(x):
    """A right rule."""
    return jnp.sin(x)


sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (g * jnp.cos(x),))


@jax.custom_vjp
def square(x):
    """A wrong rule, without its 2."""
    return x * x


square.defvjp(lambda x: (x * x, x), lambda x, g: (g * x,))


class Noise:
    """Draws from a generator, which a call consumes: another call gets other numbers, and at last none."""

    def __init__(self, seed, draws):
        numbers = np.random.default_rng(seed)
        self.draws = iter([numbers.standard_normal() for _ in range(draws)])

    def __hash__(self):
        return id(self)

    def __eq__(self, other):
        return self is other


def _noisy(noise, x):
    return x * float(next(noise.draws))


noisy = jax.custom_vjp(_noisy, nondiff_argnums=(0,))
noisy.defvjp(lambda noise, x: (_noisy(noise, x), None), lambda noise, _, g: (g,))


def make_noisy(seed, draws):
    """Return a rule that closes over a generator, which its calls consume."""
    numbers = iter(np.random.default_rng(seed).standard_normal(draws))

    def scaled(x):
        return x * float(next(numbers))

    return _rule(scaled, lambda x, g: (g,))


def scaled_by(factor):
    """Return a rule that closes over an array, or over a tracer."""

    rule = jax.custom_vjp(lambda x: x * factor)
    rule.defvjp(lambda x: (x * factor, factor), lambda factor, g: (g * factor,))
    return rule


@jax.custom_vjp
def doubled(x):
    """A right rule, which is called with donated arrays."""
    return 2 * x


doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))


def _raise(x, g):
    raise NotImplementedError("the backward pass of `unfinished` is not written yet")


unfinished = _rule(lambda x: jnp.exp(x), _raise)


def _hang(x, g):
    while True:
        time.sleep(0.01)


endless = _rule(lambda x: jnp.cos(x), _hang)


def _spin(x, g):
    """Halve a number until it is negative: it never is."""
    step = 1.0
    while step >= 0:
        step /= 2
    return (g * step,)


spinning = _rule(lambda x: x + 1, _spin)


def _wait_on_device(x, g):
    return (jax.lax.while_loop(lambda s: jnp.all(s == s), lambda s: s * 0.5, g),)


looping = _rule(lambda x: x - 1, _wait_on_device)


def _exit(x, g):
    os._exit(0)


leaving = _rule(lambda x: jnp.tanh(x), _exit)


def _abort(x, g):
    os.abort()


aborting = _rule(lambda x: jnp.tan(x), _abort)


def _stop(x, g):
    raise SystemExit("stopped by a backward pass")


stopping = _rule(lambda x: jnp.sinh(x), _stop)
