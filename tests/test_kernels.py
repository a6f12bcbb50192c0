"""Compiled loops give what their torch twins give; a gradient's memory is reused only when it is free."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_dsl import compiling, sparsify
from recbole_dsl.errors import ConfigError
from recbole_dsl.kernels import in_parallel
from recbole_dsl.packed.gradient import Memory
from recbole_dsl.packed.lookup import add_rows, add_table, read_rows, read_table

needs_numba = pytest.mark.skipif(not compiling.numba_installed(), reason="needs numba")


def table(
    rows: int,
    columns: int,
    density: float,
    kernel: str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Any:
    """A packed group of two tables of which the second is looked at."""
    torch.manual_seed(0)
    model = nn.ModuleDict({n: nn.Embedding(rows, columns, dtype=dtype) for n in ("other", "table")})
    handle = sparsify(model.to(device), density, include=["*.weight"], groups="joint", kernels=kernel)
    return handle.groups[0]


@needs_numba
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    columns=st.sampled_from([2, 7, 64, 256, 300]),
    density=st.sampled_from([0.02, 0.2, 1.0]),
    count=st.integers(0, 70),
    padding=st.sampled_from([None, 0]),
    seed=st.integers(0, 9),
)
def test_loops_are_their_twins(
    rows: int, columns: int, density: float, count: int, padding: int | None, seed: int
) -> None:
    """Rows and tables, read and added to, for empty rows, repeated ids, and every type of column ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(rows, (count,), generator=generator)
    some = torch.rand(count, columns, generator=generator)
    all_ = torch.rand(rows, columns, generator=generator)
    found: dict[str, list[Tensor]] = {}
    for kernel in ("auto", "torch"):
        group = table(rows, columns, density, kernel)
        assert group.compiled() is (kernel == "auto")
        totals = [torch.zeros_like(group.weight.detach()) for _ in range(2)]
        add_rows(group, 1, ids, some, padding, totals[0])
        add_table(group, 1, all_, totals[1])
        found[kernel] = [read_rows(group, 1, ids), read_table(group, 1), *totals]
    for ours, twin in zip(found["auto"], found["torch"], strict=True):
        torch.testing.assert_close(ours, twin)


@needs_numba
@pytest.mark.parametrize("kernel", ["auto", "torch"])
@pytest.mark.parametrize("wrong", [-1, 30])
def test_rows_that_do_not_exist_are_refused(kernel: str, wrong: int) -> None:
    """Also the last of many, and not taken for rows of another table of the group."""
    ids = torch.zeros(100, dtype=torch.int64)
    ids[-1] = wrong
    with pytest.raises(IndexError, match="for a table of 30 rows"):
        read_rows(table(30, 8, 0.5, kernel), 1, ids)


def test_half_precision_goes_to_torch() -> None:
    """numba knows no half precision."""
    group = table(30, 8, 0.5, "auto", torch.bfloat16)
    assert not group.compiled()
    assert read_table(group, 1).dtype == torch.bfloat16


@needs_numba
def test_gradients_of_another_memory_layout() -> None:
    """A gradient that arrives expanded or transposed is read as what it is."""
    group = table(30, 8, 0.5, "auto")
    model = nn.Embedding(30, 8)
    sparsify(model, 0.5, include=["weight"])
    out = model(torch.arange(5))
    out.sum().backward()  # its gradient is one number, expanded
    assert torch.equal(model.packed_weight.weight.grad[:5], torch.ones(5))
    assert group.compiled(torch.rand(8, 3).t()) is False


