"""Files are written whole or not at all, and a claimed name is nobody else's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from recbole_dsl import files
from recbole_dsl.files import claim, claim_pair, written_whole


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


def test_names_may_be_as_long_as_the_system_allows(tmp_path: Path) -> None:
    """The temporary file's name is longer than that of the file, which has 255 bytes."""
    target = tmp_path / ("é" * 125 + ".json")
    with written_whole(target) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def test_every_claim_gets_another_file(tmp_path: Path) -> None:
    """Also from threads that ask at the same time."""
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: claim(tmp_path / "run.dsl").name, range(20)))
    assert sorted(names) == sorted(["run.dsl", *(f"run-{i}.dsl" for i in range(1, 20))])


def test_pairs_are_claimed_once(tmp_path: Path) -> None:
    """Runs that begin at the same moment share neither file."""
    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(lambda _: claim_pair(tmp_path / "run.dsl", "-last.dsl"), range(20)))
    assert len({best for best, _ in pairs}) == len({last for _, last in pairs}) == 20


def test_contents_are_on_disk_before_they_take_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power failure after the rename finds them."""
    calls: list[str] = []

    class Recorder:
        def __getattr__(self, name: str) -> Any:
            plain = getattr(os, name)
            if name not in ("fsync", "replace"):
                return plain

            def call(*args: Any, **kwargs: Any) -> Any:
                calls.append(name)
                return plain(*args, **kwargs)

            return call

    monkeypatch.setattr(files, "os", Recorder())
    with written_whole(tmp_path / "f") as file:
        file.write(b"x")
    assert calls[:2] == ["fsync", "replace"]
