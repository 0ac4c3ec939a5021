"""The reference pages: those read off the code are fresh, and growkit.json has what its page says.

`make reference` writes the pages that a test here finds stale.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import reference
from support.tiny import build, save

import growkit
from growkit import api, errors
from growkit.errors import GrowkitError

Keys = tuple[str, ...]


@pytest.mark.parametrize("name", reference.PAGES)
def test_a_page_is_fresh(name: str) -> None:
    """It says what the code says today."""
    written = (reference.FOLDER / name).read_text(encoding="utf-8")
    assert written == reference.PAGES[name](), "run `make reference`"


def test_every_public_name_is_told() -> None:
    """Also those that are no functions."""
    page = reference.python_page()
    assert [name for name in growkit.__all__ if not re.search(rf"\b{name}\b", page)] == []


def test_every_exit_code_is_told() -> None:
    """The table has the codes of all errors, beside 0 and those of signals."""
    kinds = [e for e in vars(errors).values() if isinstance(e, type)]
    codes = {str(e.exit_code) for e in kinds if issubclass(e, GrowkitError)}
    told = re.findall(r"^\| ([\d, ]+) \|", reference.EXIT_CODES, re.M)
    assert {code for codes in told for code in codes.split(", ")} == codes | {"0", "130", "143"}


# -- growkit.json --------------------------------------------------------------------------------

PAGE = (reference.FOLDER / "growkit_json.md").read_text(encoding="utf-8")
FIELDS: dict[Keys, list[str]] = {
    tuple(field.split(".")): types.split(" or ")
    for field, types in re.findall(r"^\| `(\S+)` \| ([\w ]+) \| .* \|$", PAGE, re.M)
}


def leaves(value: Any, path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    """Every field of a record with its value; objects are gone into, alone and in lists."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from leaves(below, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for below in value:
            yield from leaves(below, (*path[:-1], f"{path[-1]}[]"))
    else:
        yield path, value


def type_of(value: Any) -> str:
    """As the page calls it."""
    if isinstance(value, list):
        return f"list of {'lists' if isinstance(value[0], list) else type_of(value[0]) + 's'}"
    names = {bool: "boolean", int: "integer", float: "number", str: "string"}
    return "null" if value is None else names[type(value)]


def documented(path: Keys) -> Keys | None:
    """The field of the page that a path is one of; words in capitals stand for any name."""
    for field in FIELDS:
        if len(field) == len(path) and all(
            told.isupper() or told == word for told, word in zip(field, path, strict=True)
        ):
            return field
    return None


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What results of many kinds hold: verified, with a further source, with NaN, with a matrix."""
    folder = tmp_path_factory.mktemp("records")
    llama = save(build("llama", "causal", dtype=torch.float32), folder / "llama")
    gpt2 = save(build("gpt2", "base", heads=2, head_dim=10, mlp=16), folder / "gpt2")
    broken = save(build("bert", "base"), folder / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["pooler.dense.bias"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    api.save_maps(api.plan_growth(gpt2, "double_width"), folder / "maps")
    maps = load_file(folder / "maps")
    turned = torch.linalg.qr(torch.randn(20, 20, dtype=torch.float64))[0]
    maps["hidden.write"] = maps["hidden.write"].double() @ turned
    del maps["hidden.read"]
    save_file(maps, folder / "maps")
    found = [
        api.grow(llama, "double_width", out=folder / "1", verify=True),
        api.grow(llama, "deep_fusion", out=folder / "2", sources={"other": str(llama)}),
        api.grow(broken, "double_depth", out=folder / "3", allow_nonfinite=True),
        api.grow(gpt2, "lemon", out=folder / "4", verify=True),
        api.grow(gpt2, "ligo", out=folder / "5", overrides=[f"learned.maps={folder / 'maps'}"]),
    ]
    return [json.loads((result.out / "growkit.json").read_text("utf-8")) for result in found]


def test_every_field_is_documented(records: list[dict[str, Any]]) -> None:
    """With its type."""
    for record in records:
        for path, value in leaves(record):
            field = documented(path)
            assert field, f"{'.'.join(path)} is not in growkit_json.md"
            if value == []:
                assert any(told.startswith("list") for told in FIELDS[field]), field
            elif (kind := type_of(value)) not in FIELDS[field]:
                whole = kind.replace("integer", "number")  # a whole number is a number
                assert whole in FIELDS[field], f"{'.'.join(field)}: {kind}"


def test_every_documented_field_is_there(records: list[dict[str, Any]]) -> None:
    """None is a promise that no result keeps."""
    seen = {documented(path) for record in records for path, _ in leaves(record)}
    assert [".".join(field) for field in FIELDS if field not in seen] == []
