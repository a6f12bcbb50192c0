"""LightGCN's propagation by columns: as RecBole's, by hand, in every number of layers and of columns."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recbole.model.general_recommender import LightGCN
from torch import Tensor, nn

from recbole_dsl import kernels as kernels_module
from recbole_dsl import sparsify
from recbole_dsl.graph import GraphProducts, compress
from recbole_dsl.packed import propagation
from recbole_dsl.packed.layers import SLOTS
from recbole_dsl.packed.propagation import Propagation, Table, rows_of
from recbole_dsl.training import lightgcn
from tests.model_runs import settings_of, sparse_trainer_of

pytestmark = pytest.mark.usefixtures("in_folder")

KERNELS = ("torch", "numba")


class TwoTables(nn.Module):
    """Users and items."""

    def __init__(self, users: int, items: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.users = nn.Embedding(users, columns, dtype=dtype)
        self.items = nn.Embedding(items, columns, dtype=dtype)


def packed_tables(
    users: int, items: int, columns: int, groups: Any, kernels: str, dtype: torch.dtype = torch.float64
) -> tuple[TwoTables, Any, list[Table]]:
    """Two tables of which a fifth lives, and what propagation knows of them."""
    torch.manual_seed(0)
    model = TwoTables(users, items, columns, dtype)
    handle = sparsify(model, density=0.2, seed=1, include=["*.weight"], groups=groups, kernels=kernels)
    slots = [getattr(model, name).__dict__[SLOTS]["weight"] for name in ("users", "items")]
    return model, handle, [Table(*slots[0], 0), Table(*slots[1], users)]


def adjacency(nodes: int, seed: int, symmetric: bool, dtype: torch.dtype = torch.float64) -> Tensor:
    """A sparse matrix as dense."""
    draw = torch.Generator().manual_seed(seed)
    matrix = torch.rand(nodes, nodes, generator=draw, dtype=dtype)
    matrix *= torch.rand(nodes, nodes, generator=draw) < 0.3
    return matrix + matrix.t() if symmetric else matrix


def plain(tables: list[Tensor], matrix: Tensor, layers: int) -> Tensor:
    """The mean over layers, as LightGCN's paper has it (arXiv 2002.02126, equation 8)."""
    parts = [torch.cat(tables)]
    for _ in range(layers):
        parts.append(matrix @ parts[-1])
    return torch.stack(parts).mean(0)


def test_by_hand() -> None:
    """A user and an item, linked with weight a half: two layers of two columns."""
    model = TwoTables(1, 1, 2, torch.float64)
    with torch.no_grad():
        model.users.weight.copy_(torch.tensor([[8.0, 80.0]]))
        model.items.weight.copy_(torch.tensor([[4.0, 40.0]]))
    sparsify(model, density=1.0, include=["*.weight"], groups="joint")
    tables = [Table(*getattr(model, n).__dict__[SLOTS]["weight"], o) for n, o in (("users", 0), ("items", 1))]
    matrix = compress(torch.tensor([[0.0, 0.5], [0.5, 0.0]], dtype=torch.float64).to_sparse_coo(), sort=True)
    assert matrix is not None
    plan = Propagation(tables, matrix, 2, "auto")
    rows = plan.rows(torch.tensor([1]))
    assert rows.tolist() == [[(4.0 + 4.0 + 1.0) / 3, (40.0 + 40.0 + 10.0) / 3]]
    rows[:, 0].sum().backward()  # of the item 1 + 0 + 1/4, of the user 0 + 1/2 + 0, each a third
    assert tables[0].group.weight.grad is not None
    assert tables[0].group.weight.grad.tolist() == pytest.approx([0.5 / 3, 0.0, 1.25 / 3, 0.0], rel=1e-15)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("groups", ["joint", "per_tensor"])
