"""trace(f, *args): run f once, keep every value, and send the gradient back along every edge."""

import collections
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxnn.graph import _formulas, _names
from jaxnn.graph._backprop import Flow, back_propagate
from jaxnn.graph._differences import differences
from jaxnn.graph._formulas import Argument
from jaxnn.graph._program import Instruction, needed, on_host, program_of
from jaxnn.graph.graph import Edge, Graph, Node
from jaxnn.tracing.automatic import automatic
from jaxnn.tracing.contexts import quiet
from jaxnn.tracing.errors import BRANCHING_ERRORS, branching_message, first_line
from jaxnn.tracing.functions import function_name, is_array, is_inexact, is_ref
from jaxnn.tracing.placement import outside_of_meshes, unplaced
from jaxnn.tracing.refs import uses_refs

NO_REFS = (
    "must be a pure function, without refs (jax.new_ref); pass what they hold as arrays, and return what it writes"
)


def trace(f: Callable[..., Any], *args: Any) -> Graph:
    """Return the computation graph of a scalar function at its arguments, with the gradient at every node and edge.

    It is the graph of the notes' back-propagation. A node is a value: an input, a constant, or the result of an
    operation. One node each: a function with a hand-written rule (`jax.custom_vjp`, `jax.custom_jvp`), a jitted
    function of JAX or of another library, a scan, a cond, a remat. The user's own jitted functions are written out. An
    operation with several results has a node for each one that is used. Adding or dropping an axis of size 1 makes no
    node. Each edge has its local derivative and the downstream gradient, upstream × local. The upstream gradient of a
    node is the sum of the downstream gradients of all edges from it.

    Inputs have f's own names, and `jax.ad_checkpoint.checkpoint_name(value, "h")` in f names a computed value. Other
    values are x1, x2, … in order; a reshaped x3 is x3', the loss is ℓ, and the prediction that goes into it is y.
    Labels, indices and keys have no gradient, and a value that is computed only from one of them is no node.

    Inputs have their gradient three times: by the rules, by JAX from the rules' definitions, and by numeric differences
    (of at most 2,000 elements of each input). `f` must depend on nothing but its arguments.

    Args:
        f: any function of JAX arrays whose result is one floating-point scalar.
        *args: its arguments: arrays, floats, and pytrees of them, are inputs; other leaves (ints, strings, functions)
            are constants, and so are arrays that f closes over. Where they lie, on devices or on a mesh, does not
            matter, and f runs outside of the mesh in force unless it needs one.

    Returns:
        The graph. `print(graph)` prints a table, `graph["x1"]` is a node, and `graph.save("page.html")` writes a page,
        which a notebook shows by itself.

    Raises:
        TypeError: if `f` is no function, branches in Python on an array's value, has an effect, or does not return a
            real scalar; or if no argument is a floating-point array; or if it is given, or holds, a `jax.new_ref`.
        ValueError: if `f` raises, or an operation in it has no derivative; if it needs Explicit axes of a mesh, or an
            argument lies on devices of several processes.

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
        *Multi-class classification and backpropagation*, "Computation Graph" and "Backpropagation: Layer Abstraction";
        Taura, *Neural Networks Basics*, "Chain Rule and 'Back Propagation'".
    """
    if not callable(f):
        raise TypeError(f"`f` ({type(f).__name__} {f!r}) must be a function of arrays".replace("\n", " "))
    with quiet(), outside_of_meshes(f, args, {}) as change:
        if change(f) is not f:
            raise ValueError(
                f"`f` ({function_name(f)}) must run without Explicit mesh axes; call trace on a mesh with Auto axes, "
                "and leave out `out_sharding` and `reshard`"
            )
        return _traced(f, function_name(f), args)


def _traced(f: Callable[..., Any], name: str, args: tuple[Any, ...]) -> Graph:
    of_inputs, inputs, input_names = _function_of_inputs(f, name, args)
    program, output = _program(name, of_inputs, inputs)
    order = needed(program, output)
    _check_real(name, [program[i] for i in order])
    flow = jax.jit(lambda *inputs: back_propagate(program, order, output, inputs))(*inputs)
    formulas = {i: _formulas.formulas_of(program[i]) for i in order}
    arguments = {i: [a.name for a in arguments] for i, (_, arguments) in formulas.items()}
    names = _names.node_names(program, order, output, input_names, arguments)
    compared, caption = _compared(of_inputs, inputs, np.asarray(flow.values[output]).item())
    if any(program[i].operation == "stop_gradient" for i in order):
        caption += " They also vary what stop_gradient holds constant."
    drawing = _Drawing(program, flow, names, _operations(program, order))
    nodes = (drawing.node(i, *formulas[i], **compared.get(i, {})) for i in order)
    return Graph(name, names[output], tuple(nodes), caption)


