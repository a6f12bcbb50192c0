"""Comparisons: what each method is, which cells there are, and a grid that can be stopped anywhere."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import gc
import importlib
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from recbole_dsl import RunResult, compare_command, tune_command
from recbole_dsl.cli import main
from recbole_dsl.compare import methods, popularity, procedures, summary
from recbole_dsl.compare.by_recbole import recbole_data, trainer_of
from recbole_dsl.compare.grid import Cell, cells_of
from recbole_dsl.compare.hashing import QuotientRemainder, buckets_of
from recbole_dsl.compare.methods import Method, read_method
from recbole_dsl.compare.narrow import Widths
from recbole_dsl.compare.options import Request, read_tuned, settings_of
from recbole_dsl.compare.procedures import PROCEDURES, Task, with_dense
from recbole_dsl.compare.pruning import GradualPruning, PrunedGroup, kept_at
from recbole_dsl.compare.running import Job, Runner, jobs_of
from recbole_dsl.compare.space import Dimension, points_of, read_space
from recbole_dsl.compare.store import Store, read_grid
from recbole_dsl.compare.thresholds import SoftThreshold
from recbole_dsl.compare.twin import Budget
from recbole_dsl.config import no_flags
from recbole_dsl.errors import ConfigError
from recbole_dsl.sparsity.interactions import Interactions
from recbole_dsl.training.starting import compute_again
from tests.model_runs import settings_of as settings_of_model
from tests.tiny_data import ITEMS, NAME, USERS

pytestmark = pytest.mark.usefixtures("in_folder")

SCRIPT = Path(__file__).resolve().parents[1] / "run_recbole_dsl.py"
ROWS = USERS + ITEMS + 2  # with padding
TINY: dict[str, Any] = {
    "epochs": 2,
    "learning_rate": 0.02,
    "embedding_size": 16,
    "train_batch_size": 256,
    "topk": [5, 10],
    "metrics": ["Recall", "NDCG"],
    "valid_metric": "NDCG@10",
    "load_col": {"inter": ["user_id", "item_id"]},
    "show_progress": False,
}


def settings_for(data: Path) -> dict[str, Any]:
    return {**TINY, "data_path": str(data)}


def task(data: Path, folder: Path, method: str, density: float | None = None, **more: Any) -> Task:
    """A cell of BPR on the generated data."""
    values = {"model": "BPR", "dataset": NAME, "seed": 2020, "files": (), "dense": None, **more}
    return Task(
        method=read_method(method),
        density=density,
        settings={**settings_for(data), **values.pop("settings", {})},
        folder=folder / "own",
        kept=folder / "kept",
        **values,
    )


def run(of: Task) -> RunResult:
    return PROCEDURES[of.method.procedure](of)


# --- every method is what its name says ------------------------------------------------------------


BERT4REC: dict[str, Any] = {
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_neg_sample_args": None,
    "MAX_ITEM_LIST_LENGTH": 10,
    "hidden_size": 16,
    "inner_size": 16,
}
"""It draws which items are masked, for the first time where RecBole counts a model's FLOPs."""


