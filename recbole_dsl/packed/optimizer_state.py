"""Per-weight optimizer state that follows its weight when the topology changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedOptimizerError


@dataclass(frozen=True)
class StateRule:
    """``per_weight``: names of state tensors of the parameter's shape; ``birth``: value at birth,
    a number or the name of the optimizer option that holds it."""

    per_weight: tuple[str, ...]
    birth: float | str = 0.0


STATE_RULES: dict[type[optim.Optimizer], StateRule] = {
    optim.Adam: StateRule(("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    optim.AdamW: StateRule(("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
    optim.SGD: StateRule(("momentum_buffer",)),
    optim.Adagrad: StateRule(("sum",), birth="initial_accumulator_value"),
    optim.RMSprop: StateRule(("square_avg", "momentum_buffer", "grad_avg")),
}


def check_optimizer(optimizer: optim.Optimizer) -> None:
    """Accept the optimizers of :data:`STATE_RULES` only, not their subclasses.

    Raises:
        UnsupportedOptimizerError: any other optimizer, whose state might silently stay behind.
    """
    if type(optimizer) not in STATE_RULES:
        known = ", ".join(sorted(kind.__name__ for kind in STATE_RULES))
        raise UnsupportedOptimizerError(
            f"optimizer {type(optimizer).__name__} keeps per-weight state this package does not "
            f"know how to move with the weights; allowed are {known}."
        )


def move_state(
    optimizer: optim.Optimizer, parameter: nn.Parameter, follow: Callable[[Tensor, float], None]
) -> None:
    """Call ``follow(state, birth)`` on every per-weight state tensor of ``parameter``.

    Raises:
        UnsupportedOptimizerError: there is a state tensor of the parameter's shape that the rule
            of this optimizer does not name.
    """
    check_optimizer(optimizer)
    rule = STATE_RULES[type(optimizer)]
    options = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    birth = options[rule.birth] if isinstance(rule.birth, str) else rule.birth
    for name, state in optimizer.state.get(parameter, {}).items():
        if not isinstance(state, torch.Tensor) or state.dim() == 0:
            continue
        if name in rule.per_weight:
            follow(state, birth)
        elif state.shape == parameter.shape and state.numel() > 1:
            raise UnsupportedOptimizerError(
                f"{type(optimizer).__name__} state {name!r} has the shape of the weights, but this "
                f"package does not know how to move it; known are {', '.join(rule.per_weight)}."
            )


class LoadFollower:
    """Lets per-weight state follow its positions when a group loads another topology.

    It moves before the next step, unless the optimizer has loaded a state, too: that is of the topology that
    was or will be loaded.
    """

    def __init__(self) -> None:
        self.has_optimizer = False
        self._waits = False  # until the next step not, after a state was loaded that is of another topology
        self._replaced: Any = None

    def follow(
        self, optimizer: optim.Optimizer, move: Callable[[optim.Optimizer, Any], None]
    ) -> list[RemovableHandle]:
        """Hooks of ``optimizer``, which call ``move`` with it and the topology of its last step."""

        def before_step(optimizer: optim.Optimizer, *_: Any) -> None:
            replaced, self._replaced = self._replaced, None
            if replaced is not None:
                move(optimizer, replaced)

        def state_is_loaded(_: optim.Optimizer) -> None:
            self._waits, self._replaced = False, None

        self.has_optimizer, self._waits, self._replaced = True, True, None
        return [
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_load_state_dict_post_hook(state_is_loaded),
        ]

    def stop(self) -> None:
        """The hooks have been removed."""
        self.has_optimizer, self._waits, self._replaced = False, False, None

    def after_step(self) -> None:
        """The state is of the topology as it is now."""
        self._waits = self.has_optimizer

    def before_load(self, topology: Callable[[], Any]) -> None:
        """Another topology is about to be loaded; ``topology``: makes a copy of the one there is."""
        if self._waits and self._replaced is None:
            self._replaced = topology()
