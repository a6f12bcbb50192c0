"""Growth scores: sums of dense gradients over one growth window, for all rows or a sample of them.

A group is a list of 2-D tensors (rows × columns); its flat *positions* number the entries of the
first tensor row by row, then those of the second, and so on. Scores exist for *slots*: all positions,
or those of a sample of rows when a share of them is asked for or a memory bound does not allow all.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ..kernels.dense_rows import add_dense_rows
from .budget import scored_row_counts
from .sampling import random_subset


@dataclass(frozen=True)
class SlotBlock:
    """Slots ``first`` … ``last`` - 1: those of some ``rows`` (int64, ascending) of one tensor."""

    tensor: int
    rows: Tensor
    first: int
    last: int


class PositionMap:
    """Between flat positions of a group and slots of its scored rows.

    Args:
        shapes: (rows, columns) of each tensor of the group.
        rows: per tensor the scored row numbers (int64, ascending), or None for all rows.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        rows: Sequence[Tensor] | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.shapes = list(shapes)
        self.device = device
        self.rows = list(rows) if rows is not None else None
        self.row_slots: list[Tensor] | None = None
        if self.rows is not None:
            self.row_slots = []
            for (n_rows, _), chosen in zip(self.shapes, self.rows, strict=True):
                slots = torch.full((n_rows,), -1, dtype=torch.int32, device=device)
                slots[chosen] = torch.arange(chosen.numel(), dtype=torch.int32, device=device)
                self.row_slots.append(slots)
        scored = [
            n_rows if self.rows is None else self.rows[t].numel() for t, (n_rows, _) in enumerate(self.shapes)
        ]
        self.slot_starts = [0]
        self.position_starts = [0]
        for (n_rows, cols), n_scored in zip(self.shapes, scored, strict=True):
            self.slot_starts.append(self.slot_starts[-1] + n_scored * cols)
            self.position_starts.append(self.position_starts[-1] + n_rows * cols)

    @property
    def count(self) -> int:
        """Number of slots."""
        return self.slot_starts[-1]

    def blocks(self, size: int) -> Iterator[SlotBlock]:
        """All slots, ascending, in blocks of whole rows: about ``size`` slots, at least a row."""
        for t, (n_rows, cols) in enumerate(self.shapes):
            step = max(1, size // max(1, cols))
            scored = n_rows if self.rows is None else self.rows[t].numel()
            for first in range(0, scored, step):
                last = min(first + step, scored)
                rows = (
                    torch.arange(first, last, device=self.device)
                    if self.rows is None
                    else self.rows[t][first:last]
                )
                start = self.slot_starts[t]
                yield SlotBlock(t, rows, start + first * cols, start + last * cols)

    def positions(self, slots: Tensor) -> Tensor:
        """Position of each slot (int64); ascending slots give ascending positions."""
        if self.rows is None:
            return slots
        parts = []
        for t, (_, cols) in enumerate(self.shapes):
            low, high = self.slot_starts[t], self.slot_starts[t + 1]
            local = slots[(slots >= low) & (slots < high)] - low
            row = self.rows[t][local // cols]
            parts.append(self.position_starts[t] + row * cols + local % cols)
        return torch.cat(parts)

    def tensor(self, slot: int) -> int:
        """Number of the tensor that a slot is of."""
        return bisect_right(self.slot_starts, slot, hi=len(self.shapes)) - 1

    def columns(self, slot: int) -> int:
        """Columns of the tensor that a slot is of."""
        return self.shapes[self.tensor(slot)][1]

    @property
    def bytes(self) -> int:
        """Bytes of the row sample and its inverse."""
        tensors = [*(self.rows or []), *(self.row_slots or [])]
        return sum(t.numel() * t.element_size() for t in tensors)


SMALL_TABLE: Final = 2**22
"""Rows up to which a random order of all of them is drawn to sample some."""


def sample_rows(
    shapes: Sequence[tuple[int, int]],
    element_size: int,
    memory: int | None,
    generator: torch.Generator,
    device: torch.device,
    share: float = 1.0,
) -> PositionMap:
    """A uniform sample of each tensor's rows, or all of them, as :func:`scored_row_counts` says.

    Draws only from ``generator``.

    Raises:
        ConfigError: not even one row of each tensor fits.
    """
    counts = scored_row_counts(shapes, element_size, memory, share)
    if counts is None:
        return PositionMap(shapes, device=device)
    rows = [_sample(n, count, generator).to(device) for (n, _), count in zip(shapes, counts, strict=True)]
    return PositionMap(shapes, rows, device=device)


def _sample(n: int, count: int, generator: torch.Generator) -> Tensor:
    if n > SMALL_TABLE:  # whose order would take more memory than its scores may
        return random_subset(n, count, generator)
    return torch.randperm(n, generator=generator)[:count].sort().values


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which gradients of weights of type ``dtype`` are summed: at least float32."""
    return torch.promote_types(dtype, torch.float32)


@dataclass(frozen=True)
class _Contribution:
    """A gradient of one backward pass: of all scored rows, or (``slots``) of some.

    ``first``: the first of its columns, where it is of some. ``is_sum``: of several passes, in a
    tensor that nobody else has.
    """

    tensor: int
    gradient: Tensor
    slots: Tensor | None
    first: int = 0
    is_sum: bool = False


def _writes_after(gradient: Tensor | None, arriving: Tensor | None) -> int:
    """How many writes torch will have counted of a gradient when ``arriving`` has been added to it."""
    if arriving is None:
        return gradient._version if gradient is not None else 0
    return gradient._version + 1 if gradient is not None else arriving._version  # or becomes it itself


LOOKS: Final = 64
"""Numbers of a gradient that are looked at before all of it is."""


def _places(gradient: Tensor, spans: Sequence[Tensor] | None) -> Tensor:
    """A few places of a gradient, int64, of those that were written to if ``spans`` (2, n) tell of them."""
    written = next((part[0, :LOOKS] for part in spans or () if part.shape[1]), None)
    places = torch.arange(LOOKS) if written is None else written
    return places[places < gradient.numel()]


def _any_at(gradient: Tensor, places: Tensor) -> Tensor:
    """Whether a gradient is other than zero at one of some places."""
    return (gradient.reshape(-1)[places] != 0).any()


def _any(gradient: Tensor) -> Tensor:
    """Whether a gradient is other than zero somewhere; on a CPU ``any`` takes several times as long."""
    if gradient.device.type != "cpu" or not gradient.numel():
        return gradient.any()
    low, high = torch.aminmax(gradient)
    return (low != 0) | (high != 0)


@dataclass(frozen=True)
class Landing:
    """A gradient after a backward pass: torch's count of its ``writes``, and whether it was not all zeros.

    ``places``: some, int64, at one of which it was not, if they are known.
    """

    writes: int = 0
    other_than_zero: Tensor | None = None
    places: Tensor | None = None

    @classmethod
    def of(
        cls, gradient: Tensor | None, arriving: Tensor | None, spans: Sequence[Tensor] | None = None
    ) -> Landing:
        """That of ``gradient`` once ``arriving``, zero but in ``spans``, has been added to it."""
        writes, parts = _writes_after(gradient, arriving), []
        for part in (part for part in (arriving, gradient) if part is not None):
            if part.device.type == "cpu":
                places = _places(part, spans)
                if bool(found := _any_at(part, places)):
                    return cls(writes, found, places)
            parts.append(_any(part))
        return cls(writes, torch.stack(parts).any() if parts else None)

    def is_cleared(self, gradient: Tensor | None) -> bool:
        """Whether ``zero_grad`` has been called since, in either of its ways; ``gradient``: that of now.

        One of zeros tells nothing if it was that before: the gradient of live weights may be zero where that of
        dead ones is not, and clipping writes to it, too.
        """
        if gradient is None:
            return True
        if gradient._version == self.writes or self.other_than_zero is None:
            return False
        if self.places is not None and bool(_any_at(gradient, self.places)):
            return False
        return bool(self.other_than_zero) and not bool(_any(gradient))


class GrowthScores:
    """Gradient sums over a growth window.

    Backward passes hand their gradients in with :meth:`add_rows` and :meth:`add_dense`; they count
    once the optimizer has really made its step (:meth:`commit`). A step that a gradient scaler skips,
    or a pass whose gradients were thrown away, is forgotten (:meth:`discard`, :meth:`discard_landed`).
    """

    def __init__(
        self, where: PositionMap, dtype: torch.dtype, device: torch.device, kernels: str = "auto"
    ) -> None:
        self.where, self.kernels = where, kernels
        self.sums = torch.zeros(where.count, dtype=score_dtype(dtype), device=device)
        self._pending: list[_Contribution] = []
        self._landed = 0  # so many of them, the first, are in the weights' gradient
        self._landing = Landing()  # that gradient, then

    def _table(self, tensor: int) -> Tensor:
        cols = self.where.shapes[tensor][1]
        low, high = self.where.slot_starts[tensor], self.where.slot_starts[tensor + 1]
        return self.sums[low:high].view(-1, cols)

    def add_dense(self, tensor: int, gradient: Tensor, is_own: bool = False) -> None:
        """Hand in the gradient of a whole tensor, any shape with its number of elements.

        It is held until the step, so a copy is made unless ``is_own`` says that nobody else writes to it: what
        autograd hands out may become the gradient of another parameter, too, and be clipped.
        """
        self.add_columns(tensor, 0, gradient.reshape(self.where.shapes[tensor]), is_own)

    def add_columns(self, tensor: int, first: int, gradient: Tensor, is_own: bool = False) -> None:
        """Hand in the gradient of some columns of a tensor (rows × some), from ``first`` on.

        Of several passes before a step one sum is held, not one gradient of each. ``is_own``: as above.
        """
        gradient = gradient.detach()
        if self.where.rows is not None:
            gradient, is_own = gradient[self.where.rows[tensor]], True
        for place, part in enumerate(self._pending):
            same = (part.tensor, part.first, part.gradient.shape) == (tensor, first, gradient.shape)
            if part.slots is None and same:
                total = part.gradient.to(self.sums.dtype) + gradient
                self._pending[place] = _Contribution(tensor, total, None, first, is_sum=True)
                return
        self._pending.append(_Contribution(tensor, gradient if is_own else gradient.clone(), None, first))

    def add_rows(self, tensor: int, ids: Tensor, gradient: Tensor) -> None:
        """Hand in gradients (n × columns) of the rows ``ids`` (n,), which may repeat; copies are held."""
        gradient = gradient.detach()
        if self.where.row_slots is not None:
            ids = self.where.row_slots[tensor][ids].long()
            scored = ids >= 0
            ids, gradient = ids[scored], gradient[scored]
        else:
            ids, gradient = ids.clone(), gradient.clone()
        self._pending.append(_Contribution(tensor, gradient, ids))

    def commit(self, scale: Tensor | float | None = None) -> None:
        """Add what was handed in for the step that was made; ``scale``: of its loss, None for 1."""
        for part in self._pending:
            gradient = part.gradient.to(self.sums.dtype)
            if scale is not None:
                gradient = gradient / scale
            if part.slots is None:
                columns = slice(part.first, part.first + gradient.shape[1])
                self._table(part.tensor)[:, columns].add_(gradient)
            else:
                add_dense_rows(self.kernels, self._table(part.tensor), part.slots, gradient)
        self._pending, self._landed = [], 0

    def discard(self, tensor: int | None = None) -> None:
        """Forget what was handed in since the last step, for one tensor or (None) for all."""
        self._pending, self._landed = [p for p in self._pending if tensor not in (None, p.tensor)], 0

    def land(self, landing: Callable[[], Landing]) -> None:
        """Everything handed in so far reaches the weights' gradient, which is as ``landing`` says then."""
        if self._landed:
            self._add_up_rows()
        self._landed = len(self._pending)
        if self._landed:
            self._landing = landing()

    def _add_up_rows(self) -> None:
        """Of tensors of which several passes have looked up more rows than are scored, hold one sum instead."""
        for tensor in range(len(self.where.shapes)):
            table = self._table(tensor)
            of_tensor = [part for part in self._pending if part.tensor == tensor]
            looked_up = [part for part in of_tensor if part.slots is not None]
            sums = [part.gradient for part in of_tensor if part.is_sum and part.gradient.shape == table.shape]
            if not sums and sum(len(part.gradient) for part in looked_up) <= len(table):
                continue
            total = sums[0] if sums else torch.zeros_like(table)
            for part in looked_up:
                assert part.slots is not None
                add_dense_rows(self.kernels, total, part.slots, part.gradient.to(total.dtype))
            self._pending = [p for p in self._pending if p.tensor != tensor or p.slots is None]
            if not sums:
                self._pending.append(_Contribution(tensor, total, None, is_sum=True))

    def discard_landed(self, gradient: Tensor | None) -> None:
        """Forget what had reached a gradient that is gone: ``gradient``, that of now, is None or was made zero.

        What a pass hands in that has begun but not reached the weights (around a checkpoint's) stays.
        """
        if self._landed and self._landing.is_cleared(gradient):
            self._pending, self._landed = self._pending[self._landed :], 0

    def holds(self, tensor: int) -> bool:
        """Whether anything was handed in for a tensor since the last step."""
        return any(part.tensor == tensor for part in self._pending)

    def move_to(self, where: PositionMap) -> None:
        """Make these the sums of another sample of as many rows; those not scored before start at zero.

        In place, beside a copy of what stays of one tensor.
        """
        assert where.rows is not None and self.where.row_slots is not None
        for tensor, rows in enumerate(where.rows):
            old = self.where.row_slots[tensor][rows].long()
            stays = (old >= 0).nonzero().flatten()
            table = self._table(tensor)
            kept = table[old[stays]]
            table.zero_()[stays] = kept
        self.where = where

    def column_norms(self) -> list[Tensor]:
        """Of each tensor the norms of its columns, over the scored rows."""
        return [torch.linalg.vector_norm(self._table(t), dim=0) for t in range(len(self.where.shapes))]

    @property
    def bytes(self) -> int:
        """Bytes held between steps: the sums and the row sample."""
        return self.sums.numel() * self.sums.element_size() + self.where.bytes
