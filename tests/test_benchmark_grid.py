"""The order of the comparisons."""

from __future__ import annotations

import pytest

from benchmarks import grid


def test_the_lines_that_the_script_reads() -> None:
    """Model, dataset, space, as many trials as the space has points, own settings; of all if none is named."""
    assert list(grid.commands(["BPR/ml-1m", "NeuMF/ml-1m", "LightGCN/gowalla"])) == [
        "BPR ml-1m benchmarks/compare/space_of_five_small.txt 5",
        "NeuMF ml-1m benchmarks/compare/space_of_five_small.txt 5 --eval_batch_size=16384",
        "LightGCN gowalla benchmarks/compare/space_of_three_large.txt 3",
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
