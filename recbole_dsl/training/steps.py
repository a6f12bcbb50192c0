"""RecBole's pass over the training batches, step by step: it can be stopped, saved and taken up anywhere.

The same computations in the same order as ``Trainer._train_epoch`` (trainer.py:178). RecBole's trainers
with epochs of several passes, and one's own, call it through ``super()``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from recbole import trainer as trainers
from recbole.data.interaction import Interaction
from recbole.trainer import trainer as trainer_module
from recbole.utils import get_gpu_usage, set_color
from torch.nn.utils import clip_grad_norm_

from ..errors import DataError, NumberError
from .keeper import Keeper
from .ranks import RankedTrainer

Total = float | tuple[float, ...]
"""The sum of a pass's losses, or of each part of them."""


class StepwiseTrainer(trainers.Trainer):
    """RecBole's ``Trainer`` with a keeper, which is told of every step."""

    keeper: Keeper
    _unseen: tuple[torch.Tensor, str] | None = None
    """The largest entry of the last step's gradients on a GPU, and the place of that step."""

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[[Any], Any] | None = None,
        show_progress: bool = False,
    ) -> Any:
        """One pass; returns the sum of the losses, None if there is no batch."""
        finished, total = self.keeper.begin_pass(epoch_idx)
        if finished:
            return total
        self.model.train()
        loss_func = loss_func or self.model.calculate_loss
        if not self.config["single_spec"] and train_data.shuffle:
            train_data.sampler.set_epoch(epoch_idx)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.enable_scaler)
        with self._batches(train_data, epoch_idx, scaler, show_progress) as batches:
            for batch in batches:
                losses = self._step(batch.to(self.device), loss_func, scaler)
                total = losses if total is None else _added(total, losses)
                if self.gpu_available and show_progress:
                    batches.set_postfix_str(set_color("GPU RAM: " + get_gpu_usage(self.device), "yellow"))
                self.keeper.after_step(total, scaler)
        self._look_at_gradients()
        self.keeper.end_pass(total)
        return total

    @contextmanager
    def _batches(
        self, train_data: Any, epoch: int, scaler: torch.amp.GradScaler, show_progress: bool
    ) -> Iterator[Any]:
        """The batches of a pass from the step on at which it is taken up, with a bar if asked for."""
        skipped = self.keeper.steps_to_skip
        with _unbuilt(train_data, skipped) as rest:
            if skipped:
                self.keeper.restore_inside_pass(scaler)
            bar = dict(
                total=len(train_data), initial=skipped, ncols=100, desc=set_color(f"Train {epoch:>5}", "pink")
            )
            yield trainer_module.tqdm(rest, **bar) if show_progress else rest

    def _step(self, batch: Any, loss_func: Callable[[Any], Any], scaler: torch.amp.GradScaler) -> Total:
        """One optimizer step; returns the loss, or its parts."""
        self.optimizer.zero_grad()
        sync_loss = 0
        if not self.config["single_spec"]:
            self.set_reduce_hook()
            sync_loss = self.sync_grad_loss()
        autocast = torch.autocast(device_type=self.device.type, enabled=self.enable_amp)
        with autocast, self._field_errors(batch):
            losses = loss_func(batch)
        parts = losses if isinstance(losses, tuple) else (losses,)
        loss: Any = sum(parts) if isinstance(losses, tuple) else losses
        told = tuple(part.item() for part in parts)
        self.sparse.explorer.loss_scale = scaler.get_scale() if scaler.is_enabled() else None
        self._look_at_gradients()
        if not math.isfinite(sum(told)) and self.config["single_spec"]:  # else all see the gradient
            self._refuse_numbers("loss", loss.item())
        scaler.scale(loss + sync_loss).backward()
        if self.clip_grad_norm:
            scaler.unscale_(self.optimizer)
            clip_grad_norm_(self.model.parameters(), **self.clip_grad_norm)
        if not scaler.is_enabled():  # a scaler leaves out steps whose gradients are too large for it
            self._check_gradients()
        scaler.step(self.optimizer)
        scaler.update()
        return told if isinstance(losses, tuple) else told[0]

    @contextmanager
    def _field_errors(self, batch: Interaction) -> Iterator[None]:
        """Which fields a model reads shows at its first batch only, before any weight has changed."""
        try:
            yield
        except KeyError as error:
            if not _is_of(Interaction.__getitem__, error):
                raise
            raise DataError(
                f"model={self.config['model']!r} reads {error.args[0]!r} of a training batch, which has "
                f"{', '.join(batch.columns)} only; allowed are settings that give it: train_neg_sample_args "
                "draws negative items or labels, load_col names the columns of the data."
            ) from error

    def _check_gradients(self) -> None:
        """Refuse a gradient that would spoil the weights."""
        gradients = [
            p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if not gradients:
            return
        if self.device.type == "cuda":  # which would wait here, and not build the next batch meanwhile
            self._unseen = _largest(gradients), self.keeper.place
            return
        if math.isfinite(sum(g.sum() for g in gradients)):
            return
        for gradient in gradients:  # a sum of finite numbers may be too large for its type
            if not bool(torch.isfinite(gradient).all()):
                self._refuse_numbers("gradient", float(gradient[~torch.isfinite(gradient)].flatten()[0]))

    def _look_at_gradients(self) -> None:
        """Refuse the last step's gradient on a GPU: spoilt weights are there, but not yet saved."""
        unseen, self._unseen = self._unseen, None
        if unseen is not None and not math.isfinite(value := float(unseen[0])):
            self._refuse_numbers("gradient", value, unseen[1])

    def _refuse_numbers(self, what: str, value: float, place: str | None = None) -> None:
        raise NumberError(
            f"The {what} is {value} at {place or self.keeper.place}; {self.keeper.last_good}. "
            "Allowed are finite numbers: a lower learning_rate, clip_grad_norm, or data without NaN may help."
        )


def _largest(gradients: list[torch.Tensor]) -> torch.Tensor:
    """The largest magnitude, NaN if there is one."""
    if len(gradients) == 1:
        return torch.linalg.vector_norm(gradients[0], math.inf)
    return torch.nn.utils.get_total_norm(gradients, math.inf)


def _is_of(function: Any, error: BaseException) -> bool:
    """Whether a function itself has raised an error, not one that it called or that called it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and last.tb_frame.f_code is function.__code__


def _added(total: Total, losses: Total) -> Total:
    if isinstance(total, tuple) and isinstance(losses, tuple):
        return tuple(a + b for a, b in zip(total, losses, strict=True))
    return total + losses  # type: ignore[operator]


@contextmanager
def _unbuilt(loader: Any, count: int) -> Iterator[Any]:
    """The batches of a loader after the first ``count``, which are drawn but not built.

    Processes of the loader's own (``worker``) do not learn when to begin, so they build those, too.
    """
    if count == 0:
        yield loader
        return
    parts = [getattr(loader, name, None) for name in ("general_dataloader", "kg_dataloader")]
    owners = [part for part in (loader, *parts) if isinstance(part, torch.utils.data.DataLoader)]
    builders = [(owner, owner.collate_fn) for owner in owners if owner.num_workers == 0]
    skips = True
    for owner, build in builders:
        owner.collate_fn = lambda index, build=build: Interaction({}) if skips else build(index)
    try:
        batches = iter(loader)
        for _ in range(count):
            next(batches)
        skips = False
        yield _going_on(batches)
    finally:
        for owner, build in builders:
            owner.collate_fn = build


def _going_on(batches: Iterator[Any]) -> Iterator[Any]:
    """The same: RecBole's loader of interactions and triples would begin anew when asked for an iterator."""
    while (batch := next(batches, None)) is not None:
        yield batch


class NCLPass:
    """RecBole's NCL: the last part of the loss counts after some epochs only (trainer.py:1443)."""

    config: Any
    model: Any

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[[Any], Any] | None = None,
        show_progress: bool = False,
    ) -> Any:
        loss_func = loss_func or self.model.calculate_loss

        def parts(batch: Any) -> Any:
            losses = loss_func(batch)
            warms_up = isinstance(losses, tuple) and epoch_idx < self.config["warm_up_step"]
            return losses[:-1] if warms_up else losses

        return StepwiseTrainer._train_epoch(self, train_data, epoch_idx, parts, show_progress)  # type: ignore[arg-type]


def stepwise(base: type) -> tuple[type, ...]:
    """The classes with which a trainer class makes its passes step by step, in the order to derive from."""
    if base is trainers.Trainer:
        return (StepwiseTrainer, RankedTrainer)
    if issubclass(base, trainers.NCLTrainer):
        return (NCLPass, base, StepwiseTrainer, RankedTrainer)
    return (base, StepwiseTrainer, RankedTrainer)
