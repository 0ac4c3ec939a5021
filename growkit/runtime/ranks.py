"""The files that one of several independent processes writes, by its rank and the world size.

Rank 1 of 3 takes every third file from the second on. Nobody talks to anybody: the parts of all
ranks are disjoint and together all files. The law: what a launcher left in the environment counts
only when `auto` asks for it, and must then be beyond doubt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from growkit.errors import UsageError

Item = TypeVar("Item")
AUTO = "auto"
_BY_HAND = "give --rank R --world W"


@dataclass(frozen=True, slots=True)
class Rank:
    """One of `world_size` processes, counted from 0, in the words of torch.distributed."""

    rank: int
    world_size: int

    def part_of(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items that are this rank's.

        >>> Rank(1, 3).part_of("abcdefg")
        'be'
        """
        return items[self.rank :: self.world_size]


def read_rank(rank: str | None, world: int | None, environment: Mapping[str, str]) -> Rank | None:
    """What `--rank` and `--world` say; with `--rank auto`, what the launcher says.

    >>> read_rank("1", 4, {"RANK": "3"})
    Rank(rank=1, world_size=4)
    """
    if rank is None:
        if world is not None:
            raise UsageError("--world without --rank", hint=f"{_BY_HAND}, or leave both out")
        return None
    if rank == AUTO:
        if world is not None:
            raise UsageError(
                "--rank auto with --world: the launcher says both", hint="leave --world out"
            )
        return _launched(environment)
    if not (rank.isascii() and rank.isdigit()):
        raise UsageError(f'--rank "{rank}": expected a number or auto', hint=_BY_HAND)
    if world is None:
        raise UsageError("--rank without --world", hint=f"{_BY_HAND}, or --rank auto")
    return _checked("--rank and --world", int(rank), world)


def _launched(environment: Mapping[str, str]) -> Rank:
    """The one rank that the environment speaks of; launchers of a single process do not count."""

    def number(name: str) -> int:
        text = environment.get(name, "")
        if not (text.isascii() and text.isdigit()):
            value = f'is "{text}"' if text else "is not set"
            raise UsageError(f"--rank auto: {name} {value}, expected a number", hint=_BY_HAND)
        return int(text)

    ranks: dict[str, Rank] = {}
    if "RANK" in environment or "WORLD_SIZE" in environment:
        ranks["torchrun"] = _checked("RANK and WORLD_SIZE", number("RANK"), number("WORLD_SIZE"))
    if "SLURM_ARRAY_TASK_ID" in environment:
        task, first, last = (number(f"SLURM_ARRAY_TASK_{n}") for n in ("ID", "MIN", "MAX"))
        count = number("SLURM_ARRAY_TASK_COUNT")
        step, rest = divmod(last - first, max(1, count - 1))
        rank, between = divmod(task - first, max(1, step))
        if rest or between or (count == 1) != (first == last):
            raise UsageError(
                f"--rank auto: the {count} tasks of the Slurm array from {first} to {last} are "
                "not evenly spaced",
                hint=f"write --array=0-{max(0, count - 1)}, or {_BY_HAND[5:]}",
            )
        ranks["the Slurm array"] = _checked("the variables of the Slurm array", rank, count)
    if "SLURM_PROCID" in environment:
        step_tasks = "SLURM_STEP_NUM_TASKS" in environment  # of this srun; the other is the job's
        size = number("SLURM_STEP_NUM_TASKS" if step_tasks else "SLURM_NTASKS")
        agents = environment.get("GROUP_WORLD_SIZE")  # torchrun's own processes, one per node
        if "torchrun" not in ranks or agents != str(size):
            ranks["srun"] = _checked("SLURM_PROCID and its world", number("SLURM_PROCID"), size)
    if not ranks:
        raise UsageError(
            "--rank auto: no variables of torchrun or Slurm in the environment",
            hint=f"start it with torchrun or srun, or {_BY_HAND}",
        )
    several = {launcher: rank for launcher, rank in ranks.items() if rank.world_size > 1}
    if len({*several.values()}) > 1:
        answers = (f"{name} says {r.rank} of {r.world_size}" for name, r in several.items())
        raise UsageError(f"--rank auto: {', '.join(answers)}", hint=_BY_HAND)
    return next(iter((several or ranks).values()))


def _checked(where: str, rank: int, world_size: int) -> Rank:
    if not 0 <= rank < world_size:
        raise UsageError(
            f"{where}: rank {rank} of {world_size}",
            hint=f"ranks count from 0 to {max(0, world_size - 1)}",
        )
    return Rank(rank, world_size)
