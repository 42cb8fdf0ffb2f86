"""A wrapper around custom_vjp, as many packages have one: positional and keyword arguments, and the name is kept."""

import functools

import jax


def with_rule(fwd, bwd, static=()):
    """Return a decorator that gives a function its forward and its backward rule."""

    def decorate(f):
        inner = jax.custom_vjp(lambda *args: f(*args), nondiff_argnums=static)
        inner.defvjp(lambda *args: fwd(*args), lambda *args: bwd(*args))

        @functools.wraps(f)
        def call(*args):
            return inner(*args)

        return call

    return decorate
