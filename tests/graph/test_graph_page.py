"""The page of a graph, opened in a headless Chromium: its numbers, its explanations, and what a reader can do."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chromium import CHROMIUM
from pages import GRAPHS, OPERATIONS, ZEROS, added_up, at, digits, graph, large, line, named, noise, residual, scalars

from jaxnn.graph._page import page

pytestmark = [pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")]


@pytest.mark.more
# ------------------------------------------------------------------------------------------ what a reader can do
@pytest.mark.parametrize("name", GRAPHS)
def test_every_node_and_every_step_at_phone_width(browse, name):
    data = GRAPHS[name]()
    found = browse(data, """
        const wide = () => document.documentElement.scrollWidth, titles = [], widths = [wide()], said = [];
        for (const one of all(".node")) {
          one.click(); await settled();
          titles.push([one.title, document.querySelector("h2").textContent, here()]);
          widths.push(wide());
        }
        location.hash = ""; await settled();
        for (let k = 0; !next.disabled && k < 200; k++) { next.click(); await settled(); said.push(statusLine.textContent); widths.push(wide()); }
        return { titles, said, width: Math.max(...widths), screen: innerWidth };
    """, width=360)  # fmt: skip
    assert [title for title, *_ in found["titles"]] == [node["name"] for node in data["nodes"]]
    assert all(head.startswith(title) and hash == f"#node={title}" for title, head, hash in found["titles"])
    made = [node for node in data["nodes"] if node["inputs"]]
    total = 2 * len(made)
    said = [
        f"Step {k + 1} of {total}" + ("forward: values" if 2 * k < total else "backward: gradients")
        for k in range(total)
    ]
    assert found["said"] == said
    assert found["screen"] == 360 and found["width"] <= 360


@pytest.mark.parametrize("element", ["W0[3,0,1,2]", "W1[3,40]", "x1[0,2,1,3]", "x2[0,7,5,5]", "y[0,3]", "ℓ"])
def test_an_element_shows_the_numbers_of_the_graph(browse, element):
    data = digits()
    node, k = at(data, element)
    found = browse(data, """
        const terms = all("#element .terms tbody tr, #element details tr").map(row => [row.cells[0].textContent, ...[...row.querySelectorAll("data")].map(one => Number(one.value))]);
        return { ...Object.fromEntries(["value", "gradient", "rule", "autodiff", "difference"].map(id => [id, shows(id) ?? null])), terms, hash: here(), text: document.getElementById("element").innerText };
    """, f"#node=x2&element={element}")  # fmt: skip
    assert float(found["value"]) == node["value"]["data"][k] and float(found["gradient"]) == node["upstream"]["data"][k]
    for way in ("rule", "autodiff", "difference"):
        known = node["gradients"] and node["gradients"][way]["data"][k]
        assert found[way] == (
            None if known is None and node["gradients"] is None else "null" if known is None else found[way]
        )
        assert known is None or float(found[way]) == known
    assert found["hash"] == f"#node=x2&element={element}"
    user = next((n for n in data["nodes"] if any(e["node"] == node["name"] for e in n["inputs"])), None)
    assert ("through" in found["text"].lower()) == (user is not None)
    for where, up, _local, _product in found["terms"]:
        source, i = at(data, where)
        assert source is user and up == source["upstream"]["data"][i]
    if len(found["terms"]) > 1:
        assert np.isclose(sum(term[3] for term in found["terms"]), node["upstream"]["data"][k], rtol=1e-5, atol=1e-9)
    if element == "W0[3,0,1,2]":  # an output of the filter's channel times the pixel that the weight meets there
        x = np.reshape(named(data, "x")["value"]["data"], (8, 8))
        pixels = {f"x1[0,3,{p},{q}]": x[p + 1, q + 2] for p in range(6) for q in range(6) if x[p + 1, q + 2]}
        assert {where: local for where, _, local, _ in found["terms"]} == pixels


@pytest.mark.more
def test_columns_of_jacobians_too_large_to_store(browse):
    """What the page works out is JAX's Jacobian; where it cannot, it says so. All in one page: three columns of each edge."""
    rows, checked = [], []
    for k, make in enumerate(OPERATIONS.values()):
        made = [(f"{name}_{k}", *row[:2], *(f"{source}_{k}" for source in row[2:])) for name, *row in make()]
        rows += [*made, (f"v_{k}", noise(*np.shape(made[-1][2](*(jnp.asarray(v) for _, v in made[:-1]))), seed=9))]
        rows += [(f"m_{k}", "mul", jnp.multiply, f"h_{k}", f"v_{k}"), (f"s_{k}", "reduce_sum", jnp.sum, f"m_{k}")]
        checked.append(made)
    data = added_up(rows, [f"s_{k}" for k in range(len(checked))])
    asked = [
        (made[-1][0], n, j)
        for made in checked
        for n, (_, v) in enumerate(made[:-1])
        for j in np.linspace(0, np.size(v) - 1, 3, dtype=int).tolist()
    ]
    found = browse(data, f"""
        return {json.dumps(asked)}.map(([name, n, j]) => {{ const one = byName.get(name); return one.inputs[n].local ? "stored" : column(one, one.inputs[n], j); }});
    """)  # fmt: skip
    unknown = []
    for (name, n, j), terms in zip(asked, found, strict=True):
        made = checked[int(name.split("_")[1])]
        values = [jnp.asarray(v, jnp.float32) for _, v in made[:-1]]
        if terms is None:
            unknown.append(list(OPERATIONS)[int(name.split("_")[1])])
        elif terms != "stored":
            nudge = [jnp.zeros(v.size).at[j].set(float(k == n)).reshape(v.shape) for k, v in enumerate(values)]
            column = np.ravel(jax.jvp(made[-1][2], values, nudge)[1])
            mine = np.zeros_like(column)
            mine[[term["i"] for term in terms]] = [term["local"] for term in terms]
            np.testing.assert_allclose(mine, column, rtol=2e-5, atol=1e-5, err_msg=f"{name} {n} {j}")
    assert set(unknown) == {"an unknown operation", "a rule with another meaning"}
    assert found.count("stored") < len(found) / 4


