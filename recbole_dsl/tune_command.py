"""``recbole-dsl tune``: the same points of a search space for every method, chosen on validation."""

from __future__ import annotations

import csv
import io
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .command_line import Parser, warn_misspelt_keys, warn_unknown_flags
from .compare.grid import FIRST_SEED, Cell, cells_of
from .compare.methods import read_method
from .compare.options import Request, add_options, number, read_tuned, refuse_own, seed, settings_of, whole
from .compare.running import Runner, jobs_of, refuse_unfinished
from .compare.space import points_of, read_space
from .compare.store import Store, read_grid
from .compare.summary import read_cells
from .config import RecBoleDSLConfig, no_flags
from .errors import ConfigError, nearest
from .files import write_text_whole
from .plain import plain
from .property_files import of_recbole
from .results import RunResult
from .settings import literal

Point = Mapping[str, Any]
"""Settings that are tried together."""


def parser() -> Parser:
    """The command's options; every other flag is a setting of all trials."""
    result = Parser(
        "tune",
        "Try the same settings with every method, and write those with the best validation result, for "
        "'recbole-dsl compare --tuned=FILE'. Goes on where it was stopped.",
        "Every RecBole or dsl_ setting is a flag, and holds for all trials. docs/compare.md has more.",
    )
    add_options(result, "models, datasets and 'tuning'")
    result.add_argument("--space", metavar="FILE", help="lines such as 'learning_rate choice [0.001, 0.01]'")
    result.add_argument("--trials", default="10", metavar="N", help="points for each method at most (10)")
    result.add_argument("--density", default="0.1", help="of the trials (0.1)")
    result.add_argument(
        "--seed",
        default=str(FIRST_SEED),
        help=f"of the trials, and of the points that are drawn ({FIRST_SEED})",
    )
    return result


def run(argv: Sequence[str]) -> None:
    """Run the trials that are left, and write ``tuned.yaml`` and ``trials.csv``."""
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return
    options, request = Request.read(parser(), argv, ending="-tuning")
    if options.space is None:
        raise ConfigError(
            "--space is missing: allowed is a file with lines 'learning_rate choice [0.001, 0.01]'."
        )
    space = read_space(Path(options.space))
    refuse_own({dimension.name: dimension.values for dimension in space})
    fixed = [name for name, (_, method) in request.methods.items() if not method.tuned]
    if fixed:
        raise ConfigError(
            f"method {fixed[0]} has nothing to tune, since it trains nothing; allowed are others."
        )
    for model in request.models:
        for name, (_, method) in request.methods.items():
            if size := method.sizes(model) & {dimension.name for dimension in space}:
                raise ConfigError(
                    f"{min(size)!r} in --space is refused, because {name} is to have the bytes of "
                    f"{method.trains_as}: allowed are settings that do not change the size, or other methods."
                )
    density, of_trials = number(options.density, "density"), seed(options.seed)
    points = points_of(space, whole(options.trials, "trials"), of_trials)
    cells = request.cells([density], [of_trials])
    metrics = {model: _check(model, request, points, density) for model in request.models}
    how = {
        "space": {d.name: [d.kind, *d.values] for d in space},
        "trials": len(points),
        "density": density,
        "seed": of_trials,
        "metric": ", ".join(sorted({metric for metric, _ in metrics.values()})),
    }
    store = Store(request.folder)
    _refuse_other_trials(store, density, of_trials)
    store.open(request.grid([density], [of_trials], points=points), request.files)
    path = store.folder / "tuned.yaml"
    before = read_tuned(str(path)).get("chosen", {}) if path.is_file() else {}
    # Methods that earlier calls have tuned keep their choices.
    chosen: dict[str, Any] = {"how": how, "chosen": _merged(request.tuned.get("chosen") or {}, before)}
    try:
        # What starts from the dense model starts from the tuned one.
        everything, starting = _cells_of_folder(store, density, of_trials)
        for model in read_grid(store.folder)["models"]:
            if model not in metrics:
                metrics[model] = _check(model, request, points, density)
        for after in (None, "dense"):
            stage = [cell for cell in cells if request.methods[cell.method][1].after == after]
            if after == "dense":
                _refuse_other_dense(store, starting, chosen)
            _run_stage(store, stage, request, chosen, points)
            results = read_cells(store.folder)
            _choose(results, stage, points, metrics, chosen["chosen"])
        write_text_whole(store.folder / "trials.csv", _as_csv(results, everything, points, metrics))
        write_text_whole(path, yaml.safe_dump(chosen, sort_keys=False))
    finally:
        store.close()
    print(path.read_text(encoding="utf-8"))
    print(f"Use it with: recbole-dsl compare --tuned={path}")


def _refuse_other_trials(store: Store, density: float, seed: int) -> None:
    """Raise ConfigError if trials are there of another density or seed: ``tuned.yaml`` says one of each."""
    if not (store.folder / "grid.json").is_file():
        return
    grid = read_grid(store.folder)
    for name, before, now in (("density", grid["densities"], density), ("seed", grid["seeds"], seed)):
        if before != [now]:
            raise ConfigError(
                f"'{store.folder}' has trials of {name} {', '.join(map(str, before))}, and now it is {now}: "
                "allowed is the same for all methods, or another --name."
            )


