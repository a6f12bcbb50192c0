"""Every RecBole model that gradients train is served with its own scores, or refused with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_dsl import SparseRecommender, export_artifact, load_data_and_model, run_recbole_dsl, support
from recbole_dsl.errors import ArtifactError, ConfigError
from recbole_dsl.serving import by_recbole, models
from recbole_dsl.serving.artifact import read_artifact
from recbole_dsl.serving.description import description
from tests.model_runs import no_flags, settings_of, sparse_run
from tests.tiny_data import NAME, write_tiny

pytestmark = pytest.mark.usefixtures("in_folder")

TRAINED = [row.model for row in support.rows() if row.status != support.REFUSED]
SERVED = [name for name in TRAINED if name in models.VECTORS or name in models.BY_RECBOLE]
QUICK = {
    "BPR",
    "ENMF",
    "LightGCN",
    "NGCF",
    "SGL",
    "SimpleX",
    "DMF",
    "CKE",
    "NeuMF",
    "MultiVAE",
    "SASRec",
    "BERT4Rec",
}
NO_DROPPED_EDGES = {"KGIN": {"node_dropout_rate": 0.0}, "MCCLK": {"node_dropout_rate": 0.0}}
DSL = {"method": "dsl", "density": 0.3, "update_interval": 3}


def exported(name: str, data: Path, folder: Path, **more: Any) -> tuple[Any, Path]:
    """A short run of a model, and the artifact of its best checkpoint."""
    run = sparse_run(name, {**settings_of(name, data), **more}, **DSL)
    artifact = folder / "artifact"
    export_artifact(run.trainer.saved_model_file, artifact, with_history=True)
    return run, artifact


def test_a_method_s_name_in_a_manifest_is_no_path(tmp_path: Path) -> None:
    """Whose contents an error would tell."""
    secret = tmp_path / "secret.yaml"
    secret.write_text("dsl_densty: 1\n")
    kept = {"model": "NeuMF", "dataset": NAME, "given": {"dsl_method": str(secret)}}
    with pytest.raises(ConfigError, match=r"dsl_method='.*' is no method of this version"):
        by_recbole._config(kept)
    assert by_recbole._config({**kept, "given": {"dsl_method": "static"}}).dsl.method == "static"


def scores_of(model: Any, interaction: Any, items: int) -> torch.Tensor:
    """RecBole's scores of all items, one user at a time."""
    rows = []
    for row in range(len(interaction)):
        one = interaction[row : row + 1].to(model.device)
        try:
            rows.append(model.full_sort_predict(one).view(-1))
        except NotImplementedError:
            pairs = one.repeat_interleave(items)
            pairs.update(Interaction({"item_id": torch.arange(items, device=model.device)}))
            rows.append(model.predict(pairs).view(-1))
    return torch.stack(rows).float().cpu()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SERVED]
)
def test_scores_are_the_model_s(name: str, data: Path, tmp_path: Path) -> None:
    """All scores of all users, or of all test sequences, and the metrics."""
    run, folder = exported(name, data, tmp_path, **NO_DROPPED_EDGES.get(name, {}))
    model, test_data = run.trainer.model, run.data[2]
    run.trainer.evaluate(test_data, load_best_model=True, show_progress=False)  # loads the best weights
    recommender = SparseRecommender.load(folder)
    items = recommender.manifest.items
    with torch.no_grad():
        if name in models.BY_RECBOLE and models.BY_RECBOLE[name] == "sequences":
            batches = [batch[0] for batch in test_data]
            expected = torch.cat([scores_of(model, batch, items) for batch in batches])
            ours = torch.cat([scores_of(recommender.scorer.model, batch, items) for batch in batches]).numpy()
        else:
            users = torch.arange(1, recommender.manifest.users)
            expected = scores_of(model, Interaction({"user_id": users}), items)
            ours = recommender.scorer.matrix(users.numpy())
            if recommender.manifest.options.get("activation") is None and name in models.VECTORS:
                check_recommendations(recommender, expected.numpy())
    scale = float(expected[:, 1:].abs().max())
    assert np.abs(ours - expected.numpy())[:, 1:].max() <= 2e-5 * scale
    assert recommender.manifest.metrics["largest_difference"] <= 1e-6
    assert recommender.manifest.metrics["trained"]


