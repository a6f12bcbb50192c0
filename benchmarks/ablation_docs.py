"""Write the tables of the pages about the ablation, from the cells of ablation.sh and dropout.sh.

python -m benchmarks.ablation_docs
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable

from benchmarks import speed_docs
from benchmarks.compare_docs import as_they_come
from benchmarks.speed_docs import MISSING, RESULTS, ROOT, figure, table
from recbole_dsl.compare.summary import asked_density, mean_and_deviation, metric_of, paired_p, read_cells
from recbole_dsl.results import RunResult

Cells = dict[str, RunResult]

PAGES = tuple(ROOT / f"docs/ablation{which}.md" for which in ("", "-studies", "-earlier"))
STUDIES = {
    "bpr": "ablation/BPR-ml-100k",
    "lightgcn": "ablation/LightGCN-ml-100k",
    "bpr_citeulike": "ablation/BPR-citeulike-t",
    "multivae": "ablation-before/MultiVAE-ml-1m",
    "multivae_small": "ablation/MultiVAE-ml-100k",
    "multivae_before": "ablation-before/MultiVAE-ml-100k",
    "recvae": "ablation/RecVAE-ml-100k",
    "multidae": "ablation/MultiDAE-ml-100k",
    "bpr_movielens": "ablation/BPR-ml-1m",
    "gru": "ablation/GRU4Rec-ml-100k",
    "lightgcn_popularity": "ablation-popularity/LightGCN-ml-100k",
    "bpr_scored": "ablation-scored/BPR-ml-100k",
    "lightgcn_scored": "ablation-scored/LightGCN-ml-100k",
    "citeulike_scored": "ablation-scored/BPR-citeulike-t",
    "bpr_nmf": "ablation-nmf/BPR-ml-100k",
    "lightgcn_nmf": "ablation-nmf/LightGCN-ml-100k",
    "bpr_before": "ablation-before/BPR-ml-100k",
    "lightgcn_before": "ablation-before/LightGCN-ml-100k",
}
FORMER_DEFAULTS = RESULTS / "out_of_the_box-before"
"""Runs of out_of_the_box.sh with a dropout that was the default then."""
"""Folder and beginning of the names of its folders, by the name in the marker."""

TODAY = (
    "bpr",
    "lightgcn",
    "bpr_citeulike",
    "multivae_small",
    "recvae",
    "multidae",
    "bpr_movielens",
    "gru",
    "lightgcn_popularity",
    "bpr_scored",
    "lightgcn_scored",
    "citeulike_scored",
)
"""The studies of the method as it is now."""

TENTHS = (1, 2, 3, 5)
"""Popularity tenths of items whose recall is told, the most popular first."""

VALIDATION, TEST = "best_valid_result", "test_result"


def variants_of(where: str) -> dict[str, Cells]:
    """The cells of every variant of a study, the best on validation first; {} before it was run."""
    folder, beginning = where.split("/")
    folders = sorted((RESULTS / folder).glob(f"{beginning}-*"))
    found = {p.name.removeprefix(f"{beginning}-"): cells for p in folders if (cells := read_cells(p))}
    valid = {name: statistics.fmean(_scores(runs, VALIDATION).values()) for name, runs in found.items()}
    return {name: found[name] for name in sorted(found, key=lambda name: -valid[name])}


def study(where: str) -> str:
    """A row for every variant; ratios and tests are against the base."""
    variants = variants_of(where)
    if "base" not in variants:
        return MISSING
    base, rows = variants["base"], []
    for name, runs in variants.items():
        told = []
        for part in (VALIDATION, TEST):
            told += [mean_and_deviation(_scores(runs, part)), *_against(runs, base, part)]
        epochs = figure(statistics.fmean(run.epochs_run for run in runs.values()))
        rows.append([name, *told, epochs, str(len(runs))])
    first, metric = next(iter(base.values())), metric_of(base)
    head = ["variant"]
    for part in ("validation", "test"):
        head += [f"{part} {metric}", "/ base", "p"]
    rate = first.config["learning_rate"]
    told = f"{first.model} on {first.dataset}, density {_density(first):g}, learning rate {rate:g}:"
    return f"{told}\n\n{table([*head, 'epochs', 'seeds'], rows)}"


def summary() -> str:
    """One row for every variant of today's method, in the order of the studies."""
    rows = []
    for where in (STUDIES[name] for name in TODAY):
        variants = variants_of(where)
        for name, runs in variants.items():
            if name != "base" and "base" in variants:
                first, base = next(iter(runs.values())), variants["base"]
                rate = f"{first.config['learning_rate']:g}"
                what = [first.model, first.dataset, f"{_density(first):g}", rate, name]
                rows.append([*what, *_against(runs, base, VALIDATION), *_against(runs, base, TEST)])
    head = ["model", "dataset", "density", "rate", "variant", "validation / base", "p", "test / base", "p"]
    return table(head, rows, words=5) if rows else MISSING


