"""The cases of the tests: every line of the table of components, and each component's options and extremes.

A case makes its arguments as NumPy arrays (float64, integer or bool) and knows the component, the loops of
`oracles` that say what it must return, and PyTorch's function where there is one.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import oracles

import jaxnn
from jaxnn import components

Arrays = tuple[Any, ...]


class Case(NamedTuple):
    """One component, called in one way."""

    id: str
    f: Any  # the component
    make: Callable[[np.random.Generator], Arrays]
    options: dict[str, Any] = {}  # noqa: RUF012 (never changed)
    keywords: tuple[str, ...] = ()  # the names of the last arguments, where they are passed by name
    torch: Callable[..., Any] | None = None  # (torch.nn.functional, *arguments) -> tensor
    kinked: bool = False  # the response to a perturbation is that to one of the cotangent alone
    nan: bool = False  # autodiff of the definition follows another convention about NaN or infinity
    vmappable: bool = True

    def call(self, f: Any, *args: Any) -> Any:
        """Call the component, its definition or its oracle with the case's arguments and options."""
        y = self.outputs(f, *args)
        return y[0] if isinstance(y, tuple) else y

    def outputs(self, f: Any, *args: Any) -> Any:
        """Do the same, and return the indices of a pooling, too."""
        n = len(args) - len(self.keywords)
        return f(*args[:n], **dict(zip(self.keywords, args[n:], strict=True)), **self.options)

    def oracle(self, *args: Any) -> Any:
        """The loops' value."""
        return self.call(self._loops(""), *args)

    def oracle_vjp(self, dy: Any, *args: Any) -> list[Any]:
        """The loops' cotangents, one an argument, None for those without."""
        name, n = self.f.__name__, len(args) - len(self.keywords)
        position = 3 if name in ("linear", "conv2d") else n  # dy follows x, w and b, given or not
        positional = [*args[:n], *[None] * (position - n), dy]
        named = dict(zip(self.keywords, args[n:], strict=True))
        cotangents = self._loops("_vjp")(*positional, **named, **self.options)
        if name in ("l1_penalty", "l2_penalty"):  # a list, one array a leaf: here of an array's rows
            return [np.stack(cotangents)]
        cotangents = list(cotangents)
        if name in ("nll", "nll_loss"):
            cotangents.insert(1, None)  # class ids have none
        return (cotangents + [None] * len(args))[: len(args)]

    def _loops(self, suffix: str) -> Any:
        name = ORACLE.get(self.f.__name__, self.f.__name__) + suffix
        assert hasattr(oracles, name), f"write {name} in tests/oracles: loops over the indices, in float64"
        return getattr(oracles, name)


ORACLE = {"max_pool2d_with_indices": "max_pool2d"}  # the loops of another name


@contextlib.contextmanager
def forms_of(platform):
    """Run, on this machine, the forms that this platform gets from `lax.platform_dependent`."""
    before = jax.lax.platform_dependent
    jax.clear_caches()  # JAX remembers traces of the same functions
    jax.lax.platform_dependent = lambda *args, default, **forms: forms.get(platform, default)(*args)
    try:
        yield
    finally:
        jax.lax.platform_dependent = before
        jax.clear_caches()


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> Callable[[np.random.Generator], Arrays]:
    """Normal arrays of the given shapes."""
    return lambda rng: tuple(scale * rng.standard_normal(shape) for shape in shapes)


def fixed(*arrays: Any) -> Callable[[np.random.Generator], Arrays]:
    """These arrays."""
    return lambda _: tuple(np.asarray(a) for a in arrays)


def labelled(
    shape: tuple[int, ...],
    classes: int,
    axis: int = -1,
    labels: Any = None,
    weight: Any = None,
    transform: Callable[[Any], Any] = lambda x: x,
    scale: float = 1.0,
) -> Callable[[np.random.Generator], Arrays]:
    """Rows with class ids, and class weights if `weight` is "random" or an array."""

    def make(rng: np.random.Generator) -> Arrays:
        x = transform(scale * np.moveaxis(rng.standard_normal((*shape, classes)), -1, axis))
        t = rng.integers(0, max(1, classes), shape).astype(np.int32) if labels is None else np.asarray(labels, np.int32)
        if weight is None:
            return x, t
        return x, t, rng.uniform(0.5, 2.0, classes) if isinstance(weight, str) else np.asarray(weight, np.float64)

    return make


