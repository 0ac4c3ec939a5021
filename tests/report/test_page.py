"""The growth as a page and as an SVG: what they say, what they must never be, what they cost."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support import pictured, tiny, trained
from support.calls import calls

from growkit import api
from growkit.algebra.layer_map import unmoved
from growkit.byte_sizes import format_size
from growkit.checkpoints.open import open_checkpoint
from growkit.errors import OutputError
from growkit.families.model import read_model
from growkit.planning.plan import Plan
from growkit.report.page import PAGE, SVG
from growkit.report.page.markup import Markup, element, escaped
from growkit.report.page.page import BESIDE, growth_page
from growkit.report.page.svg import growth_svg
from growkit.report.provenance import provenance
from growkit.verify.symmetries import symmetries, symmetry_plan

NAMES = [*pictured.STEPS, "large", "hostile"]
VOID = {"meta", "link"}  # elements that HTML leaves open
SHAPES = {"svg", "defs", "pattern", "rect", "circle", "path", "g", "text", "tspan", "desc"}
TAGS = SHAPES | {
    *("html", "head", "body", "title", "style", "header", "main", "footer", "section"),
    *("a", "h1", "h2", "h3", "p", "b", "small", "span", "code", "div", "figure"),
    *("dl", "dt", "dd", "ul", "ol", "li", "details", "summary"),
    *("table", "caption", "thead", "tbody", "tr", "th", "td"),
}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Every plan that is shown."""
    return pictured.plans(tmp_path_factory.mktemp("models"))


def page_of(plan: Plan) -> str:
    """Its page, as a result holds it."""
    return growth_page(plan, output_bytes=438_000_000)


