"""Where a measurement comes from: machine, versions and commit, for the JSON of every benchmark."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

from recbole_dsl.results import environment

ROOT = Path(__file__).resolve().parents[1]


def provenance() -> dict[str, Any]:
    """``environment`` (versions, threads), ``processor`` and ``commit`` of this process."""
    return {"commit": commit(), "processor": processor(), "environment": environment()}


def commit() -> str:
    """The commit this was measured at, with ``-dirty`` if anything but results had changes."""
    command = ["git", "describe", "--always", "--abbrev=12"]
    name = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    changes = ["git", "status", "--porcelain", "--", ".", ":!benchmarks/results"]
    dirty = subprocess.run(changes, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return (name or "unknown") + ("-dirty" if dirty else "")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"