def probabilities(x: Any) -> Any:
    """Softmax over the last axis, away from 0."""
    e = np.exp(x)
    return 0.9 * e / e.sum(-1, keepdims=True) + 0.02


def log_probabilities(x: Any) -> Any:
    """Log-softmax over the last axis."""
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


nan, inf = np.nan, np.inf
LINEAR = [
    Case("linear-no-bias", jaxnn.linear, normal((5, 4), (3, 4)), torch=lambda F, x, w: F.linear(x, w)),
    Case("linear-vector", jaxnn.linear, normal((4,), (3, 4), (3,))),
    Case("linear-two-batch-axes", jaxnn.linear, normal((2, 3, 4), (5, 4), (5,))),
    Case("linear-batch-0", jaxnn.linear, normal((0, 4), (3, 4), (3,))),
    Case("linear-inputs-0", jaxnn.linear, normal((2, 0), (3, 0), (3,))),
    Case("linear-sizes-1", jaxnn.linear, normal((1, 1), (1, 1), (1,))),
    Case("linear-long-sum", jaxnn.linear, normal((2, 700), (3, 700), (3,))),
    Case("linear-infinite", jaxnn.linear, fixed([[inf, 1.0], [nan, 2.0]], [[1.0, 2.0]], [0.5])),
]


def conv(id: str, x: Any, w: Any, bias: bool = False, torch: bool = True, **options: Any) -> Case:
    """A convolution."""
    filters = w[0] if options.get("layout", "NCHW") == "NCHW" else w[-1]
    shapes = (x, w, (filters,)) if bias else (x, w)

    def torch_conv(F: Any, x: Any, w: Any, b: Any = None) -> Any:
        o = {k: v for k, v in options.items() if k != "layout"}
        return F.conv2d(x, w, b, **{k: v.lower() if isinstance(v, str) else v for k, v in o.items()})

    usable = torch and options.get("layout", "NCHW") == "NCHW"
    return Case(f"conv2d-{id}", jaxnn.conv2d, normal(*shapes), options, torch=torch_conv if usable else None)


def images(layout: str, *shape: int) -> tuple[int, ...]:
    """An NCHW (or OIHW) shape, in `layout`."""
    if layout == "NCHW":
        return shape
    return (shape[2], shape[3], shape[1], shape[0])


def image(layout: str, n: int, c: int, h: int, w: int) -> tuple[int, ...]:
    """An image batch's shape in `layout`."""
    return (n, c, h, w) if layout == "NCHW" else (n, h, w, c)


