"""Pages and SVGs in a real browser: all is there, nothing complains, nothing hangs over.

One page holds every page under test in frames of two widths, measures them, and writes what it
found into itself; the browser prints that. Debian's chromium, or any other, is driven as it is.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import pictured

from growkit.planning.plan import Plan
from growkit.report.page.markup import escaped
from growkit.report.page.page import growth_page
from growkit.report.page.svg import growth_svg

pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--enable-logging=stderr", "--v=0", "--dump-dom"),
)
WIDTHS = (400, 1200)  # a telephone and a desk

MEASURE = """
addEventListener("load", () => {
  const pages = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const all = (query, get) => [...page.querySelectorAll(query)].map(get);
    return {
      name: frame.name, width: frame.clientWidth, over: root.scrollWidth - root.clientWidth,
      layers: all("[data-layer]", e => e.dataset.layer),
      axes: all("[data-axis]", e => e.dataset.axis),
      boxes: all("#layers figure rect > title", e => e.textContent),
      text: page.body.innerText,
      missing: all("*", e => getComputedStyle(e).fill).filter(f => f.startsWith("url("))
        .filter(f => !page.querySelector(f.slice(5, -2))).length,
    };
  });
  const images = [...document.images].map(i => [i.alt, i.complete ? i.naturalWidth : 0]);
  document.querySelector("pre").textContent = JSON.stringify({pages, images});
});
"""


def browser() -> str:
    """The browser; without one these tests fail in CI, and are skipped elsewhere."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        say = pytest.fail if os.environ.get("CI") else pytest.skip
        say("no chromium: `make browser` installs Debian's")
    return path


def look(folder: Path, pages: Mapping[str, str], svgs: Mapping[str, str]) -> dict[str, Any]:
    """What the browser finds in pages and SVGs, and what it says on its console."""
    frames = [
        f'<iframe name="{html.escape(name)}" style="width: {width}px; height: 900px; border: 0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    ]
    for number, svg in enumerate(svgs.values()):
        (folder / f"{number}.svg").write_text(svg, encoding="utf-8")
    images = [f'<img alt="{html.escape(n)}" src="{i}.svg">' for i, n in enumerate(svgs)]
    all_of_it = f"<pre></pre><script>{MEASURE}</script>{''.join([*frames, *images])}"
    (folder / "all.html").write_text(
        f'<!doctype html><meta charset="utf-8">{all_of_it}', encoding="utf-8"
    )
    done = subprocess.run(
        [browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", f"file://{folder}/all.html"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    written = re.search(r"<pre>(.*?)</pre>", done.stdout, re.DOTALL)
    assert written, done.stderr
    measured: dict[str, Any] = json.loads(html.unescape(written[1]))
    return measured | {"console": [line for line in done.stderr.splitlines() if "CONSOLE" in line]}


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Every plan that is looked at."""
    return pictured.plans(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def measured(plans: dict[str, Plan], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the browser finds in their pages and SVGs."""
    pages = {name: growth_page(plan, output_bytes=10**9) for name, plan in plans.items()}
    svgs = {name: growth_svg(plan) for name, plan in plans.items()}
    return look(tmp_path_factory.mktemp("browser"), pages, svgs)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", [*pictured.STEPS, "large", "hostile"])
def test_all_of_a_plan_is_there(
    name: str, width: int, plans: dict[str, Plan], measured: dict[str, Any]
) -> None:
    """Every layer, in the drawing and in the table, and every axis; the page fits its window."""
    plan = plans[name]
    page = next(p for p in measured["pages"] if (p["name"], p["width"]) == (name, width))
    assert page["over"] == 0
    assert page["layers"] == pictured.layers_of(plan)
    drawn = [title for title in page["boxes"] if title.startswith("layer ")]
    assert len(drawn) == len(pictured.layers_of(plan))
    shown = {axis.partition(" (")[0] for axis in page["axes"]}
    assert shown >= {*pictured.axes_of(plan)}
    assert shown >= {
        next((u for u, axes in plan.axes.items() if axis in axes), axis) for axis in plan.maps
    }
    assert page["missing"] == 0  # hatches that a shape asks for
    text = " ".join(page["text"].split())
    for words in (plan.claim.claim, *plan.claim.reasons):
        assert " ".join(visible(words).split()) in text


def visible(text: str) -> str:
    """A text as a page shows it: what cannot be seen is �."""
    return html.unescape(escaped(text))


def test_svgs_are_images(measured: dict[str, Any]) -> None:
    """As images, which is how a README shows them, all are drawn."""
    assert len(measured["images"]) == len(pictured.STEPS) + 2
    assert all(width > 500 for _, width in measured["images"])


def test_nothing_complains(measured: dict[str, Any]) -> None:
    """The console stays empty: no error, nothing blocked, nothing asked of a network."""
    assert measured["console"] == []


def test_what_is_wrong_is_seen(plans: dict[str, Plan], tmp_path: Path) -> None:
    """A page that is too wide, a script and a fetch in it, and a broken SVG are noticed."""
    page = growth_page(plans["single"], output_bytes=1)
    wide = page.replace("</main>", '</main><div style="width: 1300px">wide</div>')
    script = page.replace("</main>", "</main><script>document.body.textContent = ''</script>")
    image = page.replace("</main>", '</main><img src="https://example.org/x.png">')
    svg = growth_svg(plans["single"]).replace("</desc>", "")
    measured = look(tmp_path, {"wide": wide, "script": script, "image": image}, {"broken": svg})
    pages = {(p["name"], p["width"]): p for p in measured["pages"]}
    assert all(pages["wide", width]["over"] > 0 for width in WIDTHS)
    assert pages["script", 400]["layers"] == pictured.layers_of(plans["single"])
    assert sum("script" in line for line in measured["console"]) >= 2
    assert sum("example.org" in line for line in measured["console"]) >= 2
    assert measured["images"] == [["broken", 0]]
