"""The gradient of a packed group: one buffer for all lookups of a step, and the same one in every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import SecondOrderError, StaleGraphError
from ..kernels import gpu_rows, rows
from ..sparsity.scores import Landing
from .lookup import add_rows

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

    Nor is all of it made zero again if the last pass has told where it wrote (:meth:`came_from`) and torch,
    which counts writes, has seen none since. It does not see those through ``.data`` or a numpy array: one to
    the whole gradient is found in a piece that is looked at, another one each time; one to a few rows is not,
    unless it writes zeros. Nor does it see what processes add, so where there are several all is made zero.
    """

    def __init__(self) -> None:
        self._kept: Tensor | None = None  # shares memory and count of writes with all that was lent
        self._holders = 0
        self._spans: list[Tensor] | None = None
        self._writes = 0
        self._piece = 0

    def lend(self, like: Tensor) -> Tensor:
        """A tensor of zeros like ``like``."""
        if _holders(like) < 1:
            return torch.zeros_like(like)
        kept = self._kept
        if kept is None or (kept.shape, kept.dtype, kept.device) != (like.shape, like.dtype, like.device):
            kept = torch.empty_like(like, requires_grad=False)
            self._kept, self._spans, self._holders = kept, None, _holders(kept)
        if _holders(kept) != self._holders:
            return torch.zeros_like(like)
        spans, self._spans = self._spans, None
        if spans is None or kept._version != self._writes or _averaged():
            kept.zero_()
        else:
            for part in spans:
                rows.clear_spans(kept, part)
            if self._next_piece(kept).any():
                kept.zero_()
        return kept.detach()

    def came_from(self, gradient: Tensor, spans: list[Tensor]) -> None:
        """A pass has written into the ``gradient`` that was lent for it nowhere but in ``spans``.

        Each (2, n) int64: where pieces start and where they end.
        """
        many = sum(part.shape[1] for part in spans)
        if self._kept is not None and gradient.data_ptr() == self._kept.data_ptr():
            few = many * SPAN <= gradient.numel()
            self._spans, self._writes = spans if few else None, self._kept._version

    def _next_piece(self, kept: Tensor) -> Tensor:
        """A piece of what was lent, another one each time."""
        self._piece = self._piece + PIECE if self._piece + PIECE < kept.numel() else 0
        return kept[self._piece : self._piece + PIECE]


PIECE: Final = 2**12
"""Numbers of a gradient that are looked at in a step."""

SPAN: Final = 2**8
"""Numbers that are made zero one after the other in the time that a span of a few takes."""


def _averaged() -> bool:
    """Whether there are processes that may add their gradients, unseen, to this one's (``all_reduce``)."""
    return dist.is_available() and dist.is_initialized()


def _holders(tensor: Tensor) -> int:
    """How many tensors and others hold a tensor's memory; 0 where this torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count(tensor.untyped_storage()._cdata) if count is not None else 0


class StepGradient:
    """The gradient buffer that a step's lookups share, and its place in the autograd graph."""

    def __init__(self, group: PackedGroup) -> None:
        self.group = group
        self.topology = group.column_ids, group.column_ids._version
        self.buffer: Tensor | None = None
        self.task = -1
        self._spans: list[Tensor] | None = []  # where lookups have written, None for anywhere
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}  # by the width of their gradients
        self._scored: list[tuple[int, Tensor]] = []

    def connect(self) -> Tensor:
        """An empty tensor that lookups take as input to be connected with the values."""
        return _Connect.apply(self.group.weight, self)

    def add_to(self) -> Tensor:
        """The buffer of the running backward pass, zero at its start.

        Raises:
            StaleGraphError: the topology is not that of the forward pass any more.
        """
        buffer = self._of_pass()
        self._spans = None
        return buffer

    def add_rows(self, tensor: int, ids: Tensor, gradient: Tensor, padding_idx: int | None) -> None:
        """Add the gradient (n × columns) of looked-up rows; raises as :meth:`add_to`."""
        spans = add_rows(self.group, tensor, ids, gradient, padding_idx, self._of_pass())
        if self._spans is not None and spans is not None:
            self._spans.append(spans)
        else:
            self._spans = None

    def _of_pass(self) -> Tensor:
        of_forward, writes = self.topology
        if self.group.column_ids is not of_forward or of_forward._version != writes:
            raise StaleGraphError(
                f"backward through sparse group {self.group.name!r} after its topology was updated; "
                "allowed is a backward pass before the optimizer step that follows its forward pass."
            )
        task = backward_pass()
        # Another task means the last pass broke off before it reached the values.
        if self.buffer is None or self.task != task:
            self.buffer, self._rows, self._scored, self._spans = None, {}, [], []
            self.buffer, self.task = self.group.gradient_memory.lend(self.group.weight), task
        return self.buffer

    def add_rows_later(self, lines: Tensor, gradient: Tensor) -> None:
        """On a GPU, the gradients of looked-up rows are added together, which takes fewer launches.

        Arguments as in :func:`recbole_dsl.kernels.rows_on_gpu.add_rows`.
        """
        gradient = gradient.to(self.add_to().dtype)
        self._rows.setdefault(gradient.shape[1], []).append((lines, gradient))

    def collect_dense(self, tensor: int, gradient: Tensor) -> None:
        """Hand the gradient of a whole tensor to the growth scores if the pass ends at the values.

        Nobody else may have it. A pass that asks for the gradient of a Linear's input alone gets here, too, and
        is not to count.
        """
        self._scored.append((tensor, gradient))

    def take(self) -> Tensor | None:
        """The finished gradient of the values; None if no lookup was reached."""
        if self.task != backward_pass():  # of a pass that broke off
            self.buffer, self._rows, self._scored = None, {}, []
        buffer, self.buffer = self.buffer, None
        later, self._rows = self._rows, {}
        scored, self._scored = self._scored, []
        for tensor, gradient in scored:
            self.group.collect_dense(tensor, gradient, is_own=True)
        for looked_up in later.values():
            assert buffer is not None
            index = self.group.row_pointers, self.group.column_ids
            gpu_rows().add_rows(buffer, *index, *zip(*looked_up, strict=True))
        if buffer is not None and self._spans is not None:
            self.group.gradient_memory.came_from(buffer, self._spans)
        if self.group.growth_scores is not None:
            before, spans = self.group.weight.grad, self._spans
            self.group.growth_scores.land(lambda: Landing.of(before, buffer, spans))
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
