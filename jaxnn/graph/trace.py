"""trace(f, *args): run f once, keep every value, and send the gradient back along every edge."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.graph import _formulas, _names
from jaxnn.graph._backprop import back_propagate
from jaxnn.graph._differences import differences
from jaxnn.graph._formulas import Argument
from jaxnn.graph._program import Step, is_inexact, needed, on_host, steps_of
from jaxnn.graph.graph import Edge, Graph, Node
from jaxnn.tracing.automatic import automatic
from jaxnn.tracing.contexts import quiet
from jaxnn.tracing.functions import BRANCHED, branched, first_line, function_name, is_array


def trace(f: Callable[..., Any], *args: Any) -> Graph:
    """Return the computation graph of a scalar function at its arguments, with the gradient at every node and edge.

    The graph is the one of the notes' back-propagation. A node is a value: an input, a constant, or the result of an
    operation. A function with a hand-written rule (`jax.custom_vjp`, `jax.custom_jvp`) is one node, and so are a
    function of JAX or another library that is jitted, a scan, a cond and a remat; the user's own jitted functions are
    written out. Of an operation with several results each one that is used is a node. What only adds or drops an axis
    of size 1 is no node. Each edge has its local derivative and the downstream gradient, upstream × local; the
    downstream gradients of all that read a node add up to its upstream gradient.

    Inputs have f's own names, and `jax.ad_checkpoint.checkpoint_name(value, "h")` in f names a computed value. Others
    are x1, x2, … in order, a reshaped x3 is x3', the loss is ℓ, and the prediction that goes into it y. Labels, indices
    and keys have no gradient, and what is computed from one of them alone is no node.

    Gradients of inputs are there three times: by the rules, by JAX from the definitions in the rules' place, and by
    numeric differences, of at most 2,000 elements of each input. `f` must not depend on anything but its arguments.

    Args:
        f: any function of JAX arrays whose result is one floating-point scalar.
        *args: its arguments: arrays, floats, and pytrees of them, are inputs; other leaves (ints, strings, functions)
            are constants, and so are arrays that f closes over.

    Returns:
        The graph. `print(graph)` is a table, `graph["x1"]` a node, `graph.save("page.html")` a page to look at, which
        a notebook shows by itself.

    Raises:
        TypeError: `f` is no function, branches in Python on an array's value, has an effect, or does not return a real
            scalar; or there is no floating-point array among the arguments.
        ValueError: `f` raises, or something in it has no derivative.

    Example:
        >>> import jaxnn
        >>> graph = jaxnn.graph.trace(lambda w, x: jaxnn.relu(w * x), 3.0, 2.0)
        >>> print(graph)
        <lambda>(w, x) = 6
        name  operation  shape  value  |upstream|
        w     input      ()         3           2
        x     input      ()         2           3
        x1    mul(w, x)  ()         6           1
        ℓ     relu(x1)   ()         6           1
        >>> graph["x1"].inputs[0].local
        array([[2.]], dtype=float32)

    References:
        Lecture 001, "Computation Graph" and "Backpropagation: Layer Abstraction"; Taura, Neural Networks Basics, "Chain
        Rule and 'Back Propagation'".
    """
    if not callable(f):
        raise TypeError(f"`f` ({type(f).__name__} {f!r}) must be a function of arrays".replace("\n", " "))
    with quiet():
        return _traced(f, function_name(f), args)


def _traced(f: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Graph:
    named, tree = jax.tree_util.tree_flatten_with_path(args)
    leaves = [jnp.asarray(x) if isinstance(x, float) or is_array(x) else x for _, x in named]
    traced = [i for i, x in enumerate(leaves) if is_array(x)]
    inputs = [leaves[i] for i in traced]
    input_names = _names.input_names(f, [named[i][0] for i in traced])
    _check_inputs(inputs, input_names, [type(x).__name__ for x in leaves])

    def of_inputs(*inputs: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(traced, inputs, strict=True):
            filled[i] = x
        return _scalar(name, f(*jax.tree.unflatten(tree, filled)))

    steps, output = _steps(name, of_inputs, inputs)
    order = needed(steps, output)
    _check_real(name, [steps[i] for i in order])
    flow = jax.jit(lambda *inputs: back_propagate(steps, order, output, inputs))(*inputs)
    written = {i: _formulas.written(steps[i]) for i in order}
    arguments = {i: [a.name for a in arguments] for i, (_, arguments) in written.items()}
    names = _names.node_names(steps, order, output, input_names, arguments)
    operations = _operations(steps, order)
    compared, caption = _compared(of_inputs, inputs, np.asarray(flow.values[output]).item())
    if any(steps[i].operation == "stop_gradient" for i in order):
        caption += " They move what stop_gradient holds still, too."

    def edge(i: int, k: int, argument: Argument) -> Edge:
        source = steps[i].operands[k].step
        still = _why_no_gradient(steps[i], steps[source])
        return Edge(
            argument=argument.name,
            node=names[source],
            local=_host(flow.local.get((i, k))),
            downstream=_host(flow.downstream.get((i, k))),
            formula="" if still else argument.formula,
            meaning=still or argument.meaning,
        )

    def node(i: int) -> Node:
        definition, arguments = written[i]
        return Node(
            name=names[i],
            operation=operations[i],
            kind=steps[i].kind,
            value=on_host(flow.values[i]),
            upstream=_host(flow.upstream.get(i)),
            inputs=tuple(edge(i, k, argument) for k, argument in enumerate(arguments)),
            formula=definition,
            source=steps[i].source,
            **compared.get(i, {}),
        )

    return Graph(name, names[output], tuple(map(node, order)), caption)


def _compared(f: Callable[..., Any], inputs: list[Any], value: float) -> tuple[dict[int, dict[str, Any]], str]:
    """Return the gradients by autodiff and by differences of each floating-point input, and a sentence on them."""
    floating = [i for i, x in enumerate(inputs) if is_inexact(x)]
    numeric = differences(f, inputs, floating, value)
    reason = f": {numeric.reason}" if numeric.reason else ""
    caption = f"Numeric differences in {numeric.dtype}, with a step of {numeric.step:g} of an element's size{reason}."
    try:
        autodiff: Sequence[Any] = jax.jit(jax.grad(automatic(f), floating))(*inputs)
    except Exception as error:
        autodiff = [None] * len(floating)
        caption += f" JAX has no derivative of the rules' definitions: {first_line(error)}."
    return {
        i: {
            "by_autodiff": _host(gradient),
            "by_difference": difference,
            "difference_step": numeric.step,
            "kinks": kinks,
        }
        for i, gradient, difference, kinks in zip(floating, autodiff, numeric.gradients, numeric.kinks, strict=True)
    }, caption


def _operations(steps: Sequence[Step], order: Sequence[int]) -> dict[int, str]:
    """Name the steps' operations; with a number where several results of one are used."""
    results = collections.Counter(steps[i].call for i in order if steps[i].eqn is not None)
    return {
        i: f"{steps[i].operation}[{steps[i].output}]" if results[steps[i].call] > 1 else steps[i].operation
        for i in order
    }


