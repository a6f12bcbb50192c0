"""Write the tables of the comparisons into README.md and docs/accuracy.md, from their cells' files.

python -m benchmarks.compare_docs
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import grid, speed_docs, unrun
from benchmarks.speed_docs import MISSING, RESULTS, ROOT, table
from recbole_dsl.compare.store import read_grid
from recbole_dsl.compare.summary import (
    Row,
    mean_and_deviation,
    metric_of,
    paired_p,
    read_cells,
    rows_of,
)
from recbole_dsl.results import RunResult

PAGES = (ROOT / "README.md", ROOT / "docs/accuracy.md")
FOLDER = RESULTS / "compare/ml-100k"
CITEULIKE = RESULTS / "compare/BPR-citeulike-t"
CITEULIKE_SEEDS = RESULTS / "compare/BPR-citeulike-t-seeds"
MULTIVAE = RESULTS / "compare/MultiVAE-ml-1m"
MULTIVAE_SEEDS = RESULTS / "compare/MultiVAE-ml-1m-seeds"
BPR_ML1M = RESULTS / "compare/BPR-ml-1m"
NEUMF_ML1M = RESULTS / "compare/NeuMF-ml-1m"
NEUMF = RESULTS / "compare/NeuMF-ml-100k"
MULTIVAE_SMALL = RESULTS / "compare/MultiVAE-ml-100k"
FOURSQUARE = RESULTS / "compare/BPR-foursquare-fgcrec"
FOURSQUARE_SEEDS = RESULTS / "compare/BPR-foursquare-fgcrec-seeds"
LIGHTGCN = RESULTS / "compare/LightGCN-citeulike-t"
LIGHTGCN_SEEDS = RESULTS / "compare/LightGCN-citeulike-t-seeds"
GOWALLA = RESULTS / "compare/LightGCN-gowalla"
YELP = RESULTS / "compare/LightGCN-yelp2018"
AMAZON = RESULTS / "compare/LightGCN-amazon-book-kgat"
MULTIVAE_CITEULIKE = RESULTS / "compare/MultiVAE-citeulike-t"
NEUMF_CITEULIKE = RESULTS / "compare/NeuMF-citeulike-t"
NEUMF_FOURSQUARE = RESULTS / "compare/NeuMF-foursquare-fgcrec"
MULTIVAE_FOURSQUARE = RESULTS / "compare/MultiVAE-foursquare-fgcrec"
MULTIVAE_CITEULIKE_TUNING = RESULTS / "compare/MultiVAE-citeulike-t-tuning"
LIGHTGCN_TUNING = RESULTS / "compare/LightGCN-citeulike-t-tuning"
GOWALLA_TUNING = RESULTS / "compare/LightGCN-gowalla-tuning"
OUT_OF_THE_BOX = RESULTS / "out_of_the_box"
FROM_FACTORS = RESULTS / "from_factors"
AIMS = {0.5: 1.0, 0.2: 1.0, 0.1: 0.99, 0.05: 0.97}
"""The share of dense's test metric that dsl_plus is to reach, by density."""
MULTIVAE_SMALL_AT = tuple(RESULTS / f"compare/MultiVAE-ml-100k-at-{density:g}" for density in AIMS)
METHODS = ("static", "magnitude", "narrow", "dsl", "dsl_plus")
"""The columns of the overview."""


def rows(folder: Path) -> list[Row]:
    """The rows of a comparison by the metric that models were chosen by, [] before it was run."""
    cells = read_cells(folder)
    if not cells:
        return []
    return rows_of(cells, read_grid(folder)["methods"], metric_of(cells))


def accuracy(*folders: Path) -> str:
    """Models and methods by densities: mean ± standard deviation over seeds, the best at a density in bold.

    ``folders``: of one comparison, which may have a folder for each density.
    """
    found = [row for folder in folders for row in rows(folder)]
    if not found:
        return MISSING
    densities = sorted({r.density for r in found if r.density is not None}, reverse=True)
    lines = []
    for model, method in dict.fromkeys((r.model, r.method) for r in found):
        mine = [r for r in found if (r.model, r.method) == (model, method)]
        if mine[0].density is None:
            lines.append([model, f"{method} (RecBole)", _scores(mine[0]), *["" for _ in densities]])
            continue
        by_density = {r.density: r for r in mine}
        lines.append([model, method, "", *(_scores(by_density.get(d)) for d in densities)])
    head = ["model", "method", "all weights", *(f"density {d:g}" for d in densities)]
    return "\n\n".join([table(head, lines, words=2), _notes(found)])


