"""The table of a comparison, made of its cells' files alone."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from scipy import stats

from ..errors import ConfigError, on_one_line
from ..files import write_text_whole
from ..results import RunResult


def _weights(result: RunResult) -> int:
    """The weights that exist: live ones of sparse tensors, and all of the others."""
    beside = result.sparsity.get("left_dense", []) if result.sparsity.get("groups") else []
    return int(result.sparsity["live"] + sum(math.prod(tensor["shape"]) for tensor in beside))


COLUMNS: Final[dict[str, Callable[[RunResult], float | None]]] = {
    "live weights": _weights,
    "weight + index bytes": lambda r: r.costs["weight_bytes"] + r.costs["index_bytes"],
    "training state bytes": lambda r: r.costs["training_state_bytes"],
    "exploration bytes": lambda r: (
        (r.costs.get("growth_bytes") or 0) + (r.costs.get("exploration_record_bytes") or 0)
    ),
    "training MACs": lambda r: r.costs["training_macs"],
    "MACs per user": lambda r: r.costs["macs_per_recommended_user"],
    "training seconds": lambda r: r.costs["training_seconds"] + (r.costs.get("preparation_seconds") or 0.0),
    "peak bytes": lambda r: r.costs["peak_memory_bytes"],
    "epochs": lambda r: r.epochs_run,
}
"""What is told of a row besides the metric: means over its seeds."""


SMALLER_IS_BETTER: Final = frozenset({"averagepopularity", "giniindex", "logloss", "mae", "rmse"})
"""RecBole's metrics of which less is better."""


@dataclass(frozen=True)
class Row:
    """One method at one density.

    ``scores``: of the tested models, by seed; ``to_dense``: ratio of the sums over the seeds that both have;
    ``p_dense``, ``p_narrow``: of a two-sided paired t-test over seeds against dense, and against narrow at the
    same density, None with fewer than two seeds; ``place``: among the methods at this density, 1 for the best.
    """

    dataset: str
    model: str
    method: str
    density: float | None
    metric: str
    scores: dict[int, float]
    figures: dict[str, float | None]
    to_dense: float | None
    p_dense: float | None = None
    p_narrow: float | None = None
    place: int | None = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.scores.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over seeds, None for one."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else None


def read_cells(folder: Path) -> dict[str, RunResult]:
    """The results of all finished cells by the names of their files.

    Raises:
        ConfigError: one of them is no result.
    """
    return {file.stem: _read(file) for file in sorted((folder / "cells").glob("*.json"))}


def _read(file: Path) -> RunResult:
    try:
        result = RunResult.from_json(file.read_text(encoding="utf-8"))
        if result.costs.get("training_state_bytes") is None:
            raise ValueError("it is of a run by itself, not of a cell")
        return result
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"'{file}' is no result ({on_one_line(error)}); allowed are files that 'recbole-dsl compare' has "
            "written; one that is removed is made anew by it."
        ) from None


def metric_of(cells: Mapping[str, RunResult], metric: str | None = None) -> str:
    """``metric``, or the one that models were chosen by.

    Raises:
        ConfigError: no cell has it.
    """
    some = next(iter(cells.values()))
    found = (metric or str(some.config["valid_metric"])).lower()
    known = sorted(set().union(*(result.test_result for result in cells.values())))
    if found not in known:
        raise ConfigError(f"metric={found!r} is in no cell; allowed are {', '.join(known)}.")
    return found


def rows_of(cells: Mapping[str, RunResult], methods: Sequence[str], metric: str) -> list[Row]:
    """A row for each dataset, model, method and density of cells with the metric, ordered as ``methods``."""
    by_row: dict[tuple[str, str, str, float | None], list[RunResult]] = {}
    for key, result in cells.items():
        density = asked_density(key, result)
        by_row.setdefault((result.dataset, result.model, result.method, density), []).append(result)
    dense = {row[:2]: _scores(results, metric) for row, results in by_row.items() if row[2] == "dense"}
    rows = []
    for (dataset, model, method, density), results in by_row.items():
        scores = _scores(results, metric)
        if not scores:
            continue
        figures = {name: _mean([figure(r) for r in results]) for name, figure in COLUMNS.items()}
        theirs = dense.get((dataset, model), {})
        both = sorted(scores.keys() & theirs.keys())
        whole = sum(theirs[s] for s in both)
        ratio = sum(scores[s] for s in both) / whole if whole else None
        rows.append(Row(dataset, model, method, density, metric, scores, figures, ratio))

    places = {Path(name).stem: place for place, name in enumerate(methods)}
    last = len(places)
    rows.sort(key=lambda r: (r.dataset, r.model, places.get(r.method, last), -(r.density or 2), r.method))
    return [_compared(row, rows) for row in rows]


def _scores(results: Sequence[RunResult], metric: str) -> dict[int, float]:
    """The metric by seed, without those for which it is no number."""
    found = {r.seed: r.test_result.get(metric) for r in sorted(results, key=lambda r: r.seed)}
    return {seed: score for seed, score in found.items() if score is not None}


