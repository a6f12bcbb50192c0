"""What the figures of a report show; nothing here draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..results import RunResult
from .summary import Row, asked_density


@dataclass(frozen=True)
class Series:
    """A line: ``x`` and ``y`` of equal length, ``error`` (half lengths of bars), ``method`` for its colour.

    ``stroke``: how it is drawn, 0 solid, 1 dashed, others by which groups of one method are told apart.
    """

    name: str
    method: str
    x: list[float]
    y: list[float]
    error: list[float] | None = None
    stroke: int = 0


@dataclass(frozen=True)
class Figure:
    """A figure; ``levels``: horizontal lines by name; the y axis starts at zero in all of them."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: list[Series]
    levels: dict[str, float] = field(default_factory=dict)
    log_x: bool = False
    x_names: list[str] | None = None


Cells = Mapping[str, RunResult]
"""Results by the names of their files."""

_COSTS = {
    "bytes": ("weight + index bytes", "bytes of weights and index"),
    "macs": ("training MACs", "MACs of the whole training"),
    "seconds": ("training seconds", "seconds of training, evaluation excluded"),
}


def figures_of(rows: Sequence[Row], cells: Cells, density: float) -> list[Figure]:
    """All figures of one model on one dataset.

    Args:
        rows: of the table, of that model and dataset.
        cells: its results.
        density: of the figures that show single runs; methods without densities are shown as they are.
    """
    metric = rows[0].metric
    shown = {key: result for key, result in cells.items() if asked_density(key, result) in (density, None)}
    first = min(result.seed for result in shown.values()) if shown else 0
    one = [result for result in shown.values() if result.seed == first]
    found = [_accuracy(rows, metric, key) for key in _COSTS]
    found.append(_learning(one, metric, density))
    found += [
        _updates(one, "alpha", "Share exchanged at most (α_t)", density, lambda e: e["ratio"]),
        _updates(one, "turnover", "Share of live weights new to the topology", density, _turnover),
        _updates(
            one, "exploration", "Share of positions ever live (R)", density, lambda e: e["exploration_rate"]
        ),
    ]
    found += [_live(shown.values(), side, density) for side in ("users", "items")]
    found.append(_recall(shown.values(), density))
    return [figure for figure in found if figure.series]


def _accuracy(rows: Sequence[Row], metric: str, key: str) -> Figure:
    column, label = _COSTS[key]
    levels = {row.method: row.mean for row in rows if row.method == "dense"}
    series = []
    for method in dict.fromkeys(row.method for row in rows):
        own = sorted(
            ((row.figures[column], row.mean, row.deviation or 0.0) for row in rows if row.method == method),
            key=lambda point: point[0] or 0.0,
        )
        known = [(x, y, e) for x, y, e in own if x]
        if known:
            x, y, error = (list(part) for part in zip(*known, strict=True))
            stroke = int(method in ("dense", "narrow", "narrow_training"))
            series.append(Series(method, method, x, y, error, stroke))
    title = f"Test {metric} against {label}"
    return Figure(f"accuracy-{key}", title, label, f"test {metric}", series, levels, log_x=True)


def _learning(results: Iterable[RunResult], metric: str, density: float) -> Figure:
    series = [
        Series(
            r.method, r.method, [v["epoch"] + 1 for v in r.valid_results], [v[metric] for v in r.valid_results]
        )
        for r in results
        if r.valid_results and metric in r.valid_results[0]
    ]
    title = f"Learning curves at density {density:g}, first seed"
    return Figure("learning", title, "epoch", f"validation {metric}", series)


def _turnover(event: Mapping[str, Any]) -> float:
    return (event["grown"] - event["regrown"]) / max(1, event["live"])


def _updates(
    results: Iterable[RunResult],
    key: str,
    label: str,
    density: float,
    value: Callable[[Mapping[str, Any]], float | None],
) -> Figure:
    series = []
    for result in results:
        groups = dict.fromkeys(event["group"] for event in result.updates)
        for number, group in enumerate(groups):
            points = [(e["step"], value(e)) for e in result.updates if e["group"] == group]
            known = [(x, y) for x, y in points if y is not None]
            if known:
                name = result.method if len(groups) == 1 else f"{result.method}, {group}"
                xs, ys = [x for x, _ in known], [y for _, y in known]
                series.append(Series(name, result.method, xs, ys, stroke=number))
    title = f"{label} at density {density:g}, first seed"
    return Figure(key, title, "optimizer step", label, series)


_DECILES = ["most popular", *(f"{n}" for n in range(2, 10)), "least popular"]


def _live(results: Iterable[RunResult], side: str, density: float) -> Figure:
    """Mean live weights per row over seeds; dashed before training."""
    found: dict[tuple[str, str], list[list[float]]] = {}
    for result in results:
        tables = (result.analysis.get("by_popularity", {}).get(side) or {}).get("live") or {}
        for table in tables.values():
            for when, by_decile in table.items():
                if None not in by_decile:
                    found.setdefault((result.method, when), []).append(by_decile)
    series = [
        Series(f"{method}, {when}", method, list(range(10)), _mean(each), stroke=int(when == "before"))
        for (method, when), each in found.items()
    ]
    title = f"Live weights per row of {side} at density {density:g}, before (dashed) and after training"
    label = f"{side} by training interactions, in tenths"
    return Figure(f"live-{side}", title, label, "live weights per row", series, x_names=_DECILES)


def _recall(results: Iterable[RunResult], density: float) -> Figure:
    found: dict[str, list[list[float]]] = {}
    k = ""
    for result in results:
        recall = (result.analysis.get("by_popularity", {}).get("items") or {}).get("recall") or {}
        for k in sorted(recall, key=int)[:1]:
            found.setdefault(result.method, []).append(recall[k])
    series = [Series(method, method, list(range(10)), _mean(each)) for method, each in found.items()]
    title = f"Recall@{k} by popularity of the item at density {density:g}"
    label = "items by training interactions, in tenths"
    return Figure(
        "recall", title, label, f"share of test interactions in the first {k}", series, x_names=_DECILES
    )


def _mean(lists: Sequence[Sequence[float | None]]) -> list[float]:
    """Over the seeds that have a value: a tenth without test interactions has none. NaN, a gap, without any."""
    known = [[value for value in values if value is not None] for values in zip(*lists, strict=True)]
    return [statistics.fmean(values) if values else math.nan for values in known]