def _why_no_gradient(step: Step, source: Step) -> str:
    """Say why no gradient goes from a step to one that it reads; empty if one does."""
    if step.active and source.active:
        return ""
    if step.operation == "stop_gradient":
        return "Stopped: what is read here is taken for a constant."
    if source.kind == "constant":
        return "A constant: it does not move."
    if not jnp.issubdtype(source.dtype, np.inexact):
        return "Integers, booleans and keys do not move by a little: they have no gradient."
    return "No gradient flows here: what lies between is no floating-point number, or stopped."


def _host(x: Any) -> Any:
    return None if x is None else np.asarray(x)


def _check_inputs(inputs: list[Any], names: list[str], kinds: list[str]) -> None:
    if any(isinstance(x, jax.core.Tracer) for x in inputs):
        raise TypeError("`args` must be arrays that have values; call trace outside of jax.jit, jax.grad and jax.vmap")
    for x, name in zip(inputs, names, strict=True):
        if jnp.issubdtype(x.dtype, np.complexfloating):
            raise TypeError(f"`{name}` (dtype {x.dtype}) must be real; pass its real and its imaginary part")
    if not any(is_inexact(x) and x.size for x in inputs):
        types = ", ".join(f"{name}: {x.dtype}{list(x.shape)}" for x, name in zip(inputs, names, strict=True))
        raise TypeError(
            f"`args` ({types or ', '.join(kinds) or 'none'}) must include a floating-point array to differentiate; "
            f"an int is a constant, write 3.0 for 3"
        )


def _check_real(name: str, steps: list[Step]) -> None:
    for step in steps:
        if jnp.issubdtype(step.dtype, np.complexfloating):
            raise TypeError(
                f"`f` ({name}) must compute in real numbers, but `{step.operation}` ({step.source}) is {step.dtype}; "
                f"keep real and imaginary parts apart"
            )


def _scalar(name: str, result: Any) -> Any:
    """Return f's result, which must be one real number."""
    must = f"`f` ({name}) must return one floating-point scalar"
    leaves, structure = jax.tree.flatten(result)
    if not jax.tree_util.treedef_is_leaf(structure) or not (is_array(result) or isinstance(result, float)):
        found = f"a {type(result).__name__}" + (f" of {len(leaves)} values" if len(leaves) > 1 else "")
        alone = "return the loss alone" + (", without auxiliary values" if leaves else "")
        raise NotScalar(f"{must}; it returns {found}: {alone}")
    y = jnp.asarray(result)
    if y.shape:
        raise NotScalar(f"{must}; it returns an array of shape {y.shape}: sum it, or index it")
    if not jnp.issubdtype(y.dtype, np.floating):
        raise NotScalar(f"{must}; it returns {y.dtype}")
    return y


class NotScalar(TypeError):
    """f's result cannot be differentiated."""


def _steps(name: str, f: Callable[..., Any], inputs: list[Any]) -> tuple[list[Step], int]:
    try:
        closed = jax.make_jaxpr(f)(*inputs)
    except BRANCHED as error:
        raise TypeError(branched(name, error)) from None
    except NotScalar as error:
        raise TypeError(str(error)) from None
    except Exception as error:
        raise ValueError(f"`f` ({name}) must run on `args`, but raises {first_line(error)}") from error
    if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
        raise TypeError(f"`f` ({name}) must not close over the values of a surrounding jax.jit, jax.grad or jax.vmap")
    try:
        return steps_of(closed)
    except TypeError as error:
        raise TypeError(f"`f` ({name}) {error}") from None