@pytest.mark.parametrize(("model", "more"), [("BPR", {}), ("BERT4Rec", BERT4REC)])
def test_dense_is_recbole_itself(
    model: str, more: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last digit, what RecBole's own entry point returns for the same settings."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(tune=None))  # imported there, and not used
    quick_start = importlib.import_module("recbole.quick_start")
    with no_flags():
        settings = {**settings_for(data), **more, "seed": 7}
        theirs = quick_start.run_recbole(model, NAME, config_dict=settings, saved=True)
    ours = run(task(data, tmp_path, "dense", model=model, seed=7, settings=more))
    assert ours.test_result == {k: float(v) for k, v in theirs["test_result"].items()}
    assert ours.best_valid_result == {k: float(v) for k, v in theirs["best_valid_result"].items()}
    assert ours.costs["weight_bytes"] == ours.sparsity["live"] * 4
    if model == "BPR":
        assert ours.sparsity["live"] == ROWS * 16
    assert [told["epoch"] for told in ours.valid_results] == [0, 1]
    assert max(told["ndcg@10"] for told in ours.valid_results) == ours.best_valid_result["ndcg@10"]


@pytest.mark.parametrize(("method", "columns"), [("narrow", 6), ("narrow_training", 5)])
def test_narrow_is_the_widest_that_is_no_larger(method: str, columns: int, data: Path, tmp_path: Path) -> None:
    """Density 0.25 of 184 × 16: 736 weights, and an index of 1 byte each and 4 for each row, and 4 more.

    Weights: 2944 + 1480 (index 736 + 185 · 4 = 1476) bytes hold 4420 / (184 · 4) = 6.0 columns. Training holds
    four numbers for each weight: (4 · 2944 + 1476) / (184 · 16) = 4.5 columns, so 4.
    """
    sparse = run(task(data, tmp_path, "static", 0.25))
    narrow = run(task(data, tmp_path, method, 0.25))
    state = ("weight_bytes", "index_bytes") if method == "narrow" else ("training_state_bytes",)

    def size(result: RunResult) -> int:
        return sum(result.costs[key] for key in state)

    # A step count for each parameter, of which narrow has two and the group one.
    assert size(narrow) <= size(sparse) + (4 if method == "narrow_training" else 0)
    found = narrow.analysis["narrow"]["embedding_size"]
    assert narrow.sparsity["live"] == ROWS * found and narrow.sparsity["weights"] == ROWS * 16
    one_more = ROWS * (found + 1) * 4 * (1 if method == "narrow" else 4)
    assert one_more > size(sparse)


def test_narrow_has_the_bytes_of_wide_tables(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where dsl_plus takes 512 columns, its index has two bytes a weight: 5156 bytes hold 7.005 columns."""
    monkeypatch.setattr("recbole_dsl.experiment.best_width", lambda *_: 512)
    narrow = run(task(data, tmp_path, "narrow", 0.25))
    assert narrow.analysis["narrow"] == {"embedding_size": 7} and narrow.sparsity["weights"] == ROWS * 16
    sparse = run(task(data, tmp_path, "dsl_plus", 0.25))
    assert sparse.costs["weight_bytes"] + sparse.costs["index_bytes"] == 5156


@pytest.mark.parametrize("method", ["magnitude_once", "lottery", "gmp", "pep"])
def test_what_starts_dense_keeps_its_columns(method: str, data: Path, tmp_path: Path) -> None:
    """Whatever ``dsl_width`` the sparse cells of the comparison have."""
    dense = tmp_path / "dense.pth"
    run(task(data, tmp_path, "dense", dense=dense))
    start = dense if read_method(method).after else None
    made = task(data, tmp_path, method, 0.25, dense=start)
    wide = run(replace(made, settings={**made.settings, "dsl_width": 64, "epochs": 1}))
    assert wide.sparsity["weights"] == ROWS * 16 and wide.sparsity["live"] <= ROWS * 4


def test_magnitude_keeps_the_largest_weights(data: Path, tmp_path: Path) -> None:
    """Without fine-tuning it is the dense model with all but the 294 largest weights set to zero by hand."""
    kept = tmp_path / "dense.pth"
    dense = run(task(data, tmp_path, "dense", dense=kept))
    pruned = run(task(data, tmp_path, "magnitude_once", 0.1, dense=kept))
    budget = int(0.1 * ROWS * 16 + 0.5)
    assert pruned.sparsity["live"] == budget == 294 and pruned.epochs_run == 0

    trainer, test_data = trainer_with(kept, data)
    everything = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])
    least = everything.abs().sort(descending=True).values[budget - 1]
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter[parameter.abs() < least] = 0
    by_hand = trainer.evaluate(test_data, load_best_model=False)
    assert pruned.test_result == {k: float(v) for k, v in by_hand.items()} != dense.test_result

    tuned = run(task(data, tmp_path, "magnitude", 0.1, dense=kept))
    assert tuned.sparsity["live"] == budget and tuned.sparsity["updates"] == 0 and tuned.epochs_run == 2
    assert tuned.test_result != pruned.test_result


def trainer_with(checkpoint: Path, data: Path) -> tuple[Any, Any]:
    """RecBole's trainer of a dense model with the weights of a checkpoint, and the test data."""
    config, _, train_data, _, test_data = recbole_data("BPR", NAME, {**settings_for(data), "seed": 2020})
    trainer = trainer_of(config, train_data)
    state = torch.load(checkpoint, weights_only=False)["state_dict"]
    trainer.model.load_state_dict(state)
    trainer.eval_collector.data_collect(train_data)
    return trainer, test_data


def test_int8_tests_rounded_weights(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not vectors that a graph model has kept of those before."""
    kept = tmp_path / "dense.pth"
    dense = run(task(data, tmp_path, "dense", model="LightGCN", dense=kept))
    monkeypatch.setattr(procedures, "_rounded", lambda parameter: 0)
    assert run(task(data, tmp_path, "int8", model="LightGCN", dense=kept)).test_result == dense.test_result
    monkeypatch.setattr(procedures, "_rounded", lambda parameter: int(parameter.data.zero_().sum()))
    assert run(task(data, tmp_path, "int8", model="LightGCN", dense=kept)).test_result != dense.test_result


def test_what_a_dense_model_computes_of_its_weights_is_there_for_others(data: Path, tmp_path: Path) -> None:
    """KGAT's attention, which RecBole does not save."""
    settings = {**settings_of_model("KGAT", data), "epochs": 2, "learning_rate": 0.05}
    of = {"model": "KGAT", "dense": tmp_path / "dense.pth", "settings": settings}
    dense = run(task(data, tmp_path, "dense", **of))
    none_pruned = run(task(data, tmp_path, "magnitude_once", 0.99999, **of))
    assert none_pruned.test_result == pytest.approx(dense.test_result, rel=0.02)


def test_the_best_weights_are_there_for_others_without_a_test_part(data: Path, tmp_path: Path) -> None:
    """RecBole loads them for the test alone."""
    split = {"eval_args": {"split": {"RS": [0.8, 0.2, 0]}, "mode": "full"}, "epochs": 6, "learning_rate": 0.5}
    kept = tmp_path / "dense.pth"
    dense = run(task(data, tmp_path, "dense", dense=kept, settings=split))
    best = max(told["ndcg@10"] for told in dense.valid_results)
    assert not dense.test_result and dense.valid_results[-1]["ndcg@10"] < 0.99 * best
    rounded = run(task(data, tmp_path, "int8", dense=kept, settings=split)).best_valid_result
    assert rounded is not None and rounded["ndcg@10"] == pytest.approx(best, rel=0.005)
    result, trainer = procedures._sparse(task(data, tmp_path, "dsl_plus", 0.5, settings=split))
    of_epochs = [told["ndcg@10"] for told in result.valid_results]
    valid_data = recbole_data("BPR", NAME, {**settings_for(data), **split, "seed": 2020})[3]
    found = trainer.evaluate(valid_data, load_best_model=False)
    assert found["ndcg@10"] == max(of_epochs) > of_epochs[-1]


def test_rewound_attention_is_that_of_no_training(data: Path, tmp_path: Path) -> None:
    """KGAT computes it of its weights after every epoch, and starts with that of the graph alone."""
    of = task(data, tmp_path, "magnitude_once", 0.5, model="KGAT", settings=settings_of_model("KGAT", data))
    config, _, train_data, _, _ = of.data()
    model = trainer_of(config, train_data).model
    initial, first = {k: v.clone() for k, v in model.state_dict().items()}, model.A_in.to_dense().clone()
    compute_again(model)
    assert not torch.equal(model.A_in.to_dense(), first)
    procedures.rewind(SimpleNamespace(model=model, sparse=SimpleNamespace(groups=[])), initial)
    assert torch.equal(model.A_in.to_dense(), first)


@pytest.mark.parametrize("model", ["SASRecF", "RippleNet"])
def test_models_that_keep_more_than_tensors_are_there_too(model: str, data: Path, tmp_path: Path) -> None:
    """Layers among their other parameters, or dictionaries of a class of their own."""
    of = {"model": model, "dense": tmp_path / "dense.pth", "settings": settings_of_model(model, data)}
    run(task(data, tmp_path, "dense", **of))
    assert run(task(data, tmp_path, "int8", **of)).test_result


def test_int8_rounds_every_row(data: Path, tmp_path: Path) -> None:
    """Each weight is within half a step of its own, and the bytes are those of eight bits and a scale."""
    kept = tmp_path / "dense.pth"
    dense = run(task(data, tmp_path, "dense", dense=kept))
    result = run(task(data, tmp_path, "int8", dense=kept))
    assert result.costs["weight_bytes"] == ROWS * 16 + ROWS * 2 + 2 * 4
    assert result.test_result["recall@10"] == pytest.approx(dense.test_result["recall@10"], abs=0.02)
    trainer, _ = trainer_with(kept, data)
    for parameter in trainer.model.parameters():
        before = parameter.detach().clone()
        size = procedures._rounded(parameter)
        assert size == before.numel() + 2 * len(before) + 4
        step = before.abs().amax(dim=1, keepdim=True) / 127
        assert bool(((parameter - before).abs() <= 0.51 * step + 1e-4 * before.abs()).all())
        assert not torch.equal(parameter, before)
        assert max(len(row.unique()) for row in parameter) <= 255


@pytest.mark.parametrize("method", ["static", "set", "rigl", "dsl", "dsl_plus", "sparserec"])
def test_sparse_methods_keep_their_budget(method: str, data: Path, tmp_path: Path) -> None:
    """Live weights are exactly the density's, and where they lie is told by decile, before and after."""
    of = task(data, tmp_path, method, 0.2)
    of = replace(of, settings={**of.settings, "dsl_update_interval": 2, "epochs": 4})
    result = run(of)
    assert result.method == method and result.sparsity["live"] == int(0.2 * ROWS * 16 + 0.5) == 589
    live = result.analysis["by_popularity"]["items"]["live"]["item_embedding.weight"]
    moved = live["before"] != live["after"]
    assert moved == (method != "static") == bool(result.updates)
    rows = result.analysis["by_popularity"]["items"]["rows"]
    users = result.analysis["by_popularity"]["users"]
    mine = users["live"]["user_embedding.weight"]["after"]
    padding = 589 - np.dot(rows, live["after"]) - np.dot(users["rows"], mine)
    assert -1e-6 < padding <= 32 + 1e-6  # the two padding rows have the rest


@pytest.mark.parametrize("method", ["dsl", "dsl_plus"])
def test_a_stopped_cell_goes_on_to_the_same_result(
    method: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in its fourth epoch, of which it saved the second: the result is that of a cell that was not."""
    more = {"epochs": 6, "dsl_save_every": "2 epochs", "dsl_update_interval": "1 epochs"}
    of = task(data, tmp_path / "stopped", method, 0.25)
    of = replace(of, settings={**of.settings, **more})
    whole = run(replace(of, kept=tmp_path / "whole"))
    trainer = importlib.import_module("recbole.trainer").Trainer
    validate, epochs = trainer._valid_epoch, itertools.count(1)

    def stopped(*args: Any, **kwargs: Any) -> Any:
        if next(epochs) == 4:
            raise KeyboardInterrupt
        return validate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_valid_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(of)
    gc.collect()  # the stopped trainer, which locks its file as long as it is there
    validated = Mock(wraps=validate)
    monkeypatch.setattr(trainer, "_valid_epoch", lambda *args, **more: validated(*args, **more))
    resumed = run(of)
    assert validated.call_count == 4  # the epochs after the second
    for field in ("train_loss", "valid_results", "best_valid_result", "test_result", "sparsity", "analysis"):
        assert getattr(resumed, field) == getattr(whole, field), field
    assert resumed.epochs_run == 6 and resumed.config == whole.config


def test_sparserec_scores_a_part_of_the_rows(data: Path, tmp_path: Path) -> None:
    """A topology from factors, accumulated gradients, and growth scores of a quarter of the rows."""
    sampled = run(task(data, tmp_path, "sparserec", 0.2))
    of = task(data, tmp_path, "sparserec", 0.2)
    everything = run(replace(of, settings={**of.settings, "dsl_growth_rows": 1.0}))
    assert sampled.config["dsl_init"] == "nmf" and sampled.config["dsl_grow"] == "accumulated_gradient"
    assert 0 < sampled.costs["growth_bytes"] < 0.5 * everything.costs["growth_bytes"]


@given(st.integers(1, 50), st.integers(1, 1000), st.data())
def test_the_cubic_schedule(end: int, weights: int, draw: st.DataObject) -> None:
    """From nearly all to exactly the budget, never up again; by hand at the half: (1 - 1/2)³ of the rest."""
    live = draw.draw(st.integers(0, weights))
    told = [kept_at(step, end, weights, live) for step in range(end + 2)]
    assert told[0] == weights and told[end] == told[end + 1] == live
    assert told == sorted(told, reverse=True)
    assert kept_at(5, 10, 900, 100) == 100 + 800 // 8


def test_gmp_ends_at_the_density(data: Path, tmp_path: Path) -> None:
    """Exactly the budget, counted in the weights of RecBole's checkpoint; chosen among epochs after the end."""
    of = task(data, tmp_path, "gmp", 0.1)
    of = replace(of, settings={**of.settings, "epochs": 6})
    result = run(of)
    assert result.sparsity["live"] == result.sparsity["budget"] == 294 and result.method == "gmp"
    (saved,) = of.folder.glob("BPR-*.pth")
    tables = torch.load(saved, weights_only=False)["state_dict"].values()
    assert sum(int((table != 0).sum()) for table in tables) == 294
    trainer, test_data = trainer_with(saved, data)
    by_hand = trainer.evaluate(test_data, load_best_model=False)
    assert result.test_result == {k: float(v) for k, v in by_hand.items()}
    after = [told["ndcg@10"] for told in result.valid_results if told["epoch"] >= 2]  # half of six epochs
    assert result.best_valid_result["ndcg@10"] == max(after) and len(result.valid_results) == 6
    assert (
        result.costs["training_state_bytes"] > 4 * ROWS * 16 * 4 - 100
    )  # dense, and the weights served sparse
    assert result.costs["weight_bytes"] == 294 * 4


def test_dropped_weights_stay_dropped(data: Path) -> None:
    """Masks only shrink, as the schedule says, and the weights outside them are zero after every step."""
    config, _, train_data, valid_data, _ = recbole_data("BPR", NAME, {**settings_for(data), "epochs": 3})
    trainer = trainer_of(config, train_data)
    names = ("user_embedding.weight", "item_embedding.weight")
    pruning = GradualPruning(trainer, [Budget(names, 300)], ends=[8], times=4)
    seen: list[torch.Tensor] = []

    def note(*_: Any) -> None:
        mask = torch.cat([part.reshape(-1) for part in pruning.groups[0].masks])
        weights = torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()])
        assert not bool(weights[~mask].any())
        seen.append(mask)

    trainer.optimizer.register_step_post_hook(note)
    trainer.fit(train_data, valid_data, saved=False)
    counts = [int(mask.sum()) for mask in seen]
    assert [counts[step - 1] for step in (1, 2, 4, 6, 8)] == [
        ROWS * 16, *(kept_at(step, 8, ROWS * 16, 300) for step in (2, 4, 6)), 300,
    ]  # fmt: skip
    assert counts[-1] == 300 and len(seen) > 8
    for earlier, later in itertools.pairwise(seen):
        assert not bool((later & ~earlier).any())


RECVAE: dict[str, Any] = {
    "epochs": 4, "hidden_dimension": 16, "latent_dimension": 32, "n_enc_epochs": 2, "n_dec_epochs": 1,
    "train_neg_sample_args": None, "train_batch_size": 32,
}  # fmt: skip
"""Its trainer replaces its optimizer by one of the encoder and one of the decoder, in turn."""


def test_every_optimizer_of_a_trainer_counts(data: Path, tmp_path: Path) -> None:
    """Adam's two moments of all that is trained, and the steps of encoder and decoder, by RecBole and by us."""
    batches = -(-USERS // 32)
    for method, density in (("dense", None), ("static", 0.5)):
        costs = run(task(data, tmp_path / method, method, density, model="RecVAE", settings=RECVAE)).costs
        counts = costs["optimizer_bytes"] - 2 * costs["gradient_bytes"]  # one of each tensor
        assert 0 < counts < 4 * 40
        assert costs["training_macs"] == costs["macs_per_training_step"] * 4 * 3 * batches


def test_gmp_prunes_what_every_optimizer_trains(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encoder and decoder, each to its budget at half of its own steps, little by little."""
    made: list[GradualPruning] = []
    dropped: list[tuple[int, int]] = []
    start, drop = GradualPruning.__init__, PrunedGroup._drop

    def noted(pruning: GradualPruning, *args: Any) -> None:
        start(pruning, *args)
        made.append(pruning)

    def told(group: PrunedGroup) -> None:
        drop(group)
        dropped.append((id(group), sum(int(mask.sum()) for mask in group.masks)))

    monkeypatch.setattr(GradualPruning, "__init__", noted)
    monkeypatch.setattr(PrunedGroup, "_drop", told)
    of = task(data, tmp_path, "gmp", 0.2, model="RecVAE", settings=RECVAE)
    result = run(of)
    (pruning,) = made
    batches = -(-USERS // 32)
    passes = [2 if group.end == 2 * 2 * batches else 1 for group in pruning.groups]
    assert set(passes) == {1, 2} and pruning.is_settled
    for group, count in zip(pruning.groups, passes, strict=True):
        assert (group.end, group.step) == (2 * count * batches, 4 * count * batches)
        kept = [live for one, live in dropped if one == id(group)]
        assert len(kept) > 1 and kept == sorted(kept, reverse=True) and kept[-1] == group.live < kept[0]
        assert sum(int((p != 0).sum()) for p in group.parameters) == group.live
    after = [v["ndcg@10"] for v in result.valid_results if v["epoch"] >= 2]
    assert result.best_valid_result["ndcg@10"] == max(after) and len(result.valid_results) == 4


def test_lottery_rewinds_and_prunes_in_rounds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round's topology lies in that before, and its training starts from RecBole's initial values."""
    kept = tmp_path / "dense.pth"
    run(task(data, tmp_path, "dense", dense=kept))
    starts: list[Any] = []
    plain = procedures.rewind

    def noted(trainer: Any, initial: Any) -> None:
        plain(trainer, initial)
        (group,) = trainer.sparse.groups
        starts.append((group.live_positions().clone(), group.live_values().detach().clone(), initial))

    monkeypatch.setattr(procedures, "rewind", noted)
    result = run(task(data, tmp_path, "lottery", 0.125, dense=kept))
    n = ROWS * 16
    assert [len(live) for live, _, _ in starts] == [n // 2, n // 4, n // 8] and result.sparsity[
        "live"
    ] == n // 8
    config, _, train_data, _, _ = recbole_data("BPR", NAME, {**settings_for(data), "seed": 2020})
    first = torch.cat([p.detach().reshape(-1) for p in trainer_of(config, train_data).model.parameters()])
    for live, values, _ in starts:
        assert torch.equal(values, first[live])
    for (before, _, _), (after, _, _) in itertools.pairwise(starts):
        assert set(after.tolist()) <= set(before.tolist())
    trained = torch.cat([t.reshape(-1) for t in torch.load(kept, weights_only=False)["state_dict"].values()])
    assert set(starts[0][0].tolist()) == set(trained.abs().topk(n // 2).indices.tolist())
    told = result.analysis["phases"]
    assert len(told) == 3 and result.costs["training_seconds"] == sum(p["training_seconds"] for p in told)


@given(st.integers(2, 400), st.integers(1, 400))
def test_buckets_are_the_most_that_fit(rows: int, allowed: int) -> None:
    """Compared with trying all; every id has a pair of rows of its own."""
    found = buckets_of(rows, allowed)
    sizes = {m: m + math.ceil(rows / m) for m in range(1, rows + 1)}
    fitting = [m for m, size in sizes.items() if size <= allowed]
    assert found == (max(fitting) if fitting else None)
    if found:
        assert len({(i // found, i % found) for i in range(rows)}) == rows


def test_hash_has_the_declared_parameters(data: Path, tmp_path: Path) -> None:
    """Quotients and remainders of both tables are all its weights, no more bytes than the sparse model has."""
    result = run(task(data, tmp_path, "hash", 0.25))
    told = result.analysis["hash"]
    assert set(told) == {"user_embedding.weight", "item_embedding.weight"}
    rows = sum(part["quotients"] + part["remainders"] for part in told.values())
    assert result.sparsity["live"] == rows * 16 and result.sparsity["weights"] == ROWS * 16
    sparse = run(task(data, tmp_path, "static", 0.25)).costs
    assert result.costs["weight_bytes"] == rows * 16 * 4 <= sparse["weight_bytes"] + sparse["index_bytes"]
    users = told["user_embedding.weight"]
    assert users["quotients"] == math.ceil((USERS + 1) / users["remainders"])
    assert result.test_result["recall@10"] > 0 and result.train_loss[-1] < result.train_loss[0]
    with pytest.raises(ConfigError, match="that leave at least 18"):
        run(task(data, tmp_path, "hash", 0.1))


def test_a_hashed_table_by_hand() -> None:
    """Row 5 of 7 with 3 buckets is quotient row 1 times remainder row 2; gradients reach both."""
    composed = QuotientRemainder(7, 3, 1, "x")
    quotients = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], requires_grad=True)
    remainders = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 0.5]], requires_grad=True)
    table = composed(quotients, remainders)
    assert table.shape == (7, 2) and table[5].tolist() == [9.0, 2.0] and table[6].tolist() == [5.0, 6.0]
    table[5].sum().backward()
    assert quotients.grad is not None and quotients.grad[1].tolist() == [3.0, 0.5]
    assert remainders.grad is not None and remainders.grad[2].tolist() == [3.0, 4.0]


def test_soft_thresholds_by_hand() -> None:
    """sign(v) · max(|v| - σ(s), 0); the threshold's gradient is -sign(v) σ'(s) where a weight lives."""
    soft = SoftThreshold(2, 0.0)  # σ = 1/2
    values = torch.tensor([[0.75, -2.0], [0.25, -0.5]], requires_grad=True)
    out = soft(values)
    assert out.tolist() == [[0.25, -1.5], [0.0, 0.0]]
    out[0, 0].backward()
    assert soft.threshold.grad is not None and soft.threshold.grad.tolist() == [[-0.25], [0.0]]


def test_pep_learns_a_topology_and_trains_it_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search ends at the density; the largest margins live, from RecBole's initial values."""
    starts: list[Any] = []
    plain, search_of = procedures.rewind, procedures.Search
    searches: list[Any] = []

    def noted(trainer: Any, initial: Any) -> None:
        plain(trainer, initial)
        (group,) = trainer.sparse.groups
        starts.append((group.live_positions().clone(), group.live_values().detach().clone(), initial))

    def kept(*args: Any) -> Any:
        searches.append(search_of(*args))
        return searches[-1]

    monkeypatch.setattr(procedures, "rewind", noted)
    monkeypatch.setattr(procedures, "Search", kept)
    of = task(data, tmp_path, "pep", 0.25)
    fast = replace(of.method, options={"initial": -4.0, "learning_rate": 0.1, "weight_decay": 0.01})
    result = run(replace(of, method=fast, settings={**of.settings, "epochs": 12}))
    ((live, values, initial),) = starts
    assert result.analysis["pep"]["reached"] and result.analysis["pep"]["live"] <= 736
    assert result.sparsity["live"] == len(live) == 736
    names = ("user_embedding.weight", "item_embedding.weight")
    margins = torch.cat([searches[0].margins(name).reshape(-1) for name in names])
    assert set(live.tolist()) == set(margins.topk(736).indices.tolist())
    assert torch.equal(values, torch.cat([initial[name].reshape(-1) for name in names])[live])
    search, training = result.analysis["phases"]
    assert search["what"] == "search" and search["epochs"] < 12
    assert search["training_state_bytes"] > training["training_state_bytes"]
    assert result.costs["training_state_bytes"] == search["training_state_bytes"]


def test_methods_that_need_dense_training_say_so(data: Path, tmp_path: Path) -> None:
    """Seconds and MACs of both trainings are added, and the bytes are those of the larger one."""
    kept = tmp_path / "dense.pth"
    dense = run(task(data, tmp_path, "dense", dense=kept))
    alone = run(task(data, tmp_path, "magnitude", 0.1, dense=kept))
    both = with_dense(alone, dense)
    for key in ("training_seconds", "training_macs"):
        assert both.costs[key] == alone.costs[key] + dense.costs[key]
    assert both.costs["training_state_bytes"] == dense.costs["training_state_bytes"]
    assert both.costs["weight_bytes"] == alone.costs["weight_bytes"] < dense.costs["weight_bytes"]
    assert [phase["what"] for phase in both.analysis["phases"]] == ["dense training", "after it"]


def test_training_macs_are_those_of_every_step(data: Path, tmp_path: Path) -> None:
    """Steps of two epochs, by RecBole and by us."""
    for method, density in (("dense", None), ("static", 0.5)):
        result = run(task(data, tmp_path, method, density))
        steps = 2 * -(-int(0.8 * 24 * USERS) // 256)
        assert result.costs["training_macs"] / result.costs["macs_per_training_step"] == pytest.approx(
            steps, abs=2
        )


def test_every_method_has_a_procedure() -> None:
    """The two tables agree, and every name can be read."""
    assert set(PROCEDURES) == set(methods.PROCEDURES)
    for name in methods.method_names():
        method = read_method(name)
        assert method.name == name and method.about.endswith(".")
        assert method.procedure in PROCEDURES and method.after in (None, "dense")


def test_dense_runs_models_that_recbole_alone_refuses(data: Path, tmp_path: Path) -> None:
    """SASRec's softmax loss knows no negatives, which RecBole wants to be told; a user's own setting wins."""
    of = task(data, tmp_path, "dense", model="SASRec")
    columns = {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": 5,
        "epochs": 1,
    }
    of = replace(of, settings={**of.settings, **columns, "hidden_size": 16, "inner_size": 16})
    assert of.recbole["train_neg_sample_args"] is None and run(of).test_result
    (tmp_path / "mine.yaml").write_text("loss_type: BPR\ntrain_neg_sample_args: {distribution: uniform}\n")
    assert "train_neg_sample_args" not in replace(of, files=(tmp_path / "mine.yaml",)).recbole


def test_our_settings_are_nothing_to_dense(data: Path, tmp_path: Path) -> None:
    """Neither a flag nor a line of a file, which only some of our methods can have."""
    (tmp_path / "ours.yaml").write_text("dsl_init_values: topology\n")
    of = task(data, tmp_path, "dense", files=(tmp_path / "ours.yaml",))
    of = replace(of, settings={**of.settings, "dsl_grow_window": 3})
    assert of.recbole == {**settings_for(data), "seed": 2020, "checkpoint_dir": str(tmp_path / "own")}


@pytest.mark.parametrize("ours", [{"dsl_denstiy": 1}, {"dsl_drop": "foo"}])
def test_our_settings_are_checked_beside_dense_alone(ours: dict[str, Any], tmp_path: Path) -> None:
    """They are part of what was asked for, and of what methods that are added later get."""
    request = Request(["BPR"], [NAME], {"dense": ("dense", read_method("dense"))}, ours, {}, {}, tmp_path, 1)
    cells = request.cells([0.1], [1])
    with pytest.raises(ConfigError, match=next(iter(ours))):
        compare_command._check(cells, request, dict.fromkeys(cells, ours), None)
    with pytest.raises(ConfigError, match=next(iter(ours))):
        tune_command._check("BPR", request, [{"learning_rate": 0.1}], 0.1)


def test_dense_has_the_devices_of_the_others(data: Path, tmp_path: Path) -> None:
    """Several as RecBole needs them, as text, from wherever."""
    (tmp_path / "own.yaml").write_text("gpu_id: [0, 1]\n")
    of = task(data, tmp_path, "dense", files=(tmp_path / "own.yaml",))
    assert of.recbole["gpu_id"] == "0,1"
    assert replace(of, settings={**of.settings, "gpu_id": (1, 2)}).recbole["gpu_id"] == "1,2"


def test_values_of_the_topology_can_be_asked_for(data: Path, tmp_path: Path) -> None:
    """Beside dense, of a comparison and of its trials, as dsl_plus has them."""
    values = {"dsl_init_values": "topology", "data_path": str(data), "load_col": TINY["load_col"]}
    request = Request(
        ["BPR"], [NAME], {m: (m, read_method(m)) for m in ("dense", "dsl_plus")}, values, {}, {}, tmp_path, 1
    )
    cells = request.cells([0.1], [1])
    assert compare_command._check(cells, request, dict.fromkeys(cells, values), None) == "mrr@10"
    points = [{"dsl_init_values": "topology"}, {"dsl_init_values": "model"}]
    assert tune_command._check("BPR", request, points, 0.1) == ("mrr@10", True)


def test_a_method_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A YAML file is a method; its name is the file's."""
    (tmp_path / "mine.yaml").write_text("dsl_init: aligned\ndsl_update_ratio: 0.0\n")
    method = read_method("mine.yaml")
    assert (method.name, method.trains_as, method.densities) == ("mine", "mine.yaml", True)
    monkeypatch.setattr(Path, "expanduser", lambda path: tmp_path / path.name if path.parts[0] == "~" else path)
    assert read_method("~/mine.yaml") == replace(method, trains_as="~/mine.yaml")


@given(st.integers(1, 64), st.integers(1, 64))
def test_widths_scale_together(usual: int, columns: int) -> None:
    """The first one exactly, the others in proportion, none below 1."""
    widths = Widths({"a": usual, "b": [2 * usual, 1]})
    told = widths.at(columns)
    assert told["a"] == columns and told["b"] == [2 * columns, max(1, int(columns / usual + 0.5))]


@pytest.mark.parametrize(
    ("columns", "latent", "hidden"),
    [(128, 128, 600), (19, 20, 89), (20, 20, 94), (5, 6, 23), (2, 2, 9), (1, 2, 5)],
)
def test_what_a_model_halves_stays_even(columns: int, latent: int, hidden: int) -> None:
    """128 and 600 by hand: 600 · 19 / 128 = 89.06; halves go up."""
    config = {"model": "MultiVAE", "latent_dimension": 128, "mlp_hidden_size": [600]}
    method = read_method("narrow")
    widths = Widths.of(config, method.widths, method.even)
    assert widths.at(columns) == {"latent_dimension": latent, "mlp_hidden_size": [hidden]}
    others = Widths.of({**config, "model": "MultiDAE"}, method.widths, method.even)
    assert others.at(5) == {"latent_dimension": 5, "mlp_hidden_size": [23]}


@pytest.mark.parametrize("method", ["narrow", "narrow_training"])
def test_a_narrow_multivae_trains(method: str, data: Path, tmp_path: Path) -> None:
    """At densities for which the widest model would have an odd latent dimension, too."""
    of = task(data, tmp_path, method, model="MultiVAE")
    sizes = {"latent_dimension": 16, "mlp_hidden_size": [24], "train_batch_size": 40}
    of = replace(of, settings={**of.settings, **sizes, "epochs": 1})
    seen = set()
    for density in (0.2, 0.25, 0.3, 0.35):
        told = run(replace(of, density=density))
        seen.add(told.analysis["narrow"]["latent_dimension"])
        assert told.test_result and told.sparsity["live"] < told.sparsity["weights"]
    assert seen and all(latent % 2 == 0 for latent in seen)


# --- popularity --------------------------------------------------------------------------------------


def test_deciles_by_hand() -> None:
    """Twenty ids after the padding: two in each, the most popular first, ties by id."""
    counts = np.array([99, *range(20)])
    told = popularity.deciles(counts)
    assert told[0] == -1
    assert told[20] == told[19] == 0 and told[1] == told[2] == 9
    assert popularity.deciles(np.zeros(21, int))[1:].tolist() == [i // 2 for i in range(20)]


def test_recall_by_decile_by_hand(data: Path) -> None:
    """Of a model with scores of its own, counted naively; it adds up to all hits."""
    trainer, test_data = untrained(data)
    train = Interactions(torch.tensor([1, 1]), torch.tensor([3, 3]), USERS + 1, ITEMS + 1)
    told = popularity.by_popularity(trainer, train, test_data, [5, 10])["items"]
    of = popularity.deciles(np.bincount([3, 3], minlength=ITEMS + 1))
    hits, positives = {5: [0] * 10, 10: [0] * 10}, [0] * 10
    for batch in test_data:
        _, scores, users, items = trainer._full_sort_batch_eval(batch)
        for user, item in zip(users.tolist(), items.tolist(), strict=True):
            best = scores[user].sort(descending=True).indices.tolist()
            positives[of[item]] += 1
            for k in hits:
                hits[k][of[item]] += item in best[:k]
    assert told["positives"] == positives and sum(positives) > 100
    for k, expected in hits.items():
        ratio = [h / p if p else None for h, p in zip(expected, positives, strict=True)]
        assert told["recall"][str(k)] == pytest.approx(ratio)


def untrained(data: Path) -> tuple[Any, Any]:
    config, _, train_data, _, test_data = recbole_data("BPR", NAME, settings_for(data))
    trainer = trainer_of(config, train_data)
    trainer.eval_collector.data_collect(train_data)
    trainer.evaluate(test_data, load_best_model=False)
    return trainer, test_data


# --- the grid ----------------------------------------------------------------------------------------


def test_cells_of_a_grid() -> None:
    """Methods without a density have one cell; whole seeds follow each other."""
    dense, dsl = read_method("dense"), read_method("dsl")
    cells = cells_of(["BPR"], ["ml-100k"], [dense, dsl], [0.5, 0.05], [1, 2])
    assert [cell.key for cell in cells] == [
        "BPR-ml-100k-dense-1", "BPR-ml-100k-dsl-0.5-1", "BPR-ml-100k-dsl-0.05-1",
        "BPR-ml-100k-dense-2", "BPR-ml-100k-dsl-0.5-2", "BPR-ml-100k-dsl-0.05-2",
    ]  # fmt: skip
    assert Cell("a.b:C", "d", "dense", None, 1).key == "a.b.C-d-dense-1"
    for densities in ([0.0], [1.5], [0.1, 0.1]):
        with pytest.raises(ConfigError):
            cells_of(["BPR"], ["ml-100k"], [dsl], densities, [1])
    assert len({Cell("M", "d", "dsl", x, 1).key for x in (0.1234567, 0.12345671)}) == 2
    with pytest.raises(ConfigError, match="different names"):
        cells_of(["a:M", "b:M"], ["ml-100k"], [dsl], [0.1], [1])
    other = replace(dsl, name="DSL")
    with pytest.raises(ConfigError, match=r"BPR-ml-100k-DSL-0\.1-1 is there twice; .* whatever the case"):
        cells_of(["BPR"], ["ml-100k"], [dsl, other], [0.1], [1])


def test_dense_models_that_others_need_come_first(tmp_path: Path) -> None:
    """Once for each seed, counted only if asked for, and only if something is left that needs them."""
    used = [read_method("magnitude"), read_method("int8"), read_method("dsl")]
    cells = cells_of(["BPR"], ["ml-100k"], used, [0.1], [1, 2])
    store = Store(tmp_path / "s")
    store.open(grid(), {})
    named = {method.name: (method.name, method) for method in used}
    settings = {cell: {} for one in cells for cell in (one, one.dense)}
    jobs = jobs_of(cells, named, settings, store)
    assert [job.cell.key for job in jobs[:2]] == ["BPR-ml-100k-dense-1", "BPR-ml-100k-dense-2"]
    assert not jobs[0].counts and jobs[0].keep and len(jobs) == 8
    assert [job.needs for job in jobs[2:5]] == [cells[0].dense, cells[0].dense, None]
    store.path("dense", cells[0].dense, ".pth").write_text("")  # without its figures it does not count
    assert len(jobs_of(cells, named, settings, store)) == 8
    store.path("dense", cells[0].dense).write_text("")
    assert len(jobs_of(cells, named, settings, store)) == 7
    for cell in cells:
        if cell.method != "dsl":
            store.path("cells", cell).write_text("{}")
    assert [job.cell.method for job in jobs_of(cells, named, settings, store)] == ["dsl", "dsl"]
    store.close()


def grid(**more: Any) -> dict[str, Any]:
    lists = {key: [] for key in ("models", "datasets", "methods", "densities", "seeds")}
    return {**lists, "settings": {}, "tuned": {}, "method_files": {}, **more}


@pytest.mark.parametrize("name", ["settings.yaml", "temporary/keep/x.txt", "table.md", "cells/mine.json"])
def test_a_folder_that_is_no_comparison_is_left_alone(name: str, tmp_path: Path) -> None:
    """Whatever is in it; what a comparison that was killed at its start has left is none of that."""
    home = tmp_path / "one"
    (home / name).parent.mkdir(parents=True)
    (home / name).write_text("mine")
    with pytest.raises(
        ConfigError, match=r"is no comparison and holds '.*which would be overwritten or deleted"
    ):
        Store(home).open(grid(), {})
    assert (home / name).read_text() == "mine" and not (home / "grid.json").exists()
    killed = tmp_path / "two"
    (killed / "cells").mkdir(parents=True)
    (killed / ".lock").touch()
    store = Store(killed)
    store.open(grid(), {})
    store.close()


def test_a_folder_with_other_files_may_be_used(tmp_path: Path) -> None:
    """Such as the file to which the output goes."""
    (tmp_path / "out.txt").write_text("mine")
    store = Store(tmp_path)
    store.open(grid(), {})
    store.close()
    assert (tmp_path / "out.txt").read_text() == "mine"


def test_a_folder_has_one_setting(tmp_path: Path) -> None:
    """More seeds may be added, other settings may not, and two processes may not work there at once."""
    store = Store(tmp_path / "results" / "one")
    store.open(grid(seeds=[1], settings={"epochs": "3"}), {"topk": [10]})
    with pytest.raises(ConfigError, match="at work"):
        Store(store.folder).open(grid(), {})
    store.close()
    with pytest.raises(ConfigError, match="epochs='3', and now it is '4'"):
        Store(store.folder).open(grid(settings={"epochs": "4"}), {"topk": [10]})
    again = Store(store.folder)
    again._lock.release(force=True)
    again.open(grid(seeds=[2], settings={"epochs": "3"}), {"topk": [10]})
    again.close()
    assert json.loads((store.folder / "grid.json").read_text())["seeds"] == [1, 2]


def test_a_folder_has_one_content_of_a_method_file(tmp_path: Path) -> None:
    """One that was changed meanwhile would mix two methods in one row; other files may come."""
    store = Store(tmp_path / "s")
    for files in ({"mine.yaml": {"dsl_drop": "taylor"}}, {"other.yaml": {}}, {}):
        store.open(grid(method_files=files), {})
        store.close()
    for path in ("mine.yaml", "elsewhere/mine.yaml"):
        with pytest.raises(ConfigError, match=rf"another content of '{path}'"):
            store.open(grid(method_files={path: {"dsl_drop": "magnitude"}}), {})
        store.close()
    again = {"method_files": {"./mine.yaml": {"dsl_drop": "taylor"}}, "methods": ["./mine.yaml"]}
    store.open(grid(**{**again, "methods": ["mine.yaml"]}), {})
    store.close()
    store.open(grid(**again), {})
    store.close()
    assert json.loads((store.folder / "grid.json").read_text())["methods"].count("mine.yaml") == 1
    assert "./mine.yaml" not in json.loads((store.folder / "grid.json").read_text())["methods"]


def test_a_folder_has_one_class_of_a_name(tmp_path: Path) -> None:
    """Cells of two would be one row."""
    store = Store(tmp_path / "s")
    store.open(grid(models=["one.module:Net"]), {})
    store.close()
    with pytest.raises(ConfigError, match="a row for each name"):
        store.open(grid(models=["other.module:Net"]), {})


def test_a_flag_may_become_a_line_of_a_file(tmp_path: Path) -> None:
    """They mean the same; dates, which YAML reads as such, are kept as text."""
    store = Store(tmp_path / "s")
    store.open(grid(settings={"epochs": "2", "metrics": "['NDCG']"}), {"since": datetime.date(2024, 1, 1)})
    store.close()
    store.open(grid(), {"epochs": 2, "metrics": ["NDCG"], "since": datetime.date(2024, 1, 1)})
    store.close()
    assert json.loads((store.folder / "grid.json").read_text())["settings"]["since"] == "2024-01-01"


def test_what_killed_cells_leave_is_deleted(tmp_path: Path) -> None:
    """Checkpoints of RecBole's trainings lie in the comparison's folder, not in the system's."""
    store = Store(tmp_path / "s")
    store.open(grid(), {})
    store.close()
    (store.folder / "temporary" / "x").mkdir()
    (store.folder / "temporary" / "x" / "BPR.pth").write_text("")
    store.open(grid(), {})
    store.close()
    assert not list((store.folder / "temporary").iterdir())


def test_checkpoints_of_finished_cells_are_deleted(tmp_path: Path) -> None:
    """A process that dies after its result is written leaves them; those of other cells are gone on from."""
    store = Store(tmp_path / "s")
    store.open(grid(), {})
    store.close()
    done, left = (Cell("BPR", "some", "dsl", density, 1) for density in (0.1, 0.05))
    for cell in (done, left):
        store.run_folder(cell).mkdir(parents=True)
        (store.run_folder(cell) / "BPR-last.dsl").write_text("")
    store.path("cells", done).write_text("{}")
    store.open(grid(), {})
    store.close()
    assert list((store.folder / "runs").iterdir()) == [store.run_folder(left)]
    assert (store.run_folder(left) / "BPR-last.dsl").is_file()


def test_a_cell_that_runs_again_has_no_old_note(tmp_path: Path) -> None:
    """Else it would be told with an error of another time if it fails without a word."""
    store, cell = Store(tmp_path / "s"), Cell("BPR", "nothing", "dsl", 0.1, 1)
    store.open(grid(), {})
    store.note("failed", cell, "Disk full")
    runner = Runner(store, 1)
    runner._start(Job(cell, "dsl", {}))
    process = next(iter(runner.running))
    process.kill()
    process.wait()
    runner._ended()
    store.close()
    assert "signal 9" in json.loads(store.path("failed", cell).read_text())["error"]


BAD = [
    (["--methods=dsl_puls"], "did you mean 'dsl_plus'"),
    (["--densities=0"], "densities=0 is refused"),
    (["--densities=a"], "allowed are numbers"),
    (["--densities=0.1,0.1"], "different names"),
    (["--seeds=0"], "--seeds=0 is refused"),
    (["--seeds=a,b"], "--seeds=a,b is refused"),
    (["--jobs=none"], "--jobs=none is refused"),
    (["--models=BPRR"], "did you mean 'BPR'"),
    (["--datasets=no-such-data"], "no-such-data"),
    (["--metric=auc"], "--metric=auc is none"),
    (["--seed=3"], "seed='3' is refused"),
    (["--dsl_density=0.3"], "dsl_density='0.3' is refused"),
    (["--dsl_densty=0.3"], "dsl_density"),
    (["--epochs", "3"], "allowed is --epochs=3"),
    (["--name=a/b"], "--name=a/b is refused"),
    (["--tuned=no.yaml"], "cannot be read"),
    (["--config_files=no.yaml"], "cannot be read"),
    (["--learning_rate=-1"], "learning_rate"),
    (["--methods="], "--methods= is refused"),
    (["--name=.."], "--name=.. is refused"),
    (["--methods=a/mine.yaml,b/mine.yaml"], "both named 'mine'"),
    (["--methods=a/narrow.yaml"], "its name 'narrow' is taken"),
    (["--nproc=2"], "nproc='2' is refused"),
    (["--seeds=99999999999,"], "allowed is how many, or a list of whole numbers below 4294967296"),
    (
        ["--models=BPR,DeepFM", "--methods=static"],
        "valid_metric=mrr@10 is none of the metrics that are computed",
    ),
    (["--models=RecVAE", "--methods=narrow"], "cannot be made narrow"),
    *(
        (
            ["--models=RecVAE", f"--methods={name}"],
            f"Method '{name}' cannot train RecVAE, which loads its encoder",
        )
        for name in ("pep", "hash", "lottery")
    ),
    (
        ["--learning_rate=0.3", "--tuned=tuned.yaml", "--methods=static"],
        "--learning_rate is in the tuned settings, too",
    ),
    (["--tuned=tuned.yaml"], "embedding_size=32 for narrow and 16 for dsl_plus, whose bytes narrow is to have"),
    (["--tuned=a/how.yaml"], "'how' may say in words"),
    (["--methods=dense,b/large.yaml"], "dsl_budget='20KB' in 'b/large.yaml' is refused, because every cell"),
    (["--methods=dense,static", "--dsl_init_values=topology"], "contradicts dsl_init='random'"),
    (["--methods=dense,~/no.yaml"], "/no.yaml' cannot be read"),
]


@pytest.mark.parametrize(("flags", "told"), BAD, ids=lambda x: x[0] if isinstance(x, list) else None)
def test_bad_flags_are_one_sentence(
    flags: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, one line, and no folder."""
    for file in ("a/mine.yaml", "b/mine.yaml", "a/narrow.yaml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("dsl_drop: taylor\n")
    (tmp_path / "b" / "large.yaml").write_text("dsl_density: 0.3\ndsl_budget: 20KB\n")
    chosen = {
        "static": {"learning_rate": 0.1},
        "narrow": {"embedding_size": 32},
        "dsl_plus": {"embedding_size": 16},
    }
    (tmp_path / "tuned.yaml").write_text(
        yaml.safe_dump({"chosen": {"BPR": {"ml-100k": chosen}}, "how": "by hand"})
    )
    (tmp_path / "a" / "how.yaml").write_text(
        yaml.safe_dump({"chosen": {"BPR": {"ml-100k": chosen}}, "how": {"seed": 1}})
    )
    assert main(["compare", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and told in error
    assert not (tmp_path / "results").exists()


def test_tuned_settings_are_those_of_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By model, dataset and method; anything else in the file is refused."""
    good = tmp_path / "good.yaml"
    good.write_text("chosen: {BPR: {ml-100k: {dsl: {learning_rate: 0.01}}}}\n")
    tuned = read_tuned(str(good))
    assert settings_of(tuned, Cell("BPR", "ml-100k", "dsl", 0.1, 1)) == {"learning_rate": 0.01}
    assert settings_of(tuned, Cell("BPR", "ml-100k", "dense", None, 1)) == {}
    how = "{space: none, trials: 2, density: tenth, seed: 1, metric: x}"
    good.write_text(f"chosen: {{BPR: {{ml-100k: {{dsl: {{learning_rate: 0.01}}}}}}}}\nhow: {how}\n")
    assert main(["compare", "--tuned=good.yaml"]) == 2  # which no report could tell
    assert "allowed" in capsys.readouterr().err
    for bad in ("3", "{BPR: 3}", "{BPR: {d: 3}}", "{BPR: {d: {dsl: 3}}}", "{BPR: {d: {dsl: {seed: 3}}}}", "{}"):
        (tmp_path / "bad.yaml").write_text(f"chosen: {bad}\n")
        assert main(["compare", "--tuned=bad.yaml"]) == 2
        assert "allowed" in capsys.readouterr().err


# --- whole comparisons, by the command line ----------------------------------------------------------


def command(data: Path, *flags: str) -> list[str]:
    """The real command, on the generated data."""
    own = [f"--data_path={data}", "--epochs=2", "--embedding_size=16", "--train_batch_size=256"]
    own += ["--load_col={'inter': ['user_id', 'item_id']}", "--topk=[5, 10]", "--valid_metric=NDCG@10"]
    own += ["--metrics=['Recall', 'NDCG']", f"--dataset={NAME}", "--name=t"]
    return [sys.executable, "-W", "ignore", str(SCRIPT), "compare", *own, *flags]


@pytest.mark.slow
def test_a_killed_comparison_goes_on(data: Path, tmp_path: Path) -> None:
    """SIGKILL after the first cell: nothing stays behind, and the next call runs the others only."""
    flags = ["--methods=static,magnitude", "--densities=0.25"]
    cells = tmp_path / "results" / "t" / "cells"
    process = subprocess.Popen(command(data, *flags), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: len(list(cells.glob("*.json"))) >= 1)
    process.kill()
    process.wait()
    wait_for(lambda: not working_in(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert 1 <= len(before) < 3
    done = subprocess.run(command(data, *flags), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    results = summary.read_cells(cells.parent)
    assert sorted(results) == ["BPR-tiny-magnitude-0.25-2020", "BPR-tiny-static-0.25-2020"]
    assert not list((cells.parent / "failed").iterdir())
    check_tables(cells.parent, done.stdout)
    again = subprocess.run(command(data, *flags), capture_output=True, text=True)
    assert again.returncode == 0 and {p: p.stat().st_mtime_ns for p in before} == before


def check_tables(folder: Path, printed: str) -> None:
    """The Markdown and CSV tables are what the cells' JSON says, recomputed here."""
    by_row: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted((folder / "cells").glob("*.json")):
        cell = json.loads(path.read_text())
        by_row.setdefault((cell["method"], path.stem.split("-")[3]), []).append(cell)
    text = (folder / "table.md").read_text()
    assert text.strip() in printed
    for (method, density), cells in by_row.items():
        scores = [cell["test_result"]["ndcg@10"] for cell in cells]
        told = f"| {statistics.fmean(scores):.4f} |"
        size = cells[0]["costs"]["weight_bytes"] + cells[0]["costs"]["index_bytes"]
        (line,) = [line for line in text.replace("*", "").splitlines() if f"| {method} | {density} |" in line]
        assert told in line and f"| {size:,} |" in line and line.endswith(f"| {len(scores)} |")
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == len(by_row)
    for row in rows:
        scores = [c["test_result"]["ndcg@10"] for c in by_row[row["method"], row["density"]]]
        assert float(row["test ndcg@10"]) == statistics.fmean(scores)


def wait_for(condition: Any, seconds: float = 90) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def working_in(folder: Path) -> list[int]:
    """Processes whose working directory is ``folder``, this one aside."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if int(process.name) != os.getpid() and process.joinpath("cwd").resolve() == folder.resolve():
                found.append(int(process.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_comparison_says_what_it_stopped(
    number: signal.Signals, status: int, data: Path, tmp_path: Path
) -> None:
    """Its cell is among the cancelled ones, and the next call goes on with it; SIGTERM is a scheduler's."""
    folder = tmp_path / "results" / "t"
    flags = ["--methods=static", "--densities=0.25", "--epochs=200", "--stopping_step=200"]
    flags = [flag for flag in command(data, *flags) if flag != "--epochs=2"]
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from recbole_dsl.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, *flags[4:]], stderr=subprocess.PIPE, text=True)
    log = folder / "logs" / "BPR-tiny-static-0.25-2020.log"
    wait_for(lambda: log.is_file() and "epoch 2 training" in log.read_text())
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in error
    assert "error: interrupted; checkpoints that were written are kept." in error
    told = json.loads((folder / "cancelled" / "BPR-tiny-static-0.25-2020.json").read_text())
    assert "interrupted" in told["error"] and told["cell"]["density"] == 0.25
    assert not working_in(tmp_path) and not list((folder / "cells").iterdir())
    with FileLock(folder / ".lock", timeout=0):
        pass
    assert list((folder / "runs" / "BPR-tiny-static-0.25-2020").glob("*-last.dsl"))
    done = subprocess.run(flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "epoch 199 training" in log.read_text() and "epoch 0 training" not in log.read_text()
    (result,) = summary.read_cells(folder).values()
    assert result.epochs_run == 200 and not list((folder / "runs").iterdir())


def test_failed_and_cancelled_cells_are_kept_apart(tmp_path: Path) -> None:
    """Data that RecBole cannot read: every cell says why, and what needed the dense model was not begun."""
    home = tmp_path / "data" / NAME
    home.mkdir(parents=True)
    (home / f"{NAME}.inter").write_text("user_id:token\titem_id:nonsense\nu1\ti1\n")
    done = subprocess.run(
        command(tmp_path / "data", "--methods=dense,dsl,magnitude", "--jobs=2"), capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: 2 cells failed and 1 were cancelled")
    folder = tmp_path / "results" / "t"
    assert {p.stem for p in (folder / "failed").iterdir()} == {
        "BPR-tiny-dense-2020",
        "BPR-tiny-dsl-0.1-2020",
    }
    (cancelled,) = (folder / "cancelled").iterdir()
    assert "BPR-tiny-dense-2020 that it starts from failed" in json.loads(cancelled.read_text())["error"]
    failed = json.loads((folder / "failed" / "BPR-tiny-dsl-0.1-2020.json").read_text())
    assert "cannot be prepared" in failed["error"] and "\n" not in failed["error"]
    assert not list((folder / "cells").iterdir())


# --- tuning ------------------------------------------------------------------------------------------


def test_points_are_a_grid_or_drawn_once(tmp_path: Path) -> None:
    """RecBole's form of file; all choices where they are few enough, else different ones within bounds."""
    (tmp_path / "space").write_text(
        "learning_rate choice [0.01, 0.001]  # two\n\nreg_weight loguniform -8, 0\n"
        "dropout uniform 0.1,0.5\nn_layers quniform 1,4,1\n"
    )
    space = read_space(tmp_path / "space")
    assert [d.kind for d in space] == ["choice", "loguniform", "uniform", "quniform"]
    points = points_of(space, 20, seed=3)
    assert points == points_of(space, 20, seed=3) != points_of(space, 20, seed=4) and len(points) == 20
    for point in points:
        assert point["learning_rate"] in (0.01, 0.001) and 0.1 <= point["dropout"] <= 0.5
        assert math.exp(-8) <= point["reg_weight"] <= 1 and point["n_layers"] in (1, 2, 3, 4)
        assert type(point["n_layers"]) is int  # as RecBole needs it for sizes
    choices = [Dimension("a", "choice", (1, 2)), Dimension("b", "choice", ("x", "y", "z"))]
    assert points_of(choices, 6, 0) == [{"a": a, "b": b} for a in (1, 2) for b in ("x", "y", "z")]
    few = points_of(choices, 4, 0)
    assert len(few) == 4 and all(few.count(point) == 1 for point in few)


@pytest.mark.parametrize(
    "line",
    ["a choice", "a choice []", "a choice x", "a uniform 2,1", "a uniform 1", "a quniform 1,2,0", "a magic 1,2",
     "a loguniform 64,4096", "a uniform -1e999,1e999", "a quniform 1,2,1e999", "a choice [{1, 2}]",
     "a choice [1e999]",
     "a choice [1]\na choice [2]", "", "seed choice [1, 2]", "dsl_densty choice [1]",
     "learning_rate choice [-1]", "learning_rte choice [0.1]"],
)  # fmt: skip
def test_bad_spaces_are_one_sentence(line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before any trial, and with what is allowed."""
    (tmp_path / "space").write_text(line + "\n")
    assert main(["tune", "--space=space"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "allowed" in error
    assert not (tmp_path / "results").exists()


def test_tune_needs_something_to_tune(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A space, and methods that train."""
    assert main(["tune"]) == 2 and "--space is missing" in capsys.readouterr().err
    (tmp_path / "space").write_text("learning_rate choice [0.01]\n")
    assert main(["tune", "--space=space", "--methods=int8"]) == 2
    assert "nothing to tune" in capsys.readouterr().err
    for flag in ("--density=0.1,0.2", "--seed=1,2", "--seed=-1", f"--seed={2**32}"):
        assert main(["tune", "--space=space", flag]) == 2
        assert f"{flag} is refused" in capsys.readouterr().err
    for flag in ("--epochs=0", "--eval_step=0"):
        assert main(["tune", "--space=space", "--models=BPR", "--methods=dense", flag]) == 2
        assert f"{flag[2:]} is refused, because nothing would be validated" in capsys.readouterr().err
    for line, told in (
        ("epochs choice [0, 2]", "epochs=0 is refused, because nothing would be validated"),
        (
            "embedding_size choice [16, 32]",
            "'embedding_size' in --space is refused, because narrow is to have the",
        ),
        ("dsl_init choice ['random']\ndsl_init_values choice ['topology']", "contradicts dsl_init='random'"),
    ):
        (tmp_path / "space").write_text(line)
        assert main(["tune", "--space=space", "--models=BPR", "--methods=narrow,dsl_plus"]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_what_takes_the_dense_model_takes_its_settings(tmp_path: Path) -> None:
    """Its weights as they are (int8, magnitude_once) belong to that model; what is trained is tuned itself."""
    (tmp_path / "tuned.yaml").write_text(
        "chosen: {LightGCN: {ml-100k: {dense: {n_layers: 3}, magnitude: {learning_rate: 0.1}}}}\n"
    )
    flags = ["--models=LightGCN", "--methods=int8,magnitude_once,magnitude,dsl", "--tuned=tuned.yaml"]
    _, request = Request.read(compare_command.parser(), [*flags, "--state=INFO"])
    settings = compare_command._settings(request.cells([0.1], [1]), request)
    assert {cell.method: of for cell, of in settings.items()} == {
        "dense": {"state": "INFO", "n_layers": 3},
        "int8": {"state": "INFO", "n_layers": 3},
        "magnitude_once": {"state": "INFO", "n_layers": 3},
        "magnitude": {"state": "INFO", "learning_rate": 0.1},
        "dsl": {"state": "INFO"},
    }


def test_a_folder_of_trials_may_hold_a_model_that_a_method_refuses(tmp_path: Path) -> None:
    """Calls with different methods share it: what no call has asked for is no cell of it."""
    store = Store(tmp_path / "s")
    store.open(grid(models=["BPR", "RecVAE"], datasets=["d"], methods=["dense", "lottery"]), {})
    cells, starting = tune_command._cells_of_folder(store, 0.1, 2020)
    assert [(cell.model, cell.method) for cell in cells] == [
        ("BPR", "dense"),
        ("BPR", "lottery"),
        ("RecVAE", "dense"),
    ]
    assert [cell.model for cell in starting] == ["BPR"]


def test_a_tuning_is_of_one_density_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As its file says of all methods."""
    (tmp_path / "space").write_text("learning_rate choice [0.01]\n")
    store = Store(tmp_path / "results" / "t")
    store.open(grid(densities=[0.1], seeds=[2020]), {})
    store.close()
    for flag, told in (
        ("--density=0.5", "trials of density 0.1, and now it is 0.5"),
        ("--seed=7", "of seed 2020"),
    ):
        assert main(["tune", "--space=space", "--models=BPR", "--methods=static", "--name=t", flag]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_tuning_goes_on_with_other_methods(data: Path, tmp_path: Path) -> None:
    """Earlier choices stay, and a trial that cannot be run is the worst one."""
    (tmp_path / "space").write_text("dropout_prob choice [1.5, 0.1]\n")
    flags = [flag for flag in command(data) if flag != "compare"]
    flags.insert(flags.index(str(SCRIPT)) + 1, "tune")
    flags += ["--models=NeuMF", "--space=space", "--density=0.25", "--jobs=2", "--epochs=1"]
    flags.remove("--epochs=2")
    for method in ("static", "dense"):
        done = subprocess.run([*flags, f"--methods={method}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "1 trials failed and count as the worst" in done.stderr
    chosen = read_tuned(str(tmp_path / "results" / "t" / "tuned.yaml"))["chosen"]
    assert chosen == {"NeuMF": {NAME: {"static": {"dropout_prob": 0.1}, "dense": {"dropout_prob": 0.1}}}}
    rows = list(csv.DictReader((tmp_path / "results" / "t" / "trials.csv").open()))
    assert [(row["method"], row["dropout_prob"], row["epochs"]) for row in rows] == [
        (method, *trial) for method in ("static", "dense") for trial in (("1.5", ""), ("0.1", "1"))
    ]
    (tmp_path / "space").write_text("dropout_prob choice [1.5]\n")
    flags = [flag.replace("--name=t", "--name=u") for flag in flags]
    done = subprocess.run([*flags, "--methods=static"], capture_output=True, text=True)
    assert done.returncode == 2 and "1 trials failed" in done.stderr


def test_trials_from_another_dense_model_are_not_kept(tmp_path: Path) -> None:
    """What pruned an untuned dense model says nothing of the tuned one."""
    store, cell = Store(tmp_path / "s"), Cell("M", "a-b", "magnitude", 0.1, 1)
    store.open(grid(), {})
    result = dataclasses.replace(result_with("dense", 1, 0.1), config={"learning_rate": 0.001})
    result.save(store.path("dense", cell.dense))
    for rate in (0.001, 0.01):
        chosen = {"chosen": {"M": {"a-b": {"dense": {"learning_rate": rate}}}}}
        with pytest.raises(ConfigError, match="trials of magnitude") if rate == 0.01 else nullcontext():
            tune_command._refuse_other_dense(store, [cell], chosen)
    result = dataclasses.replace(result, config={"mlp_hidden_size": [16, 8]})
    result.save(store.path("dense", cell.dense))
    for sizes in ("[16,8]", (16, 8)):  # as files of spaces write them; and what dense has none of
        asked = {"mlp_hidden_size": sizes, "dsl_update_ratio": 0.3}
        tune_command._refuse_other_dense(store, [cell], {"chosen": {"M": {"a-b": {"dense": asked}}}})
    store.close()


@pytest.mark.slow
def test_tuning_chooses_on_validation(data: Path, tmp_path: Path) -> None:
    """The best validation result of every method's trials; what prunes starts from the tuned dense model."""
    (tmp_path / "space").write_text("learning_rate choice [0.00001, 0.05]\n")
    flags = [flag for flag in command(data) if flag != "compare"]
    flags.insert(flags.index(str(SCRIPT)) + 1, "tune")
    own = ["--space=space", "--methods=magnitude,dense", "--density=0.25", "--epochs=6", "--jobs=2"]
    flags = [flag for flag in flags if flag != "--epochs=2"]
    done = subprocess.run([*flags, *own], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "results" / "t"
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [(row["method"], row["learning_rate"]) for row in rows] == [
        (method, rate) for method in ("magnitude", "dense") for rate in ("1e-05", "0.05")
    ]
    chosen = read_tuned(str(folder / "tuned.yaml"))
    for method in ("magnitude", "dense"):
        best = max((r for r in rows if r["method"] == method), key=lambda r: float(r["best validation result"]))
        density = 0.25 if method == "magnitude" else None
        told = settings_of(chosen, Cell("BPR", NAME, method, density, 2020))
        assert told == {"learning_rate": float(best["learning_rate"])}
    assert chosen["how"]["trials"] == 2 and chosen["how"]["metric"] == "ndcg@10"
    results = summary.read_cells(folder)
    assert len(results) == 4 and all(r.test_result == {} == r.analysis for r in results.values())
    dense = RunResult.from_json((folder / "dense" / "BPR-tiny-dense-2020.json").read_text())
    rate = settings_of(chosen, Cell("BPR", NAME, "dense", None, 1))["learning_rate"]
    assert dense.config["learning_rate"] == rate
    flags = [flag for flag in command(data) if flag not in ("--name=t", "--epochs=2")]
    compared = subprocess.run(
        [*flags, "--methods=dense", "--name=u", "--epochs=6", f"--tuned={folder / 'tuned.yaml'}"],
        capture_output=True,
        text=True,
    )
    assert compared.returncode == 0, compared.stderr
    (result,) = summary.read_cells(tmp_path / "results" / "u").values()
    assert result.test_result == dense.test_result and result.config["learning_rate"] == rate


# --- the table ---------------------------------------------------------------------------------------


def test_rows_by_hand(tmp_path: Path) -> None:
    """Means and deviations over seeds, and the ratio to dense over the seeds that both have."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "grid.json").write_text(json.dumps(grid(methods=["dsl", "dense"])))
    scores = {
        ("dense", None): {1: 0.4, 2: 0.6},
        ("dsl", 0.5): {1: 0.2, 2: 0.4, 3: 0.9},
        ("dsl", 1e-05): {2: 0.3},
    }
    for (method, density), by_seed in scores.items():
        for seed, score in by_seed.items():
            result_with(method, seed, score).save(
                tmp_path / "cells" / f"{Cell('M', 'a-b', method, density, seed).key}.json"
            )
    rows = summary.rows_of(summary.read_cells(tmp_path), read_grid(tmp_path)["methods"], "ndcg@10")
    assert [(r.method, r.density, len(r.scores)) for r in rows] == [
        ("dsl", 0.5, 3), ("dsl", 1e-05, 1), ("dense", None, 2),
    ]  # fmt: skip
    assert rows[0].mean == pytest.approx(0.5) and rows[0].to_dense == pytest.approx(0.6 / 1.0)
    assert rows[0].deviation == pytest.approx(statistics.stdev([0.2, 0.4, 0.9])) and rows[1].deviation is None
    text = summary.as_markdown(rows)
    assert "| a-b | M | dense |  | 0.5000 ± 0.1414 | 1.000 |  |  | 10 |" in text
    assert "| 1.50·10^8 |" in text


@pytest.mark.parametrize(
    ("metric", "places"), [("ndcg@10", [2, 1]), ("logloss", [1, 2]), ("giniindex@10", [1, 2])]
)
def test_places_of_metrics_of_which_less_is_better(metric: str, places: list[int]) -> None:
    """0.3 and 0.6: the larger nDCG is first, the smaller loss."""
    cells = {}
    for method, score in (("dsl", 0.3), ("narrow", 0.6)):
        result = dataclasses.replace(result_with(method, 1, score), test_result={metric: score})
        cells[Cell("M", "a-b", method, 0.1, 1).key] = result
    rows = summary.rows_of(cells, ["dsl", "narrow"], metric)
    assert [row.place for row in rows] == places


def test_weights_that_exist_are_counted() -> None:
    """Live ones and those that stay dense, as the bytes are of."""
    parts = {"live": 10, "groups": [{"live": 10}], "left_dense": [{"shape": [3, 4]}, {"shape": [5]}]}
    result = dataclasses.replace(result_with("dsl", 1, 0.1), sparsity=parts)
    assert summary.COLUMNS["live weights"](result) == 27
    dense = dataclasses.replace(result, sparsity={**parts, "live": 17, "groups": []})
    assert summary.COLUMNS["live weights"](dense) == 17


def test_cells_without_the_metric_have_no_row() -> None:
    """Models of other types in one folder; one that no cell has is refused. Signs of the table are escaped."""
    cells = {
        Cell("M", "a|b", "dsl", 0.1, 1).key: dataclasses.replace(result_with("dsl", 1, 0.3), dataset="a|b")
    }
    other = dataclasses.replace(result_with("dsl", 1, 0.7), model="N", test_result={"auc": 0.7})
    cells[Cell("N", "a-b", "dsl", 0.1, 1).key] = other
    (row,) = summary.rows_of(cells, ["dsl"], "ndcg@10")
    assert row.model == "M" and "| a\\|b | M |" in summary.as_markdown([row])
    assert summary.metric_of(cells, "AUC") == "auc"
    with pytest.raises(ConfigError, match="metric='rmse' is in no cell; allowed are auc, ndcg@10"):
        summary.metric_of(cells, "rmse")


def test_rows_of_unequal_seeds_have_no_place() -> None:
    """0.30 is above 0.20, but it is the better seed's alone."""
    scores = {"dsl": {1: 0.1, 2: 0.3}, "static": {1: 0.1, 2: 0.2}, "rigl": {2: 0.29}}
    cells = {
        Cell("M", "a-b", method, 0.1, seed).key: result_with(method, seed, score)
        for method, of in scores.items()
        for seed, score in of.items()
    }
    rows = summary.rows_of(cells, list(scores), "ndcg@10")
    assert [row.place for row in rows] == [1, 2, None]


def test_metrics_that_are_nothing_or_no_number() -> None:
    """No ratio to a dense model of zero; a seed whose metric is no number is left out of the mean."""
    scores: dict[str, dict[int, Any]] = {"dense": {1: 0.0}, "dsl": {1: 0.1, 2: None}, "rigl": {1: None}}
    cells = {
        Cell("M", "a-b", method, None if method == "dense" else 0.1, seed).key: result_with(method, seed, score)
        for method, of in scores.items()
        for seed, score in of.items()
    }
    rows = summary.rows_of(cells, list(scores), "ndcg@10")
    assert [(row.method, row.mean, row.to_dense) for row in rows] == [("dense", 0, None), ("dsl", 0.1, None)]
    assert "| 0.1000 |  |" in summary.as_markdown(rows)


def test_recbole_knows_the_same_metrics_of_which_less_is_better() -> None:
    from recbole.evaluator.register import smaller_metrics

    assert {name.lower() for name in smaller_metrics} == summary.SMALLER_IS_BETTER


def result_with(method: str, seed: int, score: float) -> RunResult:
    costs = {
        "weight_bytes": 40, "index_bytes": 2, "training_state_bytes": 99, "training_macs": 1.5e8,
        "macs_per_recommended_user": 7.25, "training_seconds": 0.5, "peak_memory_bytes": 70,
    }  # fmt: skip
    return RunResult(
        2, "M", "a-b", method, seed, {}, {"ndcg@10": score}, 3, [], [], [], {"live": 10}, costs, {}, {}
    )


def test_method_files_are_checked() -> None:
    """An unknown part or procedure is refused by name."""
    with pytest.raises(ConfigError, match="Part 'colour'"):
        methods._of_file("x", {"about": "x.", "colour": 1})
    with pytest.raises(ConfigError, match="procedure='magic'"):
        methods._of_file("x", {"about": "x.", "procedure": "magic"})
    assert isinstance(methods._of_file("x", {"about": "x."}), Method)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that pins processes")
def test_cells_share_the_cores_that_the_process_may_use(tmp_path: Path) -> None:
    """Not those of the machine: more threads than cores wait for each other."""
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert Runner(Store(tmp_path), 1).threads == 1
    finally:
        os.sched_setaffinity(0, allowed)
    assert Runner(Store(tmp_path), 1).threads == len(allowed)
