"""A plan in words: kernels, whole plans, one tensor, verifications."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.tiny import build, save

from growkit.algebra.axis_map import AxisMap
from growkit.algebra.kernel import Kernel
from growkit.api import plan_growth
from growkit.errors import UsageError
from growkit.ops.axis_maps import circular, isometric, pad, repeat, tile, uneven
from growkit.planning.plan import Estimate, Plan
from growkit.report.text import explain, plan_text, table_text, verification_text
from growkit.report.words import first_rows, in_words

ESTIMATE = Estimate(437_951_328, 437_955_000, 310_000_000, ("model.safetensors",), "d" * 64)
HEADS = AxisMap.identity(3).kron(tile(4, 8))


# -- kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (None, "identity"),
        (Kernel.identity(4), "identity"),
        (Kernel.identity(4, 0.5), "× 0.5"),
        (tile(4, 8).read, "tile ×2 (coef 0.5)"),
        (repeat(4, 12).write, "repeat ×3"),
        (uneven(2, 4, (2, 1)).read, "tile ×2 (coefs 0.333333 to 0.666667)"),
        (circular(4, 6).write, "0–3 from 0–3, 4–5 from 0–1"),
        (pad(4, 6).read, "0–3 from 0–3, 2 zero rows"),
        (pad(4, 5).read, "0–3 from 0–3, 1 zero row"),
        (pad(4, 6, mean=True).write, "0–3 from 0–3, 2 rows of a mean of all 4"),
        (HEADS.write, "in each of 3 blocks: tile ×2"),
        (pad(3, 4).kron(tile(4, 8)).write, "in each of 3 blocks: tile ×2, 8 zero rows"),
        (Kernel.gather([[0, 1], [1, 2]], 0.5, old=3), "up to 2 of 3 per row (coef 0.5)"),
        (
            Kernel.gather([4, 3, 2, 1, 0, 0], old=5),
            "0 from 4, 1 from 3, 2 from 2, 3 from 1, … (6 ranges)",
        ),
        (Kernel.gather([0, 0, 0], 0.0, old=2), "3 zero rows"),
        (Kernel.from_matrix(np.ones((3, 2))), "dense, 2 → 3"),
    ],
)  # fmt: skip
def test_kernels_in_words(kernel: Kernel | None, words: str) -> None:
    """Named patterns by name, blocks as blocks, anything else as ranges."""
    assert in_words(kernel) == words


def test_first_rows() -> None:
    """The first rows that are not zero, as sums."""
    assert (
        first_rows(tile(4, 8).read) == "row 0 = 0.5·old 0, row 1 = 0.5·old 1, row 2 = 0.5·old 2, …"
    )
    assert first_rows(pad(1, 2, mean=True).write) == "row 0 = old 0, row 1 = shared"
    noise = tile(1, 2).null_space(behind_norm=False)
    assert first_rows(noise) == "row 0 = 0.5·old 0 - 0.5·old 1, row 1 = -0.5·old 0 + 0.5·old 1"
    assert first_rows(isometric(2, 2).write) == "row 0 = old 0, row 1 = old 1"
    assert first_rows(Kernel.from_matrix(np.ones((1, 2)))) == "row 0 = dense"


# -- plans ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny encoder whose norms write the stream, saved."""
    folder = tmp_path_factory.mktemp("small")
    return save(build("bert", "base", heads=2, head_dim=4, mlp=16, layers=2), folder)


@pytest.fixture(scope="module")
def plan(small: Path) -> Plan:
    """An uneven width and silent layers: every section of the text has something to say."""
    return plan_growth(
        small,
        "bert_large",
        overrides=[
            "width.to={hidden: 12, heads: 3, mlp: 24}",
            "width.how={hidden: pad}",
            "depth.to.layers=3",
        ],
    )


def test_plan_text(plan: Plan) -> None:
    """Sizes, config, claim with reasons, steps, tensors, cost, hints, recipe; in 80 columns."""
    text = plan_text(plan, ESTIMATE, full=True)
    assert max(map(len, text.splitlines())) <= 80
    for line in (
        "  hidden                         8              12   × 1.5",
        "  hidden_size: 8 → 12",
        "  output 438 MB in 1 file, float64, values rounded",
        "  disk needed 438 MB, peak memory 310 MB",
        f"  digest {'d' * 64}",
        "    to: {hidden: 12, heads: 3, mlp: 24}",
        "    how: {hidden: pad}",
    ):
        assert line in text.splitlines()
    assert "  approximate: hidden 8 → 12: LayerNorm" in text
    assert "0 width: approximate" in text
    assert "zero on purpose" in text


