"""The benchmark measures what it says: turns, ratios, agreement. At tiny sizes; nothing here depends on speed."""

import itertools
import json

import bench
import bench_components
import bench_convnet
import bench_convolutions
import bench_timing
import convnets
import convolutions
import jax
import jax.numpy as jnp
import libraries
import numpy as np
import optimisations
import pytest
import sections
import speed_tables
import workloads
from PIL import Image

from jaxnn import components

TINY = components.Size((2, 6, 4, 4), 16, 10, 8, (8, 8, 32))
CEILINGS = {"JAX": {"flop_per_second": 1e9, "bytes_per_second": 1e9}}
CONVOLUTIONS = convolutions.SHAPES
ALL_COMPONENTS = workloads.components
FEW = ["conv2d NCHW", "max_pool2d_with_indices", "dropout", "binary_cross_entropy"]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Tiny sizes, few components and networks, nothing compiled by PyTorch; outside the suite's strict mode."""
    all_components, all_nets = workloads.components, convnets.nets
    monkeypatch.setattr(workloads, "components", lambda s: (w for w in all_components(s) if w.name in FEW))
    monkeypatch.setattr(convnets, "nets", lambda dtype: all_nets(dtype)[:2])
    monkeypatch.setattr(convnets, "torch_forms", lambda gpu: ["eager", "channels_last"])
    monkeypatch.setitem(workloads.SIZES, "cpu", TINY)
    monkeypatch.setitem(bench_convnet.BATCH_SIZES, "cpu", (2,))
    monkeypatch.setattr(bench_convnet, "IMAGE", (8, 8, 1))
    monkeypatch.setattr(bench_convolutions, "BATCH_SIZES", (1, 2))
    small = [shape._replace(size=6, inputs=4, filters=4, groups=min(4, shape.groups)) for shape in CONVOLUTIONS[:3:2]]
    monkeypatch.setattr(bench_convolutions, "SHAPES", small)
    monkeypatch.setattr(convolutions, "SHAPES", ())
    monkeypatch.setattr(bench_convnet, "STEPS", 2)
    monkeypatch.setattr(bench_convnet, "UNROLL", 2)
    monkeypatch.setattr(bench_timing, "ROUND", 0)
    monkeypatch.setattr(bench, "ceilings", lambda *_: CEILINGS)
    if libraries.torch:
        monkeypatch.setattr(libraries.torch, "compile", lambda f, **_: f)
    jax.config.update("jax_disable_most_optimizations", True)  # XLA compiles in half the time
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def variant(side, name, samples=(), **facts):
    return bench_timing.Variant(side, name, lambda n: None, samples=list(samples), facts=facts)


def test_a_ratio_is_the_median_of_the_rounds_ratios():
    assert bench_timing.ratio([1.0, 10.0, 3.0], [2.0, 5.0, 3.0, 99.0]) == (1.0, 0.75, 1.5)


def test_a_row_takes_the_best_variant_of_each_side():
    variants = [
        variant("jaxnn", "slow", [9.0] * 3), variant("jaxnn", "fast", [1.0, 2.0, 3.0], temporary_bytes=1e6),
        variant("jax", "a", [8.0] * 3), variant("jax", "b", [4.0, 4.0, 4.0], temporary_bytes=4e6),
    ]  # fmt: skip
    row = bench_timing.row("g", "n", "float32", variants, {"of JAX": 0.4, "ms": 2500}, flops=8.0)
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
    row = bench_timing.row(
        "g", "n", "float32", [variant("jaxnn", "a", [9e-5]), variant("jax", "b", [4e-5])], {"of JAX": 1}
    )
    assert not row["large"] and not any("limit" in f for f in row["figures"])


