"""The table of a comparison, made of its cells' files alone."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..files import written_whole
from ..results import RunResult

COLUMNS: Final[dict[str, Callable[[RunResult], float | None]]] = {
    "live weights": lambda r: r.sparsity["live"],
    "weight + index bytes": lambda r: r.costs["weight_bytes"] + r.costs["index_bytes"],
    "training state bytes": lambda r: r.costs["training_state_bytes"],
    "training MACs": lambda r: r.costs["training_macs"],
    "MACs per user": lambda r: r.costs["macs_per_recommended_user"],
    "training seconds": lambda r: r.costs["training_seconds"],
    "epochs": lambda r: r.epochs_run,
}
"""What is told of a row besides the metric: means over its seeds."""


@dataclass(frozen=True)
class Row:
    """One method at one density; ``scores``: of the tested models, by seed."""

    dataset: str
    model: str
    method: str
    density: float | None
    metric: str
    scores: dict[int, float]
    figures: dict[str, float | None]
    to_dense: float | None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for one."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


def read_cells(folder: Path) -> dict[str, RunResult]:
    """The results of all finished cells by the names of their files."""
    files = sorted((folder / "cells").glob("*.json"))
    return {file.stem: RunResult.from_json(file.read_text(encoding="utf-8")) for file in files}


def rows_of(folder: Path, metric: str) -> list[Row]:
    """One row for every dataset, model, method and density with a finished cell, in the order of the grid."""
    grid = json.loads((folder / "grid.json").read_text(encoding="utf-8"))
    by_row: dict[tuple[str, str, str, float | None], list[RunResult]] = {}
    for key, result in read_cells(folder).items():
        density = _density_of(key, result)
        by_row.setdefault((result.dataset, result.model, result.method, density), []).append(result)
    dense = {
        row[:2]: {r.seed: r.test_result[metric] for r in results}
        for row, results in by_row.items()
        if row[2] == "dense"
    }
    rows = []
    for (dataset, model, method, density), results in by_row.items():
        scores = {r.seed: r.test_result[metric] for r in sorted(results, key=lambda r: r.seed)}
        figures = {name: _mean([figure(r) for r in results]) for name, figure in COLUMNS.items()}
        theirs = dense.get((dataset, model), {})
        both = sorted(scores.keys() & theirs.keys())
        ratio = sum(scores[s] for s in both) / sum(theirs[s] for s in both) if both else None
        rows.append(Row(dataset, model, method, density, metric, scores, figures, ratio))

    places = {Path(name).stem: place for place, name in enumerate(grid["methods"])}
    return sorted(
        rows, key=lambda r: (r.dataset, r.model, places.get(r.method, 99), -(r.density or 2), r.method)
    )


def _density_of(key: str, result: RunResult) -> float | None:
    """The density that was asked for, which is part of the cell's name."""
    end = key.removesuffix(f"-{result.seed}").rpartition(f"-{result.method}")[2]
    return float(end[1:]) if end else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _head(rows: Sequence[Row]) -> list[str]:
    metric = rows[0].metric if rows else "metric"
    return ["dataset", "model", "method", "density", f"test {metric}", "/ dense", *COLUMNS, "seeds"]


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [_head(rows), ["---"] * 4 + ["---:"] * (len(_head(rows)) - 4)]
    for row in rows:
        spread = "" if row.deviation is None else f" ± {row.deviation:.4f}"
        lines.append(
            [
                row.dataset,
                row.model,
                row.method,
                "" if row.density is None else f"{row.density:g}",
                f"{row.mean:.4f}{spread}",
                "" if row.to_dense is None else f"{row.to_dense:.3f}",
                *(_figure(value) for value in row.figures.values()),
                str(len(row.scores)),
            ]
        )
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _figure(value: float | None) -> str:
    """Four digits, large numbers as powers of ten."""
    if value is None:
        return ""
    if value != 0 and abs(value) >= 1e7:
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10**power:.2f}·10^{power}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with all digits, and the scores of every seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_head(rows)[:5], "standard deviation", *_head(rows)[5:], "scores by seed"])
    for row in rows:
        by_seed = " ".join(f"{seed}:{score}" for seed, score in row.scores.items())
        given: list[Any] = [
            row.dataset,
            row.model,
            row.method,
            row.density,
            row.mean,
            row.deviation,
            row.to_dense,
        ]
        writer.writerow([*given, *row.figures.values(), len(row.scores), by_seed])
    return text.getvalue()


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """``table.md`` and ``table.csv``."""
    for name, text in (("table.md", as_markdown(rows) + "\n"), ("table.csv", as_csv(rows))):
        with written_whole(folder / name) as file:
            file.write(text.encode())
