"""RecBole's own training, run through its own classes, with the figures our RunResult has."""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

from recbole_dsl import compat

compat.apply()

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_trainer, init_logger, init_seed  # noqa: E402

from recbole_dsl.costs import held_bytes, peak_memory_bytes  # noqa: E402


def recbole_data(model: str | type, dataset: str, config_dict: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """RecBole's configuration, and its loaders for training, validation and test."""
    argv, sys.argv = sys.argv, sys.argv[:1]  # RecBole reads the command line
    try:
        config = Config(model=model, dataset=dataset, config_dict=dict(config_dict))
    finally:
        sys.argv = argv
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    return config, train_data, valid_data, test_data


def trainer_of(config: Any, train_data: Any) -> Any:
    """RecBole's trainer of a new dense model."""
    network = config.model_class(config, train_data._dataset).to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, network)


def recbole_trainer(model: str | type, dataset: str, config_dict: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """RecBole's trainer of a dense model, and its data for training, validation and test."""
    config, *loaders = recbole_data(model, dataset, config_dict)
    trainer = trainer_of(config, loaders[0])
    return trainer, *loaders


def run_recbole_itself(model: str, dataset: str, config_dict: dict[str, Any]) -> dict[str, Any]:
    """Train RecBole's dense ``model`` and test the best epoch; returns metrics and costs."""
    trainer, train_data, valid_data, test_data = recbole_trainer(model, dataset, config_dict)
    config, network = trainer.config, trainer.model
    seconds: list[float] = []
    plain_epoch = trainer._train_epoch

    def timed_epoch(*args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        loss = plain_epoch(*args, **kwargs)
        seconds.append(perf_counter() - started)
        return loss

    trainer._train_epoch = timed_epoch
    _, valid = trainer.fit(train_data, valid_data, show_progress=config["show_progress"])
    test = trainer.evaluate(test_data, show_progress=config["show_progress"])
    return {
        "model": model,
        "dataset": dataset,
        "method": "recbole dense",
        "seed": config["seed"],
        "best_valid_result": {k: float(v) for k, v in valid.items()},
        "test_result": {k: float(v) for k, v in test.items()},
        "epochs_run": len(seconds),
        "train_loss": [float(v) for v in trainer.train_loss_dict.values()],
        "live": sum(p.numel() for p in network.parameters()),
        "costs": {
            "seconds_per_epoch": sum(seconds) / len(seconds),
            **held_bytes(network, trainer.optimizer),
            "peak_memory_bytes": peak_memory_bytes(config["device"]),
        },
    }
