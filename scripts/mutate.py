"""Mutation testing of the rules: change one token of a rule, and see whether tests and `gradcheck.check` notice.

    python scripts/mutate.py [NAME ...] [--judge tests|check|both] [--list] [--jobs N] [--only TEXT]

NAME is a file (`relu`, `_labels`) or a component (`nll_loss`); all without. A mutant is one small edit of the syntax
tree of a forward or backward rule or of a helper that a rule reaches: sign, operator, comparison, operand order,
dropped term or call, constant, axis, dtype, function. Argument checks, messages, annotations and `.definition`s stay.

Two judges decide by themselves. `tests` runs the component tests of the components that reach the mutated function,
up to the first failure. `check` runs `gradcheck.check` over their cases against the unchanged definition; mutants that
it may accept are listed by patterns, each with the reason, and it is not asked about them.

Each mutant has a process of its own, forked from this one, which has imported JAX and started no backend of it.

All of them take hours, so `mutants.json` keeps, for every function, how many mutants each judge has noticed, once they
are all that it must notice. A function is judged again when it changes, or its line there is removed.
"""

import argparse
import ast
import collections
import contextlib
import copy
import functools
import hashlib
import importlib.machinery
import itertools
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jaxnn"
FILES = ["layers/*.py", "losses/*.py", "_rules.py", "_softmax.py", "_blocks.py", "_devices.py"]
SHARED, OWN = (
    "components transformations residuals errors modes",
    "pooling_indices penalties dropout conv2d_paths linear_cross_entropy",
)
SECONDS = 120  # for one test, or one case of `check`
# Blocks of any size have the same result.
ONLY_SPEED = {"_samples_in", "_BLOCK_BYTES", "_rows_more", "_block_sizes", "fitting", "even"}
SYMMETRIC_LOSS = "(y − t)² is (t − y)²"
ORDER = "NumPy orders float32 and float64 as their sizes do"
FLOAT32 = "the other argument's is float32 at least"
EQUIVALENT = {  # key of the mutant (its id without line and column): reason
    "layers/conv2d.py _input_gradient: (0, 1) -> (1, 0)": "both axes are turned, in either order",
    "layers/conv2d.py _weight_gradient_by_convolution: (before, size, spread, reach) -> (before, size, reach, spread)":
        "only their sum is used",
    **{f"layers/conv2d.py _conv2d_bwd: (0, 1, 2) -> {axes}": "a sum over the same axes"
       for axes in ("(1, 0, 2)", "(0, 2, 1)")},
    "layers/conv2d.py _product: groups == 1 -> groups == 0": "the general form, slower",
    "layers/conv2d.py _product: dw.transpose(1, 3, 2, 0, 4).reshape(left, right, of_group, outputs) -> "
    "dw.transpose(1, 3, 2, 0, 4)": "with several groups its caller reshapes once more",
    "layers/conv2d.py _weight_gradient_by_products: i * block -> -(i * block)": "the same blocks, from the last on",
    **{f"layers/conv2d.py {mutant}": "blocks of another size, the same result" for mutant in (
        *(f"_weight_gradient_by_products: (oh, ow, kh, kw, x.shape[-1]) -> {shape}" for shape in (
            "(ow, oh, kh, kw, x.shape[-1])", "(oh, kh, ow, kw, x.shape[-1])", "(oh, ow, kw, kh, x.shape[-1])",
            "(oh, ow, kh, x.shape[-1], kw)")),
        *(f"_weight_gradient_by_products: (kh, kw, _, _) -> ({axes}, _)" for axes in ("kw, kh, _", "kh, _, kw")),
        *(f"_weight_gradient_by_products: -1 -> {axis}" for axis in ("1", "-0", "-2")))},
    **{f"layers/conv2d.py _convolve: {other}": "any number of rows more has the same result" for other in (
        "more == 0 -> more != 0", "more == 0 -> more == 1",
        "functools.partial(with_more_rows, 0) -> functools.partial(with_more_rows, 1)",
        *("lax.platform_dependent(x, w, cpu=functools.partial(with_more_rows, more), default=as_given) -> "
          f"lax.platform_dependent(x, w, {path})"
          for path in ("default=as_given", "cpu=functools.partial(with_more_rows, more)")))},
    **{f"layers/log_softmax.py _log_softmax_bwd: jnp.where(where, {d}, zero) -> jnp.where(where, {d}, -zero)": "−0"
       for d in ("dx", "dy")},
    "_devices.py varying: lax.pcast(x, axes, to='varying') if axes else x -> lax.pcast(x, axes, to='varying')":
        "over no axes it does nothing",
    "losses/cross_entropy.py _expected: jnp.issubdtype(targets.dtype, jnp.floating) -> "
    "jnp.issubdtype(jnp.bfloat16, jnp.floating)": "the general form, slower",
    "layers/max_pool2d.py _plane_indices: zip(geometry.stride, geometry.outputs, geometry.padding, strict=True) -> "
    "zip(geometry.stride, geometry.outputs, geometry.padding)": "all three are pairs",
    "layers/max_pool2d.py _plane_indices: strict=True -> strict=False": "all three are pairs",
    "losses/nll.py _nll_fwd: jnp.where(_labels.is_label(labels, p.shape[-1]), _at_label(p, labels), "
    "jnp.ones((), wide(p.dtype))) -> jnp.where(_labels.is_label(labels, p.shape[-1]), _at_label(p, labels), "
    "-jnp.ones((), wide(p.dtype)))": "any number but 0 does, in a row whose loss and gradient are set afterwards",
    "losses/nll.py _to_label: jnp.where(_labels.is_label(labels, x.aval.shape[-1])[..., None], dx, jnp.nan) -> "
    "jnp.where(_labels.is_label(labels, x.aval.shape[-1])[..., None], dx, -jnp.nan)": "NaN has no sign that counts",
    "losses/nll.py _to_label: jnp.where(_labels.is_ignored(labels, ignore_index)[..., None], zero, dx) -> "
    "jnp.where(_labels.is_ignored(labels, ignore_index)[..., None], -zero, dx)": "−0",
    "_softmax.py shifted: jnp.zeros((), x.dtype) -> jnp.ones((), x.dtype)": "−∞ less any number",
    "_softmax.py shifted: lax.stop_gradient(jnp.max(x, axes.of_array, keepdims=True, initial=-jnp.inf)) -> "
    "jnp.max(x, axes.of_array, keepdims=True, initial=-jnp.inf)": "the derivative of a shift of all x cancels",
    "losses/nll.py _by_label: jnp.where(_labels.is_label(labels, classes), l, jnp.nan) -> "
    "jnp.where(_labels.is_label(labels, classes), l, -jnp.nan)": "NaN has no sign that counts",
    **{f"layers/max_pool2d.py _max_pool2d_bwd: {shifts}": "more shifts than windows over a pixel add zeros"
       for shifts in ("-kh // sh -> -kh * sh", "-kh // sh -> -kh", "-kw // sw -> -kw * sw", "-kw // sw -> -kw")},
    **{f"layers/max_pool2d.py _max_pool2d_bwd: {dtype}": "a sum of two, or of one, is rounded once in either dtype"
       for dtype in ("wide(dy.dtype) if len(shifts) > 1 else dy.dtype -> wide(dy.dtype)",
                     "len(shifts) > 1 -> len(shifts) >= 1", "len(shifts) > 1 -> len(shifts) > 0",
                     "len(shifts) > 1 -> len(shifts) > 2")},
    **{f"layers/max_pool2d.py _largest: jnp.zeros(x.shape, dtype) -> {other}": "the first pass takes nothing from it"
       for other in ("jnp.ones(x.shape, dtype)", "jnp.zeros(x.shape, jnp.bfloat16)")},
    "layers/max_pool2d.py _largest_along: range(1, k) -> range(0, k)": "the first pixel is not larger than itself",
    "layers/max_pool2d.py _to_pixels: (0, 1) -> (1, 0)": "the axes do not depend on one another",
    **{f"layers/max_pool2d.py _to_pixels: {more}": "more zeros than needed, cut off afterwards" for more in (
        *("-(-(p + size) // s) - geometry.outputs[axis] - shift[axis] -> "
          f"-(-(p + size) // s) - geometry.outputs[axis]{x}"
          for x in ("", " + shift[axis]")),
        *(f"-(-(p + size) // s) - geometry.outputs[axis] -> -(-(p + size) // s){x}"
          for x in ("", " + geometry.outputs[axis]")),
        *(f"-(p + size) // s -> -(p + size){x}" for x in ("", " * s")))},
    "layers/max_pool2d.py outputs: zip(self.size, self.padding, self.window, self.stride, strict=True) -> "
    "zip(self.size, self.padding, self.window, self.stride)": "all are pairs",
    "layers/max_pool2d.py outputs: strict=True -> strict=False": "all are pairs",
    "layers/max_pool2d.py _first_pixel: jnp.maximum(0, geometry.padding[axis] - starts) -> "
    "jnp.maximum(-0, geometry.padding[axis] - starts)": "an integer",
    "layers/max_pool2d.py _first_pixel: jnp.arange(geometry.outputs[axis], dtype=jnp.int32) -> "
    "jnp.arange(geometry.outputs[axis])": "becomes the dtype of positions in the end",
    "losses/_labels.py row_weight: jnp.where(is_ignored(labels, ignore_index), zero, of_row) -> "
    "jnp.where(is_ignored(labels, ignore_index), -zero, of_row)": "−0",
    "losses/cross_entropy.py _by_label: jnp.where(valid, x, jnp.asarray(bad, x.dtype)) -> "
    "jnp.where(valid, x, -jnp.asarray(bad, x.dtype))": "NaN, or a 0 that is added to others",
    "losses/cross_entropy.py _cross_entropy_bwd: tuple(range(du.ndim - 1)) -> range(du.ndim - 1)":
        "JAX takes any sequence of axes",
    "losses/cross_entropy.py _smoothed: u if epsilon == 0 else (1 - epsilon) * u + epsilon / "
    "max(1, options.classes(like)) -> (1 - epsilon) * u + epsilon / max(1, options.classes(like))": "1 u + 0 is u",
    **{f"losses/cross_entropy.py {f}: max(1, options.classes({x})) -> max(2, options.classes({x}))":
       "the loss of a single class is 0" for f, x in (("_smoothed", "like"), ("_expected", "x"))},
    "losses/linear_cross_entropy.py _arguments: max(1, count) -> max(2, count)": "the loss of a single class is 0",
    "losses/linear_cross_entropy.py _by_rows: sums if forms_gradient else (None, None) -> sums": "zeros, not used",
    **{f"losses/linear_cross_entropy.py {f}: {mutant}": "NaN has no sign that counts" for f, mutant in (
        ("_da", "jnp.where(block.bad, jnp.nan, dl) -> jnp.where(block.bad, -jnp.nan, dl)"),
        ("_losses", "jnp.where(block.bad, jnp.nan, l) -> jnp.where(block.bad, -jnp.nan, l)"))},
    "losses/linear_cross_entropy.py _finite: jnp.zeros((), largest.dtype) -> jnp.ones((), largest.dtype)":
        "−∞ less any number",
    **{f"losses/linear_cross_entropy.py _linear_cross_entropy_bwd: {mutant}": "both have five" for mutant in (
        "zip(gradient, types, strict=True) -> zip(gradient, types)", "strict=True -> strict=False")},
    **{f"losses/linear_cross_entropy.py _losses: s.smoothed is not None and block.beta_sum is not None -> {other}":
       "both are None, or neither" for other in (
        "s.smoothed is not None or block.beta_sum is not None", "s.smoothed is not None",
        "block.beta_sum is not None")},
    "losses/linear_cross_entropy.py _losses: jnp.where(block.counted, jnp.where(block.bad, jnp.nan, l), zero) -> "
    "jnp.where(block.counted, jnp.where(block.bad, jnp.nan, l), -zero)": "−0",
    "losses/linear_cross_entropy.py _losses: jnp.where(block.counted & ~block.bad, gap, zero) -> "
    "jnp.where(block.counted & ~block.bad, gap, -zero)": "−0",
    "losses/linear_cross_entropy.py _statistics: _merged(so_far, _of_block(part, z)) -> "
    "_merged(_of_block(part, z), so_far)": "the larger, and sums, of both",
    "losses/linear_cross_entropy.py _some_classes: -1 -> -2": "no class, either",
    "losses/linear_cross_entropy.py _of_block: jnp.where(is_here, _labels.at_label(z, block.labels), zero) -> "
    "jnp.where(is_here, _labels.at_label(z, block.labels), -zero)": "−0",
    "losses/linear_cross_entropy.py _losses: block.counted & ~block.bad -> block.counted":
        "what a row of no class weighs is a constant",
    "_rules.py cotangent: lax.psum(ct, affected) if affected else ct -> lax.psum(ct, affected)": "a sum over no axes",
    "_rules.py vary_with: lax.pcast(x, tuple(axes), to='varying') if axes else x -> "
    "lax.pcast(x, tuple(axes), to='varying')": "over no axes it changes nothing",
    "_rules.py wide: max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize) -> "
    "max(jnp.dtype(dtype), jnp.dtype(jnp.float32))": ORDER,
    "losses/_labels.py at_label: jnp.take_along_axis(x, index, -1, mode='promise_in_bounds') -> "
    "jnp.take_along_axis(x, index, -1)": "the index is in bounds",
    "losses/_labels.py at_label: (..., 0) -> (..., 1)": "JAX takes the last element for one beyond the end",
    "losses/_labels.py row_weight: jnp.where(is_label(here, len(weight)), of_label, zero) -> "
    "jnp.where(is_label(here, len(weight)), of_label, -zero)": "−0",
    **{f"losses/_labels.py in_range: {mutant}": "JAX clamps an index, and what is found for no label is not used"
       for mutant in ("jnp.where(is_label(labels, classes), labels, jnp.zeros((), labels.dtype)) -> labels",
                      "jnp.zeros((), labels.dtype) -> jnp.ones((), labels.dtype)")},
    "losses/_labels.py in_range: jnp.where(is_label(labels, classes), labels, jnp.zeros((), labels.dtype))"
    ".astype(jnp.int32) -> jnp.where(is_label(labels, classes), labels, jnp.zeros((), labels.dtype))":
        "an index in any wide dtype",
    "layers/dropout.py _keep: (2,) -> (3,)": "threefry's bits do not depend on how many are drawn",
    "layers/dropout.py _keep: seeds[1] -> seeds[2]": "JAX takes the last element for one beyond the end",
    "layers/dropout.py dropout: threshold == 0 or key is None -> key is None": "all are kept, times 1",
    "layers/linear.py _linear_bwd: tuple(range(dy.ndim - 1)) -> range(dy.ndim - 1)": "JAX takes any sequence of axes",
    "layers/softmax.py _softmax_bwd: jnp.zeros((), dy.dtype) -> jnp.ones((), dy.dtype)": "there y is 0",
    "losses/_reduction.py _mean_bwd: cotangent(jnp.broadcast_to(dl, l.aval.shape), l) -> "
    "jnp.broadcast_to(dl, l.aval.shape)": "what a row counts for varies over no axis that its loss does not",
    **{f"losses/_reduction.py _mean_bwd: jnp.where(total == 0, zero, {d}) -> jnp.where(total == 0, -zero, {d})": "−0"
       for d in ("dy / total", "-dy * mean / total")},
    "losses/penalties.py _sum_over: max((wide(w.dtype) for w in leaves), key=lambda dtype: dtype.itemsize, "
    "default=jnp.float32) -> max((wide(w.dtype) for w in leaves), default=jnp.float32)": ORDER,
    **{f"losses/{f}: max(wide({v}.dtype), wide(t.dtype), key=lambda dtype: dtype.itemsize) -> "
       f"max(wide({v}.dtype), wide(t.dtype))": ORDER
       for f, v in (("squared_error.py _difference", "y"), ("binary_cross_entropy.py _widened", "x"))},
    **{f"losses/squared_error.py _difference: wide({v}.dtype) -> {v}.dtype": FLOAT32 for v in "yt"},
    **{f"losses/binary_cross_entropy.py _widened: wide({v}.dtype) -> {v}.dtype": FLOAT32 for v in "xt"},
    **{f"losses/squared_error.py {swap}": SYMMETRIC_LOSS
       for swap in ("squared_error: (y, t) -> (t, y)", "squared_error: _squared_error(y, t) -> _squared_error(t, y)",
                    "_squared_error: _squared_error_fwd(y, t) -> _squared_error_fwd(t, y)",
                    "_squared_error_fwd: _difference(y, t) -> _difference(t, y)")},
    **{f"_blocks.py over_blocks: blocks <= 1 -> {other}": "a single block by a loop"
       for other in ("blocks < 1", "blocks <= 0")},
    "_blocks.py over_blocks: None if size % block == 0 else start + jnp.arange(block, dtype=first.dtype) >= first -> "
    "start + jnp.arange(block, dtype=first.dtype) >= first": "a mask that hides nothing",
    **{f"_blocks.py over_blocks: size % block -> {other}": "a mask that hides nothing"
       for other in ("size // block", "block % size", "size", "block")},
    "_blocks.py over_blocks: jnp.int32(0) -> jnp.int8(0)": "0 in any dtype",
    "_blocks.py add_at: (so_far, part) -> (part, so_far)": "both are added",
    "_blocks.py add_at: (lax.dynamic_slice_in_dim(total, start, len(part)), cotangent(part, type_of(total))) -> "
    "(cotangent(part, type_of(total)), lax.dynamic_slice_in_dim(total, start, len(part)))": "both are added",
    "_blocks.py over_blocks: jnp.arange(blocks, dtype=jnp.int32) -> jnp.arange(blocks)": "a number in any wide dtype",
    "_softmax.py total: jnp.where(summed(axes, where) > 0, sums, jnp.ones((), exp.dtype)) -> "
    "jnp.where(summed(axes, where) > 0, sums, -jnp.ones((), exp.dtype))":
        "divides the zeros of a row without entries, and its logarithm is masked",
}  # fmt: skip