def check_recommendations(recommender: SparseRecommender, expected: np.ndarray) -> None:
    """All items of every user, in the order of RecBole's scores up to rounding."""
    tokens = list(recommender.users)
    answers, scores = recommender.recommend(tokens, k=expected.shape[1], exclude_seen=False)
    numbers = {token: number for number, token in enumerate(recommender.items, start=1)}
    for row, answer, own in zip(expected, answers, scores, strict=True):
        assert sorted(answer) == sorted(numbers)
        theirs = row[[numbers[token] for token in answer]]
        assert np.allclose(own, theirs, rtol=1e-4, atol=1e-5 * np.abs(row).max())
        assert (np.diff(own) <= 0).all()


def test_every_model_has_an_answer() -> None:
    """Served one way, or refused; no row is of a model that does not exist."""
    tables = [set(models.VECTORS), set(models.BY_RECBOLE), set(models.REFUSED)]
    assert not tables[0] & tables[1] and not (tables[0] | tables[1]) & tables[2]
    assert set().union(*tables) <= set(TRAINED)
    others = set(TRAINED) - set().union(*tables)
    assert {row.family for row in support.rows() if row.model in others} == {"context_aware"}


@pytest.mark.parametrize(
    "name, says", [("DeepFM", "features"), ("DiffRec", "random"), ("RippleNet", "knowledge")]
)
def test_models_that_are_not_served(name: str, says: str, data: Path, tmp_path: Path) -> None:
    """One sentence, and no folder."""
    run = sparse_run(name, settings_of(name, data), **DSL)
    with pytest.raises(
        ArtifactError, match=f"{name} is not served, because .*{says}.*; allowed are BERT4Rec, BPR"
    ):
        export_artifact(run.trainer.saved_model_file, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("name", ["BPR", "LightGCN", "SGL", "NGCF", "DMF", "SimpleX"])
def test_repeated_interactions(name: str, tmp_path: Path) -> None:
    """They count once in some models and twice in others."""
    folder = write_tiny(tmp_path / "data")
    file = folder / NAME / f"{NAME}.inter"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, *lines[1:400:3]]) + "\n")
    _, artifact = exported(name, folder, tmp_path)
    manifest = read_artifact(artifact).manifest
    assert manifest.metrics["largest_difference"] <= 1e-6
    encoders = {"LightGCN": "light_graph", "NGCF": "ngcf", "SimpleX": "simplex"}
    assert manifest.encoder == encoders.get(name, "tables")  # SGL and DMF: computed when they are exported


@pytest.mark.parametrize("name", ["BPR", "NeuMF", "GRU4Rec"])
@pytest.mark.parametrize(
    "dsl, density",
    [
        ({"storage": "masked"}, 0.3),
        ({"density": 1.0}, 1.0),
        ({"method": "dense", "density": 1.0}, 1.0),
        ({"width": 32}, None),
    ],
)
def test_every_kind_of_run(
    name: str, dsl: dict[str, Any], density: float | None, data: Path, tmp_path: Path
) -> None:
    """Masked, dense and widened runs are served as well, in as many bytes as their live weights need."""
    run = sparse_run(name, settings_of(name, data), **{**DSL, **dsl})
    manifest = export_artifact(run.trainer.saved_model_file, tmp_path / "a", with_history=True)
    assert manifest.metrics["largest_difference"] <= 1e-6
    if density is not None:
        assert manifest.density == pytest.approx(density, abs=0.02)
    users = np.arange(1, manifest.users)
    served = SparseRecommender.load(tmp_path / "a").scorer.matrix(users)  # type: ignore[attr-defined]
    assert served.shape == (len(users), manifest.items)


def test_masked_recurrent_weights(data: Path, tmp_path: Path) -> None:
    """They are stored without their zeros."""
    dsl = {**DSL, "include": ["item_embedding.weight", "gru_layers.*weight*"], "groups": "per_tensor"}
    run = sparse_run("GRU4Rec", settings_of("GRU4Rec", data), **dsl)
    manifest = export_artifact(run.trainer.saved_model_file, tmp_path / "a", with_history=True)
    live = {name: info.live for name, info in manifest.tensors.items() if "gru" in name and "weight" in name}
    assert live and all(live.values())
    assert manifest.metrics["largest_difference"] <= 1e-6


