"""``recbole-dsl compare``: models × datasets × methods × densities × seeds, each cell once, and a table."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .command_line import Parser, check_command_line
from .compare.grid import Cell, cells_of
from .compare.methods import Method, method_names, read_method
from .compare.options import contents, numbers, read_tuned, refuse_own, seeds, settings_of, whole, words
from .compare.running import Runner, jobs_of
from .compare.store import Store
from .compare.summary import as_markdown, rows_of, write_tables
from .config import RecBoleDSLConfig, no_flags
from .errors import ConfigError

OPTIONS = (
    *(
        "--models",
        "--model",
        "--datasets",
        "--dataset",
        "--methods",
        "--densities",
        "--seeds",
        "--config_files",
    ),
    *("--name", "--results", "--jobs", "--tuned", "--metric"),
)


def parser() -> Parser:
    """The command's options; every other flag is a setting of all cells."""
    result = Parser(
        "compare",
        "Run a grid of methods, densities and seeds, and print a table. A call that was stopped goes on "
        "where it was: finished cells are never run again, failed and cancelled ones are.",
        "Every RecBole or dsl_ setting is a flag (--epochs=100), and holds for all cells. Methods: "
        f"{', '.join(method_names())}, and method files of your own (.yaml). docs/compare.md has more.",
    )
    result.add_argument("--models", "--model", default="BPR", metavar="A,B")
    result.add_argument("--datasets", "--dataset", default="ml-100k", metavar="A,B")
    result.add_argument("--methods", default="dense,narrow,dsl_plus", metavar="A,B")
    result.add_argument("--densities", default="0.1", metavar="X,Y", help="of the sparse methods (0.1)")
    result.add_argument(
        "--seeds", default="1", metavar="N", help="so many, from 2020 on; or a list such as 1,7"
    )
    result.add_argument("--config_files", default="", metavar="'A B'", help="YAML files, separated by spaces")
    result.add_argument("--tuned", metavar="FILE", help="YAML: settings by model, dataset and method")
    result.add_argument(
        "--name", metavar="NAME", help="of the comparison (default: of its models and datasets)"
    )
    result.add_argument("--results", default="results", metavar="DIR", help="where comparisons are (results)")
    result.add_argument("--jobs", default="1", metavar="N", help="cells that run at once (1)")
    result.add_argument("--metric", metavar="NAME", help="of the printed table (default: valid_metric)")
    return result


def run(argv: Sequence[str]) -> None:
    """Run what is left of the grid, then print and write its table."""
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return
    check_command_line(argv, OPTIONS)
    options, flags = parser().parse_known_args(list(argv))
    settings = dict(flag[2:].split("=", 1) for flag in flags)
    files = contents(options.config_files.split())
    for source in (settings, files):
        refuse_own(source)
    models, datasets = words(options.models, "models"), words(options.datasets, "datasets")
    asked = words(options.methods, "methods")
    methods = {method.name: (word, method) for word, method in ((word, read_method(word)) for word in asked)}
    only = [method for _, method in methods.values()]
    cells = cells_of(models, datasets, only, numbers(options.densities), seeds(options.seeds))
    tuned = read_tuned(options.tuned)
    each = {cell: {**settings, **settings_of(tuned, cell)} for one in cells for cell in (one, one.dense)}
    metric = _check(cells, methods, files, each, options.metric)
    jobs = whole(options.jobs, "jobs")
    name = options.name or re.sub(r"\W+", "-", f"{'-'.join(models)}-{'-'.join(datasets)}")
    if Path(name).name != name:
        raise ConfigError(f"--name={name} is refused: allowed is the name of a folder.")
    store = Store(Path(options.results) / name)
    grid = {
        "models": models,
        "datasets": datasets,
        "methods": asked,
        "densities": numbers(options.densities),
        "seeds": seeds(options.seeds),
        "settings": settings,
        "tuned": tuned,
    }
    store.open(grid, files)
    try:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        left = jobs_of(cells, methods, each, store)
        outcome = Runner(store, jobs, threads).run(left, len(cells))
        rows = rows_of(store.folder, metric)
        write_tables(store.folder, rows)
    finally:
        store.close()
    print(as_markdown(rows))
    print(f"\nResults: {store.folder}")
    if outcome.failed or outcome.cancelled:
        raise ConfigError(
            f"{outcome.failed} cells failed and {outcome.cancelled} were cancelled; '{store.folder}/failed' "
            "and 'cancelled' say why; allowed is to call the command again, which runs them anew."
        )


def _check(
    cells: Sequence[Cell],
    methods: Mapping[str, tuple[str, Method]],
    files: Mapping[str, Any],
    each: Mapping[Cell, Mapping[str, Any]],
    metric: str | None,
) -> str:
    """Refuse what no cell could be run with, before any is; returns the metric of the table."""
    found = metric or ""
    for cell in {(c.model, c.dataset, c.method): c for c in cells}.values():
        method = methods[cell.method][1]
        sparse = {"dsl_density": cell.density} if method.procedure == "sparse" else {}
        own = {**files, **each[cell], **sparse, "dsl_method": method.trains_as or "static"}
        with no_flags():
            config = RecBoleDSLConfig(cell.model, cell.dataset, None, own)
        known = config.metric_names()
        found = found or str(config["valid_metric"]).lower()
        if found not in known:
            raise ConfigError(
                f"--metric={metric} is none of the metrics that are computed: {', '.join(known)}."
            )
    return found
