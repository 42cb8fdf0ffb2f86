"""The layers and their derivatives, as loops in float64."""

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
