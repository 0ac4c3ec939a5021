"""Colours, hatches and type: the only place that says how anything looks.

The colours are those of Okabe and Ito, which people of every colour vision tell apart; each kind
has a hatch of its own beside, for print and for those who see none. The law: nothing is fetched,
neither a font nor an image.
"""

from __future__ import annotations

from growkit.report.page.markup import Markup

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

LIGHT = """
--page: #f6f5f1; --card: #ffffff; --ink: #1b2430; --soft: #566171; --line: #dcdfe4; --code: #f1f2f4;
--old: #0072b2; --copied: #56b4e9; --scaled: #009e73; --mixed: #cc79a7; --new: #e69f00;
--on-old: #ffffff; --on-copied: #10202c; --on-scaled: #ffffff; --on-mixed: #2a0f1f;
--on-new: #2b1d00; --hatch: #ffffff; --good: #00694d; --near: #8a4b00;
"""
DARK = """
--page: #11151b; --card: #1a2028; --ink: #e9edf2; --soft: #a5b0be; --line: #343d49; --code: #232b35;
--old: #3d9bd8; --copied: #8fd0f5; --scaled: #2fbf95; --mixed: #d994ba; --new: #f0b53a;
--on-old: #06131d; --on-copied: #06131d; --on-scaled: #04150f; --on-mixed: #21091a;
--on-new: #221600; --hatch: #11151b; --good: #5fd6b0; --near: #f3bb6d;
"""

# of a drawing, wherever it stands: a kind is a class
SHAPES = """
.old { fill: var(--old); } .copied { fill: url(#copied); } .scaled { fill: url(#scaled); }
.mixed { fill: url(#mixed); } .new { fill: url(#new); }
.silent { fill: var(--card); stroke: var(--new); stroke-width: 1.5; stroke-dasharray: 4 2.5; }
.silent.thin { stroke-width: .9; stroke-dasharray: none; }
.band { stroke: none; opacity: .3; } .band.old { fill: var(--old); }
.band.copied { fill: var(--copied); } .band.scaled { fill: var(--scaled); }
.band.mixed { fill: var(--mixed); }
.thread { fill: none; opacity: .75; } .thread.old { stroke: var(--old); }
.thread.copied { stroke: var(--copied); } .thread.scaled { stroke: var(--scaled); }
.thread.mixed { stroke: var(--mixed); } .thread.silent { stroke: var(--new); }
text { fill: var(--ink); font-size: 13px; } text.soft { fill: var(--soft); }
text.small { font-size: 12px; } text.strong, tspan.strong { font-weight: 650; }
text.title { font-size: 21px; font-weight: 700; } text.mid { text-anchor: middle; }
text.end { text-anchor: end; }
text.in-old { fill: var(--on-old); } text.in-copied { fill: var(--on-copied); }
text.in-scaled { fill: var(--on-scaled); } text.in-mixed { fill: var(--on-mixed); }
text.in-new { fill: var(--on-new); }
.halo { font-weight: 650; paint-order: stroke; stroke-width: 5px; stroke-linejoin: round; }
.halo.in-old { stroke: var(--old); } .halo.in-copied { stroke: var(--copied); }
.halo.in-scaled { stroke: var(--scaled); } .halo.in-mixed { stroke: var(--mixed); }
.halo.in-new { stroke: var(--new); }
"""

HATCHES = Markup(
    "<defs>"
    '<pattern id="copied" width="7" height="7" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="7" height="7" style="fill: var(--copied)"/>'
    '<rect width="2" height="7" style="fill: var(--hatch); opacity: .75"/></pattern>'
    '<pattern id="scaled" width="8" height="8" patternUnits="userSpaceOnUse">'
    '<rect width="8" height="8" style="fill: var(--scaled)"/>'
    '<circle cx="4" cy="4" r="1.4" style="fill: var(--hatch); opacity: .8"/></pattern>'
    '<pattern id="mixed" width="9" height="9" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="9" height="9" style="fill: var(--mixed)"/>'
    '<path d="M0 4.5H9M4.5 0V9" style="stroke: var(--hatch); opacity: .75; stroke-width: 1.2"/>'
    "</pattern>"
    '<pattern id="new" width="7" height="7" patternUnits="userSpaceOnUse">'
    '<rect width="7" height="7" style="fill: var(--new)"/>'
    '<rect width="7" height="1.6" style="fill: var(--hatch); opacity: .7"/></pattern>'
    "</defs>"
)

PAGE_STYLE = f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.55 {FONT};
  overflow-wrap: anywhere; -webkit-text-size-adjust: 100%; }}
