"""The annotations of the components, shapes included, are checked at every call of the tests (`conftest.py`)."""

import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import jaxnn
from jaxnn.losses._reduction import reduce


@pytest.mark.parametrize(
    "call",
    [
        lambda: jaxnn.relu(jnp.arange(3)),
        lambda: jaxnn.linear(jnp.ones((2, 5)), jnp.ones((3, 4))),
        lambda: jaxnn.nll(jnp.ones((2, 5)) / 5, jnp.zeros(2)),
        lambda: reduce(jnp.ones(3), np.ones(3), "mean"),
    ],
    ids=["dtype of a public function", "shapes that do not fit together", "dtype of labels", "kind of a private one"],
)
def test_a_call_that_breaks_an_annotation_is_noticed(call):
    with pytest.raises(TypeCheckError):
        call()


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_the_class_axis_may_be_any(axis):
    p, labels = jnp.ones((3, 3)) / 3, jnp.zeros(3, jnp.uint8)
    for f in (jaxnn.nll, jaxnn.nll_loss, jaxnn.cross_entropy):
        assert f(p, labels, axis=axis).shape == ()


def test_both_layouts_fit_their_annotations():
    x, w = jnp.ones((2, 3, 6, 7)), jnp.ones((4, 3, 2, 2))
    nhwc = jaxnn.conv2d(x.transpose(0, 2, 3, 1), w.transpose(2, 3, 1, 0), layout="NHWC")
    assert jaxnn.conv2d(x, w).shape == (2, 4, 5, 6) and nhwc.shape == (2, 5, 6, 4)
    assert jaxnn.max_pool2d(nhwc, layout="NHWC").shape == (2, 2, 3, 4)
