"""The Python API: joins the rooms. It decides nothing itself.

    plan = plan_growth("small/", "bert_base")       headers only, no torch
    result = grow("small/", "bert_base")            writes small-bert_base/
    verify_growth("small/", result.out).passed      runs both models

    grow_rank("small/", "bert_base", Rank(0, 4))   one rank of four, each on its own
    finish("small-bert_base")                       when all of them are done

The law: OUT appears whole or not at all, and the same plan gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from growkit import hub
from growkit.byte_sizes import format_size
from growkit.checkpoints.identity import other_file
from growkit.checkpoints.matrices import read_maps
from growkit.checkpoints.open import open_checkpoint, read_config
from growkit.checkpoints.types import Checkpoint
from growkit.dtypes import ITEM_BYTES
from growkit.errors import CheckpointError, RecipeError, VerifyError
from growkit.families.load import blamed, family_names, family_text, read_yaml
from growkit.families.model import Model, read_model
from growkit.ops.matrices import matrices
from growkit.output.record import check_files, read_record, write_record
from growkit.output.user_files import write_maps, write_page
from growkit.planning.plan import Estimate, Plan, build_plan
from growkit.recipe.recipe import Recipe, check_sources, choose_recipe
from growkit.report.as_json import class_names, verification_json
from growkit.report.page.page import growth_page
from growkit.runtime.estimate import DEFAULTS, PreparedPlan, WriteOptions, estimate, prepare
from growkit.runtime.execute import (
    Finished,
    RankResult,
    Result,
    execute,
    execute_rank,
    finish,
    is_done,
)
from growkit.runtime.progress_bar import Progress, bar_shown
from growkit.runtime.ranks import Rank, read_rank

if TYPE_CHECKING:
    from growkit.verify.check_family import Finding
    from growkit.verify.compare import Verification

__all__ = [
    "Estimate",
    "Finished",
    "Rank",
    "RankResult",
    "Result",
    "WriteOptions",
    "check_family",
    "check_files",
    "default_out",
    "estimate",
    "execute",
    "execute_rank",
    "family_text",
    "finish",
    "grow",
    "grow_rank",
    "infer_family",
    "inspect_checkpoint",
    "list_families",
    "plan_growth",
    "prepare",
    "pull",
    "push",
    "read_rank",
    "save_maps",
    "save_page",
    "verify_growth",
]  # fmt: skip


class Planning(TypedDict, total=False):
    """What planning a growth takes beside its source and recipe."""

    sources: Mapping[str, str] | None
    config: Path | None
    overrides: Sequence[str]
    dtype: str | None
    seed: int | None
    family: Path | None
    drop: Sequence[str]


class ShownPlan(Plan):
    """A plan that a notebook shows as its page; planning itself knows no pages."""

    def _repr_html_(self) -> str:
        page = growth_page(self, output_bytes=estimate(self).output_bytes, written=False)
        return (
            '<iframe sandbox width="100%" height="800" style="border: 0" '
            f'srcdoc="{escape(page)}"></iframe>'
        )


def plan_growth(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    sources: Mapping[str, str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
    drop: Sequence[str] = (),
) -> Plan:
    """The plan of growing `source` by `recipe`, from headers alone.

    A source is a path, or `org/name[@revision]` of the Hub; a recipe is a name, a file, a `Recipe`,
    or a dict such as `{"steps": [{"op": "width", "to": {"mlp": "2x"}}]}`. `sources` are further
    checkpoints by the recipe's names; `overrides` are `PATH=VALUE` as in `--set`; `drop` are
    patterns of tensors to leave out. Raises RecipeError, FamilyError, CheckpointError, HubError, or
    UsageError for a pattern that fits no tensor.
    """
    return _planned(
        source,
        recipe,
        sources=sources,
        config=config,
        overrides=overrides,
        dtype=dtype,
        seed=seed,
        family=family,
        drop=drop,
    )[0]


def _planned(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    sources: Mapping[str, str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
    drop: Sequence[str] = (),
) -> tuple[Plan, dict[str, hub.Repo]]:
    """The plan, and those of its sources that are on the Hub, by the recipe's names."""
    recipe_name, chosen = choose_recipe(recipe, overrides=overrides, dtype=dtype, seed=seed)
    further = dict(sources or {})
    check_sources(chosen, further)
    first, *others = chosen.sources
    places = {first: source} | {name: further[name] for name in others}
    repos = {name: repo for name, place in places.items() if (repo := hub.repo_named(place))}
    with blamed(family):
        models = {
            name: _model(repos.get(name, place), config if name == first else None, family, drop)
            for name, place in places.items()
        }
        plan = build_plan(recipe_name, chosen, models, read_maps(chosen.files))
    return ShownPlan(**{f.name: getattr(plan, f.name) for f in fields(plan)}), repos


