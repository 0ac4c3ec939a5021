"""What programs read: growkit.json, and what commands print with --json; and hints for trainers.

The law: everything here is read off the plan, nothing is decided; it opens no file and prints
nothing. What a tensor is made of is said in four words: *copied* (every value is one source value),
*scaled* (one source value times a factor), *mixed* (several) and *new* (no source at all).
"""

from __future__ import annotations

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import PurePath
from typing import Any

import yaml

from growkit.algebra.kernel import Kernel
from growkit.checkpoints.identity import weight_files
from growkit.checkpoints.tensor_list import count, nonfinite, said_once
from growkit.planning.formula import Formula
from growkit.planning.plan import Estimate, Plan
from growkit.planning.proof.claim import APPROXIMATE
from growkit.recipe.recipe import resolved
from growkit.report.provenance import further_copies, origin, provenance, provenance_json
from growkit.report.words import ROLES, in_words, roles, source_text

Json = dict[str, Any]


def report_json(
    plan: Plan,
    *,
    version: str,
    digest: str,
    files: Mapping[str, Any],
    checksums: Mapping[str, str],
    tensors: Mapping[str, Mapping[str, Any]],
    started: str,
    seconds: float,
    peak_bytes: int,
) -> Json:
    """growkit.json: what a trainer, `verify` and the next growkit need to know about a result.

    `files` are the files written, with their bytes, `checksums` their crc32; `tensors` gives file
    and crc32 of each tensor, and how many of its values are not finite, if any; `started` is an
    ISO 8601 time, `peak_bytes` the memory measured.
    """
    listed = _tensors(plan)
    for name, entry in listed.items():
        entry |= tensors[name]
    listed = said_once(listed, _slots(plan))
    return {
        "version": version,
        "digest": digest,
        **_head(plan),
        "sources": {
            name: {
                "path": hub_id(checkpoint.path, checkpoint.revision) or local_name(checkpoint.path),
                "revision": checkpoint.revision,
                "files": [{**_plain(f), "crc32": None} for f in weight_files(checkpoint)],
            }
            for name, checkpoint in plan.sources.items()
        },
        "exactness": _exactness(plan),
        "readback": plan.hidden_axis if plan.hidden_axis in plan.maps else None,
        "maps": {  # ways back that are short to write, or needed to compare the two models
            axis: _read_map(m.read)
            for axis, m in plan.maps.items()
            if m.read.is_gather or axis == plan.hidden_axis
        },
        "files": dict(files),
        "checksums": dict(checksums),
        "tensors": listed,
        "new_tensors": new_tensors(plan),
        "zeroed_tensors": list(plan.zeroed),
        "dropped": list(plan.dropped),
        "seeds": {"recipe": plan.recipe.seed},
        "timings": {"started": started, "seconds": round(seconds, 3)},
        "peak_memory_bytes": peak_bytes,
        "verify": None,
        "hints": training_hints(plan),
    }


def plan_json(plan: Plan, estimate: Estimate) -> Json:
    """The plan for programs: what `growkit plan --json` prints."""
    return {
        "digest": estimate.digest,
        **_head(plan),
        "config": config_changes(plan),
        "descent": {axis: provenance_json(entry) for axis, entry in provenance(plan).items()},
        "exactness": _exactness(plan),
        "output_bytes": estimate.output_bytes,
        "disk_bytes": estimate.disk_bytes,
        "peak_memory_bytes": estimate.peak_bytes,
        "shards": list(estimate.shards),
        "tensors": _tensors(plan),
        "new_tensors": new_tensors(plan),
        "zeroed_tensors": list(plan.zeroed),
        "dropped": list(plan.dropped),
        "hints": training_hints(plan),
        "resolved": yaml.safe_load(resolved(plan.recipe)),
        "maps": maps_json(plan),
    }


def maps_json(plan: Plan) -> Json:
    """Every axis that grows, and its maps in words."""
    return {
        axis: {"old": m.old, "new": m.new} | {role: in_words(k) for role, k in roles(m).items()}
        for axis, m in plan.maps.items()
        if not m.is_identity
    }


def terms_json(formula: Formula) -> list[Json]:
    """What an output tensor is the sum of; an empty list is zeros."""
    return [
        {
            "source": source_text(term),
            "scale": term.scale,
            "dims": [
                {"axes": str(axes), "role": ROLES.get(role, "kept"), "map": in_words(kernel)}
                for (axes, role), kernel in zip(formula.dims, term.kernels, strict=True)
            ],
        }
        for term in formula.terms
    ]


def summary_json(
    report: Mapping[str, Any],
    *,
    out: str,
    already_done: bool,
    seconds: float,
) -> Json:
    """The part of growkit.json that fits on a screen: what `growkit grow --json` prints."""
    kept = ("digest", "recipe", "family", "sizes", "parameters", "exactness", "verify", "hints")
    return {
        "out": out,
        "already_done": already_done,
        "seconds": round(seconds, 3),
        **{key: report[key] for key in kept},
        "origins": origins(report["tensors"]),
        "new_tensors": len(report["new_tensors"]),
        "zeroed_tensors": len(report["zeroed_tensors"]),
        "dropped": report["dropped"],
        "nonfinite": nonfinite(report["tensors"]),
        "peak_memory_bytes": report["peak_memory_bytes"],
    }


def verification_json(verification: Any) -> Json:
    """A `verify.Verification` as JSON: what was measured, what was claimed, do they agree."""
    return {"passed": verification.passed, **_plain(verification)}