@pytest.mark.one_in(5)
@pytest.mark.parametrize("case", ZEROS)
def test_the_zero_is_explained_by_the_node_that_made_it(browse, case):
    make, element, culprit, words = ZEROS[case]
    data = make()
    if element is None:  # an element of x2 that is positive, and smaller than its neighbour
        node = named(data, "x2")
        x, g = (np.reshape(node[key]["data"], node["shape"]) for key in ("value", "upstream"))
        element = f"x2[{','.join(map(str, np.argwhere((x > 0) & (g == 0))[0]))}]"
    found = browse(
        data,
        'return [document.getElementById("why").dataset.node, document.getElementById("why").innerText]',
        f"#element={element}",
    )
    assert found[0] == culprit and words in found[1]


def test_the_search_field_finds_nodes_and_elements(browse):
    asked = {
        "W0[3,0,1,2]": "#node=W0&element=W0[3,0,1,2]",
        " ∂ℓ/∂W0[3, 0, 1, -1] ": "#node=W0&element=W0[3,0,1,2]",
        "w0(3,0,1,2)": "#node=W0&element=W0[3,0,1,2]",
        "x3": "#node=x3",
        "ℓ": "#node=ℓ&element=ℓ",
        "W9": "No node is called W9. The nodes are x, W0, ",
        "W0[3,0]": "W0 has 4 axes (8 × 1 × 3 × 3): give 4 indices, not 2.",
        "W0[8,0,0,0]": "W0 has 8 entries along axis 0: the index must be 0 to 7, not 8.",
        "W0[a]": "No node is called W0",
    }
    found = browse(digits(), f"""
        const found = [];
        for (const text of {json.dumps(list(asked))}) {{
          location.hash = ""; await settled(); ask.value = text; document.querySelector("form").requestSubmit(); await settled();
          found.push(answer.textContent || here());
        }}
        return found;
    """)  # fmt: skip
    for (text, wanted), got in zip(asked.items(), found, strict=True):
        assert got.startswith(wanted), text


