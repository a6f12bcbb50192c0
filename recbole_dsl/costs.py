"""What a run costs: bytes held between steps, peak memory, multiply–accumulate operations (MACs)."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .graph import csr_product
from .handle import Group
from .packed.group import PackedGroup
from .packed.masked import MaskedGroup
from .packed.readonly import lies_in

aten = torch.ops.aten
_PRODUCTS = {
    aten.mm.default: (0, 1),
    aten._sparse_addmm.default: (1, 2),
    aten.addmm.default: (1, 2),
    aten.bmm.default: (0, 1),
    aten.baddbmm.default: (1, 2),
    aten.mv.default: (0, 1),
    aten.addmv.default: (1, 2),
    aten.dot.default: (0, 1),
}
"""Products of two tensors, and which arguments those are."""


def optimizers_of(trainer: Any) -> list[torch.optim.Optimizer]:
    """Every optimizer of a RecBole trainer once.

    RecVAE's has one for the encoder and one for the decoder, which are ``optimizer`` in turn, in place of a
    first one that never steps.
    """
    found = {id(value): value for value in vars(trainer).values() if isinstance(value, torch.optim.Optimizer)}
    return list(found.values())


def trained_weights(model: nn.Module) -> int:
    """How many weights are trained; those of frozen copies, such as RecVAE's of its encoder, are not."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def held_bytes(model: nn.Module, *optimizers: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes that live from step to step: weights, index, gradients, optimizers' state.

    Gradients count as held, as they are between ``backward`` and the next ``zero_grad``.
    """
    parameters = list(model.parameters())
    states = [s for optimizer in optimizers for state in optimizer.state.values() for s in state.values()]
    return {
        "weight_bytes": sum(_bytes(p) for p in parameters),
        "index_bytes": sum(g.index_bytes for g in _groups(model)),
        "gradient_bytes": sum(_bytes(p) for p in parameters if p.requires_grad),
        "optimizer_bytes": sum(_bytes(s) for s in states if isinstance(s, Tensor)),
    }


def _groups(model: nn.Module) -> list[Group]:
    """All sparse groups, frozen copies included."""
    return [m for m in model.modules() if isinstance(m, PackedGroup | MaskedGroup)]


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def peak_memory_bytes(device: torch.device) -> int:
    """Peak of the device's allocated memory; on a CPU the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage tells a process that another one started of that one's peak as well
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):  # which not every container has
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _attention_macs(args: tuple) -> float:
    """Scores and weighted values: 2 · queries · keys · width, per batch and head."""
    query, key = args[0], args[1]
    return 2.0 * query.numel() * key.shape[-2]


def _rnn_layer_macs(args: tuple) -> float:
    """Every weight of the input and the recurrent matrix once per step and sequence."""
    sequences, input_weight, hidden_weight = args[0], args[1], args[2]
    steps = sequences.numel() / sequences.shape[-1]
    return steps * (input_weight.numel() + hidden_weight.numel())


_FUSED: dict[str, Callable[[tuple], float]] = {
    "_scaled_dot_product_flash_attention_for_cpu": _attention_macs,
    "_scaled_dot_product_flash_attention": _attention_macs,
    "_scaled_dot_product_efficient_attention": _attention_macs,
    "_scaled_dot_product_cudnn_attention": _attention_macs,
    "mkldnn_rnn_layer": _rnn_layer_macs,
}
"""Kernels that hold products within, by name; not every torch has each."""


class MacCounter(TorchDispatchMode):
    """Counts MACs of products while active, whatever model runs.

    Matrix products count n·k·m, a sparse matrix its stored entries times the other's columns or rows.
    A product with a whole packed weight counts live weights only, however it is executed.
    Element-wise products of floating-point tensors count one per element of the result, and looked-up
    embedding entries one per live weight (RecBole counts embeddings in the same way). Recurrent layers
    on CUDA and products of two sparse matrices are not counted.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        super().__init__()
        self.macs = 0.0
        self.packed = [g for g in groups if isinstance(g, PackedGroup)]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is csr_product:
            self.macs += args[0][2].numel() * args[2].shape[1]
        elif func in _PRODUCTS:
            a, b = (args[i] for i in _PRODUCTS[func])
            self.macs += self._product(a, b)
        elif func.overloadpacket.__name__ in _FUSED:
            self.macs += _FUSED[func.overloadpacket.__name__](args)
        elif func in (aten.mul.Tensor, aten.mul_.Tensor) and torch.is_floating_point(result):
            self.macs += result.numel() if result.layout == torch.strided else result._nnz()
        elif func is aten.embedding.default:
            self.macs += result.numel() * self._density(args[0])
        elif func is aten.convolution.default:
            self.macs += result.numel() * args[1].numel() / max(1, args[1].shape[0])
        return result

    def looked_up(self, live: int) -> None:
        """Count a packed row lookup that read ``live`` weights."""
        self.macs += live

    def _product(self, a: Tensor, b: Tensor) -> float:
        if a.layout != torch.strided:
            return float(a._nnz() * (b.shape[-1] if b.dim() > 1 else 1))
        if b.layout != torch.strided:
            return float(b._nnz() * a.shape[0])
        dense = float(a.numel() * (b.shape[-1] if b.dim() > 1 else 1))
        return dense * min(self._density(a), self._density(b))

    def _density(self, tensor: Tensor) -> float:
        for group in self.packed:
            for number, dense in group.materialised().items():
                if lies_in(tensor, dense):
                    return group.live_per_tensor()[number] / dense.numel()
        return 1.0


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the global generators of torch, numpy and python as they were."""
    python, numpy_ = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_)


def sharing_copy(model: nn.Module) -> nn.Module:
    """A copy of a module that shares its parameters and buffers but no other attribute."""
    shared = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(t): t for t in shared})


def forward_macs(model: nn.Module, run: Any) -> float:
    """MACs of ``run()``, which computes something with ``model``; nothing random is disturbed."""
    groups = _groups(model)
    for group in groups:
        group.clear_caches()
    counter = MacCounter(groups)
    lookups = [_count_lookups(group, counter) for group in groups if isinstance(group, PackedGroup)]
    products = [group.products for group in lookups]
    for group in lookups:
        group.products = "dense"  # torch's operators, which the counter sees; compiled loops it does not
    try:
        with undisturbed(), counter:
            run()
    finally:
        for group, own in zip(lookups, products, strict=True):
            del group.__dict__["rows"]
            group.products = own
        for group in groups:
            group.clear_caches()
    return counter.macs


def _count_lookups(group: PackedGroup, counter: MacCounter) -> PackedGroup:
    plain = group.rows

    def rows(tensor: int, ids: Tensor, padding_idx: int | None = None) -> Tensor:
        first = group.slices[tensor].first_row
        pointers = (
            group.row_pointers[first + ids.long()],
            group.row_pointers[first + ids.long() + 1],
        )
        counter.looked_up(int((pointers[1] - pointers[0]).sum()))
        return plain(tensor, ids, padding_idx)

    group.__dict__["rows"] = rows
    return group
