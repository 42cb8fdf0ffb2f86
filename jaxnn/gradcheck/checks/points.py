"""The checks at points made from the arguments: ties, extremes, and other dtypes."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxnn.gradcheck._conventions import inside
from jaxnn.gradcheck._hints import hint
from jaxnn.gradcheck._subject import Arrays, as64
from jaxnn.gradcheck._tolerance import Truth, finfo, in_units, index_text
from jaxnn.gradcheck._trial import LARGE, Rows, Trial, beyond, few
from jaxnn.gradcheck.report import FAIL, INCONCLUSIVE, PASS, UNSUPPORTED, Row
from jaxnn.tracing.functions import first_line, is_missing_in_jax


def kinks(t: Trial) -> Rows:
    """At ties and zeros, the rule is a convention between the one-sided derivatives."""
    yield from _special_points(t, "kinks", _tied(t))


def _tied(t: Trial) -> Iterator[tuple[str, Arrays]]:
    points = t.subject.points
    free = [t.is_free(as64(x)) for x in points]
    for name, step in (("rounded to multiples of their size", None), ("rounded to integers", 1.0)):
        yield name, [_rounded(x, step) if f else x for x, f in zip(points, free, strict=True)]
    for leaf, other in itertools.permutations(range(len(points)), 2):
        if free[leaf] and _broadcasts(points[other].shape, points[leaf].shape):
            tied, wanted = np.array(points[leaf]), np.broadcast_to(np.asarray(points[other]), points[leaf].shape)
            tied.reshape(-1)[::2] = wanted.reshape(-1)[::2]
            moved = [jnp.asarray(tied) if i == leaf else x for i, x in enumerate(points)]
            yield f"{t.subject.paths[leaf]} tied with {t.subject.paths[other]}", moved
            return


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))


def _rounded(x: Any, step: float | None) -> Any:
    h = as64(x)
    if step is None:
        finite = h[np.isfinite(h)]
        step = 2.0 ** round(math.log2(math.sqrt(float(np.mean(np.square(np.abs(finite)))))))
    return jnp.asarray(np.rint(h / step) * step).astype(x.dtype)


def extremes(t: Trial) -> Rows:
    """At huge, tiny and infinite arguments the rule is as good as JAX's derivative."""
    yield from _special_points(t, "extremes", _extreme(t))


def _extreme(t: Trial) -> Iterator[tuple[str, Arrays]]:
    free = [t.is_free(as64(x)) for x in t.subject.points]
    largest = 100.0 if t.dtype == jnp.float16 else 1e4

    def everywhere(factor: float) -> Arrays:
        return [(x * factor).astype(x.dtype) if f else x for x, f in zip(t.subject.points, free, strict=True)]

    def with_one(value: float) -> Arrays:
        points = list(t.subject.points)
        for leaf, x in enumerate(points):
            if free[leaf] and x.size and not _is_sorted(as64(x)):
                flat = np.asarray(x).reshape(-1).copy()
                flat[np.random.default_rng((t.seed, 4, leaf)).integers(flat.size)] = value
                points[leaf] = jnp.asarray(flat.reshape(x.shape))
        return points

    yield "30 times as large", everywhere(30.0)
    if t.size <= LARGE:
        yield f"{largest:g} times as large", everywhere(largest)
        yield "1e-6 times as large", everywhere(1e-6)
        yield "with one inf", with_one(math.inf)
        yield "with one -inf", with_one(-math.inf)
    else:
        yield "with one -inf", with_one(-math.inf)


def _is_sorted(x: Any) -> bool:
    return bool(x.ndim and x.shape[-1] > 2 and ((np.diff(x) >= 0).all() or (np.diff(x) <= 0).all()))


