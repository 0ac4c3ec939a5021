"""Closure: what a plan writes is a whole model of its own new config, no tensor more or less.

The law: the plan reads its own result back through the family, from the names and shapes of its
formulas and the new config alone, as the next command will. What cannot be read so is not planned.
"""

from __future__ import annotations

from collections.abc import Iterable

from growkit.checkpoints.types import TensorInfo
from growkit.errors import CheckpointError, FamilyError, RecipeError
from growkit.families.model import Entry, check_whole
from growkit.planning.formula import Formula
from growkit.planning.state import State


def check_closure(state: State, formulas: Iterable[Formula]) -> None:
    """Refuse, by RecipeError, a result that is not a whole model of its config.

    `formulas` are those of the state's parts, in their order.
    """
    kinds: dict[str, Entry] = {}
    numbers: dict[str, set[tuple[int, ...]]] = {}
    for (key, part), formula in zip(state.parts.items(), formulas, strict=True):
        name = part.pattern.name
        if name not in numbers:
            info = TensorInfo(formula.name, formula.dtype, formula.shape, "", 0, 0)
            kinds[key] = Entry(info, part.pattern, part.numbers)
        numbers.setdefault(name, set()).add(part.numbers)
    try:
        check_whole(state.model, state.config, kinds, numbers)
    except (CheckpointError, FamilyError) as error:
        raise RecipeError(
            f"the new config.json would not describe the result: {error.message}",
            hint="take other layers or sizes, which it can say",
        ) from error
