"""The model card: README.md of a result, for people and for the Hub.

The law: a card says whose it is. Its last line holds the hash of what stands above it, so a card
that a person wrote or changed is told from one that growkit may replace.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import PurePath

import yaml

from growkit.planning.plan import Plan
from growkit.report.as_json import Json, class_names, hub_id, origins

HERE = "path/to/this/folder"
_SEAL = re.compile(r"<!-- growkit made this card and replaces it until it is edited: (\w+) -->\n")


def model_card(plan: Plan, report: Json, *, image: str | None = None) -> str:
    """README.md of the result: YAML front matter for the Hub, then what a person asks first.

    `image` is the name of a file of the result that shows the growth.
    """
    parts = [_front(plan), _title(plan, report)]
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


# -- what it says --------------------------------------------------------------------------------


def parents(plan: Plan) -> list[str]:
    """The models on the Hub that it was grown from, as `org/name`."""
    ids = [hub_id(source.path, source.revision) for source in plan.sources.values()]
    return [*dict.fromkeys(i for i in ids if i)]


def _front(plan: Plan) -> str:
    bases = parents(plan)
    front: Json = {"library_name": "transformers"} if "model_type" in plan.config else {}
    if bases:
        front["base_model"] = bases if len(bases) > 1 else bases[0]
    if len(bases) > 1:
        front["base_model_relation"] = "merge"  # the Hub's word for a child of several
    front["tags"] = ["growkit", "model-growth"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _title(plan: Plan, report: Json) -> str:
    names = [
        hub_id(source.path, source.revision) or PurePath(source.path).stem
        for source in plan.sources.values()
    ]
    return (
        f"# {' and '.join(dict.fromkeys(names))} grown by `{plan.recipe_name}`\n\n"
        f"Grown with growkit {report['version']} and not yet trained at this size: an "
        "initialisation for further training."
    )


def _sizes(plan: Plan) -> str:
    rows = [
        f"| {axis} | {plan.sizes_before.get(axis, '–')} | {after} |"
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
        lines += ["", *(f"- {reason}" for reason in claim["reasons"])]
    return "\n".join(lines)


def _loading(plan: Plan) -> str:
    name = (*class_names(plan.config), "AutoModel")[0]
    code = f'from transformers import {name}\n\nmodel = {name}.from_pretrained("{HERE}")'
    return f"## Load\n\n```python\n{code}\n```"


def _training(report: Json) -> str:
    counts = ", ".join(f"{n} {kind}" for kind, n in origins(report["tensors"]).items())
    hints = "\n".join(f"- {hint}" for hint in report["hints"])
    origin = (
        "`growkit.json` has the origin of each, `growth.html` shows that of layers and units, "
        "`recipe.yaml` is the recipe."
    )
    return f"## Train\n\n{hints}\n\nTensors: {counts}. {origin}"