@given(
    layers=st.integers(1, 4),
    columns=st.integers(2, 9),
    block=st.integers(1, 5),
    symmetric=st.booleans(),
    collects=st.booleans(),
    live_per_block=st.sampled_from([0.0, 9.0]),
    most=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_as_a_dense_product(
    kernels: str,
    groups: str,
    layers: int,
    columns: int,
    block: int,
    symmetric: bool,
    collects: bool,
    live_per_block: float,
    most: float,
    seed: int,
) -> None:
    """Rows, the gradient of live weights and what growth scores are handed, for any blocks of columns."""
    users, items = 5, 7
    model, _, tables = packed_tables(users, items, columns, groups, kernels)
    matrix = adjacency(users + items, seed, symmetric)
    compressed = compress(matrix.to_sparse_coo(), sort=True)
    assert compressed is not None
    handed: dict[tuple[str, int], list[Tensor]] = {}
    for group in {id(table.group): table.group for table in tables}.values():
        group.collects = collects
        take = functools.partial(
            lambda name, number, first, of, is_own: handed.setdefault((name, number), []).append(of), group.name
        )
        group.collect_columns = take  # type: ignore[method-assign]
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randperm(users + items, generator=draw)[:6]
    weights = torch.randn(6, columns, generator=draw, dtype=torch.float64)

    dense = [
        t.detach().as_subclass(Tensor).clone().requires_grad_()
        for t in (model.users.weight, model.items.weight)
    ]
    expected = plain(dense, matrix, layers)
    (expected[ids] * weights).sum().backward()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(propagation, "COLUMNS_PER_BLOCK", block)
        patch.setattr(propagation, "LIVE_PER_BLOCK", live_per_block)
        patch.setattr(propagation, "MOST_ENTRIES", most)
        plan = Propagation(tables, compressed, layers, kernels)
        torch.testing.assert_close(plan.whole(), expected.detach())
        rows = plan.rows(ids)
        torch.testing.assert_close(rows, expected[ids].detach())
        (rows * weights).sum().backward()
    for table, gradient in zip(tables, (d.grad for d in dense), strict=True):
        assert gradient is not None and table.group.weight.grad is not None
        live = gradient.reshape(-1)[table.group.flat_positions(table.tensor)]
        torch.testing.assert_close(table.group.weight.grad[table.group.span(table.tensor)], live)
        if collects:
            torch.testing.assert_close(torch.cat(handed[table.group.name, table.tensor], 1), gradient)
    assert collects or not handed


def test_rows_of_a_matrix() -> None:
    """Empty rows, rows out of order."""
    dense = torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 4.0]])
    matrix = compress(dense.to_sparse_coo(), sort=True)
    assert matrix is not None
    assert (
        rows_of(matrix, torch.tensor([2]), 0.6) is None and rows_of(matrix, torch.tensor([2]), 0.7) is not None
    )
    some = rows_of(matrix, torch.tensor([2, 1, 0]))
    assert some is not None
    pointers, columns, values = some
    assert pointers.tolist() == [0, 2, 2, 3]
    assert columns.tolist() == [0, 1, 1]
    assert values.tolist() == [3.0, 4.0, 2.0]


# in a trainer --------------------------------------------------------------------------------------


UPDATES = {"update_interval": 4, "end": "100%"}


def losses_of(
    data: Path, monkeypatch: pytest.MonkeyPatch, by_columns: bool, **dsl: Any
) -> tuple[list[float], dict[str, float], int, list[Tensor]]:
    """Losses of the epochs, metrics, how often rows were propagated by columns, and the topology at the end."""
    made: list[int] = []
    rows = Propagation.rows
    monkeypatch.setattr(Propagation, "rows", lambda self, ids: made.append(1) or rows(self, ids))
    if not by_columns:
        monkeypatch.setattr(lightgcn, "takes", lambda model: False)
    wanted = {**settings_of("LightGCN", data), "epochs": 3}
    trainer, loaders = sparse_trainer_of("LightGCN", wanted, density=0.2, width=100, **UPDATES, **dsl)
    _, valid = trainer.fit(loaders[0], loaders[1], show_progress=False)
    assert "forward" not in vars(trainer.model) and "calculate_loss" not in vars(trainer.model)
    assert len(trainer.updates_made) >= 3 and all(update["grown"] for update in trainer.updates_made)
    live = [group.live_positions() for group in trainer.sparse.groups]
    return list(trainer.train_loss_dict.values()), dict(valid), len(made), live


@pytest.mark.parametrize(
    "dsl", [{}, {"groups": "per_tensor"}, {"kernels": "torch"}, {"growth_rows": 0.3}], ids=str
)
def test_a_run_is_as_recboles_propagation_has_it(data: Path, dsl: dict[str, Any]) -> None:
    """Updates included: losses within rounding, equal topologies and metrics."""
    with pytest.MonkeyPatch.context() as patch:
        losses, valid, made, live = losses_of(data, patch, True, **dsl)
    with pytest.MonkeyPatch.context() as patch:
        plain_losses, plain_valid, none, plain_live = losses_of(data, patch, False, **dsl)
    assert made > 0 and none == 0
    assert losses == pytest.approx(plain_losses, rel=1e-4)
    assert valid == pytest.approx(plain_valid, abs=0.01)
    assert all(map(torch.equal, live, plain_live))


class WithItsOwnForward(LightGCN):
    """Looks at all rows."""

    def forward(self) -> tuple[Tensor, Tensor]:
        """RecBole's, times two."""
        users, items = super().forward()
        return 2 * users, 2 * items


