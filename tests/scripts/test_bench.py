"""The benchmark measures what it says: turns, ratios, agreement; tiny sizes, and no word on how fast anything is."""

import itertools
import json

import bench
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import speed_tables
import workloads

TINY = workloads.Sizes(2, 16, 10, (8, 8), (8, 8, 32), (2,))
CEILINGS = {"JAX": {"flop_per_second": 1e9, "bytes_per_second": 1e9}}
FEW = ["conv2d NCHW", "max_pool2d_with_indices", "dropout", "binary_cross_entropy"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Tiny sizes, few components and nets, and nothing that PyTorch compiles; outside the suite's strict mode."""
    all_components, all_nets = workloads.components, workloads.nets
    monkeypatch.setattr(workloads, "components", lambda s: (w for w in all_components(s) if w.name in FEW))
    monkeypatch.setattr(workloads, "nets", lambda dtype: all_nets(dtype)[:2])
    monkeypatch.setattr(workloads, "torch_forms", lambda gpu: ["eager", "channels_last"])
    monkeypatch.setitem(workloads.SIZES, "cpu", TINY)
    monkeypatch.setattr(bench, "IMAGE", (8, 8, 1))
    monkeypatch.setattr(bench, "STEPS", 2)
    monkeypatch.setattr(bench, "UNROLL", 2)
    monkeypatch.setattr(bench, "ROUND", 0)
    monkeypatch.setattr(bench, "ceilings", lambda *_: CEILINGS)
    if workloads.torch:
        monkeypatch.setattr(workloads.torch, "compile", lambda f, **_: f)
    jax.config.update("jax_disable_most_optimizations", True)  # XLA compiles in half the time
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def variant(side, name, samples=(), **facts):
    return bench.Variant(side, name, lambda n: None, samples=list(samples), facts=facts)


def test_ratios_are_of_rounds():
    assert bench.ratio([1.0, 10.0, 3.0], [2.0, 5.0, 3.0, 99.0]) == (1.0, 0.75, 1.5)


def test_a_row_takes_each_side_at_its_best():
    variants = [
        variant("jaxnn", "slow", [9.0] * 3), variant("jaxnn", "fast", [1.0, 2.0, 3.0], temporary_bytes=1e6),
        variant("jax", "a", [8.0] * 3), variant("jax", "b", [4.0, 4.0, 4.0], temporary_bytes=4e6),
    ]  # fmt: skip
    row = bench.row("g", "n", "float32", variants, {"of JAX": 0.4, "ms": 2500}, flops=8.0)
    assert row["best"] == {"jaxnn": "fast", "jax": "b"} and row["flop_per_second"] == 4.0
    figures = {f["figure"]: f for f in row["figures"]}
    assert set(figures) == {"of JAX", "memory of JAX", "MB", "ms"}
    assert figures["of JAX"] == {
        "figure": "of JAX",
        "value": 0.5,
        "low": 0.375,
        "high": 0.625,
        "limit": 0.4,
        "met": False,
    }
    assert figures["memory of JAX"]["value"] == 0.25 and "met" not in figures["memory of JAX"]
    assert figures["ms"]["value"] == 2000 and figures["ms"]["met"]


def test_no_target_below_50_microseconds():
    row = bench.row("g", "n", "float32", [variant("jaxnn", "a", [9e-5]), variant("jax", "b", [4e-5])], {"of JAX": 1})
    assert not row["large"] and not any("limit" in f for f in row["figures"])


def test_variants_take_turns_and_the_slow_ones_stop():
    order, seconds = [], {"a": 1.0, "b": 5.0, "c": 1.1, "d": 9.0}

    class Fake(bench.Variant):
        def sample(self):
            order.append(self.name)
            return seconds[self.name]

    variants = [Fake(side, name, None) for side, name in (("jaxnn", "a"), ("jax", "b"), ("jax", "d"), ("jaxnn", "c"))]
    bench.measure(variants, 15)
    assert [len(v.samples) for v in variants] == [15, 15, 3, 15]
    text = "".join(order)
    rounds = [text[i : i + 4] for i in (0, 4, 8)] + [text[i : i + 3] for i in range(12, 48, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abcd", "abc"}
    assert {a + b for r in rounds[3:] for a, b in itertools.pairwise(r)} == {"ab", "ac", "ba", "bc", "ca", "cb"}


def test_short_rounds_are_repeated(monkeypatch):
    now = [0.0]

    class Fake(bench.Variant):
        def sample(self):
            now[0] += 0.125
            return 0.1

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench, "ROUND", 1)
    variants = [Fake("jaxnn", "a", None), Fake("jax", "b", None)]
    bench.measure(variants, 5)
    assert [len(v.samples) for v in variants] == [20, 20]  # 5 seconds, of rounds that take a quarter


def test_a_sample_is_the_time_of_one_step(monkeypatch):
    now, calls = [0.0], []

    def run(n):
        calls.append(n)
        now[0] += 0.004 * n

    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])
    v = bench.Variant("jaxnn", "a", run, steps=4).calibrated()
    assert v.sample() == pytest.approx(0.001) and calls == [1, 2, 2]  # calibration, untimed, timed


