"""Steps of a pass: clipped gradients, mixed precision, and a scaler that leaves steps out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_dsl.errors import DataError, NumberError
from recbole_dsl.training.steps import StepwiseTrainer
from tests.model_runs import (
    Run,
    dense_run,
    difference_of_losses,
    difference_of_weights,
    recorded_fit,
    settings_of,
    sparse_run,
    sparse_trainer_of,
)

DSL = {"method": "dsl", "density": 0.2, "update_interval": 3}

pytestmark = pytest.mark.usefixtures("in_folder")


def settings(name: str, data: Path, **more: Any) -> dict[str, Any]:
    """Two epochs."""
    return {**settings_of(name, data), "epochs": 2, **more}


@pytest.mark.parametrize("name", ["BPR", "SASRec", "MultiVAE"])
def test_clipping_is_recbole_s(name: str, data: Path) -> None:
    """At density 1, with a bound that every step meets."""
    given = settings(name, data, clip_grad_norm={"max_norm": 0.01})
    ours, theirs = sparse_run(name, given, method="dense"), dense_run(name, given)
    assert difference_of_losses(ours.losses, theirs.losses) < 1e-4
    assert difference_of_weights(ours, theirs) < 1e-3
    free = dense_run(name, settings(name, data))
    assert difference_of_weights(free, theirs) > 0.01  # the bound matters


def test_the_norm_is_that_of_live_weights(data: Path) -> None:
    """Packed and masked storage clip alike: dead weights have no part in it."""
    given = settings("LightGCN", data, clip_grad_norm={"max_norm": 0.001})
    packed, masked = (sparse_run("LightGCN", given, **DSL, storage=s) for s in ("packed", "masked"))
    assert packed.trainer.sparse.explorer.updates >= 2
    assert difference_of_losses(packed.losses, masked.losses) < 1e-5
    for one, other in zip(packed.trainer.sparse.groups, masked.trainer.sparse.groups, strict=True):
        assert torch.equal(one.live_positions(), other.live_positions())


@pytest.mark.parametrize("name", ["BPR", "SASRec", "MultiVAE"])
def test_mixed_precision_is_recbole_s(name: str, data: Path) -> None:
    """At density 1, up to the rounding of bfloat16 sums; weights and their optimizer state stay float32."""
    given = settings(name, data, enable_amp=True)
    ours, theirs = sparse_run(name, given, method="dense"), dense_run(name, given)
    assert difference_of_losses(ours.losses, theirs.losses) < 5e-4
    if name != "BPR":  # which has no product that autocast rounds
        exact = dense_run(name, settings(name, data))
        assert difference_of_losses(exact.losses, theirs.losses) > 1e-3  # the bound matters
    assert all(p.dtype == torch.float32 for p in ours.trainer.model.parameters())
    assert all(
        t.dtype == torch.float32
        for state in ours.trainer.optimizer.state.values()
        for t in state.values()
        if isinstance(t, torch.Tensor)
    )


@pytest.mark.parametrize("name", ["BPR", "SASRec", "MultiVAE", "LightGCN", "NGCF", "KGAT"])
def test_mixed_precision_explores(name: str, data: Path) -> None:
    """Budgets are exact after updates; graph models, too, with which RecBole fails on a CPU."""
    run = sparse_run(name, settings(name, data, enable_amp=True), **DSL)
    assert run.trainer.sparse.explorer.updates >= 2
    assert run.trainer.sparse.live == run.trainer.sparse.budget


def test_a_step_that_the_scaler_leaves_out_does_not_count(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite gradient under a scaler changes neither weights nor the topology's clock."""
    plain = StepwiseTrainer._step
    seen: list[tuple[int, bool]] = []

    def step(self: Any, batch: Any, loss_func: Any, scaler: Any) -> Any:
        before = [p.detach().clone() for p in self.model.parameters()]
        spoilt = len(seen) == 1
        told = plain(self, batch, lambda b: loss_func(b) * (1e38 if spoilt else 1.0), scaler)
        same = all(torch.equal(a, b) for a, b in zip(before, self.model.parameters(), strict=True))
        seen.append((self.sparse.explorer.progress[0].step, same))
        return told

    monkeypatch.setattr(StepwiseTrainer, "_step", step)
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data), **DSL)
    trainer.enable_scaler = True
    trainer.fit(loaders[0], loaders[1], show_progress=False)
    assert seen[:3] == [(1, False), (1, True), (2, False)]


