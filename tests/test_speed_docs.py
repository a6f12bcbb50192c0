"""docs/speed.md is what the generator makes of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed_docs
from benchmarks.journal import Journal


def test_the_page_is_the_generated_one() -> None:
    """Edits by hand between the markers, or results that have changed since, show up here."""
    text = speed_docs.DOCS.read_text(encoding="utf-8")
    assert text == speed_docs.page(text)


def test_the_page_has_every_table() -> None:
    """A section that nothing shows would be lost."""
    text = speed_docs.DOCS.read_text(encoding="utf-8")
    assert [found[2] for found in speed_docs.MARKED.finditer(text)] == list(speed_docs.SECTIONS)


STACK = {"python": "3", "torch": "2", "threads": 1}


def speed_line(variant: str, step: float, turn: int, commit: str = "new", whole: bool = False) -> dict:
    """A line of ``speed.jsonl``."""
    sparse = variant.startswith("packed")
    result = {
        "step_s": step,
        "step_with_updates_s": step * (1.25 if sparse else 1),
        "load_s": 0.001,
        "core_share": 0.5 if variant == "ours 1.0" else 1.0,
        "epoch_s": 100 * step,
        "epoch_measured": whole,
        "updates": {"update_s": 25 * step, "update_interval": [100]} if sparse else None,
        "held_bytes": 2_000_000 if sparse else 20_000_000,
        "growth_bytes": 5_000_000 if sparse else 0,
        "peak_training_bytes": 30_000_000,
        "peak_process_bytes": 600_000_000,
        "peak_device_bytes": None,
    }
    cell = {"model": "BPR", "dataset": "ml-1m", "variant": variant}
    place = {"round": turn, "commit": commit, "device": "CPU", "processor": "CPU", "environment": STACK}
    return {"cell": cell, **place, "result": result}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of results of our own."""
    monkeypatch.setattr(speed_docs, "RESULTS", tmp_path)
    journal = Journal(tmp_path / "speed.jsonl")
    journal.append(speed_line("recbole", 999.0, 0, commit="old"))
    for turn, factor in enumerate((1.0, 3.0, 2.0)):
        journal.append(speed_line("recbole", 0.01 * factor, turn, whole=turn == 0))
        journal.append(speed_line("ours 1.0", 0.008 * factor, turn))
        journal.append(speed_line("packed 0.1", 0.0016 * factor, turn))
    return tmp_path


def test_ratios_are_of_the_newest_commit_and_the_middle_round(results: Path) -> None:
    """RecBole 20 ms, ours 16 ms, packed 3.2 ms and updates: 4 ms."""
    steps, split = speed_docs.SECTIONS["steps"](), speed_docs.SECTIONS["split"]()
    assert "999" not in steps and "| BPR, ml-1m | 20 | 1 | 1.25 | 5 |" in steps
    assert "| BPR, ml-1m | 1.25 | 4 |" in split
    assert "had 50% of a core or more" in steps
    assert "On CPU, 1 thread, python 3, torch 2, commit `new`:" in steps


def test_epochs_memory_and_updates(results: Path) -> None:
    """Whole epochs before products; bytes apart; the update's share of a step."""
    assert "| BPR, ml-1m | 1 | ~1.6 | ~0.32 |" in speed_docs.SECTIONS["epochs"]()
    memory = speed_docs.SECTIONS["memory"]()
    assert "| BPR, ml-1m | 20 | 20 | 2 | 5 |" in memory and "GPU" not in memory
    assert "| BPR, ml-1m | 100 | 80 (20.0%) |" in speed_docs.SECTIONS["updates"]()


def test_other_results_are_shown_as_they_are(results: Path) -> None:
    """Rows of any figures, text first; without a file it is said that there is none."""
    assert speed_docs.other("graph_product.json") == speed_docs.MISSING
    rows = [{"ms": 1.5, "graph": "csr", "parts": [1]}, {"ms": 2_000_000, "graph": "coo"}]
    told = {"processor": "CPU", "commit": "new", "environment": STACK, "rows": rows}
    (results / "graph_product.json").write_text(json.dumps(told))
    shown = speed_docs.other("graph_product.json")
    assert "| graph | ms |\n|---|---:|\n| csr | 1.5 |\n| coo | 2,000,000 |" in shown


def test_exponents_of_points(results: Path) -> None:
    """A cost in proportion has exponent 1; a fixed one has none where the live part dominates."""
    for rows in (1_000, 10_000, 100_000):
        live = int(2 * rows * 64 * 0.1)
        result = {
            "live": live,
            "step_s": {"2048": 1.0, "64": 1e-9 * live},
            "limit_s": 1e-9 * live,
            "held_bytes": 17 * live,
            "update": {
                "update_s": 1e-8 * live, "dropped": 2, "grown": 1, "growth_bytes": 8,
            },
        }  # fmt: skip
        cell = {"variant": "packed", "rows": rows, "columns": 64, "density": 0.1}
        place = {"round": 0, "commit": "new", "device": "CPU", "environment": STACK, "processor": "CPU"}
        Journal(results / "scaling.jsonl").append({"cell": cell, **place, "result": result})
    shown = speed_docs.SECTIONS["exponents"]()
    series = "rows 10⁴ … 10⁷, density 0.1, 64 columns"
    assert f"| {series} | step, batch 2048 | 0.00 (2.0 decades, 3) | – |" in shown
    assert f"| {series} | step, batch 64 | 1.00 (2.0 decades, 3) | 1.00 (2.0 decades, 3) |" in shown
    assert "2 × 1,000 × 64, 0.1 | 12,800 |" in speed_docs.SECTIONS["points"]()
    assert "| 12,800 | 0.128 | 10 | 2 | 1 |" in speed_docs.SECTIONS["update_points"]()