def _scores(row: Row | None) -> str:
    if row is None:
        return "–"
    text = mean_and_deviation(row.scores)
    return f"**{text}**" if row.place == 1 else text


def _notes(found: Sequence[Row]) -> str:
    """Seeds, and in how many comparisons at equal density dsl_plus is above narrow and dsl."""
    seeds = sorted({len(r.scores) for r in found})
    told = []
    for other in ("narrow", "dsl"):
        pairs = [
            (r, o)
            for r in found
            if r.method == "dsl_plus"
            for o in found
            if (o.dataset, o.model, o.method, o.density) == (r.dataset, r.model, other, r.density)
        ]
        above = sum(r.mean > o.mean for r, o in pairs)
        if pairs:
            told.append(f"{other} in {above} of {len(pairs)}")
    significant = [r for r in found if r.method == "dsl_plus" and r.p_narrow is not None and r.p_narrow < 0.05]
    above_both = " and above ".join(told)
    text = f"Seeds for each cell: {' or '.join(map(str, seeds))}. dsl_plus is above {above_both} cells"
    if seeds == [1]:
        return f"{text}."
    return (
        f"{text}; its difference from narrow is significant (paired t-test, p < 0.05, not corrected) in "
        f"{len(significant)}."
    )


Cells = dict[str, Row]
"""Rows of one density by method, dense among them."""


@functools.cache
def comparisons() -> dict[tuple[str, str], dict[float, Cells]]:
    """What is known of every comparison of the grid by density, by model and dataset; {} if it is not run.

    Where a density was run in a folder of its own, with more seeds or with rates that are tuned at it, that is
    what is known.
    """
    first = rows(FOLDER)
    pairs = [(r.model, r.dataset) for r in first] + [(one["model"], one["dataset"]) for one in grid.order()]
    found = {}
    for model, dataset in dict.fromkeys(pairs):
        own = rows(RESULTS / f"compare/{model}-{dataset}")
        mine = own or [r for r in first if (r.model, r.dataset) == (model, dataset)]
        later = (f"-{which}" for which in ("seeds", *(f"at-{density:g}" for density in AIMS)))
        known = [_by_density(rows(RESULTS / f"compare/{model}-{dataset}{which}")) for which in later]
        found[model, dataset] = functools.reduce(operator.or_, known, _by_density(mine))
    return found


def unfinished(model: str, dataset: str) -> dict[float, Cells]:
    """Of a comparison that is being run, the same of densities at which dense is finished, dsl_plus not."""
    found = _by_density(rows(RESULTS / f"compare/{model}-{dataset}"), finished=False)
    return {density: cells for density, cells in found.items() if "dense" in cells}


def _by_density(found: Sequence[Row], finished: bool = True) -> dict[float, Cells]:
    """The methods of every density at which dsl_plus is finished, or is not."""
    result: dict[float, Cells] = {}
    for row in found:
        if row.density is not None:
            result.setdefault(row.density, {})[row.method] = row
    for cells in result.values():
        cells.update({row.method: row for row in found if row.density is None})
    return {density: cells for density, cells in result.items() if ("dsl_plus" in cells) is finished}


def ratios() -> str:
    """dsl_plus to dense by density, narrow in parentheses: one row for each comparison that is run."""
    lines = []
    for (model, dataset), known in comparisons().items():
        if known:
            lines.append([model, dataset, *(_ratio(known[d]) if d in known else "–" for d in AIMS)])
    return table(["model", "dataset", *(f"density {d:g}" for d in AIMS)], lines, words=2)


def _ratio(cells: Cells) -> str:
    several = {3: " ³", 5: " ⁵"}.get(len(cells["dsl_plus"].scores), "")
    return f"{cells['dsl_plus'].to_dense:.3f} ({cells['narrow'].to_dense:.3f}){several}"


