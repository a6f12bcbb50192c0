"""Short runs of any model on the generated dataset: RecBole's own, and ours beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.baseline import recbole_trainer
from recbole_dsl import recbole_names
from recbole_dsl.config import RecBoleDSLConfig
from recbole_dsl.experiment import build_model, load_data
from recbole_dsl.training.trainer import sparse_trainer
from tests.recbole_runs import QUIET
from tests.tiny_data import EMBEDDING, NAME

_USER = ["user_id", "age", "gender", "occupation"]
_ITEM = ["item_id", "release_year", "class", "price"]
_INTER = ["user_id", "item_id", "rating", "timestamp"]

FAMILIES: dict[str, dict[str, Any]] = {
    "general": {"load_col": {"inter": _INTER}},
    "sequential": {"load_col": {"inter": _INTER, "user": _USER, "item": _ITEM[:3]}, "MAX_ITEM_LIST_LENGTH": 10},
    "context_aware": {
        "load_col": {"inter": _INTER, "user": _USER, "item": _ITEM},
        "threshold": {"rating": 4},
        "normalize_field": ["price"],
    },
    "knowledge_aware": {
        "load_col": {"inter": _INTER, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"]}
    },
}
"""What the families' models are given, by the folder RecBole keeps them in."""

_VECTORS = {
    "additional_feat_suffix": ["ent", "rel"],
    "load_col": {
        "inter": _INTER, "kg": ["head_id", "relation_id", "tail_id"], "link": ["item_id", "entity_id"],
        "ent": ["ent_id", "ent_emb"], "rel": ["rel_id", "rel_emb"],
    },
    "alias_of_entity_id": ["ent_id"], "alias_of_relation_id": ["rel_id"],
    "preload_weight": {"ent_id": "ent_emb", "rel_id": "rel_emb"},
}  # fmt: skip
_PRETRAINING = {"pretrain_epochs": 2, "save_step": 2}

CASES: dict[str, dict[str, Any]] = {
    "ConvNCF": {"embedding_size": 64},
    "GRU4RecKG": _VECTORS,
    "KSR": {**_VECTORS, "kg_embedding_size": EMBEDDING},
    "S3Rec": _PRETRAINING,
    "RaCT": _PRETRAINING,
    "NCL": {"num_clusters": 5},
}
"""What single models need besides."""


def settings_of(name: str, folder: Path) -> dict[str, Any]:
    """RecBole's settings of a short run of a model; the data are in ``folder``."""
    family = recbole_names.model_files()[name.lower()].parent.name.removesuffix("_recommender")
    return {
        **QUIET, "data_path": str(folder), "checkpoint_dir": str(folder / "saved"), "embedding_size": EMBEDDING,
        "train_batch_size": 128, "epochs": 1, **FAMILIES[family], **CASES.get(name, {}),
    }  # fmt: skip


@dataclass
class Run:
    """``losses`` of every step and ``valid`` metrics of a finished training, and its trainer."""

    trainer: Any
    data: tuple[Any, Any, Any]
    losses: list[float] = field(default_factory=list)
    valid: dict[str, float] = field(default_factory=dict)


def dense_run(name: str, settings: dict[str, Any]) -> Run:
    """RecBole's own training."""
    with no_flags():
        config = RecBoleDSLConfig(name, NAME, config_dict=settings)
    if config["train_neg_sample_args"]["distribution"] == "none":
        settings = {**settings, "train_neg_sample_args": None}
    trainer, *data = recbole_trainer(name, NAME, settings)
    return _fit(Run(trainer, tuple(data)))


def sparse_run(name: str | type, settings: dict[str, Any], **dsl: Any) -> Run:
    """Ours, with ``dsl_`` settings."""
    with no_flags():
        config = RecBoleDSLConfig(name, NAME, config_dict={**settings, **{f"dsl_{k}": v for k, v in dsl.items()}})
    _, train, valid, test = load_data(config)
    model = build_model(config, train)
    trainer = sparse_trainer(config["MODEL_TYPE"], config["model"])(config, model, train)
    return _fit(Run(trainer, (train, valid, test)))


def _fit(run: Run) -> Run:
    model = run.trainer.model
    for name in ("calculate_loss", "calculate_kg_loss", "calculate_rs_loss"):
        if hasattr(model, name):
            _record(model, name, run.losses)
    _, valid = run.trainer.fit(run.data[0], run.data[1], show_progress=False)
    run.valid = dict(valid or {})
    return run


def _record(model: Any, name: str, losses: list[float]) -> None:
    plain = getattr(model, name)

    def loss(*args: Any, **kwargs: Any) -> Any:
        result = plain(*args, **kwargs)
        parts = result if isinstance(result, tuple) else (result,)
        losses.append(sum(float(part.detach().sum()) for part in parts))
        return result

    setattr(model, name, loss)


@contextmanager
def no_flags() -> Iterator[None]:
    """Hide pytest's arguments from RecBole, which reads the command line."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        yield
    finally:
        sys.argv = argv


def greatest_difference(one: list[float], other: list[float]) -> float:
    """The greatest relative difference of two lists of losses."""
    a, b = torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)
    return float(((a - b).abs() / b.abs().clamp_min(1e-12)).max())