def test_a_field_that_no_batch_has_is_named(data: Path) -> None:
    """A pairwise model without negatives: RecBole's own end is a bare KeyError."""
    trainer, loaders = sparse_trainer_of("BPR", {**settings("BPR", data), "train_neg_sample_args": None}, **DSL)
    match = r"model='BPR' reads 'neg_item_id' of a training batch, which has user_id, item_id.*only; allowed "
    with pytest.raises(DataError, match=match):
        trainer.fit(loaders[0], loaders[1], show_progress=False)


def test_other_missing_keys_are_not_taken_for_fields(data: Path) -> None:
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data), **DSL)
    trainer.model.calculate_loss = lambda batch: {}["neg_item_id"]
    with pytest.raises(KeyError, match="neg_item_id"):
        trainer.fit(loaders[0], loaders[1], show_progress=False)


def bad_run(data: Path, change: Any) -> Run:
    """BPR whose third loss is ``change``\\ d."""
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data), **DSL)
    plain, calls = trainer.model.calculate_loss, []

    def loss(batch: Any) -> Any:
        calls.append(1)
        return change(plain(batch), trainer.model) if len(calls) == 3 else plain(batch)

    trainer.model.calculate_loss = loss
    trainer.fit(loaders[0], loaders[1], show_progress=False)
    raise AssertionError("bad numbers went unseen")


@pytest.mark.parametrize(
    "what, change",
    [
        ("loss is nan", lambda loss, model: loss * float("nan")),
        ("loss is inf", lambda loss, model: loss * 1e39),
        # d√x/dx at 0 is infinite, and times 0 it is NaN, while the loss is finite
        ("gradient is nan", lambda loss, model: loss + ((model.user_embedding.weight * 0).sum()).sqrt() * 0),
    ],
)
def test_bad_numbers_stop_before_they_reach_the_weights(data: Path, what: str, change: Any) -> None:
    """With the step, the epoch and the file to go on from."""
    with pytest.raises(NumberError, match=rf"The {what} at step 3 of epoch 0; the last checkpoint is '.*-last"):
        bad_run(data, change)


def test_mixed_precision_is_on(data: Path) -> None:
    """Every loss is computed under autocast."""
    seen: list[bool] = []
    trainer, loaders = sparse_trainer_of("BPR", settings("BPR", data, enable_amp=True), **DSL)
    plain = trainer.model.calculate_loss

    def loss(batch: Any) -> Any:
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(batch)

    trainer.model.calculate_loss = loss
    trainer.fit(*loaders[:2], show_progress=False)
    assert seen and all(seen)


def test_clipping_sees_gradients_without_their_scale(data: Path) -> None:
    """With a gradient scaler the same losses as without."""
    runs = []
    for scaled in (False, True):
        given = settings("BPR", data, clip_grad_norm={"max_norm": 0.01}, learner="sgd", learning_rate=1.0)
        trainer, loaders = sparse_trainer_of("BPR", given, **DSL)
        trainer.enable_scaler = scaled
        runs.append(recorded_fit(trainer, loaders))
    assert difference_of_losses(runs[0].losses, runs[1].losses) < 1e-6


def test_memory_is_kept_and_the_optimizer_fused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every trainer, unasked."""
    asked: list[int] = []
    monkeypatch.setattr("recbole_dsl.training.trainer.keep_freed_memory", lambda: asked.append(1))
    trainer, _ = sparse_trainer_of("BPR", settings("BPR", data), **DSL)
    assert asked == [1] and all(group["fused"] for group in trainer.optimizer.param_groups)
