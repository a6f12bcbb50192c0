"""Random generators of our own, so that nothing draws from torch's, numpy's or Python's global one."""

from __future__ import annotations

import hashlib

import torch


def generator_for(seed: int, purpose: str) -> torch.Generator:
    """A CPU generator whose stream depends on ``seed`` and ``purpose`` only.

    Different purposes give independent streams, so adding one draw somewhere does not change
    another part of a run.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
