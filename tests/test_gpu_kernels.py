"""Triton kernels give what their torch twins give: on a GPU, or interpreted on a CPU where there is none."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_dsl import compiling, sparsify
from recbole_dsl.errors import ConfigError
from recbole_dsl.packed.lookup import add_rows, add_table, read_rows, read_table
from recbole_dsl.sparsity.scores import GrowthScores, PositionMap

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

needs_triton = pytest.mark.skipif(not compiling.triton_installed(), reason="needs Triton")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the kernels are asked for by name on a CPU."""
    if DEVICE.type == "cpu":
        for module in ("packed.group", "sparsity.scores"):
            monkeypatch.setattr(f"recbole_dsl.{module}.on_gpu", lambda choice, *_: choice == "triton")


def table(rows: int, columns: int, density: float, kernel: str, dtype: torch.dtype = torch.float32) -> Any:
    """A packed group of two tables of which the second is looked at."""
    torch.manual_seed(0)
    model = nn.ModuleDict({n: nn.Embedding(rows, columns, dtype=dtype) for n in ("other", "table")})
    return sparsify(
        model.to(DEVICE), density, include=["*.weight"], groups="joint", kernels=kernel, init="random"
    ).groups[0]


@needs_triton
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.sampled_from([1, 2, 7, 64, 300, 1500]),
    density=st.sampled_from([0.02, 0.2, 1.0]),
    count=st.integers(0, 70),
    padding=st.sampled_from([None, 0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 9),
)
def test_kernels_are_their_twins(
    rows: int, columns: int, density: float, count: int, padding: int | None, dtype: torch.dtype, seed: int
) -> None:
    """Rows and tables, read and added to: empty rows, rows that repeat, every type of column ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(rows, (count,), generator=generator).to(DEVICE)
    some = torch.rand(count, columns, generator=generator, dtype=dtype).to(DEVICE)
    whole = torch.rand(rows, columns, generator=generator, dtype=dtype).to(DEVICE)
    found: dict[str, list[Tensor]] = {}
    for kernel in ("triton", "torch"):
        group = table(rows, columns, density, kernel, dtype)
        assert group.on_gpu() is (kernel == "triton")
        totals = [torch.ones_like(group.weight.detach()) for _ in range(2)]
        add_rows(group, 1, ids, some, padding, totals[0])
        add_table(group, 1, whole, totals[1])
        scores = GrowthScores(PositionMap(group.table_shapes, device=DEVICE), dtype, DEVICE, kernel)
        scores.add_rows(1, ids, some)
        scores.commit()
        found[kernel] = [read_rows(group, 1, ids), read_table(group, 1), *totals, scores.sums]
    for ours, twin in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(ours, twin)


@needs_triton
def test_the_gradients_of_a_row_that_repeats_are_added_once() -> None:
    """More of them than a program adds together, and exactly: these numbers have no rounding."""
    group = table(5, 4, 0.5, "triton")
    ids = torch.tensor([3] * 100 + [1] * 16 + [3] * 17, device=DEVICE)
    total = torch.zeros_like(group.weight.detach())
    add_rows(group, 1, ids, torch.ones(len(ids), 4, device=DEVICE), None, total)
    counts = torch.tensor([0, 16, 0, 117, 0], device=DEVICE)
    rows = torch.div(group.flat_positions(1), 4, rounding_mode="floor")
    assert torch.equal(total[group.span(1)], counts[rows].float())
    assert not total[group.span(0)].any()


@needs_triton
@pytest.mark.parametrize("wrong", [-1, 30])
def test_rows_that_do_not_exist_are_not_a_number(wrong: int) -> None:
    """And are not taken for rows of another table of the group, nor added to one."""
    group = table(30, 8, 0.5, "triton")
    ids = torch.tensor([2, wrong, 3], device=DEVICE)
    read = read_rows(group, 1, ids)
    assert read[1].isnan().all()
    assert not read[[0, 2]].isnan().any()
    total = torch.zeros_like(group.weight.detach())
    add_rows(group, 1, ids[1:2], torch.ones(1, 8, device=DEVICE), None, total)
    assert not total.any()


@needs_triton
def test_half_precision_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which the sum of many gradients would lose too much."""
    monkeypatch.undo()
    group = table(30, 8, 0.5, "auto", torch.bfloat16)
    assert not group.on_gpu()
    assert read_table(group, 1).dtype == torch.bfloat16


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="dsl_kernels='triton' needs the package triton, which is not"):
        sparsify(nn.Embedding(30, 8), 0.5, include=["weight"], kernels="triton")
