"""Whole runs on ml-100k: what is trained, logged, saved and returned."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from recbole_dsl import RunResult
from recbole_dsl.handle import masks
from recbole_dsl.training.checkpoint import read_checkpoint
from recbole_dsl.training.trainer import positives_of
from tests.model_runs import settings_of, sparse_trainer_of
from tests.recbole_runs import command_line, sparse_run

EXPLORING = {"dsl_update_interval": 10, "dsl_end": "100%"}


pytestmark = pytest.mark.usefixtures("in_folder")


@pytest.mark.parametrize("method", ["dense", "dsl", "dsl_plus", "sparserec", "static", "set", "rigl"])
def test_every_method_keeps_its_budget(method: str, tmp_path: Path) -> None:
    """One epoch of BPR by each shipped method; live is counted from the topology."""
    result = sparse_run("BPR", tmp_path, epochs=1, dsl_method=method, **EXPLORING)
    sparsity = result.sparsity
    assert sparsity["live"] == sparsity["budget"] == sum(g["live"] for g in sparsity["groups"])
    expected = {"dense": 1.0, "dsl": 0.5}.get(method, 0.1)
    assert sparsity["budget"] == int(expected * sparsity["weights"] + 0.5)
    # RigL's ratio falls to zero at the end, so its fourth update exchanges nothing.
    assert sparsity["updates"] == {"dense": 0, "static": 0, "rigl": 3}.get(method, 4)
    assert len(result.updates) == sparsity["updates"]
    assert all(event["live"] == sparsity["live"] for event in result.updates)
    assert (sparsity["exploration_rate"] > sparsity["density"]) == (sparsity["updates"] > 0)


def test_same_seed_same_run(tmp_path: Path) -> None:
    """Two runs agree bit for bit; another dsl_seed explores elsewhere."""
    settings = {"epochs": 2, "dsl_grow": "random", **EXPLORING}
    one = sparse_run("BPR", tmp_path, **settings)
    two = sparse_run("BPR", tmp_path, **settings)
    other = sparse_run("BPR", tmp_path, **settings, dsl_seed=7)
    assert one.train_loss == two.train_loss and one.test_result == two.test_result
    assert one.train_loss != other.train_loss


@pytest.mark.parametrize("model", ["BPR", "LightGCN", "MultiVAE"])
def test_packed_and_masked_training_agree(model: str, tmp_path: Path) -> None:
    """The same losses up to rounding before the first update, from the real command path."""
    settings = {"epochs": 1, "dsl_method": "dsl", "dsl_density": 0.2, "dsl_update_interval": 1000}
    packed = sparse_run(model, tmp_path, **settings)
    masked = sparse_run(model, tmp_path, **settings, dsl_storage="masked")
    assert masked.train_loss == pytest.approx(packed.train_loss, rel=1e-5)
    assert packed.costs["weight_bytes"] < 0.3 * masked.costs["weight_bytes"]


def test_width_is_free(tmp_path: Path) -> None:
    """256 columns, the budget of the dense model of 64: the same number of live weights."""
    plain = sparse_run("BPR", tmp_path, epochs=1)
    wide = sparse_run("BPR", tmp_path, epochs=1, dsl_width=256)
    assert wide.sparsity["budget"] == plain.sparsity["budget"]
    assert wide.sparsity["groups"][0]["tensors"][0]["shape"][1] == 256
    assert wide.costs["weight_bytes"] == plain.costs["weight_bytes"]
    assert wide.costs["index_bytes"] == plain.costs["index_bytes"]
    assert wide.config["embedding_size"] == 64


@pytest.mark.parametrize("budget, live", [(5000, 5000), ("50kB", None)])
def test_budget_in_weights_and_bytes(budget: int | str, live: int | None, tmp_path: Path) -> None:
    """A number of weights exactly, or as many as fit into that many bytes with their index."""
    result = sparse_run("BPR", tmp_path, epochs=1, dsl_budget=budget)
    if live is not None:
        assert result.sparsity["live"] == live
    else:
        held = result.costs["weight_bytes"] + result.costs["index_bytes"]
        assert 50_000 - 5 < held <= 50_000


def test_checkpoint_holds_the_best_epoch_and_no_pickle(tmp_path: Path) -> None:
    """It is a safetensors file, about as large as the live weights, and the tested one; another is the last."""
    result = sparse_run("LightGCN", tmp_path, epochs=3, **EXPLORING)
    path, last = checkpoints(tmp_path, "LightGCN")
    state = read_checkpoint(path)
    assert load_file(path) and read_checkpoint(last)["run"]["position"]["finished"] == "all epochs"
    assert state["config"]["dsl_method"] == "dsl_plus" and state["epoch"] in range(3)
    assert state["other_parameter"] == {"restore_user_e": None, "restore_item_e": None}
    assert set(state["state_dict"]) == {
        "packed_joint.weight",
        "packed_joint.row_pointers",
        "packed_joint.column_ids",
    }
    held = sum(result.costs[k] for k in ("weight_bytes", "index_bytes", "optimizer_bytes"))
    assert result.costs["checkpoint_bytes"] == path.stat().st_size < 1.1 * held + 10_000


@pytest.mark.parametrize("model", ["BPR", "FM"])
def test_labelled_evaluation_returns_its_result(model: str, tmp_path: Path) -> None:
    """Rows with labels instead of ranked items: no users to count costs by, all else as always."""
    result = sparse_run(
        model, tmp_path, epochs=1, threshold={"rating": 3}, metrics=["AUC", "LogLoss"], valid_metric="AUC",
        eval_args={"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"},
        train_neg_sample_args=None if model == "FM" else {"distribution": "uniform", "sample_num": 1},
        load_col={"inter": ["user_id", "item_id", "rating"]}, dsl_min_weights=0, **EXPLORING,
    )  # fmt: skip
    assert result.test_result["auc"] > 0.5
    assert result.costs["macs_per_recommended_user"] is None
    assert result.costs["macs_per_training_step"] > 0
    assert result.sparsity["live"] == result.sparsity["budget"] and result.sparsity["updates"] > 0


@pytest.mark.parametrize("model, learned", [("NeuMF", True), ("BPR", False)])
def test_disliked_items_are_none_of_the_factors(model: str, learned: bool, data: Path) -> None:
    """Where a model learns labels, pairs of label 0 are left out; a pairwise one takes all rows."""
    labelled = {"threshold": {"rating": 4}, **({"train_neg_sample_args": None} if learned else {})}
    settings = {
        **settings_of(model, data), "load_col": {"inter": ["user_id", "item_id", "rating"]}, **labelled,
        "metrics": ["AUC"], "valid_metric": "AUC",
        "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": None, "mode": "labeled"},
    }  # fmt: skip
    trainer, loaders = sparse_trainer_of(model, settings, method="dsl_plus")
    rows = loaders[0]._dataset.inter_feat
    liked = rows["label"] > 0
    assert liked.any() and not liked.all()
    kept = liked if learned else torch.ones_like(liked)
    found = positives_of(loaders[0])
    assert torch.equal(found.users, rows["user_id"][kept]) and torch.equal(found.items, rows["item_id"][kept])
    assert trainer.sparse.live == trainer.sparse.budget


def test_a_cost_that_cannot_be_had_does_not_cost_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The metrics of hours of training outweigh a figure."""

    def fail(*_: object) -> float:
        raise RuntimeError("cannot be counted")

    monkeypatch.setattr("recbole_dsl.experiment.forward_macs", fail)
    result = sparse_run("BPR", tmp_path, epochs=1)
    assert result.test_result and result.costs["macs_per_training_step"] is None
    assert "cannot be counted" in caplog.text


