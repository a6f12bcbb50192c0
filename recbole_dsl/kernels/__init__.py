"""Loops compiled by numba, each beside a plain-torch twin that gives the same result.

numba is optional: it comes by pip with a compiler of its own, and without it the torch twin runs.
:func:`compiled` is asked before every use; what it answers depends on the setting, the device and
the types alone, never on a timing, so that equal runs use equal kernels.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

Function = TypeVar("Function", bound=Callable[..., Any])

TYPES: Final = frozenset(
    {torch.float32, torch.float64, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool}
)
"""Types the compiled loops take; half precision, which numba does not know, goes to torch."""


@functools.cache
def numba_installed() -> bool:
    """Whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


def compiled(choice: str, *tensors: Tensor) -> bool:
    """Whether a compiled loop takes these tensors: CPU, types of :data:`TYPES`, contiguous.

    Args:
        choice: the setting ``dsl_kernels``: ``"auto"``, ``"numba"`` or ``"torch"``.
    """
    return (
        choice != "torch"
        and numba_installed()
        and all(t.device.type == "cpu" and t.dtype in TYPES and t.is_contiguous() for t in tensors)
    )


def loop(function: Function) -> Function:
    """Decorator: compile ``function`` at its first call, without the interpreter's lock.

    The machine code is cached on disk, or for this process only where no folder can be written.
    """

    @functools.cache
    def machine_code() -> Callable[..., Any]:
        import numba

        try:
            return numba.njit(function, nogil=True, cache=True)
        except RuntimeError:
            return numba.njit(function, nogil=True)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*(a.detach().numpy() if isinstance(a, Tensor) else a for a in arguments))

    return call  # type: ignore[return-value]