def save_maps(plan: Plan, path: str | Path) -> dict[str, tuple[int, ...]]:
    """Write the maps of a plan, composed over its steps, as matrices that `learned` takes.

    Their names and shapes. Null-space noise is left out; other things that are no map are refused.
    """
    state = plan.state
    if state.no_matrices:
        raise RecipeError(
            f"{state.no_matrices}, which no file of maps can say",
            hint="leave the step out, and put it after `learned` in the recipe that takes them",
        )
    maps = {**state.maps, **dict(sorted(state.config_maps.items()))}
    arrays = matrices(maps, state.layer_maps, state.model.sizes, state.theta_power)
    if not arrays:
        raise RecipeError(
            f"{plan.recipe_name}: no step grows an axis, so there are no maps to write"
        )
    write_maps(Path(path), arrays)
    return {name: array.shape for name, array in arrays.items()}


def save_page(plan: Plan, path: str | Path, estimate: Estimate) -> None:
    """Write a page of HTML that shows the growth.

    A file that is there is replaced if it is a page, else OutputError is raised.
    """
    page = growth_page(plan, output_bytes=estimate.output_bytes, written=False)
    write_page(Path(path), page)


def _model(
    source: str | Path | hub.Repo, config: Path | None, family: Path | None, drop: Sequence[str]
) -> Model:
    if not isinstance(source, hub.Repo):
        return read_model(open_checkpoint(source, config=config, drop=drop), family)
    with hub.errors_naming(source):
        return read_model(hub.open_remote(source, config=config, drop=drop), family)


def default_out(source: str | Path, recipe_name: str) -> Path:
    """`<stem>-<recipe>` in the working directory.

    >>> default_out("models/small.safetensors", "bert_base")
    PosixPath('small-bert_base')
    >>> default_out("org/name", "bert_base")
    PosixPath('name-bert_base')
    """
    path = Path(source)
    stem = path.resolve().name if path.is_dir() else path.name.removesuffix(".index.json")
    return Path(f"{stem.removesuffix('.safetensors')}-{recipe_name}")


def grow(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    out: str | Path | None = None,
    sources: Mapping[str, str] | None = None,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    dtype: str | None = None,
    seed: int | None = None,
    family: Path | None = None,
    drop: Sequence[str] = (),
    max_shard_size: str | int = "5GB",
    max_memory: str | int = "2GB",
    workers: int = 1,
    cluster: str | None = None,
    overwrite: bool = False,
    allow_nonfinite: bool = False,
    verify: bool = False,
    push_to: str | None = None,
    progress: Progress | bool | None = True,
) -> Result:
    """Write the grown checkpoint to `out`, by default `<stem>-<recipe>/` in the working directory.

    Returns at once if `out` already holds the same result. `workers` are processes of this machine,
    `cluster` is the address of a Dask scheduler; each writes one file at a time, so there should
    be more files (`max_shard_size`) than workers. A script that uses `workers` needs the usual
    `if __name__ == "__main__":` around what it does. With `verify` both models are run at the
    end, and VerifyError is raised if the claim does not hold; with `push_to` the result then goes
    to a private model on the Hub. A terminal and a notebook see a bar unless `progress` is False;
    it may also be a function of the bytes done and the bytes in all. Raises what `plan_growth`
    raises, and UsageError, ResourceError or OutputError before anything is written.
    """
    goal = hub.repo_required(push_to) if push_to is not None else None
    if goal:
        hub.refuse_push(goal)
    options = WriteOptions(
        max_shard_size=max_shard_size,
        max_memory=max_memory,
        workers=workers,
        cluster=cluster,
        overwrite=overwrite,
        allow_nonfinite=allow_nonfinite,
    )
    prepared, target = _prepared(
        source,
        recipe,
        out,
        options,
        sources=sources,
        config=config,
        overrides=overrides,
        dtype=dtype,
        seed=seed,
        family=family,
        drop=drop,
    )
    with bar_shown(progress) as counted:
        result = execute(prepared, target, progress=counted)
    if verify:
        result = _verified(result, source, config, drop)
    return replace(result, pushed=asdict(hub.push(result.out, goal))) if goal else result


