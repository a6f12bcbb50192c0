"""How the time of a step, the time of an update and the training state's bytes grow with live weights.

    python benchmarks/scaling.py [--out benchmarks/results/scaling.jsonl] [--rounds 2]

The BPR model of ``bpr_step.py`` at sizes that differ by three decades and more, along one series each of
rows, density and dimension, with RecBole's dense step beside it as long as it fits. A step has a part that
grows with the live weights (optimizer, gradient) and one that grows with the batch (lookup, loss), so it is
timed with RecBole's batch of 2048 and with one of 64, in turn. Every point has a process of its own; those
that memory does not allow are left out and said. The limit, one read and write of weights, gradient and both
moments, is timed beside each point: what the machine's own memory makes of the same sizes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.bpr_step import Batches, Variant, dense, limit, packed, time_update  # noqa: E402
from benchmarks.fits import affine_fit, power_fit  # noqa: E402
from benchmarks.journal import Cell, Journal, Run, my_turn  # noqa: E402
from benchmarks.provenance import chosen_device, code_commit, device_name, provenance  # noqa: E402
from benchmarks.stopwatch import now, peak_of_process, settle_memory  # noqa: E402

BATCHES = (2048, 64)
ROWS = (10_000, 31_600, 100_000, 316_000, 1_000_000, 3_160_000, 10_000_000)
DENSITIES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
COLUMNS = (16, 32, 64, 128, 256, 512)
UPDATE_WINDOW = 10
"""Steps over which gradients are accumulated before the timed update."""


def grid() -> list[Cell]:
    """Rows at density 0.1 and 64 columns; density and columns at 100 000 rows; densities at a million.

    A point that is in two series is measured once; :data:`SERIES` says which points belong to one.
    """
    points = [(rows, 64, 0.1) for rows in ROWS]
    points += [(rows, 64, density) for rows in (100_000, 1_000_000) for density in DENSITIES]
    points += [(100_000, columns, 0.1) for columns in COLUMNS]
    sparse = [
        {"variant": "packed", "rows": rows, "columns": columns, "density": density}
        for rows, columns, density in dict.fromkeys(points)
    ]
    sizes = [(rows, 64) for rows in ROWS] + [(100_000, columns) for columns in COLUMNS]
    beside = [
        {"variant": variant, "rows": rows, "columns": columns, "density": 1.0}
        for rows, columns in dict.fromkeys(sizes)
        for variant in ("RecBole dense", "dense, fused Adam")
    ]
    return sorted(sparse + beside, key=lambda c: c["rows"] * c["columns"])


SERIES = {
    "rows 10⁴ … 10⁷, density 0.1, 64 columns": lambda c: c["columns"] == 64 and c["density"] == 0.1,
    "density 1 … 0.01, 10⁵ rows": lambda c: c["rows"] == 100_000 and c["columns"] == 64,
    "density 1 … 0.01, 10⁶ rows": lambda c: c["rows"] == 1_000_000 and c["columns"] == 64,
    "16 … 512 columns, 10⁵ rows, density 0.1": lambda c: c["rows"] == 100_000 and c["density"] == 0.1,
    "all": lambda c: True,
}
"""Packed points by what varies."""


def bytes_needed(cell: Cell) -> int:
    """Bytes a point is likely to take at most, the dense start of a packed one included."""
    weights = 2 * cell["rows"] * cell["columns"]
    live = int(weights * cell["density"])
    if cell["variant"] != "packed":
        return 40 * weights  # state, and what an optimizer that is not fused makes in between
    return 60 * live + min(4 * weights, 256_000_000) + weights // 8


def bytes_free(device: torch.device) -> int:
    """Bytes that may be taken: three quarters of what is free."""
    if device.type == "cuda":
        return int(0.75 * torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(0.75 * psutil.virtual_memory().available)


def build(cell: Cell, device: torch.device) -> Variant:
    """The variant of a cell."""
    rows, columns = cell["rows"], cell["columns"]
    if cell["variant"] == "packed":
        return packed(rows, columns, device, cell["density"], window=UPDATE_WINDOW)
    return dense(rows, columns, device, fused="fused" in cell["variant"])


def step_times(variants: dict[str, tuple[Variant, Batches]], seconds: float, steps: int) -> dict[str, float]:
    """Median seconds of a step of each, in turns of two: ``steps`` of each, or those begun in ``seconds``."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    spent = 0.0
    for turn in range(steps // 2):
        if turn and spent > seconds:
            break
        for name, (variant, batches) in variants.items():
            for position in range(3):
                triple = batches.draw()
                started = now(batches.device)
                variant.step(*triple)
                took = now(batches.device) - started
                spent += took
                if position:  # the first finds the caches of another
                    times[name].append(took)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(cell: Cell, device: torch.device, seconds: float, turn: Path | None = None) -> dict[str, Any]:
    """Seconds and bytes of one point; ``turn``: a lock that is held while time is taken."""
    torch.manual_seed(0)
    resident = settle_memory()
    variant = build(cell, device)
    with my_turn(turn):
        return measure_variant(variant, resident, cell, device, seconds)


def measure_variant(
    variant: Variant, resident: int | None, cell: Cell, device: torch.device, seconds: float
) -> dict[str, Any]:
    """The same of one that is built; ``resident``: bytes of the process before."""
    parameters = [p for group in variant.optimizer.param_groups for p in group["params"]]
    live = sum(p.numel() for p in parameters)
    timed = {str(size): (variant, Batches(cell["rows"], size, device)) for size in BATCHES}
    variant.step(*timed["2048"][1].draw())
    timed["limit"] = (limit(live, device), timed["64"][1])
    steps = step_times(timed, seconds, 60)
    held = variant.held()
    told = {
        "live": live,
        "step_s": {name: steps[name] for name in map(str, BATCHES)},
        "limit_s": steps["limit"],
        "held_bytes": sum(held.values()),
        **held,
    }
    del timed
    if variant.handle is not None and cell["density"] < 1:
        told["update"] = update(variant, Batches(cell["rows"], 2048, device))
    peak = peak_of_process()
    return {**told, "peak_growth_bytes": None if resident is None else peak - resident}


def update(variant: Variant, batches: Batches) -> dict[str, Any]:
    """Seconds of an update after a window of :data:`UPDATE_WINDOW` steps; what it exchanged; window's bytes."""
    assert variant.handle is not None
    explorer, events = variant.handle.explorer, []
    explorer.on_update = events.append
    for _ in range(2 if variant.handle.live < 5_000_000 else 1):  # the first may compile
        time_update(variant, batches, UPDATE_WINDOW)
    event = events[-1]
    return {
        "update_s": variant.seconds["update"][-1],
        "dropped": event.dropped,
        "grown": event.grown,
        "growth_bytes": explorer.growth_bytes,
    }


def latest_points(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One result for each cell: the middle of its rounds, of the last line's commit."""
    rounds: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["commit"] == lines[-1]["commit"]:
            rounds.setdefault(json.dumps(line["cell"]), []).append(line["result"])
    return [{"cell": json.loads(cell), **middle(results)} for cell, results in rounds.items()]


def middle(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of every number of equally built results; of other values the first."""
    told: dict[str, Any] = {}
    for key, first in results[0].items():
        values = [result[key] for result in results]
        if isinstance(first, dict):
            told[key] = middle(values)
        elif isinstance(first, int | float):
            found = statistics.median(values)
            told[key] = int(found) if isinstance(first, int) else found
        else:
            told[key] = first
    return told


def fits(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Exponents in the live weights, by series and cost.

    A step's cost is also fitted as ``slope · live + fixed``; ``off_the_line`` is the largest relative error of
    that, and the live part dominates at points where the first is more than half of it. The limit's exponent
    is the machine's own: caches make it exceed 1.
    """
    told = []
    for series, belongs in SERIES.items():
        mine = [p for p in points if p["cell"]["variant"] == "packed" and belongs(p["cell"])]
        for cost, of in COSTS.items():
            pairs = [(p["live"], of(p)) for p in mine if of(p)]
            if len(pairs) < 3:
                continue
            line = affine_fit(*zip(*pairs, strict=True))
            grown = [pair for pair in pairs if line.grows(pair[0]) > 0.5]
            whole = power_fit(*zip(*pairs, strict=True))
            part = power_fit(*zip(*grown, strict=True)) if len(grown) > 2 else None
            told.append(
                {
                    "series": series,
                    "cost": cost,
                    "whole_range": whole and whole.as_dict(),
                    "where_the_live_part_dominates": part and part.as_dict(),
                    "per_live_weight": line.slope,
                    "fixed": line.fixed,
                    "off_the_line": max(abs(line.at(live) / found - 1) for live, found in pairs),
                }
            )
    return told


COSTS: dict[str, Callable[[dict[str, Any]], float | None]] = {
    "step, batch 2048": lambda p: p["step_s"]["2048"],
    "step, batch 64": lambda p: p["step_s"]["64"],
    "limit": lambda p: p["limit_s"],
    "bytes": lambda p: p["held_bytes"],
    "update": lambda p: (p.get("update") or {}).get("update_s"),
}
"""What is fitted, seconds or bytes."""


def report(out: Path) -> None:
    """Print the exponents of a results file, and write them as JSON beside it."""
    lines = Journal(out).lines()
    if not lines:
        return
    mine = [line for line in lines if line["device"] == lines[-1]["device"]]
    told = fits(latest_points(mine))
    for fit in told:
        for part in ("whole_range", "where_the_live_part_dominates"):
            if found := fit[part]:
                where = f"{found['points']} points over {found['decades']:.1f} decades"
                name = f"{fit['series']}: {fit['cost']}, {part.replace('_', ' ')}"
                print(f"{name}: exponent {found['exponent']:.3f} (r² {found['r2']:.3f}, {where})")
        print(
            f"{fit['series']}: {fit['cost']} = {fit['per_live_weight']:.3g} · live + {fit['fixed']:.3g}, "
            f"at most {fit['off_the_line']:.0%} off"
        )
    source = {key: mine[-1][key] for key in ("commit", "processor", "device", "environment")}
    out.with_name(f"{out.stem}_fits.json").write_text(json.dumps({**source, "fits": told}, indent=1) + "\n")


def main() -> int:
    """Run what is missing of the grid, or (``--cells``) measure cells in this process."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scaling.jsonl")
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--round", type=int, default=0, help=argparse.SUPPRESS)
    options.add_argument("--most-weights", type=float, default=2e9, help="leave out larger dense sizes")
    options.add_argument("--seconds", type=float, default=4.0, help="longest time for the steps of a point")
    options.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--rows", type=int, nargs="*", help="only points of so many rows")
    options.add_argument("--turn", type=Path, help="file that calls share to measure in turn, on a GPU")
    options.add_argument("--cells", type=json.loads)
    chosen = options.parse_args()
    torch.set_num_threads(chosen.threads)
    device = chosen_device(chosen.device)
    if chosen.cells:
        (cell,) = chosen.cells
        result = measure(cell, device, chosen.seconds, chosen.turn)
        Journal(chosen.out).append({"cell": cell, **provenance(device), "result": result})
        return 0
    cells = [c for c in grid() if 2 * c["rows"] * c["columns"] <= chosen.most_weights]
    cells = [c for c in cells if not chosen.rows or c["rows"] in chosen.rows]
    fitting = [cell for cell in cells if bytes_needed(cell) <= bytes_free(device)]
    for cell in cells:
        if cell not in fitting:
            print("left out, as it needs more memory than there is:", cell)
    passed = ["--device", device.type, "--seconds", str(chosen.seconds)]
    if chosen.turn:
        passed += ["--turn", str(chosen.turn.resolve())]
    run = Run(Path(__file__), passed, chosen.threads, code_commit(), device_name(device))
    failed = run.in_turn([[cell] for cell in fitting], chosen.rounds, Journal(chosen.out.resolve()))
    report(chosen.out.resolve())
    for cell in failed:
        print("failed:", cell, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
