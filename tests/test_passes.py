"""Optimizer steps of an epoch and epochs of a run, by trainer, against steps that were counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recbole import trainer as trainers

from recbole_dsl.quantities import Span
from recbole_dsl.training.passes import Plan
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
    [  # of six epochs
        (trainers.Trainer, {}, ["a"], 42),
        (trainers.KGTrainer, {"train_rec_step": None, "train_kg_step": None}, ["a"], 42),
        (trainers.KGTrainer, {"train_rec_step": 5, "train_kg_step": 5}, ["a"], 39),  # 5 · 7 + 4
        (trainers.KGTrainer, {"train_rec_step": 2, "train_kg_step": 1}, ["a"], 36),  # 4 · 7 + 2 · 4
        (trainers.KGATTrainer, {}, ["a"], 66),
        (trainers.MKRTrainer, {"kge_interval": 4}, ["a"], 50),  # triples in epochs 0 and 4
        (trainers.RecVAETrainer, {"n_enc_epochs": 3, "n_dec_epochs": 2}, ["encoder.fc1.weight"], 126),
        (trainers.RecVAETrainer, {"n_enc_epochs": 3, "n_dec_epochs": 2}, ["decoder.weight"], 84),
        (trainers.S3RecTrainer, {"train_stage": "finetune"}, ["a"], 42),
        (trainers.S3RecTrainer, {"train_stage": "pretrain"}, ["a"], 28),
        (trainers.RaCTTrainer, {"train_stage": "critic_pretrain"}, ["a"], 28),
    ],
)
def test_planned_steps(base: type, settings: dict[str, Any], tensors: list[str], steps: int) -> None:
    """The trainer itself, and what is derived from it; a stage of pre-training has epochs of its own."""
    settings = {**settings, "epochs": 6, "pretrain_epochs": 4}
    for cls in (base, make_sparse(base)):
        assert Plan.of(cls, settings, Loader(), tensors).steps == steps


def test_spans() -> None:
    """Percent are of the steps there are, epochs are average ones, steps are what they are."""
    plan = Plan(steps=39, epochs=6)
    assert plan.resolve(Span(100, "percent")) == 39 and plan.resolve(Span(50, "percent")) == 19
    assert plan.resolve(Span(2, "epochs")) == 12  # 39 / 6 is 6
    assert plan.resolve(Span(5, "steps")) == 5
    assert Plan(steps=3, epochs=6).resolve(Span(2, "epochs")) == 2
    assert Plan(steps=0, epochs=0).resolve(Span(100, "percent")) == 0


@pytest.mark.parametrize("name", ["KTUP", "KGAT", "MKR", "RecVAE", "CKE"])
def test_steps_of_real_trainers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is planned is what the optimizers do, group by group, also where a cycle is not finished."""
    monkeypatch.chdir(tmp_path)
    settings = {**settings_of(name, write_tiny(tmp_path)), "epochs": 3}
    if name == "KTUP":
        settings |= {"train_rec_step": 2, "train_kg_step": 2}
    trainer, data = sparse_trainer_of(name, settings, method="dsl", density=0.2, end="100%")
    trainer.fit(data[0], show_progress=False)
    for progress in trainer.sparse.explorer.progress:
        assert progress.step == progress.settings.end > 0
