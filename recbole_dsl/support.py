"""Which models can be trained sparse: the table behind ``recbole-dsl models`` and ``docs/models.md``.

Its facts are in ``support.json``, which ``python -m tests.support_table`` writes from real runs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from . import recbole_names
from .errors import ConfigError, nearest
from .property_files import model_file

TRAINED: Final = "trained"
REFUSED: Final = "refused"
UNTESTED: Final = "untested"

FACTS: Final = Path(__file__).with_name("support.json")
"""``environment`` of the runs and ``models``: for each the fields of :class:`Row` but ``note``."""

COLUMNS: Final = (
    "model", "family", "trainer", "share", "storage", "loss difference at density 1", "sparse run",
    "sparse by default", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model.

    ``status``: :data:`TRAINED`, :data:`REFUSED` or :data:`UNTESTED`; ``sparse``: name, kind and storage of
    the tensors that are sparse by default; ``share``: their part of the trainable weights (ml-100k,
    RecBole's sizes); ``difference``: greatest relative difference of a step's loss from RecBole's in an
    epoch at density 1; ``updates``: of every group in a run at density 0.2, at least; ``reason`` of a refusal.
    """

    model: str
    family: str
    status: str = UNTESTED
    trainer: str = ""
    sparse: tuple[dict[str, str], ...] = ()
    share: float = 0.0
    difference: float | None = None
    updates: int = 0
    reason: str = ""

    @property
    def note(self) -> str:
        """Why it is refused, or what its property file has to say."""
        return self.reason or str(model_file(self.model).get("note", ""))

    @property
    def storage(self) -> str:
        """How the sparse tensors are stored."""
        return ", ".join(sorted({tensor["storage"] for tensor in self.sparse}))

    @property
    def scope(self) -> str:
        """The sparse tensors in few words: tables and raw parameters by name, matrices by number."""
        named = [t["name"].removesuffix(".weight") for t in self.sparse if t["kind"] != "linear"]
        matrices = len(self.sparse) - len(named)
        words = [", ".join(named)] if named else []
        if matrices:
            words.append(f"{matrices} Linear {'matrix' if matrices == 1 else 'matrices'}")
        return "; ".join(words)


def facts() -> dict[str, Any]:
    """The content of ``support.json``."""
    return json.loads(FACTS.read_text(encoding="utf-8"))


def rows(names: Collection[str] = ()) -> list[Row]:
    """A row for every model of the installed RecBole, or for those in ``names``, in any case.

    Raises:
        ConfigError: RecBole has no model of that name.
    """
    known = facts()["models"]
    result = []
    for path in recbole_names.model_files().values():
        name = recbole_names.model_class_name(path)
        row = {**known.get(name, {}), "model": name, "family": recbole_names.family(path)}
        row["sparse"] = tuple(row.get("sparse", ()))
        result.append(Row(**row))
    for name in names:
        if name.lower() not in {row.model.lower() for row in result}:
            raise ConfigError(
                f"{name!r} is no model of RecBole{nearest(name, [row.model for row in result])}; allowed are "
                "the names that 'recbole-dsl models' lists."
            )
    wanted = {name.lower() for name in names}
    return [row for row in result if not wanted or row.model.lower() in wanted]


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, one cell for each of :data:`COLUMNS`."""
    run = f"{row.updates} updates" if row.status == TRAINED else row.status
    return (
        row.model,
        row.family.replace("_", "-"),
        row.trainer,
        f"{row.share:.0%}" if row.sparse else "",
        row.storage,
        "" if row.difference is None else f"{row.difference:.0e}" if row.difference else "0",
        run,
        row.scope,
        row.note,
    )


def count(table: Iterable[Row]) -> str:
    """How many of the models that gradients train are trained sparse: '84 of 84'."""
    statuses = [row.status for row in table]
    trainable = [status for status in statuses if status != REFUSED]
    return f"{trainable.count(TRAINED)} of {len(trainable)}"


def as_text(table: Sequence[Row]) -> str:
    """Aligned columns for a terminal; the last ones may be long."""
    lines = [COLUMNS, *map(cells, table)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS) - 2)]
    text = []
    for line in lines:
        fixed = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        text.append(f"{fixed}  {line[-2]}{' | ' if line[-2] and line[-1] else ''}{line[-1]}".rstrip())
    return "\n".join(text)
