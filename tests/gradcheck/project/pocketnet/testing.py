"""Arrays for tests."""

import jax.numpy as jnp
import numpy as np


def normal(*shape, seed=0, dtype="float32"):
    """Return a normal array."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def positive(*shape, seed=0, dtype="float32"):
    """Return an array of numbers from 0.5 to 2."""
    return jnp.asarray(np.random.default_rng(seed).uniform(0.5, 2, shape), dtype)


def steps(*shape, seed=0, dtype="float32"):
    """Return an array of small whole numbers, with many ties."""
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 3, shape), dtype)