def convs(layout: str) -> list[Case]:
    """Every option of the convolution, in one layout."""
    w = functools.partial(images, layout)
    x = functools.partial(image, layout)
    o = {"layout": layout} if layout == "NHWC" else {}
    tag = f"{layout}-"
    return [
        conv(f"{tag}plain", x(2, 3, 5, 6), w(4, 3, 3, 3), True, **o),
        conv(f"{tag}stride", x(2, 2, 7, 8), w(3, 2, 3, 2), True, stride=(2, 3), **o),
        conv(f"{tag}padding", x(2, 2, 4, 5), w(3, 2, 3, 3), padding=(1, 2), **o),
        conv(f"{tag}asymmetric", x(2, 2, 4, 5), w(3, 2, 2, 3), torch=False, padding=((0, 2), (1, 0)), **o),
        conv(f"{tag}same", x(2, 2, 5, 6), w(3, 2, 3, 2), torch=False, padding="SAME", stride=2, **o),
        conv(f"{tag}valid", x(1, 2, 5, 4), w(3, 2, 2, 2), padding="valid", **o),
        conv(f"{tag}dilation", x(2, 2, 7, 8), w(3, 2, 3, 2), padding=1, dilation=(2, 3), **o),
        conv(f"{tag}groups", x(2, 4, 5, 5), w(6, 2, 3, 3), True, groups=2, **o),
        conv(f"{tag}depthwise", x(2, 3, 5, 5), w(6, 1, 2, 2), groups=3, stride=2, dilation=2, padding=2, **o),
        conv(f"{tag}all", x(3, 4, 8, 7), w(4, 2, 2, 3), True, False, groups=2, stride=(2, 1), dilation=(1, 2),
             padding=((1, 0), (2, 1)), **o),
        conv(f"{tag}batch-0", x(0, 2, 4, 4), w(3, 2, 3, 3), True, torch=False, **o),
        conv(f"{tag}batch-1", x(1, 1, 1, 1), w(1, 1, 1, 1), True, **o),
        conv(f"{tag}no-batch", x(1, 2, 4, 4)[1:], w(3, 2, 3, 3), True, **o),
        conv(f"{tag}two-batch-axes", (2, *x(2, 2, 4, 4)), w(3, 2, 3, 3), True, torch=False, **o),
    ]  # fmt: skip


CONV = [
    *convs("NCHW"),
    *convs("NHWC"),
    conv("NHWC-pointwise", (2, 3, 4, 3), (1, 1, 3, 2), True, layout="NHWC"),
    conv("NHWC-one-filter-a-group", (2, 6, 5, 4), (3, 2, 2, 2), True, layout="NHWC", groups=2, padding=(1, 0)),
    conv("NHWC-depthwise-all", (3, 8, 5, 3), (3, 2, 1, 6), True, layout="NHWC", groups=3, stride=(2, 1),
         dilation=(1, 2), padding=((1, 0), (0, 2))),
    conv(
        "NHWC-large-filter", (4, 7, 6, 2), (3, 2, 2, 3), True, layout="NHWC", dilation=(2, 3), padding=((0, 2), (1, 0))
    ),
]  # fmt: skip

HARD = [-inf, -1e4, -30.0, -2.0, -1e-3, -0.0, 0.0, 1e-3, 0.5, 2.0, 15.0, 30.0, 1e4, inf, nan]
ACTIVATIONS = [
    Case("relu-hard", jaxnn.relu, fixed(HARD)),
    Case("relu-empty", jaxnn.relu, normal((0, 3))),
    Case("relu-scalar", jaxnn.relu, normal(())),
    Case("sigmoid-hard", jaxnn.sigmoid, fixed(HARD), nan=True),
    Case("tanh-hard", jaxnn.tanh, fixed(HARD), nan=True),
]


def pool(id: str, make: Any, nan: bool = False, **options: Any) -> Case:
    """A pooling."""

    def torch_pool(F: Any, x: Any) -> Any:
        return F.max_pool2d(x, **{"kernel_size" if k == "window" else k: v for k, v in options.items()})

    usable = "layout" not in options
    return Case(f"max_pool2d-{id}", jaxnn.max_pool2d, make, options or {"window": 2}, (),
                torch_pool if usable and options else None, True, nan)  # fmt: skip


def ties(*shape: int) -> Callable[[np.random.Generator], Arrays]:
    """Small integers: many equal pixels."""
    return lambda rng: (rng.integers(-1, 2, shape).astype(np.float64),)


def with_nan(*shape: int) -> Callable[[np.random.Generator], Arrays]:
    """Small integers, infinities and NaN."""
    return lambda rng: (rng.choice([nan, -inf, -1.0, 0.0, 1.0, inf], shape, p=[0.15, 0.3, 0.2, 0.2, 0.1, 0.05]),)


