"""RecBole's LightGCN with wide packed tables: a step propagates what its batch needs, some columns at a time.

RecBole propagates both tables whole, with all their columns, and keeps every layer for the backward pass
(lightgcn.py:147). That takes time and memory in proportion to the columns, though most of what is propagated
first is zero, and most of what comes out is not looked at. While :func:`by_columns` holds, the model's
``forward`` is :mod:`recbole_dsl.packed.propagation` instead; results are the same but for the order of
summation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from recbole.model.general_recommender.lightgcn import LightGCN
from torch import Tensor

from ..graph import GraphProducts
from ..packed.layers import SLOTS
from ..packed.propagation import COLUMNS_PER_BLOCK, Propagation, Table

METHODS = ("forward", "calculate_loss", "get_ego_embeddings")
"""What must be RecBole's own."""

EMBEDDINGS = ("user_embedding", "item_embedding")


class Rows:
    """Propagated rows of a batch, by the ids of users or of items.

    Args:
        rows: (n, columns).
        places: for every user and item, where its row is, or -1.
        offset: of the first user or item among them.
    """

    def __init__(self, rows: Tensor, places: Tensor, offset: int) -> None:
        self.rows, self.places, self.offset = rows, places, offset

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.rows.index_select(0, self.places.index_select(0, ids.reshape(-1) + self.offset))


class TakenOver:
    """In the place of a model's method; a copy of the model, or a pickled one, has the method of its class."""

    def __init__(self, model: Any, name: str, call: Callable[..., Any]) -> None:
        self.model, self.name, self.call = model, name, call

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _own_method(memo.get(id(self.model), self.model), self.name)

    def __reduce__(self) -> Any:
        return _own_method, (self.model, self.name)


def _own_method(model: Any, name: str) -> Any:
    return getattr(type(model), name).__get__(model)


@contextlib.contextmanager
def by_columns(model: Any, graph: GraphProducts) -> Iterator[None]:
    """While it lasts, a LightGCN with packed tables propagates them by columns; other models are left alone."""
    if not takes(model):
        yield
        return
    plain_loss, plain_forward = model.calculate_loss, model.forward
    batch: list[Tensor] = []

    def calculate_loss(interaction: Any) -> Any:
        users, items = interaction[model.USER_ID], [interaction[f] for f in (model.ITEM_ID, model.NEG_ITEM_ID)]
        batch.append(torch.cat([users, *(some + model.n_users for some in items)]).long())
        try:
            return plain_loss(interaction)
        finally:
            batch.pop()

    def forward() -> tuple[Any, Any]:
        plan = plan_of(model, graph)
        if plan is None or torch.is_grad_enabled() != bool(batch):
            return plain_forward()
        if not batch:
            users, items = torch.split(plan.whole(), [model.n_users, model.n_items])
            return users, items
        ids = torch.unique(batch[-1])
        places = torch.full((plan.nodes,), -1, device=ids.device)
        places[ids] = torch.arange(ids.numel(), device=ids.device)
        rows = plan.rows(ids)
        return Rows(rows, places, 0), Rows(rows, places, model.n_users)

    model.calculate_loss = TakenOver(model, "calculate_loss", calculate_loss)
    model.forward = TakenOver(model, "forward", forward)
    try:
        yield
    finally:
        del model.calculate_loss, model.forward


def takes(model: Any) -> bool:
    """Whether it is RecBole's LightGCN, or computes as that does, with packed tables of which some is dead."""
    if not isinstance(model, LightGCN) or any(
        getattr(type(model), name) is not getattr(LightGCN, name) or name in vars(model) for name in METHODS
    ):
        return False
    slots = [getattr(model, name).__dict__.get(SLOTS, {}).get("weight") for name in EMBEDDINGS]
    return all(slot is not None and not slot[0].is_full for slot in slots) and model.n_layers > 0


def plan_of(model: Any, graph: GraphProducts) -> Propagation | None:
    """How the model propagates; None where RecBole's way is as good or the only one.

    That is for tables of a single block of columns, for a matrix that is trained or not sparse, under autocast
    and under torch.compile. On a GPU nobody has measured this way.
    """
    adjacency = model.norm_adj_matrix
    plain = adjacency.layout in (torch.sparse_coo, torch.sparse_csr) and not adjacency.requires_grad
    if not plain or adjacency.is_inference() or adjacency.device.type != "cpu":
        return None
    if torch.compiler.is_compiling() or torch.is_autocast_enabled(adjacency.device.type):
        return None
    (users, first), (items, second) = (getattr(model, name).__dict__[SLOTS]["weight"] for name in EMBEDDINGS)
    narrow = users.slices[first].cols <= COLUMNS_PER_BLOCK
    if narrow or adjacency.dtype != users.dtype or adjacency.dtype != items.dtype:
        return None
    matrix = graph.matrix(adjacency, at_once=True)
    assert matrix is not None
    tables = [Table(users, first, 0), Table(items, second, model.n_users)]
    return Propagation(tables, matrix, model.n_layers, graph.kernels)
