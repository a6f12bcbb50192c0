"""What can be compared: methods of ``properties/compare``, and the sparse ones of ``properties/method``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from .. import property_files
from ..errors import ConfigError, nearest
from ..property_files import METHOD_KEY, of_recbole
from ..resources import properties_dir
from ..settings import KEYS, check_values

PROCEDURES: Final = (
    "recbole",
    "narrow",
    "sparse",
    "quantised",
    "gradual",
    "lottery",
    "hashed",
    "thresholds",
)
"""How a method is run; ``compare.procedures`` has a function for each."""


@dataclass(frozen=True)
class Method:
    """One row of a comparison.

    ``about``: one sentence; ``procedure``: of :data:`PROCEDURES`; ``densities``: whether it has a cell for
    every density, or one; ``after``: ``"dense"`` if it starts from the dense model that RecBole has trained;
    ``tuned``: whether it trains anything that settings change; ``trains_as``: the ``dsl_method`` of procedure
    ``sparse``, and whose scope, budget and bytes the others have; ``as_large_as``: of ``narrow``,
    ``"weights"`` or ``"training"``; ``widths``: which settings of a model say how wide it is;
    ``even``: which of them have to be even; ``options``: of the procedure; ``settings``: of the run;
    ``refuses``: models that it cannot train, and why.
    """

    name: str
    about: str
    procedure: str = "sparse"
    densities: bool = True
    after: str | None = None
    trains_as: str | None = None
    tuned: bool = True
    as_large_as: str = "weights"
    widths: Mapping[str, list[str]] = field(default_factory=dict)
    even: Mapping[str, list[str]] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    refuses: Mapping[str, str] = field(default_factory=dict)

    @property
    def widens(self) -> bool:
        """Whether its sparse model may have more columns than the dense one (``dsl_width``)."""
        return self.procedure in ("sparse", "narrow") and self.after is None

    def configured(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """``settings`` as our configuration takes them; where RecBole alone trains, it sees none of ours."""
        if self.trains_as is None:
            property_files.check_keys(settings, KEYS, "flags and files")
            check_values(settings)
            return {**of_recbole(settings), METHOD_KEY: "static"}
        return {**settings, METHOD_KEY: self.trains_as}

    def sizes(self, model: str) -> frozenset[str]:
        """Of a narrow method: the settings on which its bytes and those of ``trains_as`` depend."""
        if self.procedure != "narrow":
            return frozenset()
        return frozenset({"embedding_size", "dsl_width", *self.widths.get(model, self.widths["default"])})


def method_names() -> list[str]:
    """All names, in alphabetical order."""
    return sorted(_own_names() | set(property_files.method_names()))


def _own_names() -> set[str]:
    return {path.stem for path in (properties_dir() / "compare").glob("*.yaml")}


def read_method(name: str) -> Method:
    """The method of a name, or of the path of a method file of one's own (``mine.yaml``).

    Raises:
        ConfigError: there is none, or its file is not as it should be.
    """
    if name in _own_names():
        return _of_file(name, _content(name))
    if name not in method_names() and not name.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"methods={name!r} is no known method{nearest(name, method_names())}; allowed are "
            f"{', '.join(method_names())}, and the path of a method file ending in .yaml."
        )
    property_files.method_settings(name)
    if Path(name).stem in _own_names():
        raise ConfigError(
            f"methods={name!r} is refused, because its name {Path(name).stem!r} is taken: allowed is another "
            "name of the file."
        )
    plain = property_files.method_name(name)
    own = Path(name).expanduser() if name != plain else properties_dir() / "method" / f"{plain}.yaml"
    return Method(plain, _first_comment(own) or "Sparse from scratch.", trains_as=name)


def _first_comment(path: Path) -> str:
    """What a method file says about itself in its first lines."""
    lines = itertools.takewhile(
        lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines()
    )
    return " ".join(line.lstrip("# ") for line in lines)


def _content(name: str) -> dict[str, Any]:
    """The parts of a method's file, above those of the method that it is ``based_on``."""
    content = property_files.read_mapping(properties_dir() / "compare" / f"{name}.yaml")
    base = content.pop("based_on", None)
    return content if base is None else {**_content(base), **content}


def _of_file(name: str, content: dict[str, Any]) -> Method:
    parts = sorted({part.name for part in fields(Method)} - {"name"})
    for key in content:
        if key not in parts:
            raise ConfigError(f"Part {key!r} of method {name!r} is unknown; allowed are {', '.join(parts)}.")
    method = Method(name, **content)
    if method.procedure not in PROCEDURES:
        raise ConfigError(
            f"procedure={method.procedure!r} of method {name!r} is unknown; allowed are "
            f"{', '.join(PROCEDURES)}."
        )
    return method
