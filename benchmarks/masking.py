"""The published simulation of sparse training: dense tensors times dense float masks, at every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class NaiveMasks:
    """Dense float masks that zero dead gradients before, and dead weights after each optimizer step.

    Weights, gradients, optimizer state and masks all have the dense size.

    Args:
        parameters: which are masked at once.
        density: share of live weights, drawn at random with ``seed``.
    """

    def __init__(self, parameters: Sequence[Tensor], density: float, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.parameters = list(parameters)
        self.masks = [
            (torch.rand(p.shape, generator=generator) < density).to(p.device, p.dtype) for p in self.parameters
        ]
        self._mask_weights()

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Mask at every step of ``optimizer``."""
        optimizer.register_step_pre_hook(self._mask_gradients)
        optimizer.register_step_post_hook(self._mask_weights)

    @torch.no_grad()
    def _mask_gradients(self, *_: Any) -> None:
        for parameter, mask in zip(self.parameters, self.masks, strict=True):
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def _mask_weights(self, *_: Any) -> None:
        for parameter, mask in zip(self.parameters, self.masks, strict=True):
            parameter.mul_(mask)

    @property
    def bytes(self) -> int:
        """Bytes of the masks."""
        return sum(m.numel() * m.element_size() for m in self.masks)
