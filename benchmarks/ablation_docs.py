"""Write the tables of docs/ablation.md from the cells of benchmarks/compare/ablation.sh.

python -m benchmarks.ablation_docs
"""

from __future__ import annotations

import functools
import statistics
from pathlib import Path

from benchmarks import speed_docs
from benchmarks.speed_docs import MISSING, RESULTS, ROOT, figure, table
from recbole_dsl.compare.summary import paired_p, read_cells
from recbole_dsl.results import RunResult

DOCS = ROOT / "docs/ablation.md"
FOLDER = RESULTS / "ablation"
STUDIES = {"bpr": "BPR-ml-100k", "lightgcn": "LightGCN-ml-100k"}
"""Beginnings of the folders' names, by the name in the marker."""


def study(beginning: str) -> str:
    """A row for every variant, the best first: test metric, against the base, epochs, seconds."""
    variants = {p.name.removeprefix(f"{beginning}-"): _runs(p) for p in sorted(FOLDER.glob(f"{beginning}-*"))}
    variants = {name: runs for name, runs in variants.items() if runs}
    if "base" not in variants:
        return MISSING
    base = _scores(variants["base"])
    rows = []
    for name, runs in sorted(variants.items(), key=lambda item: -statistics.fmean(_scores(item[1]).values())):
        scores = _scores(runs)
        both = sorted(scores.keys() & base.keys())
        mean = statistics.fmean(scores.values())
        deviation = f" ± {statistics.stdev(scores.values()):.4f}" if len(scores) > 1 else ""
        ratio = sum(scores[s] for s in both) / sum(base[s] for s in both) if both else None
        p = paired_p(scores, base)  # None for the base itself
        cells = [figure(ratio), figure(p, 2), figure(statistics.fmean(r.epochs_run for r in runs))]
        rows.append([name, f"{mean:.4f}{deviation}", *cells, str(len(scores))])
    first = variants["base"][0]
    head = ["variant", f"test {_metric(first)}", "/ base", "p", "epochs", "seeds"]
    rate = first.config["learning_rate"]
    return f"{first.model} on {first.dataset}, learning rate {rate:g}:\n\n{table(head, rows)}"


def _runs(folder: Path) -> list[RunResult]:
    return list(read_cells(folder).values())


def _metric(run: RunResult) -> str:
    return str(run.config["valid_metric"]).lower()


def _scores(runs: list[RunResult]) -> dict[int, float]:
    return {run.seed: run.test_result[_metric(run)] for run in runs}


SECTIONS = {name: functools.partial(study, beginning) for name, beginning in STUDIES.items()}


def main() -> None:
    """Write the page."""
    DOCS.write_text(speed_docs.page(DOCS.read_text(encoding="utf-8"), SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
