"""Recommendations of many users written to one file, a row for each item, with little memory."""

from __future__ import annotations

import codecs
import contextlib
import csv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from ..errors import ConfigError, nearest, on_one_line
from ..files import written_whole

Write = Callable[[str, list[str], Any], None]
"""Takes a user, its items, and their scores."""

_ROWS: Final = 1 << 17


@contextlib.contextmanager
def csv_file(path: Path, asked: str) -> Iterator[Write]:
    """Columns ``asked`` (such as ``user``), ``rank``, ``item``, ``score``; UTF-8 with a header."""
    with written_whole(path) as file:
        rows = csv.writer(codecs.getwriter("utf-8")(file))
        rows.writerow([asked, "rank", "item", "score"])

        def write(name: str, items: list[str], scores: Any) -> None:
            rows.writerows(
                (name, rank, item, f"{float(score):.9g}")
                for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
            )

        yield write


@contextlib.contextmanager
def parquet_file(path: Path, asked: str) -> Iterator[Write]:
    """The same columns in Parquet; scores are float32."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError(
            f"--out={path} needs the package pyarrow, which cannot be imported ({on_one_line(error, False)}); "
            "allowed after 'pip install pyarrow', or a file that ends in .csv."
        ) from None
    schema = pa.schema(
        [(asked, pa.string()), ("rank", pa.int32()), ("item", pa.string()), ("score", pa.float32())]
    )
    waiting: list[list[Any]] = [[], [], [], []]
    with written_whole(path) as file, pq.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            if waiting[0]:
                writer.write_table(pa.table(dict(zip(schema.names, waiting, strict=True)), schema=schema))
            for column in waiting:
                column.clear()

        def write(name: str, items: list[str], scores: Any) -> None:
            for column, values in zip(
                waiting, ([name] * len(items), range(1, len(items) + 1), items, map(float, scores)), strict=True
            ):
                column.extend(values)
            if len(waiting[0]) >= _ROWS:
                flush()

        yield write
        flush()


ENDINGS: Final[dict[str, Callable[[Path, str], AbstractContextManager[Write]]]] = {
    ".csv": csv_file,
    ".parquet": parquet_file,
}
"""By the ending of the file's name."""


def writer_of(path: Path) -> Callable[[Path, str], AbstractContextManager[Write]]:
    """What writes a file of this name; ConfigError if nothing does."""
    if path.suffix.lower() not in ENDINGS:
        hint = nearest(path.suffix, ENDINGS)
        raise ConfigError(
            f"--out={path} is refused: allowed is a name that ends in {' or '.join(ENDINGS)}{hint}."
        )
    return ENDINGS[path.suffix.lower()]