def overview() -> str:
    """Every cell of the grid: dense, ratios to it, and whether dsl_plus reaches its aim."""
    lines, costs = [], unrun.measured()
    for (model, dataset), known in comparisons().items():
        begun = {**unfinished(model, dataset), **known}
        lines += [[model, dataset, *_reached(density, begun[density])] for density in AIMS if density in begun]
        left = [f"{density:g}" for density in AIMS if density not in begun]
        told, cost = "not run", None if known else costs.get(f"{model}/{dataset}")
        if cost:
            told += f": {speed_docs.figure(cost['run_seconds'] / 3600, 2)} h for dense"
        if left:
            which = ", ".join(left) if begun else "all"
            lines.append([model, dataset, which, "–", "–", *("–" for _ in METHODS), "", told])
    head = ["model", "dataset", "density", "seeds", "dense", *METHODS, "aim", "reached"]
    return table(head, lines, words=2)


def _reached(density: float, cells: Cells) -> list[str]:
    """The cells of a row of the overview from its density on."""
    aim, dense = AIMS[density], cells["dense"].mean
    of = {method: ratio for method in METHODS if method in cells and (ratio := cells[method].to_dense)}
    seeds = len(cells.get("dsl_plus", cells["dense"]).scores)
    ratios = (f"{of[method]:.3f}" if method in of else "–" for method in METHODS)
    reached = _verdict(of, aim) if "dsl_plus" in of else "dsl_plus not finished"
    return [f"{density:g}", str(seeds), f"{dense:.4f}", *ratios, f"{aim:g}", reached]


def _verdict(of: Mapping[str, float], aim: float) -> str:
    """Whether dsl_plus reaches its aim, and is above narrow and dsl; ``of``: ratios to dense by method."""
    missed = [f"below {aim:g}"] if of["dsl_plus"] < aim else []
    beside = ("narrow", "dsl")
    missed += [f"below {other}" for other in beside if other in of and of["dsl_plus"] <= of[other]]
    absent = "".join(f", {other} not run" for other in beside if other not in of)
    return (f"no: {', '.join(missed)}" if missed else "yes") + absent


def costs(density: float = 0.1) -> str:
    """What dsl_plus ranks and takes at a density, all as shares of dense's: one row for each comparison."""
    lines = []
    for (model, dataset), known in comparisons().items():
        if not known:
            continue
        ours, dense = known[density]["dsl_plus"], known[density]["dense"]
        shares = _shares(ours.figures, dense.figures)
        lines.append([model, dataset, str(len(ours.scores)), f"{ours.to_dense:.3f}", *shares])
    head = ["model", "dataset", "seeds", "accuracy", *COSTS]
    return table(head, lines, words=2)


def start(density: float = 0.1) -> str:
    """What dense and narrow models gain from the start of dsl_plus, beside dsl_plus at a density."""
    lines = []
    for (model, dataset), known in comparisons().items():
        whole, thin = (rows(FROM_FACTORS / f"{model}-{dataset}-{width}") for width in (64, 9))
        if whole and thin:
            cells, from_factors = known[density], thin[0].scores
            means = (whole[0].mean, cells["narrow"].mean, thin[0].mean, cells["dsl_plus"].mean)
            p = speed_docs.figure(paired_p(cells["dsl_plus"].scores, from_factors), 2)
            told = (f"{mean / cells['dense'].mean:.3f}" for mean in means)
            lines.append([model, dataset, str(len(from_factors)), *told, p])
    head = ["model", "dataset", "seeds", "dense from factors", "narrow", "narrow from factors", "dsl_plus", "p"]
    return table(head, lines, words=2) if lines else MISSING


COSTS = {
    "model": ("weight + index bytes",),
    "training state": ("training state bytes",),
    "with scores and record": ("training state bytes", "exploration bytes"),
    "seconds of training": ("training seconds",),
    "peak of the process": ("peak bytes",),
}
"""Columns of the table of costs: the figures of a row that are added up."""


def _shares(ours: Mapping[str, float | None], dense: Mapping[str, float | None]) -> list[str]:
    return [
        f"{sum(ours[name] or 0 for name in names) / sum(dense[name] or 0 for name in names):.2f}"
        for names in COSTS.values()
    ]


def as_they_come(pattern: str = "*", folder: Path = OUT_OF_THE_BOX) -> list[RunResult]:
    """The runs of out_of_the_box.sh whose files have such names, without ``.json``."""
    files = sorted(folder.glob(f"{pattern}.json"))
    return [RunResult.from_json(file.read_text(encoding="utf-8")) for file in files]