# What a mutant's key contains (a pattern), and why `check`, which judges values, may accept it. The tests do not.
BEYOND_CHECK = {
    r"\.astype\(.*\) -> [\w.()]+$|wide\(.*dtype\) -> ([\w.]+dtype|dtype|wide\(jnp\.bfloat16\))( #2)?$|"
    r"preferred_element_type=.* -> (?!.*preferred)|_max_pool2d_bwd: (wide|len)| wide: max":
        "a rounding more, within 8 eps of a low precision",
    r"jnp\.(zeros|ones|arange|asarray)\(.*dtype\) -> jnp\.(zeros|ones|asarray)\(.*jnp\.bfloat16\)|"
    r"default=jnp\.float32|one_hot: .*dtype|_plane_indices: .*int(8|32\)? -> )|jnp\.arange\((n|geometry\.size.*)\)$":
        "a small whole number, the same in every dtype",
    r"resolve_precision: |precision=[\w.]+[,)].* -> (?!.*[ (]precision=)":
        "a CPU multiplies in full, whatever is asked for",
    r"platform_dependent": "the other path computes the same",
    r"_weight_gradient_by_products: (-1 -> |.*(_samples_in|samples // block|\(oh, |_splits_taps|> \(samples))|"
    r"_largest_divisor: |"
    r"_LONGEST_REACH: |_MOST_OF_PAIRS: |_splits_taps: .*(reach|kw|inputs|outputs|groups|dilation|stride\[0\]|== 0)|"
    r"_convolve: _rows_more\(|"
    r" _arguments: (_block_sizes\(|None if block_size|memory == .* -> (reduction|memory !=))":
        "blocks of another size, or the other way, the same result",
    r"broadcast_to\(.*\) -> |one_hot: .*(ids|classes)": "JAX broadcasts by itself",
    r"_by_rows_and_columns: (x\.shape\[2\] -> x\.shape\[1\]|\(kh, kw, inputs|.*dilation)":
        "images much wider, or wider than high: `check` is given none",
    r"_weight_gradient_by_products: i \* block -> i$": "images that do not fit in a block: `check` is given none",
    r"_relu_fwd: x > 0|_sides: x >= 0|_largest_along: pixel > largest": "the convention at a kink or a tie",
    r"(zero|ones)\) -> .*-(zero|ones)\)": "−0, or a number that nothing reads",
    r"max\(1, (options\.)?(classes|count)|and (classes|len\(weight\)) -> |at_label: -1|"
    r"_sum_over: max|total == 0":
        "no classes, or no weights at all: `check` is given some",
    r"_expected: epsilon == 0": "the general form, which is the same there",
    r"_devices\.py |lax\.p(sum.* -> .*lax\.pmax|max.* -> .*lax\.psum)|axis_name is|_here: -1 |"
    r"_expected: (.*is_label\(|jnp\.zeros)|row_weight: .*is_label\(here.* -> of_label$|"
    r"from_first: |_share: |_of_all_devices: |"
    r"[*/] _devices\.count\(.*\) -> (?!_devices)(len\(w(eight)?\)|x\.shape\[-1\]|[\w. *]+)"
    r"( [*/] _devices\.count\(.*\))?$":
        "more than one device has classes: `check` cuts rows alone",
    r"over_blocks: step\(carry, jnp\.int32\(0\), None\) if blocks": "no rows, or no classes",
    r"over_blocks: .*(jnp\.arange\(block|bfloat16|int8)": "a small whole number, the same in every dtype",
    r"(_bwd|add_at): cotangent\(.*\) -> |cotangent: |vary_with: |vary_with\(.*\) -> jnp\.zeros\(":
        "of the right type already, but over a mesh",
    r"_nll_fwd: |_to_label: |in_range: |at_label: |is_ignored: |nll(_loss)?: l if rows|"
    r"jnp\.where\(block\.bad, jnp\.nan, d?l\) -> d?l$|~block\.bad -> block\.counted$|_whole: counted & .* -> ~_labels":
        "rows whose label is no class: NaN by contract, whatever was computed",
    r"_by_rows: .* -> functools\.partial\(jnp\.zeros\)$": "float32 is what JAX takes, and float64 in its mode",
    r"_finite: ": "a row of −∞ throughout",
    r"_of_block: .* -> jnp\.max\(z, 1\)$": "the derivative of a shift of all logits cancels",
    r"_keep: .*greater": "one pattern of 2³² bits",
    r" dropout: threshold == 0": "all are kept, times 1",
    r"total: .* > 1$": "a sum of one entry is 1, if that is finite",
    r"_softmax_bwd: (dy if where|jnp\.where\(where, dy)": "there y is 0",
    r"_plane_indices: geometry\.window\[1\]|max_pool2d_with_indices: ": "indices of square windows, and their order",
    r"_first_pixel: |_largest: (\(?row|_first_pixel|\(0, 1\))|"
    r"_largest_along: (p -> not p|.*_first_pixel.* -> (.*-start|at$|.*(< 0|> 1)$))":
        "which pixel is taken of a window that is −∞ throughout",
    r"_largest: (jnp\.uint8|kh)": "positions in more bytes than they need",
}  # fmt: skip


