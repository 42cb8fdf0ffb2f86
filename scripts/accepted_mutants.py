"""Mutants that need not be noticed, by any judge or by `check`, each with the reason."""

# Functions and constants that decide only the size of blocks: the result is the same.
ONLY_SPEED = {"_samples_in", "_BLOCK_BYTES", "rows_more", "_block_sizes", "rows_that_fit", "least_overlapping"}
SYMMETRIC_LOSS = "(y − t)² is (t − y)²"
ORDER = "NumPy orders float32 and float64 as their sizes do"
FLOAT32 = "the other argument's is float32 at least"
EQUIVALENT = {  # key of the mutant (its id without line and column): reason
    "layers/_conv2d_convolutions.py input_gradient: (0, 1) -> (1, 0)": "both axes are turned, in either order",
    "layers/_conv2d_convolutions.py weight_gradient_by_convolution: (before, size, spread, reach) -> (before, size, reach, spread)":
        "only their sum is used",
    **{f"layers/conv2d.py _conv2d_bwd: (0, 1, 2) -> {axes}": "a sum over the same axes"
       for axes in ("(1, 0, 2)", "(0, 2, 1)")},
    "layers/_conv2d_cpu.py _product: groups == 1 -> groups == 0": "the general form, slower",
    **{f"layers/_conv2d_cpu.py _by_product: (0, 0) -> {other}": "JAX takes the nearest index there is"
       for other in ("(1, 0)", "(0, 1)")},
    **{f"layers/_conv2d_cpu.py _by_groups: {mutant}": "both have as many groups" for mutant in (
        "zip(jnp.split(x, groups, axis=-1), jnp.split(w, groups, axis=-1), strict=True) -> "
        "zip(jnp.split(x, groups, axis=-1), jnp.split(w, groups, axis=-1))", "strict=True -> strict=False")},
    **{f"layers/_conv2d_cpu.py weight_gradient_by_products: {mutant}": "both have as many groups" for mutant in (
        "zip(*(jnp.split(z, geometry.groups, axis=-1) for z in (x, dy)), strict=True) -> "
        "zip(*(jnp.split(z, geometry.groups, axis=-1) for z in (x, dy)))", "strict=True -> strict=False")},
    **{f"layers/_conv2d_depthwise.py {f}: {mutant}": "all are pairs, or have as many taps" for f, mutant in (
        ("weight_gradient", "zip(sums, taps, strict=True) -> zip(sums, taps)"),
        ("weight_gradient", "strict=True -> strict=False"),
        ("_shifted", "zip(geometry.dilation, window, strict=True) -> zip(geometry.dilation, window)"),
        ("_shifted", "zip(x.shape[1:3], reach, strict=True) -> zip(x.shape[1:3], reach)"),
        ("_shifted", "strict=True -> strict=False"), ("_shifted", "strict=True -> strict=False #2"),
        ("correlate", "zip(pads, spread, strict=True) -> zip(pads, spread)"),
        ("correlate", "zip(channels, weights, strict=True) -> zip(channels, weights)"),
        ("correlate", "zip(_shifted(geometry, (kh, kw), stride, of_x), of_w, strict=True) -> "
                      "zip(_shifted(geometry, (kh, kw), stride, of_x), of_w)"),
        *(("correlate", f"strict=True -> strict=False{n}") for n in ("", " #2", " #3")))},
    "layers/_conv2d_depthwise.py correlate: w.reshape(kh * kw, inputs, 1, 1, 1, groups, outputs // groups).swapaxes(0, 1)"
    ".astype(dtype) -> w.reshape(kh * kw, inputs, 1, 1, 1, groups, outputs // groups).swapaxes(0, 1)":
        "a product has the wider dtype",
    "layers/_conv2d_depthwise.py correlate: (pixels, weight) -> (weight, pixels)": "factors in either order",
    **{f"layers/_conv2d_depthwise.py weight_gradient: {of}.astype(dtype) -> {of}": "a product has the wider dtype" for of in (
        "lax.dynamic_slice(dy, (sample, first, 0, 0, 0), sizes)",
        "lax.dynamic_slice(x, (sample, geometry.stride[0] * first, 0, 0, 0), of_x_sizes)")},
    **{f"layers/_conv2d_depthwise.py weight_gradient: ({start}, 0, 0, 0) -> ({start}, {other})":
       "a slice of whole axes, which JAX moves back into the array"
       for start in ("sample, first", "sample, geometry.stride[0] * first")
       for other in ("1, 0, 0", "0, 1, 0", "0, 0, 1")},
    "layers/_conv2d_depthwise.py weight_gradient: (0, 0) -> (0, 1)": "one more sample, which no block reads",
    **{f"layers/_conv2d_depthwise.py correlate: {mutant}": "the barrier changes no value" for mutant in (
        "lax.optimization_barrier(channels) if inputs > 1 else channels -> lax.optimization_barrier(channels)",
        "lax.optimization_barrier(channels) if inputs > 1 else channels -> channels",
        "inputs > 1 -> inputs >= 1", "inputs > 1 -> inputs < 1", "inputs > 1 -> inputs > 0", "inputs > 1 -> inputs > 2")},
    "layers/_conv2d_cpu.py _product: dw.transpose(1, 3, 2, 0, 4).reshape(left, right, of_group, outputs) -> "
    "dw.transpose(1, 3, 2, 0, 4)": "with several groups its caller reshapes once more",
    "layers/_conv2d_cpu.py weight_gradient_by_products: i * block -> -(i * block)": "the same blocks, from the last on",
    **{f"layers/_conv2d_cpu.py {mutant}": "blocks of another size, the same result" for mutant in (
        *(f"weight_gradient_by_products: (oh, ow, kh, kw, x.shape[-1]) -> {shape}" for shape in (
            "(ow, oh, kh, kw, x.shape[-1])", "(oh, kh, ow, kw, x.shape[-1])", "(oh, ow, kw, kh, x.shape[-1])",
            "(oh, ow, kh, x.shape[-1], kw)")),
        *(f"weight_gradient_by_products: -1 -> {axis} #3" for axis in ("1", "-0", "-2")))},
    **{f"layers/log_softmax.py _log_softmax_bwd: jnp.where(where, {d}, zero) -> jnp.where(where, {d}, -zero)": "−0"
       for d in ("dx", "dy")},
    "rules/sharding.py mark_varying: lax.pcast(x, axes, to='varying') if axes else x -> lax.pcast(x, axes, to='varying')":
        "over no axes it does nothing",
    "losses/_cross_entropy_targets.py expected: jnp.issubdtype(targets.dtype, jnp.floating) -> "
    "jnp.issubdtype(jnp.bfloat16, jnp.floating)": "the general form, slower",
    "layers/_max_pool2d_windows.py plane_indices: zip(geometry.stride, geometry.outputs, geometry.padding, strict=True) -> "
    "zip(geometry.stride, geometry.outputs, geometry.padding)": "all three are pairs",
    "layers/_max_pool2d_windows.py plane_indices: strict=True -> strict=False": "all three are pairs",
    "losses/nll.py _nll_fwd: jnp.where(_labels.is_label(labels, p.shape[-1]), _log_likelihood.at_label(p, labels), "
    "jnp.ones((), accumulation_dtype(p.dtype))) -> jnp.where(_labels.is_label(labels, p.shape[-1]), _log_likelihood.at_label(p, labels), "
    "-jnp.ones((), accumulation_dtype(p.dtype)))": "any number but 0 will do in a row whose loss and gradient are set afterwards",
    "losses/_log_likelihood.py to_label: jnp.where(_labels.is_label(labels, x.aval.shape[-1])[..., None], dx, jnp.nan) -> "
    "jnp.where(_labels.is_label(labels, x.aval.shape[-1])[..., None], dx, -jnp.nan)": "NaN has no sign that counts",
    "losses/_log_likelihood.py to_label: jnp.where(_labels.is_ignored(labels, ignore_index)[..., None], zero, dx) -> "
    "jnp.where(_labels.is_ignored(labels, ignore_index)[..., None], -zero, dx)": "−0",
    "layers/softmax.py _softmax_fwd: wide - largest(axes, wide) if where is None else shifted(axes, x, where) -> "
    "shifted(axes, x, where)": "the general form, slower",
    "rules/softmax_sums.py shifted: jnp.zeros((), x.dtype) -> jnp.ones((), x.dtype)": "−∞ less any number",
    "rules/softmax_sums.py largest: lax.stop_gradient(jnp.max(x, axes.of_array, keepdims=True, initial=-jnp.inf)) -> "
    "jnp.max(x, axes.of_array, keepdims=True, initial=-jnp.inf)": "the derivative of a shift of all x cancels",
    "losses/_log_likelihood.py by_label: jnp.where(_labels.is_label(labels, classes), l, jnp.nan) -> "
    "jnp.where(_labels.is_label(labels, classes), l, -jnp.nan)": "NaN has no sign that counts",
    **{f"layers/max_pool2d.py _gradient: {shifts}": "more shifts than windows over a pixel add zeros"
       for shifts in ("-kh // sh -> -kh * sh", "-kh // sh -> -kh", "-kw // sw -> -kw * sw", "-kw // sw -> -kw")},
    **{f"layers/max_pool2d.py _gradient: {dtype}": "a sum of two, or of one, is rounded once in either dtype"
       for dtype in ("accumulation_dtype(dy.dtype) if len(shifts) > 1 else dy.dtype -> accumulation_dtype(dy.dtype)",
                     "len(shifts) > 1 -> len(shifts) >= 1", "len(shifts) > 1 -> len(shifts) > 0",
                     "len(shifts) > 1 -> len(shifts) > 2")},
    "layers/max_pool2d.py _computed_once: jnp.asarray(np.iinfo(position.dtype).max, position.dtype) -> "
    "jnp.asarray(np.iinfo(position.dtype).min, position.dtype)": "in XLA the remainder by 0 is the number itself",
    "layers/_max_pool2d_windows.py _largest_along: range(1, k) -> range(0, k)": "the first pixel is not larger than itself",
    "layers/_max_pool2d_windows.py to_pixels: (0, 1) -> (1, 0)": "the axes do not depend on one another",
    **{f"layers/_max_pool2d_windows.py to_pixels: {more}": "more zeros than needed, sliced off afterwards" for more in (
        *("-(-(p + size) // s) - geometry.outputs[axis] - shift[axis] -> "
          f"-(-(p + size) // s) - geometry.outputs[axis]{x}"
          for x in ("", " + shift[axis]")),
        *(f"-(-(p + size) // s) - geometry.outputs[axis] -> -(-(p + size) // s){x}"
          for x in ("", " + geometry.outputs[axis]")),
        *(f"-(p + size) // s -> -(p + size){x}" for x in ("", " * s")))},
    "layers/_max_pool2d_windows.py outputs: zip(self.size, self.padding, self.window, self.stride, strict=True) -> "
    "zip(self.size, self.padding, self.window, self.stride)": "all are pairs",
    "layers/_max_pool2d_windows.py outputs: strict=True -> strict=False": "all are pairs",
    "layers/_max_pool2d_windows.py _first_pixel: jnp.maximum(0, geometry.padding[axis] - starts) -> "
    "jnp.maximum(-0, geometry.padding[axis] - starts)": "an integer",
    "layers/_max_pool2d_windows.py _first_pixel: jnp.arange(geometry.outputs[axis], dtype=jnp.int32) -> "
    "jnp.arange(geometry.outputs[axis])": "becomes the dtype of positions in the end",
    **{f"layers/_max_pool2d_tiles.py {f}: {mutant}": "all are pairs" for f, mutant in (
        *((f, f"{z}, strict=True) -> {z})") for f, z in (
            ("_place", "zip(axes, geometry.window"), ("gradient", "zip(geometry.axes, geometry.window"),
            ("gradient", "zip(geometry.axes, geometry.size"),
            ("_tiles", "zip(geometry.axes, geometry.outputs, geometry.window"))),
        *((f, f"strict=True -> strict=False{n}") for f, n in (
            ("_place", ""), ("gradient", ""), ("gradient", " #2"), ("_tiles", ""))))},
    "layers/_max_pool2d_tiles.py _tiles: (axis, n, k) -> (axis, k, n)": "only their product is used",
    "layers/_max_pool2d_tiles.py _tiles: axis + x.ndim -> axis": "an axis counted from the end is the same",
    **{f"layers/_max_pool2d_tiles.py _larger: {swap}": "the larger of two, in either order" for swap in (
        "((x, i), (y, j)) -> ((y, j), (x, i))", "(a, b) -> (b, a)")},
    **{f"layers/_max_pool2d_tiles.py _larger: {mutant}": "two pixels have different places" for mutant in (
        "j < i -> j <= i", "j > i -> j >= i")},
    "rules/softmax_sums.py at_most_largest: -jnp.inf -> jnp.inf": "the smaller of y and ∞ is y",
    "losses/_labels.py row_weight: jnp.where(is_ignored(labels, ignore_index), zero, of_row) -> "
    "jnp.where(is_ignored(labels, ignore_index), -zero, of_row)": "−0",
    "losses/_cross_entropy_targets.py by_label: jnp.where(valid, x, jnp.asarray(bad, x.dtype)) -> "
    "jnp.where(valid, x, -jnp.asarray(bad, x.dtype))": "NaN, or a 0 that is added to others",
    "losses/cross_entropy.py _cross_entropy_bwd: tuple(range(du.ndim - 1)) -> range(du.ndim - 1)":
        "JAX takes any sequence of axes",
    "losses/_cross_entropy_targets.py smoothed: u if epsilon == 0 else (1 - epsilon) * u + epsilon / "
    "max(1, options.classes(like)) -> (1 - epsilon) * u + epsilon / max(1, options.classes(like))": "1 u + 0 is u",
    **{f"losses/_cross_entropy_targets.py {f}: max(1, options.classes({x})) -> max(2, options.classes({x}))":
       "the loss of a single class is 0" for f, x in (("smoothed", "like"), ("expected", "x"))},
    "losses/_linear_cross_entropy_inputs.py prepare: max(1, count) -> max(2, count)": "the loss of a single class is 0",
    "losses/_linear_cross_entropy_blocks.py by_rows: sums if forms_gradient else (None, None) -> sums": "zeros, not used",
    **{f"losses/_linear_cross_entropy_terms.py {f}: {mutant}": "NaN has no sign that counts" for f, mutant in (
        ("da", "jnp.where(block.bad, jnp.nan, dl) -> jnp.where(block.bad, -jnp.nan, dl)"),
        ("losses", "jnp.where(block.bad, jnp.nan, l) -> jnp.where(block.bad, -jnp.nan, l)"))},
    "losses/_linear_cross_entropy_terms.py _finite: jnp.zeros((), largest.dtype) -> jnp.ones((), largest.dtype)":
        "−∞ less any number",
    **{f"losses/linear_cross_entropy.py _linear_cross_entropy_bwd: {mutant}": "both have five" for mutant in (
        "zip(gradient, types, strict=True) -> zip(gradient, types)", "strict=True -> strict=False")},
    **{f"losses/_linear_cross_entropy_terms.py losses: s.smoothed is not None and block.beta_sum is not None -> {other}":
       "both are None, or neither" for other in (
        "s.smoothed is not None or block.beta_sum is not None", "s.smoothed is not None",
        "block.beta_sum is not None")},
    "losses/_linear_cross_entropy_terms.py losses: jnp.where(block.counted, jnp.where(block.bad, jnp.nan, l), zero) -> "
    "jnp.where(block.counted, jnp.where(block.bad, jnp.nan, l), -zero)": "−0",
    "losses/_linear_cross_entropy_terms.py losses: jnp.where(block.counted & ~block.bad, gap, zero) -> "
    "jnp.where(block.counted & ~block.bad, gap, -zero)": "−0",
    "losses/_linear_cross_entropy_blocks.py _statistics: _terms.merged(so_far, _terms.of_block(part, z)) -> "
    "_terms.merged(_terms.of_block(part, z), so_far)": "the larger, and sums, of both",
    "losses/_linear_cross_entropy_blocks.py _some_classes: -1 -> -2": "no class, either",
    "losses/_linear_cross_entropy_terms.py of_block: jnp.where(is_here, _labels.at_label(z, block.labels), zero) -> "
    "jnp.where(is_here, _labels.at_label(z, block.labels), -zero)": "−0",
    "losses/_linear_cross_entropy_terms.py losses: block.counted & ~block.bad -> block.counted":
        "the weight of a row without a class is a constant",
    "rules/cotangents.py cotangent: lax.psum(ct, affected) if affected else ct -> lax.psum(ct, affected)": "a sum over no axes",
    "rules/cotangents.py vary_with: lax.pcast(x, tuple(axes), to='varying') if axes else x -> "
    "lax.pcast(x, tuple(axes), to='varying')": "over no axes it changes nothing",
    "rules/cotangents.py accumulation_dtype: max(jnp.dtype(dtype), jnp.dtype(jnp.float32), key=lambda dtype: dtype.itemsize) -> "
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
    "layers/dropout.py dropout: threshold == 0 or key is None -> key is None": "all are kept, and scaled by 1",
    "layers/linear.py _linear_bwd: tuple(range(dy.ndim - 1)) -> range(dy.ndim - 1)": "JAX takes any sequence of axes",
    "layers/softmax.py _softmax_bwd: jnp.zeros((), dy.dtype) -> jnp.ones((), dy.dtype)": "y is 0 there",
    "losses/_reduction.py _mean_bwd: cotangent(jnp.broadcast_to(dl, l.aval.shape), l) -> "
    "jnp.broadcast_to(dl, l.aval.shape)": "a row's weight varies over no axis that its loss does not vary over",
    **{f"losses/_reduction.py _mean_bwd: jnp.where(total == 0, zero, {d}) -> jnp.where(total == 0, -zero, {d})": "−0"
       for d in ("dy / total", "-dy * mean / total")},
    "losses/penalties.py _sum_over: max((accumulation_dtype(w.dtype) for w in leaves), key=lambda dtype: dtype.itemsize, "
    "default=jnp.float32) -> max((accumulation_dtype(w.dtype) for w in leaves), default=jnp.float32)": ORDER,
    **{f"losses/{f}: max(accumulation_dtype({v}.dtype), accumulation_dtype(t.dtype), key=lambda dtype: dtype.itemsize) -> "
       f"max(accumulation_dtype({v}.dtype), accumulation_dtype(t.dtype))": ORDER
       for f, v in (("squared_error.py _difference", "y"), ("binary_cross_entropy.py _widened", "x"))},
    **{f"losses/squared_error.py _difference: accumulation_dtype({v}.dtype) -> {v}.dtype": FLOAT32 for v in "yt"},
    **{f"losses/binary_cross_entropy.py _widened: accumulation_dtype({v}.dtype) -> {v}.dtype": FLOAT32 for v in "xt"},
    **{f"losses/squared_error.py {swap}": SYMMETRIC_LOSS
       for swap in ("squared_error: (y, t) -> (t, y)", "squared_error: _squared_error(y, t) -> _squared_error(t, y)",
                    "_squared_error: _squared_error_fwd(y, t) -> _squared_error_fwd(t, y)",
                    "_squared_error_fwd: _difference(y, t) -> _difference(t, y)")},
    **{f"rules/blocks.py over_blocks: blocks <= 1 -> {other}": "a single block by a loop"
       for other in ("blocks < 1", "blocks <= 0")},
    "rules/blocks.py over_blocks: None if size % block == 0 else start + jnp.arange(block, dtype=first.dtype) >= first -> "
    "start + jnp.arange(block, dtype=first.dtype) >= first": "a mask that masks nothing",
    **{f"rules/blocks.py over_blocks: size % block -> {other}": "a mask that masks nothing"
       for other in ("size // block", "block % size", "size", "block")},
    "rules/blocks.py over_blocks: jnp.int32(0) -> jnp.int8(0)": "0 in any dtype",
    "rules/blocks.py add_at: (so_far, part) -> (part, so_far)": "both are added",
    "rules/blocks.py add_at: (lax.dynamic_slice_in_dim(total, start, len(part)), cotangent(part, type_of(total))) -> "
    "(cotangent(part, type_of(total)), lax.dynamic_slice_in_dim(total, start, len(part)))": "both are added",
    "rules/blocks.py over_blocks: jnp.arange(blocks, dtype=jnp.int32) -> jnp.arange(blocks)": "a number in any wide dtype",
    "rules/softmax_sums.py total: jnp.where(summed(axes, where) > 0, sums, jnp.ones((), exp.dtype)) -> "
    "jnp.where(summed(axes, where) > 0, sums, -jnp.ones((), exp.dtype))":
        "it divides the zeros of a row without entries; its logarithm is masked",
}  # fmt: skip


