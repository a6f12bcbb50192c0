"""What is alive between the steps of a packed training, counted over all tensors of the process."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from recbole_dsl import SparseHandle, sparsify
from recbole_dsl.packed.readonly import ReadOnlyWeight

ROWS, DIM, DENSITY = 20_000, 64, 0.1
TABLE = ROWS * DIM
DENSE_BYTES = 2 * TABLE * 4 * 4  # weights, gradients and two Adam moments of both tables
INTERVAL, WINDOW = 6, 2
GROWTH_MEMORY = 3_000_000  # the scores of all rows would take 10.24 MB


class BPR(nn.Module):
    """Two tables of 20 000 × 64."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(ROWS, DIM), nn.Embedding(ROWS, DIM)

    def loss(self, draw: torch.Generator) -> Tensor:
        u, i, j = (torch.randint(ROWS, (512,), generator=draw) for _ in range(3))
        return nn.functional.softplus((self.user(u) * (self.item(j) - self.item(i))).sum(1)).mean()


def alive() -> list[Tensor]:
    """Every strided tensor the garbage collector knows, gradients and all, one per storage.

    Other subclasses are left out: the fake tensors of torch.compile have no memory to count.
    """
    gc.collect()
    found: dict[int, Tensor] = {}
    todo = [o for o in gc.get_objects() if type(o) in (Tensor, nn.Parameter, ReadOnlyWeight)]
    while todo:
        tensor = todo.pop()
        if tensor.layout == torch.strided and tensor.device.type == "cpu":
            found.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        if tensor.is_leaf and tensor.grad is not None:
            todo.append(tensor.grad)
    return list(found.values())


class Walk:
    """Tensors born since this object was made."""

    def __init__(self) -> None:
        self.before = alive()  # kept alive, so that no new tensor takes an old address
        self.known = {t.untyped_storage().data_ptr() for t in self.before}

    def new(self) -> list[Tensor]:
        return [t for t in alive() if t.untyped_storage().data_ptr() not in self.known]


def bytes_of(tensors: list[Tensor]) -> int:
    """Bytes of their storages."""
    return sum(t.untyped_storage().nbytes() for t in tensors)


def growth_bytes(handle: SparseHandle) -> int:
    """What the growth scores say they take."""
    return sum(g.growth_scores.bytes for g in handle.groups if g.growth_scores is not None)


OPTIMIZERS: dict[str, Callable] = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "fused_adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
}


@pytest.mark.parametrize(
    "optimizer", [pytest.param(n, marks=pytest.mark.slow) if n == "adam" else n for n in OPTIMIZERS]
)
@pytest.mark.parametrize("growth_memory", [GROWTH_MEMORY, None], ids=["sampled", "all_rows"])
def test_training_state_stays_near_the_density(optimizer: str, growth_memory: int | None) -> None:
    """Weights, index, gradients and Adam state: at most 0.13 of dense for density 0.1.

    Inside the growth window at most the bound more; outside it no dense float or bool tensor of a
    table's size is alive. The exploration record (one bit per position) is reported apart.
    """
    walk = Walk()
    torch.manual_seed(0)
    model = BPR()
    handle = sparsify(
        model, DENSITY, groups="joint", update_interval=INTERVAL, grow_window=WINDOW,
        growth_memory=growth_memory, seed=0,
    )  # fmt: skip
    optim = OPTIMIZERS[optimizer](model.parameters())
    handle.attach(optim)
    draw = torch.Generator().manual_seed(1)
    record = sum(p.record.bytes for p in handle.explorer.progress)
    bound = growth_memory or 2 * TABLE * 4
    inside_window = 0
    for step in range(1, 2 * INTERVAL + 1):
        optim.zero_grad()
        model.loss(draw).backward()
        optim.step()
        new = walk.new()
        held = growth_bytes(handle)
        is_open = step % INTERVAL >= INTERVAL - WINDOW  # for the step that follows
        assert (held > 0) == is_open
        assert held <= bound
        assert bytes_of(new) - record - held <= 0.13 * DENSE_BYTES
        if not is_open:
            large = [t for t in new if t.untyped_storage().nbytes() >= TABLE]
            assert not [t for t in large if t.dtype == torch.bool or t.numel() >= TABLE]
            del large
        del new  # or it would keep this step's gradient alive through the next
        inside_window += is_open
    assert inside_window == 2 * WINDOW
    assert handle.explorer.updates == 2


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of CPU memory that torch holds during ``run`` beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_peak_bytes_sees_what_is_freed_again() -> None:
    """Two tensors of 4 MB, one after the other's death, and one of 8 MB."""

    def run() -> None:
        torch.zeros(10**6)
        torch.zeros(10**6)
        torch.zeros(2 * 10**6)

    assert 8 * 10**6 <= peak_bytes(run) < 8.1 * 10**6


@pytest.mark.parametrize("grow", ["accumulated_gradient", "last_gradient", "random_never_live"])
def test_an_update_takes_little_beside_the_live_weights(grow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through the growth scores block by block and makes no second table of them."""
    monkeypatch.setattr("recbole_dsl.sparsity.update.SLOTS_PER_BLOCK", 50_000)
    torch.manual_seed(0)
    model = BPR()
    handle = sparsify(
        model, DENSITY, groups="joint", update_interval=2, grow_window=1, grow=grow, growth_memory=None
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    handle.attach(optimizer)
    draw = torch.Generator().manual_seed(1)
    model.loss(draw).backward()
    optimizer.step()
    assert (handle.explorer.growth_bytes > 0) == (grow != "random_never_live")
    optimizer.zero_grad()
    model.loss(draw).backward()
    live_positions_as_int64 = 8 * handle.budget
    assert peak_bytes(optimizer.step) < 9 * live_positions_as_int64  # a table of scores is as large as 5
    assert handle.explorer.updates == 1


def test_the_walk_sees_a_dense_training() -> None:
    """The counting itself: dense training really holds what the tests above divide by."""
    walk = Walk()
    model = BPR()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.loss(torch.Generator()).backward()
    optimizer.step()
    assert DENSE_BYTES <= bytes_of(walk.new()) <= 1.01 * DENSE_BYTES


def test_dense_parameters_are_freed_by_sparsify() -> None:
    """Right after sparsify the dense tables are gone."""
    walk = Walk()
    model = BPR()
    handle = sparsify(model, DENSITY, groups="joint")
    record = sum(p.record.bytes for p in handle.explorer.progress)
    group = handle.groups[0]
    wanted = group.weight_bytes + group.index_bytes + record
    assert bytes_of(walk.new()) <= 1.01 * wanted


def test_evaluation_frees_its_dense_tables() -> None:
    """Whole tables cached for an evaluation are gone once training goes on."""
    walk = Walk()
    model = BPR()
    handle = sparsify(model, DENSITY, groups="joint")
    model.eval()
    with torch.no_grad():
        best = (model.user.weight[:4] @ model.item.weight.t()).argmax(1).shape
    assert best == (4,)
    model.train()
    assert all(t.untyped_storage().nbytes() < TABLE * 4 for t in walk.new())
    assert handle.live == handle.budget
