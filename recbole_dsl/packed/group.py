"""A packed group: the live weights of one or more tensors and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import compiled, on_gpu
from ..sparsity.rows import LiveRows
from ..sparsity.scores import GrowthScores
from ..sparsity.selection import BITS
from ..sparsity.update import UpdatePlan
from .gradient import Memory, StepGradient, backward_pass
from .index import Moved, build_index, is_index, rebuild, row_numbers, slices_of
from .lookup import Materialise, RowLookup
from .moments import estimate_moments
from .optimizer_state import LoadFollower, check_optimizer, move_state, second_moments


class PackedGroup(nn.Module):
    """Tensors that share one budget, stored as one flat parameter plus a compact index.

    State: ``weight`` (budget,) trainable, also available as :attr:`values`; ``row_pointers``
    (rows + 1,) int32 (int64 from 2^31 weights on); ``column_ids`` (budget,) of the smallest integer
    type. Rows of all tensors follow each other, so a tensor is a slice. The parameter is called
    ``weight`` because RecBole models regularise parameters whose name ends in ``weight``.

    Args:
        name: the group's name.
        names, shapes: of the dense tensors, in order.
        live: flat positions, int64, ascending; their number is the budget, for ever.
        values: initial values of the live weights, of a floating-point type.
    """

    storage = "packed"
    is_sparse_group = True

    def __init__(
        self,
        name: str,
        names: Sequence[str],
        shapes: Sequence[Sequence[int]],
        live: Tensor,
        values: Tensor,
    ) -> None:
        super().__init__()
        self.name = name
        self.kernels = "auto"  # dsl_kernels
        self.products = "fastest"  # or "dense", which counters of operations understand
        self.slices = slices_of(names, shapes)
        self.weight = nn.Parameter(values.detach().clone())
        self.is_full = values.numel() == sum(s.rows * s.cols for s in self.slices)
        row_pointers, column_ids = build_index(live, self.slices)
        self.row_pointers: Tensor
        self.column_ids: Tensor
        self.register_buffer("row_pointers", row_pointers)
        self.register_buffer("column_ids", column_ids)
        self._reset_transient()

    def _reset_transient(self) -> None:
        self.growth_scores: GrowthScores | None = None
        self.collects = False
        self._step: tuple[Any, StepGradient, Tensor] | None = None
        self._pass = -1  # the last backward pass that handed in to the growth scores
        self._dense: dict[int, tuple[Any, int, Tensor]] = {}
        self.peers: list[PackedGroup] = []
        self._asked: set[int] = set()
        self._asked_last: set[int] = set()
        self._read_in_vain: set[int] = set()
        self.gradient_memory = Memory()
        self._loads = LoadFollower()

    # --- what an explorer asks -------------------------------------------------------------------

    @property
    def values(self) -> nn.Parameter:
        """The live weights, (budget,)."""
        return self.weight

    @property
    def budget(self) -> int:
        """Number of live weights."""
        return self.weight.numel()

    @property
    def table_shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each tensor."""
        return [(s.rows, s.cols) for s in self.slices]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.weight.dtype

    def trained_parameters(self) -> list[nn.Parameter]:
        """The single flat parameter."""
        return [self.weight]

    def live_positions(self) -> Tensor:
        """Flat positions of the live weights, int64, ascending."""
        return self.live_rows().positions()

    def live_rows(self) -> LiveRows:
        """The index of the live weights itself, which changes with the topology."""
        return LiveRows(self.table_shapes, self.row_pointers, self.column_ids, self.kernels)

    def live_values(self) -> Tensor:
        """The live weights in the order of :meth:`live_positions`."""
        return self.weight.detach()

    def live_gradients(self) -> Tensor | None:
        """Gradient of the live weights in the same order, None before any backward pass."""
        return self.weight.grad

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise UnsupportedOptimizerError if its per-weight state is not understood."""
        check_optimizer(optimizer)

    def discard_cleared(self) -> None:
        """Forget growth scores of passes whose gradients ``zero_grad`` has thrown away."""
        if self.growth_scores is not None:
            self.growth_scores.discard_landed(self.weight.grad)

    def after_step(self) -> None:
        """Forget dense copies made between backward pass and step: fused optimizers move no version counter."""
        self.clear_caches()

    def follow_loads(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the optimizer's per-weight state follow its positions when another topology is loaded."""
        self._loads.follow(optimizer, self.trained_parameters, self._move_to_loaded)

    def follow_no_loads(self) -> None:
        """Nobody tells of the optimizer's steps any more."""
        self._loads.stop()

    @torch.no_grad()
    def _move_to_loaded(self, optimizer: torch.optim.Optimizer, replaced: tuple[Tensor, Tensor]) -> None:
        before = LiveRows(self.table_shapes, *replaced, self.kernels).positions()
        now = self.live_positions()
        place = torch.searchsorted(before, now).clamp_(max=before.numel() - 1)
        lived = before[place] == now

        def follow(state: Tensor, birth: float) -> None:
            state.copy_(torch.where(lived, state[place], torch.full_like(state, birth)))

        move_state(optimizer, self.weight, follow)

    @torch.no_grad()
    def apply_update(self, plan: UpdatePlan, optimizer: torch.optim.Optimizer) -> None:
        """Rebuild the topology; values and optimizer state follow, new positions start afresh.

        In place and block by block: an update takes no second copy of anything.
        """
        self.weight.grad = None
        self.gradient_memory = Memory()  # which would be held beside what moves
        self.clear_caches()
        moved: list[Moved] = [(self.weight, 0.0)]
        move_state(optimizer, self.weight, lambda state, birth: moved.append((state, birth)))
        index = (self.slices, self.row_pointers, self.column_ids)
        rebuild(*index, plan.leaving, plan.arriving, moved, self.kernels)

    def estimate_moments(self, arriving: Tensor, optimizer: torch.optim.Optimizer, share: float) -> None:
        """Give grown weights a ``share`` of the second moments around them; see :mod:`.moments`."""
        for moments in second_moments(optimizer, self.weight).values():
            estimate_moments(moments, self.live_rows(), arriving, share)

    # --- what the layers ask ---------------------------------------------------------------------

    def compiled(self, *tensors: Tensor) -> bool:
        """Whether compiled loops take the group's values and index, and ``tensors`` beside them."""
        return compiled(self.kernels, self.weight, self.row_pointers, self.column_ids, *tensors)

    def on_gpu(self, *tensors: Tensor) -> bool:
        """Whether Triton kernels take the group's values and index, and ``tensors`` beside them."""
        return on_gpu(self.kernels, self.weight, self.row_pointers, self.column_ids, *tensors)

    def span(self, tensor: int) -> slice:
        """The slice of :attr:`values` that belongs to a tensor."""
        s = self.slices[tensor]
        return slice(int(self.row_pointers[s.first_row]), int(self.row_pointers[s.first_row + s.rows]))

    def flat_positions(self, tensor: int) -> Tensor:
        """Positions of a tensor's live weights within the tensor, int64, ascending."""
        s = self.slices[tensor]
        rows = row_numbers(self.row_pointers, s.first_row, s.first_row + s.rows)
        return rows.mul_(s.cols).add_(self.column_ids[self.span(tensor)])

    def rows(self, tensor: int, ids: Tensor, padding_idx: int | None = None) -> Tensor:
        """The asked rows, dense: shape (*ids.shape, columns). Only their live weights are read.

        ``padding_idx``: a row whose gradient is dropped, as in ``nn.Embedding``.
        """
        cached = None if torch.is_grad_enabled() else self._cached(tensor)
        if cached is not None:  # with a gradient, the backward pass would fill a whole table
            return nn.functional.embedding(ids, cached)
        flat = ids.reshape(-1).contiguous()  # a column of a batch stays strided when it is reshaped
        out = RowLookup.apply(self._token(), self, tensor, flat, padding_idx)
        return out.view(*ids.shape, self.slices[tensor].cols)

    def dense(self, tensor: int) -> Tensor:
        """A whole tensor, dense, in its own shape; differentiable, and the same object within a step.

        The copy is kept until the backward pass that used it, or in evaluation mode until the
        weights, the topology or the mode change. Where nobody tells of steps, which a fused optimizer makes
        unseen, a copy is looked at as in evaluation while there is a gradient to step with.
        """
        with_gradient = torch.is_grad_enabled()
        if with_gradient:
            self._asked.add(tensor)
        if (cached := self._cached(tensor)) is not None:
            return cached
        tensors = self._read_together(tensor) if with_gradient and self.training else [(self, tensor)]
        tokens = [group._token() for group, _ in tensors]
        made = dict(zip(tensors, Materialise.apply(tensors, *tokens), strict=True))
        for (group, number), dense in made.items():
            if with_gradient or not group.training:
                group._dense[number] = (group._dense_key(), _written(dense), dense)
        return made[self, tensor]

    def _read_together(self, tensor: int) -> list[tuple[PackedGroup, int]]:
        """On a GPU, the small tensors of the model that the last step has read whole are read in one launch.

        Not those that a step did not ask for although they were read: losses may take turns.
        """
        alone = [(self, tensor)]
        if self.is_full or not self._is_small(tensor) or not self.on_gpu():
            return alone
        alike = self.weight.requires_grad, self.device
        others = [
            (peer, number)
            for peer in self.peers or [self]
            if peer.training and not peer.is_full and (peer.weight.requires_grad, peer.device) == alike
            for number in sorted(peer._asked_last - peer._read_in_vain)
            if peer._is_small(number) and (peer, number) not in alone and peer._cached(number) is None
        ]
        return alone + others

    def _is_small(self, tensor: int) -> bool:
        return self.slices[tensor].rows * self.slices[tensor].cols <= READ_TOGETHER

    def end_step(self) -> None:
        """The gradients have arrived: forget dense copies, and remember which were asked for."""
        self._read_in_vain |= set(self._dense) - self._asked
        self._asked_last, self._asked = self._asked, set()
        self.clear_caches()

    def clear_caches(self) -> None:
        """Forget dense copies and the graph of the current step."""
        self._step = None
        self._dense = {}

    def train(self, mode: bool = True) -> PackedGroup:
        """Switch between training and evaluation; dense copies do not survive the switch."""
        self.clear_caches()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> PackedGroup:
        """``.to()``, ``.double()`` and the like replace the tensors, so dense copies are stale."""
        self.clear_caches()
        return super()._apply(fn, recurse)

    def _key(self) -> tuple:
        """Changes with the grad mode, when the group is frozen, and when values or topology are written."""
        weight = self.weight
        counters = (-1, -1) if weight.is_inference() else (weight._version, self.column_ids._version)
        return (*_modes(), *counters, weight.data_ptr(), weight.requires_grad)

    def _dense_key(self) -> tuple:
        """Also writes change it that move no version counter, where they may come before a copy is asked for.

        In evaluation mode, where copies live long, those through ``.data``, and where nobody tells of steps
        those of a fused optimizer: they move the sum over the values' bits, unless they only change places.
        What is computed again in a backward pass (checkpoints) has a copy of its own, as of the step's node.
        """
        is_told = self._loads.has_optimizer or self.weight.grad is None
        bits = None
        if not (self.training and is_told):
            bits = int(self.weight.detach().view(BITS[self.weight.itemsize]).sum())
        return (*self._key(), bits, backward_pass())

    def _cached(self, tensor: int) -> Tensor | None:
        found = self._dense.get(tensor)
        if found is None:
            return None
        key, written, dense = found
        if key[: len(_modes())] != _modes():
            return None  # a look without a gradient, after which the step goes on
        if key != self._dense_key() or written != _written(dense):
            del self._dense[tensor]
            return None
        return dense

    def is_dense_copy(self, tensor: int, dense: Tensor) -> bool:
        """Whether a dense copy that was made before is what the weights are now, and would be made again."""
        return self._cached(tensor) is dense

    def _token(self) -> Tensor:
        """The node of the autograd graph through which all of a step's gradients reach the values.

        One node per step, so several lookups of one step share one gradient buffer.
        """
        if not torch.is_grad_enabled():  # in the middle of a step, perhaps, of which it is no part
            return self.weight.detach().new_empty(0)
        # What is computed again in a backward pass (checkpoints) may have one of its own, while this waits.
        key = (*self._key(), backward_pass())
        if self._step is None or self._step[0] != key:
            if self.weight.grad is None and self.growth_scores is not None and backward_pass() < 0:
                self.growth_scores.discard()  # of a pass that broke off, or whose gradients were thrown away
            gradient = StepGradient(self)
            self._step = (key, gradient, gradient.connect())
        return self._step[2]

    @property
    def step_gradient(self) -> StepGradient | None:
        """Where the lookups of the current step add their gradients; None before its first."""
        return self._step[1] if self._step else None

    def collect_rows(self, tensor: int, ids: Tensor, gradient: Tensor) -> None:
        """Add the gradient of looked-up rows to the growth scores, inside a growth window."""
        if (scores := self._scores_of_pass()) is not None:
            scores.add_rows(tensor, ids, gradient)

    def collect_dense(self, tensor: int, gradient: Tensor, is_own: bool = False) -> None:
        """Add the gradient of a whole tensor to the growth scores, inside a growth window.

        ``is_own``: nobody else writes to it.
        """
        if (scores := self._scores_of_pass()) is not None:
            scores.add_dense(tensor, gradient, is_own)

    def collect_columns(self, tensor: int, first: int, gradient: Tensor, is_own: bool = False) -> None:
        """The same of some columns (rows × some), from ``first`` on."""
        if (scores := self._scores_of_pass()) is not None:
            scores.add_columns(tensor, first, gradient, is_own)

    def _scores_of_pass(self) -> GrowthScores | None:
        """The scores that the running backward pass adds to, at its start without what was thrown away."""
        if not self.collects or self.growth_scores is None:
            return None
        if self._pass != backward_pass():
            self._pass = backward_pass()
            self.discard_cleared()
        return self.growth_scores

    # --- what reports ask ------------------------------------------------------------------------

    def live_per_tensor(self) -> list[int]:
        """Live weights of each tensor."""
        spans = [self.span(t) for t in range(len(self.slices))]
        return [s.stop - s.start for s in spans]

    def materialised(self) -> dict[int, Tensor]:
        """The dense copies that exist now, by tensor number."""
        return {tensor: dense for tensor, (_, _, dense) in self._dense.items()}

    def masks(self) -> dict[str, Tensor]:
        """A boolean mask of every tensor by its name."""
        result = {}
        for t, s in enumerate(self.slices):
            mask = torch.zeros(s.rows * s.cols, dtype=torch.bool, device=self.device)
            mask[self.flat_positions(t)] = True
            result[s.name] = mask.view(s.shape)
        return result

    @property
    def weight_bytes(self) -> int:
        """Bytes of the live weights."""
        return self.weight.numel() * self.weight.element_size()

    @property
    def index_bytes(self) -> int:
        """Bytes of row pointers and column ids."""
        return sum(t.numel() * t.element_size() for t in (self.row_pointers, self.column_ids))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take over values and index together or, with an error, nothing; torch itself looks at shapes only.

        Half of an index, or one of another budget, would send the loops, which check no bounds, to memory that
        is not the group's.
        """
        errors: list[str] = args[-1] if args else kwargs["error_msgs"]
        own = {"weight": self.weight, "row_pointers": self.row_pointers, "column_ids": self.column_ids}
        found: dict[str, Any] = {name: state_dict.get(prefix + name) for name in own}
        if found["row_pointers"] is not None or found["column_ids"] is not None:
            for name, mine in own.items():
                if not isinstance(found[name], Tensor) or found[name].shape != mine.shape:
                    there = list(found[name].shape) if isinstance(found[name], Tensor) else "missing"
                    errors.append(
                        f"size mismatch for {prefix}{name}: {there}, in the model {list(mine.shape)}."
                    )
                    return
            if not is_index(found["row_pointers"], found["column_ids"], self.slices):
                errors.append(
                    f"{prefix}row_pointers and {prefix}column_ids are no index of {self.budget} weights in "
                    f"{self.row_pointers.numel() - 1} rows."
                )
                return
            self._keep_replaced(found["row_pointers"], found["column_ids"])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.clear_caches()

    def _keep_replaced(self, row_pointers: Tensor, column_ids: Tensor) -> None:
        """Before another index is loaded: what is of the order that the weights have now."""
        pairs = (row_pointers, self.row_pointers), (column_ids, self.column_ids)
        if all(torch.equal(new.to(old), old) for new, old in pairs):
            return
        self.weight.grad = None
        self._loads.before_load([self.weight], lambda: (self.row_pointers.clone(), self.column_ids.clone()))

    def extra_repr(self) -> str:
        weights = sum(s.rows * s.cols for s in self.slices)
        return f"{self.name}, {self.budget} live of {weights}, tensors {[s.name for s in self.slices]}"

    def __getstate__(self) -> dict[str, Any]:
        """Without the caches: they hold graph nodes, which can be neither copied nor pickled."""
        state = self.__dict__.copy()
        state.update(
            growth_scores=None, collects=False, _step=None, _pass=-1, _dense={}, gradient_memory=Memory()
        )
        state.update(peers=[], _asked=set(), _asked_last=set(), _read_in_vain=set(), _loads=LoadFollower())
        return state


READ_TOGETHER = 2**22
"""Weights of a tensor up to which a GPU reads it in less time than a launch takes. Larger ones are read by
themselves, since the gradients of those read together are held together."""


def _modes() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _written(dense: Tensor) -> int:
    """Counts writes into a dense copy: one that was refused too late has spoilt the copy."""
    return 0 if dense.is_inference() else dense._version
