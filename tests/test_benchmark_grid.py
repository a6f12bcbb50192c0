"""The order of the comparisons, and the table that says which aims are reached."""

from __future__ import annotations

import json

import pytest

from benchmarks import grid


def test_the_lines_that_the_script_reads() -> None:
    """Model, dataset, space, and as many trials as the space has points; all of them if none is named."""
    assert list(grid.commands(["BPR/ml-1m", "LightGCN/gowalla"])) == [
        "BPR ml-1m benchmarks/compare/space_of_five_small.txt 5",
        "LightGCN gowalla benchmarks/compare/space_of_three.txt 3",
    ]
    assert len(list(grid.commands([]))) == len(grid.order())


def test_every_comparison_has_its_files() -> None:
    """The schedule of its dataset, and its space."""
    for one in grid.order():
        assert (grid.FOLDER / f"{one['dataset']}.yaml").is_file()
        assert (grid.FOLDER / f"{one['space']}.txt").is_file()


def test_a_comparison_that_is_not_listed() -> None:
    """Is refused by name."""
    with pytest.raises(SystemExit, match=r"BPR/mars is not in .*order\.yaml; allowed: BPR/citeulike-t"):
        list(grid.commands(["BPR/mars"]))


def test_a_cell_of_the_table_by_hand() -> None:
    """LightGCN on citeulike-t at a twentieth: from its files, and missed."""
    cells = grid.RESULTS / "compare/LightGCN-citeulike-t/cells"
    dense, ours = (
        json.loads((cells / f"LightGCN-citeulike-t-{name}-2020.json").read_text(encoding="utf-8"))[
            "test_result"
        ]["ndcg@10"]
        for name in ("dense", "dsl_plus-0.05")
    )
    (line,) = [x for x in grid.overview().splitlines() if x.startswith("| LightGCN | citeulike-t | 0.05 ")]
    told = [cell.strip() for cell in line.strip("|").split("|")]
    assert told[3] == f"{dense:.4f}" and told[8] == f"{ours / dense:.3f}"
    assert told[9:] == ["0.97", "no: below 0.97"]


def test_what_is_not_run_is_told() -> None:
    """One row for a comparison without cells."""
    (line,) = [x for x in grid.overview().splitlines() if x.startswith("| LightGCN | gowalla ")]
    assert line.endswith("| not run |")