def test_without_numba_torch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto falls back, numba is refused in one sentence."""
    monkeypatch.setattr(compiling, "numba_installed", lambda: False)
    assert not table(10, 8, 0.5, "auto").compiled()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package numba"):
        table(10, 8, 0.5, "numba")


def test_nothing_imports_numba_before_it_is_used() -> None:
    """It takes half a second."""
    code = "import sys, recbole_dsl.experiment; print('numba' in sys.modules)"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.split()[-1] == "False"


@needs_numba
def test_loops_run_where_no_folder_can_be_written(tmp_path: Path) -> None:
    """The machine code is then compiled for this process alone."""
    code = (
        "import numba.core.caching as c\n"
        "def no(*a, **k): raise RuntimeError('cannot cache function: no locator available')\n"
        "c.CacheImpl.__init__ = no\n"
        "import torch\nfrom recbole_dsl import sparsify\n"
        "m = torch.nn.Embedding(30, 8)\nsparsify(m, 0.5, include=['weight'], kernels='numba')\n"
        "print(m(torch.arange(3)).shape)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "torch.Size([3, 8])", done.stderr


def test_ranges_cover_everything_once() -> None:
    """On one thread and on several."""
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        ranges = in_parallel(lambda a, b: (a, b), 10, 2**22)
        assert [n for a, b in ranges for n in range(a, b)] == list(range(10))
        assert len(ranges) == threads
        assert in_parallel(lambda a, b: (a, b), 10, 5) == [(0, 10)]
    torch.set_num_threads(before)


def step(model: nn.Module) -> None:
    model(torch.arange(5)).sum().backward()


@pytest.fixture
def model() -> nn.Module:
    model = nn.Embedding(30, 8)
    sparsify(model, 0.5, include=["weight"])
    return model


def test_gradient_memory_is_reused(model: nn.Module) -> None:
    """Step after step, and zero where a step looks nothing up."""
    places = set()
    for first in range(4):
        model.zero_grad()
        model(torch.arange(first, first + 2)).sum().backward()
        grad = model.packed_weight.weight.grad
        places.add(grad.data_ptr())
        live = model.weight[first : first + 2].count_nonzero()
        assert int(grad.count_nonzero()) == int(live)
        del grad
    assert len(places) == 1


def test_a_gradient_that_someone_keeps_stays_his(model: nn.Module) -> None:
    """Whether kept as it is, as part of it, or handed out by torch.autograd.grad."""
    weight = model.packed_weight.weight
    kept = []
    for keep in (lambda g: g, lambda g: g[:7], lambda g: g.detach()):
        model.zero_grad()
        step(model)
        kept.append(keep(weight.grad))
    kept.append(torch.autograd.grad(model(torch.arange(5)).sum(), weight)[0])
    before = [k.clone() for k in kept]
    for _ in range(3):
        model.zero_grad()
        (model(torch.arange(30)) * 5).sum().backward()
    assert all(torch.equal(k, b) for k, b in zip(kept, before, strict=True))


def test_gradients_accumulate(model: nn.Module) -> None:
    """A second backward pass adds to the first one's gradient, which holds the memory."""
    twice, weight = copy.deepcopy(model), model.packed_weight.weight
    step(twice)
    single = twice.packed_weight.weight.grad.clone()
    for passes in (1, 2, 3):
        step(model)
        torch.testing.assert_close(weight.grad, passes * single)
    model.zero_grad(set_to_none=False)
    step(model)
    torch.testing.assert_close(weight.grad, single)


def test_memory_follows_size_and_type() -> None:
    """After .double() and the like a fresh one is lent."""
    memory = Memory()
    for like in (torch.ones(5), torch.ones(5, dtype=torch.float64), torch.ones(9)):
        lent = memory.lend(like)
        assert lent.shape == like.shape and lent.dtype == like.dtype and not lent.any()
        lent.fill_(3)
        del lent
        assert not memory.lend(like).any()


def test_memory_is_new_where_torch_does_not_count_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reuse is a gain, never a need."""
    monkeypatch.delattr(torch._C, "_storage_Use_Count", raising=False)
    memory = Memory()
    first, second = memory.lend(torch.ones(5)), memory.lend(torch.ones(5))
    assert first.data_ptr() != second.data_ptr()