POOL = [
    pool("tiles", normal((2, 3, 4, 6)), window=2),
    pool("tiles-NHWC", normal((2, 4, 6, 3)), window=2, layout="NHWC"),
    pool("rest", normal((2, 3, 5, 7)), window=2),
    pool("wide", normal((2, 2, 6, 7)), window=(2, 3)),
    pool("overlap", normal((2, 2, 7, 8)), window=3, stride=2),
    pool("overlap-NHWC", normal((2, 7, 8, 2)), window=(3, 2), stride=1, layout="NHWC"),
    pool("one-window", normal((2, 1, 5, 5)), window=5, stride=2),
    pool("gaps", normal((2, 2, 8, 9)), window=2, stride=3),
    pool("padding", normal((2, 2, 5, 6)), window=(3, 2), stride=(2, 1), padding=1),
    pool("padding-NHWC", normal((2, 5, 6, 2)), window=3, stride=2, padding=(1, 0), layout="NHWC"),
    pool("ties", ties(2, 2, 6, 6), window=3, stride=1),
    pool("nan", with_nan(2, 2, 7, 7), nan=True, window=3, stride=2, padding=1),
    pool("all-minus-infinity", fixed(np.full((1, 3, 3), -inf)), nan=True, window=2, stride=1, padding=1),
    pool("all-minus-infinity-strided", fixed(np.full((1, 6, 6), -inf)), nan=True, window=4, stride=2, padding=2),
    pool("all-minus-infinity-long", fixed(np.full((1, 1, 300), -inf)), nan=True, window=2, stride=1, padding=1),
    pool("padding-tiles-of-3", normal((2, 2, 7, 8)), window=3, stride=3, padding=1),
    pool("window-of-144", normal((2, 3, 24, 12)), window=12),
    pool("window-of-257", fixed(np.arange(257.0).reshape(1, 257, 1)), window=(257, 1)),
    pool("window-1", normal((2, 1, 3, 3)), window=1),
    pool("window-of-272", normal((1, 1, 17, 16)), window=(17, 16)),
    pool("batch-0", normal((0, 2, 4, 4)), window=2, layout="NCHW"),
    pool("no-batch", normal((2, 4, 4)), window=2),
    pool("two-batch-axes", normal((2, 2, 1, 4, 4)), window=2, layout="NCHW"),
]

MASK = np.array([[True, False, True, True], [False, False, False, False], [False, True, False, False]])


def with_mask(rng: np.random.Generator) -> Arrays:
    """Logits with a mask, one row of it all False, and a NaN and an infinity behind the mask."""
    x = rng.standard_normal((3, 4))
    x[0, 1], x[2, 3] = nan, inf
    return x, MASK


SOFTMAX = [
    case
    for f, torch in ((jaxnn.softmax, lambda F, x: F.softmax(x, -1)), (jaxnn.log_softmax, lambda F, x: F.log_softmax(x, -1)))
    for case in (
        Case(f"{f.__name__}-vector", f, normal((5,)), torch=torch),
        Case(f"{f.__name__}-axis", f, normal((3, 4, 2)), {"axis": 1}),
        Case(f"{f.__name__}-axes", f, normal((2, 3, 4)), {"axis": (0, -1)}, vmappable=False),
        Case(f"{f.__name__}-size-1", f, normal((3, 1)), torch=torch),
        Case(f"{f.__name__}-size-0", f, normal((3, 0))),
        Case(f"{f.__name__}-rows-0", f, normal((0, 3))),
        Case(f"{f.__name__}-huge", f, fixed([[1e4, -1e4, 0.0], [6e4, 6e4, 6e4], [-1e4, -1e4, 0.0]]), torch=torch),
        Case(f"{f.__name__}-minus-infinity", f, fixed([[0.0, -inf, 1.0], [-inf, 2.0, -inf]])),
        Case(f"{f.__name__}-not-finite", f, fixed([[nan, 0.0], [inf, 0.0], [-inf, -inf]]), nan=True),
        Case(f"{f.__name__}-where", f, with_mask, {}, ("where",), nan=True),
        Case(f"{f.__name__}-where-some", f, lambda rng: (rng.standard_normal((2, 4)), MASK[[0, 2]] | MASK[[2, 0]]), {}, ("where",)),
        Case(f"{f.__name__}-where-axis", f, lambda rng: (rng.standard_normal((3, 4)), MASK[:, 1:2]), {"axis": 0}, ("where",)),
    )
]  # fmt: skip

