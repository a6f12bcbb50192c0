"""Compilers that may be installed: numba, and Triton for GPUs. Needs neither torch nor numpy to import."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any


@functools.cache
def numba_installed() -> bool:
    """Whether numba can be imported."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def triton_installed() -> bool:
    """Whether Triton, which torch for CUDA on Linux brings along, can be imported."""
    return importlib.util.find_spec("triton") is not None


def machine_code(function: Callable[..., Any], reorder: bool = False) -> Callable[[], Callable[..., Any]]:
    """A function that gives ``function`` compiled, at its first call; arguments are numpy arrays.

    It runs without the interpreter's lock. The machine code is cached on disk, or for this process only
    where no folder can be written.

    Args:
        reorder: sums may be formed in another order, the one that vector instructions ask for.
    """
    fastmath = {"reassoc", "contract"} if reorder else False  # NaN and infinity stay what they are

    @functools.cache
    def compiled() -> Callable[..., Any]:
        import numba

        try:
            return numba.njit(function, nogil=True, cache=True, fastmath=fastmath)
        except RuntimeError:
            return numba.njit(function, nogil=True, fastmath=fastmath)

    return compiled