def config_changes(plan: Plan) -> dict[str, list[Any]]:
    """Keys of config.json that change, each with [before, after]; None where it is absent."""
    before, after = plan.config_before, plan.config
    return {
        key: [before.get(key), after.get(key)]
        for key in [*before, *(k for k in after if k not in before)]
        if [before.get(key)] != [after.get(key)]  # in lists, a NaN that stays is no change
    }


def new_tensors(plan: Plan) -> list[str]:
    """Tensors that the source did not have: made of nothing, or one more copy of the same thing."""
    further = further_copies(plan.formulas)
    return [f.name for f in plan.formulas if f.name in further or origin(f).kind == "new"]


def origins(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """How many tensors are copied, scaled, mixed and new."""
    counts = Counter[str]()
    for name, tensor in tensors.items():
        counts[str(tensor["origin"])] += count(name)
    return dict(counts.most_common())


def _head(plan: Plan) -> Json:
    return {
        "recipe": plan.recipe_name,
        "family": plan.family,
        "sizes": {"before": dict(plan.sizes_before), "after": dict(plan.sizes_after)},
        "parameters": {"before": plan.parameters_before, "after": plan.parameters_after},
    }


def _exactness(plan: Plan) -> Json:
    steps = [_plain(step) for step in plan.steps]
    return {**_plain(plan.claim), "storage": _plain(plan.storage), "steps": steps}


def _plain(record: Any) -> Json:
    """A dataclass as JSON holds it, with lists for tuples: equal to what is read back later."""
    plain: Json = json.loads(json.dumps(asdict(record)))
    return plain


def _read_map(read: Kernel) -> Json:
    """The way back on one axis, small = readᵀ · big, as the arguments of `Kernel.gather`.

    Where that is shorter, rows that go on alike are said once (`Kernel.runs`). Of a matrix the
    bytes in C order, little-endian float64, in base64.
    """
    if not read.is_gather:
        matrix = base64.b64encode(read.matrix().astype("<f8").tobytes()).decode()
        return {"old": read.old, "new": read.new, "read": {"matrix": matrix}}
    runs = read.runs()
    if 2 * len(runs) < read.new:
        return {"old": read.old, "new": read.new, "read": {"runs": [*map(list, runs)]}}
    index, coef = read.index, read.coef
    if index.shape[1] == 1:  # one source per row: plain lists
        index, coef = index[:, 0], coef[:, 0]
    sparse = {"index": index.tolist(), "coef": coef.tolist()}
    return {"old": read.old, "new": read.new, "read": sparse}


def _tensors(plan: Plan) -> dict[str, Json]:
    main = plan.recipe.sources[0]
    out: dict[str, Json] = {}
    for formula in plan.formulas:
        kind, sources, new_rows = origin(formula)
        out[formula.name] = {
            "shape": list(formula.shape),
            "dtype": formula.dtype,
            "origin": kind,
            "from": [s.name if s.source == main else f"{s.source}:{s.name}" for s in sources],
            "new_rows": new_rows,
        }
    return out


def _slots(plan: Plan) -> dict[str, int]:
    """Which number in the name of a tensor, from the end, most tensors like it differ in.

    It is that of a layer or of an expert, whatever there are more of.
    """
    sizes = plan.state.sizes
    places: dict[tuple[str | int, ...], int] = {}
    for axes in {tuple(axis for axis, _ in formula.numbers) for formula in plan.formulas}:
        slots = [(sizes[a], i - len(axes)) for i, a in enumerate(axes) if isinstance(a, str)]
        if slots:
            places[axes] = max(slots)[1]
    named = ((f.name, tuple(axis for axis, _ in f.numbers)) for f in plan.formulas)
    return {name: places[axes] for name, axes in named if axes in places}


# -- words for the trainer -----------------------------------------------------------------------


def training_hints(plan: Plan) -> list[str]:
    """What to mind when training goes on, those of the plan first."""
    out = list(plan.hints)
    if plan.claim.claim == APPROXIMATE:
        out.append(
            "The first steps repair what growth changed: expect the loss to start above the small "
            "model's. `growkit verify SMALL BIG` measures by how much the outputs differ."
        )
    out.append(
        "No optimizer state is written: start with a fresh optimizer and warm the learning rate "
        "up again, over 200 to 3000 steps, to the peak that is usual for the new size; lower "
        "peaks cost final quality (LEMON, arXiv 2310.07999; stacking, arXiv 2405.15319)."
    )
    if plan.zeroed and any(step.op == "depth" for step in plan.steps):
        out.append(
            "The added layers are silent: to keep what the small model knows, train only "
            "new_tensors at first and freeze the rest (block expansion, arXiv 2401.02415)."
        )
    if plan.zeroed:
        out.append(
            f"{len(plan.zeroed)} tensors start at zero on purpose (zeroed_tensors). They learn "
            "from the first step on; what feeds only them learns from the second."
        )
    return out


def class_names(config: Mapping[str, Any]) -> list[str]:
    """The classes of transformers that a config.json says the model is of; none where it does not.

    >>> class_names({"architectures": ["BertModel"]})
    ['BertModel']
    """
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def local_name(path: str) -> str:
    """What a checkpoint of this machine is called: no path, which may hold the name of a user.

    >>> local_name("/home/ann/models/small"), local_name("models/small.safetensors")
    ('small', 'small.safetensors')
    """
    return PurePath(path).name


def hub_id(path: str, revision: str | None) -> str | None:
    """`org/name` if the checkpoint came from the Hub, by its cache folder or its own spelling.

    >>> hub_id("~/.cache/hub/models--org--name/snapshots/0a1b", None)
    'org/name'
    """
    cached = re.search(r"models--([\w.-]+?)--([\w.-]+)", path)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return path if revision and re.fullmatch(r"[\w.-]+/[\w.-]+", path) else None
