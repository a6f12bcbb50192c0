"""Write the tables of the pages about the ablation, from the cells of benchmarks/compare/ablation.sh.

python -m benchmarks.ablation_docs
"""

from __future__ import annotations

import functools
import statistics

from benchmarks import speed_docs
from benchmarks.speed_docs import MISSING, RESULTS, ROOT, figure, table
from recbole_dsl.compare.summary import mean_and_deviation, metric_of, paired_p, read_cells
from recbole_dsl.results import RunResult

Cells = dict[str, RunResult]

PAGES = (ROOT / "docs/ablation.md", ROOT / "docs/ablation-earlier.md")
STUDIES = {
    "bpr": "ablation/BPR-ml-100k",
    "lightgcn": "ablation/LightGCN-ml-100k",
    "bpr_citeulike": "ablation/BPR-citeulike-t",
    "multivae": "ablation/MultiVAE-ml-1m",
    "multidae": "ablation/MultiDAE-ml-100k",
    "bpr_movielens": "ablation/BPR-ml-1m",
    "lightgcn_popularity": "ablation-popularity/LightGCN-ml-100k",
    "bpr_nmf": "ablation-nmf/BPR-ml-100k",
    "lightgcn_nmf": "ablation-nmf/LightGCN-ml-100k",
    "bpr_before": "ablation-before/BPR-ml-100k",
    "lightgcn_before": "ablation-before/LightGCN-ml-100k",
}
"""Folder and beginning of the names of its folders, by the name in the marker."""


def study(where: str) -> str:
    """A row for every variant, the best on validation first; ratios and tests are against the base."""
    folder, beginning = where.split("/")
    folders = sorted((RESULTS / folder).glob(f"{beginning}-*"))
    variants: dict[str, Cells] = {p.name.removeprefix(f"{beginning}-"): read_cells(p) for p in folders}
    variants = {name: runs for name, runs in variants.items() if runs}
    if "base" not in variants:
        return MISSING
    valid = {name: _scores(runs, "best_valid_result") for name, runs in variants.items()}
    rows = []
    for name in sorted(variants, key=lambda name: -statistics.fmean(valid[name].values())):
        runs, base = variants[name], variants["base"]
        told = []
        for part in ("best_valid_result", "test_result"):
            scores, theirs = _scores(runs, part), _scores(base, part)
            ratio = statistics.fmean(scores.values()) / statistics.fmean(theirs.values())
            told += [mean_and_deviation(scores), f"{ratio:.3f}", figure(paired_p(scores, theirs), 2)]
        epochs = figure(statistics.fmean(run.epochs_run for run in runs.values()))
        rows.append([name, *told, epochs, str(len(runs))])
    first, metric = next(iter(variants["base"].values())), metric_of(variants["base"])
    head = [
        "variant",
        f"validation {metric}",
        "/ base",
        "p",
        f"test {metric}",
        "/ base",
        "p",
        "epochs",
        "seeds",
    ]
    rate, density = first.config["learning_rate"], first.config["dsl_density"]
    told = f"{first.model} on {first.dataset}, density {density:g}, learning rate {rate:g}:"
    return f"{told}\n\n{table(head, rows)}"


def _scores(runs: Cells, part: str) -> dict[int, float]:
    return {run.seed: getattr(run, part)[metric_of(runs)] for run in runs.values()}


SECTIONS = {name: functools.partial(study, beginning) for name, beginning in STUDIES.items()}


def main() -> None:
    """Write the pages."""
    for path in PAGES:
        path.write_text(speed_docs.page(path.read_text(encoding="utf-8"), SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
