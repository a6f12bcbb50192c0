"""Second moments that grown weights start with: by hand, against a naive loop, in both storages."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, optim

from recbole_dsl import compiling
from recbole_dsl.packed.moments import estimate_moments
from recbole_dsl.sparsity.explorer import ExplorationSettings, Explorer
from recbole_dsl.sparsity.rows import LiveRows
from recbole_dsl.sparsity.targets import list_tensors
from tests.test_update_parity import Tables, mask, pack


def index_of(live: Tensor, shapes: list[tuple[int, int]]) -> LiveRows:
    """The index of ``live`` flat positions (int64, ascending) of tensors that follow each other."""
    rows, columns, start = [torch.tensor([0])], [], 0
    for count, width in shapes:
        own = live[(live >= start) & (live < start + count * width)] - start
        rows.append(torch.bincount(own // width, minlength=count))
        columns.append(own % width)
        start += count * width
    return LiveRows(shapes, torch.cat(rows).cumsum(0).int(), torch.cat(columns).int())


def naive(
    moments: list[float], live: list[int], shapes: list[tuple[int, int]], arriving: set[int], share: float
):
    """The same, weight by weight."""
    places, start = [], 0
    for tensor, (count, width) in enumerate(shapes):
        places += [(tensor, i // width, i % width) for i in range(count * width)]
        start += count * width
    own = {places[p]: math.sqrt(m) for p, m in zip(live, moments, strict=True) if p not in arriving}

    def mean(roots: list[float], otherwise: float) -> float:
        return sum(roots) / len(roots) if roots else otherwise

    result = list(moments)
    for n, position in enumerate(live):
        tensor, row, column = places[position]
        everything = mean([v for (t, _, _), v in own.items() if t == tensor], 0.0)
        if position in arriving and everything:
            by_row = mean([v for (t, r, _), v in own.items() if (t, r) == (tensor, row)], everything)
            by_column = mean([v for (t, _, c), v in own.items() if (t, c) == (tensor, column)], everything)
            result[n] = max(moments[n], share * (by_row * by_column / everything) ** 2)
    return result


def test_rank_one_moments_are_continued_exactly():
    """Roots r_i · c_j of a full matrix: what grows at one place gets exactly the moment that belongs there."""
    roots = torch.tensor([[1.0, 2.0], [3.0, 6.0]], dtype=torch.float64)
    live, arriving = torch.arange(4), torch.tensor([3])
    moments = roots.square().flatten()
    moments[3] = 0.0
    estimate_moments(moments, index_of(live, [(2, 2)]), arriving, 1.0)
    # Others: row 1 has 3, column 1 has 2, all (1 + 2 + 3) / 3 = 2, so (3 · 2 / 2)².
    assert moments.tolist() == pytest.approx([1.0, 4.0, 9.0, 9.0], rel=1e-12)


def test_share_and_a_row_without_others():
    """Row 1 has nothing but what grows and counts as the mean, 2; its column has 3: (2 · 3 / 2)² · 1/4."""
    moments = torch.tensor([1.0, 9.0, 0.0])
    estimate_moments(moments, index_of(torch.tensor([0, 1, 3]), [(2, 2)]), torch.tensor([3]), 0.25)
    assert moments.tolist() == pytest.approx([1.0, 9.0, 2.25], rel=1e-6)


@pytest.mark.parametrize("value", [0.0, float("inf"), float("nan")])
def test_without_a_scale_nothing_changes(value: float):
    """Moments that are all zero, as of rows that no batch had, or that training has spoilt, tell nothing."""
    moments = torch.tensor([value, value, 0.0])
    before = moments.clone()
    estimate_moments(moments, index_of(torch.tensor([0, 1, 3]), [(2, 2)]), torch.tensor([3]), 1.0)
    assert torch.equal(moments.nan_to_num(7.0), before.nan_to_num(7.0))


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@given(data=st.data())
def test_like_a_naive_loop(kernels: str, data):
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=3))
    size = sum(rows * columns for rows, columns in shapes)
    live = sorted(data.draw(st.sets(st.integers(0, size - 1), min_size=1)))
    arriving = sorted(data.draw(st.sets(st.sampled_from(live))))
    share = data.draw(st.floats(0.0, 1.0))
    value = st.one_of(st.just(0.0), st.floats(1e-6, 1.0))
    moments = data.draw(st.lists(value, min_size=len(live), max_size=len(live)))
    moments = [
        0.0 if p in arriving and n % 2 else m for n, (p, m) in enumerate(zip(live, moments, strict=True))
    ]
    found = torch.tensor(moments, dtype=torch.float64)
    index = replace(index_of(torch.tensor(live), shapes), kernels=kernels)
    estimate_moments(found, index, torch.tensor(arriving, dtype=torch.int64), share)
    assert found.tolist() == pytest.approx(
        naive(moments, live, shapes, set(arriving), share), rel=1e-9, abs=1e-30
    )


@pytest.mark.skipif(not compiling.numba_installed(), reason="needs numba")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seed=st.integers(0, 1000), share=st.floats(0.0, 1.0))
def test_compiled_loops_give_the_same_bits(dtype: torch.dtype, seed: int, share: float):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(7, 30), (1, 3), (40, 6)]
    live = torch.randperm(453, generator=generator)[:200].sort().values
    arriving = live[torch.rand(200, generator=generator) < 0.3]
    moments = torch.randn(200, generator=generator, dtype=dtype).pow(8)
    moments[torch.isin(live, arriving)] *= torch.rand(arriving.shape, generator=generator, dtype=dtype).round()
    found = {}
    for kernels in ("numba", "torch"):
        found[kernels] = moments.clone()
        estimate_moments(found[kernels], replace(index_of(live, shapes), kernels=kernels), arriving, share)
    assert torch.equal(found["numba"], found["torch"])
    assert share < 0.01 or not torch.equal(found["torch"], moments)


# --- in an exploration ----------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": (lambda p: optim.Adam(p, lr=0.01), "exp_avg_sq"),
    "amsgrad": (lambda p: optim.Adam(p, lr=0.01, amsgrad=True), "max_exp_avg_sq"),
    "adamw": (lambda p: optim.AdamW(p, lr=0.01), "exp_avg_sq"),
    "adagrad": (lambda p: optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1), "sum"),
    "rmsprop": (lambda p: optim.RMSprop(p, lr=0.01), "square_avg"),
    "sgd": (lambda p: optim.SGD(p, lr=0.01, momentum=0.9), "momentum_buffer"),
}
LIVE = list(range(0, 40, 2))


def trained(
    storage: str, optimizer: str, share: float, steps: int = 6
) -> tuple[list[int], list[float], list[float]]:
    """Live positions, values and the named state after some steps with an update after every second one."""
    generator = torch.Generator().manual_seed(1)
    tables = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((6, 4), (4, 4))]
    model = Tables(*tables)
    group = {"packed": pack, "masked": mask}[storage](model, "joint", list_tensors(model), torch.tensor(LIVE))
    explorer = Explorer([group], ExplorationSettings(update_interval=2, end=100, grow_moment=share))
    make, name = OPTIMIZERS[optimizer]
    steps_by = make(model.parameters())
    explorer.attach(steps_by)
    for _ in range(steps):
        steps_by.zero_grad()
        model.loss(torch.randn(40, generator=generator, dtype=torch.float64)).backward()
        steps_by.step()
    assert explorer.updates > 0
    own = [p for p in group.trained_parameters() if name in steps_by.state[p]]
    state = torch.cat([steps_by.state[p][name].reshape(-1) for p in own])
    here = group.live_positions()
    return here.tolist(), group.live_values().tolist(), (state if storage == "packed" else state[here]).tolist()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_storages_agree(optimizer: str):
    assert trained("packed", optimizer, 1.0) == trained("masked", optimizer, 1.0)


@pytest.mark.parametrize("storage", ["packed", "masked"])
def test_a_table_that_no_step_has_reached(storage: str):
    """It has no state of its own in masked storage, and does not keep the other from its estimates."""
    table = torch.arange(1.0, 25.0, dtype=torch.float64).view(6, 4)
    model = Tables(table, torch.ones(4, 4, dtype=torch.float64))
    group = {"packed": pack, "masked": mask}[storage](model, "joint", list_tensors(model), torch.tensor(LIVE))
    explorer = Explorer([group], ExplorationSettings(update_interval=2, end=100, grow_moment=1.0))
    optimizer = optim.RMSprop(model.parameters(), lr=0.01)
    explorer.attach(optimizer)
    for _ in range(2):
        optimizer.zero_grad()
        (model.first * table).sum().backward()
        optimizer.step()
    moments = torch.cat([optimizer.state[p]["square_avg"].reshape(-1) for p in optimizer.state])
    moments = moments if storage == "packed" else moments[group.live_positions()[group.live_positions() < 24]]
    grown = [n for n, position in enumerate(group.live_positions().tolist()) if position < 24 and position % 2]
    assert grown and float(moments[grown].min()) > 0


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_what_divides_steps_is_estimated(optimizer: str):
    """After the last update every grown weight has a second moment with 1, and that of its birth with 0."""
    birth = 0.1 if optimizer == "adagrad" else 0.0
    _, _, without = trained("packed", optimizer, 0.0)
    _, _, with_it = trained("packed", optimizer, 1.0)
    if optimizer == "sgd":
        assert with_it == without
        return
    assert birth in without and min(with_it) > birth


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 1.9, 2.1), (1.0, 0.09, 0.11)])
def test_first_step_of_a_grown_weight(share: float, least: float, most: float):
    """Adam corrects moments for all 500 steps of a training, not for the one that a grown weight has had.

    All gradients are 1, of dead positions a bit more, so what has lived moves by one learning rate a step.
    With moments of zero the first step is 0.1 / √0.001 · √(1 - 0.999^501) = 1.99 rates, and more each step;
    with those of the others 0.1.
    """
    tables = Tables(torch.ones(4, 4, dtype=torch.float64), torch.ones(1, 4, dtype=torch.float64))
    group = pack(tables, "joint", list_tensors(tables), torch.arange(0, 20, 2))
    explorer = Explorer([group], ExplorationSettings(update_interval=500, end=10_000, grow_moment=share))
    optimizer = optim.Adam(tables.parameters(), lr=1e-4)
    explorer.attach(optimizer)
    gradient = torch.full((20,), 1.01, dtype=torch.float64).index_fill_(0, torch.arange(0, 20, 2), 1.0)
    for _ in range(500):
        optimizer.zero_grad()
        tables.loss(gradient).backward()
        optimizer.step()
    new = group.live_values() == 0
    assert new.any()
    optimizer.zero_grad()
    tables.loss(gradient).backward()
    optimizer.step()
    rates = group.live_values()[new].abs() / 1e-4
    assert least < float(rates.min()) and float(rates.max()) < most