class Elements(HTMLParser):
    """The elements of a page: names and attributes, which must be closed in order, and texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """An element begins."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """It ends."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """A text."""
        self.texts.append(data)


# -- markup --------------------------------------------------------------------------------------


def test_text_is_escaped_and_markup_is_not() -> None:
    """Only elements are markup; texts and attributes cannot end what they stand in."""
    inner = element("b", "<i>")
    assert element("p", inner, "&", None, class_='"', id=None) == (
        '<p class="&quot;"><b>&lt;i&gt;</b>&amp;</p>'
    )
    assert element("svg", data_x=1.25, y=2.0) == '<svg data-x="1.2" y="2"></svg>'
    assert isinstance(escaped("a"), Markup)


@pytest.mark.parametrize("hidden", ["\x00", "\x1b", "\u202e", "\ud800", "\uffff", "\u200b"])
def test_what_cannot_be_seen_is_marked(hidden: str) -> None:
    """Control characters, halves of pairs and what turns text around; a page is always UTF-8."""
    assert escaped(f"a{hidden}b\n").encode() == "a�b\n".encode()


# -- what must never be --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_page_holds_a_script_or_asks_for_anything(name: str, plans: dict[str, Plan]) -> None:
    """Known elements, closed in order, without handler, style or address but of files beside."""
    elements = Elements(page_of(plans[name])).elements
    assert {tag for tag, _ in elements} <= TAGS | VOID
    assert [a for t, a in elements if t == "link"] == [{"rel": "icon", "href": "data:,"}]
    assert [a for t, a in elements if t == "a"] == [{"href": file} for file in BESIDE]
    for tag, attributes in elements:
        assert not any(key.startswith("on") or key in ("src", "srcset") for key in attributes)
        assert "href" not in attributes or tag in ("a", "link")
        assert "style" not in attributes or tag in ("rect", "path", "circle")  # hatches
    (style,) = re.findall(r"<style>(.*?)</style>", page_of(plans[name]), re.DOTALL)
    assert not re.search(r"@import|https?:|url\((?!#)", style)


@pytest.mark.parametrize("name", NAMES)
def test_every_svg_stands_alone(name: str, plans: dict[str, Plan]) -> None:
    """Well-formed XML of known elements, with a ground, a title and a description of its own."""
    svg = growth_svg(plans[name])
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert {e.tag.removeprefix(space) for e in root.iter()} <= SHAPES | {"title", "style"}
    assert not any(key.startswith("on") or "href" in key for e in root.iter() for key in e.attrib)
    assert [e.tag for e in root][:2] == [f"{space}title", f"{space}desc"]
    assert float(root.attrib["width"]) < 900
    ground = root.find(f"{space}rect")
    assert ground is not None
    assert ground.attrib["style"].startswith("fill: var(--card)")
    assert not re.search(r"@import|https?:(?!//www.w3.org/2000/svg)", svg)


def test_hostile_names_are_text(plans: dict[str, Plan]) -> None:
    """Whatever a recipe, a checkpoint or a config names is shown, and is nothing else."""
    page = Elements(page_of(plans["hostile"]))
    text = " ".join("".join(page.texts).split())
    for name in pictured.HOSTILE[:3]:
        assert " ".join(html.unescape(escaped(name)).split()) in text
    plain = Elements(page_of(plans["fusion"]))
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in plain.elements} | {"b", "small"}


# -- what they say -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_and_axis_is_there(name: str, plans: dict[str, Plan]) -> None:
    """As the plan lists them, with what each layer is."""
    plan = plans[name]
    elements = Elements(page_of(plan)).elements
    layers = [a["data-layer"] for _, a in elements if "data-layer" in a]
    assert layers == pictured.layers_of(plan)
    axes = {str(a["data-axis"]).partition(" (")[0] for _, a in elements if "data-axis" in a}
    assert axes >= {*pictured.axes_of(plan)}


def facts(plan: Plan) -> Iterator[str]:
    """What a page must say of a plan."""
    yield from (plan.claim.claim, *plan.claim.reasons, plan.storage.dtype, plan.recipe_name)
    for step in plan.steps:
        yield from (step.op, step.claim, *step.reasons)
    yield f"{plan.parameters_before:,}"
    yield f"{plan.parameters_after:,}"
    for axis, d in provenance(plan).items():
        yield axis
        if not d.same:
            yield from (f"{n:,} {kind}" for kind, n in d.counts.items())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "hostile"])
def test_the_plan_is_told(name: str, plans: dict[str, Plan]) -> None:
    """Claims with reasons, sizes, counts, dtype: the plan's own words."""
    text = " ".join("".join(Elements(page_of(plans[name])).texts).split())
    missing = [fact for fact in facts(plans[name]) if " ".join(fact.split()) not in text]
    assert missing == []


def test_noise_and_options_are_told(plans: dict[str, Plan]) -> None:
    """What each step was asked, and the noise that it draws."""
    page = page_of(plans["single"])
    assert "noise of step 2, seed 0, 10 dB, in " in page
    assert "snr_db: 10" in page
    assert "layers: 2x" in page


def test_sources_are_told_apart(plans: dict[str, Plan]) -> None:
    """Of several sources each is named; one from the Hub by its id, and none by its path."""
    page = page_of(plans["fusion"])
    assert "small and other, grown by recipe" in page
    assert "hidden from 8 + 16 to 24" in page
    plan = plans["single"]
    local = plan.sources["small"]
    assert local.path not in page_of(plan)
    assert "small, grown by recipe" in page_of(plan)
    cached = replace(local, path="/cache/models--org--name/snapshots/0a1b", revision="0a1b")
    from_hub = page_of(replace(plan, sources={"small": cached}))
    assert "org/name, grown by recipe" in from_hub
    assert "/cache" not in from_hub


def test_other_coordinates(tmp_path: Path) -> None:
    """The plan that checks a family file has maps, and no step: its result holds a page as well."""
    model = read_model(open_checkpoint(small(tmp_path / "small")))
    for maps in symmetries(model).values():
        plan = symmetry_plan(model, maps)
        assert 'data-axis="hidden"' in page_of(plan)
        ElementTree.fromstring(growth_svg(plan))


