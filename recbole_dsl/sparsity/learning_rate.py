"""Learning rates of sparse matrices, in proportion to a power of their density."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import nn, optim

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
    """Move ``parameters`` into parameter groups of ``scale`` times the learning rate of their present ones.

    Before the first step. Parameters that were moved before stay as they are, so an optimizer may be given
    twice. Learning-rate schedulers have to be made afterwards, as they keep the rates that they saw.
    """
    mine = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        moved = [p for p in group["params"] if id(p) in mine]
        if not moved or scale == 1.0 or SCALED in group:
            continue
        group["params"] = [p for p in group["params"] if id(p) not in mine]
        if not group["params"]:
            optimizer.param_groups[:] = [g for g in optimizer.param_groups if g is not group]
        optimizer.add_param_group({**group, "params": moved, "lr": group["lr"] * scale, SCALED: scale})