@pytest.mark.one_in(5)
@pytest.mark.parametrize("group", bench.GROUPS)
def test_groups(group, tmp_path, capsys):
    file, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    assert bench.main([group, "--rounds", "1", "--json", str(file), "--picture", str(picture)]) == 0
    results = json.loads(file.read_text())
    assert {r["group"] for r in results["rows"]} == {group} and picture.stat().st_size > 0
    assert str(tmp_path) not in file.read_text()
    assert {"command", "machine", "ceilings", "rows"} == set(results)
    names = [r["name"] for r in results["rows"]]
    assert names == sorted(set(names), key=names.index)
    if group == "tricks":
        assert [n.split(",")[0] for n in names] == ["conv2d NCHW: `_in_layout`", "dropout: `_keep`"]
        for row in results["rows"]:
            assert row["best"].keys() == {"jaxnn", "without"}
            assert {f["figure"] for f in row["figures"]} == {"of without", "MB", "ms"}
    if group == "components":
        assert {n.removesuffix(", per example") for n in names} == set(FEW) and len(names) == 2 * len(FEW)
    for row in results["rows"] if group != "tricks" else ():
        alone = row["name"].startswith("alone the product")
        assert "jaxnn" in row["best"] and alone != ("jax" in row["best"])
        assert alone != ("of JAX" in [f["figure"] for f in row["figures"]])
        assert ("torch" in row["best"]) == (
            workloads.torch is not None and group in ("convnet", "components")
            and "per example" not in row["name"] and "scan" not in row["name"]
        )  # fmt: skip
    assert group in capsys.readouterr().out


@pytest.mark.one_in(2)
@pytest.mark.parametrize("net, dtype", [(1, "float32"), (2, "float32"), (3, "float32"), (3, "bfloat16")])
def test_every_net_is_the_convnet(monkeypatch, net, dtype):
    monkeypatch.undo()
    found = workloads.nets(getattr(jnp, dtype))
    if net >= len(found):
        pytest.skip("Flax is not installed")
    params = bench.models.convnet.init(jax.random.key(0), bench.IMAGE, 10)
    x, y = np.random.default_rng(0).standard_normal((4, *bench.IMAGE), np.float32), jnp.arange(4)
    bench.check_net(found[net], dtype, params, x, y, bench.truth_of_net(params, x, y))


def test_every_trick_can_be_left_out(monkeypatch):
    """And is another program then, at the size that is measured."""
    monkeypatch.undo()
    monkeypatch.setattr(workloads, "torch", None)
    works = {w.name: w for w in workloads.components(workloads.SIZES["cpu"])}

    def program(work):
        ours = bench.as_in(work.ours)
        f, floats = bench.of_floats(ours.f, [bench.permuted(a, ours.axes(i)) for i, a in enumerate(work.args)])

        def value_and_gradients(*floats):
            y, vjp = jax.vjp(f, *floats)
            return y, vjp(jnp.ones_like(y))

        return jax.jit(value_and_gradients).lower(*floats).as_text()

    for trick in workloads.tricks(gpu=False):
        with trick.left_out():
            without = program(works[trick.work])
        assert program(works[trick.work]) != without, trick
    assert {t.name for t in workloads.tricks(gpu=True)} < {t.name for t in workloads.tricks(gpu=False)}


