"""The losses and their derivatives, as loops in float64."""

import math

import numpy as np

from oracles.layers import _f64, _from_rows, _sigma, _softmax_row, _to_rows, ieee, linear, linear_vjp

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
