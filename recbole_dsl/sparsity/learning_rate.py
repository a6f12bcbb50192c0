"""Learning rates of sparse matrices, in proportion to a power of their density."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Final

from torch import nn, optim

from ..errors import DSLError

SCALED: Final = "dsl_rate_scale"
"""In an optimizer's parameter group: by what its learning rate was multiplied."""


def rate_scale(kinds: Sequence[str], density: float, power: float) -> float:
    """``density`` to the power of -``power`` for matrices of ``nn.Linear``, 1 for all else.

    Adam moves every weight by about the learning rate, so an output with a twentieth of its inputs moves by
    a twentieth; times 1 / density it moves as a dense one does (Dey et al., Sparse maximal update
    parameterization, NeurIPS 2024, table 1, together with ``fan_in`` values).

    Args:
        kinds: of the group's tensors; a group that holds others as well keeps its rate.
        density: of the group, in (0, 1].
        power: in [0, 1].
    """
    return density**-power if all(kind == "linear" for kind in kinds) else 1.0


def scale_learning_rate(optimizer: optim.Optimizer, parameters: Sequence[nn.Parameter], scale: float) -> None:
    """Give ``parameters`` groups of their own, of ``scale`` times the learning rate of their present groups.

    Before the first step. A scale that they had before is replaced, so an optimizer may be given twice.

    Raises:
        DSLError: a learning-rate scheduler holds the optimizer's parameter groups already.
    """
    mine = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        change = scale / group.get(SCALED, 1.0)
        if change == 1.0 or not any(id(p) in mine for p in group["params"]):
            continue
        if "initial_lr" in group:
            raise DSLError(
                "a learning-rate scheduler was made before the optimizer was attached, so it does not know the "
                "learning rates of sparse matrices (dsl_learning_rate_power): allowed is to attach first."
            )
        own = {**group, **_part(group, mine, True), "lr": group["lr"] * change, SCALED: scale}
        group.update(_part(group, mine, False))
        if not group["params"]:
            optimizer.param_groups[:] = [g for g in optimizer.param_groups if g is not group]
        optimizer.add_param_group(own)


def _part(group: dict[str, Any], ids: set[int], inside: bool) -> dict[str, Any]:
    """Parameters of a group that are, or are not, among ``ids``, with their names where it has any."""
    keep = [(id(p) in ids) is inside for p in group["params"]]
    lists = [name for name in ("params", "param_names") if name in group]
    return {name: list(itertools.compress(group[name], keep)) for name in lists}