def grow_rank(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    rank: Rank,
    *,
    out: str | Path | None = None,
    options: WriteOptions = DEFAULTS,
    progress: Progress | None = None,
    **planning: Unpack[Planning],
) -> RankResult:
    """Write the files of one rank of several, each a process of its own, wherever it runs.

    All ranks are given the same arguments but for `rank`, and a filesystem that they share;
    `finish` makes the result visible. Raises what `grow` raises.
    """
    prepared, target = _prepared(source, recipe, out, options, rank, **planning)
    return execute_rank(prepared, target, progress=progress)


def _prepared(
    source: str | Path,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    out: str | Path | None,
    options: WriteOptions,
    rank: Rank | None = None,
    **planning: Unpack[Planning],
) -> tuple[PreparedPlan, Path]:
    """What is to be written, and OUT. Sources on the Hub are downloaded, unless OUT is done."""
    plan, repos = _planned(source, recipe, **planning)
    prepared = prepare(plan, options, rank)
    if out is None:
        repo = repos.get(plan.recipe.sources[0])
        out = default_out(repo.id if repo else source, plan.recipe_name)
    target = Path(out)
    if repos and not is_done(prepared, target):
        size = prepared.estimate.output_bytes
        for name, repo in repos.items():
            hub.download(repo, plan.sources[name], out=target, out_bytes=size)
    return prepared, target


def _verified(
    result: Result, source: str | Path, config: Path | None, drop: Sequence[str]
) -> Result:
    verification = verify_growth(source, result.out, config=config, drop=drop)
    record = {**result.report, "verify": verification_json(verification)}
    write_record(result.out, record)
    if not verification.passed:
        raise VerifyError(
            f"{result.out}: {'; '.join(verification.failures)}",
            hint="the checkpoint is written; growkit.json holds the measurement",
        )
    return replace(result, report=record)


# -- looking -------------------------------------------------------------------------------------


def verify_growth(
    small: str | Path,
    big: str | Path,
    *,
    config: Path | None = None,
    drop: Sequence[str] = (),
    text: str | None = None,
    max_drift: float | None = None,
    announce: Callable[[str], object] | None = None,
) -> Verification:
    """Run both models and hold the difference against what `big`'s growkit.json claims.

    A model that is named as `org/name[@revision]` is downloaded. `announce` is called with a
    sentence on what memory it takes, before the models run.

    Where there is a growkit.json, every byte of `big` is checked too. Raises UsageError if
    transformers is not installed, CheckpointError if `big` was grown from another model than
    `small`, and ResourceError if a model does not fit into memory.
    """
    from growkit.verify.compare import verify as run_both
    from growkit.verify.memory import needed_bytes, refuse_too_large

    small, big = _on_disk(small), _on_disk(big)
    record = read_record(Path(big)) if Path(big).is_dir() else None
    checkpoint = open_checkpoint(small, config=config, drop=drop)
    if record:
        _refuse_another(checkpoint, big, record)
    large = open_checkpoint(big)
    need = needed_bytes(checkpoint, large, text=bool(text))
    refuse_too_large(need)
    if announce:
        announce(f"verify needs about {format_size(need)} of memory: a model at a time, in float64")
    return run_both(
        checkpoint,
        large,
        growth=record,
        text=text,
        max_drift=max_drift,
        file_problems=check_files(big) if record else (),
    )


def _refuse_another(small: Checkpoint, big: str | Path, record: Mapping[str, Any]) -> None:
    """Raise CheckpointError if BIG's growkit.json tells of another SMALL than this one."""
    sources = record.get("sources")
    first = next(iter(sources.values()), None) if isinstance(sources, dict) else None
    if not isinstance(first, dict):
        return
    other = other_file(small, first.get("files"))
    if other:
        raise CheckpointError(
            f"{small.path}: not what {big} was grown from: {other} holds other weights",
            hint=f"give the checkpoint that was called {first.get('path')} then; "
            "without growkit.json two models are compared whatever they come from",
        )


