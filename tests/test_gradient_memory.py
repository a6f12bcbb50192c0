"""The memory that gradients are lent: always zero, whoever has written into what was lent before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_dsl import compiling, sparsify
from recbole_dsl.packed.gradient import PIECE, Memory

pytestmark = pytest.mark.skipif(not compiling.numba_installed(), reason="needs numba")

ROWS, COLUMNS = 900, 64


class Tables(nn.Module):
    """Two tables, each of which may be looked up or read whole."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Embedding(ROWS, COLUMNS)
        self.two = nn.Embedding(ROWS, COLUMNS, padding_idx=3)

    def forward(self, way: str, ids: Tensor, other: Tensor) -> Tensor:
        """A loss whose gradient reaches the rows asked for, or (``whole``) all rows of a table."""
        if way == "whole":
            return self.one(ids).square().sum() + self.two.weight.square().sum()
        return (self.one(ids).sum(0) * self.two(other).sum(0)).sum() + self.one(other).sum()


def group_of(model: nn.Module) -> Any:
    """The packed group of both tables."""
    return sparsify(model, 0.5, include=["*.weight"], groups="joint").groups[0]


def expected(model: Tables, group: Any, way: str, ids: Tensor, other: Tensor) -> Tensor:
    """The gradient of the live weights by plain torch, of dense tables."""
    dense = Tables()
    for name in ("one", "two"):
        getattr(dense, name).weight.data.copy_(getattr(model, name).weight.detach())
    dense(way, ids, other).backward()
    whole = torch.cat([dense.one.weight.grad.view(-1), dense.two.weight.grad.view(-1)])
    return whole[group.live_positions()]


SPOILED: dict[str, Callable[[Tensor], Any]] = {
    "nobody writes": lambda gradient: None,
    "in place": lambda gradient: gradient.add_(1.0),
    "one number": lambda gradient: gradient[7].fill_(3.0),
    "unseen, everywhere": lambda gradient: gradient.data.add_(1.0),
    "clipped": lambda gradient: gradient.mul_(0.5),
}


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["rows", "rows", "whole"]),
            st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=40),
            st.sampled_from(sorted(SPOILED)),
            st.booleans(),
        ),
        min_size=2,
        max_size=6,
    )
)
def test_every_step_has_the_gradient_of_plain_torch(steps: list[tuple[str, list[int], str, bool]]) -> None:
    """Whatever the step before has read, and whoever has written into its gradient or kept it."""
    model = Tables()
    group = group_of(model)
    kept = []
    for way, numbers, spoiled, keep in steps:
        ids, other = torch.tensor(numbers), torch.tensor(numbers[::-1]) // 2
        group.weight.grad = None
        model(way, ids, other).backward()
        gradient = group.weight.grad
        torch.testing.assert_close(gradient, expected(model, group, way, ids, other))
        SPOILED[spoiled](gradient)
        if keep:
            kept.append((gradient, gradient.clone()))
        del gradient
    for gradient, copy in kept:
        assert torch.equal(gradient, copy)


def test_only_what_was_written_is_made_zero_again() -> None:
    """A mark that nobody is told of stays in what the rows of the last step are not; so it would be seen if
    all were made zero, and the test above would prove nothing."""
    model = Tables()
    group = group_of(model)
    ids = torch.tensor([5, 9])
    model("rows", ids, ids).backward()
    group.weight.grad.data[-1] = 7.0  # of the last row, beyond the piece that is looked at next
    assert group.budget > 2 * PIECE
    group.weight.grad = None
    model("rows", ids, ids).backward()
    assert group.weight.grad[-1] == 7.0


def test_where_processes_train_together_all_is_made_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """``all_reduce`` adds the gradients of the others' rows, and torch does not count it as a write."""
    model = Tables()
    group = group_of(model)
    ids = torch.tensor([5, 9])
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    for _ in range(2):
        group.weight.grad = None
        model("rows", ids, ids).backward()
        torch.testing.assert_close(group.weight.grad, expected(model, group, "rows", ids, ids))
        group.weight.grad.data[-1] = 7.0  # as another process's row


def test_a_pass_that_breaks_off_leaves_nothing() -> None:
    """It has not told where it wrote."""
    model = Tables()
    group = group_of(model)
    ids = torch.arange(20)
    model("rows", ids, ids).backward()
    group.weight.grad = None

    rows = model.one(ids)
    late = model.one(ids + 50)
    rows.register_hook(lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        (rows.sum() + late.sum() * 2).backward()
    group.weight.grad = None
    model("rows", ids, ids).backward()
    torch.testing.assert_close(group.weight.grad, expected(model, group, "rows", ids, ids))


def test_gradients_that_accumulate_are_not_lent_again() -> None:
    """Two passes before a step, then a step of its own."""
    model = Tables()
    group = group_of(model)
    ids = torch.arange(30)
    for _ in range(2):
        model("rows", ids, ids).backward()
    once = expected(model, group, "rows", ids, ids)
    torch.testing.assert_close(group.weight.grad, 2 * once)
    group.weight.grad = None
    model("rows", ids, ids).backward()
    torch.testing.assert_close(group.weight.grad, once)


def test_many_rows_are_not_remembered() -> None:
    """Where a table's rows are nearly all asked for, making all zero takes less time."""
    memory, like = Memory(), torch.ones(1000)
    lent = memory.lend(like)
    lent[::2] = 1.0
    memory.came_from(lent, [torch.stack([torch.arange(0, 1000, 2), torch.arange(1, 1001, 2)])])
    assert memory._spans is None
    del lent
    assert not memory.lend(like).any()
