"""Recipes: what is read, what is refused and in which words, and what is shown again."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from growkit.errors import RecipeError
from growkit.ops import OPERATORS
from growkit.plain_yaml import MAX_BYTES
from growkit.recipe.recipe import (
    Recipe,
    builtin_recipes,
    check_sources,
    json_schema,
    load_recipe,
    parse_recipe,
    recipe_text,
    resolved,
)

MINE = """
# every op, and both ways to say how
about: Four steps
family: [bert, gpt2]
sources: [small, large]
steps:
  - op: width
    to: {hidden: 2x, mlp: 64}
    how: {hidden: isometric, mlp: {map: uneven, weights: [2, 1]}}
  - {op: depth, to: {layers: 4}}
  - {op: noise, snr_db: 1e1}
  - {op: blend, with: large, alpha: 0.5}
"""
NOISE = "steps: [{op: noise}]\n"


def load(folder: Path, text: str, **options: Any) -> Recipe:
    """The recipe in a file with this text."""
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    name, recipe = load_recipe(str(folder / "mine.yaml"), **options)
    assert name == "mine"
    return recipe


def refusal(folder: Path, text: str, **options: Any) -> RecipeError:
    """The error that this text is refused with."""
    with pytest.raises(RecipeError) as caught:
        load(folder, text, **options)
    assert caught.value.exit_code == 2
    return caught.value


# -- reading -------------------------------------------------------------------------------------


def test_a_file_is_read(tmp_path: Path) -> None:
    """Steps become operators with their options; what is left out has its default."""
    recipe = load(tmp_path, MINE)
    assert [step.op for step in recipe.steps] == ["width", "depth", "noise", "blend"]
    assert all(isinstance(step, OPERATORS[step.op]) for step in recipe.steps)
    assert recipe.family == ("bert", "gpt2")
    assert recipe.sources == ("small", "large")
    assert (recipe.dtype, recipe.seed, recipe.tied) == ("keep", 0, "final_norm")


@pytest.mark.parametrize("name", builtin_recipes())
def test_built_in_recipes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a line for the list, shows its own text, and forks into the same recipe."""
    monkeypatch.chdir(tmp_path)  # a fork takes files from where it lies
    found, recipe = load_recipe(name)
    text = recipe_text(name)
    assert found == name
    assert recipe.about
    assert text.startswith("#"), "it says first what it keeps and where it comes from"
    assert load(tmp_path, text) == recipe


