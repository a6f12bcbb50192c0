"""``recbole-dsl plan``: its options, and one sentence for every mistake in them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, NoReturn, TypeVar

from .command_line import Parser
from .errors import ConfigError, nearest
from .planning import (
    ARTIFACT_VALUES,
    OPTIMIZERS,
    PRECISIONS,
    Group,
    Plan,
    Setup,
    Table,
    as_text,
    groups_of,
    least_growth_memory,
    with_momentum,
)
from .property_files import overall_settings
from .quantities import COUNTS_ALLOWED, LARGEST, parse_count
from .settings import AUTO, SETTINGS, Refused

Value = TypeVar("Value")

REPLICATED: Final = (
    "Data-parallel training holds all weights, gradients and optimizer state on every device, and sends "
    "each step's gradients around a ring. 'Rows shared out' is what an even split of rows and live weights "
    "would take; recbole_dsl itself trains data-parallel."
)
ARTIFACT: Final = (
    "An artifact holds values, column ids and row counts. Headers of files and the tokens of users and items "
    "are not counted, nor is what exists only within a step."
)


def default_growth_memory() -> object:
    """What training takes where ``dsl_growth_memory`` is not set."""
    return overall_settings()["dsl_growth_memory"]


class _Parser(Parser):
    """Says how its values may be written as well."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(
            f"{self.prog}: {message}; allowed are --option=value and --option value, see '{self.prog} --help'."
        )


def parser() -> Parser:
    """The options of ``recbole-dsl plan``. Values stay text, and all that were given, for the readers below."""
    result = _Parser(
        "plan",
        "What a training will hold, dense beside sparse, before anything is built.",
        "Counts may be written 1e9, 1_000_000, 10M or 1.5B. Example: recbole-dsl plan --users 1e9 "
        "--items 1e8 --dim 128 --density 0.05 --optimizer adam --workers 8",
    )

    def option(name: str, help: str, metavar: str = "N") -> None:
        result.add_argument(name, action="append", default=[], help=help, metavar=metavar)

    option("--users", "rows of the user table")
    option("--items", "rows of the item table")
    option("--dim", "columns of both")
    option("--tables", "other tables in place of those three: name=ROWSxCOLUMNS,name=…", "TABLES")
    option("--density", "live weights / weights, above 0 and at most 1", "SHARE")
    option("--budget", "live weights, in place of the density")
    option("--groups", "joint (default): all tables share one budget; per_tensor: each has its own", "WORD")
    option("--optimizer", f"one of {', '.join(OPTIMIZERS)} (default: adam)", "NAME")
    result.add_argument("--momentum", action="store_true", help="sgd and rmsprop: with momentum")
    option("--precision", f"of training, one of {', '.join(PRECISIONS)} (default: float32)", "NAME")
    option("--workers", "number of devices (default: 1)")
    option(
        "--growth-memory",
        f"as dsl_growth_memory, bytes or None for no bound (default: {default_growth_memory()})",
        "BYTES",
    )
    option("--growth-rows", "as dsl_growth_rows, the share of the rows that are scored (default: 1)", "SHARE")
    option(
        "--artifact-values",
        f"of the served artifact, one of {', '.join(ARTIFACT_VALUES)} (default: fp32)",
        "NAME",
    )
    result.add_argument("--json", action="store_true", help="print exact bytes as JSON")
    return result


def run(argv: Sequence[str]) -> None:
    """Print the plan that the options ``argv`` ask for.

    Raises:
        ConfigError: an option is unknown, missing, contradicted or out of range.
    """
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return
    options, unknown = parser().parse_known_args(list(argv))
    if unknown:
        known = ["--" + name.replace("_", "-") for name in vars(options)]
        raise ConfigError(
            f"Argument {unknown[0]!r} is refused{nearest(unknown[0].partition('=')[0], known)}: allowed are "
            "the options that 'recbole-dsl plan --help' lists."
        )
    plan = plan_of(Given(options))
    print(json.dumps(plan.to_dict(), indent=2) if options.json else as_text(plan))