def _special_points(t: Trial, check: str, points: Iterator[tuple[str, Arrays]]) -> Rows:
    s = t.subject
    if t.no_automatic:
        yield Row(check, s.name, UNSUPPORTED, "there is no automatic derivative to compare with")
        return
    if not any(t.is_free(as64(x)) for x in s.points):
        reason = (
            "every argument looks constrained (of one sign, normalized or symmetric); give such points as arguments"
        )
        yield Row(check, s.name, INCONCLUSIVE, reason)
        return
    if t.wrong_anyway:
        yield Row(check, s.name, INCONCLUSIVE, "the gradient is wrong at the arguments given already")
        return
    for name, moved in points:
        yield _at_special_point(t, check, name, moved)


def _at_special_point(t: Trial, check: str, name: str, points: Arrays) -> Row:
    s = t.subject
    custom, automatic = t.gradients("custom", points, t.dy), t.gradients("automatic", points, t.dy)
    suspects = [
        beyond(c, a, 2 * t.factor * np.abs(a) + float(finfo(t.dtype).tiny)) & ~np.isnan(a)
        for c, a in zip(custom, automatic, strict=True)
    ]
    if not any(w.any() for w in suspects):
        return Row(check, name, PASS, "custom and automatic agree")
    truth = t.truth(points, t.dy, 1)
    remark = "custom and automatic agree"
    for leaf, path in enumerate(s.paths):
        c, a, g = custom[leaf], automatic[leaf], truth.gradients[leaf]
        representable = np.isfinite(g) & (np.abs(g) < float(finfo(s.points[leaf].dtype).max))
        allowed = truth.allowed(leaf, t.factor, t.dtype) + np.nan_to_num(4 * np.abs(a - g), posinf=0.0)
        wrong = suspects[leaf] & representable & beyond(c, g, allowed)
        if check == "extremes":  # digits may be lost out there, not the number
            wrong &= ~t.by_convention(leaf) & ~(np.abs(c - g) <= 1e-2 * np.abs(g))
        if name == "with one inf":  # a rule may mix infinity into other elements: inf − inf
            wrong &= np.isinf(as64(points[leaf]))
        for flat in few(np.flatnonzero(wrong), 6):
            i = np.unravel_index(int(flat), c.shape)
            if np.isfinite(c[i]) and inside(t, points, leaf, int(flat)):
                remark = "another convention than automatic's at a kink, between the one-sided derivatives"
                continue
            where = " outside the interval of the one-sided derivatives" if check == "kinks" else ""
            at = f"{path}{index_text(i)} = {as64(points[leaf])[i]:.4g}"
            pattern = "" if np.isfinite(c[i]) else hint(leaf, custom, truth.gradients, s.paths, g, wrong)
            return Row(check, name, FAIL, f"{at}: custom {c[i]:.6g}, automatic {g[i]:.6g}{where}", pattern)
    return Row(check, name, PASS, remark)


def precision(t: Trial) -> Rows:
    """In each dtype the rule is as accurate as JAX's derivative of the definition."""
    s = t.subject
    if t.no_automatic or t.no_oracle:
        yield Row("precision", s.name, UNSUPPORTED, t.no_automatic or t.no_oracle)
        return
    if t.wrong_anyway:
        yield Row("precision", s.name, INCONCLUSIVE, "the gradient is wrong in any precision")
        return
    has_complex = any(np.iscomplexobj(x) for x in [*s.points, *t.dy])
    for dtype in ("float32",) if has_complex else ("float32", "bfloat16", "float16"):
        for scale in (1.0,) if t.size > LARGE else (1.0, 8.0):
            factors = [scale if t.may_scale(as64(x)) else 1.0 for x in s.points]
            points = [(jnp.asarray(x) * k).astype(_as(dtype, x)) for x, k in zip(s.points, factors, strict=True)]
            name = dtype if scale == 1.0 else f"{dtype} x{scale:.0f}"
            dy = t.dy if t.dtype == dtype else s.cotangents(t.seed, coarse=True)
            try:
                automatic = t.gradients("automatic", points, dy)
            except Exception as error:
                yield Row("precision", name, UNSUPPORTED, f"the definition does not run: {first_line(error)}")
                break
            try:
                custom = s.run("vjp", "custom", points, s.rest, dy)[1]
            except Exception as error:
                if refusal := _refusal(t, points):  # a kernel for other dtypes; the reference has this one
                    yield Row("precision", name, UNSUPPORTED, f"f does not run: {refusal}")
                elif is_missing_in_jax(error):
                    yield Row("precision", name, UNSUPPORTED, f"the rule does not run: {first_line(error)}")
                else:
                    yield Row("precision", name, FAIL, f"the rule raises, the definition does not: {first_line(error)}")
                break
            typed = zip(s.paths, custom, points, strict=True)
            other = [f"{path} is {ct.dtype}, must be {x.dtype}" for path, ct, x in typed if ct.dtype != x.dtype]
            if other and not t.wrong_types:
                yield Row("precision", name, FAIL, f"the cotangent of {other[0]} as the argument")
                break
            if t.dtype == dtype and scale == 1.0:
                truth = t.base
            elif dtype == "float32":
                truth = t.truth(points, dy, 1)
            else:  # no responses are asked for
                exact = t.gradients64("automatic", [as64(p) for p in points], [as64(d) for d in dy])
                truth = Truth(exact, exact)
            yield _precision_row(t, name, dtype, truth, [as64(g) for g in custom], automatic)


