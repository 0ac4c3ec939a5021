"""What is installed: a wheel that carries its data, and an editable install that shows edits."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import growkit

ROOT = Path(__file__).parents[2]
CARRIED = ("growkit", "recipes", "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that tests may edit."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in CARRIED:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


def build(hook: str, project: Path, out: Path) -> Path:
    """What hatchling makes in answer to one of the hooks that pip calls, such as `build_wheel`."""
    code = f"import hatchling.build as b, sys; print(b.{hook}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, out], cwd=project, check=True, capture_output=True, text=True
    )
    return out / done.stdout.split()[-1]


def install(wheel: Path, site: Path) -> Path:
    """Unpack a wheel as an installer would."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def growkit_from(site: Path, *arguments: str) -> str:
    """Run growkit as installed in `site`, whatever is installed in this environment."""
    code = f"import site, sys; site.addsitedir({str(site)!r})\nfrom growkit.cli import main"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"{code}\nsys.exit(main())", *arguments],
        env=os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")},
        cwd=site,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    out = tmp_path_factory.mktemp("dist")
    with tarfile.open(build("build_sdist", checkout, out)) as archive:
        for member in archive.getmembers():  # its own build: no filter that older Pythons lack
            archive.extract(member, out)
    return build("build_wheel", out / f"growkit-{growkit.__version__}", out)


def test_wheel_carries_its_data(wheel: Path) -> None:
    """Every source file, recipe and family is in the wheel, and nothing of the tests."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [*(ROOT / "growkit").rglob("*.py"), *(ROOT / "growkit").rglob("*.yaml")]
    package = {str(file.relative_to(ROOT)) for file in files} | {"growkit/py.typed"}
    recipes = {f"growkit/recipes/{p.name}" for p in (ROOT / "recipes").glob("*.yaml")}
    assert recipes
    assert names == package | recipes


def test_wheel_finds_its_data(wheel: Path, tmp_path: Path) -> None:
    """An installed wheel lists the same recipes and families as the checkout."""
    site = install(wheel, tmp_path)
    for command, folder in (("recipes", "recipes"), ("families", "growkit/families/builtin")):
        listed = growkit_from(site, command)
        missing = [p.stem for p in (ROOT / folder).glob("*.yaml") if p.stem not in listed]
        assert not missing, f"growkit {command} does not list {missing}"


TYPED = """
import growkit
from pathlib import Path

reveal_type(growkit.__version__)
reveal_type(growkit.grow)
reveal_type(growkit.plan_growth("small", "double_width").claim.claim)
growkit.grow(1, "double_width")
growkit.plan_growth("small")
"""


def test_types_are_exported(wheel: Path, tmp_path: Path) -> None:
    """mypy, strict, sees the types of an installed wheel and finds wrong calls."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    install(wheel, site)
    (tmp_path / "user.py").write_text(TYPED, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--hide-error-context",
         "--python-executable", tmp_path / "venv" / "bin" / "python", "user.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    version, grow, claim, number, missing = done.stdout.splitlines()
    assert version.endswith('Revealed type is "str"')
    assert "-> growkit.runtime.execute.Result" in grow
    assert claim.endswith('Revealed type is "str"')
    assert "has incompatible type" in number
    assert 'Missing positional argument "recipe"' in missing


def test_editable_install_shows_edits(checkout: Path, tmp_path: Path) -> None:
    """An editable install reads recipes from the checkout: new ones appear, edits are seen."""
    (tmp_path / "site").mkdir()
    site = install(build("build_editable", checkout, tmp_path), tmp_path / "site")
    assert not (site / "growkit").exists(), "a copy in site-packages would grow stale"
    text = next((ROOT / "recipes").glob("*.yaml")).read_text(encoding="utf-8")
    added = checkout / "recipes" / "brand_new.yaml"
    added.write_text(f"# first\n{text}", encoding="utf-8")
    assert "brand_new" in growkit_from(site, "recipes")
    added.write_text(f"# second\n{text}", encoding="utf-8")
    assert growkit_from(site, "recipes", "brand_new").startswith("# second\n")


# -- images and other packages -------------------------------------------------------------------


def test_the_image_is_made_of_what_is_there() -> None:
    """What it copies is in the checkout and enough to install; it runs growkit, not as root."""
    lines = (ROOT / "examples/docker/Dockerfile").read_text(encoding="utf-8").splitlines()
    said = [tuple(line.split(maxsplit=1)) for line in lines if line and line[0] not in "# "]
    copied = [name for word, rest in said if word == "COPY" for name in rest.split()[:-1]]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {*CARRIED} - {*copied} == {"CHANGELOG.md"}
    order = [word for word, _ in said]
    assert dict(said)["USER"] == "growkit"
    assert order.index("USER") > max(i for i, word in enumerate(order) if word == "RUN")
    assert dict(said)["ENTRYPOINT"] == '["growkit"]'


def test_conda_asks_for_what_pip_asks_for() -> None:
    """The same version, entry point, and packages with the same floors."""
    recipe = yaml.safe_load((ROOT / "examples/conda/meta.yaml").read_text(encoding="utf-8"))
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    names = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}
    wanted = {"python >=3.11"}
    for line in project["dependencies"]:
        name, floor = re.findall(r"([\w-]+)(.*)", line)[0]
        wanted.add(f"{names.get(name, name)} {floor}")
    assert {*recipe["requirements"]["run"]} == wanted
    assert recipe["package"]["version"] == growkit.__version__
    (script,) = recipe["build"]["entry_points"]
    assert script == f"growkit = {project['scripts']['growkit']}"


def test_what_is_cited_is_this_version() -> None:
    """The citation names the version and the licence of the package."""
    cited = yaml.safe_load((ROOT / "docs/CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"]) == (growkit.__version__, "Apache-2.0")
