"""RecBole's own training, by its own classes, with the figures that a RunResult has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import compat, property_files, recbole_names
from ..config import no_flags
from ..costs import held_bytes, optimizers_of, peak_memory_bytes, trained_weights
from ..experiment import macs
from ..plain import plain
from ..results import SCHEMA, RunResult, environment, rounded

compat.apply()

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_trainer, init_logger, init_seed  # noqa: E402


def recbole_data(
    model: str | type,
    dataset: str,
    config_dict: Mapping[str, Any],
    config_files: Sequence[str | os.PathLike[str]] = (),
) -> tuple[Any, Any, Any, Any, Any]:
    """RecBole's configuration, its data, and its loaders for training, validation and test.

    Leaves the global generators seeded for the model, as RecBole's ``run_recbole`` does.
    """
    if isinstance(model, str) and ":" in model:
        model = recbole_names.import_model(model)
    with no_flags():
        files = [os.fspath(file) for file in config_files] or None
        config = Config(model=model, dataset=dataset, config_file_list=files, config_dict=dict(config_dict))
    init_seed(config["seed"], config["reproducibility"])
    init_logger(config)
    dataset_of_all = create_dataset(config)
    loaders = data_preparation(config, dataset_of_all)
    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    return config, dataset_of_all, *loaders


def needed_settings(names: Sequence[str]) -> dict[str, Any]:
    """RecBole's settings without which a model does not run, of its property file.

    ``names``: of the model, and of those it derives from.
    """
    return dict(property_files.model_file(property_files.file_of_model(names)).get("recbole") or {})


@dataclass
class Measured:
    """What is noted of a training beside what RecBole returns."""

    epoch_seconds: list[float] = field(default_factory=list)
    valid_results: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0


def trainer_of(config: Any, train_data: Any, prepare: Callable[[Any], object] | None = None) -> Any:
    """RecBole's trainer of a new dense model; ``prepare`` is called with the model first."""
    network = config.model_class(config, train_data._dataset)
    if prepare is not None:
        prepare(network)
    network = network.to(config["device"])
    return get_trainer(config["MODEL_TYPE"], config["model"])(config, network)


def measure(trainer: Any) -> Measured:
    """Note the time of every epoch, the results of every validation and the number of steps from now on."""
    told = Measured()
    train_epoch, valid_epoch = trainer._train_epoch, trainer._valid_epoch

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        loss = train_epoch(*args, **kwargs)
        told.epoch_seconds.append(perf_counter() - started)
        return loss

    def noted(*args: Any, **kwargs: Any) -> Any:
        score, result = valid_epoch(*args, **kwargs)
        numbers = rounded(result, trainer.config["metric_decimal_place"])
        told.valid_results.append({"epoch": len(told.epoch_seconds) - 1, **numbers})
        return score, result

    def count(*_: Any) -> None:
        told.steps += 1

    trainer._train_epoch, trainer._valid_epoch = timed, noted
    for optimizer in optimizers_of(trainer):
        optimizer.register_step_post_hook(count)
    return told


def result_of(
    trainer: Any,
    told: Measured,
    valid: Any,
    test: Any,
    train_data: Any,
    test_data: Any,
    weights: int | None = None,
) -> RunResult:
    """The RunResult of a trained and tested dense model; ``weights``: of the model that is full width."""
    config, network = trainer.config, trainer.model
    live = trained_weights(network)
    saved = Path(trainer.saved_model_file)
    return RunResult(
        schema=SCHEMA,
        model=config["model"],
        dataset=config["dataset"],
        method="dense",
        seed=config["seed"],
        best_valid_result=rounded(valid, config["metric_decimal_place"]),
        test_result=rounded(test, config["metric_decimal_place"]),
        epochs_run=len(told.epoch_seconds),
        train_loss=[float(v) for v in trainer.train_loss_dict.values()],
        valid_results=told.valid_results,
        updates=[],
        sparsity={
            "density": live / (weights or live),
            "overall_density": live / (weights or live),
            "weights": weights or live,
            "budget": live,
            "live": live,
            "updates": 0,
            "exploration_rate": None,
            "without_factors": False,
            "groups": [],
            "left_dense": [
                {"name": name, "shape": list(p.shape), "reason": "dense"}
                for name, p in network.named_parameters()
                if p.requires_grad
            ],
        },
        costs={
            "training_seconds": sum(told.epoch_seconds),
            "seconds_per_epoch": sum(told.epoch_seconds) / max(1, len(told.epoch_seconds)),
            **held_bytes(network, *optimizers_of(trainer)),
            "exploration_record_bytes": 0,
            "growth_bytes": 0,
            "peak_memory_bytes": peak_memory_bytes(config["device"]),
            "checkpoint_bytes": saved.stat().st_size if saved.is_file() else None,
            **macs(trainer, train_data, test_data, told.steps),
        },
        environment=environment(),
        config=plain(config.final_config_dict),
    )