def _as(dtype: str, x: Any) -> Any:
    return jnp.complex64 if np.iscomplexobj(x) else dtype


def _refusal(t: Trial, points: Arrays) -> str:
    """Say why f itself does not run at points of another dtype; empty if it does."""
    try:
        t.subject.run("value", "custom", points, t.subject.rest)
    except Exception as error:
        return first_line(error)
    return ""


def _precision_row(t: Trial, name: str, dtype: str, truth: Truth, custom: Arrays, automatic: Arrays) -> Row:
    eps = float(finfo(dtype).eps)
    worst = (0.0, 0.0)
    for leaf, path in enumerate(t.subject.paths):
        c, a, g = custom[leaf], automatic[leaf], truth.gradients[leaf]
        usable = np.isfinite(a) & np.isfinite(g) & (np.abs(g) < float(finfo(dtype).max)) & ~t.by_convention(leaf)
        if (usable & ~np.isfinite(c)).any():
            i = tuple(np.argwhere(usable & ~np.isfinite(c))[0])
            return Row("precision", name, FAIL, f"{path}{index_text(i)} is {c[i]}, automatic {a[i]:.6g}")
        scale = np.where(usable, np.abs(g), 0.0)
        if name != dtype:  # a softmax is saturated there: what is left of its derivative is rounding
            scale = np.where(usable, np.maximum(scale, np.nan_to_num(np.abs(t.base.gradients[leaf]), posinf=0.0)), 0.0)
        errors = [in_units(np.where(usable, np.abs(v - g), 0.0), scale) / eps for v in (c, a)]
        # A sum in another order is right. In low precision it has to be widened; strictly, if the caller uses that.
        sums = max(64, 16 * in_units(np.where(usable, truth.responses[leaf], 0.0), scale)) if dtype == "float32" else 32
        sums, times = (6, 4) if t.dtype == dtype != "float32" else (sums, 8)
        floor = float(finfo(dtype).smallest_normal) / max(scale.max(initial=0.0), 1e-300) / eps
        if errors[0] > max(times * errors[1], floor, sums):
            found = f"{path}: error {errors[0]:.3g} eps of the largest element, automatic {errors[1]:.3g} eps"
            return Row("precision", name, FAIL, found, _cure(t, leaf))
        worst = max(worst, (errors[0], errors[1]))
    return Row("precision", name, PASS, f"error {worst[0]:.2g} eps, automatic {worst[1]:.2g} eps")


def _cure(t: Trial, leaf: int) -> str:
    if t.wide_custom is not None:
        truth = np.abs(t.base.gradients[leaf])
        if in_units(np.abs(t.wide_custom[leaf] - t.base.gradients[leaf]), truth) > 64 * 2.0**-23:
            return "the derivative is off in every precision"
    return "widen sums, exps and logs to float32, round once at the end"