@pytest.mark.parametrize("aggregator", ["user_attention", "self_attention"])
def test_other_simplex(aggregator: str, data: Path, tmp_path: Path) -> None:
    """With attention, vectors are computed when the artifact is written."""
    _, folder = exported("SimpleX", data, tmp_path, aggregator=aggregator)
    assert read_artifact(folder).manifest.encoder == "tables"


def test_what_users_have_counts_once(data: Path, tmp_path: Path) -> None:
    """SimpleX's own graph is a part of the history, LightGCN's is left out of it."""
    told = {}
    for name in ("SimpleX", "LightGCN"):
        _, folder = exported(name, data, tmp_path / name)
        groups = description(read_artifact(folder))["live_by_popularity"]
        told[name] = [[group["interactions"] for group in groups[key]] for key in groups if "user" in key]
    assert told["SimpleX"] == told["LightGCN"] and len(told["LightGCN"]) == 1


def test_a_graph_with_dropped_edges(data: Path, tmp_path: Path) -> None:
    """RecBole's NGCF drops them whenever it computes its vectors: one draw is served."""
    _, folder = exported("NGCF", data, tmp_path, node_dropout=0.5)
    manifest = read_artifact(folder).manifest
    assert manifest.encoder == "tables" and manifest.metrics["largest_difference"] <= 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "BPR",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("LightGCN", "NGCF", "SimpleX", "NeuMF", "MultiVAE")
        ),
    ],
)
def test_metrics_on_ml_100k(name: str, tmp_path: Path) -> None:
    """Recall and NDCG of what the artifact recommends, computed here by hand, are RecBole's to 1e-6."""
    settings = {
        "dsl_density": 0.1, "epochs": 1, "checkpoint_dir": str(tmp_path / "saved"), "state": "ERROR",
        "show_progress": False, "topk": [10], "metrics": ["Recall", "NDCG"], "valid_metric": "NDCG@10",
        "metric_decimal_place": 8,
    }  # fmt: skip
    if name == "SimpleX":  # cosines of rows with one live weight tie, and spectral factors make many such rows
        settings["dsl_init"] = "random"
    with no_flags():
        result = run_recbole_dsl(name, "ml-100k", config_dict=settings)
    (checkpoint,) = (p for p in (tmp_path / "saved").glob("*.dsl") if not p.name.endswith("-last.dsl"))
    manifest = export_artifact(checkpoint, tmp_path / "a")
    assert manifest.metrics["artifact"] == pytest.approx(result.test_result, abs=1e-6)
    with no_flags():
        *_, train, valid, test = load_data_and_model(checkpoint)
    known, wanted = pairs_of(train._dataset, valid._dataset), pairs_of(test._dataset)
    users = np.array(sorted(wanted))
    excluded = [np.unique([0, *known.get(user, ())]) for user in users]
    found = SparseRecommender.load(tmp_path / "a").scorer.top(users, 11, excluded)
    recall, ndcg, ties = [], [], 0
    for user, (items, scores) in zip(users, found, strict=True):
        # Items without a column in common with the user all score 0: torch takes any of equal scores.
        ties += scores[9] == scores[10]
        hits = np.isin(items[:10], list(wanted[user]))
        gains = 1 / np.log2(np.arange(2, 12))
        recall.append(hits.sum() / len(wanted[user]))
        ndcg.append((hits * gains).sum() / gains[: min(10, len(wanted[user]))].sum())
    expected = [result.test_result["recall@10"], result.test_result["ndcg@10"]]
    assert ties < len(users) / 50
    assert [np.mean(recall), np.mean(ndcg)] == pytest.approx(expected, abs=1e-6 + ties / len(users))


def pairs_of(*datasets: Any) -> dict[int, set[int]]:
    """The items of every user."""
    pairs: dict[int, set[int]] = {}
    for dataset in datasets:
        for user, item in zip(dataset.inter_feat["user_id"], dataset.inter_feat["item_id"], strict=True):
            pairs.setdefault(int(user), set()).add(int(item))
    return pairs
