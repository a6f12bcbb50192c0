"""Products of a packed matrix with a batch, sparse beside dense: the figures of ``packed/linear.py``.

    python benchmarks/linear_product.py --out benchmarks/results/linear_product.json

One thread; dense and sparse products in turn. Prints for every shape and density how many times faster the
sparse product is (the output, the gradient of the input and that of the weights, its transposes included),
then the nanoseconds per weight, per live weight and per element that ``sparse_is_faster`` reckons with. The
second table leaves out the zeros of the input instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.provenance import provenance  # noqa: E402
from recbole_dsl import sparsify  # noqa: E402
from recbole_dsl.packed import linear  # noqa: E402
from recbole_dsl.packed.sparse_input import LinearOfNonzeros  # noqa: E402

SHAPES = ((600, 3706), (3706, 600), (256, 256), (128, 704), (64, 128))
DENSITIES = (0.3, 0.2, 0.15, 0.1, 0.05, 0.02)
SHARES = (0.12, 0.06, 0.04, 0.02, 0.005)


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of every call, A B C … A B C …."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(rounds + 1):
        for name, call in calls.items():
            started = perf_counter()
            call()
            if round_:
                times[name].append(perf_counter() - started)
    return {name: statistics.median(found) for name, found in times.items()}


def products(rows: int, cols: int, density: float, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of the three products, dense and sparse, and of laying a batch out in blocks."""
    layer = nn.Linear(cols, rows, bias=False)
    group: Any = sparsify(layer, density, include=["weight"], update_ratio=0).groups[0]
    dense = layer.weight.detach().clone()
    inputs, gradient = torch.rand(batch, cols), torch.rand(batch, rows)
    in_blocks, gradient_blocks = linear.in_blocks(inputs), linear.in_blocks(gradient)
    total = torch.zeros_like(group.weight.detach())
    found = in_turn(
        {
            "dense output": lambda: inputs @ dense.t(),
            "sparse output": lambda: linear.multiply(group, 0, inputs),
            "dense input": lambda: gradient @ dense,
            "sparse input": lambda: linear.multiply_transposed(group, 0, gradient),
            "dense weights": lambda: gradient.t() @ inputs,
            "sparse weights": lambda: linear.add_outer(group, 0, in_blocks, gradient_blocks, total),
            "blocks": lambda: linear.in_blocks(inputs),
        },
        rounds,
    )
    return {
        "rows": rows,
        "cols": cols,
        "density": density,
        "live": group.budget,
        "batch": batch,
        "seconds": found,
    }


def nonzeros(rows: int, cols: int, share: float, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds of forward and backward pass of a matrix at density 0.2 on an input of so many non-zeros."""
    layer = nn.Linear(cols, rows, bias=False)
    group: Any = sparsify(layer, 0.2, include=["weight"], update_ratio=0).groups[0]
    inputs = torch.rand(batch, cols) * (torch.rand(batch, cols) < share)
    dense = nn.Parameter(layer.weight.detach().clone())

    def sparse_pass() -> None:
        group.weight.grad = None
        LinearOfNonzeros.apply(group._token(), inputs, group, 0).sum().backward()

    def dense_pass() -> None:
        dense.grad = None
        (inputs @ dense.t()).sum().backward()

    found = in_turn({"dense": dense_pass, "sparse": sparse_pass}, rounds)
    return {"rows": rows, "cols": cols, "share": share, "batch": batch, "seconds": found}


def figures(measured: list[dict[str, Any]]) -> dict[str, float]:
    """Nanoseconds of :mod:`recbole_dsl.packed.linear`, medians over the larger shapes."""

    def median(value: Callable[[dict[str, Any]], float]) -> float:
        large = [m for m in measured if m["rows"] * m["cols"] >= 2**16]
        return round(statistics.median(value(m) / m["batch"] * 1e9 for m in large), 4)

    transposed = median(lambda m: m["seconds"]["blocks"] / m["cols"])

    def of_vectors(m: dict[str, Any]) -> float:
        both = (m["seconds"]["sparse output"] + m["seconds"]["sparse input"]) / 2
        return (both - (m["rows"] + m["cols"]) * transposed * 1e-9 * m["batch"]) / m["live"]

    return {
        "DENSE": median(lambda m: m["seconds"]["dense output"] / (m["rows"] * m["cols"])),
        "SPARSE vectors": median(of_vectors),
        "SPARSE weights": median(lambda m: m["seconds"]["sparse weights"] / m["live"]),
        "TRANSPOSED": transposed,
    }


def main() -> None:
    """Measure, print, write JSON."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path)
    options.add_argument("--batch", type=int, default=2048)
    options.add_argument("--rounds", type=int, default=5)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    measured, empty = [], []
    print("| matrix | density | output × | gradient of input × | of weights × |\n|---|---:|---:|---:|---:|")
    for rows, cols in SHAPES:
        for density in DENSITIES:
            found = products(rows, cols, density, chosen.batch, chosen.rounds)
            measured.append(found)
            ratios = [
                found["seconds"][f"dense {kind}"] / found["seconds"][f"sparse {kind}"]
                for kind in ("output", "input", "weights")
            ]
            print(f"| {rows} × {cols} | {density} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")
    print("\n| matrix | non-zeros of the input | × |\n|---|---:|---:|")
    for share in SHARES:
        found = nonzeros(*SHAPES[0], share, chosen.batch, chosen.rounds)
        empty.append(found)
        ratio = found["seconds"]["dense"] / found["seconds"]["sparse"]
        print(f"| {SHAPES[0][0]} × {SHAPES[0][1]} | {share} | {ratio:.2f} |")
    print("\nnanoseconds:", figures(measured))
    if chosen.out:
        told = {**provenance(), "seed": 0, "rounds": chosen.rounds, "products": measured, "nonzeros": empty}
        told["figures"] = figures(measured)
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        chosen.out.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
