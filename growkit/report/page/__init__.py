"""How a model was grown, for people who would rather look: a page of HTML, and an SVG for the card.

    page        the whole growth as one HTML page, section by section
    svg         the same in one SVG that stands alone, for the model card
    drawing     layers and axes before and after, with bands between them, and the key
    sentences   what both say in words
    markup      elements of HTML and SVG, escaped by construction
    style       colours, hatches and type

The law: everything shown is read off the plan, as `words`, `as_json` and `provenance` say it; the
same plan gives the same bytes, with no time and no path in them. A page needs no network and no
script, and nothing that a user, a checkpoint or a recipe names can become markup.
"""

PAGE, SVG = "growth.html", "growth.svg"  # their names in a result