def rules() -> Iterator[tuple[str, str, ast.Module, ast.AST, frozenset[str]]]:
    """Yield file, name, tree, node and components of each function or constant that a component reaches."""
    trees = {str(p.relative_to(PACKAGE)): ast.parse(p.read_text()) for g in FILES for p in sorted(PACKAGE.glob(g))}
    modules = {"jaxnn." + file[:-3].replace("/", "."): file for file in trees}
    nodes: dict[tuple[str, str], ast.AST] = {}
    edges: dict[tuple[str, str], set[tuple[str, str]]] = collections.defaultdict(set)
    for file, tree in trees.items():
        for node in [n for top in tree.body for n in (top.body if isinstance(top, ast.ClassDef) else [top])]:
            if isinstance(node, ast.FunctionDef):
                nodes[file, node.name] = node
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).lstrip("_").isupper():
                nodes[file, ast.unparse(node.targets[0])] = node
            elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):  # _f.defvjp(_f_fwd, _f_bwd)
                edges[file, node.value.func.value.id] |= {(file, rule.id) for rule in node.value.args}
    for (file, name), node in nodes.items():
        imports = [n for n in trees[file].body if isinstance(n, ast.ImportFrom)]
        source = {a.name: n.module for n in imports for a in n.names}
        for n in (n for n, *_ in inner(node) if isinstance(n, ast.Name | ast.Attribute)):
            used = n.id if isinstance(n, ast.Name) else n.attr
            base = ast.unparse(n.value) if isinstance(n, ast.Attribute) else ""
            owners = file, modules.get(source.get(used)), modules.get(f"{source.get(base)}.{base}")
            edges[file, name] |= {(owner, used) for owner in owners} & nodes.keys()
    reached: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
    for at, node in nodes.items():
        todo = [at] if any("defined_by" in ast.unparse(d) for d in getattr(node, "decorator_list", ())) else []
        while todo:
            if at[1] not in reached[now := todo.pop()]:
                reached[now].add(at[1])
                todo += edges[now]
    for (file, name), components in sorted(reached.items()):
        yield file, name, trees[file], nodes[file, name], frozenset(components)


