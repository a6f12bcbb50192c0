"""``recbole-dsl compare``: models × datasets × methods × densities × seeds, each cell once, and a table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .command_line import Parser, warn_misspelt_keys, warn_unknown_flags
from .compare.grid import Cell
from .compare.methods import Method, method_names
from .compare.narrow import Widths
from .compare.options import Request, add_options, numbers, seeds, settings_of
from .compare.running import Runner, jobs_of, refuse_unfinished
from .compare.store import Store, read_grid
from .compare.summary import as_markdown, read_cells, rows_of, write_tables
from .config import RecBoleDSLConfig, no_flags
from .errors import ConfigError


def parser() -> Parser:
    """The command's options; every other flag is a setting of all cells."""
    result = Parser(
        "compare",
        "Run a grid of methods, densities and seeds, and print a table. A call that was stopped goes on "
        "where it was: finished cells are never run again, failed and cancelled ones are.",
        "Every RecBole or dsl_ setting is a flag (--epochs=100), and holds for all cells. Methods: "
        f"{', '.join(method_names())}, and method files of your own (.yaml). docs/compare.md has more.",
    )
    add_options(result, "models and datasets")
    result.add_argument("--densities", default="0.1", metavar="X,Y", help="of the sparse methods (0.1)")
    result.add_argument("--seeds", default="1", metavar="N", help="so many, from 2020 on; or a list: 1,7")
    result.add_argument("--metric", metavar="NAME", help="of the printed table (default: valid_metric)")
    return result


def run(argv: Sequence[str]) -> None:
    """Run what is left of the grid, then print and write its table."""
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return
    options, request = Request.read(parser(), argv)
    densities, numbers_of_seeds = numbers(options.densities), seeds(options.seeds)
    cells = request.cells(densities, numbers_of_seeds)
    each = _settings(cells, request)
    metric = _check(cells, request, each, options.metric)
    _warn_of_untuned(cells, request)
    store = Store(request.folder)
    store.open(request.grid(densities, numbers_of_seeds), request.files)
    try:
        outcome = Runner(store, request.jobs).run(jobs_of(cells, request.methods, each, store), len(cells))
        rows = rows_of(read_cells(store.folder), read_grid(store.folder)["methods"], metric)
        write_tables(store.folder, rows)
    finally:
        store.close()
    print(as_markdown(rows))
    print(f"\nResults: {store.folder}")
    refuse_unfinished(outcome, store, "cells")


def _settings(cells: Sequence[Cell], request: Request) -> dict[Cell, dict[str, Any]]:
    """Of the cells and of the dense models; those of the dense one for what takes its weights as they are."""
    each: dict[Cell, dict[str, Any]] = {}
    for one in cells:
        _, method = request.methods[one.method]
        for cell in (one, one.dense):
            of = one.dense if method.after == "dense" and not method.tuned else cell
            each[cell] = {**request.settings, **settings_of(request.tuned, of)}
    return each


def _check(
    cells: Sequence[Cell], request: Request, each: Mapping[Cell, Mapping[str, Any]], metric: str | None
) -> str:
    """Refuse what no cell could be run with, before any is; returns the metric of the table."""
    found, all_known = (metric or "").lower(), set[str]()
    for cell in {(c.model, c.dataset, c.method): c for c in cells}.values():
        _, method = request.methods[cell.method]
        sparse = {"dsl_density": cell.density} if method.procedure == "sparse" else {}
        own = method.configured({**request.files, **each[cell], **sparse})
        with no_flags():
            config = RecBoleDSLConfig(cell.model, cell.dataset, None, own)
        all_known |= config.known_keys
        known = config.metric_names()
        found = found or str(config["valid_metric"]).lower()
        if found not in known:
            option = f"metric={metric}" if metric else f"valid_metric={found}"
            raise ConfigError(
                f"--{option} is none of the metrics that are computed for {cell.model}: {', '.join(known)}; "
                "allowed are models with the same metrics in one comparison."
            )
        if method.procedure == "narrow":
            Widths.of(config, method.widths, method.even)
            _refuse_other_size(cell, method, request)
    tuned = {key: None for cell in each for key in settings_of(request.tuned, cell)}
    both = sorted(tuned.keys() & request.settings.keys())
    if both:
        raise ConfigError(
            f"--{both[0]} is in the tuned settings, too, which would win: allowed is one of both."
        )
    warn_unknown_flags({**request.settings, **tuned}, all_known, parser().words)
    warn_misspelt_keys(request.files, all_known)
    return found


def _refuse_other_size(cell: Cell, method: Method, request: Request) -> None:
    """Raise ConfigError if a method and the sparse one whose bytes it is to have are tuned to other sizes."""
    own, whole = settings_of(request.tuned, cell), str(method.trains_as)
    others = settings_of(request.tuned, replace(cell, method=whole))
    for key in sorted(method.sizes(cell.model)):
        if own.get(key) != others.get(key):
            raise ConfigError(
                f"the tuned settings have {key}={own.get(key)} for {cell.method} and {others.get(key)} for "
                f"{whole}, whose bytes {cell.method} is to have: allowed is the same size for both."
            )


def _warn_of_untuned(cells: Sequence[Cell], request: Request) -> None:
    """A name that is misspelt in the file of tuned settings would otherwise pass for one that is not tuned."""
    if not request.tuned:
        return
    parts = {(c.model, c.dataset, c.method): c for c in cells if request.methods[c.method][1].tuned}
    for (model, dataset, method), cell in parts.items():
        if not settings_of(request.tuned, cell):
            logging.getLogger(__name__).warning(
                "The tuned settings have none for %s on %s with method %s.", model, dataset, method
            )
