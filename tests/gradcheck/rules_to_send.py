"""Functions that a child process is sent: by the name that they have in this module, or as parts of what is sent."""

import functools
import os
import time

import jax
import jax.numpy as jnp


def with_rule(f, factor=1.0):
    rule = jax.custom_vjp(f)

    def backward(x, dy):
        return (factor * jax.vjp(f, x)[1](dy)[0],)

    rule.defvjp(lambda x: (f(x), x), backward)
    return rule


@jax.custom_vjp
def sine(x):
    return jnp.sin(x)


sine.defvjp(lambda x: (sine(x), x), lambda x, dy: (dy * jnp.cos(x),))

cube = with_rule(lambda x: x**3)  # its function has no name, but it has
jitted = jax.jit(sine)


def power(n, x):
    return sine(x) ** n


squared = functools.partial(power, 2)


class Layer:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.apply(x)

    def apply(self, x):
        return self.scale * sine(x)


def of_dict(params, key, n=0):
    return sine(params["w"]) * jax.random.uniform(key, params["w"].shape) + n


def noisy(x):
    print("noise")
    os.write(1, b"more noise\n")
    return sine(x)


def dies(x):
    os._exit(3)


def waits(x):
    time.sleep(60)


def only_on_one_device(x):
    """Not to be called: with one device `check` runs, and the child raises."""
    if jax.device_count() > 1:
        raise RuntimeError("two devices are too many")
    return sine(x)


def closed_over():
    return with_rule(lambda x: x * x)


@jax.custom_vjp
def sum_over_devices(x):
    return jnp.sin(x)


def _mean(x, dy):
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    return (jax.lax.pmean(dy * jnp.cos(x), axes) if axes else dy * jnp.cos(x),)


sum_over_devices.defvjp(lambda x: (jnp.sin(x), x), _mean)
