"""Embedding tables with learned pruning thresholds: PEP, plug-in embedding pruning (arXiv 2101.07577)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..costs import optimizers_of
from ..sparsity.targets import list_tensors
from .twin import Budget


class SoftThreshold(nn.Module):
    """sign(v) · max(|v| − σ(s), 0) with a learned s for every row (equation 3 of the paper, "feature").

    Args:
        rows: of the tensor. initial: s at the start; so low that nothing is pruned at first.
    """

    def __init__(self, rows: int, initial: float) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.full((rows, 1), float(initial)))

    def forward(self, values: Tensor) -> Tensor:
        """What the model computes with, of the shape of ``values``."""
        return torch.sign(values) * torch.relu(self.margin(values))

    def margin(self, values: Tensor) -> Tensor:
        """|v| − σ(s): above 0 where a weight lives."""
        return values.abs() - torch.sigmoid(self.threshold)

    def right_inverse(self, values: Tensor) -> Tensor:
        """The values themselves."""
        return values


class ReachedError(Exception):
    """The search is over: no more weights live than the budgets allow."""


class Search:
    """A dense model whose tables learn what to prune.

    Args:
        model: RecBole's, before its trainer; its tables are changed in place.
        budgets: by group.
        initial: of the thresholds.
    """

    def __init__(self, model: nn.Module, budgets: Sequence[Budget], initial: float) -> None:
        self.budgets, self.is_reached = budgets, False
        self.tables: dict[str, tuple[nn.Module, str]] = {}
        places = {tensor.name: tensor.places[0] for tensor in list_tensors(model)}
        for name in (name for budget in budgets for name in budget.names):
            module, attribute = places[name]
            rows = getattr(module, attribute).shape[0]
            parametrize.register_parametrization(module, attribute, SoftThreshold(rows, initial))
            self.tables[name] = module, attribute

    def attach(self, trainer: Any, learning_rate: float, weight_decay: float) -> None:
        """Give the thresholds settings of their own, and end the training when the budgets are reached."""
        thresholds = [self._soft(name)[0].threshold for name in self.tables]
        own = {id(threshold) for threshold in thresholds}
        for optimizer in optimizers_of(trainer):
            found = [p for group in optimizer.param_groups for p in group["params"] if id(p) in own]
            for group in optimizer.param_groups:
                group["params"] = [p for p in group["params"] if id(p) not in own]
            if found:
                optimizer.add_param_group({"params": found, "lr": learning_rate, "weight_decay": weight_decay})
        train_epoch = trainer._train_epoch

        def epoch(*args: Any, **kwargs: Any) -> Any:
            loss = train_epoch(*args, **kwargs)
            trainer.train_loss_dict[args[1]] = sum(loss) if isinstance(loss, tuple) else loss
            if all(self.live(budget) <= budget.live for budget in self.budgets):
                self.is_reached = True
                raise ReachedError
            return loss

        trainer._train_epoch = epoch

    def _soft(self, name: str) -> tuple[Any, Tensor]:
        module, attribute = self.tables[name]
        chain: Any = getattr(module.parametrizations, attribute)
        return chain[0], chain.original

    @torch.no_grad()
    def margins(self, name: str) -> Tensor:
        """|v| − σ(s) of one table."""
        soft, values = self._soft(name)
        margins: Tensor = soft.margin(values)
        return margins

    def live(self, budget: Budget) -> int:
        """Weights of a group that are above their thresholds."""
        return sum(int((self.margins(name) > 0).sum()) for name in budget.names)

    def topology(self, initial: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict whose largest weights are those of the largest margins.

        Args:
            initial: the state dict of the model as it was, for all other tensors.
        """
        margins = {name: self.margins(name) for name in self.tables}
        least = min(float(margin.min()) for margin in margins.values())
        return {**initial, **{name: margin - least + 1.0 for name, margin in margins.items()}}
