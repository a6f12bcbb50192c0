"""Which tensors of a model become sparse, with a reason for every one that does not."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from ..errors import TargetError, nearest

NORM_TYPES = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._NormBase,
    nn.LocalResponseNorm,
)
# Their parameters are read through private lists or handed to fused kernels, so only a dense tensor
# of the original identity works there.
MASKED_ONLY_TYPES = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.modules.conv._ConvNd)


@dataclass(frozen=True)
class TensorInfo:
    """One parameter of a model, seen once even if several modules share it.

    ``name``: its first name; ``places``: every (module, attribute) it is reached by; ``names``: all
    its names; ``kind``: embedding, linear, raw, norm, bias, rnn, convolution or attention;
    ``packable``: it may be stored packed (otherwise only masked).
    """

    name: str
    names: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]
    parameter: nn.Parameter
    kind: str
    packable: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the dense tensor."""
        return tuple(self.parameter.shape)


@dataclass(frozen=True)
class Selection:
    """``taken`` tensors become sparse; ``left`` ones stay dense, each with the reason."""

    taken: tuple[TensorInfo, ...]
    left: tuple[tuple[TensorInfo, str], ...]

    def without_weights(self) -> Selection:
        """The same without the memory of the taken tensors: their parameters are on ``meta``."""
        taken = (replace(t, parameter=nn.Parameter(t.parameter.detach().to("meta"))) for t in self.taken)
        return replace(self, taken=tuple(taken))


def list_tensors(root: nn.Module) -> list[TensorInfo]:
    """All dense parameters of ``root``, shared ones once, in the order of ``named_parameters()``."""
    found: dict[int, dict] = {}
    for prefix, module in root.named_modules(remove_duplicate=False):
        if getattr(module, "is_sparse_group", False):
            continue
        for attribute, parameter in module._parameters.items():
            if parameter is None:
                continue
            entry = found.setdefault(id(parameter), {"parameter": parameter, "names": [], "places": []})
            entry["names"].append(f"{prefix}.{attribute}" if prefix else attribute)
            if (module, attribute) not in entry["places"]:
                entry["places"].append((module, attribute))  # a module may be registered twice
    return [_describe(**entry) for entry in found.values()]


def _describe(parameter: nn.Parameter, names: list, places: list) -> TensorInfo:
    kinds = [_kind(module, attribute, parameter) for module, attribute in places]
    packable = not _is_hooked(parameter) and all(
        _packable(module, kind) for (module, _), kind in zip(places, kinds, strict=True)
    )
    return TensorInfo(names[0], tuple(names), tuple(places), parameter, kinds[0], packable)


def _kind(module: nn.Module, attribute: str, parameter: nn.Parameter) -> str:
    if isinstance(module, NORM_TYPES):
        return "norm"
    if "bias" in attribute:
        return "bias"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.Linear) and attribute == "weight":
        return "linear"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return "rnn"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "convolution"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    return "raw"


def _is_hooked(parameter: nn.Parameter) -> bool:
    """Whether its gradient is to be told to somebody, who would hear nothing of a packed weight's."""
    hooks = (getattr(parameter, name, None) for name in ("_backward_hooks", "_post_accumulate_grad_hooks"))
    return any(hooks)


def _packable(module: nn.Module, kind: str) -> bool:
    if isinstance(module, nn.Embedding):
        return module.max_norm is None and not module.scale_grad_by_freq
    if isinstance(module, nn.EmbeddingBag) and module.max_norm is not None:
        return False
    return not isinstance(module, MASKED_ONLY_TYPES) and kind not in ("norm", "bias")


