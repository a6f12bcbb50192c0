"""The table of the comparison in README and docs/accuracy.md is that of the committed cells."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from benchmarks import compare_docs, speed_docs, unrun

GRID = compare_docs.FOLDER / "grid.json"
TABLES = (
    ["costs", "ratios"],
    [
        "grid",
        "start",
        "compare",
        "citeulike",
        "citeulike_seeds",
        "multivae",
        "multivae_seeds",
        "bpr_movielens",
        "foursquare",
        "foursquare_seeds",
        "lightgcn",
        "lightgcn_seeds",
        "lightgcn_trials",
        "gowalla",
        "gowalla_trials",
        "yelp",
        "amazon",
        "neumf_movielens",
        "neumf_citeulike",
        "neumf_foursquare",
        "multivae_citeulike",
        "multivae_citeulike_trials",
        "multivae_foursquare",
        "neumf",
        "multivae_small",
        "multivae_small_at",
        "out_of_the_box",
    ],
)


@pytest.mark.parametrize(
    ("page", "tables"),
    zip(compare_docs.PAGES, TABLES, strict=True),
    ids=["README", "accuracy"],
)
def test_the_pages_are_the_generated_ones(page: Path, tables: list[str]) -> None:
    """And have the tables."""
    text = page.read_text(encoding="utf-8")
    assert text == speed_docs.page(text, compare_docs.SECTIONS)
    assert [found[2] for found in speed_docs.MARKED.finditer(text)] == tables
    assert speed_docs.MISSING not in text


def test_a_number_of_the_table_by_hand() -> None:
    """From the files of three seeds."""
    scores = []
    for seed in (2020, 2021, 2022):
        cell = compare_docs.FOLDER / f"cells/LightGCN-ml-100k-dsl_plus-0.1-{seed}.json"
        scores.append(json.loads(cell.read_text(encoding="utf-8"))["test_result"]["ndcg@10"])
    text = f"{statistics.fmean(scores):.4f} ± {statistics.stdev(scores):.4f}"
    (line,) = [
        x
        for x in compare_docs.accuracy(compare_docs.FOLDER).splitlines()
        if x.startswith("| LightGCN | dsl_plus ")
    ]
    assert text in line.split(" | ")[5]


def test_the_grid_is_whole() -> None:
    """Every cell that was asked for is there: one per seed of dense, one per density and seed of the others."""
    grid = json.loads(GRID.read_text(encoding="utf-8"))
    seeds, densities, models = (len(grid[name]) for name in ("seeds", "densities", "models"))
    asked = models * seeds * (1 + densities * (len(grid["methods"]) - 1))
    folder = compare_docs.FOLDER
    assert len(list((folder / "cells").glob("*.json"))) == asked == 126
    assert not list(folder.glob("failed/*")) + list(folder.glob("cancelled/*"))


def test_committed_results_name_no_folder_of_the_machine_that_trained() -> None:
    """No setting of a result file is an absolute path."""
    files = [*speed_docs.RESULTS.rglob("*.json"), *speed_docs.RESULTS.rglob("*.jsonl")]
    named = [p.name for p in files if '": "/' in p.read_text(encoding="utf-8")]
    assert len(files) > 100 and named == []


def scores_in(name: str, density: str) -> list[float]:
    """Mean test NDCG@10 of dense, narrow and dsl_plus over the files of a comparison's seeds."""
    cells = speed_docs.RESULTS / "compare" / name / "cells"
    return [
        statistics.fmean(
            json.loads(file.read_text(encoding="utf-8"))["test_result"]["ndcg@10"]
            for file in cells.glob(f"{name.removesuffix('-seeds').removesuffix('-at-0.5')}-{cell}-20??.json")
        )
        for cell in ("dense", f"narrow-{density}", f"dsl_plus-{density}")
    ]


@pytest.mark.parametrize(
    ("folder", "density", "reached"),
    [
        ("MultiVAE-ml-1m", "0.2", "yes"),
        ("MultiVAE-ml-1m-seeds", "0.5", "no: below 1, below narrow"),
        ("MultiVAE-ml-100k-at-0.5", "0.5", "no: below 1, below dsl"),
    ],
)
def test_a_cell_of_the_overview_by_hand(folder: str, density: str, reached: str) -> None:
    """MultiVAE of one seed, of three and of five in folders of their own: from their files, two missed."""
    dataset = folder.removeprefix("MultiVAE-").removesuffix("-seeds").removesuffix("-at-0.5")
    dense, narrow, ours = scores_in(folder, density)
    start = f"| MultiVAE | {dataset} | {density} "
    (line,) = [x for x in compare_docs.overview().splitlines() if x.startswith(start)]
    told = [cell.strip() for cell in line.strip("|").split("|")]
    assert told[4] == f"{dense:.4f}" and told[9] == f"{ours / dense:.3f}"
    assert (ours >= max(dense, narrow)) == (reached == "yes") and told[10:] == ["1", reached]


def test_a_ratio_by_hand() -> None:
    """LightGCN on citeulike-t, dsl_plus to dense, and narrow to it: of one seed at 0.2, of three at 0.1."""
    (line,) = [x for x in compare_docs.ratios().splitlines() if x.startswith("| LightGCN | citeulike-t ")]
    told = [cell.strip() for cell in line.strip("|").split("|")]
    for place, folder, density, ending in ((3, "", "0.2", ""), (4, "-seeds", "0.1", " ³")):
        dense, narrow, ours = scores_in(f"LightGCN-citeulike-t{folder}", density)
        assert told[place] == f"{ours / dense:.3f} ({narrow / dense:.3f}){ending}"


