"""The comparisons of accuracy beyond ml-100k: their order, and what of them is run.

``python -m benchmarks.grid [MODEL/DATASET ...]`` prints model, dataset, file of the search space and number of
its points, one comparison a line, as ``benchmarks/compare/accuracy.sh`` reads them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from benchmarks.speed_docs import RESULTS, ROOT, table
from recbole_dsl.compare.space import read_space
from recbole_dsl.compare.summary import Row, metric_of, read_cells, read_grid, rows_of

FOLDER = ROOT / "benchmarks/compare"
FIRST = RESULTS / "compare/ml-100k"
DENSITIES = (0.5, 0.2, 0.1, 0.05)
AIMS = {0.5: 1.0, 0.2: 1.0, 0.1: 0.99, 0.05: 0.97}
"""The share of dense's test metric that dsl_plus is to reach, by density."""
METHODS = ("static", "magnitude", "narrow", "dsl", "dsl_plus")


def order() -> list[dict[str, str]]:
    """The comparisons: model, dataset and name of the search space of each."""
    listed: list[dict[str, str]] = yaml.safe_load((FOLDER / "order.yaml").read_text(encoding="utf-8"))
    return listed


def commands(pairs: Sequence[str]) -> Iterator[str]:
    """One line for accuracy.sh for each of the named comparisons (MODEL/DATASET), or for all.

    Raises:
        SystemExit: one of them is not listed.
    """
    listed = {f"{one['model']}/{one['dataset']}": one for one in order()}
    for pair in pairs or listed:
        if pair not in listed:
            raise SystemExit(f"{pair} is not in benchmarks/compare/order.yaml; allowed: {', '.join(listed)}")
        space = FOLDER / f"{listed[pair]['space']}.txt"
        points = math.prod(len(setting.values) for setting in read_space(space))
        yield f"{listed[pair]['model']} {listed[pair]['dataset']} {space.relative_to(ROOT).as_posix()} {points}"


def overview() -> str:
    """Every cell of the grid: dense, ratios to it, and whether dsl_plus reaches its aim."""
    lines = []
    for model, dataset, folder in [
        ("BPR", "ml-100k", FIRST),
        ("LightGCN", "ml-100k", FIRST),
        *((o["model"], o["dataset"], RESULTS / f"compare/{o['model']}-{o['dataset']}") for o in order()),
    ]:
        scores = {(r.method, r.density): r for r in _rows(folder) if (r.model, r.dataset) == (model, dataset)}
        lines += (
            [_line(model, dataset, density, scores) for density in DENSITIES]
            if scores
            else [[model, dataset, "all", "–", *("–" for _ in METHODS), "", "not run"]]
        )
    return table(["model", "dataset", "density", "dense", *METHODS, "aim", "reached"], lines, words=2)


def _rows(folder: Path) -> list[Row]:
    cells = read_cells(folder)
    return rows_of(cells, read_grid(folder)["methods"], metric_of(cells)) if cells else []


def _line(
    model: str, dataset: str, density: float, scores: Mapping[tuple[str, float | None], Row]
) -> list[str]:
    dense = scores["dense", None].mean
    of = {method: scores[method, density].mean / dense for method in METHODS if (method, density) in scores}
    missed = []
    if of["dsl_plus"] < AIMS[density]:
        missed.append(f"below {AIMS[density]:g}")
    missed += [f"below {other}" for other in ("narrow", "dsl") if of["dsl_plus"] <= of[other]]
    ratios = (f"{of[method]:.3f}" if method in of else "–" for method in METHODS)
    reached = f"no: {', '.join(missed)}" if missed else "yes"
    return [model, dataset, f"{density:g}", f"{dense:.4f}", *ratios, f"{AIMS[density]:g}", reached]


if __name__ == "__main__":
    print("\n".join(commands(sys.argv[1:])))