SOFTMAX.append(  # what is masked stays −∞ beside them
    Case("log_softmax-where-not-finite", jaxnn.log_softmax, fixed([[nan, 0.0, 1.0], [inf, 0.0, 1.0]], [[True, False, True]] * 2),
         {}, ("where",), nan=True)
)  # fmt: skip

T5 = [1, 0, 3, 2, 1]
PICKED = [
    case
    for f, to, torch in (
        (jaxnn.nll, probabilities, lambda F, p: p.log()),
        (jaxnn.nll_loss, log_probabilities, lambda F, y: y),
    )
    for case in (
        *(
            Case(f"{f.__name__}-{reduction}-weight", f, labelled((5,), 4, transform=to, weight="random"),
                 {"reduction": reduction, "ignore_index": 2}, ("weight",),
                 lambda F, x, t, w, r=reduction, g=torch: F.nll_loss(g(F, x), t, w, reduction=r, ignore_index=2))
            for reduction in ("mean", "sum", "none")
        ),
        *(
            Case(f"{f.__name__}-{reduction}-ignored", f, labelled((5,), 4, labels=T5, transform=to),
                 {"reduction": reduction, "ignore_index": 2}, (),
                 lambda F, x, t, r=reduction, g=torch: F.nll_loss(g(F, x), t, reduction=r, ignore_index=2))
            for reduction in ("mean", "sum", "none")
        ),
        Case(f"{f.__name__}-axis", f, labelled((2, 3), 4, axis=1, transform=np.abs), {"axis": 1}, vmappable=False),
        Case(f"{f.__name__}-one-row", f, labelled((), 4, transform=to)),
        Case(f"{f.__name__}-bad-labels", f, labelled((5,), 4, labels=[1, 4, -1, 2, -100], transform=to, weight="random"),
             {"ignore_index": -100, "reduction": "none"}, ("weight",), nan=True),
        Case(f"{f.__name__}-all-ignored", f, labelled((3,), 4, labels=[9, 9, 9], transform=to, weight="random"),
             {"ignore_index": 9}, ("weight",), nan=True),
        Case(f"{f.__name__}-rows-0", f, labelled((0,), 4), nan=True),
        Case(f"{f.__name__}-classes-1", f, labelled((3,), 1, transform=to)),
    )
]  # fmt: skip
PICKED.append(
    Case("nll-zero", jaxnn.nll, fixed([[0.0, 1.0], [0.5, 0.5]], np.array([0, 1], np.int32)), {"reduction": "sum"})
)


def entropy(id: str, make: Any, weighted: bool = False, torch: bool = True, nan: bool = False, **options: Any) -> Case:
    """A cross entropy."""

    def torch_entropy(F: Any, x: Any, t: Any, w: Any = None) -> Any:
        o = {"ignore_index": -100, **options}
        return F.cross_entropy(x, t, w, **o)

    usable = torch and not nan
    return Case(f"cross_entropy-{id}", jaxnn.cross_entropy, make, options, ("weight",) if weighted else (),
                torch_entropy if usable else None, False, nan, "axis" not in options)  # fmt: skip


def soft_targets(weighted: bool, shape: tuple[int, ...] = (5, 4)) -> Callable[[np.random.Generator], Arrays]:
    """Logits with probabilities as targets."""

    def make(rng: np.random.Generator) -> Arrays:
        arrays = rng.standard_normal(shape), probabilities(rng.standard_normal(shape))
        return (*arrays, rng.uniform(0.5, 2.0, 4)) if weighted else arrays

    return make


