"""How one cell is run; a procedure is a function of a :class:`Task` and a row of :data:`PROCEDURES`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from .. import compat
from ..config import RecBoleDSLConfig, device_names, no_flags
from ..experiment import collect_result, log_dense_flops, train_and_test
from ..property_files import of_recbole
from ..results import RunResult
from ..serving.quantise import decode, encode
from ..training.checkpoint import load_weights, read_checkpoint
from ..training.passes import Plan
from ..training.starting import compute_again, take_weights
from ..training.trainer import interactions_of
from .by_recbole import measure, needed_settings, recbole_data, result_of, trainer_of
from .hashing import hash_tables
from .methods import Method
from .narrow import narrow_settings
from .options import contents
from .popularity import by_popularity, live_per_row
from .pruning import GradualPruning, dense_tensors, rewind, save_dense, with_phases
from .thresholds import ReachedError, Search
from .twin import Twin, sparse_twin

_SMALL: Final = 1024
"""Tensors with fewer weights are not rounded to eight bits."""


@dataclass(frozen=True)
class Task:
    """A cell and where its inputs are.

    ``density``: None for methods that have none; ``settings``: above those of ``files``; ``folder``: for
    checkpoints; ``kept``: for those that a stopped cell goes on from; ``dense``: RecBole's checkpoint of the
    dense model, for methods that start from it.
    """

    model: str
    dataset: str
    method: Method
    density: float | None
    seed: int
    files: tuple[Path, ...]
    settings: Mapping[str, Any]
    folder: Path
    kept: Path
    dense: Path | None = None

    @property
    def own(self) -> dict[str, Any]:
        """The settings of this run, for RecBole and for us."""
        return {**self.settings, **self.method.settings, "seed": self.seed, "checkpoint_dir": str(self.folder)}

    @property
    def sparse(self) -> dict[str, Any]:
        """The same with the keys of sparse training; what starts from a dense model has that one's columns."""
        own = {**self.own, "dsl_method": self.method.trains_as or "static", "dsl_density": self.density}
        return own if self.method.widens else {**own, "dsl_width": None}

    @property
    def recbole(self) -> dict[str, Any]:
        """The settings for RecBole alone, with those that it does not run the model without."""
        settings = of_recbole({**contents([str(file) for file in self.files]), **self.own})
        config = replace(self, files=()).config({**settings, "dsl_method": "static"})
        needed = needed_settings(config.lineage)
        if config.ranks_all_items(config.final_config_dict):
            needed["train_neg_sample_args"] = None
        given = config.external_config_dict
        if given.get("gpu_id") is not None:
            needed["gpu_id"] = device_names(given.pop("gpu_id"))
        return {**of_recbole(self.own), **{key: value for key, value in needed.items() if key not in given}}

    def twin(self) -> Twin:
        """The sparse model of this density, before its training."""
        return sparse_twin(self.config(self.sparse))

    def data(self, more: Mapping[str, Any] | None = None) -> tuple[Any, Any, Any, Any, Any]:
        """RecBole's configuration, data and loaders, with ``more`` settings."""
        return recbole_data(self.model, self.dataset, {**self.recbole, **(more or {})}, self.files)

    def config(self, settings: Mapping[str, Any]) -> RecBoleDSLConfig:
        """Our configuration with ``settings``."""
        with no_flags():
            return RecBoleDSLConfig(self.model, self.dataset, self.files, dict(settings))


def by_recbole(
    task: Task,
    more: Mapping[str, Any] | None = None,
    weights: int | None = None,
    prepare: Callable[[Any], object] | None = None,
) -> RunResult:
    """RecBole's own training, validation and test.

    Args:
        more: settings above the task's. weights: of the model of the usual size.
        prepare: changes the model first.
    """
    config, data, train_data, valid_data, test_data = task.data(more)
    trainer = trainer_of(config, train_data, prepare)
    log_dense_flops(config, trainer.model, data)  # BERT4Rec's draw what its training would
    told = measure(trainer)
    _, valid = trainer.fit(train_data, valid_data, show_progress=False)
    test = trainer.evaluate(test_data, show_progress=False)
    result = result_of(trainer, told, valid, test, train_data, test_data, weights)
    analysis = by_popularity(trainer, interactions_of(train_data), test_data, config["topk"])
    if task.dense is not None:
        best = Path(trainer.saved_model_file)
        if not test_data and best.is_file():  # which a test would have loaded
            take_weights(trainer.model, compat.read_dense_checkpoint(best))
        save_dense(trainer.model.state_dict(), task.dense, trainer.model.other_parameter())
    return _finish(task, result, analysis)