def test_the_page_works_with_the_keyboard_alone(browse):
    found = browse(digits(), """
        const hashes = [], press = async (name, on) => { key(name, on); await settled(); hashes.push(here()); };
        for (const name of ["n", "ArrowRight", "p", "ArrowLeft"]) await press(name);
        location.hash = "#node=x1"; await settled();
        const canvas = document.querySelector("canvas");
        canvas.focus();
        for (const name of ["ArrowRight", "ArrowDown", "Enter"]) await press(name, canvas);
        const tipped = tip.textContent, marked = document.activeElement === canvas;
        await press("Escape");
        return { hashes, tipped, marked, tabs: all(".node").every(one => one.tabIndex === 0), labels: all(".node").map(one => one.ariaLabel), unnamed: all("button, input, select, canvas").filter(one => !(one.textContent.trim() || one.ariaLabel || one.labels?.length)).length };
    """)  # fmt: skip
    assert found["hashes"] == [
        "#step=1",
        "#step=2",
        "#step=1",
        "",
        "#node=x1",
        "#node=x1",
        "#node=x1&element=x1[0,0,1,1]",
        "#node=x1",
    ]
    assert found["tipped"].startswith("x1[0,0,1,1] = ") and found["marked"], "the focus stays where it was"
    assert found["tabs"] and found["unnamed"] == 0
    assert found["labels"][3] == "x2, relu of x1, 1 × 8 × 6 × 6"


def test_pictures_show_the_sign_and_give_the_element_under_the_pointer(browse):
    image = np.zeros((1, 1, 4, 4))
    image[0, 0, 1, 2], image[0, 0, 3, 0] = -2, 1
    data = line(("x", np.concatenate([image, -image], 1)), ("h", "square", jnp.square, "x"))
    found = browse(data, """
        const canvas = document.querySelector("canvas"), pen = canvas.getContext("2d");
        const select = document.querySelector("select");
        const options = [...select.options].map(one => one.textContent);
        select.value = "1"; select.dispatchEvent(new Event("change"));
        const pixels = pen.getImageData(0, 0, canvas.width, canvas.height).data;
        const colourAt = (r, c) => { const k = 4 * (Math.floor(canvas.height * (r + .5) / 4) * canvas.width + Math.floor(canvas.width * (c + .5) / 4)); return [...pixels.slice(k, k + 3)]; };
        const [up, down, zero] = [colourAt(1, 2), colourAt(3, 0), colourAt(0, 0)];
        const frame = canvas.getBoundingClientRect(), spot = { clientX: frame.left + frame.width * .625, clientY: frame.top + frame.height * .375, bubbles: true };
        canvas.dispatchEvent(new PointerEvent("pointermove", spot));
        const tipped = tip.textContent;
        canvas.dispatchEvent(new MouseEvent("click", spot)); await settled();
        return { up, down, zero, tipped, options, hash: here() };
    """, "#node=x")  # fmt: skip
    assert found["options"] == ["all 2 planes", "[0,0,:,:]", "[0,1,:,:]"]
    assert found["tipped"] == "x[0,1,1,2] = 2" and found["hash"] == "#node=x&element=x[0,1,1,2]"
    (red, _, blue), (red2, _, blue2) = found["up"], found["down"]
    assert red > blue + 60 and blue2 > red2 + 30, "orange above zero, blue below"
    assert max(found["zero"]) - min(found["zero"]) < 8, "zero is grey"


def test_gradients_add_up_over_uses(browse):
    data = residual(2)
    node = named(data, "h0")
    found = browse(data, """
        const sum = [...document.querySelectorAll("#consumers data")].map(one => Number(one.value));
        location.hash = "#node=h0"; await settled();
        return [sum, all("figcaption").map(one => one.innerText.split("\\n")[0])];
    """, "#node=x&element=h0[1,2]")  # fmt: skip
    *parts, total = found[0]
    flows = [edge["downstream"]["data"][8] for user in data["nodes"] for edge in user["inputs"] if edge["node"] == "h0"]
    assert sorted(parts) == sorted(flows) and total == node["upstream"]["data"][8]
    assert {"from a1 ∂ℓ/∂h0", "from h1 ∂ℓ/∂h0", "sum ∂ℓ/∂h0"} <= set(found[1])