def _function_of_inputs(
    f: Callable[..., Any], name: str, args: tuple[Any, ...]
) -> tuple[Callable[..., Any], list[Any], list[str]]:
    """Return f as a function of its inputs, the leaves that are arrays or floats; the inputs, and their names."""
    named, tree = jax.tree_util.tree_flatten_with_path(args)
    if any(is_ref(x) for _, x in named):
        raise TypeError(f"`f` ({name}) {NO_REFS}")
    leaves = [jnp.asarray(x) if isinstance(x, float) or is_array(x) else x for _, x in named]
    traced = [i for i, x in enumerate(leaves) if is_array(x)]
    input_names = _names.input_names(f, [named[i][0] for i in traced])
    inputs = [unplaced(leaves[i], input_name) for i, input_name in zip(traced, input_names, strict=True)]
    _check_inputs(inputs, input_names, [type(x).__name__ for x in leaves])

    def of_inputs(*inputs: Any) -> Any:
        filled = list(leaves)
        for i, x in zip(traced, inputs, strict=True):
            filled[i] = x
        return _scalar(name, f(*jax.tree.unflatten(tree, filled)))

    return of_inputs, inputs, input_names


class _Drawing(NamedTuple):
    """A program with its values, gradients and names, from which nodes and edges are made."""

    program: Sequence[Instruction]
    flow: Flow
    names: dict[int, str]
    operations: dict[int, str]

    def node(self, i: int, definition: str, arguments: Sequence[Argument], **compared: Any) -> Node:
        return Node(
            name=self.names[i],
            operation=self.operations[i],
            kind=self.program[i].kind,
            value=on_host(self.flow.values[i]),
            upstream=_host(self.flow.upstream.get(i)),
            inputs=tuple(self.edge(i, k, argument) for k, argument in enumerate(arguments)),
            formula=definition,
            source=self.program[i].source,
            **compared,
        )

    def edge(self, i: int, k: int, argument: Argument) -> Edge:
        read = self.program[i].operands[k].index
        no_gradient = _why_no_gradient(self.program[i], self.program[read])
        return Edge(
            argument=argument.name,
            node=self.names[read],
            local=_host(self.flow.local.get((i, k))),
            downstream=_host(self.flow.downstream.get((i, k))),
            formula="" if no_gradient else argument.formula,
            meaning=no_gradient or argument.meaning,
        )


def _compared(f: Callable[..., Any], inputs: list[Any], value: float) -> tuple[dict[int, dict[str, Any]], str]:
    """Return the gradients by autodiff and by differences of each floating-point input, and the graph's caption."""
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


def _operations(program: Sequence[Instruction], order: Sequence[int]) -> dict[int, str]:
    """Name the operations, with a number where several results of one are used."""
    results = collections.Counter(program[i].call for i in order if program[i].eqn is not None)
    return {
        i: f"{program[i].operation}[{program[i].output}]" if results[program[i].call] > 1 else program[i].operation
        for i in order
    }


def _why_no_gradient(reader: Instruction, read: Instruction) -> str:
    """Say why no gradient passes from an instruction to one that it reads; "" if one does."""
    if reader.active and read.active:
        return ""
    if reader.operation == "stop_gradient":
        return "Stopped: what is read here counts as a constant."
    if read.kind == "constant":
        return "A constant has no gradient."
    if not is_inexact(read):
        return "Integers, booleans and keys have no gradient: they cannot change by a little."
    return "No gradient passes here: the way to the loss or to the inputs is stopped, or has no floating-point numbers."


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
            f"an int is a constant: write 3.0, not 3"
        )


def _check_real(name: str, instructions: list[Instruction]) -> None:
    for instruction in instructions:
        if jnp.issubdtype(instruction.dtype, np.complexfloating):
            raise TypeError(
                f"`f` ({name}) must compute in real numbers, but `{instruction.operation}` ({instruction.source}) is "
                f"{instruction.dtype}; keep real and imaginary parts apart"
            )


def _scalar(name: str, result: Any) -> Any:
    """Return f's result, which must be one real number."""
    must = f"`f` ({name}) must return one floating-point scalar"
    leaves, structure = jax.tree.flatten(result)
    if not jax.tree_util.treedef_is_leaf(structure) or not (is_array(result) or isinstance(result, float)):
        found = f"a {type(result).__name__}" + (f" of {len(leaves)} values" if len(leaves) > 1 else "")
        alone = "return the loss alone" + (", without auxiliary values" if leaves else "")
        raise _NotScalarError(f"{must}; it returns {found}: {alone}")
    y = jnp.asarray(result)
    if y.shape:
        raise _NotScalarError(f"{must}; it returns an array of shape {y.shape}: sum it, or index it")
    if not jnp.issubdtype(y.dtype, np.floating):
        raise _NotScalarError(f"{must}; it returns {y.dtype}")
    return y


class _NotScalarError(TypeError):
    """f's result is not one real number."""


def _program(name: str, f: Callable[..., Any], inputs: list[Any]) -> tuple[list[Instruction], int]:
    """Trace f, and return its program and the index of its output."""
    try:
        closed = jax.make_jaxpr(f)(*inputs)
    except BRANCHING_ERRORS as error:
        raise TypeError(branching_message(name, error)) from None
    except _NotScalarError as error:
        raise TypeError(str(error)) from None
    except Exception as error:
        raise ValueError(f"`f` ({name}) must run on `args`, but raises {first_line(error)}") from error
    if uses_refs(closed):
        raise TypeError(f"`f` ({name}) {NO_REFS}")
    if any(isinstance(c, jax.core.Tracer) for c in closed.consts):
        raise TypeError(f"`f` ({name}) must not close over the values of a surrounding jax.jit, jax.grad or jax.vmap")
    try:
        return program_of(closed)
    except TypeError as error:
        raise TypeError(f"`f` ({name}) {error}") from None
