"""What OUT holds against what is asked for: the same, or what differs, in words.

The law: a source is its content. One that was touched, copied or moved and not changed is the same
source, so its result is the same result; what a digest cannot say, a sentence does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from growkit._version import __version__
from growkit.checkpoints.identity import is_recorded
from growkit.checkpoints.types import Checkpoint, FileIdentity
from growkit.errors import GrowkitError, shown
from growkit.plain_yaml import parse
from growkit.planning.plan import Plan
from growkit.recipe.recipe import resolved

MOST = 3  # differences that are told; who changed more knows it

Json = Mapping[str, Any]


def with_recorded_times(plan: Plan, record: Json) -> Plan | None:
    """The plan with the times of source files that growkit.json tells, if the files are the same.

    None where they are not, or where there is nothing to take from growkit.json.
    """
    sources: dict[str, Checkpoint] = {}
    for name, checkpoint in plan.sources.items():
        recorded = _files(record, name)

        def settled(
            file: FileIdentity, of: Checkpoint = checkpoint, recorded: Mapping[str, Json] = recorded
        ) -> FileIdentity:
            entry = recorded.get(file.name, {})
            time = entry.get("mtime_ns")
            if file.blob or time == file.mtime_ns or not isinstance(time, int):
                return file
            return replace(file, mtime_ns=time) if is_recorded(of, file, entry) else file

        modules = tuple(
            replace(m, stored=replace(m.stored, files=tuple(map(settled, m.stored.files))))
            for m in checkpoint.modules
        )
        files = tuple(map(settled, checkpoint.files))
        sources[name] = replace(checkpoint, files=files, modules=modules)
    return replace(plan, sources=sources) if sources != plan.sources else None


def differences(
    plan: Plan, files: Mapping[str, int], record: Json, recipe: str, config: Json
) -> list[str]:
    """What a result differs in from what is asked for, by its growkit.json, recipe and config.json.

    `files` are the weight files asked for, with their bytes.
    """
    out: list[str] = []
    if record.get("version") != __version__:
        out.append(f"growkit {_brief(record.get('version'))} there, {__version__} here")
    if record.get("family") != plan.family:
        out.append(f"family {_brief(record.get('family'))} there, {plan.family} asked")
    try:
        out += _of_recipes(parse(recipe, "recipe.yaml", []), parse(resolved(plan.recipe), "", []))
    except GrowkitError:
        out.append("recipe.yaml cannot be read")
    for name, checkpoint in plan.sources.items():
        recorded = _files(record, name)
        for file in checkpoint.files:
            if is_recorded(checkpoint, file, recorded.get(file.name, {})) is not True:
                known = "is another" if file.name in recorded else "was not there"
                out.append(f"source {name}: {file.name} {known}")
    if not out:
        changed = [k for k in {**config, **plan.config} if config.get(k) != plan.config.get(k)]
        out += [
            f"config.json: {k} {_brief(config.get(k))} there, {_brief(plan.config.get(k))} asked"
            for k in changed
        ]
        there = record.get("files")
        sizes = there if isinstance(there, dict) else {}
        if any(sizes.get(name) != size for name, size in files.items()):
            out.append(f"other files of weights there than {len(files)} of these sizes")
    return [*out[:MOST], f"{len(out) - MOST} more"] if len(out) > MOST + 1 else out


def _of_recipes(there: Any, asked: Any) -> Iterator[str]:
    """What two resolved recipes differ in."""
    if not isinstance(there, dict) or not isinstance(there.get("steps"), list):
        yield "recipe.yaml is no recipe"
        return
    yield from _of_tables(there, asked, "", {"steps", "about"})
    ops = [[step.get("op") for step in steps] for steps in (there["steps"], asked["steps"])]
    if ops[0] != ops[1]:
        names = [", ".join(map(str, each)) or "none" for each in ops]
        yield f"steps {_brief(names[0])} there, {_brief(names[1])} asked"
        return
    for number, pair in enumerate(zip(there["steps"], asked["steps"], strict=True)):
        yield from _of_tables(*pair, f"step {number} ({pair[1]['op']}): ", set())


def _of_tables(there: Json, asked: Json, where: str, but: set[str]) -> Iterator[str]:
    for key in {**asked, **there}:
        if key not in but and there.get(key) != asked.get(key):
            yield f"{where}{key} {_brief(there.get(key))} there, {_brief(asked.get(key))} asked"


def _files(record: Json, source: str) -> dict[str, Json]:
    """The files of a source that growkit.json tells of, by name."""
    try:
        return {str(file["name"]): file for file in record["sources"][source]["files"]}
    except (KeyError, TypeError):
        return {}


def _brief(value: Any) -> str:
    return "none" if value is None else shown(str(value), 60)
