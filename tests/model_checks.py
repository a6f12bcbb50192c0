"""What has to hold for every model: at density 1 it is RecBole's, below it keeps its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.utils import init_seed

from recbole_dsl.packed.layers import SLOTS
from recbole_dsl.packed.masked import MaskedGroup
from recbole_dsl.training.adaptations import clear_model_caches
from tests.model_runs import (
    Run,
    dense_run,
    difference_of_losses,
    difference_of_weights,
    settings_of,
    sparse_run,
    sparse_trainer_of,
)

LARGEST_DIFFERENCE_OF_LOSSES = 1e-3
LARGEST_DIFFERENCE_OF_WEIGHTS = 0.1
"""Rounding turns the sign of gradients that are zero but for rounding, and Adam makes whole steps of them."""


def check_density_one(name: str, folder: Path, **settings: Any) -> dict[str, Any]:
    """Train dense by RecBole and packed at density 1: the losses of all steps and the weights agree."""
    settings = {**settings_of(name, folder), **settings}
    theirs = dense_run(name, settings)
    ours = sparse_run(name, settings, method="dsl", density=1.0)
    handle = ours.trainer.sparse
    assert handle.live == handle.dense_weights > 0 and handle.explorer.updates == 0
    assert {group.storage for group in handle.groups} == {"packed"}
    assert len(theirs.losses) > 5 and theirs.losses[0] != theirs.losses[-1]
    losses, weights = difference_of_losses(ours.losses, theirs.losses), difference_of_weights(ours, theirs)
    assert losses < LARGEST_DIFFERENCE_OF_LOSSES and weights < LARGEST_DIFFERENCE_OF_WEIGHTS, (losses, weights)
    # Metrics are rounded; few users, so one that is ranked otherwise moves them.
    assert ours.valid == pytest.approx(theirs.valid, abs=0.02)
    return {"trainer": type(theirs.trainer).__name__, "steps": len(ours.losses), "difference_of_losses": losses}


def check_sparse(name: str, folder: Path, **dsl: Any) -> dict[str, Any]:
    """Train at density 0.2 with updates: budgets, zeros, evaluation, and the metrics after a reload."""
    settings = {**settings_of(name, folder), "epochs": 2}
    chosen = {"method": "dsl", "density": 0.2, "grow": "accumulated_gradient", "update_interval": 3, **dsl}
    run = sparse_run(name, settings, **chosen)
    handle = run.trainer.sparse
    assert all(progress.updates >= 2 for progress in handle.explorer.progress)
    assert handle.live == handle.budget < handle.dense_weights and not handle.inherited
    for group in handle.groups:
        assert sum(group.live_per_tensor()) == group.budget == group.live_positions().unique().numel()
        if group.storage == "packed":
            assert group.weight.numel() == group.column_ids.numel() == group.budget
    _dead_weights_are_zero_in_evaluation(run)
    _checkpoint_gives_the_same_metrics(name, settings, chosen, run, folder)
    return {
        "updates": min(progress.updates for progress in handle.explorer.progress),
        "storage": sorted({group.storage for group in handle.groups}),
    }


def _dead_weights_are_zero_in_evaluation(run: Run) -> None:
    """Look at the weights while RecBole scores the validation data, through every module that has them."""
    trainer, seen = run.trainer, []
    model = trainer.model
    groups = [*trainer.sparse.groups, *trainer.sparse.copies]
    score = "full_sort_predict" if hasattr(type(model), "full_sort_predict") else "predict"
    plain = {name: getattr(model, name) for name in {score, "predict"}}

    def looking(method: str) -> Any:
        def predict(interaction: Any) -> Any:
            assert not model.training and not torch.is_grad_enabled()
            seen.append(_dead_values(model, groups))
            return plain[method](interaction)

        return predict

    for name in plain:
        setattr(model, name, looking(name))
    result = trainer.evaluate(run.data[2], load_best_model=False, show_progress=False)
    for name in plain:
        delattr(model, name)
    assert result and all(value == value for value in result.values()), result
    assert seen and not any(seen)


def _dead_values(model: torch.nn.Module, groups: list[Any]) -> int:
    """Dead positions that hold anything but zero, in all tensors of ``groups``."""
    found, checked = 0, set()

    def check(group: Any, number: int, dense: torch.Tensor) -> None:
        nonlocal found
        s = group.slices[number]
        found += int(torch.count_nonzero(dense[~group.masks()[s.name]]))
        checked.add((id(group), number))

    for module in model.modules():
        for attribute, (group, number) in module.__dict__.get(SLOTS, {}).items():
            check(group, number, getattr(module, attribute))
    for group in groups:
        if isinstance(group, MaskedGroup):
            for number, parameter in enumerate(group.trained_parameters()):
                check(group, number, parameter)
    assert checked == {(id(group), number) for group in groups for number in range(len(group.slices))}
    return found


def _checkpoint_gives_the_same_metrics(
    name: str, settings: dict[str, Any], chosen: dict[str, Any], run: Run, folder: Path
) -> None:
    """Save, build the model anew from other random numbers and with another topology, load, evaluate."""
    trainer, path = run.trainer, folder / f"{name}.dsl"
    before = _metrics(run.trainer, run.data[2])
    trainer._save_checkpoint(1, saved_model_file=str(path))
    fresh, data = sparse_trainer_of(name, settings, model_seed=77, **chosen, seed=1)
    after = _metrics(fresh, data[2], model_file=str(path))
    assert after == before
    path.unlink()


def _metrics(trainer: Any, data: Any, model_file: str | None = None) -> dict[str, float]:
    """Test metrics with generators in a known state, as some evaluations sample."""
    init_seed(3, True)
    clear_model_caches(trainer.model)
    result = trainer.evaluate(
        data, load_best_model=model_file is not None, model_file=model_file, show_progress=False
    )
    return dict(result)
