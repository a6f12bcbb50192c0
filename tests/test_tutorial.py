"""The tutorial runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="its commands are for a POSIX shell")
def test_the_tutorial(tmp_path: Path) -> None:
    """Its files are written and its commands run, in their order; only the CSV file is made up."""
    draw = np.random.default_rng(1)
    rows = ["user,item,rating,time"]
    for user in range(60):
        name = "anna" if user == 0 else f"user {user}"
        for item in draw.choice(90, size=20, replace=False, p=np.arange(90, 0, -1) / 4095):
            rows.append(f"{name},item-{item},{draw.integers(1, 6)},{draw.integers(10**9)}")
    (tmp_path / "ratings.csv").write_text("\n".join(rows) + "\n")
    # As after an installation: this Python and its commands.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    blocks = re.findall(
        r"^```(\w+)\n(.*?)^```$", (ROOT / "docs/tutorial.md").read_text(), re.MULTILINE | re.DOTALL
    )
    printed = ""
    for language, text in blocks:
        if language == "sh":
            done = subprocess.run(
                ["bash", "-ec", text], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, text + done.stdout + done.stderr
            printed = done.stdout
        else:
            name = re.match(r"# ([\w.]+)\n", text)
            assert name is not None, text
            (tmp_path / name[1]).write_text(text)
    assert len(re.findall(r"item-\d+", printed)) == 5
    assert (tmp_path / "results" / "shop" / "report.html").is_file()
    table = (tmp_path / "results" / "shop" / "table.md").read_text()
    assert all(f"| {method} |" in table for method in ("dense", "narrow", "dsl_plus"))