def _merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings of models to datasets to methods to settings; the second wins."""
    merged = {model: {dataset: dict(m) for dataset, m in of.items()} for model, of in one.items()}
    for model, of_model in other.items():
        for dataset, of_dataset in of_model.items():
            merged.setdefault(model, {}).setdefault(dataset, {}).update(of_dataset)
    return merged


def _cells_of_folder(store: Store, density: float, seed: int) -> tuple[list[Cell], list[Cell]]:
    """The cells of all calls with this folder, and those of them that start from a dense model."""
    grid = read_grid(store.folder)
    methods = {method.name: method for method in map(read_method, grid["methods"])}
    cells = []
    for model in grid["models"]:  # calls have had different methods, of which some cannot train every model
        able = [method for method in methods.values() if model.rpartition(":")[2] not in method.refuses]
        cells += cells_of([model], grid["datasets"], able, [density], [seed])
    return cells, [cell for cell in cells if methods[cell.method].after == "dense"]


def _refuse_other_dense(store: Store, cells: Sequence[Cell], chosen: Mapping[str, Any]) -> None:
    """Raise ConfigError if trials of ``cells`` have started from a dense model with other settings."""
    for cell in cells:
        figures = store.path("dense", cell.dense)
        settings = settings_of(chosen, cell.dense)
        if not figures.is_file():
            continue
        config = RunResult.from_json(figures.read_text(encoding="utf-8")).config
        # A dense model has no settings of ours, and RecBole has read the others.
        asked = {key: plain(literal(value)) for key, value in of_recbole(settings).items()}
        if any(plain(literal(config.get(key))) != value for key, value in asked.items()):
            raise ConfigError(
                f"'{store.folder}' has trials of {cell.method} that started from a dense model before that was "
                "tuned; allowed is another --name."
            )


def _trials(cell: Cell, points: Sequence[Point]) -> list[tuple[Cell, Point]]:
    """A cell for every point."""
    return [(replace(cell, trial=place), point) for place, point in enumerate(points)]


def _run_stage(
    store: Store, stage: Sequence[Cell], request: Request, chosen: Mapping[str, Any], points: Sequence[Point]
) -> None:
    each: dict[Cell, dict[str, Any]] = {}
    for cell in stage:
        each[cell.dense] = {**request.settings, **settings_of(chosen, cell.dense)}
        for trial, point in _trials(cell, points):
            each[trial] = {**request.settings, **settings_of(chosen, trial), **point}
    trials = [cell for cell in each if cell.trial is not None]
    if trials:
        outcome = Runner(store, request.jobs).run(jobs_of(trials, request.methods, each, store), len(trials))
        none_left = any(not any(store.is_finished(t) for t, _ in _trials(cell, points)) for cell in stage)
        if outcome.cancelled or none_left:
            refuse_unfinished(outcome, store, "trials")
        if outcome.failed:
            logging.getLogger(__name__).warning(
                "%d trials failed and count as the worst ('%s/failed' says why); another call tries again.",
                outcome.failed,
                store.folder,
            )


def _choose(
    results: Mapping[str, RunResult],
    stage: Sequence[Cell],
    points: Sequence[Point],
    metrics: Mapping[str, tuple[str, bool]],
    chosen: dict[str, Any],
) -> None:
    """The point of every cell with the best validation result; of equal ones the first.

    Raises:
        ConfigError: a cell has none.
    """
    for cell in stage:
        metric, bigger = metrics[cell.model]
        scores = {place: _score(results, t, metric) for place, (t, _) in enumerate(_trials(cell, points))}
        known = {place: score for place, score in scores.items() if score is not None}
        if not known:
            raise ConfigError(
                f"No trial of {cell.key} has a {metric} that is a number; allowed is another space."
            )
        best = (max if bigger else min)(known, key=known.__getitem__)
        of_dataset = chosen.setdefault(cell.model, {}).setdefault(cell.dataset, {})
        of_dataset[cell.method] = {**of_dataset.get(cell.method, {}), **points[best]}


def _score(results: Mapping[str, RunResult], trial: Cell, metric: str) -> float | None:
    """Of a trial on validation; None if it failed, or that is no number."""
    result = results.get(trial.key)
    return None if result is None else (result.best_valid_result or {}).get(metric)


def _as_csv(
    results: Mapping[str, RunResult],
    cells: Sequence[Cell],
    points: Sequence[Point],
    metrics: Mapping[str, tuple[str, bool]],
) -> str:
    """A line for every trial; without figures if it failed, or is not run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "dataset", "method", *points[0], "metric", "best validation result", "epochs"])
    for cell in cells:
        metric, _ = metrics[cell.model]
        for trial, point in _trials(cell, points):
            result = results.get(trial.key)
            own = [cell.model, cell.dataset, cell.method, *point.values(), metric]
            epochs = None if result is None else result.epochs_run
            writer.writerow([*own, _score(results, trial, metric), epochs])
    return text.getvalue()


def _check(model: str, request: Request, points: Sequence[Point], density: float) -> tuple[str, bool]:
    """Refuse points that a method would refuse; returns the metric of validation and whether more is better.

    Warns of flags and tuned settings that do nothing to the model.
    """
    settings = {**request.files, **request.settings}
    flags = request.settings.keys() - request.files.keys()
    methods = [method for _, method in request.methods.values()]
    for dataset, method, point in itertools.product(request.datasets, methods, points):
        own = method.configured({**settings, **point, "dsl_density": density})
        with no_flags():
            config = RecBoleDSLConfig(model, dataset, None, own)
        for key in ("epochs", "eval_step"):
            if config[key] == 0:
                raise ConfigError(
                    f"{key}=0 is refused, because nothing would be validated: allowed are others."
                )
    for name in points[0].keys() - settings.keys() - config.known_keys:
        if hint := nearest(name, sorted(config.known_keys), cutoff=0.85):  # all trials would be the same
            raise ConfigError(f"{name!r} in --space is no known setting{hint}; allowed are those of the model.")
    warn_unknown_flags([*flags, *points[0]], config.known_keys, parser().words)
    warn_misspelt_keys(settings.keys() - flags, config.known_keys)
    return str(config["valid_metric"]).lower(), bool(config["valid_metric_bigger"])
