"""Freed memory is kept between steps, where the C library can be told so."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from recbole_dsl.training.allocator import OWN

STEPS = """
import ctypes, resource, sys
if sys.argv[1] == "keep":
    from recbole_dsl.training.allocator import keep_freed_memory
    print(keep_freed_memory())
else:
    print(None)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    blocks = [libc.malloc(20_000_000) for _ in range(5)]
    for block in blocks:
        libc.memset(block, 1, 20_000_000)
    for block in reversed(blocks):
        libc.free(block)
for _ in range(10):
    step()
before = faults()
for _ in range(5):
    step()
print((faults() - before) / 5)
"""
"""Tells the page faults of a step that takes 100 MB, that is some 24 000 pages, and frees them."""


def page_faults(mode: str, **environment: str) -> tuple[str, float]:
    """What keeping memory has answered, and the page faults of a step, in a process of its own."""
    clean = {name: value for name, value in os.environ.items() if name not in OWN}
    clean.pop("GLIBC_TUNABLES", None)
    told = subprocess.run(
        [sys.executable, "-c", STEPS, mode],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    return told[0], float(told[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_steps_take_no_new_memory() -> None:
    """Without it, glibc gives the memory back at the end of every step and takes it anew."""
    _, by_default = page_faults("default")
    answer, kept = page_faults("keep")
    assert answer == "True" and kept < 1000 < by_default


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(
    "own", [{"MALLOC_TRIM_THRESHOLD_": "100000"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=100000"}]
)
def test_what_the_user_has_set_is_left(own: dict[str, str]) -> None:
    """The environment is stronger."""
    answer, faults = page_faults("keep", **own)
    assert answer == "False" and faults > 1000


def test_another_c_library_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """musl, macOS and Windows have no such settings."""
    from recbole_dsl.training import allocator

    for name in (*OWN, "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", None)
    assert allocator.keep_freed_memory() is False
