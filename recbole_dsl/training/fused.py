"""Fused optimizers: one kernel per step instead of a dozen passes over every tensor."""

from __future__ import annotations

import torch
from torch import optim

FUSED = (optim.Adam, optim.AdamW, optim.SGD, optim.Adagrad)
DEVICES = {"cpu", "cuda"}


def fused_twin(optimizer: optim.Optimizer) -> optim.Optimizer:
    """The same optimizer with torch's fused kernel, or ``optimizer`` itself where there is none.

    Must be called before the first step. The results differ by rounding only.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    suited = all(p.device.type in DEVICES and torch.is_floating_point(p) for p in parameters)
    if type(optimizer) not in FUSED or not suited or optimizer.state:
        return optimizer
    groups = [{**group, "fused": True, "foreach": None} for group in optimizer.param_groups]
    try:
        return type(optimizer)(groups, **{**optimizer.defaults, "fused": True, "foreach": None})
    except (TypeError, RuntimeError):  # this torch has no fused kernel for this device
        return optimizer