class Given:
    """The options as they were given, read one at a time."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.momentum: bool = options.momentum
        self._values: dict[str, Any] = vars(options)

    def has(self, option: str) -> bool:
        """Whether an option was given."""
        return bool(self._all(option))

    def _all(self, option: str) -> list[str]:
        return self._values[option.removeprefix("--").replace("-", "_")]

    def read(
        self, option: str, reader: Callable[[str], Value], allowed: str, default: Value | None = None
    ) -> Value:
        """The value of an option, or ``default``.

        Raises:
            ConfigError: there is neither, there are several, or ``reader`` raises Refused or ConfigError.
        """
        values = list(dict.fromkeys(self._all(option)))
        if not values:
            if default is None:
                raise ConfigError(f"{option} is missing: allowed is {allowed}.")
            return default
        if len(values) > 1:
            raise ConfigError(f"{option}={values[1]} contradicts {option}={values[0]}: allowed is one value.")
        try:
            return reader(values[0])
        except (Refused, ConfigError) as error:
            hint = error.hint if isinstance(error, Refused) else ""
            raise ConfigError(f"{option}={values[0]!r} is refused: allowed is {allowed}{hint}.") from None

    def count(self, option: str, default: int | None = None) -> int:
        """A whole number of at least 1."""
        return self.read(option, parse_count, COUNTS_ALLOWED, default)

    def setting(self, option: str, name: str, default: Value | None = None) -> Any:
        """A value as that of field ``name`` of the settings of training."""
        return self.read(option, SETTINGS[name].parse, SETTINGS[name].allowed, default)

    def word(self, option: str, words: Collection[str], default: str) -> str:
        """One of ``words``."""

        def reader(text: str) -> str:
            if text not in words:
                raise Refused(nearest(text, words))
            return text

        return self.read(option, reader, f"one of {', '.join(words)}", default)


def plan_of(given: Given) -> Plan:
    """The plan that options ask for.

    Raises:
        ConfigError: an option is missing, contradicted or out of range.
    """
    setup, groups = _setup(given), _groups(given)
    workers = given.count("--workers", 1)
    notes = [] if workers == 1 else [REPLICATED]
    least = least_growth_memory(groups, setup)
    if setup.growth_memory is not None and setup.growth_memory < least:
        if given.has("--growth-memory"):
            raise ConfigError(
                f"--growth-memory={setup.growth_memory} bytes is too small to score even one row of each "
                f"table: allowed is at least {least} bytes."
            )
        notes.append(
            f"Training would refuse its default dsl_growth_memory={default_growth_memory()}, too small to "
            f"score even one row of each table. Counted is the least that it accepts, {least:,} bytes on a "
            "device with all rows. Give --growth-memory what a device can spare: the more rows are scored in a "
            "growth window, the better is the choice of weights."
        )
    return Plan(tuple(groups), setup, workers, (*notes, ARTIFACT))


def _setup(given: Given) -> Setup:
    """Optimizer, precisions and the bounds of growth."""
    optimizer = given.word("--optimizer", OPTIMIZERS, "adam")
    if given.momentum and OPTIMIZERS[optimizer].with_momentum is None:
        allowed = " and ".join(f"--optimizer={name}" for name in with_momentum())
        raise ConfigError(f"--momentum contradicts --optimizer={optimizer}: allowed with it are {allowed}.")
    memory = SETTINGS["growth_memory"].parse(default_growth_memory())
    if given.has("--growth-memory"):
        memory = given.setting("--growth-memory", "growth_memory")
    rows = given.setting("--growth-rows", "growth_rows", 1.0)
    return Setup(
        optimizer=optimizer,
        momentum=given.momentum,
        precision=given.word("--precision", PRECISIONS, "float32"),
        growth_memory=memory,
        growth_rows=1.0 if rows == AUTO else rows,  # no table is wider than the dense model's
        artifact_values=given.word("--artifact-values", ARTIFACT_VALUES, "fp32"),
    )


def _groups(given: Given) -> list[Group]:
    """Tables and their budgets."""
    tables = _tables(given)
    joint = given.word("--groups", ("joint", "per_tensor"), "joint") == "joint"
    weights = sum(table.weights for table in tables)
    if weights > LARGEST:
        raise ConfigError(f"the tables have {weights} weights: allowed are at most {LARGEST}.")
    if given.has("--budget") and given.has("--density"):
        raise ConfigError("--budget contradicts --density: allowed is one of them.")
    if given.has("--density"):
        return groups_of(tables, joint, density=given.setting("--density", "density"))
    if not given.has("--budget"):
        raise ConfigError(f"--density is missing: allowed is {SETTINGS['density'].allowed}, or --budget.")
    budget, least = given.count("--budget"), 1 if joint else len(tables)
    if not least <= budget <= weights:
        raise ConfigError(
            f"--budget={budget} is refused: allowed is a number from {least} to {weights} weights, at least "
            "one for each group."
        )
    return groups_of(tables, joint, budget=budget)


def _tables(given: Given) -> list[Table]:
    """The user and the item table, or those of ``--tables``."""
    plain = [option for option in ("--users", "--items", "--dim") if given.has(option)]
    if not given.has("--tables"):
        rows = {name: given.count(f"--{name}") for name in ("users", "items")}
        columns = given.count("--dim")
        return [Table(name, number, columns) for name, number in rows.items()]
    if plain:
        raise ConfigError(f"--tables contradicts {plain[0]}: allowed is one of them.")
    return given.read("--tables", _parse_tables, "name=ROWSxCOLUMNS, several with different names and commas")


def _parse_tables(text: str) -> list[Table]:
    """Read ``'users=1e9x128,items=1e8 x 128'``; names must differ."""
    tables = []
    for part in text.split(","):
        name, equals, shape = part.partition("=")
        rows, cross, columns = shape.replace("×", "x").partition("x")
        if not (equals and cross and name.strip()):
            raise Refused
        tables.append(Table(name.strip(), parse_count(rows), parse_count(columns)))
    if len({table.name for table in tables}) < len(tables):
        raise Refused
    return tables