def _on_disk(source: str | Path) -> str | Path:
    """A path, or the folder into which a model of the Hub is downloaded."""
    repo = hub.repo_named(source)
    return hub.pull(repo) if repo else source


def inspect_checkpoint(
    path: str | Path,
    *,
    config: Path | None = None,
    family: Path | None = None,
    drop: Sequence[str] = (),
) -> dict[str, Any]:
    """What a checkpoint is: family, axes and what can grow, parameters, dtypes, ties, files."""
    with blamed(family):
        return _inspection(path, _model(hub.repo_named(path) or path, config, family, drop))


def _inspection(path: str | Path, model: Model) -> dict[str, Any]:
    groups = [{a for e in es for a in e.axes} for es in model.family.config.values() if len(es) > 1]
    axes = {}
    for axis, members in model.family.user_axes.items():
        if members[0] not in model.sizes:
            continue
        table = model.family.axes[members[0]] == "table"
        why = "by the operator resize" if table else ""
        coupled = {a for group in groups if group & {*members} for a in group}
        others = {u for u, m in model.family.user_axes.items() if coupled & {*m}} - {axis}
        if others and not table:
            why = f"together with {' and '.join(sorted(others))}"
        axes[axis] = {"size": model.sizes[members[0]], "can_grow": True, "why": why}
    dtypes: dict[str, int] = {}
    for entry in model.entries.values():
        dtypes[entry.info.dtype] = dtypes.get(entry.info.dtype, 0) + 1
    parameters = sum(
        (e.info.stop - e.info.start) // ITEM_BYTES[e.info.dtype] for e in model.entries.values()
    )
    return {
        "path": str(path),
        "family": model.family.name,
        "about": model.family.about,
        "classes": class_names(model.config),
        "axes": axes,
        "parameters": parameters,
        "tensors": len(model.entries),
        "dtypes": dtypes,
        "tied": model.tied,
        "dropped": list(model.dropped),
        "notes": list(model.notes()),
        "files": [f.name for f in model.checkpoint.files],
        "side_files": list(model.checkpoint.side_files),
    }


def check_family(file: Path, config: Path) -> list[Finding]:
    """Try a family file on a tiny random model of a config; see `growkit.verify.check_family`."""
    from growkit.verify.check_family import check_family as try_family

    with blamed(file):
        return try_family(read_config(config), file)


def infer_family(config: Path) -> tuple[str, int]:
    """A drafted family file for a config, and how many of its lines need a look."""
    from growkit.verify.draft_family import draft_family

    draft = draft_family(read_config(config))
    return draft.text, draft.doubts


def list_families() -> list[dict[str, Any]]:
    """The families that ship with growkit: name, model types, what it is about."""
    families = []
    for name in family_names():
        data = read_yaml(family_text(name), name)
        types = data.get("model_type") or data["architecture"]
        about = data.get("about", "") + (": cannot be grown" if "refused" in data else "")
        families.append({"name": name, "model_types": types, "about": about})
    return families


# -- the Hub -------------------------------------------------------------------------------------


def push(
    folder: str | Path,
    repo: str,
    *,
    revision: str | None = None,
    public: bool = False,
    create_pr: bool = False,
    check: bool = False,
    message: str | None = None,
) -> hub.Pushed:
    """Upload a result to `repo`, which is made, and private unless `public`, if it is not there.

    `message` is the title of the commit. With `check`, names, sizes and hashes are read back.
    Raises HubError, UsageError, OutputError and, if what was read back differs, VerifyError.
    """
    goal = replace(hub.repo_required(repo), revision=revision)
    return hub.push(folder, goal, public=public, create_pr=create_pr, check=check, message=message)


def pull(repo: str, *, out: str | Path | None = None) -> Path:
    """Download `org/name[@revision]` into the Hub's cache, or to `out`; returns the folder."""
    wanted = hub.repo_required(repo, revision=True)
    return hub.pull(wanted, Path(out) if out is not None else None)