def test_a_disagreement_stops_the_run_in_one_line(monkeypatch, capsys):
    x = np.ones((4, 4), np.float32)
    work = workloads.Work("square", (x,), lambda x: x**2, {"right": lambda x: x * x, "wrong": lambda x: x * x * 1.001})
    monkeypatch.setattr(workloads, "components", lambda s: iter([work]))
    assert bench.main(["components", "--rounds", "1"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bench.py: error: square by wrong: differs from jaxnn in float64 by")


@pytest.mark.parametrize("wrong", ["value", "gradient", "mask", "probability"])
def test_dropout_is_compared_without_its_mask(wrong):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 1, 10_000))
    kept = rng.random((1, 10_000)) < (0.7 if wrong == "probability" else 0.75)
    other = rng.random((1, 10_000)) < 0.75 if wrong == "mask" else kept
    y, dx = kept * x / (0.7 if wrong == "value" else 0.75), other * dy / (0.7 if wrong == "gradient" else 0.75)
    truth = [np.full((1, 10_000), 1 / 0.75)] * 2 + [np.float64(1)]
    with np.errstate(all="ignore"):
        found = workloads.dropout_digest((x, None), dy, [y, dx])
    with pytest.raises(bench.Disagreement):
        bench.agree("dropout", "bfloat16", found, truth)


def test_without_torch_and_optax(monkeypatch, capsys):
    for module, name in ((workloads, "torch"), (bench, "torch"), (workloads, "optax"), (workloads, "linen")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(
        workloads, "components", lambda s, f=workloads.components: (w for w in f(s) if w.name == FEW[-1])
    )
    assert bench.main(["components", "--rounds", "1"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "not installed, and left out: torch, flax, optax"


def test_a_form_that_pytorch_cannot_compile_is_left_out(capsys):
    def fails():
        raise RuntimeError("no compiler\nand a long story")

    assert bench.unless_it_fails("compile", fails) == []
    assert capsys.readouterr().err == "left out, PyTorch fails: compile: no compiler\n"


@pytest.mark.parametrize(
    "argv", [["convnets"], ["--rounds", "0"], ["--rounds", "x"], ["--json", "no/where.json"], ["--picture", "a.jpg"]]
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        bench.main(argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and argv[-1] in error


def test_the_readme_says_what_was_measured(monkeypatch, tmp_path):
    text = speed_tables.README.read_text(encoding="utf-8")
    assert speed_tables.readme(text) == text
    results = {
        "command": "python scripts/bench.py",
        "ceilings": {"float32": CEILINGS | {"PyTorch": {"flop_per_second": 2e9, "bytes_per_second": 5e8}}},
        "machine": {"date": "2000-01-01T00:00", "device": "cpu", "cores": 2, "cpu": "a|b", "load": 0.1, "versions": {"jax": "1"}},
        "rows": [
            bench.row("g", "n", "float32", [variant("jaxnn", "a", [1.0]), variant("jax", "b|c", [2.0])], {"of JAX": 1}, flops=1e9),
            bench.row("tricks", "t", "float32", [variant(s, "a", [1.0], temporary_bytes=1.0) for s in ("jaxnn", "without")], {}),
        ],
    }  # fmt: skip
    monkeypatch.setattr(speed_tables, "SPEED", tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    written = speed_tables.readme(text)
    assert speed_tables.readme(written) == written and written.count("\n## Speed\n") == 1
    assert (
        "| n | 1 s (a) | 2 s (b\\|c) |  | 0.5 [0.5, 0.5] |" in written
        and "1 Gflop/s (50%) | of JAX ≤ 1: met |" in written
    )
    tables = [t.splitlines() for t in speed_tables.section().split("\n\n") if t.startswith("| ")]
    assert len(tables) == 2
    for head, rule, *_ in tables:
        assert set(rule) == set("|-") and rule.count("|") == head.count("|")
    with pytest.raises(SystemExit):
        speed_tables.readme("no markers")