@pytest.mark.parametrize("name", builtin_recipes())
def test_resolved_loads_back_equal(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The resolved recipe is the same recipe, with the same keys in the same order."""
    monkeypatch.chdir(tmp_path)  # files are named without folders
    recipe = load_recipe(name)[1]
    text = resolved(recipe)
    assert load(tmp_path, text) == recipe
    assert resolved(load(tmp_path, text)) == text


def test_resolved_spells_out_defaults(tmp_path: Path) -> None:
    """Every step shows all its options under the names that a user writes."""
    data = yaml.safe_load(resolved(load(tmp_path, MINE)))
    assert list(data) == ["about", "family", "sources", "steps", "dtype", "seed", "tied"]
    assert data["steps"][3] == {"op": "blend", "with": "large", "alpha": 0.5, "only": []}
    assert data["steps"][1]["how"] == "insert"


@pytest.mark.parametrize(
    ("given", "meant"),
    [("bf16", "bfloat16"), ("FP32", "float32"), ("half", "float16"), ("f64", "float64")],
)
def test_dtype_has_short_names(tmp_path: Path, given: str, meant: str) -> None:
    """Short names of dtypes are accepted, in a file and as an option, and shown in full."""
    assert load(tmp_path, f"{NOISE}dtype: {given}").dtype == meant
    assert load(tmp_path, NOISE, dtype=given).dtype == meant


def test_options_win_over_set_and_file(tmp_path: Path) -> None:
    """File < --set < --dtype and --seed."""
    recipe = load(tmp_path, f"{NOISE}seed: 1", overrides=["seed=2", "dtype=fp16"], seed=3)
    assert (recipe.seed, recipe.dtype) == (3, "float16")


def test_recipes_are_frozen(tmp_path: Path) -> None:
    """Nothing can be changed after validation."""
    with pytest.raises(ValueError, match="frozen"):
        load(tmp_path, NOISE).seed = 1  # type: ignore[misc]


def test_parse_recipe_takes_plain_data() -> None:
    """The Python way in: the same checks, the same words."""
    assert parse_recipe({"steps": [{"op": "noise"}]}).steps[0].op == "noise"
    with pytest.raises(RecipeError, match=r"^recipe: steps: missing"):
        parse_recipe({})


# -- refusing: the recipe itself -----------------------------------------------------------------

# text → words of the message, words of the hint
REFUSED = {
    "empty": ("", "a recipe is a mapping with the key steps, found nothing", "valid one"),
    "list": ("[1]", "found a list", "valid one"),
    "no step": ("steps: []", "mine.yaml: steps: .* at least 1 item, found a list of 0", ""),
    "steps": ("steps: 5", "steps: should be a list, found 5", ""),
    "key": (f"{NOISE}sead: 1", "mine.yaml: sead: unknown key", 'did you mean "seed"?'),
    "op": ("steps: [{op: wdith}]", r'steps\[0\].op: unknown op "wdith"', 'mean "width"'),
    "no op": ("steps: [{to: 1}]", r"steps\[0\]: a step needs the key op", "known: blend"),
    "nested op": ("steps: [{width: {}}]", "a step needs the key op", "write op: width"),
    "no mapping": ("steps: [5]", r"steps\[0\]: should be a mapping, found 5", ""),
    "option": ("steps: [{op: noise, snr: 1}]", r"steps\[0\].snr: unknown key", "snr_db"),
    "alias": (
        "steps: [{op: blend, with: b, alpha: 1, wiht: b}]",
        r"steps\[0\].wiht: unknown key",
        'did you mean "with"?',
    ),
    "lacking": ("steps: [{op: width}]", r"steps\[0\].to: missing", ""),
    "number": ("steps: [{op: noise, snr_db: loud}]", 'snr_db: .*number.*found "loud"', ""),
    "range": ("steps: [{op: blend, with: b, alpha: 2}]", "alpha: .*equal to 1, found 2", ""),
    "map": ("steps: [{op: width, to: {}, how: tyle}]", 'how: "tyle" is not one of', '"tile"'),
    "axis map": (
        "steps: [{op: width, to: {}, how: {mlp: tyle}}]",
        'how.mlp: "tyle" is not one of auto, tile',
        'did you mean "tile"?',
    ),
    "no map": (
        "steps: [{op: width, to: {}, how: {mlp: {weights: [1]}}}]",
        "how.mlp.map: missing",
        "",
    ),
    "map key": (
        "steps: [{op: width, to: {}, how: {map: tile, wieghts: [1]}}]",
        "how.wieghts: unknown key",
        'did you mean "weights"?',
    ),
    "map option": (
        "steps: [{op: width, to: {}, how: {mlp: {map: tile, weights: [1]}}}]",
        r"steps\[0\].how.mlp: weights is an option of the map uneven, not of tile$",
        "",
    ),
    "no kind of map": ("steps: [{op: width, to: {}, how: 5}]", "how: 5 is not one of auto", ""),
    "pairing": (
        "steps: [{op: coalesce, pairing: {wdth: half}}]",
        "pairing.wdth: unknown key",
        'did you mean "width"?',
    ),
    "size": (
        "steps: [{op: width, to: {mlp: 1.5}}]",
        "to.mlp: should be a whole number or should be a string, found 1.5",
        "",
    ),
    "dtype": (f"{NOISE}dtype: float31", 'dtype: "float31" is not one of keep', '"float32"'),
    "negative seed": (f"{NOISE}seed: -1", "seed: should be greater than or equal to 0", ""),
    "seed": (f"{NOISE}seed: true", "seed: should be a whole number, found true", ""),
    "tied": (f"{NOISE}tied: unite", 'tied: "unite" is not one of final_norm', '"untie"'),
    "family": (f"{NOISE}family: 5", "family: should be a string or should be a list", ""),
    "no source": (f"{NOISE}sources: []", "sources: should have at least 1 item", ""),
    "name": (f"{NOISE}sources: [a b]", r'sources\[0\]: "a b" is not a name', ""),
    "twice": (f"{NOISE}sources: [a, a]", "sources: 'a' is listed twice", ""),
    "unused": (f"{NOISE}sources: [a, b]", "sources: no step uses 'b'", ""),
    "undeclared": (
        "steps: [{op: blend, with: b, alpha: 1}]",
        r"steps\[0\]: source 'b' is not in sources: \[small\]",
        "",
    ),
}


@pytest.mark.parametrize(("text", "words", "hint"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path: Path, text: str, words: str, hint: str) -> None:
    """One sentence with the path of what is wrong, and the nearest known word."""
    error = refusal(tmp_path, text)
    with pytest.raises(RecipeError, match=words):
        raise error
    assert hint in error.hint
    assert "\n" not in error.message


def test_all_problems_are_said_at_once(tmp_path: Path) -> None:
    """Every problem of a file on a line of its own, with its suggestion."""
    error = refusal(
        tmp_path,
        "steps:\n  - {op: width, to: {hidden: 2x}, hwo: auto}\n  - {op: nose}\n"
        "seed: x\ntied: x\nseed: 1\n",
    )
    lines = error.message.splitlines()
    assert lines[0] == "mine.yaml: 5 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        *("seed", "steps[0].hwo", "steps[1].op", "seed", "tied"),
    ]
    assert '(did you mean "how"?)' in error.message
    assert '(did you mean "noise"?)' in error.message


# -- refusing: YAML that is more than data -------------------------------------------------------

UNREADABLE = {
    "syntax": ("steps: [", r"mine.yaml: line 2, column 1: not valid YAML"),
    "two documents": ("a: 1\n---\nb: 1", "not valid YAML: but found another document"),
    "control": ("a: \x00", "not valid YAML: unacceptable character"),
    "key": ("? [1]\n: 2", "line 1: a key is a single word"),
    "duplicate": (f"{NOISE}seed: 1\nseed: 1", "seed: given twice, in lines 2 and 3"),
    "tag": ("a: !!python/object:os.system 1", "line 1: tags such as .*os.system are not read"),
    "custom tag": ("a: !include b.yaml", "tags such as !include are not read"),
    "anchor": ("a: &x 1", "anchors and aliases are not read"),
    "bomb": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", "anchors and aliases are not read"),
    "merge": (f"{NOISE}<<: {{seed: 1}}", "<<: unknown key"),
    "deep": ("[" * 100_000, "nested more than 20 deep"),
    "long number": ("seed: " + "9" * 5000, "line 1: a number of 5000 characters"),
    "large": ("#" * (MAX_BYTES + 1), "a recipe has at most 1,000,000 bytes"),
}


@pytest.mark.parametrize(("text", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_recipes_are_data(tmp_path: Path, text: str, words: str) -> None:
    """No tags, no anchors, no merge keys, no duplicate keys; damage is located."""
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, text)


@given(st.text(alphabet="ab:-[]{}&*!#?|>'\"% \n\t1.x", max_size=40))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Whatever a file holds, the answer is a RecipeError or a recipe, never a traceback."""
    folder = tmp_path_factory.getbasetemp()
    for body in (text, f"steps:\n- op: noise\n  {text}"):
        with suppress(RecipeError):
            load(folder, body)


def test_environment_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dollar is a dollar."""
    monkeypatch.setenv("ABOUT", "secret")
    assert load(tmp_path, f"{NOISE}about: $ABOUT ${{ABOUT}}").about == "$ABOUT ${ABOUT}"


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file, a folder, bytes that are no text, an unknown name."""
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot read the recipe: no such file"):
        load_recipe(str(tmp_path / "none.yaml"))
    with pytest.raises(RecipeError, match="cannot read the recipe: is a directory"):
        load_recipe(f"{tmp_path}/")
    (tmp_path / "b.yml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(RecipeError, match=r"b\.yml: not UTF-8 text \(byte 3\)"):
        load_recipe(str(tmp_path / "b.yml"))
    with pytest.raises(RecipeError, match='no built-in recipe "bert_bsae"') as caught:
        load_recipe("bert_bsae")
    assert 'did you mean "bert_base"?' in caught.value.hint


# -- --set ---------------------------------------------------------------------------------------


def test_set_changes_one_value(tmp_path: Path) -> None:
    """A key of the recipe, or of a step by its op or index; the value is YAML."""

    def changed(*overrides: str) -> Recipe:
        return load(tmp_path, MINE, overrides=overrides)

    before = load(tmp_path, MINE)
    assert changed("seed=3") == before.model_copy(update={"seed": 3})
    assert changed("about=Mine = mine").about == "Mine = mine"
    assert changed("family=bert").family == "bert"
    for same in ("width.to.hidden=512", "0.to.hidden=512"):
        step: Any = changed(same).steps[0]
        assert step.to == {"hidden": 512, "mlp": 64}
    step = changed("0.to={mlp: 4x}").steps[0]
    assert step.to == {"mlp": "4x"}
    step = changed("width.how.mlp.weights=[3, 1]").steps[0]
    assert step.how["mlp"].weights == (3.0, 1.0)
    step = changed("depth.layers=[0, 0, 1]").steps[1]
    assert step.layers == (0, 0, 1)
    step = changed("sources.1=big", "blend.with=big").steps[3]
    assert step.sources() == ("big",)


SET_REFUSED = {
    "seed": ("--set seed: expected PATH=VALUE", "--set seed=1"),
    "=1": ("expected PATH=VALUE", ""),
    "sede=1": ('"sede" is neither a step of this recipe nor one of its keys', '"seed"'),
    "wdith.to=1": ('"wdith" is neither a step', 'did you mean "width"?'),
    "steps=[]": ('"steps" is neither a step', ""),
    "noise=5": ("noise is a step, and a step has keys", "--set noise.KEY=VALUE"),
    "9.to=1": ('"9" is not one of 4 entries', "count from 0"),
    "sources.x=1": ('"x" is not one of 2 entries', "count from 0"),
    "width.how.hidden.map=tile": ("map would be a key of 'isometric'", "whole mapping"),
    "noise.snr=1": (r"mine.yaml: steps\[2\].snr: unknown key", '"snr_db"'),
    "seed=[": ("--set seed=.: .*not valid YAML", ""),
    "seed=!!int 1": ("tags such as .* are not read", ""),
    "family={a: 1, a: 2}": ("--set family=.*: a: given twice", ""),
    "seed=": ("seed: should be a whole number, found nothing", ""),
}


@pytest.mark.parametrize("change", SET_REFUSED)
def test_set_refused(tmp_path: Path, change: str) -> None:
    """A path that leads nowhere, a value that is no YAML, a result that is no recipe."""
    words, hint = SET_REFUSED[change]
    with pytest.raises(RecipeError, match=words):
        load(tmp_path, MINE, overrides=[change])
    assert hint in refusal(tmp_path, MINE, overrides=[change]).hint


def test_set_refuses_an_ambiguous_step(tmp_path: Path) -> None:
    """With two steps of one op, only the index says which."""
    text = "steps: [{op: noise}, {op: noise}]"
    error = refusal(tmp_path, text, overrides=["noise.snr_db=1"])
    assert "noise is ambiguous, steps 0 and 1 have this op" in error.message
    step: Any = load(tmp_path, text, overrides=["1.snr_db=1"]).steps[1]
    assert step.snr_db == 1


# -- sources -------------------------------------------------------------------------------------


def test_check_sources(tmp_path: Path) -> None:
    """The checkpoints given are those that the recipe declares, besides the first."""
    recipe = load(tmp_path, MINE)
    check_sources(recipe, ["large"])
    with pytest.raises(RecipeError, match="source large: the recipe needs this checkpoint"):
        check_sources(recipe, [])
    with pytest.raises(RecipeError, match=r"--source big: the recipe declares .*small, large"):
        check_sources(recipe, ["large", "big"])
    with pytest.raises(RecipeError, match="--source big") as caught:
        check_sources(load(tmp_path, NOISE), ["big"])
    assert caught.value.hint == "leave --source out"


# -- JSON Schema ---------------------------------------------------------------------------------


def fits(value: Any, schema: dict[str, Any], top: dict[str, Any]) -> bool:
    """Whether a value fits a JSON Schema, for the keywords that recipes use."""
    if "$ref" in schema:
        return fits(value, top["$defs"][schema["$ref"].rpartition("/")[2]], top)
    for word in ("oneOf", "anyOf"):
        if word in schema:
            hits = sum(fits(value, branch, top) for branch in schema[word])
            return hits == 1 if word == "oneOf" else hits > 0
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    if not isinstance(value, types.get(schema.get("type", ""), object)):
        return False
    if value not in schema.get("enum", [value]) or schema.get("const", value) != value:
        return False
    if isinstance(value, list):
        long_enough = len(value) >= schema.get("minItems", 0)
        return long_enough and all(fits(item, schema.get("items", {}), top) for item in value)
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        return set(schema.get("required", ())) <= value.keys() and all(
            fits(v, known[k], top) if k in known else others is not False and fits(v, others, top)
            for k, v in value.items()
        )
    return True


@pytest.mark.parametrize("name", builtin_recipes())
def test_schema_accepts_built_in_recipes(name: str) -> None:
    """Every built-in recipe, as written and as resolved, fits the schema."""
    schema = json_schema()
    for text in (recipe_text(name), resolved(load_recipe(name)[1])):
        assert fits(yaml.safe_load(text), schema, schema)


@pytest.mark.parametrize("case", ["key", "op", "option", "lacking", "map", "dtype", "no step"])
def test_schema_refuses_what_loading_refuses(case: str) -> None:
    """An editor marks the mistakes that would be refused."""
    schema = json_schema()
    assert not fits(yaml.safe_load(REFUSED[case][0]), schema, schema)


def test_schema_tells_steps_apart_by_op() -> None:
    """The schema is plain JSON, chooses the step by `op`, and knows the short dtypes."""
    schema = json.loads(json.dumps(json_schema()))
    steps = schema["properties"]["steps"]["items"]
    assert steps["discriminator"]["propertyName"] == "op"
    assert set(steps["discriminator"]["mapping"]) == set(OPERATORS)
    assert fits(yaml.safe_load(f"{NOISE}dtype: bf16"), schema, schema)


@pytest.mark.parametrize("how", ["tile", "{map: tile}", "{mlp: tile}", "{mlp: {map: tile}}"])
def test_schema_takes_every_form_of_how(how: str) -> None:
    """A map's name or a map with options, for all axes or by axis."""
    text = f"steps: [{{op: width, to: {{}}, how: {how}}}]"
    assert fits(yaml.safe_load(text), json_schema(), json_schema())
    assert parse_recipe(yaml.safe_load(text))