def test_runs_of_one_second_keep_their_own_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RecBole's file name has the time in seconds; a file that is there is not written over."""
    monkeypatch.setattr("recbole.trainer.trainer.get_local_time", lambda: "now")
    for _ in range(2):
        sparse_run("BPR", tmp_path, epochs=1)
    names = {"BPR-now.dsl", "BPR-now-last.dsl", "BPR-now-1.dsl", "BPR-now-1-last.dsl"}
    assert {path.name for path in tmp_path.iterdir()} >= names
    one, two = tmp_path / "BPR-now-1.dsl", tmp_path / "BPR-now.dsl"
    assert one.stat().st_size == two.stat().st_size > 0
    assert one.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def checkpoints(folder: Path, model: str) -> tuple[Path, Path]:
    """The best and the last checkpoint of the only run."""
    (last,) = folder.glob(f"{model}-*-last.dsl")
    (best,) = set(folder.glob(f"{model}-*.dsl")) - {last}
    return best, last


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_end_beyond_the_run_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log counts the updates that will happen."""
    caplog.set_level(logging.INFO)
    settings = {"dsl_end": "500 epochs", "dsl_update_interval": 20, "state": "INFO"}
    result = sparse_run("BPR", tmp_path, epochs=2, **settings)
    assert "is step 20000, but the run has 80 steps" in caplog.text
    assert "  4 updates, one every 20 steps" in caplog.text and result.sparsity["updates"] == 4


def test_a_run_without_saving_leaves_no_checkpoint(tmp_path: Path) -> None:
    """As in RecBole, ``saved=False`` tests the last epoch."""
    result = sparse_run("BPR", tmp_path, saved=False, epochs=1)
    assert result.costs["checkpoint_bytes"] is None and not list(tmp_path.glob("*.dsl"))
    assert result.test_result


def test_log_says_what_is_sparse_and_every_update(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Budget and tensors at the start; step, α, counts and R at every update."""
    caplog.set_level(logging.INFO)
    sparse_run("NeuMF", tmp_path, epochs=1, state="INFO", dsl_update_interval=50, dsl_end="100%")
    text = "\n".join(re.sub(r"\x1b\[[0-9;]*m", "", m) for m in caplog.messages)
    assert "Sparse training: method dsl_plus, 16813 of 168128 weights live" in text
    assert "packed group 'joint', budget 16813: user_mlp_embedding.weight (944, 64)" in text
    assert "dense user_mf_embedding.weight (944, 64): not named by dsl_include" in text
    updates = re.findall(
        r"update step (\d+), group 'joint': α = 0\.\d+, dropped (\d+), grown (\d+) "
        r"\(of these re-grown (\d+)\), live 16813, R = 0\.\d+",
        text,
    )
    assert [int(u[0]) for u in updates] == [50]
    assert list(tmp_path.glob("log_tensorboard/*/events*"))


