"""The interface between the explorer and a storage of sparse weights (packed or masked)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from .rows import LiveRows
from .scores import GrowthScores
from .update import UpdatePlan


class SparseGroup(Protocol):
    """Tensors that share one budget. The explorer drives packed and masked ones alike.

    Positions are flat over the group's tensors in order, each seen as rows × columns.
    """

    name: str
    storage: str
    kernels: str
    """The setting ``dsl_kernels``."""
    growth_scores: GrowthScores | None
    """Sums of dense gradients; None when no update is to come or none is needed."""
    collects: bool
    """Whether backward passes add their dense gradients to ``growth_scores``."""

    @property
    def budget(self) -> int: ...

    @property
    def table_shapes(self) -> Sequence[tuple[int, int]]: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters an optimizer must own for this group to be trained."""
        ...

    def live_rows(self) -> LiveRows:
        """Where the live weights are; valid until the topology changes."""
        ...

    def live_values(self) -> Tensor:
        """Values of the live weights, in ascending order of their positions."""
        ...

    def live_per_tensor(self) -> list[int]:
        """Live weights of each tensor, counted from the topology."""
        ...

    def discard_cleared(self) -> None:
        """Forget growth scores of passes whose gradients have been thrown away, before a step is counted."""
        ...

    def after_step(self) -> None:
        """Called after every optimizer step, before an update."""
        ...

    def live_gradients(self) -> Tensor | None:
        """The last step's gradient of the live weights, None if there is none."""
        ...

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Raise UnsupportedOptimizerError if its per-weight state is not understood."""
        ...

    def follow_loads(self, optimizer: torch.optim.Optimizer) -> None:
        """Let per-weight state follow its positions when another topology is loaded."""
        ...

    def follow_no_loads(self) -> None:
        """Nobody tells of the optimizer's steps any more."""
        ...

    def apply_update(self, plan: UpdatePlan, optimizer: torch.optim.Optimizer) -> None:
        """Rebuild the topology; values and per-weight optimizer state follow their positions."""
        ...

    def estimate_moments(self, arriving: Tensor, optimizer: torch.optim.Optimizer, share: float) -> None:
        """Give the weights that were grown at ``arriving`` a ``share`` of the second moments around them."""
        ...