def test_variants_take_turns_and_the_slow_ones_stop():
    order, seconds = [], {"a": 1.0, "b": 5.0, "c": 1.1, "d": 9.0}

    class Fake(bench_timing.Variant):
        def sample(self):
            order.append(self.name)
            return seconds[self.name]

    variants = [Fake(side, name, None) for side, name in (("jaxnn", "a"), ("jax", "b"), ("jax", "d"), ("jaxnn", "c"))]
    bench_timing.measure(variants, 15)
    assert [len(v.samples) for v in variants] == [15, 15, 3, 15]
    text = "".join(order)
    rounds = [text[i : i + 4] for i in (0, 4, 8)] + [text[i : i + 3] for i in range(12, 48, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abcd", "abc"}
    assert {a + b for r in rounds[3:] for a, b in itertools.pairwise(r)} == {"ab", "ac", "ba", "bc", "ca", "cb"}


def test_short_rounds_are_repeated(monkeypatch):
    now = [0.0]

    class Fake(bench_timing.Variant):
        def sample(self):
            now[0] += 0.125
            return 0.1

    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(bench_timing, "ROUND", 1)
    variants = [Fake("jaxnn", "a", None), Fake("jax", "b", None)]
    bench_timing.measure(variants, 5)
    assert [len(v.samples) for v in variants] == [20, 20]  # 5 seconds, of rounds that take a quarter


def test_a_sample_is_the_time_of_one_step(monkeypatch):
    now, calls = [0.0], []

    def run(n):
        calls.append(n)
        now[0] += 0.004 * n

    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: now[0])
    v = bench_timing.Variant("jaxnn", "a", run, steps=4).calibrated()
    assert v.sample() == pytest.approx(0.001) and calls == [1, 2, 2]  # calibration, untimed, timed


@pytest.mark.more
@pytest.mark.parametrize("group", bench.GROUPS)
def test_groups(group, tmp_path, capsys):
    file, picture = tmp_path / "speed.json", tmp_path / "speed.png"
    assert bench.main([group, "--rounds", "1", "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert {r["group"] for r in results["rows"]} == {group}
    speed_tables.draw([results], (group,), picture)
    assert picture.stat().st_size > 0
    assert str(tmp_path) not in file.read_text()
    assert {"command", "machine", "ceilings", "rows"} == set(results)
    names = [r["name"] for r in results["rows"]]
    assert names == sorted(set(names), key=names.index)
    if group == "optimisations":
        assert [n.split(" instead")[0] for n in names] == ["conv2d NCHW: `in_layout`", "dropout: `_keep`"]
        for row in results["rows"]:
            assert row["best"].keys() == {"jaxnn", "off"}
            assert {f["figure"] for f in row["figures"]} == {"of off", "MB", "ms"}
    if group == "components":
        assert {n.removesuffix(", per example") for n in names} == set(FEW) and len(names) == 2 * len(FEW)
    for row in results["rows"] if group != "optimisations" else ():
        alone = row["name"].startswith("the matrix product")
        assert "jaxnn" in row["best"] and alone != ("jax" in row["best"])
        assert alone != ("of JAX" in [f["figure"] for f in row["figures"]])
        assert ("torch" in row["best"]) == (
            libraries.torch is not None and group in ("convnet", "components", "convolutions")
            and "per example" not in row["name"] and "scan" not in row["name"]
        )  # fmt: skip
    assert group in capsys.readouterr().out


@pytest.mark.more
@pytest.mark.parametrize("net, dtype", [(1, "float32"), (2, "float32"), (3, "float32"), (3, "bfloat16")])
def test_every_network_is_the_convnet(monkeypatch, net, dtype):
    monkeypatch.undo()
    found = convnets.nets(getattr(jnp, dtype))
    if net >= len(found):
        pytest.skip("Flax is not installed")
    params = bench_convnet.models.convnet.init(jax.random.key(0), bench_convnet.IMAGE, 10)
    x, y = np.random.default_rng(0).standard_normal((4, *bench_convnet.IMAGE), np.float32), jnp.arange(4)
    bench_convnet.check_net(found[net], dtype, params, x, y, bench_convnet.truth_of_net(params, x, y))


@pytest.mark.more
def test_every_optimisation_can_be_switched_off(monkeypatch):
    """The program is another one then, at the size that is measured."""
    monkeypatch.undo()
    monkeypatch.setattr(libraries, "torch", None)
    works = {w.name: w for w in (*workloads.components(workloads.SIZES["cpu"]), *convolutions.in_the_middle())}

    def program(work):
        ours = work.ours
        f, floats = bench_components.of_floats(
            ours.f, [workloads.permuted(a, ours.axes(i)) for i, a in enumerate(work.args)]
        )

        def value_and_gradients(*floats):
            y, vjp = jax.vjp(f, *floats)
            return y, vjp(jnp.ones_like(y))

        return jax.jit(value_and_gradients).lower(*floats).as_text()

    for each in optimisations.optimisations(gpu=False):
        with each.off():
            off = program(works[each.work])
        assert program(works[each.work]) != off, each
    on_gpu, on_cpu = ({o.name for o in optimisations.optimisations(gpu)} for gpu in (True, False))
    assert on_gpu < on_cpu


def test_a_disagreement_stops_the_run_in_one_line(monkeypatch, capsys):
    x = np.ones((4, 4), np.float32)
    work = workloads.Work("square", (x,), lambda x: x**2, {"right": lambda x: x * x, "wrong": lambda x: x * x * 1.001})
    monkeypatch.setattr(workloads, "components", lambda s: iter([work]))
    assert bench.main(["components", "--rounds", "1"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("bench.py: error: square by wrong: differs from jaxnn in float64 by")


@pytest.mark.parametrize("wrong", ["value", "gradient", "mask", "probability"])
def test_wrong_dropout_is_noticed_whatever_the_mask(wrong):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 1, 10_000))
    kept = rng.random((1, 10_000)) < (0.7 if wrong == "probability" else 0.75)
    other = rng.random((1, 10_000)) < 0.75 if wrong == "mask" else kept
    y, dx = kept * x / (0.7 if wrong == "value" else 0.75), other * dy / (0.7 if wrong == "gradient" else 0.75)
    truth = [np.full((1, 10_000), 1 / 0.75)] * 2 + [np.float64(1)]
    with np.errstate(all="ignore"):
        found = workloads.dropout_digest(0.25, (x, None), dy, [y, dx])
    with pytest.raises(bench_timing.Disagreement):
        bench_timing.agree("dropout", "bfloat16", found, truth)


@pytest.mark.more
def test_without_torch_and_optax(monkeypatch, capsys):
    for name in ("torch", "optax", "linen"):
        monkeypatch.setattr(libraries, name, None)
    monkeypatch.setattr(
        workloads, "components", lambda s, f=workloads.components: (w for w in f(s) if w.name == FEW[-1])
    )
    assert bench.main(["components", "--rounds", "1"]) == 0
    assert capsys.readouterr().err.splitlines()[0] == "not installed, and left out: torch, flax, optax"


def test_a_form_that_pytorch_cannot_compile_is_left_out(capsys):
    def fails():
        raise RuntimeError("no compiler\nand more lines")

    assert bench_timing.unless_it_fails("compile", fails) == []
    assert capsys.readouterr().err == "left out, PyTorch fails: compile: no compiler\n"


@pytest.mark.more
def test_a_quick_run_has_the_rows_that_are_asked_for_most(tmp_path, monkeypatch):
    file = tmp_path / "speed.json"
    assert bench.main(["--quick", "--rounds", "1", "--json", str(file)]) == 0
    results = json.loads(file.read_text())
    assert results["command"] == "python scripts/bench.py --quick --rounds 1"
    names = [r["name"] for r in results["rows"]]
    assert names == ["training step, batch 2", "convnet's gradient, batch 1024", "convnet's step, batch 2", "dropout"]
    assert not any(v["name"][-4:] == "scan" or "compile" in v["name"] for r in results["rows"] for v in r["variants"])
    assert len(bench_components.QUICK) + 3 == 10
    assert set(bench_components.QUICK) <= {line.name for line in components.COMPONENTS}


@pytest.mark.parametrize(
    "argv", [["--quick", "memory"], ["convnets"], ["--rounds", "0"], ["--rounds", "x"], ["--json", "no/where.json"]]
)
def test_wrong_usage(argv, capsys):
    with pytest.raises(SystemExit) as exit:
        bench.main(argv)
    error = capsys.readouterr().err
    assert exit.value.code == 2 and error.count("\n") == 1 and argv[-1] in error


@pytest.mark.parametrize(
    "path, name", [(speed_tables.README, "section"), (speed_tables.ROOT_README, "summary")], ids=["scripts", "root"]
)
def test_the_readmes_say_what_was_measured(path, name):
    text = path.read_text(encoding="utf-8")
    assert sections.rewritten(text, "speed", getattr(speed_tables, name)()) == text, "run scripts/bench.py --readme"


def test_the_summary_has_at_most_twenty_rows_and_says_which_is_a_compile_time():
    head, rule, *rows = (line for line in speed_tables.summary().splitlines() if line.startswith("|"))
    assert 0 < len(rows) <= 20 and {line.count("|") for line in (head, rule, *rows)} == {9}
    for row in rows:
        measured = row.split("|")[2].strip()
        assert measured == ("compile time" if "step," in row and "training" not in row else
                            "peak memory" if "gradient" in row else "run time")  # fmt: skip


def test_the_summary_has_the_ratios_of_each_version_and_to_pytorch():
    head, _, *rows = (line.split("|")[1:-1] for line in speed_tables.summary().splitlines() if line.startswith("|"))
    at = {name.strip(): column for column, name in enumerate(head)}
    shown = {row[0].strip(): {name: row[column].strip() for name, column in at.items()} for row in rows}
    for file, column, figure in [
        ("cpu-epyc-avx512-jax-0.10.json", "jaxnn / JAX", "of JAX"),
        ("cpu-epyc-avx512-jax-0.12.json", "jaxnn / JAX on jax 0.12", "of JAX"),
        ("cpu-epyc-avx512-jax-0.10.json", "jaxnn / PyTorch", "of PyTorch"),
    ]:
        measured = {r["name"]: r for r in json.loads((speed_tables.SPEED / file).read_text())["rows"]}
        for name, texts in shown.items():
            (value,) = [f["value"] for f in measured[name]["figures"] if f["figure"] == figure] or [None]
            assert texts[column] == ("" if value is None else f"{value:.3g}"), (name, column)


def test_results_of_two_processors_are_told_apart(monkeypatch):
    epyc = {"model name": "AMD EPYC", "cpu family": "25", "model": "1", "flags": "sse2 avx2"}
    assert bench.processor_of(epyc) == "AMD EPYC (family 25, model 1, AVX2)"
    assert bench.processor_of(epyc | {"flags": "avx2 avx512f"}).endswith(" AVX-512)")
    assert bench.processor_of(epyc | {"flags": ""}).endswith("(family 25, model 1)")
    assert bench.processor_of({"Processor": "an ARM"}) == ""
    results = [
        {"machine": {"cpu": cpu, "date": date, "cores": 2, "device": "cpu", "load": 1.0, "versions": {"jax": jax}},
         "command": "c", "ceilings": {}, "rows": [bench_timing.row("components", name, "float32", [
             variant("jaxnn", "rule", [1.0]), variant("jax", "lax", [2.0])], {})]}
        for cpu, date, jax, name in [
            ("Intel(R) Xeon(R) Processor", "2026-11-22", "0.10.2", "relu"),
            ("AMD EPYC", "2026-11-30", "0.10.2", "linear"), ("AMD EPYC", "2026-11-29", "0.12.0", "linear"),
        ]
    ]  # fmt: skip
    assert [speed_tables.processor(r) for r in results] == ["Intel Xeon", "AMD EPYC", "AMD EPYC"]
    monkeypatch.setattr(speed_tables, "committed_results", lambda: results)
    summary = speed_tables.summary()
    assert "linear" in summary and "relu" not in summary and "Xeon" not in summary


def test_each_kind_of_work_has_one_picture_drawn_from_the_committed_results():
    assert {path.stem for path in speed_tables.SPEED.glob("*.png")} == set(speed_tables.PICTURES)
    for name, chosen in speed_tables.PICTURES.items():
        place = "](scripts/speed/quick.png)" if name == "quick" else f"](speed/{name}.png)"
        assert place in (speed_tables.summary() if name == "quick" else speed_tables.section())
        with Image.open(speed_tables.SPEED / f"{name}.png") as image:
            assert image.text["Source"] == speed_tables.digest(speed_tables.rows_of(chosen)), (
                "run scripts/bench.py --readme"
            )


def test_the_picture_of_the_root_readme_has_the_rows_of_a_quick_run():
    for rows in speed_tables.rows_of(speed_tables.PICTURES["quick"]):
        assert sorted(r["name"] for r in rows) == sorted([
            "training step, batch 64", "convnet's gradient, batch 1024", "convnet's step, batch 64",
            *bench_components.QUICK,
        ])  # fmt: skip


def test_the_tables_say_what_was_measured(monkeypatch, tmp_path):
    switched = [variant(s, "a", [1.0], temporary_bytes=1.0) for s in ("jaxnn", "off")]
    compiled = [variant("jaxnn", "a", [1.0]), variant("jax", "c", [2.0])]
    results = {
        "command": "python scripts/bench.py",
        "ceilings": {"float32": CEILINGS | {"PyTorch": {"flop_per_second": 2e9, "bytes_per_second": 5e8}}},
        "machine": {"date": "2000-01-01T00:00", "device": "cpu", "cores": 2, "cpu": "a|b", "load": 0.1, "versions": {"jax": "1"}},
        "rows": [
            bench_timing.row("components", "n", "float32", [variant("jaxnn", "a", [1.0]), variant("jax", "b|c", [2.0])], {"of JAX": 1}, flops=1e9),
            bench_timing.row("compile", "s", "float32", compiled, {}),
            bench_timing.row("optimisations", "t", "float32", switched, {}),
        ],
    }  # fmt: skip
    monkeypatch.setattr(speed_tables, "SPEED", tmp_path)
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    written = speed_tables.section()
    assert "| n | run time | 1 s (a) | 2 s (b\\|c) |  | 0.5 [0.5, 0.5] |" in written
    assert "| 1 Gflop/s (50%) | jaxnn / JAX ≤ 1: met |" in written
    assert (
        "| s | compile time | 1 s (a) |" in written
        and "| s | compile time | 1 s | 2 s |  | 0.5 |" in speed_tables.summary()
    )
    tables = [t.splitlines() for t in written.split("\n\n") if t.startswith("| ")]
    assert len(tables) == 3
    for head, rule, *_ in tables:
        assert set(rule) == set("|-") and rule.count("|") == head.count("|")


def test_sections_are_written_between_their_markers():
    text = "a\n<!-- x: written by y -->\nold\n<!-- end of x -->\nb\n"
    written = sections.rewritten(text, "x", "new")
    assert written == "a\n<!-- x: written by y -->\n\nnew\n\n<!-- end of x -->\nb\n"
    assert sections.rewritten(written, "x", "new") == written
    for wrong in ("no markers", text + text, text.replace("<!-- end of x -->\n", "")):
        with pytest.raises(SystemExit, match="must have one"):
            sections.rewritten(wrong, "x", "new")


def test_a_line_of_the_table_without_peers_is_measured_beside_its_definition(monkeypatch):
    line = next(line for line in components.COMPONENTS if line.name == "relu")._replace(name="toy")
    monkeypatch.setattr(components, "COMPONENTS", [*components.COMPONENTS, line])
    monkeypatch.setattr(workloads, "components", lambda size: (w for w in ALL_COMPONENTS(size) if w.name == "toy"))
    monkeypatch.setattr(libraries, "torch", None)
    row, _ = bench_components.components("float32", 1)
    assert row["best"] == {"jaxnn": "rule", "jax": "autodiff of the definition"}
