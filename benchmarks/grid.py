"""The comparisons of accuracy beyond those of ``benchmarks/compare/run.sh``, in their order.

``python -m benchmarks.grid [MODEL/DATASET ...]`` prints model, dataset, file of the search space, number of
its points and flags of this comparison alone, one a line, as ``benchmarks/compare/accuracy.sh`` reads them. A
comparison that is not tuned has the file of its settings in place of the space, and no points.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.speed_docs import ROOT
from recbole_dsl.compare.space import read_space

FOLDER = ROOT / "benchmarks/compare"


def order() -> list[dict[str, Any]]:
    """The comparisons: model, dataset, name of the search space or of tuned settings, settings of its own."""
    listed: list[dict[str, Any]] = yaml.safe_load((FOLDER / "order.yaml").read_text(encoding="utf-8"))
    return listed


def by_name() -> dict[str, dict[str, Any]]:
    """The same by MODEL/DATASET."""
    return {f"{one['model']}/{one['dataset']}": one for one in order()}


def settings_of(one: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a comparison has above its dataset's schedule."""
    return {key: value for key, value in one.items() if key not in ("model", "dataset", "space", "tuned")}


def search_of(one: Mapping[str, Any]) -> tuple[Path, int]:
    """Its search space and how many points that has; or settings tuned elsewhere, and 0."""
    if "tuned" in one:
        return FOLDER / f"{one['tuned']}.yaml", 0
    space = FOLDER / f"{one['space']}.txt"
    return space, math.prod(len(setting.values) for setting in read_space(space))


def commands(pairs: Sequence[str]) -> Iterator[str]:
    """One line for accuracy.sh for each of the named comparisons (MODEL/DATASET), or for all.

    Raises:
        SystemExit: one of them is not listed.
    """
    listed = by_name()
    for pair in pairs or listed:
        if pair not in listed:
            raise SystemExit(f"{pair} is not in benchmarks/compare/order.yaml; allowed: {', '.join(listed)}")
        file, points = search_of(listed[pair])
        flags = (f"--{key}={value}" for key, value in settings_of(listed[pair]).items())
        yield " ".join([*pair.split("/"), file.relative_to(ROOT).as_posix(), str(points), *flags])


if __name__ == "__main__":
    print("\n".join(commands(sys.argv[1:])))