main, header, footer {{ max-width: 1080px; margin: 0 auto; padding: 0 20px; }}
header {{ padding-top: 44px; }}
h1 {{ font-size: clamp(1.6rem, 4.6vw, 2.5rem); line-height: 1.15; letter-spacing: -.02em;
  margin: 4px 0 12px; text-wrap: balance; }}
h2 {{ font-size: 1.3rem; letter-spacing: -.01em; margin: 0 0 4px; }}
h3 {{ font-size: 1rem; margin: 0; }}
p {{ margin: 0 0 10px; max-width: 72ch; }}
.eyebrow {{ color: var(--soft); font-size: .82rem; letter-spacing: .04em; margin: 0; }}
.soft {{ color: var(--soft); }}
.lead {{ font-size: 1.1rem; }}
section {{ background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 24px; margin: 20px 0; }}
.facts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 14px;
  margin: 22px 0 0; padding: 0; }}
.facts div {{ background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 14px 16px; }}
.facts dt {{ color: var(--soft); font-size: .85rem; }}
.facts dd {{ margin: 2px 0 0; font-size: 1.25rem; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }}
.facts dd small {{ display: block; font-size: .85rem; font-weight: 400; color: var(--soft); }}
figure {{ margin: 14px 0 0; }}
figcaption {{ color: var(--soft); font-size: .9rem; }}
svg {{ display: block; font-family: {FONT}; }}
.hatches {{ position: absolute; }}
.stacks {{ display: flex; flex-wrap: wrap; gap: 12px 40px; align-items: flex-start; }}
.stacks .legend {{ flex: 1 1 300px; flex-direction: column; margin-top: 42px; }}
.stacks figure {{ flex: 1 1 400px; max-width: 470px; min-width: 0; }}
.stacks figure svg {{ width: 100%; height: auto; overflow: visible; }}
.bars {{ width: 100%; height: 76px; }}
.legend {{ display: flex; flex-wrap: wrap; gap: 6px 22px; list-style: none; padding: 0;
  margin: 14px 0 0; font-size: .9rem; }}
.legend li {{ display: flex; align-items: center; gap: 8px; }}
.legend svg {{ flex: none; }}
.axis {{ border-top: 1px solid var(--line); padding: 18px 0 12px; }}
.axis:last-child {{ padding-bottom: 0; }}
.axis .head {{ display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline;
  margin-bottom: 8px; }}
.axis .size {{ font-variant-numeric: tabular-nums; font-weight: 600; }}
.axis p {{ font-size: .9rem; margin: 6px 0 0; max-width: none; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: .92rem; margin-top: 10px;
  font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--soft); padding-bottom: 4px; }}
th, td {{ text-align: left; vertical-align: top; padding: 6px 16px 6px 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }}
th {{ font-weight: 600; }} thead th {{ color: var(--soft); font-weight: 400; }}
code {{ font: .86em/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }}
code {{ background: var(--code); border-radius: 5px; padding: 1px 5px; }}
ol.steps {{ list-style: none; padding: 0; margin: 14px 0 0; }}
.steps > li {{ border-left: 3px solid var(--line); padding: 0 0 18px 18px; }}
.steps > li:last-child {{ padding-bottom: 0; }}
.steps .head {{ display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; }}
.steps p, .steps ul {{ margin: 4px 0 0; font-size: .95rem; }}
.badge {{ border: 1.5px solid currentColor; border-radius: 99px; padding: 0 11px;
  font-size: .86rem; font-weight: 600; color: var(--good); }}
.badge.near {{ color: var(--near); }}
ul {{ padding-left: 20px; }} li {{ margin: 3px 0; }} section > ul:last-child {{ margin-bottom: 0; }}
a {{ color: var(--old); }}
details {{ margin-top: 14px; }} summary {{ cursor: pointer; font-weight: 600; }}
footer {{ color: var(--soft); font-size: .88rem; padding-bottom: 48px; }}
@media (max-width: 560px) {{
  main, header, footer {{ padding-left: 12px; padding-right: 12px; }}
  header {{ padding-top: 24px; }} section {{ padding: 16px; }} .bars {{ height: 60px; }}
  .stacks .legend {{ margin-top: 0; }}
  th, td {{ padding-right: 10px; }}
}}
@media print {{
  :root {{ color-scheme: light; {LIGHT} --page: #ffffff; }}
  * {{ print-color-adjust: exact; -webkit-print-color-adjust: exact; }}
  section, .facts div {{ border-color: #bbb; }} .axis, .steps > li, tr {{ break-inside: avoid; }}
  html {{ font-size: 12px; }} h2, h3, summary {{ break-after: avoid; }}
}}
{SHAPES}
"""

# of an SVG that stands alone: a README shows it as an image, on white or on black
SVG_STYLE = f"svg {{ font-family: {FONT}; {LIGHT} }}\n{SHAPES}"
