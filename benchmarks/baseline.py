"""RecBole's own training, run through its own classes, with the figures our RunResult has."""

from __future__ import annotations

from typing import Any

from recbole_dsl.compare.by_recbole import measure, recbole_data, trainer_of
from recbole_dsl.costs import held_bytes, peak_memory_bytes


def recbole_trainer(model: str | type, dataset: str, config_dict: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """RecBole's trainer of a dense model, and its data for training, validation and test."""
    config, _, *loaders = recbole_data(model, dataset, config_dict)
    trainer = trainer_of(config, loaders[0])
    return trainer, *loaders


def run_recbole_itself(model: str, dataset: str, config_dict: dict[str, Any]) -> dict[str, Any]:
    """Train RecBole's dense ``model`` and test the best epoch; returns metrics and costs."""
    trainer, train_data, valid_data, test_data = recbole_trainer(model, dataset, config_dict)
    config, network = trainer.config, trainer.model
    told = measure(trainer)
    _, valid = trainer.fit(train_data, valid_data, show_progress=config["show_progress"])
    test = trainer.evaluate(test_data, show_progress=config["show_progress"])
    return {
        "model": model,
        "dataset": dataset,
        "method": "recbole dense",
        "seed": config["seed"],
        "best_valid_result": {k: float(v) for k, v in valid.items()},
        "test_result": {k: float(v) for k, v in test.items()},
        "epochs_run": len(told.epoch_seconds),
        "train_loss": [float(v) for v in trainer.train_loss_dict.values()],
        "live": sum(p.numel() for p in network.parameters()),
        "costs": {
            "seconds_per_epoch": sum(told.epoch_seconds) / len(told.epoch_seconds),
            **held_bytes(network, trainer.optimizer),
            "peak_memory_bytes": peak_memory_bytes(config["device"]),
        },
    }
