"""Checkpoints of sparse training: packed tensors and plain values, loadable without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..files import written_whole
from ..packed.layout import layout_of
from .adaptations import clear_model_caches, other_state

PLAIN = (bool, int, float, str, type(None))


def plain(value: Any) -> Any:
    """``value`` made of dicts, lists, numbers, strings and None only; anything else as its text."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if type(value) in PLAIN:
        return value
    item = getattr(value, "item", None)  # numpy scalars
    if item is not None and getattr(value, "ndim", 1) == 0:
        return plain(item())
    return str(value)


def plain_or_tensor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's other parameters that can be stored without pickling an object.

    Whole submodules among them are left out: the state dict holds their weights already.
    """
    return {key: _plain_containers(value) for key, value in values.items() if _storable(value)}


def _storable(value: Any) -> bool:
    """Whether a value is a tensor, a plain value, or made of such."""
    if isinstance(value, Mapping):
        return all(_storable(k) and _storable(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(_storable, value))
    return isinstance(value, (torch.Tensor, *PLAIN)) and not isinstance(value, nn.Parameter)


def _plain_containers(value: Any) -> Any:
    """The same with plain dicts in place of ``defaultdict`` and the like."""
    if isinstance(value, Mapping):
        return {key: _plain_containers(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_plain_containers, value))
    return value


def checkpoint_state(trainer: Any, epoch: int) -> dict[str, Any]:
    """What a checkpoint of a sparse trainer after ``epoch`` holds.

    ``layout`` says which entries of ``state_dict`` belong to sparse groups, so that the dense tensors
    can be had without the model.
    """
    model = trainer.model
    clear_model_caches(model)
    return {
        "format": "recbole_dsl",
        "schema": 1,
        "config": plain(trainer.config.final_config_dict),
        "epoch": epoch,
        "cur_step": trainer.cur_step,
        "best_valid_score": float(trainer.best_valid_score),
        "state_dict": model.state_dict(),
        "layout": layout_of(model),
        "other_parameter": plain_or_tensor(other_state(model)),
        "optimizer": trainer.optimizer.state_dict(),
    }


def write_checkpoint(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` whole or not at all: a broken write leaves the old file."""
    with written_whole(path) as file:
        torch.save(state, file)