def _compared(row: Row, rows: Sequence[Row]) -> Row:
    """The row with its tests against dense and narrow, and its place."""
    same = [other for other in rows if (other.dataset, other.model) == (row.dataset, row.model)]
    against = {
        other.method: paired_p(row.scores, other.scores)
        for other in same
        if other.method == "dense" or (other.method == "narrow" and other.density == row.density)
    }
    against.pop(row.method, None)
    larger = row.metric.partition("@")[0] not in SMALLER_IS_BETTER
    beside = [other for other in same if other.density == row.density]
    # Means over other seeds are no match.
    seeds = set().union(*(other.scores for other in beside))
    rivals = sorted((other.mean for other in beside if other.scores.keys() == seeds), reverse=larger)
    ranked = row.density is not None and len(rivals) > 1 and row.scores.keys() == seeds
    place = rivals.index(row.mean) + 1 if ranked else None
    return replace(row, p_dense=against.get("dense"), p_narrow=against.get("narrow"), place=place)


def paired_p(one: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """The p-value of a two-sided paired t-test over the seeds that both have.

    None for fewer than two of them, or where all differences are equal.
    """
    seeds = sorted(one.keys() & other.keys())
    differences = [one[seed] - other[seed] for seed in seeds]
    if len(seeds) < 2 or max(differences) - min(differences) < 1e-12:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def asked_density(key: str, result: RunResult) -> float | None:
    """The density that was asked for, which is part of the cell's name.

    Raises:
        ConfigError: it is not the name of this cell.
    """
    _, method, end = key.removesuffix(f"-{result.seed}").rpartition(f"-{result.method}")
    try:
        if not method or not key.endswith(f"-{result.seed}"):
            raise ValueError
        return float(end[1:]) if end else None
    except ValueError:
        raise ConfigError(
            f"'cells/{key}.json' is not the name of its contents, {result.method} of {result.model} with seed "
            f"{result.seed}; allowed are files as 'recbole-dsl compare' has written them."
        ) from None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def head_of(rows: Sequence[Row]) -> list[str]:
    """The names of the table's columns."""
    metric = rows[0].metric if rows else "metric"
    first = ["dataset", "model", "method", "density", f"test {metric}", "/ dense", "p dense", "p narrow"]
    return [*first, *COLUMNS, "seeds"]


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; the best method at a density is bold, the second best in italics."""
    lines = [head_of(rows), ["---"] * 4 + ["---:"] * (len(head_of(rows)) - 4)]
    marks = {1: "**", 2: "*"}
    for row in rows:
        words = words_of(row)
        mark = marks.get(row.place or 0, "")
        words[4] = f"{mark}{words[4]}{mark}"
        lines.append(words)
    return "\n".join("| " + " | ".join(word.replace("|", r"\|") for word in line) + " |" for line in lines)


def mean_and_deviation(scores: Mapping[int, float]) -> str:
    """Over seeds; the sample standard deviation is left out where there is one seed."""
    spread = f" ± {statistics.stdev(scores.values()):.4f}" if len(scores) > 1 else ""
    return f"{statistics.fmean(scores.values()):.4f}{spread}"


def words_of(row: Row) -> list[str]:
    """What the table says of a row, column by column."""
    return [
        row.dataset,
        row.model,
        row.method,
        "" if row.density is None else f"{row.density:g}",
        mean_and_deviation(row.scores),
        *("" if value is None else f"{value:.3f}" for value in (row.to_dense, row.p_dense, row.p_narrow)),
        *(_figure(value) for value in row.figures.values()),
        str(len(row.scores)),
    ]


def as_latex(rows: Sequence[Row]) -> str:
    """The rows as a LaTeX table (booktabs); the best at a density is bold, the second best underlined."""
    words_for = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "±": r"$\pm$", "^": r"\^{}"}
    words_for |= {sign: "\\" + sign for sign in "_%&#${}"}
    signs = str.maketrans(words_for)

    def escaped(text: str) -> str:
        return text.replace("·10^", "e").translate(signs)

    head = head_of(rows)
    lines = [r"\begin{tabular}{llll" + "r" * (len(head) - 4) + "}", r"\toprule"]
    lines += [" & ".join(map(escaped, head)) + r" \\", r"\midrule"]
    marks = {1: r"\textbf", 2: r"\underline"}
    for row in rows:
        words = [escaped(word) for word in words_of(row)]
        if row.place in marks:
            words[4] = f"{marks[row.place]}{{{words[4]}}}"
        lines.append(" & ".join(words) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _figure(value: float | None) -> str:
    """Four digits, large numbers as powers of ten."""
    if value is None:
        return ""
    if value != 0 and abs(value) >= 1e7:
        digits, _, power = f"{value:.2e}".partition("e+")
        return f"{digits}·10^{int(power)}"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.1f}"


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with all digits, and the scores of every seed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head_of(rows)[:5], "standard deviation", *head_of(rows)[5:], "scores by seed"])
    for row in rows:
        by_seed = " ".join(f"{seed}:{score}" for seed, score in row.scores.items())
        given: list[Any] = [row.dataset, row.model, row.method, row.density]
        given += [row.mean, row.deviation, row.to_dense, row.p_dense, row.p_narrow]
        writer.writerow([*given, *row.figures.values(), len(row.scores), by_seed])
    return text.getvalue()


def write_tables(folder: Path, rows: Sequence[Row]) -> None:
    """``table.md``, ``table.csv`` and ``table.tex``."""
    texts = {
        "table.md": as_markdown(rows) + "\n",
        "table.csv": as_csv(rows),
        "table.tex": as_latex(rows) + "\n",
    }
    for name, text in texts.items():
        write_text_whole(folder / name, text)