def inner(node: ast.AST) -> Iterator[tuple[Any, ast.AST, Any, Any]]:
    """Yield each node below that computes something: itself, its parent, and the container and key it is put at."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "defaults", "kw_defaults", "ctx"):
            continue
        for key, child in enumerate(value) if isinstance(value, list) else [(field, value)]:
            if isinstance(child, ast.AST) and not is_check(child):
                yield child, node, value if isinstance(value, list) else vars(node), key
                yield from inner(child)


def is_check(node: ast.AST) -> bool:
    """Tell what only checks or documents: raise, a condition to raise, messages, docstrings, calls of checks."""
    if isinstance(node, ast.If):
        return isinstance(node.body[0], ast.Raise)
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Raise | ast.JoinedStr) or "check" in name_of(node)


def name_of(node: ast.AST) -> str:
    """Return the called function's name: "where" of `jnp.where(...)`, "_checks.pair" of a function of ours."""
    text = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
    return text if text.startswith("_") else text.rpartition(".")[2]


OPERATORS = {
    "Add": "Sub", "Sub": "Add", "Mult": "Div", "Div": "Mult", "FloorDiv": "Mult", "Mod": "FloorDiv", "Pow": "Mult",
    "LShift": "RShift", "RShift": "LShift", "BitAnd": "BitOr", "BitOr": "BitAnd", "BitXor": "BitOr",
}  # fmt: skip
SYMMETRIC = ast.Add | ast.Mult | ast.BitAnd | ast.BitOr | ast.BitXor
COMPARISONS = {
    "Gt": ("GtE", "Lt"), "GtE": ("Gt", "LtE"), "Lt": ("LtE", "Gt"), "LtE": ("Lt", "GtE"), "Eq": ("NotEq",),
    "NotEq": ("Eq",), "Is": ("IsNot",), "IsNot": ("Is",), "In": ("NotIn",), "NotIn": ("In",),
}  # fmt: skip
NAMES = {
    "maximum": "minimum", "max": "min", "min": "max", "any": "all", "sum": "mean", "mean": "sum", "ones": "zeros",
    "zeros": "ones", "ones_like": "zeros_like", "zeros_like": "ones_like", "greater_equal": "greater", "log1p": "log",
    "psum": "pmax", "pmax": "psum", "floor": "ceil", "ceil": "floor", "prod": "sum", "add": "subtract",
    "union": "intersection",
    "float32": "bfloat16", "int32": "int8", "uint32": "int32", "uint8": "int8",
}  # fmt: skip
STRINGS = {"NCHW": "NHWC", "OIHW": "HWIO", "HWIO": "OIHW", "H": "W", "W": "H", "O": "I", "I": "O", "N": "C", "C": "N",
           "HW": "WH", "sum": "none", "none": "sum"}  # fmt: skip