def tail(where: str = "ablation-popularity/BPR-ml-1m", beside: str = "compare/BPR-ml-1m") -> str:
    """A comparison's dense and narrow models and the variants of a study by recall of popularity tenths.

    Where the study has no base, that is the comparison's dsl_plus.
    """
    variants = variants_of(where)
    if not variants:
        return MISSING
    cells = read_cells(RESULTS / beside)
    dense = {key: run for key, run in cells.items() if run.method == "dense"}
    rows = [_recalled("all", "dense", dense)]
    beside_them = ["narrow"] if "base" in variants else ["narrow", "dsl_plus"]
    for density in sorted({_density(r) for runs in variants.values() for r in runs.values()}, reverse=True):
        for method in beside_them:
            own = {k: r for k, r in cells.items() if r.method == method and asked_density(k, r) == density}
            rows.append(_recalled(f"{density:g}", method, own))
        for name, runs in variants.items():
            rows.append(
                _recalled(f"{density:g}", name, {k: r for k, r in runs.items() if _density(r) == density})
            )
    head = ["density", "variant", f"test {metric_of(dense)}", *(f"tenth {n}" for n in TENTHS), "seeds"]
    return table(head, rows, words=2)


EQUAL_LENGTHS = (
    ("ablation-popularity-by-density/MultiVAE-ml-1m", "compare/MultiVAE-ml-1m"),
    ("ablation-popularity-by-density/MultiVAE-ml-1m-seeds", "compare/MultiVAE-ml-1m-seeds"),
    ("ablation-popularity/MultiVAE-ml-1m-popularity--0.25", "ablation-popularity/MultiVAE-ml-1m-base"),
    ("ablation-popularity-by-density/MultiVAE-ml-100k", "compare/MultiVAE-ml-100k"),
    ("ablation-popularity/MultiVAE-citeulike-t-popularity--0.25", "compare/MultiVAE-citeulike-t"),
)
"""Folders of MultiVAE's cells with -0.25 and with 0.5; of a density, those with most seeds come last."""


def popularity_by_density() -> str:
    """What -0.25 has of what 0.5 has, by dataset and density."""
    found: dict[tuple[str, float], list[str]] = {}
    for where, beside in EQUAL_LENGTHS:
        cells, others = read_cells(RESULTS / where), read_cells(RESULTS / beside)
        for density in {_density(run) for run in cells.values()}:
            own = {key: run for key, run in cells.items() if _density(run) == density}
            theirs = {key: others[key] for key in own}
            (dataset,) = {run.dataset for run in own.values()}
            ratios = [*_against(own, theirs, VALIDATION), *_against(own, theirs, TEST)]
            found[dataset, density] = [dataset, f"{density:g}", *ratios, str(len(own))]
    order = ("ml-1m", "ml-100k", "citeulike-t")
    rows = [found[key] for key in sorted(found, key=lambda key: (order.index(key[0]), -key[1]))]
    head = ["dataset", "density", "validation / 0.5", "p", "test / 0.5", "p", "seeds"]
    return table(head, rows, words=1) if rows else MISSING


