"""One experiment, from settings to RunResult, in the same order of steps as RecBole's own."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import torch

from . import compat, property_files, recbole_names, recbole_settings
from .command_line import warn_misspelt_keys
from .costs import forward_macs, held_bytes, optimizers_of, peak_memory_bytes, sharing_copy, undisturbed
from .errors import ConfigError, DataError, DSLError, on_one_line
from .results import SCHEMA, RunResult, environment, rounded
from .settings import DSLConfig, times
from .sparsity.names import TOPOLOGIES_WITH_VALUES
from .sparsity.width import best_width

compat.apply()  # before anything of RecBole is imported

from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.data.dataloader import FullSortEvalDataLoader  # noqa: E402
from recbole.data.transform import construct_transform  # noqa: E402
from recbole.utils import (  # noqa: E402
    EvaluatorType,
    KGDataLoaderState,
    get_environment,
    get_flops,
    init_logger,
    init_seed,
    set_color,
)

from .config import RecBoleDSLConfig  # noqa: E402
from .plain import plain  # noqa: E402
from .training import resuming  # noqa: E402
from .training.adaptations import clear_model_caches, loss_of_interactions  # noqa: E402
from .training.checkpoint import read_description  # noqa: E402
from .training.loading import accelerate, share_out  # noqa: E402
from .training.ranks import Ranks  # noqa: E402
from .training.starting import check_start, start_from  # noqa: E402
from .training.trainer import positives_of, sparse_trainer  # noqa: E402


def run_recbole_dsl(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str | os.PathLike[str]] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
) -> RunResult:
    """Train and test a RecBole model sparse from scratch; the counterpart of ``run_recbole``.

    Args:
        model: name or class of the model; None takes it from the settings.
        dataset: name of the dataset; None takes it from the settings.
        config_file_list: YAML files; later ones win.
        config_dict: settings that win over files; command-line flags win over both.
        saved: keep the best checkpoint on disk and test that one, as in RecBole.

    Returns:
        Metrics, losses, sparsity and costs of the run.

    Raises:
        DSLError: a setting, the model or the data is not usable; raised before training starts.
    """
    config = RecBoleDSLConfig(model, dataset, config_file_list, config_dict)
    warn_misspelt_keys(config.external_config_dict.keys() - config.cmd_config_dict.keys(), config.known_keys)
    if config.dataset == "ml-100k" and "data_path" in config.external_config_dict:
        getLogger().warning(
            f"data_path={config.external_config_dict['data_path']!r} is not used, as RecBole reads "
            "ml-100k from its own folder; allowed is another name for another copy."
        )
    finished = train_and_test(config, saved)
    result = collect_result(config, finished)
    if config.dsl.result is not None and finished.trainer.ranks.is_first:
        result.save(config.dsl.result)
        getLogger().info(set_color("Result", "blue") + f": {config.dsl.result}")
    return result


@dataclass(frozen=True)
class Finished:
    """A run that has been trained and tested; ``trainer`` has the tested weights if they were saved."""

    trainer: Any
    train_data: Any
    test_data: Any
    best_valid: dict[str, float] | None
    test: dict[str, float] | None
    saved: bool


def train_and_test(
    config: RecBoleDSLConfig, saved: bool = True, before: Callable[[Any], None] | None = None
) -> Finished:
    """Train a model and test it.

    Args:
        config: all settings.
        saved: as for :func:`run_recbole_dsl`.
        before: called with the trainer as it is at the start, before a run that is resumed takes its state.

    Raises:
        DSLError: as for :func:`run_recbole_dsl`.
    """
    resumed = _to_resume(config)
    if config.dsl.start_from is not None and resumed is None:
        check_start(config.dsl.start_from)
    data, train_data, valid_data, test_data = load_data(config)
    logger = getLogger()
    begin = time.perf_counter()
    if resumed is not None and isinstance(config.dsl.width, str):
        config["dsl_width"] = Ranks(config).done_by_first(
            lambda: read_description(resumed)["config"]["dsl_width"]
        )
    network = build_model(config, train_data)
    preparation = time.perf_counter() - begin
    if config.dsl.start_from is not None and resumed is None:
        start_from(network, config.dsl.start_from)
    ranks = Ranks(config)
    if ranks.count > 1:  # the same model everywhere, but other negative samples, dropout and the like
        init_seed(ranks.seed(config["seed"]), config["reproducibility"])
    logger.info(network)
    log_dense_flops(config, network, data)
    begin = time.perf_counter()
    trainer = sparse_trainer(config["MODEL_TYPE"], *config.lineage)(config, network, train_data)
    trainer.preparation_seconds = preparation + time.perf_counter() - begin
    if before is not None:
        before(trainer)
    if resumed is not None:
        trainer.resume_checkpoint(resumed)

    _, best_valid = trainer.fit(train_data, valid_data, saved=saved, show_progress=config["show_progress"])
    test = trainer.evaluate(test_data, load_best_model=saved, show_progress=config["show_progress"])
    logger.info("The running environment of this training is as follows:\n" + get_environment(config).draw())
    logger.info(set_color("best valid ", "yellow") + f": {best_valid}")
    logger.info(set_color("test result", "yellow") + f": {test}")
    return Finished(trainer, train_data, test_data, best_valid, test, saved)


def _to_resume(config: RecBoleDSLConfig) -> Path | None:
    """The file to go on from, as the first process sees it; an error is one of all."""
    file: Path | None = Ranks(config).done_by_first(lambda: resuming.find(config.dsl.resume, config.at_start))
    return file


def load_data(config: RecBoleDSLConfig, log: bool = True) -> tuple[Any, Any, Any, Any]:
    """The dataset and RecBole's loaders for training, validation and test.

    ``log``: open RecBole's log, a file in a folder below the working directory, and tell it settings and data.
    Leaves the global generators seeded for the model, as RecBole does.

    Raises:
        DataError: RecBole cannot read or split the dataset.
    """
    init_seed(config["seed"], config["reproducibility"])
    if log:
        init_logger(config)
    logger = getLogger()
    logger.info(sys.argv)
    logger.info(config)
    if config["worker"] and torch.multiprocessing.get_start_method() != "fork":
        torch.multiprocessing.set_sharing_strategy("file_system")  # loaders of others cannot be handed tensors
    data = read_dataset(config)
    recbole_settings.check_labels(config, config["LABEL_FIELD"] in data.field2type)  # loaders add one
    with _data_errors(config), config.under_recbole_name():
        logger.info(data)
        loaders = data_preparation(config, data)
        _give_back_generators(loaders, config["seed"])
    _check_topk(config, data)
    if config.dsl.data_path == "fast":
        for loader in loaders:
            accelerate(loader)
    if not config["single_spec"]:
        for loader in loaders[1:]:
            share_out(loader)
    init_seed(config["seed"], config["reproducibility"])
    return data, *loaders


def read_dataset(config: RecBoleDSLConfig) -> Any:
    """RecBole's dataset before it is split: its tables are pandas' and have all interactions.

    Raises:
        DataError: RecBole cannot read it.
    """
    # RecBole finds datasets and loaders by the model's name.
    with _data_errors(config), config.under_recbole_name():
        return create_dataset(config)


def _check_topk(config: RecBoleDSLConfig, data: Any) -> None:
    if config["eval_type"] == EvaluatorType.RANKING and max(config["topk"]) >= data.item_num:
        raise ConfigError(
            f"topk={config['topk']} is refused: allowed are at most the {data.item_num - 1} items of "
            f"{config['dataset']}."
        )


def _give_back_generators(loaders: Sequence[Any], seed: int) -> None:
    """RecBole takes away the generators of loaders that it saves, but gives them to those that it reads."""
    for loader in loaders:
        if getattr(loader, "generator", loader) is None:
            loader.generator = torch.Generator().manual_seed(seed)
            loader.sampler.generator = loader.generator


@contextlib.contextmanager
def _data_errors(config: RecBoleDSLConfig) -> Iterator[None]:
    """Turn whatever RecBole stumbles over in a dataset into one sentence; the log has the rest."""
    try:
        yield
    except DSLError:
        raise
    except Exception as error:
        getLogger().debug("reading the dataset failed", exc_info=True)
        note = property_files.model_file(property_files.file_of_model(config.lineage)).get("note")
        needs = f", while model {config['model']!r} {note}" if note and str(note).startswith("needs") else ""
        raise DataError(
            f"dataset={config['dataset']!r} in '{config['data_path']}' cannot be prepared "
            f"({_header_misfit(config) or on_one_line(error)}){needs}; allowed "
            "are RecBole's atomic files, with a header such as 'user_id:token' and rows that the settings "
            "leave in, or a dataset that can be downloaded (--state=DEBUG shows where it failed)."
        ) from error


def _header_misfit(config: RecBoleDSLConfig) -> str:
    part = f".{config['benchmark_filename'][0]}" if config["benchmark_filename"] else ""
    settings = ["USER_ID_FIELD", "ITEM_ID_FIELD"] + ["TIME_FIELD"] * (config["eval_args"]["order"] == "TO")
    fields = {setting: config[setting] for setting in settings if config[setting] is not None}
    file = Path(config["data_path"]) / f"{config['dataset']}{part}.inter"
    misfit = recbole_names.header_misfit(file, fields, config["field_separator"], config["encoding"])
    return misfit or _left_out(config, fields)


def _left_out(config: RecBoleDSLConfig, fields: Mapping[str, str]) -> str:
    """A field that the data need and that the settings do not load, as a sentence; ``""`` if there is none."""
    loads = "*" if config["load_col"] is None else config["load_col"].get("inter") or []
    skips = (config["unload_col"] or {}).get("inter") or []
    for setting, field in fields.items():
        if loads != "*" and field not in loads:
            return f"load_col of inter is {loads}, without {setting}={field!r}"
        if field in skips:
            return f"unload_col of inter has {setting}={field!r}"
    return ""


def build_model(config: RecBoleDSLConfig, train_data: Any) -> Any:
    """The dense model, of ``dsl_width`` columns if that is set; the configuration is told what ``auto`` is.

    Raises:
        ConfigError: it refuses its settings or data, or lacks a package.
    """
    if isinstance(config.dsl.width, str):
        config["dsl_width"] = choose_width(config, train_data)
    settings: DSLConfig = config.dsl
    original = config["embedding_size"]
    try:
        if settings.width is not None:
            with undisturbed():  # what the budget is a share of
                narrower = config.model_class(config, train_data._dataset)
            config.dense_sizes = {name: p.numel() for name, p in narrower.named_parameters()}
            del narrower
            config["embedding_size"] = settings.width
        network = config.model_class(config, train_data._dataset)
    except DSLError:
        raise
    except Exception as error:
        raise ConfigError(
            f"model={config['model']!r} cannot be built on dataset={config['dataset']!r} "
            f"({on_one_line(error)}); allowed "
            "are settings, data and installed packages that the model asks for."
        ) from error
    finally:
        if settings.width is not None:
            config["embedding_size"] = original
    return network.to(config["device"])


def choose_width(config: RecBoleDSLConfig, train_data: Any) -> int | None:
    """The columns that a ``dsl_width`` of ``auto`` or ``2x`` stands for; None where there is nothing to choose.

    That is without ``embedding_size``, for weights that come from a file, for a ``dsl_budget``, and at
    density 1; of ``auto`` also without a topology from the interactions, or without these.
    """
    dsl: DSLConfig = config.dsl
    own = config["embedding_size"]
    if own is None or dsl.start_from is not None or dsl.budget is not None or dsl.density == 1:
        return None
    if (factor := times(dsl.width)) is not None:
        return None if factor == 1 else factor * int(own)
    interactions = positives_of(train_data) if dsl.init in TOPOLOGIES_WITH_VALUES else None
    if interactions is None:
        return None
    seed = config["seed"] if dsl.seed is None else dsl.seed
    columns = set_color("Columns", "blue") + " of the tables:"
    getLogger().info(f"{columns} held-out interactions decide, up to {max(own, dsl.width_max)}")
    width: int = Ranks(config).told_by_first(
        best_width(interactions, own, dsl.density * own, seed, dsl.init, dsl.width_max)
    )
    getLogger().info(f"{columns} {width}, where the model has {own}")
    return None if width == own else width


def log_dense_flops(config: Any, network: Any, data: Any) -> None:
    """Log the dense model's FLOPs as RecBole does, with a copy that shares its weights.

    RecBole copies the whole model for it. The call stays because a prediction may draw random
    numbers, and a run must see the same ones as RecBole's. Where RecBole cannot predict single items
    (gru4reccpr.py:482), it fails; here the figure is unknown.
    """
    network.__deepcopy__ = lambda memo: _copy_without_hook(network)
    try:
        flops = get_flops(network, data, config["device"], getLogger(), construct_transform(config))
    except Exception as error:
        getLogger().warning(f"FLOPs of {config['model']} are unknown: {error!r}")
        return
    finally:
        network.__dict__.pop("__deepcopy__", None)
    getLogger().info(set_color("FLOPs of the dense model", "blue") + f": {flops}")


def _copy_without_hook(network: Any) -> Any:
    network.__dict__.pop("__deepcopy__", None)
    return sharing_copy(network)


def collect_result(config: RecBoleDSLConfig, finished: Finished) -> RunResult:
    """The RunResult of a finished run."""
    trainer = finished.trainer
    losses = [float(trainer.train_loss_dict[e]) for e in sorted(trainer.train_loss_dict)]
    return RunResult(
        schema=SCHEMA,
        model=config["model"],
        dataset=config["dataset"],
        method=config.dsl.method,
        seed=config["seed"],
        best_valid_result=rounded(finished.best_valid, config["metric_decimal_place"]),
        test_result=rounded(finished.test, config["metric_decimal_place"]),
        epochs_run=len(losses),
        train_loss=losses,
        valid_results=[{"epoch": epoch, **told} for epoch, told in sorted(trainer.valid_results.items())],
        updates=trainer.updates_made,
        sparsity=_sparsity(trainer),
        costs=_costs(config, finished),
        environment=environment(),
        config=plain(config.final_config_dict),
    )


def _sparsity(trainer: Any) -> dict[str, Any]:
    handle = trainer.sparse
    return {
        "density": handle.density,
        "overall_density": handle.overall_density,
        "weights": handle.dense_weights,
        "budget": handle.budget,
        "live": handle.live,
        "updates": handle.explorer.updates,
        "exploration_rate": handle.explorer.exploration_rate,
        "without_factors": handle.without_factors,
        "groups": [
            {
                "name": group.name,
                "storage": group.storage,
                "budget": group.budget,
                "live": sum(group.live_per_tensor()),
                "tensors": [
                    {"name": s.name, "shape": list(s.shape), "live": live}
                    for s, live in zip(group.slices, group.live_per_tensor(), strict=True)
                ],
            }
            for group in handle.groups
        ],
        "left_dense": [
            {"name": t.name, "shape": list(t.shape), "reason": reason} for t, reason in handle.selection.left
        ],
    }


def _costs(config: RecBoleDSLConfig, finished: Finished) -> dict[str, Any]:
    trainer = finished.trainer
    path = Path(trainer.saved_model_file)
    seconds = trainer.epoch_seconds
    return {
        "preparation_seconds": trainer.preparation_seconds,
        "training_seconds": sum(seconds),
        "seconds_per_epoch": sum(seconds) / len(seconds) if seconds else None,
        **held_bytes(trainer.model, *optimizers_of(trainer)),
        "exploration_record_bytes": trainer.sparse.explorer.record_bytes,
        "growth_bytes": trainer.sparse.explorer.growth_bytes,
        "peak_memory_bytes": peak_memory_bytes(torch.device(config["device"])),
        "checkpoint_bytes": path.stat().st_size if finished.saved and path.exists() else None,
        **macs(trainer, finished.train_data, finished.test_data, trainer.keeper.position.steps),
    }


def macs(trainer: Any, train_data: Any, test_data: Any, steps: int) -> dict[str, float | None]:
    """The MACs of a step, of ``steps`` of them and of recommending to a user; None where they cannot be had.

    Args:
        trainer: RecBole's or ours, which has evaluated.
    """
    per_step = _or_none(_training_macs, trainer, train_data)
    return {
        "macs_per_training_step": per_step,
        "training_macs": None if per_step is None else per_step * steps,
        "macs_per_recommended_user": _or_none(_user_macs, trainer, test_data),
    }


def _or_none(measure: Callable[[Any, Any], float | None], trainer: Any, data: Any) -> float | None:
    """A figure, or None and a warning: a cost that cannot be had must not cost the result."""
    try:
        return measure(trainer, data)
    except Exception as error:
        name = measure.__name__.strip("_")
        getLogger().warning(f"{name} of {type(trainer.model).__name__} are unknown: {error!r}")
        return None


def _training_macs(trainer: Any, train_data: Any) -> float | None:
    """MACs of one step's forward pass times 3 (the backward pass has two products for each one)."""
    with undisturbed():
        if hasattr(train_data, "set_mode"):
            train_data.set_mode(KGDataLoaderState.RSKG)
        batch = next(iter(train_data)).to(trainer.device)
    trainer.model.train()
    loss_of = loss_of_interactions(trainer.model)
    macs = forward_macs(trainer.model, lambda: loss_of(batch))
    return 3 * macs if math.isfinite(macs) else None


def _user_macs(trainer: Any, test_data: Any) -> float | None:
    """MACs per user of scoring what the evaluation ranks, model caches filled before.

    That is all items, or the sampled ones. None where an evaluation knows no users (labelled rows).
    """
    with undisturbed():
        batch = next(iter(test_data))
    full = isinstance(test_data, FullSortEvalDataLoader)
    if not full and batch[2] is None:
        return None
    score = trainer._full_sort_batch_eval if full else trainer._neg_sample_batch_eval
    users = len(batch[0]) if full else int(batch[2][-1]) + 1
    trainer.model.eval()
    with torch.no_grad():
        score(batch)
        macs = forward_macs(trainer.model, lambda: score(batch))
    clear_model_caches(trainer.model)
    return macs / users