UNWRAPPED = {"abs", "exp", "log", "log1p", "sign", "square", "logistic", "rev", "stop_gradient", "cotangent",
             "vary_with", "wide", "broadcast_to", "psum", "pcast", "tuple", "moveaxis", "repeat", "pad"}  # fmt: skip
METHODS = {"astype", "reshape", "swapaxes", "transpose"}  # dropped likewise
SIGNED = {"where": (1, 2), "sum": (0,), "exp": (0,), "log": (0,), "log1p": (0,), "logistic": (0,),
          "maximum": (0, 1), "cotangent": (0,), "dot_general": (0,), "broadcast_to": (0,), "max": (0,)}  # fmt: skip
SWAPPED = {"where": 1, "dot_general": 0, "conv_general_dilated": 0, "greater_equal": 0}  # the first of the two


def edits(node: Any, parent: Any) -> Iterator[ast.AST]:
    """Yield what may stand in a node's place."""
    match node:
        case ast.UnaryOp():
            yield node.operand
        case ast.AugAssign():
            yield ast.AugAssign(node.target, getattr(ast, OPERATORS[type(node.op).__name__])(), node.value)
            yield ast.Pass()
        case ast.BinOp():  # a sign, another operator, the operands exchanged, or one of them alone
            if isinstance(node.op, ast.Mult | ast.Div) and not isinstance(parent, ast.BinOp):
                yield ast.UnaryOp(ast.USub(), node)
            yield ast.BinOp(node.left, getattr(ast, OPERATORS[type(node.op).__name__])(), node.right)
            if not isinstance(node.op, SYMMETRIC):
                yield ast.BinOp(node.right, node.op, node.left)
            yield from (node.left, node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
            yield from node.values
        case ast.Compare():
            for i, op in enumerate(node.ops):
                for other in COMPARISONS[type(op).__name__]:
                    yield ast.Compare(
                        node.left, [*node.ops[:i], getattr(ast, other)(), *node.ops[i + 1 :]], node.comparators
                    )
        case ast.IfExp():
            yield from (node.body, node.orelse)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield from (ast.Constant(value + d) for d in ((-1, 1) if value else (1,)))
        case ast.Constant(value=value) if value in STRINGS:
            yield ast.Constant(STRINGS[value])
        case ast.Tuple() if not isinstance(parent, ast.Subscript):  # neighbours exchanged
            for i, pair in enumerate(zip(node.elts[1:], node.elts, strict=False)):
                yield ast.Tuple([*node.elts[:i], *pair, *node.elts[i + 2 :]], node.ctx)
        case ast.Call():
            yield from edits_of_call(node)
    name = getattr(node, "attr", getattr(node, "id", None))
    called = isinstance(parent, ast.Call) and node is parent.func
    if name in NAMES and (isinstance(node, ast.Attribute) or called):
        attribute = isinstance(node, ast.Attribute)
        yield ast.Attribute(node.value, NAMES[name], node.ctx) if attribute else ast.Name(NAMES[name], node.ctx)
    if name in ("dtype", "accumulator") and isinstance(parent, ast.keyword | ast.Call) and not called:
        yield ast.parse("jnp.bfloat16", mode="eval").body
    if isinstance(node, ast.Name | ast.Call) and isinstance(parent, ast.If | ast.IfExp) and node is parent.test:
        yield ast.UnaryOp(ast.Not(), node)


def edits_of_call(node: ast.Call) -> Iterator[ast.AST]:
    """A sign put before an operand, operands exchanged, the call dropped around one, a keyword argument dropped."""
    name, args = name_of(node), node.args

    def with_arguments(changed: dict[int, ast.expr]) -> ast.Call:
        return ast.Call(node.func, [changed.get(i, a) for i, a in enumerate(args)], node.keywords)

    for i in SIGNED.get(name, ()):
        if i < len(args) and not isinstance(args[i], ast.UnaryOp) and "zero" not in name_of(args[i]):
            yield with_arguments({i: ast.UnaryOp(ast.USub(), args[i])})
    i = SWAPPED.get(name, 0)
    if (name in SWAPPED or name.startswith("_")) and len(args) > i + 1:
        yield with_arguments({i: args[i + 1], i + 1: args[i]})
    if name == "where":
        yield from args[1:]
    if name in METHODS and isinstance(node.func, ast.Attribute):
        yield node.func.value
    if name in UNWRAPPED and args:
        yield args[0]
    for i in range(len(node.keywords)):
        yield ast.Call(node.func, args, node.keywords[:i] + node.keywords[i + 1 :])


def is_equivalent(mutant: "Mutant") -> bool:
    """Tell whether no test can notice it."""
    return mutant.key in EQUIVALENT or mutant.function in ONLY_SPEED


def is_beyond_check(mutant: "Mutant") -> bool:
    """Tell whether `check` may accept it, though the tests may not."""
    return not is_equivalent(mutant) and any(re.search(pattern, mutant.key) for pattern in BEYOND_CHECK)


def must_notice(judge: str, mutant: "Mutant") -> bool:
    """Tell whether a judge has to notice it."""
    return not is_equivalent(mutant) and not (judge == "check" and is_beyond_check(mutant))


class Mutant(NamedTuple):
    """One edit. Without a tree it is the library as it stands."""

    components: frozenset[str]
    file: str = ""
    key: str = ""  # the name that edits elsewhere do not change
    id: str = ""  # with line and column
    tree: Any = None
    place: Any = None
    new: Any = None

    @property
    def of(self) -> str:
        """The file and the function that it is in."""
        return self.key.partition(":")[0]

    @property
    def function(self) -> str:
        """The name of that function."""
        return self.of.rpartition(" ")[2]

    def compiled(self) -> Any:
        """Return the code of the mutated file."""
        container, key = self.place
        old, container[key] = container[key], self.new
        code = compile(ast.fix_missing_locations(self.tree), PACKAGE / self.file, "exec")
        container[key] = old
        return code


def install(file: str, code: Any) -> None:
    """Make Python load the code in place of the file. For a process of its own."""
    load, path = importlib.machinery.SourceFileLoader.get_code, str(PACKAGE / file)
    importlib.machinery.SourceFileLoader.get_code = lambda s, name: code if s.path == path else load(s, name)


def mutants() -> list[Mutant]:
    """Return every mutant, each with another text of its function."""
    found = []
    for file, name, tree, function, components in rules():
        seen, count = {ast.unparse(function)}, collections.Counter[str]()
        for node, parent, container, key in list(inner(function)):
            atom = isinstance(node, ast.Constant | ast.Name | ast.Attribute) and not isinstance(parent, ast.stmt)
            context = parent if atom else node
            for new in edits(node, parent):
                before = ast.unparse(context)
                container[key] = new
                mutated, after = ast.unparse(function), ast.unparse(context if atom else new)
                container[key] = node
                if mutated not in seen:
                    seen.add(mutated)
                    text = f"{name}: {before} -> {after}"
                    count[text] += 1
                    text += f" #{count[text]}" if count[text] > 1 else ""
                    names = f"{file} {text}", f"{file}:{node.lineno}:{node.col_offset} {text}"
                    found.append(Mutant(components, file, *names, tree, (container, key), copy.deepcopy(new)))
    return found


@functools.cache
def words_of(source: Any) -> set[str]:
    """Return the words of a function or module, those that follow `jaxnn.` with it."""
    import inspect

    return set(re.findall(r"(?:jaxnn\.)?\w+", inspect.getsource(source) if source else ""))


Kills = collections.Counter[str]  # what killed how many mutants of a file: it comes first for the next


class Selection:
    """A plugin of pytest: only the tests of a mutant's components, those that killed most before first.

    Then the first case of each test, the second of each, and so on: other tests see more than other cases.
    """

    def __init__(self, mutant: Mutant, kills: Kills) -> None:
        self.wanted = {mutant.function} - mutant.components | {f"jaxnn.{component}" for component in mutant.components}
        self.kills, self.failed = kills, ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        earlier: collections.Counter[str] = collections.Counter()
        order = {}
        for item in filter(self.is_about, items):
            test = item.nodeid.partition("[")[0]
            order[item] = -self.kills[item.nodeid], earlier[test]
            earlier[test] += 1
        items[:] = sorted(order, key=lambda item: order[item])

    def is_about(self, item: Any) -> bool:
        """Tell whether its name (a case's begins with the component) or its source says so: OWN tests', the file's."""
        whole = item.path.stem.removeprefix("test_") in OWN.split()
        named = {f"jaxnn.{word}" for word in re.findall(r"\w+", item.nodeid)}
        return not self.wanted.isdisjoint(named | words_of(getattr(item, "module" if whole else "function", None)))

    def pytest_runtest_setup(self) -> None:
        signal.alarm(SECONDS)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = report.nodeid if report.failed else self.failed


def by_tests(mutant: Mutant, code: Any, kills: Kills) -> str:
    """Return the first component test that fails."""
    import pytest

    if code:
        install(mutant.file, code)
    import jaxnn  # noqa: F401 (before pytest, which would load files that it is given in its own way)

    selection = Selection(mutant, kills)
    files = [f"tests/test_{name}.py" for name in f"{SHARED} {OWN}".split()]
    files.append(str(PACKAGE / mutant.file))  # its doctests
    spared = ["-p", "no:cacheprovider", "-p", "no:unraisableexception", "--tb=no"]  # what takes time and tells nothing
    status = pytest.main(["-xq", *spared, *files], plugins=[selection])
    return "" if status == pytest.ExitCode.OK else selection.failed or f"pytest: {status!r}"


def by_check(mutant: Mutant, code: Any, kills: Kills) -> str:
    """Return the first case in which `gradcheck.check` fails for the mutant, and how, and not for the unchanged."""
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", 4)
    sys.path.insert(0, str(ROOT / "tests"))
    import jaxnn as unchanged

    for name in [name for name in sys.modules if name.partition(".")[0] == "jaxnn"]:
        del sys.modules[name]
    if code:
        install(mutant.file, code)
    from cases import CASES, Case, normal

    import jaxnn
    from jaxnn import gradcheck

    # Blocks of a single sample, and rows more for any channels: the small arguments would have neither.
    blocks: Any = importlib.import_module("jaxnn.layers.conv2d")
    blocks._samples_in = lambda *_: 1
    blocks._rows_more = lambda geometry, x, w, stride, *_: 3 if stride[0] == 1 else 0
    key, tree = np.array([1, 2], np.uint32), lambda rng: ([rng.standard_normal((3, 4)), rng.standard_normal(2)],)
    scores = lambda rng: (rng.standard_normal((3, 4)), key)  # noqa: E731
    cases = [
        *CASES,
        *(Case(f"dropout-{rate}", jaxnn.dropout, scores, {"rate": rate}, ("key",)) for rate in (0.4, 0.0, 1.0)),
        Case("indices", jaxnn.max_pool2d_with_indices, normal((2, 5, 6)), {"window": 3, "stride": 2, "padding": 1}),
        *(Case(f.__name__, f, tree) for f in (jaxnn.l1_penalty, jaxnn.l2_penalty)),
    ]
    cases = [case for case in cases if case.f.__name__ in mutant.components]
    one_each = list({case.f.__name__: case for case in reversed(cases)}.values())

    def failures(f: Any, *args: Any, **options: Any) -> set[tuple[str, str]]:
        rows = gradcheck.check(f, *args, **options).rows
        # Another value than the reference's is a note to `check`, as a straight-through function has one; what raises
        # under shard_map is unsupported.
        told = ("NOTE", "primal"), ("UNSUPPORTED", "shard_map")
        return {(r.check, r.path) for r in rows if r.status == "FAIL" or (r.status, r.check) in told}

    def arguments(case: Case, *dtypes: str) -> Any:
        made, turns = case.make(np.random.default_rng(zlib.crc32(case.id.encode()))), itertools.cycle(dtypes)
        return jax.tree.map(lambda a: jax.numpy.asarray(a, next(turns) if a.dtype == float else a.dtype), made)

    # The quick core for every case, on an accelerator's path too; one case of each component in other dtypes, mixed
    # ones too, and with all checks.
    elsewhere = [case for case in cases if case.f is jaxnn.conv2d]
    rounds = [("rule", "float32", "cpu", cases), ("rule", "float32", "default", elsewhere)]
    rounds += [("rule", dtypes, "cpu", one_each) for dtypes in ("bfloat16", "float16", "float64", "float32 float64")]
    rounds += [("full", "float32", "cpu", one_each)]
    # The first case of each round before the second of any, those that killed most before them all.
    trials = {f"{case.id}, {level}, {dtypes}, {path}": (i, level, dtypes, path, case)
              for level, dtypes, path, those in rounds for i, case in enumerate(those)}  # fmt: skip
    for name in sorted(trials, key=lambda name: (-kills[name], trials[name][0])):
        _, level, dtypes, path, case = trials[name]
        jax.config.update("jax_enable_x64", "float64" in dtypes)
        jax.clear_caches()
        jax.lax.platform_dependent = lambda *args, path=path, **paths: paths.get(path, paths["default"])(*args)
        signal.alarm(SECONDS)
        args = arguments(case, *dtypes.split())
        component = getattr(unchanged, case.f.__name__)
        # The definition of dropout draws other bits: there the unchanged rule is the reference.
        reference = functools.partial(case.call, component if case.f is jaxnn.dropout else component.definition)
        failed = failures(functools.partial(case.call, case.f), *args, level=level, reference=reference)
        if failed:
            unmutated = functools.partial(case.call, component)
            failed -= failures(unmutated, *args, level=level, reference=reference)
        if failed:
            return f"{name}: " + "; ".join(f"{check} of {path}" for check, path in sorted(failed))
    return ""


JUDGES: dict[str, Callable[..., str]] = {"tests": by_tests, "check": by_check}


def judged(tasks: list[tuple[str, Mutant]], jobs: int, programs: str) -> Iterator[tuple[str, Mutant, str, float]]:
    """Yield each task with what failed and its seconds, as its process ends.

    Most programs of a mutant are the unchanged library's: they are compiled once, and kept in a directory that one
    process uses at a time, as JAX's cache on disk has no lock.
    """
    kills: dict[tuple[str, str], Kills] = collections.defaultdict(collections.Counter)
    waiting, running, slots = list(reversed(tasks)), {}, [f"{programs}/{i}" for i in range(jobs)]
    while waiting or running:
        while waiting and slots:
            judge, mutant = waiting.pop()
            slot, (read, write) = slots.pop(), os.pipe()
            code = mutant.tree and mutant.compiled()  # here, as an error of ours would count as a mutant's
            if (pid := os.fork()) == 0:
                alone(functools.partial(JUDGES[judge], mutant, code, kills[judge, mutant.file]), write, slot)
            os.close(write)
            running[pid] = judge, mutant, read, slot, time.monotonic()
        pid, status = os.wait()
        judge, mutant, read, slot, start = running.pop(pid)
        slots.append(slot)
        with open(read) as pipe:
            text = pipe.read()
        failed = json.loads(text) if text else f"the process ended: {os.waitstatus_to_exitcode(status)}"
        kills[judge, mutant.file][failed.partition(": ")[0]] += 1
        yield judge, mutant, failed, time.monotonic() - start


def alone(judge: Callable[[], str], write: int, programs: str) -> None:
    """Run a judge in this forked process, silently, hand over what it says, and end."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    import jax

    jax.config.update("jax_compilation_cache_dir", programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    try:
        failed = judge()
    except BaseException as error:  # whatever a mutant raises, it is noticed
        failed = f"{type(error).__name__}: {error}"
    os.write(write, json.dumps(failed[:300]).encode())
    os._exit(0)


class Ledger:
    """What the judges have noticed, for good in `mutants.json` where it is all of a function's mutants."""

    FILE = Path(__file__).with_name("mutants.json")
    COLUMNS = ("mutants", "equivalent", "beyond check", *(f"{judge} {how}" for judge in JUDGES for how in (
        "noticed", "missed", "not asked")))  # fmt: skip

    def __init__(self, mutants: list[Mutant]) -> None:
        self.mutants: dict[str, list[Mutant]] = collections.defaultdict(list)
        for mutant in mutants:
            self.mutants[mutant.of].append(mutant)
        self.texts = {f"{file} {name}": ast.unparse(function) for file, name, _, function, _ in rules()}
        kept = json.loads(self.FILE.read_text()) if self.FILE.exists() else {}
        self.kept = {of: kept[of] for of in self.mutants if kept.get(of, {}).get("mutants") == self._digest(of)}
        self.verdicts: dict[tuple[str, str], collections.Counter[bool]] = collections.defaultdict(collections.Counter)

    def _digest(self, of: str) -> str:
        """Return what changes when a function does, or what is made of it."""
        keys = (mutant.key for mutant in self.mutants[of])
        return hashlib.sha256("\n".join([self.texts[of], *keys]).encode()).hexdigest()[:16]

    def asked(self, judge: str, of: str) -> int:
        """Return how many of a function's mutants a judge must notice."""
        return sum(must_notice(judge, mutant) for mutant in self.mutants[of])

    def lacks(self, judge: str, mutant: Mutant) -> bool:
        """Tell whether a judge has to be asked about a mutant."""
        return must_notice(judge, mutant) and self.kept.get(mutant.of, {}).get(judge) != self.asked(judge, mutant.of)

    def add(self, judge: str, mutant: Mutant, noticed: bool) -> None:
        """Take a verdict; keep the function's when it is complete."""
        of, count = mutant.of, self.verdicts[judge, mutant.of]
        count[noticed] += 1
        if count[True] == self.asked(judge, of):
            self.kept.setdefault(of, {"mutants": self._digest(of)})[judge] = count[True]
            lines = [f"{json.dumps(of)}: {json.dumps(self.kept[of])}" for of in sorted(self.kept)]
            whole = self.FILE.with_suffix(".new")
            whole.write_text("{\n" + ",\n".join(lines) + "\n}\n")
            whole.replace(self.FILE)

    def row(self, of: str) -> list[int]:
        """Return a function's counts, as `COLUMNS` names them."""
        mutants = self.mutants[of]
        row = [len(mutants), sum(map(is_equivalent, mutants)), sum(map(is_beyond_check, mutants))]
        for judge in JUDGES:
            asked, count = self.asked(judge, of), self.verdicts[judge, of]
            noticed = asked if self.kept.get(of, {}).get(judge) == asked else count[True]
            row += [noticed, count[False], asked - noticed - count[False]]
        return row

    def report(self, functions: list[str]) -> int:
        """Print a table of the files; 1 if a mutant was missed, or not asked about."""
        print(f"{'file':32}", *self.COLUMNS, sep="  ")
        for file in [*dict.fromkeys(of.split()[0] for of in functions), "all"]:
            rows = [self.row(of) for of in functions if file in (of.split()[0], "all")]
            total = [sum(column) for column in zip(*rows, strict=True)]
            print(f"{file:32}", *(f"{n:{len(title)}}" for n, title in zip(total, self.COLUMNS, strict=True)), sep="  ")
        wrong = [i for i, title in enumerate(self.COLUMNS) if title.endswith(("missed", "not asked"))]
        return int(any(total[i] for i in wrong))


def main() -> int:
    """Mutate, judge, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="files or components, all by default")
    parser.add_argument("--judge", choices=("tests", "check", "both"), default="both")
    parser.add_argument("--list", action="store_true", help="list the mutants and run nothing")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="judge only mutants whose id contains this text, whatever is known")
    options = parser.parse_args()

    everything, names = mutants(), set(options.names)
    stale = EQUIVALENT.keys() - {m.key for m in everything}
    if stale := stale | {p for p in BEYOND_CHECK if not any(re.search(p, m.key) for m in everything)}:
        sys.exit("EQUIVALENT and BEYOND_CHECK name no mutant:\n  " + "\n  ".join(sorted(stale)))
    about = lambda m: {Path(m.file).stem, m.function}  # noqa: E731
    chosen = [m for m in everything if not names or names & about(m) or m.components <= names]
    chosen = [m for m in chosen if options.only in m.id]
    if options.list or not chosen:
        print("\n".join(m.id + " (equivalent)" * is_equivalent(m) for m in chosen))
        return 0

    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    os.environ |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "JAXNN_ALL": "1"}
    for name in ("jax.numpy", "jaxtyping", "pytest", "torch"):  # in every process; none starts a backend
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    judges, ledger = list(JUDGES) if options.judge == "both" else [options.judge], Ledger(everything)
    # What few components reach is judged fast.
    chosen.sort(key=lambda m: (len(m.components), m.of))
    tasks = [(j, m) for j in judges for m in chosen if options.only or ledger.lacks(j, m)]
    with tempfile.TemporaryDirectory() as programs:
        if any(judge == "tests" for judge, _ in tasks):
            unchanged = Mutant(frozenset().union(*(m.components for j, m in tasks if j == "tests")), "_rules.py")
            for *_, failed, _ in judged([("tests", unchanged)], 1, programs):
                if failed:
                    sys.exit(f"fails without any mutation: {failed}")
        try:
            for judge, mutant, failed, seconds in judged(tasks, options.jobs, programs):
                if not options.only:
                    ledger.add(judge, mutant, bool(failed))
                if options.only or not failed:
                    print(f"{judge}: {failed or 'missed'}: {mutant.id} ({seconds:.1f} s)", flush=True)
        except KeyboardInterrupt:
            print("interrupted")
    return ledger.report(list(dict.fromkeys(m.of for m in sorted(chosen, key=lambda m: m.of))))


if __name__ == "__main__":
    sys.exit(main())
