"""RecBole's own models, trained packed and masked by the real trainer, follow one trajectory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.experiment import build_model
from recbole_dsl.training.trainer import sparse_trainer
from tests.recbole_runs import QUIET

UPDATES = 10
STEPS_PER_UPDATE = 4
# MultiVAE's batches are of users: 8 steps an epoch at this size, where the others have 40.
SETTINGS: dict[str, dict[str, Any]] = {
    "BPR": {"epochs": 1},
    "LightGCN": {"epochs": 1},
    "MultiVAE": {"epochs": 5, "train_batch_size": 128},
}


@dataclass
class Trajectory:
    """``losses`` of every step and, after every update, the live positions of all groups."""

    losses: list[float] = field(default_factory=list)
    topologies: list[list[set[int]]] = field(default_factory=list)


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """RecBole writes logs into the working directory; models make tensors of the default type."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:1])
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def train(name: str, storage: str, dtype: torch.dtype) -> Trajectory:
    """Ten updates of a RecBole model on ml-100k at density 0.2."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    config = RecBoleDSLConfig(
        name,
        "ml-100k",
        config_dict={
            **QUIET, **SETTINGS[name], "dsl_method": "dsl", "dsl_density": 0.2, "dsl_storage": storage,
            "dsl_grow": "accumulated_gradient", "dsl_update_interval": STEPS_PER_UPDATE,
        },
    )  # fmt: skip
    init_seed(config["seed"], config["reproducibility"])
    train_data, _, _ = data_preparation(config, create_dataset(config))
    torch.set_default_dtype(dtype)
    init_seed(config["seed"], config["reproducibility"])
    model = build_model(config, train_data).to(dtype)
    for attribute, value in list(vars(model).items()):  # adjacencies and ratings are no buffers
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            setattr(model, attribute, value.to(dtype))
    trainer = sparse_trainer(config["MODEL_TYPE"], name)(config, model, train_data)
    assert {g.storage for g in trainer.sparse.groups} == {storage}
    return follow(trainer, train_data)


def follow(trainer: Any, train_data: Any) -> Trajectory:
    """Train and record what happens."""
    found = Trajectory()
    groups = trainer.sparse.groups
    loss_of = trainer.model.calculate_loss

    def calculate_loss(batch: Any) -> torch.Tensor:
        if len(found.losses) % STEPS_PER_UPDATE == 0 and found.losses:
            found.topologies.append([set(g.live_positions().tolist()) for g in groups])
        loss = loss_of(batch)
        found.losses.append(loss.item())
        return loss

    trainer.model.calculate_loss = calculate_loss
    trainer.fit(train_data, saved=False, show_progress=False)
    found.topologies.append([set(g.live_positions().tolist()) for g in groups])
    assert trainer.sparse.explorer.updates == len(found.topologies) == UPDATES
    assert len({frozenset(t[0]) for t in found.topologies}) == UPDATES  # every update exchanged weights
    return found


without_multivae = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "MultiVAE" else n for n in SETTINGS]
)
"""But for the slow tests."""


@without_multivae
def test_double_precision(name: str) -> None:
    """The same losses to rounding and, after each of ten updates, the identical topology."""
    packed, masked = (train(name, storage, torch.float64) for storage in ("packed", "masked"))
    assert packed.losses == pytest.approx(masked.losses, rel=1e-10)
    assert packed.topologies == masked.topologies


@without_multivae
def test_single_precision(name: str) -> None:
    """Losses within 1e-5 until an update's cut falls closer than rounding; 99.9 % common at the end."""
    packed, masked = (train(name, storage, torch.float32) for storage in ("packed", "masked"))
    same = [one == two for one, two in zip(packed.topologies, masked.topologies, strict=True)]
    updates = same.index(False) if False in same else UPDATES
    steps = STEPS_PER_UPDATE * (updates + 1)  # those before the first update that differs
    assert packed.losses[:steps] == pytest.approx(masked.losses[:steps], rel=1e-5)
    live = [(p, m) for p, m in zip(packed.topologies[-1], masked.topologies[-1], strict=True)]
    assert sum(len(p & m) for p, m in live) >= 0.999 * sum(len(p) for p, _ in live)
