"""Compiled loops, each beside a plain-torch twin that gives the same result.

On a CPU numba compiles them, on a GPU Triton. Both are optional and come by pip; without them the torch
twin runs. :func:`compiled` and :func:`on_gpu` are asked before every use; what they answer depends on the
setting, the device and the types alone, never on a timing, so that equal runs use equal kernels.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from .. import compiling
from ..errors import DSLError

Function = TypeVar("Function", bound=Callable[..., Any])

TYPES: Final = frozenset(
    {torch.float32, torch.float64, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool}
)
"""Types the compiled loops take; half precision, which numba does not know, goes to torch."""

ON_GPU: Final = frozenset(TYPES - {torch.bool})
"""Types the kernels on a GPU take; in half precision a sum of many would lose too much."""


ITEMS_PER_THREAD: Final = 2**18
"""Array elements below which another thread costs more than it saves."""


def compiled(choice: str, *tensors: Tensor) -> bool:
    """Whether a compiled loop takes these tensors: CPU, types of :data:`TYPES`, contiguous.

    Args:
        choice: the setting ``dsl_kernels``: ``"auto"``, ``"numba"``, ``"triton"`` or ``"torch"``.
    """
    return (
        choice in ("auto", "numba")
        and compiling.numba_installed()
        and all(t.device.type == "cpu" and t.dtype in TYPES and t.is_contiguous() for t in tensors)
    )


def on_gpu(choice: str, *tensors: Tensor) -> bool:
    """Whether a Triton kernel takes these tensors: on a GPU, types of :data:`ON_GPU`, contiguous.

    Args:
        choice: the setting ``dsl_kernels``.

    Raises:
        DSLError: the choice is ``"triton"``, which cannot compile here.
    """
    return (
        choice in ("auto", "triton")
        and all(t.device.type == "cuda" and t.dtype in ON_GPU and t.is_contiguous() for t in tensors)
        and _triton_works(choice == "triton")
    )


def gpu_rows() -> Any:
    """The module of the kernels on a GPU, which cannot be imported without Triton."""
    from . import rows_on_gpu

    return rows_on_gpu


@functools.cache
def _triton_works(required: bool) -> bool:
    """Try once: beside the package, Triton needs a C compiler for what starts its kernels."""
    if not compiling.triton_installed():
        return False
    try:
        weight, pointers = torch.ones(1, device="cuda"), torch.tensor([0, 1], device="cuda")
        gpu_rows().read_tables([gpu_rows().Table(weight, pointers, pointers[:1], 0, 1, 1)])
    except Exception as error:  # whatever a compiler or a driver may raise
        told = f"Triton cannot compile for this GPU ({type(error).__name__}: {error})"
        if required:
            raise DSLError(f"dsl_kernels='triton': {told}; allowed are 'auto' and 'torch'.") from error
        warnings.warn(f"{told}: plain torch is used, which is slower.", stacklevel=2)
        return False
    return True


def loop(function: Function | None = None, *, reorder: bool = False) -> Any:
    """Decorator: compile a function at its first call, and run it without the interpreter's lock.

    Tensors among its arguments are seen as arrays.

    Args:
        reorder: sums may be formed in another order, the one that vector instructions ask for.
    """
    if function is None:
        return functools.partial(loop, reorder=reorder)
    machine_code = compiling.machine_code(function, reorder)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return machine_code()(*[_array(a) if isinstance(a, Tensor) else a for a in arguments])

    return call


def _array(tensor: Tensor) -> Any:
    return (tensor.detach() if tensor.requires_grad else tensor).numpy()


def in_parallel(call: Callable[[int, int], Any], count: int, elements: int) -> list[Any]:
    """``call(start, stop)`` over the ranges of ``count`` things, on as many threads as torch may use.

    Args:
        call: works on things ``start`` … ``stop`` - 1, and on nothing that another range works on.
        elements: array elements that all ranges work on together; few are not worth a thread.

    Returns:
        What the calls returned, in the order of the ranges.
    """
    threads = min(torch.get_num_threads(), count, max(1, elements // ITEMS_PER_THREAD))
    if threads < 2:
        return [call(0, count)]
    return at_once(call, [count * i // threads for i in range(threads + 1)])


def at_once(call: Callable[[int, int], Any], bounds: Sequence[int]) -> list[Any]:
    """``call(start, stop)`` between neighbouring ``bounds``, each on a thread of its own."""
    return list(_pool(os.getpid(), torch.get_num_threads()).map(call, bounds[:-1], bounds[1:]))


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process alone: threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="recbole_dsl")