def dropout() -> str:
    """A row for every share that is dropped, method and density, with runs as they come, now and before."""
    folders = sorted((RESULTS / "dropout").iterdir())
    runs = [(run, asked_density(name, run)) for folder in folders for name, run in read_cells(folder).items()]
    for pair in sorted({folder.name.rpartition("-")[0] for folder in folders}):
        for run in [*as_they_come(f"{pair}-*"), *as_they_come(f"{pair}-*", FORMER_DEFAULTS)]:
            runs.append((run, None if run.method == "dense" else _density(run)))
    found: dict[tuple[str, ...], Cells] = {}
    for run, density in runs:
        share = run.config.get("hidden_dropout_prob", run.config.get("dropout_prob"))
        asked = "" if density is None else f"{density:g}"
        found.setdefault((run.model, run.dataset, f"{share:g}", run.method, asked), {})[str(run.seed)] = run
    rows = []
    for key, cells in sorted(found.items()):
        scores = [mean_and_deviation(_scores(cells, part)) for part in (VALIDATION, TEST)]
        epochs = statistics.fmean(run.epochs_run for run in cells.values())
        rows.append([*key, *scores, figure(epochs), str(len(cells))])
    head = ["model", "dataset", "dropout", "method", "density", "validation", "test", "epochs", "seeds"]
    return table(head, rows, words=5) if rows else MISSING


def _recalled(density: str, name: str, runs: Cells) -> list[str]:
    """Means over seeds: the test metric, then recall@10 of items of some popularity tenths."""
    recalls = [run.analysis["by_popularity"]["items"]["recall"]["10"] for run in runs.values()]
    by_tenth = [f"{statistics.fmean(recall[n - 1] for recall in recalls):.3f}" for n in TENTHS]
    return [density, name, mean_and_deviation(_scores(runs, TEST)), *by_tenth, str(len(runs))]


def _density(run: RunResult) -> float:
    return float(run.config["dsl_density"])


def _scores(runs: Cells, part: str) -> dict[int, float]:
    return {run.seed: getattr(run, part)[metric_of(runs)] for run in runs.values()}


def _against(runs: Cells, base: Cells, part: str) -> list[str]:
    """The ratio of means to the base's, and p of a paired test."""
    scores, theirs = _scores(runs, part), _scores(base, part)
    ratio = statistics.fmean(scores.values()) / statistics.fmean(theirs.values())
    return [f"{ratio:.3f}", figure(paired_p(scores, theirs), 2)]


SECTIONS: dict[str, Callable[[], str]] = {
    "summary": summary,
    "tail": tail,
    "tail_yelp": functools.partial(tail, "ablation-popularity/LightGCN-yelp2018", "compare/LightGCN-yelp2018"),
    "tail_multivae": functools.partial(tail, "ablation-popularity/MultiVAE-ml-1m", "compare/MultiVAE-ml-1m"),
    "tail_multivae_small": functools.partial(
        tail, "ablation-popularity/MultiVAE-ml-100k", "compare/MultiVAE-ml-100k"
    ),
    "tail_multivae_citeulike": functools.partial(
        tail, "ablation-popularity/MultiVAE-citeulike-t", "compare/MultiVAE-citeulike-t"
    ),
    "popularity_by_density": popularity_by_density,
    "dropout": dropout,
    **{name: functools.partial(study, where) for name, where in STUDIES.items()},
}


def main() -> None:
    """Write the pages."""
    for path in PAGES:
        path.write_text(speed_docs.page(path.read_text(encoding="utf-8"), SECTIONS), encoding="utf-8")


if __name__ == "__main__":
    main()