def test_plan_text_fits_a_screen(plan: Plan) -> None:
    """Without --full: what changes, claim, cost, what is wrong with this growth, and where next."""
    text = plan_text(plan, ESTIMATE, further=["growkit grow small"])
    assert len(text.splitlines()) <= 36
    assert re.findall(r"^\w+$", text, re.M) == [
        "claim",
        "cost",
        *["hints"] * bool(plan.hints),
        "next",
    ]
    assert text.endswith("next\n  growkit grow small")
    assert "  vocab" not in text
    assert "d" * 64 not in text


def test_plan_text_of_shards(plan: Plan) -> None:
    """Several files are counted."""
    text = plan_text(plan, replace(ESTIMATE, shards=("a", "b")))
    assert "438 MB in 2 files" in text


def test_explain(plan: Plan) -> None:
    """One tensor: its terms, each dim by axis and map, and the maps behind it."""
    text = explain(plan, "encoder.layer.0.attention.self.query.weight")
    assert max(map(len, text.splitlines())) <= 80
    assert "(12, 12) F64, mixed, 4 new rows" in text
    assert "= small: encoder.layer.0.attention.self.query.weight (8, 8) F64" in text
    assert "dim 1: hidden, read: 0–7 from 0–7" in text
    assert "+ noise of step 2, seed 0, 10 dB" in text
    assert "+ noise of step 0, seed 0, std 0.02" in text
    assert "hidden: 8 → 12" in text
    assert "write normed: 0–7 from 0–7" in text


def test_explain_norms_and_zeros(plan: Plan) -> None:
    """Zero tensors and gains say what they are."""
    assert "  = 0" in explain(plan, plan.zeroed[0]).splitlines()
    assert "= ones" in explain(plan, "encoder.layer.0.output.LayerNorm.weight")


def test_explain_refuses_unknown_tensors(plan: Plan) -> None:
    """The nearest name is suggested."""
    with pytest.raises(UsageError, match="the plan writes no such tensor") as caught:
        explain(plan, "pooler.dense.wieght")
    assert caught.value.hint == 'did you mean "pooler.dense.weight"?'


# -- verifications -------------------------------------------------------------------------------


def test_verification_text() -> None:
    """What was measured, what was claimed, and the verdict in the last line."""
    verification = {
        "passed": False,
        "measurement": {
            "kind": "logits",
            "error": 0.5,
            "rms": 0.25,
            "tokens": 8,
            "inputs": "8 tokens",
            "kl": 0.125,
            "top1": 0.75,
        },
        "claim": "exact up to norm eps",
        "reasons": ["two passes"],
        "tolerance": 2e-5,
        "notes": ["compared: the first 3"],
        "failures": ["logits differ by 5.00e-01"],
    }
    assert verification_text(verification).splitlines() == [
        "logits of 8 tokens: largest relative difference 5.00e-01, rms 2.50e-01",
        "KL 1.25e-01 nats, same first choice 75.0%",
        'claim "exact up to norm eps" allows 2.00e-05',
        "  two passes",
        "note: compared: the first 3",
        "failed: logits differ by 5.00e-01",
        "FAILED",
    ]
    passed = {**verification, "passed": True, "failures": []}
    assert verification_text(passed).splitlines()[-1] == "passed"
    nothing = {**passed, "claim": "approximate", "tolerance": None}
    last = "measured: drift 5.00e-01; nothing was claimed"
    assert verification_text(nothing).splitlines()[-1] == last
    assert verification_text({**nothing, "max_drift": 1.0}).splitlines()[-1] == "passed"


def test_no_text_commands_a_terminal() -> None:
    """What begins a command of the terminal is escaped, wherever it stands; lines stay lines."""
    told = table_text({"a\x1b]0;b\x07": "c\x9b2J\nd"})
    assert told == "a\\x1b]0;b\\x07  c\\x9b2J d"
