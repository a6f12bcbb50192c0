"""Triton kernels give what their torch twins give: on a GPU, or interpreted on a CPU where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_dsl import compiling, sparsify
from recbole_dsl.costs import MacCounter
from recbole_dsl.errors import ConfigError, PackedWriteError
from recbole_dsl.packed.lookup import add_table, read_rows, read_table
from recbole_dsl.sparsity.scores import GrowthScores, PositionMap
from tests.test_kernels import table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are imported

needs_triton = pytest.mark.skipif(not compiling.triton_installed(), reason="needs Triton")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, the kernels are asked for by name on a CPU."""
    if DEVICE.type == "cpu":
        for module in ("packed.group", "kernels.dense_rows"):
            monkeypatch.setattr(f"recbole_dsl.{module}.on_gpu", lambda choice, *_: choice == "triton")


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
        group = table(rows, columns, density, kernel, dtype, DEVICE)
        assert group.on_gpu() is (kernel == "triton")
        total = torch.ones_like(group.weight.detach())
        add_table(group, 1, whole, total)
        looked_up = [group.rows(1, ids, padding), group.rows(0, ids, padding), group.rows(1, ids)]
        sum((rows * some).sum() for rows in looked_up).backward()
        scores = GrowthScores(PositionMap(group.table_shapes, device=DEVICE), dtype, DEVICE, kernel)
        scores.add_rows(1, ids, some)
        scores.commit()
        found[kernel] = [read_rows(group, 1, ids), read_table(group, 1), total, group.weight.grad, scores.sums]
    for ours, twin in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(ours, twin)


@needs_triton
def test_the_gradients_of_a_row_that_repeats_are_added_once() -> None:
    """More of them than a program adds together, and exactly: these numbers have no rounding."""
    group = table(5, 4, 0.5, "triton", device=DEVICE)
    ids = torch.tensor([3] * 100 + [1] * 16 + [3] * 17, device=DEVICE)
    group.rows(1, ids).sum().backward()
    total = group.weight.grad
    counts = torch.tensor([0, 16, 0, 117, 0], device=DEVICE)
    rows = torch.div(group.flat_positions(1), 4, rounding_mode="floor")
    assert torch.equal(total[group.span(1)], counts[rows].float())
    assert not total[group.span(0)].any()


@needs_triton
@pytest.mark.parametrize("wrong", [-1, 30])
def test_rows_that_do_not_exist_are_not_a_number(wrong: int) -> None:
    """And are not taken for rows of another table of the group, nor added to one."""
    group = table(30, 8, 0.5, "triton", device=DEVICE)
    ids = torch.tensor([2, wrong, 3], device=DEVICE)
    read = read_rows(group, 1, ids)
    assert read[1].isnan().all()
    assert not read[[0, 2]].isnan().any()
    group.rows(1, ids[1:2]).sum().backward()
    assert not group.weight.grad.any()


@needs_triton
@settings(max_examples=15, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 7, 64, 300])), min_size=1, max_size=5),
    density=st.sampled_from([0.05, 0.5]),
    groups=st.sampled_from(["joint", "per_tensor"]),
    left_out=st.integers(0, 5),
)
def test_tables_read_together_are_those_read_one_by_one(
    shapes: list[tuple[int, int]], density: float, groups: str, left_out: int
) -> None:
    """Tables of any widths, of one group or several, and their gradients; one left out by a step has none."""
    found: dict[str, list[Tensor]] = {}
    for kernel in ("triton", "torch"):
        torch.manual_seed(0)
        model = nn.ModuleDict({f"t{i}": nn.Linear(c, r, bias=False) for i, (r, c) in enumerate(shapes)})
        handle = sparsify(model.to(DEVICE), density, include=["*.weight"], groups=groups, kernels=kernel)
        tables = [(group, t) for group in handle.groups for t in range(len(group.slices))]
        assert all(group.on_gpu() is (kernel == "triton") for group in handle.groups)
        sum(group.dense(t).sum() for group, t in tables).backward()
        handle.groups[0].weight.grad = None
        used = [table for n, table in enumerate(tables) if n != left_out or len(tables) == 1]
        found[kernel] = [group.dense(t).detach() for group, t in tables]
        sum(((2 + n) * group.dense(t)).square().sum() for n, (group, t) in enumerate(used)).backward()
        found[kernel] += [group.weight.grad for group in handle.groups]
    for ours, twin in zip(found["triton"], found["torch"], strict=True):
        torch.testing.assert_close(ours, twin)


