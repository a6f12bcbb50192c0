"""The fallback storage: dense tensors under a boolean mask, kept exactly to the budget.

For tensors that cannot be packed, and to cross-check packed training: both storages follow the
same trajectory. Saves no memory and no time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..sparsity.rows import LiveRows
from ..sparsity.scores import GrowthScores, Landing
from ..sparsity.targets import TensorInfo
from ..sparsity.update import UpdatePlan
from .index import build_index, slices_of
from .moments import estimate_moments
from .optimizer_state import LoadFollower, check_optimizer, move_state, second_moments


class MaskedGroup(nn.Module):
    """Dense parameters that share one budget; dead entries are zero and get no gradient.

    State: one bool buffer ``mask_<i>`` per tensor. The parameters stay in their modules. A gradient
    hook hands the dense gradient to the growth scores and then clears it at dead positions, so
    optimizer state, weight decay and gradient clipping see live weights only.
    """

    storage = "masked"
    is_sparse_group = True

    def __init__(self, name: str, tensors: Sequence[TensorInfo], live: Tensor) -> None:
        super().__init__()
        self.name = name
        self.kernels = "auto"  # dsl_kernels
        self.slices = slices_of([t.name for t in tensors], [t.shape for t in tensors])
        # A plain list keeps the modules out of this one's children.
        self.places = [t.places[0] for t in tensors]
        for module, _ in (place for t in tensors for place in t.places):
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False  # whose gradients a hook cannot make dense
        self.growth_scores: GrowthScores | None = None
        self.collects = False
        self._loads = LoadFollower()
        self._budget = live.numel()
        for t, s in enumerate(self.slices):
            self.register_buffer(f"mask_{t}", torch.zeros(s.shape, dtype=torch.bool, device=live.device))
        self._set_masks(live)
        self._hooks: list[tuple[nn.Parameter, RemovableHandle, _MaskGradient]] = []
        self._add_hooks()
        self.clear_dead()

    def _add_hooks(self) -> None:
        """Hook the parameters as they are now; loading or copying may have put others in place."""
        # A frozen tensor takes no hook, but one that it has serves again once it is trained.
        hooked = {id(p) for p, *_ in self._hooks}
        parameters = [
            (t, p) for t, p in enumerate(self.trained_parameters()) if p.requires_grad or id(p) in hooked
        ]
        if [id(p) for p, *_ in self._hooks] == [id(p) for _, p in parameters]:
            return
        self.release()
        made = [(p, _MaskGradient(self, t)) for t, p in parameters if p.requires_grad]
        self._hooks = [(p, p.register_hook(hook), hook) for p, hook in made]

    def release(self) -> None:
        """Leave the parameters as they are and let them train dense again."""
        for _, handle, _ in self._hooks:
            handle.remove()
        self._hooks = []

    def discard_cleared(self) -> None:
        """Forget growth scores of passes whose gradients ``zero_grad`` has thrown away."""
        for parameter, _, hook in self._hooks:
            hook.discard_cleared(parameter.grad)

    def after_step(self) -> None:
        """Keep dead weights at zero, whatever was written into the dense tensors."""
        self._add_hooks()
        self.clear_dead()

    def follow_loads(self, optimizer: torch.optim.Optimizer) -> None:
        """When other masks are loaded, give state as at birth to what does not live, or did not before."""
        self._loads.follow(optimizer, self.trained_parameters, self._reset_but_both)

    def follow_no_loads(self) -> None:
        """Nobody tells of the optimizer's steps any more."""
        self._loads.stop()

    @torch.no_grad()
    def _reset_but_both(self, optimizer: torch.optim.Optimizer, replaced: Tensor) -> None:
        for parameter, here in self._parts(~(replaced & self._flat_mask())):
            _reset_state(optimizer, parameter, here)

    def _parts(self, places: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Each parameter and its part of flat ``places``, in its shape."""
        for s, parameter in zip(self.slices, self.trained_parameters(), strict=True):
            yield parameter, places[s.first_position : s.first_position + s.rows * s.cols].view(s.shape)

    def masks(self) -> dict[str, Tensor]:
        """The boolean mask of every tensor by its name."""
        return {s.name: getattr(self, f"mask_{t}").clone() for t, s in enumerate(self.slices)}

    @property
    def budget(self) -> int:
        """Number of live weights."""
        return self._budget

    @property
    def table_shapes(self) -> list[tuple[int, int]]:
        """(rows, columns) of each tensor."""
        return [(s.rows, s.cols) for s in self.slices]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.trained_parameters()[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the weights."""
        return self.trained_parameters()[0].dtype

    def trained_parameters(self) -> list[nn.Parameter]:
        """The dense parameters."""
        return [getattr(module, attribute) for module, attribute in self.places]

    def live_positions(self) -> Tensor:
        """Flat positions of the live weights, int64, ascending."""
        return self._flat_mask().nonzero().flatten()

    def live_rows(self) -> LiveRows:
        """The index of the live weights, built anew."""
        return LiveRows(self.table_shapes, *build_index(self.live_positions(), self.slices), self.kernels)

    def live_values(self) -> Tensor:
        """The live weights in the order of :meth:`live_positions`."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.trained_parameters()])
        return flat[self._flat_mask()]

    @torch.no_grad()
    def set_values(self, values: Tensor) -> None:
        """Set the live weights, given in the order of :meth:`live_positions`."""
        start = 0
        for t, parameter in enumerate(self.trained_parameters()):
            mask = getattr(self, f"mask_{t}")
            count = int(mask.sum())
            parameter[mask] = values[start : start + count].to(parameter.dtype)
            start += count

    def live_gradients(self) -> Tensor | None:
        """Gradient of the live weights in the same order, None before any backward pass."""
        parameters = self.trained_parameters()
        if all(p.grad is None for p in parameters):
            return None
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        return torch.cat([g.reshape(-1) for g in grads])[self._flat_mask()]

    def live_per_tensor(self) -> list[int]:
        """Live weights of each tensor."""
        return [int(getattr(self, f"mask_{t}").sum()) for t in range(len(self.slices))]

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise UnsupportedOptimizerError if its per-weight state is not understood."""
        self._add_hooks()
        check_optimizer(optimizer)

    @torch.no_grad()
    def apply_update(self, plan: UpdatePlan, optimizer: torch.optim.Optimizer) -> None:
        """Move the masks; leaving and arriving positions get value 0 and state as at birth."""
        before = self.live_positions()
        live = torch.cat([before[~plan.leaving], plan.arriving])
        changed = torch.zeros_like(self._flat_mask())
        changed[before[plan.leaving]] = changed[plan.arriving] = True
        self._set_masks(live)
        for parameter, here in self._parts(changed):
            parameter.masked_fill_(here, 0.0)
            _reset_state(optimizer, parameter, here)
            parameter.grad = None  # it knows nothing of the new topology

    @torch.no_grad()
    def estimate_moments(self, arriving: Tensor, optimizer: torch.optim.Optimizer, share: float) -> None:
        """Give grown weights a ``share`` of the second moments around them; see :mod:`.moments`."""
        here = self.live_positions()
        states = {parameter: second_moments(optimizer, parameter) for parameter in self.trained_parameters()}
        for name in {name for state in states.values() for name in state}:
            # A table that no step has reached has none, in packed storage zeros.
            flat = torch.cat([state.get(name, torch.zeros_like(p)).reshape(-1) for p, state in states.items()])
            moments = flat[here]
            estimate_moments(moments, self.live_rows(), arriving, share)
            flat[here] = moments
            for parameter, part in self._parts(flat):
                if name in states[parameter]:
                    states[parameter][name].copy_(part)

    def clear_caches(self) -> None:
        """Nothing is cached."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the dense tensors: masking saves none."""
        return sum(p.numel() * p.element_size() for p in self.trained_parameters())

    @property
    def index_bytes(self) -> int:
        """Bytes of the masks."""
        return sum(s.rows * s.cols for s in self.slices)

    def _flat_mask(self) -> Tensor:
        return torch.cat([getattr(self, f"mask_{t}").view(-1) for t in range(len(self.slices))])

    def _set_masks(self, live: Tensor) -> None:
        flat = torch.zeros(sum(s.rows * s.cols for s in self.slices), dtype=torch.bool, device=live.device)
        flat[live] = True
        for t, s in enumerate(self.slices):
            part = flat[s.first_position : s.first_position + s.rows * s.cols]
            getattr(self, f"mask_{t}").copy_(part.view(s.shape))

    @torch.no_grad()
    def clear_dead(self) -> None:
        """Set all that the masks leave out to zero."""
        for t, parameter in enumerate(self.trained_parameters()):
            parameter.masked_fill_(~getattr(self, f"mask_{t}"), 0.0)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Masks of another budget are of another size, as packed weights of one are."""
        masks = [state_dict.get(f"{prefix}mask_{t}") for t in range(len(self.slices))]
        live = sum(int(mask.sum()) for mask in masks if mask is not None)
        if all(mask is not None for mask in masks) and live != self.budget:
            error_msgs.append(
                f"size mismatch for {prefix.removesuffix('.')}: the masks leave {live} weights live, and this "
                f"group has {self.budget}."
            )
            return
        pairs = zip(masks, self.buffers(), strict=True)
        if any(new is not None and not torch.equal(new.to(old.device), old) for new, old in pairs):
            for parameter in self.trained_parameters():
                parameter.grad = None  # it knows nothing of the new topology
            self._loads.before_load(self.trained_parameters(), self._flat_mask)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without hooks and scores, which belong to one training run."""
        state = self.__dict__.copy()
        state.update(growth_scores=None, collects=False, _hooks=[], _loads=LoadFollower())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copied or unpickled group hooks its own parameters, as far as they are there already."""
        super().__setstate__(state)
        with contextlib.suppress(AttributeError):  # of modules still being copied; see train()
            self._add_hooks()

    def train(self, mode: bool = True) -> MaskedGroup:
        """Switch modes; the latest moment at which a copied group gets its gradient hooks back."""
        if mode:
            self._add_hooks()
        return super().train(mode)


def _reset_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, here: Tensor) -> None:
    """Give optimizer state as at birth where ``here`` (of the parameter's shape) is set."""

    def reset(state: Tensor, birth: float) -> None:
        state.masked_fill_(here, birth)

    move_state(optimizer, parameter, reset)


class _MaskGradient:
    """A gradient hook on one dense parameter."""

    def __init__(self, group: MaskedGroup, tensor: int) -> None:
        self.group, self.tensor = group, tensor
        self.landing = Landing()  # of the last pass in the parameter's gradient

    def __call__(self, gradient: Tensor) -> Tensor:
        scores, before = self.group.growth_scores, self.group.trained_parameters()[self.tensor].grad
        if self.group.collects and scores is not None:
            self.discard_cleared(before)
            scores.add_dense(self.tensor, gradient)
        live = gradient.masked_fill(~getattr(self.group, f"mask_{self.tensor}"), 0.0)
        if scores is not None and scores.holds(self.tensor):
            self.landing = Landing.of(before, live)
        return live

    def discard_cleared(self, gradient: Tensor | None) -> None:
        """Forget the scores of earlier passes if ``gradient``, the parameter's, has been thrown away since."""
        scores = self.group.growth_scores
        if scores is not None and scores.holds(self.tensor) and self.landing.is_cleared(gradient):
            scores.discard(self.tensor)