def narrow(task: Task) -> RunResult:
    """RecBole's own training of the widest model that is no larger than the sparse one."""
    config = task.config(task.sparse)
    method = task.method
    found, weights = narrow_settings(config, method.as_large_as, method.widths, method.even)
    result = by_recbole(task, found, weights)
    return replace(result, analysis={**result.analysis, "narrow": found})


def sparse(task: Task) -> RunResult:
    """Our training; from the dense model's weights if the method comes after it, else it can be resumed."""
    if task.dense is None:
        settings = {**task.settings, "dsl_resume": task.kept.is_dir()}
        task = replace(task, folder=task.kept, settings=settings)
    result, _ = _sparse(task)
    return result


def _sparse(task: Task, before_training: Callable[[Any], None] | None = None) -> tuple[RunResult, Any]:
    """The result and the trainer, which has the best weights."""
    settings = task.sparse
    if task.dense is not None:
        settings["dsl_start_from"] = str(task.dense)
    config = task.config(settings)
    before: dict[str, np.ndarray] = {}

    def at_start(trainer: Any) -> None:
        before.update(live_per_row(trainer.sparse.groups))
        if before_training is not None:
            before_training(trainer)

    finished = train_and_test(config, before=at_start)
    result = collect_result(config, finished)
    trainer = finished.trainer
    best = Path(trainer.saved_model_file)
    if not finished.test_data and best.is_file():  # which a test would have loaded
        load_weights(trainer.model, read_checkpoint(best))
    with trainer._graph_products():
        analysis = by_popularity(
            trainer,
            interactions_of(finished.train_data),
            finished.test_data,
            config["topk"],
            before,
            live_per_row(trainer.sparse.groups),
        )
    return _finish(task, result, analysis), trainer


def quantised(task: Task) -> RunResult:
    """The dense model with matrices of eight bits and a scale for every row."""
    assert task.dense is not None
    config, _, train_data, valid_data, test_data = task.data()
    trainer = trainer_of(config, train_data)
    state = compat.read_dense_checkpoint(task.dense)
    take_weights(trainer.model, state)
    told = measure(trainer)
    size = sum(_rounded(parameter) for parameter in trainer.model.parameters())
    compute_again(trainer.model)
    trainer.eval_collector.data_collect(train_data)
    valid = trainer.evaluate(valid_data, load_best_model=False)
    test = trainer.evaluate(test_data, load_best_model=False)
    result = result_of(trainer, told, valid, test, train_data, test_data)
    costs = {**result.costs, "weight_bytes": size, "gradient_bytes": 0}
    analysis = by_popularity(trainer, interactions_of(train_data), test_data, config["topk"])
    return _finish(task, replace(result, costs=costs), analysis)


@torch.no_grad()
def _rounded(parameter: torch.Tensor) -> int:
    """Round a matrix to eight bits in place; returns the bytes that it takes then."""
    if parameter.dim() < 2 or parameter.numel() < _SMALL:
        return parameter.numel() * parameter.element_size()
    table = parameter.detach().cpu().reshape(len(parameter), -1)
    counts = np.full(len(table), table.shape[1])
    stored, scales, factor = encode(table.numpy().reshape(-1), counts, "int8")
    assert scales is not None
    values = decode(stored, counts, "int8", scales, factor)
    parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    return stored.nbytes + scales.nbytes + 4


def _finish(task: Task, result: RunResult, analysis: Mapping[str, Any]) -> RunResult:
    """The result under the method's name, with the bytes of its training and without this machine's paths."""
    costs = result.costs
    state = sum(costs[k] for k in ("weight_bytes", "index_bytes", "gradient_bytes", "optimizer_bytes"))
    return replace(
        result.without_places(),
        method=task.method.name,
        costs={**costs, "training_state_bytes": state},
        analysis={"by_popularity": dict(analysis)},
    )


def with_dense(result: RunResult, dense: RunResult) -> RunResult:
    """A result of a method that comes after dense training: its costs are both's."""
    both = with_phases(result, [("dense training", dense), ("after it", result)])
    first, after = both.analysis["phases"]
    phases = [first, *result.analysis.get("phases", [after])]
    return replace(both, analysis={**result.analysis, "phases": phases})