class OfTheSameKind(LightGCN):
    """Changes nothing."""


@pytest.mark.parametrize(("kind", "taken"), [(WithItsOwnForward, False), (OfTheSameKind, True)])
def test_only_recboles_own_methods_are_replaced(
    data: Path, monkeypatch: pytest.MonkeyPatch, kind: type, taken: bool
) -> None:
    """A class that computes something else computes it."""
    trainer, _ = sparse_trainer_of(kind, settings_of("LightGCN", data), density=0.2)
    assert lightgcn.takes(trainer.model) is taken
    trainer.model.calculate_loss = trainer.model.calculate_loss
    assert not lightgcn.takes(trainer.model)


@pytest.mark.parametrize("dsl", [{"density": 1.0}, {"density": 0.2, "storage": "masked"}], ids=str)
def test_dense_and_masked_tables_are_propagated_by_recbole(data: Path, dsl: dict[str, Any]) -> None:
    """As before."""
    trainer, _ = sparse_trainer_of("LightGCN", settings_of("LightGCN", data), **dsl)
    assert not lightgcn.takes(trainer.model)


def test_tables_of_one_block_are_propagated_by_recbole(data: Path) -> None:
    """Up to 64 columns, which lie in a cache as they are."""
    trainer, _ = sparse_trainer_of("LightGCN", settings_of("LightGCN", data), density=0.2, width=64)
    assert lightgcn.takes(trainer.model)
    assert lightgcn.plan_of(trainer.model, GraphProducts()) is None


def test_graph_recbole_leaves_it_to_recbole(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``dsl_graph: recbole``."""
    asked: list[int] = []
    plan_of = lightgcn.plan_of
    monkeypatch.setattr(lightgcn, "plan_of", lambda *given: asked.append(1) or plan_of(*given))
    for graph, wanted in (("recbole", False), ("csr", True)):
        trainer, loaders = sparse_trainer_of(
            "LightGCN", settings_of("LightGCN", data), density=0.2, width=100, graph=graph
        )
        trainer.fit(loaders[0], show_progress=False)
        assert bool(asked) is wanted


def test_not_under_autocast(data: Path) -> None:
    """Half precision is torch's."""
    trainer, _ = sparse_trainer_of("LightGCN", settings_of("LightGCN", data), density=0.2, width=65)
    assert lightgcn.plan_of(trainer.model, GraphProducts()) is not None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert lightgcn.plan_of(trainer.model, GraphProducts()) is None


def test_matrices_that_are_trained_or_dense_are_recboles(data: Path) -> None:
    """Their gradient would be lost."""
    trainer, _ = sparse_trainer_of("LightGCN", settings_of("LightGCN", data), density=0.2, width=65)
    model = trainer.model
    for other in (model.norm_adj_matrix.clone().requires_grad_(), model.norm_adj_matrix.to_dense()):
        model.norm_adj_matrix = other
        assert lightgcn.plan_of(model, GraphProducts()) is None


def test_copies_and_pickles_are_free_of_it(data: Path) -> None:
    """Made while it lasts, they compute with their own weights, then and later."""
    trainer, loaders = sparse_trainer_of("LightGCN", settings_of("LightGCN", data), density=0.2, width=100)
    with trainer._graph_products(), torch.no_grad():
        expected = torch.cat(trainer.model.forward())
        twin = copy.deepcopy(trainer.model)
        again = pickle.loads(pickle.dumps(trainer.model))
        for parameter in twin.parameters():
            parameter.zero_()
        assert not torch.cat(twin.forward()).any()
    torch.testing.assert_close(torch.cat(again.forward()), expected)
    batch = next(iter(loaders[0]))
    assert again.calculate_loss(batch) == trainer.model.calculate_loss(batch) != twin.calculate_loss(batch)


@pytest.mark.parametrize("live_per_block", [0.0, 9.0])
def test_threads_change_nothing(live_per_block: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each number is made by one of them, in the same order."""
    monkeypatch.setattr(kernels_module, "ITEMS_PER_THREAD", 1)
    monkeypatch.setattr(propagation, "LIVE_PER_BLOCK", live_per_block)
    before, found = torch.get_num_threads(), []
    matrix = compress(adjacency(50, 3, False, torch.float32).to_sparse_coo(), sort=True)
    assert matrix is not None
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            _, _, tables = packed_tables(20, 30, 70, "joint", "auto", torch.float32)
            plan = Propagation(tables, matrix, 2, "auto")
            rows = plan.rows(torch.arange(0, 50, 3))
            rows.square().sum().backward()
            found.append((rows.detach(), tables[0].group.weight.grad, plan.whole()))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*found, strict=True):
        assert one is not None and three is not None and torch.equal(one, three)