# What a mutant's key contains (a pattern), and why `check`, which judges values, may accept it. The tests do not.
BEYOND_CHECK = {
    r"\.astype\(.*\) -> [\w.()]+$|accumulation_dtype\(.*dtype\) -> ([\w.]+dtype|dtype|accumulation_dtype\(jnp\.bfloat16\))( #2)?$|"
    r"preferred_element_type=.* -> (?!.*preferred)|max_pool2d\.py _gradient: (accumulation_dtype|len)| accumulation_dtype: max":
        "one more rounding, within 8 eps of a low precision",
    r"jnp\.(zeros|ones|arange|asarray)\(.*dtype\) -> jnp\.(zeros|ones|asarray)\(.*jnp\.bfloat16\)|"
    r"default=jnp\.float32|one_hot: .*dtype|plane_indices: .*int(8|32\)? -> )|jnp\.arange\((n|geometry\.size.*)\)$":
        "a small whole number, the same in every dtype",
    r"resolve_precision: |precision=[\w.]+[,)].* -> (?!.*[ (]precision=)":
        "a CPU multiplies in full precision, whatever `precision` is",
    r"platform_dependent": "the other path computes the same",
    r"gradient_by_products: (.*_samples_in\(|\(oh, ow, kh|\(kh, kw, ow|block == samples -> block !=)|"
    r"weight_gradient_by_products: (-1 -> \S+ #3|.*(samples // block|_splits_taps)|geometry\.groups > 1|inputs == 1|"
    r"kh \* kw (<= _MOST|-> )|samples > 0|1 < geometry|\((kh, kw, inputs|samples, oh), )|"
    r"weight_gradient_by_products: _largest_divisor\(oh, fit\)|depthwise\.py weight_gradient: (dy\.shape\[1\] // rows -> "
    r"dy\.shape\[1\]|\(1, rows, .* -> \(rows, 1|geometry\.stride\[0\] \* \(rows - 1\) (\+ geometry\S+ \* \(kh - 1\) )?-> "
    r"(rows - 1|geometry\.dilation\[0\] \* \(kh - 1\))$|geometry\.stride\[0\] -> geometry\.stride\[1\]$|rows - 1 -> 1 - rows|"
    r"block % blocks \* rows -> block % blocks$|rows \* dy\.shape\[2\] -> dy\.shape\[2\])|"
    r"input_gradient_by_products: samples // block -> samples( \* block)?$|"
    r"_MOST_(GROUPS|TAPS): | faster_form: | meets_many_zeros: |"
    r"_largest_divisor: |"
    r"_LONGEST_REACH: |_MOST_OF_PAIRS: |_splits_taps: .*(reach|kw|inputs|outputs|groups|dilation|stride\[0\]|== 0)|"
    r" on_its_platform: (options|\(on_cpu|\(options)|"
    r" prepare: (_block_sizes\(|None if block_size|memory == .* -> (reduction|memory !=))":
        "blocks of another size, or another form, the same result",
    r"(_by_product|correlate): y\.reshape\(.*\)\.astype\(x\.dtype\) -> (?!.*astype)": "conv2d converts its result, too",
    r"broadcast_to\(.*\) -> |one_hot: .*(ids|classes)": "JAX broadcasts by itself",
    r"_by_rows_and_columns: (x\.shape\[2\] -> x\.shape\[1\]|\(kh, kw, inputs|.*dilation)":
        "images much wider than the filter, or wider than high: `check` has none",
    r"weight_gradient_by_products: i \* block -> i$": "images that do not fit in a block: `check` has none",
    r"_larger: .*(y == x|y != y|x == x|[ij] [<>] [ij]|y > x -> y >= x)": "which of equal pixels, or of NaNs, is the largest",
    r"_for_platform: \((tpu|of_tiles)": "the other path computes the same",
    r"softmax_times: axes\.of_mesh|_cross_entropy_targets\.py gradient: jnp\.issubdtype.* -> jnp\.issubdtype\(jnp\.bfloat16":
        "the other form computes the same",
    r"are_windows_of: \(0, 0\)": "the general form, which is the same there",
    r"_tiles\.py gradient: _place\(.*bfloat16": "a small whole number, the same in every dtype",
    r"_reduced: .*iinfo\(dtype\)\.min": "the pixel of a window that is all −∞",
    r"_place: (\(row, column\) -> |row \* .* - column$)": "another number for a pixel, forward and backward alike",
    r"_relu_fwd: x > 0|_sides: x >= 0|_largest_along: (\(?pixel > largest.* -> pixel >|_larger\()": "the convention at a kink or a tie",
    r"(zero|ones)\) -> .*-(zero|ones)\)": "−0, or a number that is not used",
    r"max\(1, (options\.)?(classes|count)|and (classes|len\(weight\)) -> | at_label: -1|less_at_label: -1 -> -0$|"
    r"_sum_over: max|total == 0":
        "no classes, or no weights at all: `check` has some",
    r"expected: epsilon == 0": "the general form, which is the same there",
    r"rules/sharding\.py |lax\.p(sum.* -> .*lax\.pmax|max.* -> .*lax\.psum)|axis_name is|_here: -1 |"
    r"expected: (.*is_label\(|jnp\.zeros)|row_weight: .*is_label\(here.* -> of_label$|"
    r"local_labels: | share: | of_all_devices: |"
    r"[*/] sharding\.axis_size\(.*\) -> (?!sharding)(len\(w(eight)?\)|x\.shape\[-1\]|[\w. *]+)"
    r"( [*/] sharding\.axis_size\(.*\))?$":
        "several devices have classes: `check` shards only rows",
    r"over_blocks: step\(carry, jnp\.int32\(0\), None\) if blocks": "no rows, or no classes",
    r"over_blocks: .*(jnp\.arange\(block|bfloat16|int8)": "a small whole number, the same in every dtype",
    r"(_bwd|add_at): cotangent\(.*\) -> |cotangent: |vary_with: |vary_with\(.*\) -> jnp\.zeros\(":
        "already of the right type, except over a mesh",
    r"_nll_fwd: | to_label: |in_range: | at_label: |is_ignored: |nll(_loss)?: l if rows|"
    r"jnp\.where\(block\.bad, jnp\.nan, d?l\) -> d?l$|~block\.bad -> block\.counted$|_whole: counted & .* -> ~_labels":
        "rows whose label is no class: NaN by contract, whatever was computed",
    r" by_rows: .* -> functools\.partial\(jnp\.zeros\)$": "JAX's default is float32, and float64 in its mode",
    r"_finite: ": "a row that is all −∞",
    r" of_block: .* -> jnp\.max\(z, 1\)$": "the derivative of a shift of all logits cancels",
    r"_keep: .*greater": "one of 2³² patterns of bits",
    r" dropout: threshold == 0": "all are kept, and scaled by 1",
    r"total: .* > 1$": "a sum of one entry is 1, if that is finite",
    r"_softmax_bwd: (dy if where|jnp\.where\(where, dy)": "y is 0 there",
    r"plane_indices: geometry\.window\[1\]|max_pool2d_with_indices: ": "indices of square windows, and their order",
    r"_first_pixel: | largest: (\(?row|_first_pixel|\(0, 1\))|"
    r"_largest_along: (p -> not p|.*_first_pixel.* -> (.*-start|at$|.*(< 0|> 1)$))":
        "the pixel of a window that is all −∞",
    r" position_dtype: ": "positions in more bytes than needed",
}  # fmt: skip
