"""Fused optimizers: one kernel per step instead of a dozen passes over every tensor."""

from __future__ import annotations

import inspect

import torch
from torch import nn, optim

FUSED = (optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad)
DEVICES = {"cpu", "cuda"}


def fused_twin(optimizer: optim.Optimizer, model: nn.Module) -> optim.Optimizer:
    """The same optimizer with torch's fused kernel, or ``optimizer`` itself where there is none.

    Must be called before the first step. The results differ by rounding only. ``model``: whose weights they
    are; fused kernels take none of the sparse gradients that it may ask for (``nn.Embedding(sparse=True)``).
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    suited = all(p.device.type in DEVICES and torch.is_floating_point(p) for p in parameters)
    if type(optimizer) not in FUSED or not suited or _has_stepped(optimizer) or _has_sparse_gradients(model):
        return optimizer
    fused = {"fused": True, "foreach": None}
    groups = [{**group, **fused} for group in optimizer.param_groups]
    known = inspect.signature(type(optimizer)).parameters  # AdamW's defaults hold more
    defaults = {name: value for name, value in optimizer.defaults.items() if name in known}
    try:
        return type(optimizer)(groups, **{**defaults, **fused})
    except (TypeError, RuntimeError):  # this torch has no fused kernel for this device
        return optimizer


def _has_stepped(optimizer: optim.Optimizer) -> bool:
    """Whether there is state of a step; Adagrad has some before its first."""
    return any(float(state.get("step", 1)) > 0 for state in optimizer.state.values())


def _has_sparse_gradients(model: nn.Module) -> bool:
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    return any(table.sparse for table in tables)
