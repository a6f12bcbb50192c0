"""``recbole-dsl models``: which models can be trained sparse, and what is sparse by default."""

from __future__ import annotations

from collections.abc import Sequence

from . import support
from .errors import ConfigError


def run(argv: Sequence[str]) -> None:
    """``recbole-dsl models [NAME …]``: which models can be trained sparse, and what is sparse by default."""
    if {"-h", "--help"} & set(argv):
        print("usage: recbole-dsl models [NAME ...]\n\nWhich RecBole models can be trained sparse.")
        return
    for word in argv:
        if word.startswith("-"):
            raise ConfigError(f"Argument {word!r} is refused: allowed after 'models' are names of models.")
    table = support.rows(argv)
    print(support.as_text(table))
    if not argv:
        print(f"\n{support.count(table)} models that gradients train are trained sparse.")
