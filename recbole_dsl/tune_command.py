"""``recbole-dsl tune``: the same points of a search space for every method, chosen on validation."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .command_line import Parser, check_command_line
from .compare.grid import Cell, cells_of
from .compare.methods import Method, read_method
from .compare.options import contents, numbers, read_tuned, refuse_own, seeds, settings_of, whole, words
from .compare.running import Runner, jobs_of
from .compare.space import points_of, read_space
from .compare.store import Store
from .compare.summary import read_cells
from .config import RecBoleDSLConfig, no_flags
from .errors import ConfigError
from .files import written_whole

OPTIONS = (
    *("--models", "--model", "--datasets", "--dataset", "--methods", "--density", "--seed", "--space"),
    *("--trials", "--config_files", "--name", "--results", "--jobs", "--tuned"),
)


def parser() -> Parser:
    """The command's options; every other flag is a setting of all trials."""
    result = Parser(
        "tune",
        "Try the same settings with every method, and write those with the best validation result, for "
        "'recbole-dsl compare --tuned=FILE'. Goes on where it was stopped.",
        "Every RecBole or dsl_ setting is a flag, and holds for all trials. docs/compare.md has more.",
    )
    result.add_argument("--models", "--model", default="BPR", metavar="A,B")
    result.add_argument("--datasets", "--dataset", default="ml-100k", metavar="A,B")
    result.add_argument("--methods", default="dense,narrow,dsl_plus", metavar="A,B")
    result.add_argument("--density", default="0.1", help="of the trials (0.1)")
    result.add_argument("--seed", default="2020", help="of the trials, and of the points that are drawn (2020)")
    result.add_argument("--space", metavar="FILE", help="lines such as 'learning_rate choice [0.001, 0.01]'")
    result.add_argument("--trials", default="10", metavar="N", help="points for each method at most (10)")
    result.add_argument("--config_files", default="", metavar="'A B'", help="YAML files")
    result.add_argument("--tuned", metavar="FILE", help="settings that methods are tuned on top of")
    result.add_argument("--name", metavar="NAME", help="of the tuning (default: models, datasets and 'tuning')")
    result.add_argument("--results", default="results", metavar="DIR", help="where it is (results)")
    result.add_argument("--jobs", default="1", metavar="N", help="trials that run at once (1)")
    return result


