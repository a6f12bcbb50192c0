"""An object that does something when it is unpickled, as a file from somebody else may."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)