def select_targets(
    root: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    min_weights: int = 1024,
    lenient: Collection[str] = (),
) -> Selection:
    """Choose the tensors of ``root`` that become sparse.

    Args:
        include: shell-style patterns on tensor names (``'*_embedding.weight'``); None means the
            weights of embeddings and Linear layers. Biases and norms are never taken.
        exclude: patterns of tensors to leave dense, stronger than ``include``.
        min_weights: tensors with fewer elements stay dense unless ``include`` names them.
        lenient: those of ``include`` and ``exclude`` that hold for many models: their patterns need not
            match a tensor, and an ``include`` that matches none at all counts as None.

    Raises:
        TargetError: a pattern matches no tensor, or nothing is left to make sparse.
    """
    tensors = list_tensors(root)
    if include is not None and "include" in lenient and not any(matches(t, include) for t in tensors):
        include = None
    for option, patterns in (("include", include or ()), ("exclude", exclude)):
        for pattern in patterns if option not in lenient else ():
            _check_pattern(f"dsl_{option}", pattern, tensors)
    taken, left = [], []
    sparse = _sparse_already(root)
    for tensor in tensors:
        reason = (
            "sparse already"
            if id(tensor.parameter) in sparse
            else _reason_to_leave(tensor, include, exclude, min_weights)
        )
        if reason is None:
            taken.append(tensor)
        else:
            left.append((tensor, reason))
    if not taken:
        reasons = "; ".join(f"{t.name}: {reason}" for t, reason in left[:5]) or "no parameters"
        raise TargetError(
            f"{type(root).__name__} has nothing to make sparse ({reasons}); "
            "allowed are embedding tables and weight matrices named by dsl_include."
        )
    return Selection(tuple(taken), tuple(left))


def _sparse_already(root: nn.Module) -> set[int]:
    """Ids of the parameters that groups of an earlier call hold."""
    groups: list[Any] = [m for m in root.modules() if getattr(m, "is_sparse_group", False)]
    return {id(parameter) for group in groups for parameter in group.trained_parameters()}


def matches(tensor: TensorInfo, patterns: Sequence[str]) -> bool:
    """Whether any name of the tensor matches any of the patterns."""
    return any(fnmatchcase(name, pattern) for name in tensor.names for pattern in patterns)


def _check_pattern(option: str, pattern: str, tensors: Sequence[TensorInfo]) -> None:
    if not any(matches(tensor, [pattern]) for tensor in tensors):
        names = [name for tensor in tensors for name in tensor.names]
        raise TargetError(
            f"{option} pattern {pattern!r} matches no tensor of the model{nearest(pattern, names)}; "
            f"allowed are patterns that match one of {', '.join(names[:12])}{', …' if len(names) > 12 else ''}."
        )


def _gives_sparse_gradients(tensor: TensorInfo) -> bool:
    """Whether any of its modules, among which may be Linear layers, is an embedding with ``sparse=True``."""
    return any(isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.sparse for m, _ in tensor.places)


def _reason_to_leave(
    tensor: TensorInfo, include: Sequence[str] | None, exclude: Sequence[str], min_weights: int
) -> str | None:
    parameter = tensor.parameter
    if not parameter.requires_grad:
        return "frozen (requires_grad is False)"
    if tensor.kind in ("bias", "norm"):
        return "biases and norms are never sparse"
    if not torch.is_floating_point(parameter):
        return f"dtype {parameter.dtype} is not a real floating-point type"
    if parameter.numel() == 0:
        return "it has no weights"
    if matches(tensor, exclude):
        return "excluded by dsl_exclude"
    if include is not None:
        return None if matches(tensor, include) else "not named by dsl_include"
    if tensor.kind not in ("embedding", "linear"):
        return f"{tensor.kind} parameter, sparse only if dsl_include names it"
    if tensor.kind == "embedding" and (not tensor.packable or _gives_sparse_gradients(tensor)):
        reason = "embedding with max_norm, sparse, scale_grad_by_freq or a gradient hook"
        return f"{reason}, sparse only if dsl_include names it"
    if parameter.dim() > 1 and parameter.numel() == parameter.shape[0]:
        return "a single column, whose index would take more than its weights"
    if parameter.numel() < min_weights:
        return f"fewer than dsl_min_weights={min_weights} weights"
    return None
