"""The gradient of a packed group: one buffer for all lookups of a step, and the same one in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import SecondOrderError, StaleGraphError
from ..kernels import gpu_rows

if TYPE_CHECKING:
    from .group import PackedGroup


def backward_pass() -> int:
    """A number that tells backward passes apart; -1 outside of one."""
    return torch._C._current_graph_task_id()


class Memory:
    """Memory for a gradient, lent again as soon as nobody else holds it.

    A fresh allocation of some ten megabytes costs the system several times what a step does. Whoever
    keeps a gradient (``p.grad`` while gradients accumulate, a clone that shares memory) keeps it for
    himself: the next pass then gets memory of its own.
    """

    def __init__(self) -> None:
        self._storage: torch.UntypedStorage | None = None
        self._holders = 0

    def lend(self, like: Tensor) -> Tensor:
        """A tensor of zeros like ``like``."""
        size = like.numel() * like.element_size()
        storage = self._storage
        if storage is None or storage.nbytes() != size or storage.device != like.device:
            storage = torch.UntypedStorage(size, device=like.device)
            self._storage, self._holders = storage, _holders(storage)
        if self._holders < 1 or _holders(storage) != self._holders:
            return torch.zeros_like(like)
        lent = torch.empty(0, dtype=like.dtype, device=like.device)
        return lent.set_(storage, 0, like.shape, like.stride()).zero_()


def _holders(storage: torch.UntypedStorage) -> int:
    """How many tensors and others hold a storage; 0 where this torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count(storage._cdata) if count is not None else 0


class StepGradient:
    """The gradient buffer that a step's lookups share, and its place in the autograd graph."""

    def __init__(self, group: PackedGroup) -> None:
        self.group = group
        self.topology = group.column_ids._version
        self.buffer: Tensor | None = None
        self.task = -1
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the width of their gradients

    def connect(self) -> Tensor:
        """An empty tensor that lookups take as input to be connected with the values."""
        return _Connect.apply(self.group.weight, self)

    def add_to(self) -> Tensor:
        """The buffer of the running backward pass, zero at its start.

        Raises:
            StaleGraphError: the topology is not that of the forward pass any more.
        """
        if self.group.column_ids._version != self.topology:
            raise StaleGraphError(
                f"backward through sparse group {self.group.name!r} after its topology was updated; "
                "allowed is a backward pass before the optimizer step that follows its forward pass."
            )
        task = backward_pass()
        # Another task means the last pass broke off before it reached the values.
        if self.buffer is None or self.task != task:
            self.buffer, self._rows = None, {}
            self.buffer, self.task = self.group.gradient_memory.lend(self.group.weight), task
        return self.buffer

    def add_rows_later(self, lines: Tensor, gradient: Tensor) -> None:
        """On a GPU, the gradients of looked-up rows are added together, which takes fewer launches.

        Arguments as in :func:`recbole_dsl.kernels.rows_on_gpu.add_rows`.
        """
        gradient = gradient.to(self.add_to().dtype)
        self._rows.setdefault(gradient.shape[1], []).append((lines, gradient))

    def take(self) -> Tensor | None:
        """The finished gradient of the values; None if no lookup was reached."""
        if self.task != backward_pass():  # of a pass that broke off
            self.buffer, self._rows = None, {}
        buffer, self.buffer = self.buffer, None
        rows, self._rows = self._rows, {}
        for looked_up in rows.values():
            assert buffer is not None
            index = self.group.row_pointers, self.group.column_ids
            gpu_rows().add_rows(buffer, *index, *zip(*looked_up, strict=True))
        self.group.end_step()
        return buffer


class _Connect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, step: StepGradient) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.step = step
        return values.new_empty(0)

    @staticmethod
    def backward(ctx: Any, _: Tensor | None) -> tuple[Tensor | None, None]:
        if torch.is_grad_enabled():  # create_graph=True, whose graph would end here without a word
            raise SecondOrderError(
                f"sparse group {ctx.step.group.name!r} has no second-order gradients of its packed "
                "weights; allowed are create_graph=True with respect to looked-up rows, and "
                "dsl_storage='masked'."
            )
        return ctx.step.take(), None
