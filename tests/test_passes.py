"""Optimizer steps of an epoch and epochs of a run, by trainer, against steps that were counted."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recbole import trainer as trainers

from recbole_dsl.training.passes import planned_epochs, steps_per_epoch
from recbole_dsl.training.trainer import make_sparse
from tests.model_runs import settings_of, sparse_trainer_of
from tests.tiny_data import write_tiny


class Loader:
    """Seven batches of interactions, four of triples."""

    general_dataloader, kg_dataloader = range(7), range(4)

    def __len__(self) -> int:
        return 7


@pytest.mark.parametrize(
    "base, settings, tensors, steps",
    [
        (trainers.Trainer, {}, ["a"], 7),
        (trainers.KGTrainer, {"train_rec_step": None, "train_kg_step": None}, ["a"], 7),
        (trainers.KGTrainer, {"train_rec_step": 5, "train_kg_step": 5}, ["a"], 5),  # (35 + 20) / 10
        (trainers.KGATTrainer, {}, ["a"], 11),
        (trainers.MKRTrainer, {"kge_interval": 3}, ["a"], 8),  # 7 + 4 / 3
        (trainers.RecVAETrainer, {"n_enc_epochs": 3, "n_dec_epochs": 2}, ["encoder.fc1.weight"], 21),
        (trainers.RecVAETrainer, {"n_enc_epochs": 3, "n_dec_epochs": 2}, ["decoder.weight"], 14),
        (trainers.S3RecTrainer, {}, ["a"], 7),
    ],
)
def test_steps_per_epoch(base: type, settings: dict[str, Any], tensors: list[str], steps: int) -> None:
    """The trainer itself, and what is derived from it."""
    for cls in (base, make_sparse(base)):
        assert steps_per_epoch(cls, settings, Loader(), tensors) == steps


@pytest.mark.parametrize(
    "base, stage, epochs",
    [
        (trainers.Trainer, None, 9),
        (trainers.RaCTTrainer, "actor_pretrain", 4),
        (trainers.RaCTTrainer, "critic_pretrain", 4),
        (trainers.RaCTTrainer, "finetune", 9),
        (trainers.S3RecTrainer, "pretrain", 4),
    ],
)
def test_planned_epochs(base: type, stage: str | None, epochs: int) -> None:
    """A stage of pre-training has its own number."""
    assert planned_epochs(base, {"train_stage": stage, "epochs": 9, "pretrain_epochs": 4}) == epochs


@pytest.mark.parametrize("name", ["KTUP", "KGAT", "MKR", "RecVAE", "CKE"])
def test_steps_of_real_trainers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan for a whole cycle of epochs is what the optimizers do in it, group by group."""
    monkeypatch.chdir(tmp_path)
    settings = {
        **settings_of(name, write_tiny(tmp_path)), "epochs": 2, "train_rec_step": 1, "train_kg_step": 1,
        "kge_interval": 2,
    }  # fmt: skip
    if name == "CKE":
        del settings["train_rec_step"], settings["train_kg_step"]
    trainer, data = sparse_trainer_of(name, settings, method="dsl", density=0.2, end="100%")
    trainer.fit(data[0], show_progress=False)
    for progress in trainer.sparse.explorer.progress:
        assert abs(progress.step - progress.settings.end) <= 1  # half steps are rounded down
        assert progress.step > 0


def test_the_span_of_a_fake_trainer_counts_at_least_one_step() -> None:
    """Even where an epoch is less than a step on average."""
    none = SimpleNamespace(general_dataloader=[], kg_dataloader=[1])
    steps = steps_per_epoch(trainers.KGTrainer, {"train_rec_step": 9, "train_kg_step": 1}, none, ["a"])
    assert steps == 1