def test_the_same_start_by_hand() -> None:
    """LightGCN on ml-100k: models of 64 and of 9 columns from factors beside the comparison's."""

    def mean(folder: str, cell: str) -> float:
        files = speed_docs.RESULTS.glob(f"{folder}/cells/LightGCN-ml-100k-{cell}-20??.json")
        return statistics.fmean(json.loads(f.read_text("utf-8"))["test_result"]["ndcg@10"] for f in files)

    scores = (
        mean("from_factors/LightGCN-ml-100k-64", "dsl_plus-0.999"),
        mean("compare/ml-100k", "narrow-0.1"),
        mean("from_factors/LightGCN-ml-100k-9", "dsl_plus-0.1405"),
        mean("compare/ml-100k", "dsl_plus-0.1"),
    )
    dense = mean("compare/ml-100k", "dense")
    (line,) = [x for x in compare_docs.start().splitlines() if x.startswith("| LightGCN | ml-100k ")]
    told = [cell.strip() for cell in line.strip("|").split("|")]
    assert told[2:7] == ["3", *(f"{score / dense:.3f}" for score in scores)]
    cells = speed_docs.RESULTS / "from_factors/LightGCN-ml-100k-64/cells"
    run = json.loads((cells / "LightGCN-ml-100k-dsl_plus-0.999-2020.json").read_text("utf-8"))
    assert run["sparsity"]["live"] == 167960 and run["config"]["dsl_width"] == 64  # of 168128
    assert sum(update["dropped"] for update in run["updates"]) == 0


def test_costs_by_hand() -> None:
    """BPR on ml-1m, one seed: bytes, seconds and the peak beside dense's."""
    cells = [
        json.loads(
            (speed_docs.RESULTS / f"compare/BPR-ml-1m/cells/BPR-ml-1m-{name}-2020.json").read_text("utf-8")
        )
        for name in ("dsl_plus-0.1", "dense")
    ]
    ours, dense = (cell["costs"] for cell in cells)
    held = ours["training_state_bytes"] + ours["growth_bytes"] + ours["exploration_record_bytes"]
    expected = [
        (ours["weight_bytes"] + ours["index_bytes"]) / dense["weight_bytes"],
        ours["training_state_bytes"] / dense["training_state_bytes"],
        held / dense["training_state_bytes"],
        (ours["training_seconds"] + ours["preparation_seconds"]) / dense["training_seconds"],
        ours["peak_memory_bytes"] / dense["peak_memory_bytes"],
    ]
    (line,) = [x for x in compare_docs.costs().splitlines() if x.startswith("| BPR | ml-1m ")]
    told = [cell.strip() for cell in line.strip("|").split("|")]
    assert told[2] == "1" and told[4:] == [f"{share:.2f}" for share in expected]


def test_what_is_not_run_is_told() -> None:
    """One row for a comparison without cells, with what its dense training would take."""
    told = unrun.measured()["LightGCN/ml-1m"]
    seconds = 100 * (told["training_seconds"] + told["validation_seconds"])
    (line,) = [x for x in compare_docs.overview().splitlines() if x.startswith("| LightGCN | ml-1m ")]
    assert line.endswith(f"| not run: {seconds / 3600:.2g} h for dense |")


def test_a_density_without_dsl_plus_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the ratios that are known, beside those densities of which nothing is."""
    pair = "BPR", "ml-1m"
    cells = {
        method: row for method, row in compare_docs.comparisons()[pair][0.1].items() if method != "dsl_plus"
    }
    monkeypatch.setattr(compare_docs, "comparisons", lambda: {pair: {}})
    monkeypatch.setattr(compare_docs, "rows", lambda folder: list(cells.values()))
    begun, left = [line for line in compare_docs.overview().splitlines() if line.startswith("| BPR | ml-1m ")]
    assert (
        begun == "| BPR | ml-1m | 0.1 | 1 | 0.2566 | – | – | 0.884 | 0.707 | – | 0.99 | dsl_plus not finished |"
    )
    assert left.split(" | ")[2] == "0.5, 0.2, 0.05" and "not run" in left


def test_densities_that_are_not_run_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A comparison of which one density is known."""
    pair = "BPR", "ml-1m"
    known = {pair: {0.1: compare_docs.comparisons()[pair][0.1]}}
    monkeypatch.setattr(compare_docs, "comparisons", lambda: known)
    told = [line for line in compare_docs.overview().splitlines() if line.startswith("| BPR | ml-1m ")]
    assert [line.split(" | ")[2] for line in told] == ["0.1", "0.5, 0.2, 0.05"]
    assert told[0].endswith("| yes |") and told[1].endswith("| not run |")
    (line,) = [line for line in compare_docs.ratios().splitlines() if line.startswith("| BPR | ml-1m ")]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert [cells[2], cells[3], cells[5]] == ["–"] * 3 and cells[4].startswith("1.055 (")


def test_the_estimate_of_a_run() -> None:
    """Of all batches and all planned epochs."""
    told = unrun.estimate("BPR", "ml-100k", "")
    every = told["epochs"] * (told["training_seconds"] + told["validation_seconds"])  # validated every epoch
    assert told["batches"] == 40 and told["training_seconds"] > 0 and told["validation_seconds"] > 0
    assert told["run_seconds"] == pytest.approx(every)