ENTROPY = [
    *(
        entropy(f"{reduction}-{'weight-' if weighted else ''}{epsilon}", labelled((5,), 4, labels=T5, weight="random" if weighted else None),
                weighted, reduction=reduction, label_smoothing=epsilon, ignore_index=2)
        for reduction in ("mean", "sum", "none") for weighted in (False, True) for epsilon in (0.0, 0.1)
    ),
    *(
        entropy(f"soft-{reduction}-{epsilon}-{weighted}", soft_targets(weighted), weighted,
                reduction=reduction, label_smoothing=epsilon)
        for reduction, epsilon, weighted in (("mean", 0.0, False), ("mean", 0.1, True), ("none", 0.1, True), ("sum", 1.0, False))
    ),
    entropy("soft-rows-of-rows", soft_targets(True, (2, 3, 4)), True, torch=False, label_smoothing=0.1),
    entropy("all-smoothing", labelled((5,), 4), label_smoothing=1.0),
    entropy("axis", labelled((2, 3), 4, axis=1), axis=1, torch=False),
    entropy("rows-of-rows-weight", labelled((2, 3), 5, labels=[[0, 1, 4], [3, 2, 4]], weight="random"), True,
            torch=False, label_smoothing=0.1),
    entropy("one-row", labelled((), 4)),
    entropy("bad-labels", labelled((5,), 4, labels=[1, 4, -1, 2, -100], weight="random"), True, nan=True,
            ignore_index=-100, label_smoothing=0.1, reduction="none"),
    entropy("bad-labels-mean", labelled((3,), 4, labels=[1, 7, 2]), nan=True),
    entropy("all-ignored", labelled((3,), 4, labels=[9, 9, 9], weight="random"), True, nan=True, ignore_index=9),
    entropy("weight-0", labelled((3,), 4, labels=[1, 1, 1], weight=[1.0, 0.0, 1.0, 1.0]), True, nan=True),
    entropy("rows-0", labelled((0,), 4), nan=True),
    entropy("rows-0-sum", labelled((0,), 4), reduction="sum", torch=False),
    entropy("classes-1", labelled((3,), 1)),
    entropy("huge", fixed([[1e4, -1e4, 0.0], [6e4, 6e4, 6e4]], np.array([1, 2], np.int32)), reduction="none"),
    entropy("minus-infinity", fixed([[0.0, -inf, 1.0], [-inf, 2.0, -inf]], np.array([0, 1], np.int32)), torch=False),
    entropy("soft-minus-infinity", fixed([[0.0, -inf, 1.0]], [[0.5, 0.0, 0.5]]), torch=False, nan=True),
    entropy("not-finite", fixed([[nan, 0.0], [0.0, 1.0]], np.array([0, 1], np.int32)), reduction="none", nan=True),
]  # fmt: skip


def vocabulary(id: str, make: Any, keywords: str = "", torch: bool = False, nan: bool = False, **options: Any) -> Case:
    """A cross entropy of a linear layer's outputs."""

    def torch_vocabulary(F: Any, x: Any, w: Any, t: Any, *given: Any) -> Any:
        o = {"linear_bias" if name == "b" else name: a for name, a in zip(keywords.split(), given, strict=True)}
        o |= {k: v for k, v in options.items() if k in ("reduction", "ignore_index", "label_smoothing")}
        if hasattr(F, "linear_cross_entropy"):
            return F.linear_cross_entropy(x, w, t, **o)
        return F.cross_entropy(F.linear(x, w, o.pop("linear_bias", None)), t, **o)

    return Case(f"linear_cross_entropy-{id}", jaxnn.linear_cross_entropy, make, options, tuple(keywords.split()),
                torch_vocabulary if torch else None, False, nan)  # fmt: skip


def texts(
    shape: tuple[int, ...], d: int, v: int, labels: Any = None, more: Any = (), scale: float = 1.0
) -> Callable[[np.random.Generator], Arrays]:
    """Rows, the weights of a vocabulary and class ids; and the bias and the class weights if `more` names them."""

    def make(rng: np.random.Generator) -> Arrays:
        x, w = scale * rng.standard_normal((*shape, d)), rng.standard_normal((v, d))
        t = rng.integers(0, max(1, v), shape) if labels is None else np.asarray(labels)
        made = {"b": rng.standard_normal(v), "weight": rng.uniform(0.5, 2.0, v)}
        given = [made[name] if isinstance(name, str) else np.asarray(name, np.float64) for name in more]
        return (x, w, t.astype(np.int32), *given)

    return make


