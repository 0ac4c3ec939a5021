"""How a model was grown, for people who would rather look: a page and a picture.

    markup     elements of HTML and SVG, escaped by construction
    style      colours, hatches and type
    drawing    layers and axes before and after, with bands between them
    card       the picture of the model card, one SVG that stands alone
    page       the whole plan as one HTML page

The law: everything shown is read off the plan, as `words`, `as_json` and `provenance` say it; the
same plan gives the same bytes, with no time and no path in them. A page needs no network and no
script, and nothing that a user, a checkpoint or a recipe names can become markup.
"""

from __future__ import annotations

from growkit.report.page.page import growth_page
from growkit.report.page.svg import growth_picture

__all__ = ["PAGE", "PICTURE", "growth_page", "growth_picture"]

PAGE, PICTURE = "growth.html", "growth.svg"  # their names in a result
