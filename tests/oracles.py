"""Naive float64 oracles: every component and its derivative as loops over the slides' indices.

Slow and literal on purpose, and independent of jaxnn: numpy only holds the arrays. `f_vjp` takes the
arguments of `f` and the cotangent `dy` of its result, and returns a tuple with the cotangent of every
differentiable argument (the penalties: a list, one array a leaf). Index names are the slides': s a sample,
ic and oc channels, i and j the output pixel, i' and j' (here `ki`, `kj`) the filter's pixel, n a row of a
loss, c and k classes, t the true class.
"""

import math

import numpy as np

ieee = np.errstate(all="ignore")  # infinities and NaN are values here, not warnings


# ----------------------------------------------------------------------------------- layout helpers


def _f64(x):
    return np.asarray(x, dtype=np.float64)


def _pair(value):
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _axes(axis):
    return tuple(axis) if isinstance(axis, (tuple, list)) else (axis,)


def _to_rows(x, axis):
    """x as (rows, n): the axes in `axis` become the last one, all others the first."""
    axes = _axes(axis)
    moved = np.moveaxis(x, axes, tuple(range(-len(axes), 0)))
    lead = moved.ndim - len(axes)
    return moved.reshape(math.prod(moved.shape[:lead]), math.prod(moved.shape[lead:]))


def _from_rows(rows, shape, axis):
    """The inverse of `_to_rows`, for an array of the given shape."""
    axes = _axes(axis)
    last = tuple(range(-len(axes), 0))
    return np.moveaxis(rows.reshape(np.moveaxis(np.empty(shape), axes, last).shape), last, axes)


def _to_nchw(x, layout):
    """x as (S, C, H, W), and its leading axes' shape."""
    x = np.moveaxis(x, -1, -3) if layout == "NHWC" else x
    return x.reshape((math.prod(x.shape[:-3]), *x.shape[-3:])), x.shape[:-3]


def _from_nchw(x, lead, layout):
    x = x.reshape(lead + x.shape[1:])
    return np.moveaxis(x, -3, -1) if layout == "NHWC" else x