def test_large_models_stay_small_pages(plans: dict[str, Plan]) -> None:
    """192 layers and 57,344 units in less than 300 kB, and with few calls for each tensor."""
    plan = plans["large"]
    page, svg = page_of(plan), growth_svg(plan)
    assert calls(lambda: (page_of(plan), growth_svg(plan))) < 500 * len(plan.formulas)
    assert len(page) < 300_000
    assert len(svg) < 100_000


def test_thousands_of_layers_are_told_as_runs(plans: dict[str, Plan]) -> None:
    """A table of runs, and a bar in place of a stack."""
    plan = plans["stacked"]
    many = replace(plan.state, layer_maps={"layers": unmoved(4) * 500})
    first = [f for f in plan.formulas if not any(a == "layers" for a, _ in f.numbers)]
    deep = replace(
        plan, state=many, sizes_after={**plan.sizes_after, "layers": 2000},
        formulas=tuple(first),
    )  # fmt: skip
    page = page_of(deep)
    assert len(page) < 300_000
    assert ">100 more<" in page
    assert 'data-layer="layers.4–7"' in page


# -- files ---------------------------------------------------------------------------------------


def test_the_svg_in_the_readme_is_true() -> None:
    """docs/growth.svg is what the recipe bert_base makes of the trained checkpoint today."""
    plan = api.plan_growth(trained.small(), "bert_base")
    shown = (trained.ROOT / "docs" / "growth.svg").read_text(encoding="utf-8")
    assert growth_svg(plan) == shown


def small(folder: Path) -> Path:
    """A tiny decoder, saved."""
    return tiny.save(tiny.build("gpt2", "causal", heads=2, mlp=12), folder)


def test_in_a_result(tmp_path: Path) -> None:
    """Both lie in it and are checked; the card shows the SVG; a further growth leaves them."""
    out = api.grow(small(tmp_path / "small"), "double_depth", out=tmp_path / "a").out
    assert f"({SVG})" in (out / "README.md").read_text(encoding="utf-8")
    assert (out / PAGE).read_text(encoding="utf-8").startswith("<!doctype html>")
    assert [*BESIDE] == [name for name in BESIDE if (out / name).is_file()]  # no link leads nowhere
    record = json.loads((out / "growkit.json").read_text(encoding="utf-8"))
    assert {PAGE, SVG} <= record["files"].keys()
    assert api.check_files(out) == []
    further = api.grow(out, "double_depth", out=tmp_path / "b").out
    assert (further / PAGE).read_bytes() != (out / PAGE).read_bytes()
    (out / PAGE).write_text("x", encoding="utf-8")
    assert any(PAGE in problem for problem in api.check_files(out))


def test_where_a_source_lies_is_not_told(tmp_path: Path) -> None:
    """The same model from elsewhere, at another time, gives the same files."""
    results = [
        api.grow(small(tmp_path / name), "double_width", out=tmp_path / f"{name}-out").out
        for name in ("one", "other")
    ]
    for name in (PAGE, SVG):
        assert (results[0] / name).read_bytes() == (results[1] / name).read_bytes()


def test_a_page_of_a_plan(plans: dict[str, Plan], tmp_path: Path) -> None:
    """With commands in place of files that are not there; it replaces a page, and nothing else."""
    path, estimate = tmp_path / "growth.html", api.estimate(plans["single"])
    path.touch()
    for _ in range(2):
        api.save_page(plans["single"], path, estimate)
    page = Elements(path.read_text(encoding="utf-8"))
    assert all(command in "".join(page.texts) for command in ("growkit plan", "--tensor", "--json"))
    assert "a" not in {tag for tag, _ in page.elements}
    assert format_size(estimate.output_bytes) in "".join(page.texts)
    path.write_text("mine")
    with pytest.raises(OutputError, match=r"growth\.html: is there and holds no page"):
        api.save_page(plans["single"], path, estimate)
    assert path.read_text() == "mine"
