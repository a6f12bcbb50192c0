"""Methods that prune what was trained dense: gradual magnitude pruning, and lottery tickets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..costs import optimizers_of
from ..files import written_whole
from ..packed.group import PackedGroup
from ..packed.layout import dense_state_dict, layout_of
from .twin import Budget


def kept_at(step: int, end: int, weights: int, live: int) -> int:
    """How many weights are left after ``step`` of ``end`` steps, between all ``weights`` and ``live``.

    The cubic schedule of Zhu and Gupta (2017, arXiv 1710.01878, equation 1), from density 1 on.
    """
    left = max(0.0, 1 - step / end)
    return live + int((weights - live) * left**3)


class GradualPruning:
    """Masks of a dense model whose smallest weights are set to zero for good, more and more of them.

    Args:
        trainer: RecBole's, before its training.
        budgets: by group; all weights of a group compete.
        ends: of each group the step of its optimizer at which only its budget lives.
        times: how often weights are dropped until then, evenly spaced.
    """

    def __init__(self, trainer: Any, budgets: Sequence[Budget], ends: Sequence[int], times: int) -> None:
        named = dict(trainer.model.named_parameters())
        self.trainer = trainer
        self.groups = [
            PrunedGroup([named[name] for name in budget.names], budget.live, max(1, end), times)
            for budget, end in zip(budgets, ends, strict=True)
        ]
        self.is_settled = False
        for optimizer in optimizers_of(trainer):
            stepped = {id(p) for part in optimizer.param_groups for p in part["params"]}
            for group in self.groups:
                if any(id(p) in stepped for p in group.parameters):
                    optimizer.register_step_post_hook(group.after_step)
        self._validate, trainer._valid_epoch = trainer._valid_epoch, self._valid_epoch

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> Any:
        """Until the budgets are reached every model is the best so far: a denser one must not be kept."""
        score, result = self._validate(*args, **kwargs)
        if not self.is_settled:
            self.trainer.cur_step = 0
            self.trainer.best_valid_score = -float("inf") if self.trainer.valid_metric_bigger else float("inf")
            self.is_settled = all(group.step >= group.end for group in self.groups)
        return score, result


class PrunedGroup:
    """The masks of tensors whose weights compete; ``step``: how often their optimizer has stepped."""

    def __init__(self, parameters: Sequence[nn.Parameter], live: int, end: int, times: int) -> None:
        self.parameters, self.live, self.end = parameters, live, end
        self.interval = max(1, end // times)
        self.masks = [torch.ones_like(p, dtype=torch.bool) for p in parameters]
        self.step = 0

    @torch.no_grad()
    def after_step(self, *_: Any) -> None:
        """Drop weights if it is time to; the others' step leaves the dropped ones zero."""
        self.step += 1
        if self.step <= self.end and (self.step % self.interval == 0 or self.step == self.end):
            self._drop()
        for parameter, mask in zip(self.parameters, self.masks, strict=True):
            parameter.mul_(mask)

    def _drop(self) -> None:
        sizes = [p.numel() for p in self.parameters]
        keep = kept_at(self.step, self.end, sum(sizes), self.live)
        # What is dropped stays dropped: it ranks below everything that lives, a live zero included.
        pairs = zip(self.parameters, self.masks, strict=True)
        score = torch.cat([p.abs().masked_fill(~mask, -1.0).reshape(-1) for p, mask in pairs])
        kept = torch.zeros_like(score, dtype=torch.bool)
        kept[score.topk(keep).indices] = True
        parts = zip(self.parameters, kept.split(sizes), strict=True)
        self.masks = [part.reshape(p.shape) for p, part in parts]


@torch.no_grad()
def rewind(trainer: Any, initial: Mapping[str, Tensor]) -> None:
    """Give a sparse model the dense initial weights at its live positions (tickets of arXiv 1803.03635)."""
    model, groups = trainer.model, trainer.sparse.groups
    for group in groups:
        flat = torch.cat([initial[s.name].reshape(-1) for s in group.slices])
        if isinstance(group, PackedGroup):
            group.weight.copy_(flat[group.live_positions()])
        else:
            masks = group.masks()
            for parameter, part in zip(group.trained_parameters(), group.slices, strict=True):
                parameter.copy_(initial[part.name] * masks[part.name])
        group.clear_caches()
    trained = {id(p) for group in groups for p in group.trained_parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in trained:
            parameter.copy_(initial[name])
    if hasattr(model, "init_graph"):  # KGAT's, without attention before the first epoch has made it
        model.A_in = model.init_graph()


def dense_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a sparse model with dense tensors, dead weights zero."""
    return dict(dense_state_dict(model.state_dict(), layout_of(model)))


def save_dense(state: Mapping[str, Tensor], path: Path, others: Mapping[str, Any] | None = None) -> Path:
    """Write dense tensors as a checkpoint that training starts from.

    ``others``: RecBole's ``other_parameter``, of which modules are left out: their tensors are among the
    ``state``, and no file is read for them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: _plain(value) for name, value in (others or {}).items() if not _has_modules(value)}
    with written_whole(path) as file:
        torch.save({"state_dict": dict(state), "other_parameter": plain, "config": None}, file)
    return path


def _has_modules(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_modules(part) for part in value.values())
    return isinstance(value, nn.Module) or (isinstance(value, list | tuple) and any(map(_has_modules, value)))


def _plain(value: Any) -> Any:
    """Without classes of containers that a file is not read for, as ``defaultdict``."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def with_phases(result: Any, phases: Sequence[tuple[str, Any]]) -> Any:
    """A result of several trainings one after the other: seconds and MACs added, bytes of the largest.

    Args:
        result: a RunResult of the model in the end.
        phases: what each training was, and its RunResult.
    """
    costs = dict(result.costs)
    parts = [part for _, part in phases]
    for key in ("training_seconds", "training_macs"):
        each = [part.costs[key] for part in parts]
        costs[key] = None if None in each else sum(each)
    for key in ("gradient_bytes", "optimizer_bytes", "peak_memory_bytes", "training_state_bytes"):
        costs[key] = max(part.costs[key] for part in parts)
    told = [
        {
            "what": what,
            "epochs": part.epochs_run,
            **{key: part.costs[key] for key in ("training_seconds", "training_macs", "training_state_bytes")},
        }
        for what, part in phases
    ]
    return replace(result, costs=costs, analysis={**result.analysis, "phases": told})