def _window_geometry(size, kernel, stride, padding, dilation):
    """((output height, width), (top, left padding)) of a window that slides over a (height, width) plane."""
    out, before = [], []
    for a in range(2):
        extent = (kernel[a] - 1) * dilation[a] + 1
        if not isinstance(padding, str):
            lo, hi = _pair(_pair(padding)[a])
        elif padding.upper() == "SAME":  # out = ceil(in / stride); the odd row of padding goes at the end
            total = max((math.ceil(size[a] / stride[a]) - 1) * stride[a] + extent - size[a], 0)
            lo, hi = total // 2, total - total // 2
        elif padding.upper() == "VALID":
            lo, hi = 0, 0
        else:
            raise ValueError(f"unknown padding {padding!r}")
        out.append(max((size[a] + lo + hi - extent) // stride[a] + 1, 0))
        before.append(lo)
    return tuple(out), tuple(before)


# ------------------------------------------------------------------------------------------- linear


@ieee
def linear(x, w, b=None):
    """y_i = sum_j W_ij x_j + b_i."""
    x, w = _f64(x), _f64(w)
    y = np.zeros((*x.shape[:-1], w.shape[0]))
    for s in np.ndindex(x.shape[:-1]):
        for i in range(w.shape[0]):
            for j in range(w.shape[1]):
                y[(*s, i)] += w[i, j] * x[(*s, j)]
            if b is not None:
                y[(*s, i)] += _f64(b)[i]
    return y


@ieee
def linear_vjp(x, w, b, dy):
    """dL/dx_j = sum_i dL/dy_i W_ij, dL/dW_ij = sum_s dL/dy_i x_j, dL/db_i = sum_s dL/dy_i."""
    x, w, dy = _f64(x), _f64(w), _f64(dy)
    dx, dw, db = np.zeros(x.shape), np.zeros(w.shape), np.zeros(w.shape[0])
    for s in np.ndindex(x.shape[:-1]):
        for i in range(w.shape[0]):
            for j in range(w.shape[1]):
                dx[(*s, j)] += dy[(*s, i)] * w[i, j]
                dw[i, j] += dy[(*s, i)] * x[(*s, j)]
            db[i] += dy[(*s, i)]
    return dx, dw, None if b is None else db


# -------------------------------------------------------------------------------------- convolution


@ieee
def conv2d(x, w, b=None, *, stride=1, padding=0, dilation=1, groups=1, layout="NCHW"):
    """y_{s,oc,i,j} = sum_{ic,i',j'} w_{oc,ic,i',j'} x_{s,ic,i+i',j+j'} + b_oc (off the image: no term)."""
    (x, lead), w = _to_nchw(_f64(x), layout), _f64(w)
    w = w.transpose(3, 2, 0, 1) if layout == "NHWC" else w
    (sh, sw), (dh, dv) = _pair(stride), _pair(dilation)
    (S, _, H, W), (OC, IC) = x.shape, w.shape[:2]  # IC: the input channels of one group
    out, (top, left) = _window_geometry((H, W), w.shape[2:], (sh, sw), padding, (dh, dv))
    y = np.zeros((S, OC, *out))
    for s, oc, i, j in np.ndindex(y.shape):
        first = oc // (OC // groups) * IC  # the first input channel of oc's group
        for ic, ki, kj in np.ndindex(w.shape[1:]):
            h, v = i * sh + ki * dh - top, j * sw + kj * dv - left
            if 0 <= h < H and 0 <= v < W:
                y[s, oc, i, j] += w[oc, ic, ki, kj] * x[s, first + ic, h, v]
        if b is not None:
            y[s, oc, i, j] += _f64(b)[oc]
    return _from_nchw(y, lead, layout)


@ieee
def conv2d_vjp(x, w, b, dy, *, stride=1, padding=0, dilation=1, groups=1, layout="NCHW"):
    """dL/dx_{s,ic,i+i',j+j'} = sum_{oc,i,j} dL/dy_{s,oc,i,j} w_{oc,ic,i',j'};
    dL/dw_{oc,ic,i',j'} = sum_{s,i,j} dL/dy_{s,oc,i,j} x_{s,ic,i+i',j+j'}; dL/db_oc = sum_{s,i,j} dL/dy."""
    (x, lead), w, (dy, _) = _to_nchw(_f64(x), layout), _f64(w), _to_nchw(_f64(dy), layout)
    w = w.transpose(3, 2, 0, 1) if layout == "NHWC" else w
    (sh, sw), (dh, dv) = _pair(stride), _pair(dilation)
    (S, _, H, W), (OC, IC) = x.shape, w.shape[:2]
    out, (top, left) = _window_geometry((H, W), w.shape[2:], (sh, sw), padding, (dh, dv))
    assert dy.shape == (S, OC, *out), f"dy has shape {dy.shape}, the output {(S, OC, *out)}"
    dx, dw, db = np.zeros(x.shape), np.zeros(w.shape), np.zeros(OC)
    for s, oc, i, j in np.ndindex(dy.shape):
        first = oc // (OC // groups) * IC
        for ic, ki, kj in np.ndindex(w.shape[1:]):
            h, v = i * sh + ki * dh - top, j * sw + kj * dv - left
            if 0 <= h < H and 0 <= v < W:
                dx[s, first + ic, h, v] += dy[s, oc, i, j] * w[oc, ic, ki, kj]
                dw[oc, ic, ki, kj] += dy[s, oc, i, j] * x[s, first + ic, h, v]
        db[oc] += dy[s, oc, i, j]
    dw = dw.transpose(2, 3, 1, 0) if layout == "NHWC" else dw
    return _from_nchw(dx, lead, layout), dw, None if b is None else db


# -------------------------------------------------------------------------------------- activations


def relu(x):
    """y_i = max(x_i, 0); NaN stays NaN."""
    x = _f64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        if x[i] > 0 or np.isnan(x[i]):
            y[i] = x[i]
    return y


def relu_vjp(x, dy):
    """dL/dx_i = dL/dy_i where x_i > 0, else 0 (at 0 and at NaN too)."""
    x, dy = _f64(x), _f64(dy)
    dx = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        if x[i] > 0:
            dx[i] = dy[i]
    return (dx,)


def _sigma(v):
    """1 / (1 + exp(-v)) for one number, with no exp of a positive number."""
    return 1 / (1 + np.exp(-v)) if v >= 0 else np.exp(v) / (1 + np.exp(v))


@ieee
def sigmoid(x):
    """y_i = 1 / (1 + exp(-x_i))."""
    x = _f64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = _sigma(x[i])
    return y


@ieee
def sigmoid_vjp(x, dy):
    """dL/dx_i = dL/dy_i sigma(x_i) sigma(-x_i); 1 - sigma(x) is sigma(-x), exactly so in the tail."""
    x, dy = _f64(x), _f64(dy)
    dx = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        dx[i] = dy[i] * _sigma(x[i]) * _sigma(-x[i])
    return (dx,)


@ieee
def tanh(x):
    """y_i = tanh(x_i)."""
    x = _f64(x)
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        y[i] = np.tanh(x[i])
    return y


@ieee
def tanh_vjp(x, dy):
    """dL/dx_i = dL/dy_i (1 - tanh(x_i)^2), which is 4 sigma(2 x_i) sigma(-2 x_i) (exact in the tail)."""
    x, dy = _f64(x), _f64(dy)
    dx = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        dx[i] = dy[i] * 4 * _sigma(2 * x[i]) * _sigma(-2 * x[i])
    return (dx,)


# ----------------------------------------------------------------------------- max pooling, dropout


def max_pool2d(x, window=2, *, stride=None, padding=0, layout="NCHW"):
    """(y, indices): y_{s,c,i,j} = max_{i',j'} x_{s,c,i+i',j+j'}; first maximum, or last NaN."""
    x, lead = _to_nchw(_f64(x), layout)
    (kh, kw), (sh, sw) = _pair(window), _pair(window if stride is None else stride)
    S, C, H, W = x.shape
    out, (top, left) = _window_geometry((H, W), (kh, kw), (sh, sw), padding, (1, 1))
    y = np.full((S, C, *out), -np.inf)
    indices = np.full((S, C, *out), -1, dtype=np.int32)  # -1: nothing but padding
    for s, c, i, j in np.ndindex(y.shape):
        for ki, kj in np.ndindex(kh, kw):
            h, v = i * sh + ki - top, j * sw + kj - left
            if not (0 <= h < H and 0 <= v < W):
                continue
            value = x[s, c, h, v]
            if indices[s, c, i, j] < 0 or value > y[s, c, i, j] or np.isnan(value):
                y[s, c, i, j], indices[s, c, i, j] = value, h * W + v
    return _from_nchw(y, lead, layout), _from_nchw(indices, lead, layout)


@ieee
def max_pool2d_vjp(x, dy, window=2, *, stride=None, padding=0, layout="NCHW"):
    """dx_{s,c,h,w} = the sum of dy_{s,c,i,j} over the windows (i, j) whose maximum is at (h, w)."""
    _, indices = max_pool2d(x, window, stride=stride, padding=padding, layout=layout)
    (indices, _), (dy, _), (x, lead) = (_to_nchw(a, layout) for a in (indices, _f64(dy), _f64(x)))
    assert dy.shape == indices.shape, f"dy has shape {dy.shape}, the output {indices.shape}"
    dx = np.zeros(x.shape)
    for s, c, i, j in np.ndindex(dy.shape):
        if indices[s, c, i, j] >= 0:
            h, v = divmod(int(indices[s, c, i, j]), x.shape[-1])
            dx[s, c, h, v] += dy[s, c, i, j]
    return (_from_nchw(dx, lead, layout),)


@ieee
def dropout(x, keep, p):
    """y_i = x_i / (1 - p) where kept, else 0."""
    x, keep = _f64(x), np.broadcast_to(keep, np.shape(x))
    y = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        if keep[i]:
            y[i] = x[i] / (1 - p)
    return y


@ieee
def dropout_vjp(x, keep, p, dy):
    """dL/dx_i = dL/dy_i / (1 - p) where kept, else 0."""
    dy, keep = _f64(dy), np.broadcast_to(keep, np.shape(x))
    dx = np.zeros(np.shape(x))
    for i in np.ndindex(dx.shape):
        if keep[i]:
            dx[i] = dy[i] / (1 - p)
    return (dx,)


# ------------------------------------------------------------------------------------------ softmax


def _softmax_row(x, members):
    """(p, log p) of one row over the entries `members`; elsewhere 0, -inf. Shifted by the maximum."""
    p, log_p = np.zeros(len(x)), np.full(len(x), -np.inf)
    if members:
        m = max(x[k] for k in members)
        total = sum(np.exp(x[k] - m) for k in members)
        for k in members:
            p[k] = np.exp(x[k] - m) / total
            log_p[k] = x[k] - m - np.log(total)
    return p, log_p


def _masked_rows(x, axis, where):
    """The rows of x along `axis`, and for each the list of the positions that `where` keeps."""
    mask = _to_rows(np.broadcast_to(True if where is None else where, x.shape), axis)
    return _to_rows(x, axis), [[k for k in range(mask.shape[1]) if row[k]] for row in mask]


@ieee
def softmax(x, axis=-1, where=None):
    """y_a = exp(x_a) / sum_k exp(x_k) over the entries where `where`; the others 0."""
    x = _f64(x)
    rows, members = _masked_rows(x, axis, where)
    y = np.zeros(rows.shape)
    for n in range(len(rows)):
        y[n], _ = _softmax_row(rows[n], members[n])
    return _from_rows(y, x.shape, axis)


@ieee
def softmax_vjp(x, dy, axis=-1, where=None):
    """dL/dx_j = sum_a dL/dy_a dp_a/dx_j, where dp_a/dx_j = (1 - p_j) p_a if j = a, -p_j p_a if j != a."""
    x, dy = _f64(x), _f64(dy)
    rows, members = _masked_rows(x, axis, where)
    dy, dx = _to_rows(dy, axis), np.zeros(rows.shape)
    for n in range(len(rows)):
        p, _ = _softmax_row(rows[n], members[n])
        for j in members[n]:
            for a in members[n]:
                if j == a:
                    dx[n, j] += dy[n, a] * (1 - p[j]) * p[a]
                else:
                    dx[n, j] += dy[n, a] * -p[j] * p[a]
    return (_from_rows(dx, x.shape, axis),)


@ieee
def log_softmax(x, axis=-1, where=None):
    """y_a = x_a - log sum_k exp(x_k) over the entries where `where`; the others -inf."""
    x = _f64(x)
    rows, members = _masked_rows(x, axis, where)
    y = np.zeros(rows.shape)
    for n in range(len(rows)):
        _, y[n] = _softmax_row(rows[n], members[n])
    return _from_rows(y, x.shape, axis)


@ieee
def log_softmax_vjp(x, dy, axis=-1, where=None):
    """dL/dx_j = sum_a dL/dy_a dy_a/dx_j, where dy_a/dx_j = 1 - p_j if j = a, -p_j if j != a."""
    x, dy = _f64(x), _f64(dy)
    rows, members = _masked_rows(x, axis, where)
    dy, dx = _to_rows(dy, axis), np.zeros(rows.shape)
    for n in range(len(rows)):
        p, _ = _softmax_row(rows[n], members[n])
        for j in members[n]:
            for a in members[n]:
                dx[n, j] += dy[n, a] * ((1 if j == a else 0) - p[j])
    return (_from_rows(dx, x.shape, axis),)


# --------------------------------------------------------------------- rows, weights and reductions


def _row_weights(ids, classes, weight, ignore_index):
    """What each row counts for in the mean: weight_t; None if ignored; 1 if its label is outside [0, C)."""
    v = []
    for t in ids:
        if ignore_index is not None and t == ignore_index:
            v.append(None)
        elif 0 <= t < classes:
            v.append(weight[t])
        else:
            v.append(1.0)
    return v


def _denominator(v):
    """The sum of the weights of the rows that are not ignored."""
    total = 0.0
    for v_n in v:
        if v_n is not None:
            total += v_n
    return total


def _reduce(losses, v, reduction, shape):
    """The losses themselves, their sum, or their sum / sum of v (NaN when there is nothing to average)."""
    if reduction == "none":
        return np.array(losses, dtype=np.float64).reshape(shape)
    total = np.float64(0)
    for loss in losses:
        total += loss
    if reduction == "sum":
        return total
    if reduction != "mean":
        raise ValueError(f"unknown reduction {reduction!r}")
    return total / _denominator(v) if _denominator(v) != 0 else np.float64(np.nan)


def _row_cotangents(dy, v, reduction):
    """dL/dloss_n for each row n; None for the rows that get no gradient (ignored, or nothing to average)."""
    dy = _f64(dy)
    if reduction == "none":
        g = list(dy.reshape(len(v)))
    elif reduction == "sum":
        g = [dy.reshape(())[()]] * len(v)
    else:
        D = _denominator(v)
        g = [dy.reshape(())[()] / D if D != 0 else None] * len(v)
    return [None if v[n] is None else g[n] for n in range(len(v))]


def _mean_denominator_vjp(dweight, ids, g, losses, v):
    """Adds to dweight what comes through the mean's denominator: L = S/D, so -S/D^2 at t for each row."""
    S = 0.0  # over the rows with a proper label: the others contribute nothing
    for n, t in enumerate(ids):
        if g[n] is not None and 0 <= t < len(dweight):
            S += losses[n]
    for n, t in enumerate(ids):
        if g[n] is not None and 0 <= t < len(dweight):
            dweight[t] -= g[n] * S / _denominator(v)


def _class_weights(weight, classes):
    return np.ones(classes) if weight is None else _f64(weight)


# -------------------------------------------------------------------------- negative log-likelihood


def _picked_losses(rows, ids, v, loss):
    """loss_n = weight_t loss(x_{n,t}); 0 for an ignored row, NaN for a label outside [0, C)."""
    losses = []
    for n, t in enumerate(ids):
        if v[n] is None:
            losses.append(0.0)
        elif 0 <= t < rows.shape[1]:
            losses.append(v[n] * loss(rows[n, t]))
        else:
            losses.append(np.nan)
    return losses


def _pick(x, targets, loss, axis, weight, ignore_index, reduction):
    """The reduced losses of the true classes: loss(x_t) weighted by weight_t."""
    rows, ids = _to_rows(_f64(x), axis), np.asarray(targets).reshape(-1).tolist()
    v = _row_weights(ids, rows.shape[1], _class_weights(weight, rows.shape[1]), ignore_index)
    return _reduce(_picked_losses(rows, ids, v, loss), v, reduction, np.shape(targets))


def _pick_vjp(x, targets, dy, loss, slope, axis, weight, ignore_index, reduction):
    """dx_{n,t} = dL/dloss_n weight_t slope(x_{n,t}), 0 elsewhere; dweight_t = sum_n dL/dloss_n loss."""
    rows, ids = _to_rows(_f64(x), axis), np.asarray(targets).reshape(-1).tolist()
    v = _row_weights(ids, rows.shape[1], _class_weights(weight, rows.shape[1]), ignore_index)
    g = _row_cotangents(dy, v, reduction)
    dx, dweight = np.zeros(rows.shape), np.zeros(rows.shape[1])
    for n, t in enumerate(ids):
        if g[n] is None:
            continue
        if 0 <= t < rows.shape[1]:
            dx[n, t] = g[n] * v[n] * slope(rows[n, t])
            dweight[t] += g[n] * loss(rows[n, t])
        else:
            dx[n, :] = np.nan
    if reduction == "mean":
        _mean_denominator_vjp(dweight, ids, g, _picked_losses(rows, ids, v, loss), v)
    return _from_rows(dx, np.shape(x), axis), None if weight is None else dweight


@ieee
def nll(p, targets, *, axis=-1, weight=None, ignore_index=None, reduction="mean"):
    """NLL(p, t) = -log p_t, of probabilities."""
    return _pick(p, targets, lambda p_t: -np.log(p_t), axis, weight, ignore_index, reduction)


@ieee
def nll_vjp(p, targets, dy, *, axis=-1, weight=None, ignore_index=None, reduction="mean"):
    """dNLL/dp = -e(t) / p_t."""
    loss, slope = lambda p_t: -np.log(p_t), lambda p_t: -1 / p_t
    return _pick_vjp(p, targets, dy, loss, slope, axis, weight, ignore_index, reduction)


@ieee
def nll_loss(log_p, targets, *, axis=-1, weight=None, ignore_index=None, reduction="mean"):
    """-log p_t, of log-probabilities."""
    return _pick(log_p, targets, lambda log_p_t: -log_p_t, axis, weight, ignore_index, reduction)


@ieee
def nll_loss_vjp(log_p, targets, dy, *, axis=-1, weight=None, ignore_index=None, reduction="mean"):
    """d(-log p_t)/d(log p) = -e(t)."""
    loss, slope = lambda log_p_t: -log_p_t, lambda log_p_t: -1.0
    return _pick_vjp(log_p, targets, dy, loss, slope, axis, weight, ignore_index, reduction)


# ------------------------------------------------------------------------------------ cross entropy


def _are_ids(targets):
    return np.issubdtype(np.asarray(targets).dtype, np.integer)


def _smoothed_targets(targets, shape, axis, weight, ignore_index, eps):
    """(q, v, ids): q_c = (1-eps) [c = t] + eps/C or (1-eps) T_c + eps/C, NaN for a label out of [0, C)."""
    N, C = shape
    if not _are_ids(targets):
        if ignore_index is not None:
            raise ValueError("ignore_index needs class ids, not probabilities")
        T = _to_rows(_f64(targets), axis)
        q = [[(1 - eps) * T[n, c] + eps / C for c in range(C)] for n in range(N)]
        return q, [1.0] * N, None  # every row counts once, whatever the weights
    ids = np.asarray(targets).reshape(-1).tolist()
    q = []
    for t in ids:
        if 0 <= t < C:
            q.append([(1 - eps) * (1 if c == t else 0) + eps / C for c in range(C)])
        else:
            q.append([np.nan] * C)
    return q, _row_weights(ids, C, _class_weights(weight, C), ignore_index), ids


def _entropy_losses(rows, q, v, w):
    """loss_n = -sum_c weight_c q_c log p_c, where 0 log 0 = 0; 0 for an ignored row."""
    losses = []
    for n in range(len(rows)):
        loss = 0.0
        _, log_p = _softmax_row(rows[n], range(len(w)))
        for c in range(len(w)):
            if v[n] is not None and q[n][c] != 0:
                loss -= w[c] * q[n][c] * log_p[c]
        losses.append(loss)
    return losses


@ieee
def cross_entropy(logits, targets, *, axis=-1, weight=None, ignore_index=None, label_smoothing=0.0, reduction="mean"):
    """NLL(softmax(x), t) = -x_t + log sum_i exp(x_i); in general -sum_c weight_c q_c log softmax(x)_c."""
    rows = _to_rows(_f64(logits), axis)
    q, v, ids = _smoothed_targets(targets, rows.shape, axis, weight, ignore_index, label_smoothing)
    losses = _entropy_losses(rows, q, v, _class_weights(weight, rows.shape[1]))
    shape = np.shape(targets) if ids is not None else np.delete(np.shape(logits), axis)
    return _reduce(losses, v, reduction, shape)


@ieee
def cross_entropy_vjp(
    logits, targets, dy, *, axis=-1, weight=None, ignore_index=None, label_smoothing=0.0, reduction="mean"
):
    """dx_j = -sum_c weight_c q_c ([c = j] - p_j): p_j - 1 at t, p_j elsewhere, if q = e(t)."""
    rows = _to_rows(_f64(logits), axis)
    C, eps = rows.shape[1], label_smoothing
    w = _class_weights(weight, C)
    q, v, ids = _smoothed_targets(targets, rows.shape, axis, weight, ignore_index, eps)
    g = _row_cotangents(dy, v, reduction)
    dx, dT, dweight = np.zeros(rows.shape), np.zeros(rows.shape), np.zeros(C)
    for n in range(len(rows)):
        if g[n] is None:
            continue
        p, log_p = _softmax_row(rows[n], range(C))
        for c in range(C):
            dT[n, c] = g[n] * -(1 - eps) * w[c] * log_p[c]
            if q[n][c] == 0:
                continue
            for j in range(C):
                dx[n, j] += g[n] * -w[c] * q[n][c] * ((1 if c == j else 0) - p[j])
            if ids is None or 0 <= ids[n] < C:
                dweight[c] += g[n] * -q[n][c] * log_p[c]
    if ids is not None and reduction == "mean":
        _mean_denominator_vjp(dweight, ids, g, _entropy_losses(rows, q, v, w), v)
    dlogits = _from_rows(dx, np.shape(logits), axis)
    dtargets = _from_rows(dT, np.shape(logits), axis) if ids is None else None
    return dlogits, dtargets, None if weight is None else dweight


# ----------------------------------------------------------------------------- linear cross entropy


def _capped_logits(x, w, b, cap):
    """(a, z): a_nc = sum_j W_cj x_nj + b_c, z = cap tanh(a / cap)."""
    a = linear(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), w, b)
    z = np.zeros(a.shape)
    for n, c in np.ndindex(a.shape):
        z[n, c] = a[n, c] if cap is None else cap * np.tanh(a[n, c] / cap)
    return a, z


def _log_sum_exp(z_n):
    """Z = log sum_k exp(z_k) of one row."""
    m = max(z_n)
    return m + np.log(sum(np.exp(z_k - m) for z_k in z_n))


def _z_losses(z, v, z_loss):
    """zeta Z^2 of each row that is not ignored."""
    return [0.0 if v[n] is None or z_loss == 0 else z_loss * _log_sum_exp(z[n]) ** 2 for n in range(len(z))]


@ieee
def linear_cross_entropy(
    x, w, targets, *, b=None, weight=None, ignore_index=None, label_smoothing=0.0, z_loss=0.0, logit_softcap=None,
    reduction="mean", memory="fast", block_size=None,
):  # fmt: skip
    """Cross entropy of cap tanh((W x + b) / cap), and zeta Z^2 for each row."""
    x, w = _f64(x), _f64(w)
    _, z = _capped_logits(x, w, b, logit_softcap)
    omega = _class_weights(weight, len(w))
    q, v, _ = _smoothed_targets(targets, z.shape, -1, weight, ignore_index, label_smoothing)
    entropies, extra = _entropy_losses(z, q, v, omega), _z_losses(z, v, z_loss)
    losses = [entropies[n] + extra[n] for n in range(len(z))]
    return _reduce(losses, v, reduction, np.shape(targets))


@ieee
def linear_cross_entropy_vjp(
    x, w, targets, dy, *, b=None, weight=None, ignore_index=None, label_smoothing=0.0, z_loss=0.0, logit_softcap=None,
    reduction="mean", memory="fast", block_size=None,
):  # fmt: skip
    """Cross entropy's dz, and 2 zeta Z p_j of the z-loss; then through tanh, and through linear."""
    x, w = _f64(x), _f64(w)
    a, z = _capped_logits(x, w, b, logit_softcap)
    N, V = z.shape
    omega = _class_weights(weight, V)
    q, v, ids = _smoothed_targets(targets, z.shape, -1, weight, ignore_index, label_smoothing)
    g = _row_cotangents(dy, v, reduction)
    da, dweight = np.zeros(z.shape), np.zeros(V)
    for n in range(N):
        if g[n] is None:
            continue
        p, log_p = _softmax_row(z[n], range(V))
        for j in range(V):
            for c in range(V):
                if q[n][c] != 0:
                    da[n, j] += g[n] * -omega[c] * q[n][c] * ((1 if c == j else 0) - p[j])
            if z_loss:
                da[n, j] += g[n] * 2 * z_loss * _log_sum_exp(z[n]) * p[j]
            if logit_softcap is not None:
                da[n, j] *= 4 * _sigma(2 * a[n, j] / logit_softcap) * _sigma(-2 * a[n, j] / logit_softcap)
            if 0 <= ids[n] < V and q[n][j] != 0:
                dweight[j] += g[n] * -q[n][j] * log_p[j]
    if reduction == "mean":
        entropies, extra = _entropy_losses(z, q, v, omega), _z_losses(z, v, z_loss)
        _mean_denominator_vjp(dweight, ids, g, [entropies[n] + extra[n] for n in range(N)], v)
    dx, dw, db = linear_vjp(x.reshape(N, x.shape[-1]), w, b, da)
    return [dx.reshape(x.shape), dw, None] + ([] if b is None else [db]) + ([] if weight is None else [dweight])


# ----------------------------------------------------------- binary cross entropy and squared error


def _log_sigma(v):
    """log sigma(v) = min(v, 0) - log(1 + exp(-|v|)) for one number."""
    return min(v, 0.0) - np.log1p(np.exp(-abs(v)))


@ieee
def binary_cross_entropy(logits, targets, *, reduction="mean"):
    """loss_i = -t_i log sigma(x_i) - (1 - t_i) log sigma(-x_i), where 0 log 0 = 0."""
    x, t = _f64(logits), _f64(targets)
    losses = []
    for i in np.ndindex(x.shape):
        loss = 0.0
        if t[i] != 0:
            loss -= t[i] * _log_sigma(x[i])
        if t[i] != 1:
            loss -= (1 - t[i]) * _log_sigma(-x[i])
        losses.append(loss)
    return _reduce(losses, [1.0] * x.size, reduction, x.shape)


@ieee
def binary_cross_entropy_vjp(logits, targets, dy, *, reduction="mean"):
    """dx_i = -t_i sigma(-x_i) + (1 - t_i) sigma(x_i) (that is sigma(x_i) - t_i); dt_i = -x_i."""
    x, t = _f64(logits), _f64(targets)
    g = _row_cotangents(dy, [1.0] * x.size, reduction)
    dx, dt = np.zeros(x.shape), np.zeros(x.shape)
    for n, i in enumerate(np.ndindex(x.shape)):
        dx[i] = g[n] * (-t[i] * _sigma(-x[i]) + (1 - t[i]) * _sigma(x[i]))
        dt[i] = g[n] * -x[i]  # log sigma(-x) - log sigma(x)
    return dx, dt


@ieee
def squared_error(y, t, *, reduction="mean"):
    """err_i = (y_i - t_i)^2."""
    y, t = _f64(y), _f64(t)
    losses = []
    for i in np.ndindex(y.shape):
        losses.append((y[i] - t[i]) ** 2)
    return _reduce(losses, [1.0] * y.size, reduction, y.shape)


@ieee
def squared_error_vjp(y, t, dy, *, reduction="mean"):
    """derr_i/dy_i = 2 (y_i - t_i), derr_i/dt_i = -2 (y_i - t_i)."""
    y, t = _f64(y), _f64(t)
    g = _row_cotangents(dy, [1.0] * y.size, reduction)
    dy_, dt = np.zeros(y.shape), np.zeros(y.shape)
    for n, i in enumerate(np.ndindex(y.shape)):
        dy_[i] = g[n] * 2 * (y[i] - t[i])
        dt[i] = g[n] * -2 * (y[i] - t[i])
    return dy_, dt


# ---------------------------------------------------------------------------------------- penalties


@ieee
def l1_penalty(leaves):
    """Omega = sum |w| over every element of every leaf."""
    total = np.float64(0)
    for w in map(_f64, leaves):
        for i in np.ndindex(w.shape):
            total += abs(w[i])
    return total


@ieee
def l1_penalty_vjp(leaves, dy):
    """dOmega/dw = sign(w), 0 at 0 (NaN at NaN)."""
    grads = []
    for w in map(_f64, leaves):
        grads.append(np.zeros(w.shape))
        for i in np.ndindex(w.shape):
            sign = 1.0 if w[i] > 0 else -1.0 if w[i] < 0 else 0.0 if w[i] == 0 else np.nan
            grads[-1][i] = float(dy) * sign
    return grads


@ieee
def l2_penalty(leaves):
    """Omega = sum w^2 over every element of every leaf (no 1/2)."""
    total = np.float64(0)
    for w in map(_f64, leaves):
        for i in np.ndindex(w.shape):
            total += w[i] ** 2
    return total


@ieee
def l2_penalty_vjp(leaves, dy):
    """dOmega/dw = 2 w."""
    grads = []
    for w in map(_f64, leaves):
        grads.append(np.zeros(w.shape))
        for i in np.ndindex(w.shape):
            grads[-1][i] = float(dy) * 2 * w[i]
    return grads
