"""The model card: README.md of a result, for people and for the Hub.

The laws: a card says whose it is. Its last line holds the hash of what stands above it, so a card
that a person wrote or changed is told from one that growkit may replace. And what a source is
called, or says of itself, is text: it is never Markdown, HTML or code.
"""

from __future__ import annotations

import hashlib
import html
import keyword
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from growkit.planning.plan import Plan
from growkit.report.as_json import Json, class_names, hub_id, origins
from growkit.report.page.markup import escaped

HERE = "path/to/this/folder"
_MARKDOWN = re.compile(r"[\\`*_{}\[\]()#+!|~^$:@]")  # what means something in the middle of a line
_INLINE = re.compile(r"[\\*\[\]|!~]")  # the same in a sentence, where words may have a _ or a :
_WORD = re.compile(r"[\w./+-]+(?: [\w./+-]+)*", re.ASCII)  # what means nothing in Markdown's code
_FORMATS = {"pytorch", "tf", "jax", "flax", "onnx", "openvino", "gguf", "coreml", "rust"}
_MOST = 200  # characters of a word of a card
_SEAL = re.compile(r"<!-- growkit made this card and replaces it until it is edited: (\w+) -->\n")


def model_card(plan: Plan, report: Json, *, image: str | None = None) -> str:
    """README.md of the result: YAML front matter for the Hub, then what a person asks first.

    `image` is the name of a file of the result that shows the growth.
    """
    parts = [_front(plan), _title(plan, report), *_licences(plan)]
    if image:
        parts.append(f"![How it was grown]({image})")
    parts += [_sizes(plan), _claim(report), _loading(plan), _training(report)]
    return sealed("\n\n".join(parts) + "\n")


# -- whose it is ---------------------------------------------------------------------------------


def sealed(text: str) -> str:
    """The text with the line that says that growkit made it."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    line = f"<!-- growkit made this card and replaces it until it is edited: {digest} -->"
    return f"{text}\n{line}\n"


def is_ours(card: str) -> bool:
    """Whether growkit made the card and nobody has changed it since.

    >>> is_ours(sealed("# A model")), is_ours(sealed("# A model").replace("A", "My")), is_ours("")
    (True, False, False)
    """
    seal = _SEAL.search(card)
    return seal is not None and sealed(card[: seal.start() - 1]) == card


def addressed(card: str, repo: str) -> str:
    """The card for the place that it is pushed to; one that a person has changed stays as it is."""
    if not is_ours(card):
        return card
    text = _SEAL.sub("", card)[:-1]
    return sealed(text.replace(HERE, repo))


# -- text of others ------------------------------------------------------------------------------


def plain(text: str) -> str:
    """A text of others inside a line of Markdown: it shows as it is and is nothing else.

    >>> print(plain("a <b> [c](d)"))
    a &lt;b&gt; \\[c\\]\\(d\\)
    """
    return _MARKDOWN.sub(r"\\\g<0>", _line(text))


def code(text: str) -> str:
    """A name as code; one that is more than words is plain text, for code cannot escape.

    >>> code("double_depth"), code("`<b>`")
    ('`double_depth`', '\\\\`&lt;b&gt;\\\\`')
    """
    return f"`{text}`" if _WORD.fullmatch(text) else plain(text)


def _line(text: str) -> str:
    """One line without HTML, and with nothing that cannot be seen; outer spaces stay."""
    seen = escaped(re.sub(r"\s+", " ", text))
    return seen.replace("&quot;", '"').replace("&#x27;", "'")


# -- what it says --------------------------------------------------------------------------------


def parents(plan: Plan) -> list[str]:
    """The models on the Hub that it was grown from, as `org/name`."""
    ids = [hub_id(source.path, source.revision) for source in plan.sources.values()]
    return [*dict.fromkeys(i for i in ids if i)]


def _front(plan: Plan) -> str:
    bases = parents(plan)
    front: Json = {"library_name": "transformers"} if "model_type" in plan.config else {}
    front |= _carried(plan)
    if bases:
        front["base_model"] = bases if len(bases) > 1 else bases[0]
    if len(bases) > 1:
        front["base_model_relation"] = "merge"  # the Hub's word for a child of several
    carried = [t for t in _union(plan, "tags") if t not in _FORMATS and ":" not in t]
    front["tags"] = [*dict.fromkeys(["growkit", "model-growth", *carried])]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _carried(plan: Plan) -> Json:
    """What the sources' cards say that stays true; a licence only where all say the same."""
    main = plan.sources[plan.main].card
    carried: Json = {k: v[0] for k in ("library_name", "pipeline_tag") if (v := _words(main, k))}
    licences = [_words(source.card, "license") for source in plan.sources.values()]
    if licences[0] and all({*each} == {*licences[0]} for each in licences):
        carried["license"] = licences[0]
        for key in ("license_name", "license_link"):
            each = [_words(source.card, key) for source in plan.sources.values()]
            if each[0] and all(value == each[0] for value in each):
                carried[key] = each[0]
    carried |= {k: v for k in ("language", "datasets") if (v := _union(plan, k))}
    one = {k: v[0] for k, v in carried.items() if isinstance(v, list) and len(v) == 1}
    return carried | {k: v for k, v in one.items() if k != "datasets"}


