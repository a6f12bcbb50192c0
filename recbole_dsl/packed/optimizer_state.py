"""Per-weight optimizer state that follows its weight when the topology changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn, optim
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedOptimizerError


@dataclass(frozen=True)
class StateRule:
    """``per_weight``: names of state tensors of the parameter's shape; ``birth``: value at birth,
    a number or the name of the optimizer option that holds it; ``moments``: those of ``per_weight`` whose
    root steps are divided by."""

    per_weight: tuple[str, ...]
    birth: float | str = 0.0
    moments: tuple[str, ...] = ()


_ADAM = StateRule(("exp_avg", "exp_avg_sq", "max_exp_avg_sq"), moments=("exp_avg_sq", "max_exp_avg_sq"))

STATE_RULES: dict[type[optim.Optimizer], StateRule] = {
    optim.Adam: _ADAM,
    optim.AdamW: _ADAM,
    optim.SGD: StateRule(("momentum_buffer",)),
    optim.Adagrad: StateRule(("sum",), birth="initial_accumulator_value", moments=("sum",)),
    optim.RMSprop: StateRule(("square_avg", "momentum_buffer", "grad_avg"), moments=("square_avg",)),
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


def second_moments(optimizer: optim.Optimizer, parameter: nn.Parameter) -> dict[str, Tensor]:
    """State tensors of ``parameter`` whose root its steps are divided by, by name; none of SGD."""
    state = optimizer.state.get(parameter, {})
    return {name: state[name] for name in STATE_RULES[type(optimizer)].moments if name in state}


class LoadFollower:
    """Lets per-weight state follow its positions when a group loads another topology.

    It moves before the next step if it is still the state of the last one. A state that was loaded, whose
    tensors are others, is of the topology that was or will be loaded, too.
    """

    def __init__(self) -> None:
        self.has_optimizer = False
        self._optimizer: weakref.ref[optim.Optimizer] | None = None
        self._hooks: list[RemovableHandle] = []
        self._stepped: weakref.ref[Tensor] | None = None  # one of the tensors of the last step's state
        self._replaced: Any = None  # the topology of that step, once another one was loaded

    def follow(
        self,
        optimizer: optim.Optimizer,
        parameters: Callable[[], Sequence[nn.Parameter]],
        move: Callable[[optim.Optimizer, Any], None],
    ) -> None:
        """Call ``move`` with the optimizer and the topology of its last step, where that is another one now."""
        self.has_optimizer = True
        if self._optimizer is not None and self._optimizer() is optimizer:
            return

        def before_step(optimizer: optim.Optimizer, *_: Any) -> None:
            replaced, self._replaced = self._replaced, None
            if replaced is not None and self._is_of_last_step(parameters()):
                move(optimizer, replaced)

        def after_step(optimizer: optim.Optimizer, *_: Any) -> None:
            state = self._state(parameters())
            self._stepped = None if state is None else weakref.ref(state)

        while self._hooks:
            self._hooks.pop().remove()
        self._optimizer, self._stepped, self._replaced = weakref.ref(optimizer), None, None
        self._hooks = [
            optimizer.register_step_pre_hook(before_step),
            optimizer.register_step_post_hook(after_step),
        ]

    def stop(self) -> None:
        """Nobody tells of steps any more; the optimizer may make some, which its state follows as before."""
        self.has_optimizer = False

    def before_load(self, parameters: Sequence[nn.Parameter], topology: Callable[[], Any]) -> None:
        """Another topology is about to be loaded; ``topology``: makes a copy of the one there is."""
        if self._replaced is None and self._is_of_last_step(parameters):
            self._replaced = topology()

    def _is_of_last_step(self, parameters: Sequence[nn.Parameter]) -> bool:
        state = self._state(parameters)
        return state is not None and self._stepped is not None and self._stepped() is state

    def _state(self, parameters: Sequence[nn.Parameter]) -> Tensor | None:
        """The first per-weight tensor that the optimizer keeps of the parameters."""
        optimizer = self._optimizer() if self._optimizer is not None else None
        if optimizer is None:
            return None
        states = ((p, state) for p in parameters for state in optimizer.state.get(p, {}).values())
        return next((s for p, s in states if isinstance(s, Tensor) and s.shape == p.shape), None)
