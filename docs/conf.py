"""How the pages become a site: `make docs` builds it, warnings are errors, no network is used.

Sphinx with MyST and Furo, because all three are kept up; MkDocs had its last release in 2024, and
Material for MkDocs went into maintenance in 2025. Furo loads no font and no script from elsewhere.

The pages are plain Markdown, for a forge shows them as well: no directives, relative links, anchors
as GitHub makes them. The navigation is what index.md lists. How commands in the pages are written
so that tests can run them stands in tests/pages.py; what is in reference/ is made by `make
reference` but for growkit_json.md.
"""

import re
from pathlib import Path

from growkit import __version__

project = "growkit"
author = "The growkit authors"
version = release = __version__
extensions = ["myst_parser"]
myst_heading_anchors = 4
smartquotes = False  # -- begins an option
html_theme = "furo"
html_title = f"growkit {__version__}"
html_copy_source = False
html_show_copyright = False
html_last_updated_fmt = None  # the same pages give the same site


def navigation(app, page, source):
    """Below index.md, a hidden tree of pages for each of its headings with a list of links."""
    if page != "index":
        return
    for part in re.split(r"^## ", source[0], flags=re.MULTILINE)[1:]:
        links = re.findall(r"^- \[(.*?)\]\((.*?)\.md\)", part, flags=re.MULTILINE)
        entries = "\n".join(f"{text} <{target}>" for text, target in links)
        caption = part.partition("\n")[0]
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def leaving(app, page, source):
    """Links to files beside docs/ work on a forge; here they are text, for these are not here."""
    folder = Path(app.srcdir, page).parent

    def shown(link):
        inside = Path(folder, link[2]).resolve().is_relative_to(app.srcdir)
        return link[0] if inside else link[1]

    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./[^)#\s]+)[^)]*\)", shown, source[0])


def setup(app):
    app.connect("source-read", navigation)
    app.connect("source-read", leaving)