def _union(plan: Plan, key: str) -> list[str]:
    """What the cards of the sources say under a key, all of them together."""
    return [*dict.fromkeys(w for s in plan.sources.values() for w in _words(s.card, key))]


def _words(card: Mapping[str, Any], key: str) -> list[str]:
    """One word or several, as the Hub allows; what is no short line is left out.

    >>> _words({"language": ["en", False, {}]}, "language")  # YAML reads Norwegian as False
    ['en', 'no']
    """
    said = card.get(key)
    listed = said if isinstance(said, list) else [said]
    words = ["no" if w is False and key == "language" else w for w in listed]
    return [w for w in words if isinstance(w, str) and 0 < len(w) <= _MOST and w.isprintable()]


def _licences(plan: Plan) -> list[str]:
    """Where parents have several licences, which: growkit chooses none."""
    of = {name: _words(source.card, "license") for name, source in plan.sources.items()}
    if len({frozenset(licences) for licences in of.values()}) == 1:
        return []
    lines = [
        f"- {_name(name)}: {', '.join(map(code, licences)) or 'its card names none'}"
        for name, licences in of.items()
    ]
    text = "The models that it comes from have different licences, and growkit chooses none:"
    return [f"## Licence\n\n{text}\n\n" + "\n".join(lines)]


def _title(plan: Plan, report: Json) -> str:
    names = [
        hub_id(source.path, source.revision) or PurePath(source.path).stem
        for source in plan.sources.values()
    ]
    return (
        f"# {' and '.join(map(_name, dict.fromkeys(names)))} grown by {code(plan.recipe_name)}\n\n"
        f"Grown with growkit {report['version']} and not yet trained at this size: an "
        "initialisation for further training."
    )


def _name(name: str) -> str:
    """What a model is called, in a line: most names are words, which need no escapes."""
    return name if _WORD.fullmatch(name) else plain(name)


def _sizes(plan: Plan) -> str:
    rows = [
        f"| {_name(axis)} | {plan.sizes_before.get(axis, '–')} | {after} |"
        for axis, after in plan.sizes_after.items()
    ]
    rows.append(f"| parameters | {plan.parameters_before:,} | {plan.parameters_after:,} |")
    return "\n".join(["| | before | after |", "|---|---:|---:|", *rows])


def _claim(report: Json) -> str:
    claim = report["exactness"]
    storage = claim["storage"]
    lines = [
        "## Does it still compute the same?",
        "",
        f"Claim: **{claim['claim']}**, stored as {storage['dtype']} ({storage['claim']}).",
    ]
    if claim["reasons"]:
        lines += ["", *(f"- {_sentence(reason)}" for reason in claim["reasons"])]
    return "\n".join(lines)


def _loading(plan: Plan) -> str:
    classes = [n for n in class_names(plan.config) if n.isidentifier() and n.isascii()]
    name = next((n for n in classes if not keyword.iskeyword(n)), "AutoModel")
    lines = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("{HERE}")'
    return f"## Load\n\n{_fenced(lines, 'python')}"


def _training(report: Json) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in origins(report["tensors"]).items())
    hints = "\n".join(f"- {_sentence(hint)}" for hint in report["hints"])
    origin = (
        "`growkit.json` has the origin of each, `growth.html` shows that of layers and units, "
        "`recipe.yaml` is the recipe."
    )
    return f"## Train\n\n{hints}\n\nTensors: {counts}. {origin}"


def _sentence(text: str) -> str:
    """A sentence of growkit's, which may name what others have named; backticks hold code.

    >>> _sentence("run `growkit verify SMALL BIG` on <b>")
    'run `growkit verify SMALL BIG` on &lt;b&gt;'
    """
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return plain(text)
    marked = (
        code(part) if i % 2 else _INLINE.sub(r"\\\g<0>", _line(part))
        for i, part in enumerate(parts)
    )
    return "".join(marked)


def _fenced(text: str, kind: str) -> str:
    """Lines as a block of code that nothing in them can end."""
    seen = html.unescape(escaped(text)).rstrip()
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", seen)), default=0))
    return f"{fence}{kind}\n{seen}\n{fence}"