ALL = {"ignore_index": 2, "label_smoothing": 0.1, "z_loss": 0.05, "logit_softcap": 2.0, "block_size": 2}
T7 = [1, 6, 3, 2, 1]
VOCABULARY = [
    vocabulary("blocks", texts((5,), 3, 7), torch=True, block_size=2),
    vocabulary("lean", texts((5,), 3, 7), torch=True, memory="lean", block_size=3),
    *(
        vocabulary(f"{reduction}-{memory}", texts((5,), 3, 7, T7, ("b", "weight")), "b weight", reduction=reduction, memory=memory, **ALL)
        for reduction in ("mean", "sum", "none") for memory in ("fast", "lean")
    ),
    *(
        vocabulary(f"torch-{reduction}-{memory}", texts((5,), 3, 7, T7, ("b", "weight")), "b weight", True, reduction=reduction,
                   memory=memory, ignore_index=2, label_smoothing=0.1, block_size=4)
        for reduction, memory in (("mean", "fast"), ("sum", "lean"), ("none", "fast"))
    ),
    *(
        case for memory in ("fast", "lean") for case in (
            vocabulary(f"bad-labels-{memory}", texts((5,), 3, 4, [1, 4, -1, 2, -100], ("b", "weight")), "b weight", nan=True,
                       ignore_index=-100, label_smoothing=0.1, reduction="sum", memory=memory, block_size=2),
            vocabulary(f"minus-infinity-{memory}", texts((3,), 2, 4, [0, 3, 3], ([0.0, -inf, -inf, 0.5],)), "b", memory=memory, block_size=2),
        )
    ),
    vocabulary("smoothing", texts((4,), 3, 5), label_smoothing=0.3, memory="lean", block_size=2),
    vocabulary("all-ignored", texts((3,), 2, 4, [9, 9, 9], ("weight",)), "weight", nan=True, ignore_index=9),
    vocabulary("rows-0", texts((0,), 3, 4), nan=True, memory="lean"),
    vocabulary("classes-1", texts((3,), 2, 1)),
    vocabulary("capped", texts((3,), 2, 4, scale=8.0), logit_softcap=1.5, memory="lean"),
    vocabulary("bad-labels-none", texts((5,), 3, 4, [1, 4, -1, 2, -100], ("weight",)), "weight", nan=True, ignore_index=-100, reduction="none"),
    vocabulary("bad-labels-mean", texts((3,), 3, 4, [1, 7, 2]), nan=True),
    vocabulary("rows-of-rows", texts((2, 3), 3, 5, None, ("b",)), "b", block_size=4),
    vocabulary("one-row", texts((), 3, 5)),
    vocabulary("z-loss-none", texts((2, 2), 3, 5), reduction="none", z_loss=0.1, block_size=4),
    vocabulary("huge", texts((3,), 2, 4, scale=1e4), reduction="sum"),
]  # fmt: skip