def gradual(task: Task) -> RunResult:
    """RecBole's training, in which weights are set to zero; then the model packed and tested."""
    assert task.density is not None
    budgets = task.twin().budgets
    config, _, train_data, valid_data, test_data = task.data()
    trainer = trainer_of(config, train_data)
    told = measure(trainer)
    plans = [Plan.of(type(trainer), config, train_data, budget.names) for budget in budgets]
    ends = [int(task.method.options["end"] * plan.steps) for plan in plans]
    GradualPruning(trainer, budgets, ends, task.method.options["times"])
    _, valid = trainer.fit(train_data, valid_data, show_progress=False)
    trained = _finish(task, result_of(trainer, told, valid, {}, train_data, test_data), {})
    packed = _packed(task, Path(trainer.saved_model_file))
    both = replace(
        packed,
        best_valid_result=trained.best_valid_result,
        valid_results=trained.valid_results,
        train_loss=trained.train_loss,
        epochs_run=trained.epochs_run,
    )
    return with_phases(both, [("dense training with masks", trained)])


def _packed(task: Task, checkpoint: Path) -> RunResult:
    """A dense checkpoint's largest weights, packed and tested."""
    once = replace(task.method, settings={**task.method.settings, "dsl_init": "magnitude", "epochs": 0})
    return sparse(replace(task, method=once, dense=checkpoint))


def lottery(task: Task) -> RunResult:
    """Train, keep the largest weights, rewind them to their initial values, and so on down to the density."""
    assert task.density is not None and task.dense is not None
    initial = task.twin().initial
    rounds, checkpoint = task.method.options["rounds"], task.dense
    phases: list[tuple[str, RunResult]] = []
    for number in range(1, rounds + 1):
        density = task.density if number == rounds else task.density ** (number / rounds)
        of_round = replace(task, density=density, dense=checkpoint)
        result, trainer = _sparse(of_round, lambda trainer: rewind(trainer, initial))
        phases.append((f"round {number}, density {density:.3g}", result))
        checkpoint = save_dense(dense_tensors(trainer.model), task.folder / f"round-{number}.pth")
    return with_phases(result, phases)


def hashed(task: Task) -> RunResult:
    """RecBole's training of a model whose tables are composed of two small ones."""
    twin = task.twin()
    told: dict[str, Any] = {}

    def prepare(network: Any) -> None:
        for budget in twin.budgets:
            told.update(hash_tables(network, budget.names, budget.bytes, task.seed))

    result = by_recbole(task, weights=twin.weights, prepare=prepare)
    return replace(result, analysis={**result.analysis, "hash": told})


def thresholds(task: Task) -> RunResult:
    """Search a topology with learned thresholds, then train it from the initial values."""
    twin = task.twin()
    options = task.method.options
    config, _, train_data, valid_data, test_data = task.data()
    searches: list[Search] = []
    trainer = trainer_of(
        config, train_data, lambda model: searches.append(Search(model, twin.budgets, options["initial"]))
    )
    (search,) = searches
    noted = measure(trainer)
    search.attach(trainer, options["learning_rate"], options["weight_decay"])
    with contextlib.suppress(ReachedError):
        trainer.fit(train_data, valid_data, saved=False, show_progress=False)
    trainer.eval_collector.data_collect(train_data)
    trainer.evaluate(test_data, load_best_model=False)  # which costs are counted with; its result is not used
    searched = _finish(task, result_of(trainer, noted, {}, {}, train_data, test_data), {})
    found = save_dense(search.topology(twin.initial), task.folder / "topology.pth")
    result, _ = _sparse(replace(task, dense=found), lambda trainer: rewind(trainer, twin.initial))
    told = {"live": sum(map(search.live, twin.budgets)), "reached": search.is_reached}
    result = replace(result, analysis={**result.analysis, "pep": told})
    return with_phases(result, [("search", searched), ("training", result)])


PROCEDURES: Final[dict[str, Callable[[Task], RunResult]]] = {
    "recbole": by_recbole,
    "narrow": narrow,
    "sparse": sparse,
    "quantised": quantised,
    "gradual": gradual,
    "lottery": lottery,
    "hashed": hashed,
    "thresholds": thresholds,
}
"""By the names in ``methods.PROCEDURES``."""
