"""Where the property files that ship with the package are."""

from __future__ import annotations

from pathlib import Path

from recbole_dsl.errors import DSLError


def properties_dir() -> Path:
    """Return the folder of the property files that ship with the package.

    In a wheel they lie inside the package.  In a checkout, installed as editable or not, they lie
    beside it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "properties", package.parent / "properties"):
        if folder.is_dir():
            return folder
    raise DSLError(f"The property files of recbole_dsl are missing from {package}: reinstall it.")
