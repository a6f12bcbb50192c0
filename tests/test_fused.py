"""Optimizers are built anew with torch's fused kernels, and train as they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn, optim

from recbole_dsl.training.fused import fused_twin

OPTIMIZERS: dict[str, Callable[[nn.Module], optim.Optimizer]] = {
    "adam": lambda m: optim.Adam(m.parameters(), lr=0.1, weight_decay=0.1, amsgrad=True),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.1, weight_decay=0.1),
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adagrad": lambda m: optim.Adagrad(m.parameters(), lr=0.1, initial_accumulator_value=0.25),
}


def trained(model: nn.Module, optimizer: optim.Optimizer, steps: int = 5) -> torch.Tensor:
    """The weights after some steps."""
    for step in range(steps):
        optimizer.zero_grad()
        (model(torch.linspace(-1, step, 4)) - 1).square().sum().backward()
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def layer() -> nn.Module:
    """The same one at every call."""
    torch.manual_seed(0)
    return nn.Linear(4, 3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_kind_is_fused_and_differs_by_rounding_only(name: str) -> None:
    """With its settings, those of its parameter groups included."""
    plain, other = layer(), layer()
    optimizer = OPTIMIZERS[name](other)
    optimizer.param_groups[0]["lr"] = 0.05
    fused = fused_twin(optimizer, other)
    assert type(fused) is type(optimizer) and fused.param_groups[0]["fused"]
    expected = OPTIMIZERS[name](plain)
    expected.param_groups[0]["lr"] = 0.05
    assert torch.allclose(trained(other, fused), trained(plain, expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_has_stepped_stays(name: str) -> None:
    """Its state would be lost."""
    model = layer()
    optimizer = OPTIMIZERS[name](model)
    trained(model, optimizer, steps=1)
    assert fused_twin(optimizer, model) is optimizer


def test_sparse_gradients_are_left_to_kernels_that_take_them() -> None:
    """Fused ones do not."""
    model = nn.ModuleDict({"table": nn.Embedding(5, 2, sparse=True)})
    optimizer = fused_twin(optim.SGD(model.parameters(), lr=0.1), model)
    before = model["table"].weight.detach().clone()
    model["table"](torch.tensor([1])).sum().backward()
    optimizer.step()
    assert torch.allclose(model["table"].weight[1], before[1] - 0.1)
