"""Peak memory: that of the block and not of the model, within what the plan says, never above.

What a process really holds is measured from outside, on files that are all zeros and on no disk.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.calls import calls
from support.growths import sizes, steps_of

from growkit import api
from growkit.errors import ResourceError
from growkit.report.as_json import plan_json
from growkit.runtime import estimate

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT))  # for the benchmarks, which are not installed

from benchmarks import measure, models  # noqa: E402

GROWKIT = (sys.executable, "-m", "growkit")
RECIPES = {
    "copies": "steps: [{op: depth, to: {layers: 2x}, how: stack}]",
    "width": "steps: [{op: width, to: {axes: 2x}, how: tile}]",
    "noise": "steps: [{op: width, to: {axes: 3/2x}}, {op: noise, snr_db: 10}]",
    "coalesce": "steps: [{op: coalesce, to: {axes: 1/2x, layers: 1/2x}}]",
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Llamas of the widths of 0.35, 1.1 and 7 B, the first two with two layers."""
    made = {}
    for size in ("0.35B", "1.1B", "7B"):
        layers = 32 if size == "7B" else 2
        sizes = {**models.LLAMA[size], "layers": layers, "vocab": 4000}
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(models.LLAMA, size, sizes)  # type: ignore[arg-type]
            made[size] = models.llama(tmp_path_factory.mktemp(size), size, sparse=True)
    return made


def planned(source: Path, recipe: Path, *options: str) -> int:
    """Bytes that the plan says."""
    command = (*GROWKIT, "plan", str(source), "--recipe", str(recipe), "--json", *options)
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return int(json.loads(done.stdout)["peak_memory_bytes"])


def grown(source: Path, recipe: Path, out: Path, *options: str) -> int:
    """Bytes that a growth really takes."""
    command = (*GROWKIT, "grow", str(source), "--recipe", str(recipe), "-o", str(out), *options)
    return measure.run(command).peak_bytes


@pytest.fixture
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A recipe file by the name of a recipe above."""
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPES[request.param])
    return path


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, indirect=True)
def test_the_plan_knows_the_peak(tmp_path: Path, llama: dict[str, Path], recipe: Path) -> None:
    """The measured peak is within the plan's, and the plan's at most 1.3 times that + 100 MB."""
    said = planned(llama["0.35B"], recipe)
    found = grown(llama["0.35B"], recipe, tmp_path / "out")
    assert found <= said <= 1.3 * found + 100e6


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["copies", "noise"], indirect=True)
def test_the_plan_counts_its_tensors(tmp_path: Path, recipe: Path) -> None:
    """The same for 10,000 tensors that are small: plan, layout and report are what takes memory."""
    source = models.mixture(tmp_path / "mixture", 10_000, hidden=16)
    said = planned(source, recipe)
    found = grown(source, recipe, tmp_path / "out")
    assert found <= said <= 1.3 * found + 100e6


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["copies", "width"], indirect=True)
def test_larger_models_take_no_more(tmp_path: Path, llama: dict[str, Path], recipe: Path) -> None:
    """Three sizes, of the largest the first files: within 10 % of each other."""
    found = [grown(llama[s], recipe, tmp_path / s) for s in ("0.35B", "1.1B")]
    first = (sys.executable, "-m", "benchmarks.first_files")
    command = (*first, str(llama["7B"]), str(recipe), str(tmp_path / "7B"))
    found.append(measure.run(command, env={"PYTHONPATH": str(ROOT)}).peak_bytes)
    assert max(found) <= 1.1 * min(found)
    assert max(found) <= planned(llama["7B"], recipe)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, indirect=True)
def test_max_memory_is_kept(tmp_path: Path, llama: dict[str, Path], recipe: Path) -> None:
    """As little as the plan accepts, and never more than that is taken."""
    command = (*GROWKIT, "plan", str(llama["1.1B"]), "--recipe", str(recipe), "--max-memory", "1MB")
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 4
    least = refused.stderr.rpartition("hint: --max-memory ")[2].split()[0]
    allowed = int(least.removesuffix("MB")) * 1_000_000
    assert grown(llama["1.1B"], recipe, tmp_path / "out", "--max-memory", least) <= allowed


def test_a_block_that_does_not_fit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little memory left, by the system or by a cgroup: refused before anything is written."""
    from support import tiny

    small = tiny.save(tiny.build("llama", "causal", **sizes("llama")), tmp_path / "small")
    wider = steps_of([{"op": "width", "to": {"axes": "2x"}}])
    before = {p.name for p in tmp_path.iterdir()}
    monkeypatch.setattr(estimate, "available_bytes", lambda: 50_000_000)
    with pytest.raises(ResourceError, match=r"memory: 50 MB free: one row of .* take") as caught:
        api.grow(small, wider, out=tmp_path / "big")
    assert "MB is enough" in caught.value.hint
    assert {p.name for p in tmp_path.iterdir()} == before


NOISY = steps_of([{"op": "width", "to": {"axes": "2x"}}, {"op": "noise", "snr_db": 10}])


def told(source: Path) -> dict[str, Any]:
    """A planned growth as JSON, with what it costs."""
    plan = api.plan_growth(source, NOISY)
    return plan_json(plan, api.estimate(plan))


def test_planning_is_linear(tmp_path: Path) -> None:
    """Three times the tensors, at most 3.1 times the work."""
    small, large = (models.mixture(tmp_path / str(n), n) for n in (600, 1800))
    counts = [len(api.plan_growth(folder, NOISY).formulas) for folder in (small, large)]
    first, second = (calls(lambda source=source: told(source)) for source in (small, large))
    assert second / first < 1.03 * counts[1] / counts[0]


@pytest.mark.alone
@pytest.mark.slow
def test_planning_30000_tensors(tmp_path: Path) -> None:
    """A mixture of experts of 30,000 tensors is planned within 300 MB; --json tells them all."""
    source = models.mixture(tmp_path / "mixture", 30_000)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES["noise"].replace("3/2x", "2x"))
    command = (*GROWKIT, "plan", str(source), "--recipe", str(recipe))
    for options in ((), ("--json",)):
        assert measure.run((*command, *options)).peak_bytes < 300e6