@needs_triton
@pytest.mark.parametrize("groups", ["joint", "per_tensor"])
def test_tables_of_the_last_step_are_read_in_one_launch(groups: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the second step on, and their gradients are added in one."""
    from recbole_dsl.kernels import rows_on_gpu as kernels

    calls = []
    for name in ("read_tables", "add_tables"):
        function = getattr(kernels, name)
        told = lambda *a, name=name, function=function: (calls.append(name), function(*a))[1]  # noqa: E731
        monkeypatch.setattr(kernels, name, told)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).to(DEVICE)
    sparsify(model, 0.5, include=["*.weight"], groups=groups, kernels="triton")
    for expected in (6, 2, 2):
        calls.clear()
        model(torch.ones(2, 8, device=DEVICE)).sum().backward()
        assert len(calls) == expected


def two_layers(kernels: str = "triton") -> tuple[Any, Any]:
    """Two packed matrices of different groups, read once, so that they are read together from now on."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(6, 4, bias=False) for name in "ab"}).to(DEVICE)
    a, b = sparsify(model, 0.5, include=["*.weight"], groups="per_tensor", kernels=kernels).groups
    (a.dense(0).sum() + b.dense(0).sum()).backward()
    a.weight.grad = b.weight.grad = None
    return a, b


@needs_triton
def test_a_pass_that_broke_off_leaves_no_gradient() -> None:
    """Not even to a group whose table the next pass has read along and not used."""

    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, _: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    a, b = two_layers()
    rows = torch.arange(4, device=DEVICE)
    a.dense(0)
    early = Breaks.apply(a.rows(0, rows[:1])).sum()  # made before what b has, so its backward runs after that
    with pytest.raises(RuntimeError, match="out of memory"):
        (early + b.rows(0, rows).sum()).backward()
    a.weight.grad = b.weight.grad = None
    a.dense(0).sum().backward()
    assert a.weight.grad is not None
    assert b.weight.grad is None


@needs_triton
def test_what_was_read_in_vain_is_read_by_itself() -> None:
    """Losses that take turns would otherwise read each other's tables at every step."""
    a, b = two_layers()
    for group in (a, b):
        group.dense(0).sum().backward()
    for group, other in ((a, b), (b, a), (a, b)):
        group.dense(0)
        assert not other.materialised()
        group.dense(0).sum().backward()


@needs_triton
def test_tables_read_together_are_told_apart() -> None:
    """By what counts multiplications, and by what refuses writes: they lie in one storage."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)).to(DEVICE)
    handle = sparsify(model, 0.25, include=["0.weight"], groups="per_tensor", kernels="triton")
    more = sparsify(model, 0.75, include=["1.weight"], groups="per_tensor", kernels="triton")
    x = torch.ones(1, 16, device=DEVICE)
    model(x).sum().backward()
    with MacCounter([*handle.groups, *more.groups]) as counter:
        model(x)
    assert counter.macs == handle.live + more.live
    first, second = model[0].weight, model[1].weight
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    with pytest.raises(PackedWriteError, match=r"1\.weight"):
        second.add_(first)


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from recbole_dsl.kernels import rows_on_gpu as kernels

NUMBERS = ("count", "first", "rows", "width", "skipped")

def compiled(kernel, values, pointers, columns, **constants):
    if pointers is None:
        constants |= {"pointers": None, "columns": None}
    types = {name: "i32" for name in NUMBERS}
    types |= dict.fromkeys(("values", "total", "out", "gradient"), values)
    types |= dict.fromkeys(("ids", "lines", "ordered", "places"), "*i64")
    types |= {"pointers": pointers, "columns": columns}
    signature = {n: "constexpr" if n in constants else types[n] for n in kernel.arg_names}
    warps = 1 if kernel is kernels._add_repeated else 4
    found = compile(ASTSource(kernel, signature, constants), GPUTarget("cuda", 80, 32), {"num_warps": warps})
    assert "ptx" in found.asm

for values in ("*fp32", "*fp64"):
    for pointers, columns in (("*i32", "*u8"), ("*i64", "*i16"), ("*i32", "*i32")):
        index = (values, pointers, columns)
        compiled(kernels._read, *index, HIGH=16, WIDE=64, LIVE=8)
        tables = {"HIGH": 1, "WIDE": 1024, "LIVE": 128}
        compiled(kernels._read_tables, *index, TABLES=1, **tables)
        compiled(kernels._add_tables, *index, TABLES=16, HIGH=16, LIVE=8)
        compiled(kernels._add_repeated, *index, PACKED=True, MANY=16, LIVE=8)
    dense = {"PACKED": False, "MANY": 16}
    compiled(kernels._add_repeated, values, None, None, LIVE=64, **dense)
    compiled(kernels._add_repeated, values, None, None, LIVE=8, count=1, rows=1, width=1, **dense)
print("compiled")
"""


@needs_triton
def test_kernels_compile_for_a_gpu_that_is_not_there() -> None:
    """What interpreting cannot show; Triton brings the compiler along. Arguments that are 1 are constants."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr


@needs_triton
def test_half_precision_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """In which the sum of many gradients would lose too much."""
    monkeypatch.undo()
    group = table(30, 8, 0.5, "auto", torch.bfloat16, DEVICE)
    assert not group.on_gpu()
    assert read_table(group, 1).dtype == torch.bfloat16


def test_triton_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="dsl_kernels='triton' needs the package triton, which is not"):
        sparsify(nn.Embedding(30, 8), 0.5, include=["weight"], kernels="triton")
