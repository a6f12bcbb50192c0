"""Files are written whole or not at all, and a claimed name is nobody else's."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recbole_dsl.files import claim, written_whole


def test_a_broken_write_leaves_the_old_file(tmp_path: Path) -> None:
    """And no temporary one."""
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="disk full"), written_whole(target) as file:
        file.write(b"new, but only half")
        raise OSError("disk full")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    with written_whole(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def test_every_claim_gets_another_file(tmp_path: Path) -> None:
    """Also from threads that ask at the same time."""
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: claim(tmp_path / "run.dsl").name, range(20)))
    assert sorted(names) == sorted(["run.dsl", *(f"run-{i}.dsl" for i in range(1, 20))])