def run(argv: Sequence[str]) -> None:
    """Run the trials that are left, and write ``tuned.yaml`` and ``trials.csv``."""
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return
    check_command_line(argv, OPTIONS)
    options, flags = parser().parse_known_args(list(argv))
    if options.space is None:
        raise ConfigError(
            "--space is missing: allowed is a file with lines 'learning_rate choice [0.001, 0.01]'."
        )
    settings = dict(flag[2:].split("=", 1) for flag in flags)
    files = contents(options.config_files.split())
    space = read_space(Path(options.space))
    for source in (settings, files, {dimension.name: dimension.values for dimension in space}):
        refuse_own(source)
    models, datasets = words(options.models, "models"), words(options.datasets, "datasets")
    asked = {method.name: (w, method) for w in words(options.methods, "methods") for method in [read_method(w)]}
    fixed = [name for name, (_, method) in asked.items() if not method.tuned]
    if fixed:
        raise ConfigError(
            f"method {fixed[0]} has nothing to tune, since it trains nothing; allowed are others."
        )
    density, (seed,) = numbers(options.density), seeds(f"{options.seed},")
    points = points_of(space, whole(options.trials, "trials"), seed)
    cells = cells_of(models, datasets, [m for _, m in asked.values()], density, [seed])
    tuned = read_tuned(options.tuned)
    metrics = {model: _check(model, datasets, {**files, **settings}, points) for model in models}
    name = options.name or re.sub(r"\W+", "-", f"{'-'.join(models)}-{'-'.join(datasets)}-tuning")
    if Path(name).name != name:
        raise ConfigError(f"--name={name} is refused: allowed is the name of a folder.")
    how = {
        "space": {d.name: [d.kind, *d.values] for d in space},
        "trials": len(points),
        "density": density[0],
        "seed": seed,
        "metric": ", ".join(sorted({metric for metric, _ in metrics.values()})),
    }
    grid = {
        "models": models, "datasets": datasets, "methods": list(asked), "densities": density, "seeds": [seed],
        "settings": {**settings, "points": points}, "tuned": tuned,
    }  # fmt: skip
    store = Store(Path(options.results) / name)
    store.open(grid, files)
    chosen: dict[str, Any] = {"how": how, "chosen": dict(tuned.get("chosen") or {})}
    jobs = whole(options.jobs, "jobs")
    try:
        runner = Runner(store, jobs, max(1, (os.cpu_count() or 1) // jobs))
        # What starts from the dense model starts from the tuned one.
        for after in (None, "dense"):
            stage = [cell for cell in cells if asked[cell.method][1].after == after]
            _run_stage(runner, store, stage, asked, settings, chosen, points)
            _choose(store, stage, points, metrics, chosen)
        _write(store, cells, points, metrics, chosen)
    finally:
        store.close()
    path = store.folder / "tuned.yaml"
    print(path.read_text(encoding="utf-8"))
    print(f"Use it with: recbole-dsl compare --tuned={path}")


def _run_stage(
    runner: Runner,
    store: Store,
    stage: Sequence[Cell],
    asked: Mapping[str, tuple[str, Method]],
    settings: Mapping[str, Any],
    chosen: Mapping[str, Any],
    points: Sequence[Mapping[str, Any]],
) -> None:
    trials = [(replace(cell, trial=number), point) for cell in stage for number, point in enumerate(points)]
    if not trials:
        return
    each = {trial: {**settings, **settings_of(chosen, trial), **point} for trial, point in trials}
    for trial, _ in trials:
        each[trial.dense] = {**settings, **settings_of(chosen, trial.dense)}
    outcome = runner.run(jobs_of([trial for trial, _ in trials], asked, each, store), len(trials))
    if outcome.failed or outcome.cancelled:
        raise ConfigError(
            f"{outcome.failed} trials failed and {outcome.cancelled} were cancelled; '{store.folder}/failed' "
            "and 'cancelled' say why; allowed is to call the command again, which runs them anew."
        )


def _choose(
    store: Store,
    stage: Sequence[Cell],
    points: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, tuple[str, bool]],
    chosen: dict[str, Any],
) -> None:
    """The point of every cell with the best validation result; of equal ones the first."""
    results = read_cells(store.folder)
    for cell in stage:
        metric, bigger = metrics[cell.model]
        scores = [
            results[replace(cell, trial=number).key].best_valid_result[metric] for number in range(len(points))
        ]
        best = scores.index(max(scores) if bigger else min(scores))
        of_dataset = chosen["chosen"].setdefault(cell.model, {}).setdefault(cell.dataset, {})
        of_dataset[cell.method] = {**of_dataset.get(cell.method, {}), **points[best]}


def _write(
    store: Store,
    cells: Sequence[Cell],
    points: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, tuple[str, bool]],
    chosen: Mapping[str, Any],
) -> None:
    results = read_cells(store.folder)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["model", "dataset", "method", *points[0], "metric", "best validation result", "epochs"])
    for cell in cells:
        metric, _ = metrics[cell.model]
        for number, point in enumerate(points):
            result = results[replace(cell, trial=number).key]
            own = [cell.model, cell.dataset, cell.method, *point.values(), metric]
            writer.writerow([*own, result.best_valid_result[metric], result.epochs_run])
    for name, content in (
        ("trials.csv", text.getvalue()),
        ("tuned.yaml", yaml.safe_dump(dict(chosen), sort_keys=False)),
    ):
        with written_whole(store.folder / name) as file:
            file.write(content.encode())


def _check(
    model: str, datasets: Sequence[str], settings: Mapping[str, Any], points: Sequence[Mapping[str, Any]]
) -> tuple[str, bool]:
    """Refuse points that RecBole would refuse; returns the metric of validation and whether more is better."""
    for dataset in datasets:
        for point in points:
            with no_flags():
                own = {**settings, **point, "dsl_method": "static"}
                config = RecBoleDSLConfig(model, dataset, None, own)
    return str(config["valid_metric"]).lower(), bool(config["valid_metric_bigger"])
