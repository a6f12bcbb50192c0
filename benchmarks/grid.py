"""The comparisons of accuracy beyond those of ``benchmarks/compare/run.sh``, in their order.

``python -m benchmarks.grid [MODEL/DATASET ...]`` prints model, dataset, file of the search space and number of
its points, one comparison a line, as ``benchmarks/compare/accuracy.sh`` reads them.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence

import yaml

from benchmarks.speed_docs import ROOT
from recbole_dsl.compare.space import read_space

FOLDER = ROOT / "benchmarks/compare"


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


if __name__ == "__main__":
    print("\n".join(commands(sys.argv[1:])))
