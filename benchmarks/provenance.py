"""Where a measurement comes from: machine, versions and commit, for the JSON of every benchmark."""

from __future__ import annotations

from typing import Any

import torch

from recbole_dsl.results import commit, environment, git, processor


def provenance(device: torch.device | None = None) -> dict[str, Any]:
    """``environment`` (versions, threads), ``processor``, ``device`` and ``commit`` of this process."""
    return {
        "commit": commit() or "unknown",
        "processor": processor(),
        "device": device_name(device or torch.device("cpu")),
        "environment": environment(),
    }


def device_name(device: torch.device) -> str:
    """The name of what computes: a GPU's, or the processor's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def chosen_device(name: str) -> torch.device:
    """``cpu`` or ``cuda``; ``auto`` takes a GPU if there is one, as RecBole does."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def code_commit() -> str:
    """The last commit of what is measured, so that committing results does not make them stale."""
    measured = ("recbole_dsl", "properties", "benchmarks/*.py")
    name = git("log", "-1", "--format=%h", "--abbrev=12", "--", *measured)
    dirty = git("status", "--porcelain", "--", *measured)
    return (name or "unknown") + ("-dirty" if dirty else "")
