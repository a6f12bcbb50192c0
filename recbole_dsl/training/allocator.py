"""Memory that a step has freed is kept for the next step, not given back to the system."""

from __future__ import annotations

import ctypes
import os
import platform
from typing import Final

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_BLOCK: Final = 32 * 2**20
"""Bytes; glibc takes no larger threshold."""

KEPT: Final = 2**31 - 1
"""Free bytes from which memory is given back; the largest number that fits."""

OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Environment variables by which users set the same themselves."""


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of up to :data:`LARGEST_BLOCK` bytes; says whether it will.

    By default it gives memory back to the system as soon as some tens of megabytes at the end of its heap are
    free, which every step of a graph model does; the next step gets it anew, page by page and made zero. That
    takes up to a fifth of such a step. The setting is the process's and stays. Nothing is done where there is
    no glibc, or where the user's environment has settings of its own (:data:`OWN`, ``GLIBC_TUNABLES``).
    """
    own = any(name in os.environ for name in OWN) or "malloc" in os.environ.get("GLIBC_TUNABLES", "")
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(mallopt(TRIM_THRESHOLD, KEPT))
