"""Shares: every file belongs to one rank, and a launcher is only believed beyond doubt."""

from __future__ import annotations

import pytest

from growkit.errors import UsageError
from growkit.runtime.ranks import Rank, read_rank

ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_MAX")
ARRAY += ("SLURM_ARRAY_TASK_COUNT",)


def array(*numbers: int) -> dict[str, str]:
    """The variables of a task of a Slurm array: its id, the first, the last, how many."""
    return dict(zip(ARRAY, map(str, numbers), strict=True))


def torchrun(rank: object, world: object, nodes: object = 1) -> dict[str, str]:
    """The variables of a process of torchrun."""
    return {"RANK": str(rank), "WORLD_SIZE": str(world), "GROUP_WORLD_SIZE": str(nodes)}


def srun(rank: object, world: object) -> dict[str, str]:
    """The variables of a task of srun."""
    return {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world)}


@pytest.mark.parametrize("world", [1, 2, 5, 9])
def test_shares_are_a_partition(world: int) -> None:
    """Disjoint, all files together, and none more than one file larger than another."""
    files = [*"abcdefg"]
    shares = [Rank(rank, world).part_of(files) for rank in range(world)]
    assert sorted(name for share in shares for name in share) == files
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("environment", [{}, torchrun(3, 8), array(1, 0, 3, 4)])
def test_by_hand(environment: dict[str, str]) -> None:
    """What the command says counts; the environment is not even looked at."""
    assert read_rank(None, None, environment) is None
    assert read_rank("2", 3, environment) == Rank(2, 3)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        (torchrun(3, 8), (3, 8)),
        (torchrun(0, 1), (0, 1)),
        (srun(3, 8), (3, 8)),
        (srun(3, 16) | {"SLURM_STEP_NUM_TASKS": "8"}, (3, 8)),
        (array(0, 0, 3, 4), (0, 4)),
        (array(7, 5, 9, 5), (2, 5)),
        (array(6, 2, 10, 3), (1, 3)),
        (array(4, 4, 4, 1), (0, 1)),
        (array(2, 0, 3, 4) | srun(0, 1), (2, 4)),
        (torchrun(5, 8) | srun(0, 1), (5, 8)),
        (torchrun(5, 8) | srun(5, 8), (5, 8)),
        (torchrun(5, 8, nodes=2) | srun(0, 2), (5, 8)),
        (torchrun(0, 1) | srun(0, 1), (0, 1)),
    ],
)
def test_auto(environment: dict[str, str], share: tuple[int, int]) -> None:
    """torchrun, srun and arrays, alone and inside each other where one of them has one task."""
    assert read_rank("auto", None, environment) == Rank(*share)


@pytest.mark.parametrize(
    ("rank", "world", "environment", "match"),
    [
        (None, 4, {}, "--world without --rank"),
        ("1", None, torchrun(1, 2), "--rank without --world"),
        ("one", 4, {}, '--rank "one": expected a number or auto'),
        ("-1", 4, {}, '--rank "-1": expected a number'),
        ("²", 4, {}, "expected a number"),
        ("4", 4, {}, "--rank and --world: rank 4 of 4"),
        ("auto", 4, torchrun(1, 4), "--rank auto with --world"),
        ("auto", None, {}, "no variables of torchrun or Slurm"),
        ("auto", None, {"SLURM_JOB_ID": "7"}, "no variables of torchrun or Slurm"),
        ("auto", None, {"RANK": "0"}, "--rank auto: WORLD_SIZE is not set"),
        ("auto", None, {"WORLD_SIZE": "2"}, "--rank auto: RANK is not set"),
        ("auto", None, torchrun("x", 2), '--rank auto: RANK is "x", expected a number'),
        ("auto", None, torchrun(2, 2), "RANK and WORLD_SIZE: rank 2 of 2"),
        ("auto", None, {"SLURM_PROCID": "0"}, "SLURM_NTASKS is not set"),
        ("auto", None, srun(4, 4), "SLURM_PROCID and its world: rank 4 of 4"),
        ("auto", None, {"SLURM_ARRAY_TASK_ID": "0"}, "SLURM_ARRAY_TASK_MIN is not set"),
        ("auto", None, array(3, 0, 3, 3), "the 3 tasks of the Slurm array from 0 to 3 are not ev"),
        ("auto", None, array(1, 0, 4, 3), "not evenly spaced"),
        ("auto", None, array(1, 1, 3, 1), "not evenly spaced"),
        ("auto", None, array(9, 0, 3, 4), "the variables of the Slurm array: rank 9 of 4"),
        ("auto", None, torchrun(1, 4) | srun(1, 8), "torchrun says 1 of 4, srun says 1 of 8"),
        ("auto", None, array(1, 0, 3, 4) | srun(1, 2), "the Slurm array says 1 of 4, srun says 1"),
    ],
)
def test_doubt_is_refused(
    rank: str | None, world: int | None, environment: dict[str, str], match: str
) -> None:
    """What is absent, wrong or contradictory, with what to do instead."""
    with pytest.raises(UsageError, match=match) as caught:
        read_rank(rank, world, environment)
    assert caught.value.hint