LOSSES = [
    *(
        Case(f"binary_cross_entropy-{r}", jaxnn.binary_cross_entropy,
             lambda rng: (2 * rng.standard_normal((3, 4)), rng.uniform(0.1, 0.9, (3, 4))), {"reduction": r},
             torch=lambda F, x, t, r=r: F.binary_cross_entropy_with_logits(x, t, reduction=r))
        for r in ("mean", "sum", "none")
    ),
    # The definition, softplus(x) − x t, and PyTorch lose what is left of a certain and right answer.
    Case("binary_cross_entropy-certain", jaxnn.binary_cross_entropy, nan=True, options={"reduction": "none"},
         make=fixed([-1e4, -40.0, -3.0, 0.0, 3.0, 40.0, 1e4] * 2, [0.0] * 7 + [1.0] * 7)),
    Case("binary_cross_entropy-infinite", jaxnn.binary_cross_entropy, nan=True, options={"reduction": "none"},
         make=fixed([inf, -inf, inf, -inf], [1.0, 0.0, 0.0, 1.0])),
    Case("binary_cross_entropy-rows-0", jaxnn.binary_cross_entropy, normal((0,), (0,)), {"reduction": "sum"}),
    *(
        Case(f"squared_error-{r}", jaxnn.squared_error, normal((3, 4), (3, 4)), {"reduction": r},
             torch=lambda F, y, t, r=r: F.mse_loss(y, t, reduction=r))
        for r in ("mean", "sum", "none")
    ),
    Case("squared_error-scalar", jaxnn.squared_error, normal((), ())),
    Case("squared_error-infinite", jaxnn.squared_error, fixed([inf, nan, 1.0, 1e4], [0.0, 0.0, 1.0, -1e4]), {"reduction": "none"}),
]  # fmt: skip

# PyTorch's function for a line of the table of components.
TORCH: dict[str, Any] = {
    "linear": lambda F, x, w, b: F.linear(x, w, b),
    "conv2d NCHW": lambda F, x, w, b: F.conv2d(x, w, b),
    "relu": lambda F, x: F.relu(x),
    "sigmoid": lambda F, x: F.sigmoid(x),
    "tanh": lambda F, x: F.tanh(x),
    "max_pool2d NCHW": lambda F, x: F.max_pool2d(x, 2),
    "softmax": lambda F, x: F.softmax(x, -1),
    "log_softmax": lambda F, x: F.log_softmax(x, -1),
    "nll": lambda F, p, t: F.nll_loss(p.log(), t),
    "nll_loss": lambda F, y, t: F.nll_loss(y, t),
    "cross_entropy": lambda F, x, t: F.cross_entropy(x, t),
    "linear_cross_entropy fast": lambda F, x, w, t: F.cross_entropy(F.linear(x, w), t),
    "linear_cross_entropy lean": lambda F, x, w, t: F.cross_entropy(F.linear(x, w), t),
    "binary_cross_entropy": lambda F, x, t: F.binary_cross_entropy_with_logits(x, t),
    "squared_error": lambda F, y, t: F.mse_loss(y, t),
}


def of_table() -> list[Case]:
    """A case of each line of the table of components; random functions have tests of their own."""

    def make(line: components.TableLine) -> Callable[[np.random.Generator], Arrays]:
        return lambda rng: tuple(
            a.astype(np.float64) if a.dtype == np.float32 else a for a in line.args(rng, components.TINY)
        )

    return [
        Case(line.name, line.f, make(line), line.options, line.keywords, TORCH.get(line.name), "max_pool" in line.name)
        for line in components.COMPONENTS
        if not line.is_random
    ]


CASES = [*of_table(), *LINEAR, *CONV, *ACTIVATIONS, *POOL, *SOFTMAX, *PICKED, *ENTROPY, *VOCABULARY, *LOSSES]

# One or two of each component and way of calling it, for what takes long.
CHOSEN = {
    "linear", "linear-vector", "conv2d-NCHW-all", "conv2d-NHWC-plain", "conv2d-NHWC-same", "relu", "sigmoid", "tanh",
    "max_pool2d-tiles-NHWC", "max_pool2d-overlap", "max_pool2d-padding", "softmax", "softmax-where-axis", "log_softmax",
    "log_softmax-where-axis", "nll-mean-weight", "nll-none-weight", "nll_loss-sum-weight", "nll_loss", "cross_entropy",
    "cross_entropy-mean-weight-0.1", "cross_entropy-none-weight-0.1", "cross_entropy-soft-mean-0.1-True",
    "binary_cross_entropy-mean", "binary_cross_entropy-none", "squared_error-mean", "squared_error-none",
    "linear_cross_entropy-blocks", "linear_cross_entropy-lean",
}  # fmt: skip
