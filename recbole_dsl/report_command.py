"""``recbole-dsl report``: the page, images and tables of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .command_line import Parser


def parser() -> Parser:
    """The command's options."""
    result = Parser(
        "report",
        "Write report.html (needs no network), figures/ (PNG and SVG) and the tables of a comparison.",
    )
    result.add_argument("folder", help="of the comparison, such as results/BPR-ml-100k")
    result.add_argument("--metric", help="of tables and figures (default: the one that models were chosen by)")
    result.add_argument(
        "--density", type=float, help="of figures that show single runs (default: nearest to 0.1)"
    )
    return result


def run(argv: Sequence[str]) -> None:
    """Write everything, and say where."""
    options = parser().read(argv)
    if options is None:
        return
    from .compare.report import write_report

    page = write_report(Path(options.folder), options.metric, options.density)
    print(f"Report: {page}")