def test_nodes_with_nan_or_zero_gradients_are_marked(browse):
    marks = "return Object.fromEntries(all('.badge').filter(one => !one.hidden).map(one => [one.parentNode.title, one.textContent]))"
    assert browse(large(), marks) == {"x1": "NaN", "x2": "NaN", "x": "NaN", "W": "NaN"} | {"z": "NaN"}
    zero = line(("x", [-1.0, -2.0]), ("h", "relu", jax.nn.relu, "x"), ("k", "exp", jnp.exp, "h"))
    assert browse(zero, marks) == {"x": "0"}


def test_a_link_opens_where_it_points_and_a_broken_one_says_why(browse):
    look = 'return [document.querySelector("h2").textContent, answer.textContent, statusLine.textContent, document.querySelector("#element h3")?.textContent ?? null]'
    head, answer, _, element = browse(digits(), look, "#node=x2&element=W0[3,0,1,2]")
    assert head == "x2 = relu(x1)" and answer == "" and element.startswith("∂ℓ/∂W0[3,0,1,2] = ")
    assert browse(digits(), look, "#step=8")[2] == "Step 8 of 14backward: gradients"
    head, answer, *_ = browse(digits(), look, "#node=x99")
    assert head.startswith("ℓ = ") and answer.startswith("No node is called x99.")


def test_names_and_formulas_are_text_never_markup(browse):
    evil = '</script><img src=x onerror="document.title=1">'
    data = graph((evil, [-1.0, 2.0]), ("ℓ", "reduce_sum", jnp.sum, evil), function=evil, caption=evil)
    formula = '<math xmlns="http://www.w3.org/1998/Math/MathML" onclick="1"><mi href="javascript:1">y</mi><script xmlns="http://www.w3.org/1999/xhtml">document.title=1</script></math>'
    data["nodes"][1] |= {"mathml": formula}
    found = browse(data, """
        node(graph.nodes[0].name).click(); await settled();
        const head = document.querySelector("h2").textContent;
        node("ℓ").click(); await settled();
        return [all("img, math script").length, head, document.querySelector("math").outerHTML, document.title];
    """)  # fmt: skip
    assert found[0] == 0 and found[1] == evil and found[3] == f"Back-propagation in action: {evil}"
    assert re.sub(r' xmlns="[^"]*"', "", found[2]) == "<math><mi>y</mi></math>"


def test_the_page_needs_nothing_from_elsewhere():
    text = page(scalars())
    assert not re.search(
        r"""(src|href)\s*=|@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(""",
        text.replace('<a href="#">', "").replace("const href =", ""),
    )
    assert set(re.findall(r"https?://[^\"'`\s]*", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1998/Math/MathML",
    }
    assert "{{graph}}" not in text and text.count("</script>") == 2


@pytest.mark.more
def test_the_traced_network_of_the_notes(browse):
    from jaxnn import conv2d, linear, max_pool2d, nll, relu, softmax
    from jaxnn.graph import trace

    def loss(W0, W1, x):
        x4 = linear(max_pool2d(relu(conv2d(x, W0))).reshape(1, -1), W1)
        return nll(softmax(x4), jnp.array([3]))

    filters = noise(8, 1, 3, 3)
    filters[5] = -np.abs(filters[5])
    args = [
        jnp.asarray(a, jnp.float32) for a in (filters, 0.2 * noise(10, 72, seed=1), np.abs(noise(1, 1, 8, 8, seed=2)))
    ]
    found = browse(trace(loss, *args).to_dict(), """
        const gradient = [shows("rule"), shows("autodiff"), shows("difference")].map(Number);
        ask.value = "W0[5,0,0,0]"; document.querySelector("form").requestSubmit(); await settled();
        return [gradient, document.getElementById("why").dataset.node, all(".node").map(one => one.title)];
    """, "#element=W0[3,0,1,2]")  # fmt: skip
    np.testing.assert_allclose(found[0], jax.grad(loss)(*args)[3, 0, 1, 2], rtol=1e-4)
    assert found[1] == "x2" and {"W0", "W1", "x", "x1", "x2", "x3", "x4", "y", "ℓ"} <= set(found[2])