def out_of_the_box(folder: Path = OUT_OF_THE_BOX) -> str:
    """Dense and sparse with defaults only: what they rank and what they take, one row for every run."""
    runs = as_they_come(folder=folder)
    if not runs:
        return MISSING
    dense = {(run.model, run.dataset, run.seed): _test_score(run)[1] for run in runs if run.method == "dense"}
    order = {"dense": 0, "dsl": 1, "dsl_plus": 2}
    lines = []
    for run in sorted(runs, key=lambda r: (r.dataset, r.model, r.seed, order.get(r.method, 9))):
        metric, score = _test_score(run)
        beside = dense.get((run.model, run.dataset, run.seed))
        lines.append(
            [
                run.model,
                run.dataset,
                run.method,
                str(run.seed),
                metric,
                f"{run.best_valid_result[metric]:.4f}",
                f"{score:.4f}",
                f"{score / beside:.3f}" if beside else "–",
                f"{run.sparsity['live']:,}",
                str(run.epochs_run),
            ]
        )
    head = [
        "model",
        "dataset",
        "method",
        "seed",
        "metric",
        "validation",
        "test",
        "/ dense",
        "live weights",
        "epochs",
    ]
    return table(head, lines, words=5)


def _test_score(run: RunResult) -> tuple[str, float]:
    """The metric that chose the epoch, and what it is on test."""
    metric = _valid_metric(run)
    return metric, run.test_result[metric]


def _valid_metric(run: RunResult) -> str:
    return str(run.config["valid_metric"]).lower()


def trials(folder: Path = LIGHTGCN_TUNING) -> str:
    """What every trained trial of a tuning reached on validation, and after how many epochs."""
    runs = list(read_cells(folder).values())
    if not runs:
        return MISSING
    metric = _valid_metric(runs[0])
    lines = [
        [
            run.model,
            run.method,
            f"{run.config['learning_rate']:g}",
            str(run.config.get("dsl_width") or run.config.get("embedding_size", "–")),
            f"{run.best_valid_result[metric]:.4f}",
            str(run.epochs_run),
        ]
        for run in runs
    ]
    head = ["model", "method", "learning rate", "columns", f"validation {metric}", "epochs"]
    return table(head, lines, words=2)


SECTIONS = {
    "compare": functools.partial(accuracy, FOLDER),
    "ratios": ratios,
    "grid": overview,
    "costs": costs,
    "start": start,
    "citeulike": functools.partial(accuracy, CITEULIKE),
    "citeulike_seeds": functools.partial(accuracy, CITEULIKE_SEEDS),
    "multivae": functools.partial(accuracy, MULTIVAE),
    "multivae_seeds": functools.partial(accuracy, MULTIVAE_SEEDS),
    "bpr_movielens": functools.partial(accuracy, BPR_ML1M),
    "foursquare": functools.partial(accuracy, FOURSQUARE),
    "foursquare_seeds": functools.partial(accuracy, FOURSQUARE_SEEDS),
    "lightgcn": functools.partial(accuracy, LIGHTGCN),
    "lightgcn_seeds": functools.partial(accuracy, LIGHTGCN_SEEDS),
    "lightgcn_trials": trials,
    "gowalla": functools.partial(accuracy, GOWALLA),
    "gowalla_trials": functools.partial(trials, GOWALLA_TUNING),
    "yelp": functools.partial(accuracy, YELP),
    "amazon": functools.partial(accuracy, AMAZON),
    "neumf_movielens": functools.partial(accuracy, NEUMF_ML1M),
    "neumf_citeulike": functools.partial(accuracy, NEUMF_CITEULIKE),
    "neumf_foursquare": functools.partial(accuracy, NEUMF_FOURSQUARE),
    "multivae_citeulike": functools.partial(accuracy, MULTIVAE_CITEULIKE),
    "multivae_citeulike_trials": functools.partial(trials, MULTIVAE_CITEULIKE_TUNING),
    "multivae_foursquare": functools.partial(accuracy, MULTIVAE_FOURSQUARE),
    "neumf": functools.partial(accuracy, NEUMF),
    "multivae_small": functools.partial(accuracy, MULTIVAE_SMALL),
    "multivae_small_at": functools.partial(accuracy, *MULTIVAE_SMALL_AT),
    "out_of_the_box": out_of_the_box,
}


def main() -> None:
    """Write the pages."""
    for path in PAGES:
        path.write_text(speed_docs.page(path.read_text(encoding="utf-8"), SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
