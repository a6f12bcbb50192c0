"""What only a GPU can show. Where there is one, the tests of whole runs use it too, as RecBole does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import export_artifact, sparsify
from tests.recbole_runs import sparse_run

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("in_folder"),
]


def trained(device: str, kernels: str, steps: int = 60, **settings: Any) -> tuple[list[Tensor], int]:
    """Live positions, values and momentum after so many steps with updates; how many updates."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"user": nn.Embedding(300, 16), "item": nn.Embedding(200, 16)})
    with torch.no_grad():
        for table in model.values():
            table.weight.copy_((table.weight * 8).round() / 8)
    handle = sparsify(
        model.to(device),
        0.25,
        include=["*.weight"],
        groups="joint",
        kernels=kernels,
        update_interval=5,
        end=steps,
        **settings,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=2**-10, momentum=0.5)
    handle.attach(optimizer)
    draws = torch.Generator().manual_seed(1)
    for _ in range(steps):
        ids = [torch.randint(n, (500,), generator=draws).to(device) for n in (300, 200)]
        signs = torch.randint(-1, 2, (500, 16), generator=draws).float().to(device)
        optimizer.zero_grad()
        ((model["user"](ids[0]) + model["item"](ids[1])) * signs).sum().backward()
        optimizer.step()
    group = handle.groups[0]
    state = optimizer.state[group.values]
    told = [group.live_positions(), group.values.detach(), state["momentum_buffer"]]
    return [t.cpu() for t in told], handle.explorer.updates


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("grow", ["accumulated_gradient", "last_gradient", "momentum", "random"])
@pytest.mark.parametrize("growth_rows", [1.0, 0.4])
def test_updates_are_those_of_a_cpu(kernels: str, grow: str, growth_rows: float) -> None:
    """The numbers have no rounding, so the order of sums does not matter: positions are equal exactly."""
    ours, updates = trained("cuda", kernels, grow=grow, growth_rows=growth_rows)
    theirs, same = trained("cpu", "torch", grow=grow, growth_rows=growth_rows)
    assert updates == same > 5
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:])


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "NeuMF", "MultiVAE"])
def test_equal_runs_give_equal_bits(model: str, tmp_path: Path) -> None:
    """Losses, metrics, updates, where what torch computes for the model itself is equal each time."""
    settings: dict[str, Any] = {"epochs": 2, "dsl_density": 0.2, "dsl_update_interval": 2, "dsl_end": "100%"}
    settings |= {"train_batch_size": 128} if model == "MultiVAE" else {}
    one, other = (sparse_run(model, tmp_path / name, **settings) for name in ("one", "other"))
    assert one.environment["gpu"] is not None
    assert one.sparsity["updates"] > 0
    for part in ("train_loss", "test_result", "valid_results", "updates"):
        assert getattr(one, part) == getattr(other, part), part


@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_a_model_that_was_trained_here_is_exported(model: str, tmp_path: Path) -> None:
    """And its artifact, which is asked on the CPU, has the test results of the model."""
    sparse_run(model, tmp_path, epochs=1, dsl_density=0.2)
    (best,) = (p for p in tmp_path.rglob("*.dsl") if not p.stem.endswith("-last"))
    assert export_artifact(best, tmp_path / "artifact").metrics