def test_a_run_too_short_for_an_update_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is trained all the same."""
    result = sparse_run("BPR", tmp_path, epochs=1, dsl_update_interval=1000)
    assert "too short for a single update" in caplog.text
    assert result.sparsity["updates"] == 0 and result.epochs_run == 1


def test_command_line_writes_the_documented_result(tmp_path: Path) -> None:
    """The real command from another working directory; its JSON is a RunResult of schema 2."""
    out = tmp_path / "new" / "result.json"
    config = tmp_path / "mine.yaml"
    config.write_text("learning_rate: 0.002\ntopk: [5, 10]\n")
    done = command_line(
        "--model=BPR", "-d", "ml-100k", f"--config_files={config}", "--epochs=2",
        "--dsl_density=0.2", f"--dsl_result={out}", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = RunResult.from_json(out.read_text())
    assert set(json.loads(out.read_text())) == {
        "schema", "model", "dataset", "method", "seed", "best_valid_result", "test_result",
        "epochs_run", "train_loss", "valid_results", "updates", "sparsity", "costs", "environment", "config",
        "analysis",
    }  # fmt: skip
    assert result.schema == 2 and result.model == "BPR" and result.method == "dsl_plus"
    assert result.config["learning_rate"] == 0.002 and "recall@5" in result.test_result
    assert set(result.costs) == {
        "training_seconds", "training_macs", "seconds_per_epoch",
        "weight_bytes", "index_bytes", "gradient_bytes", "optimizer_bytes",
        "peak_memory_bytes", "checkpoint_bytes", "macs_per_training_step",
        "macs_per_recommended_user", "exploration_record_bytes", "growth_bytes", "preparation_seconds",
    }  # fmt: skip
    assert result.costs["exploration_record_bytes"] == (result.sparsity["weights"] + 7) // 8
    assert [told["epoch"] for told in result.valid_results] == [0, 1] and result.updates == []
    assert result.costs["growth_bytes"] == 0  # exploration ends before its first update
    assert set(result.sparsity) == {
        "density", "overall_density", "weights", "budget", "live", "updates", "exploration_rate",
        "without_factors", "groups", "left_dense",
    }  # fmt: skip
    assert "ρ 0.2" in done.stderr and "α" in done.stderr  # the progress bar


def test_masks_of_a_trained_model(tmp_path: Path) -> None:
    """Boolean masks by parameter name, for a packed model and its copy."""
    from recbole_dsl import sparsify

    model = torch.nn.Sequential(torch.nn.Embedding(30, 64), torch.nn.Linear(64, 32))
    handle = sparsify(model, 0.25)
    found = masks(model)
    assert {k: tuple(m.shape) for k, m in found.items()} == {
        "0.weight": (30, 64),
        "1.weight": (32, 64),
    }
    assert sum(int(m.sum()) for m in found.values()) == handle.budget


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    ["ConvNCF", "DGCF", "ENMF", "LINE", "NGCF", "NNCF", "SGL", "SimpleX", "SpectralCF"],
)
def test_models_built_on_a_user_and_an_item_table(model: str, tmp_path: Path) -> None:
    """They default to dsl_plus on these tables and keep the budget through their updates."""
    # ENMF takes no negative samples, and its batches are of users, of which there are few.
    # ConvNCF scores pair by pair: ranking all items for all users takes minutes.
    sampled = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user", "mode": "uni20"}
    special = {
        "ENMF": {"train_neg_sample_args": None, "train_batch_size": 128},
        "ConvNCF": {"eval_args": sampled},
    }
    result = sparse_run(
        model, tmp_path, epochs=1, dsl_update_interval=5, dsl_end="100%",
        **{"train_batch_size": 8192, **special.get(model, {})},
    )  # fmt: skip
    assert result.method == "dsl_plus" and result.sparsity["updates"] >= 1
    assert result.sparsity["live"] == result.sparsity["budget"]


def test_the_seed_of_a_run_draws_its_topology(data: Path) -> None:
    """Without a dsl_seed, so that the seeds of a comparison are runs of their own."""
    live = []
    for seed in (1, 1, 2):
        trainer, _ = sparse_trainer_of(
            "BPR", {**settings_of("BPR", data), "seed": seed}, method="dsl", density=0.2, init="random"
        )
        live.append(trainer.sparse.groups[0].live_positions())
    assert torch.equal(live[0], live[1]) and not torch.equal(live[0], live[2])
