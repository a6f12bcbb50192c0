"""Costs by hand: multiply–accumulates of every kind of product, bytes between steps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import sparsify
from recbole_dsl.costs import MacCounter, forward_macs, held_bytes, peak_memory_bytes
from recbole_dsl.packed.group import PackedGroup

nnz5 = torch.tensor([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0], [0.0, 4.0, 5.0], [0.0, 0.0, 0.0]])  # 4 × 3

PRODUCTS: dict[str, tuple[Callable[[], Tensor], int]] = {
    "matrix": (lambda: torch.ones(2, 3) @ torch.ones(3, 4), 2 * 3 * 4),
    "batched": (lambda: torch.ones(5, 2, 3) @ torch.ones(5, 3, 4), 5 * 2 * 3 * 4),
    "added": (lambda: torch.addmm(torch.ones(2, 4), torch.ones(2, 3), torch.ones(3, 4)), 2 * 3 * 4),
    "matrix by vector": (lambda: torch.ones(2, 3) @ torch.ones(3), 6),
    "vectors": (lambda: torch.ones(7) @ torch.ones(7), 7),
    "element-wise": (lambda: torch.ones(2, 3) * torch.ones(2, 3), 6),
    "sparse COO": (lambda: torch.sparse.mm(nnz5.to_sparse(), torch.ones(3, 6)), 5 * 6),
    "sparse CSR": (lambda: nnz5.to_sparse_csr() @ torch.ones(3, 6), 5 * 6),
    "by a sparse one": (lambda: torch.ones(6, 4) @ nnz5.to_sparse_csr(), 5 * 6),
    "convolution": (lambda: nn.functional.conv1d(torch.ones(1, 2, 5), torch.ones(3, 2, 3)), 3 * 3 * 2 * 3),
    "attention": (
        lambda: nn.functional.scaled_dot_product_attention(*(torch.ones(1, 2, n, 8) for n in (5, 7, 7))),
        2 * 2 * 5 * 7 * 8,
    ),
    "LSTM": (lambda: nn.LSTM(6, 4, bias=False)(torch.ones(3, 2, 6))[0], 3 * 2 * 4 * (6 * 4 + 4 * 4)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_by_hand(name: str) -> None:
    """n·k·m for dense factors, stored entries times columns (or rows) for a sparse one."""
    run, macs = PRODUCTS[name]
    counter = MacCounter([])
    with torch.no_grad(), counter:
        run()
    assert counter.macs == macs


def test_gru_counts_its_products() -> None:
    """Composed of plain products: both matrices once per step and sequence, and the gates."""
    counter = MacCounter([])
    with torch.no_grad(), counter:
        nn.GRU(6, 4, bias=False)(torch.ones(3, 2, 6))
    products = 3 * 2 * 3 * (6 * 4 + 4 * 4)
    assert products <= counter.macs <= products + 3 * 2 * 4 * 3


def test_packed_weights_count_what_lives() -> None:
    """A Linear layer and a lookup at density 0.25 cost a quarter, bias and batch as they are."""
    model = nn.ModuleDict({"table": nn.Embedding(10, 8), "layer": nn.Linear(8, 4, bias=False)})
    sparsify(model, 0.25, include=["*"], groups="per_tensor", init="aligned")
    ids = torch.arange(10)  # every live weight of the table once
    macs = forward_macs(model, lambda: model["layer"](model["table"](ids)))
    assert macs == 20 + 10 * 8


@pytest.mark.parametrize("zeros", [False, True])
def test_packed_products_in_compiled_loops_count_as_well(zeros: bool) -> None:
    """A batch and a density at which no operator of torch's multiplies."""
    layer = nn.Linear(300, 200, bias=False)
    sparsify(layer, 0.05)
    group = next(m for m in layer.modules() if isinstance(m, PackedGroup))
    vectors = torch.ones(128, 300)
    vectors[:, 3:] *= not zeros
    counter = MacCounter([group])
    with counter:
        layer(vectors)
    if group.compiled(vectors):
        assert counter.macs < 128 * 3000, "the case that this test is for"
    assert forward_macs(layer, lambda: layer(vectors)) == 128 * 3000
    assert group.products == "fastest"


def test_held_bytes_by_hand() -> None:
    """Density 0.25 of 100 × 64 in Adam: 1600 values, gradients and two moments, and their index."""
    model = nn.ModuleDict({"table": nn.Embedding(100, 64)})
    sparsify(model, 0.25)
    optimizer = torch.optim.Adam(model.parameters())
    model["table"](torch.arange(100)).sum().backward()
    optimizer.step()
    assert held_bytes(model, optimizer) == {
        "weight_bytes": 1600 * 4,
        "index_bytes": 1600 + 101 * 4,
        "gradient_bytes": 1600 * 4,
        "optimizer_bytes": 2 * 1600 * 4 + 4,
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of Linux")
def test_peak_memory_is_that_of_the_process_alone() -> None:
    """A process does not inherit the peak of the one that started it."""
    code = "import torch; from recbole_dsl.costs import peak_memory_bytes as p; print(p(torch.device('cpu')))"
    ballast = torch.ones(2**28)  # 1 GiB
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    del ballast
    assert int(done.stdout.split()[-1]) < 2**30 < peak_memory_bytes(torch.device("cpu"))


def test_a_container_that_tells_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some have no VmHWM in /proc; what getrusage says is as good as it gets."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "VmSize:\t9 kB\nVmRSS:\t8 kB\n")
    assert peak_memory_bytes(torch.device("cpu")) > 2**20
