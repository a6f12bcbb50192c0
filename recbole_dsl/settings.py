"""The settings of one sparse training, typed and checked. Needs neither RecBole nor torch.

A key of the configuration is ``dsl_`` plus the name of a field of :class:`DSLConfig`. One table,
:data:`SETTINGS`, says for every field how its value is read and what is allowed, so a new setting
is one row there and one field of :class:`DSLConfig`.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import numbers
import os
import tempfile
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final, Protocol

from recbole_dsl import property_files
from recbole_dsl.errors import ConfigError, nearest
from recbole_dsl.quantities import (
    BYTES_ALLOWED,
    LARGEST,
    PACES_ALLOWED,
    Budget,
    Pace,
    Span,
    SpanUnit,
    parse_bytes,
    parse_pace,
    parse_span,
)
from recbole_dsl.sparsity.names import (
    COMPILERS,
    DATA_PATH_NAMES,
    DROP_NAMES,
    GRAPH_NAMES,
    GROWTH_NAMES,
    INIT_TABLES_NAMES,
    KERNEL_NAMES,
    SCHEDULE_NAMES,
    SPLIT_NAMES,
    STORAGE_NAMES,
    TOPOLOGIES_WITH_VALUES,
    TOPOLOGY_NAMES,
)

PREFIX: Final = property_files.PREFIX
METHOD_KEY: Final = property_files.METHOD_KEY


class Refused(Exception):
    """A value is not allowed; ``hint`` ends the message, e.g. with the nearest known word."""

    def __init__(self, hint: str = "") -> None:
        super().__init__(hint)
        self.hint = hint


# --- readers: one value -> its typed form, or Refused ---------------------------------------------


def literal(value: object) -> object:
    """Read text as a Python literal (never executing it); text that is none stays as it is.

    ``true`` and ``false`` are read in any case, as RecBole does. Other types pass unchanged.
    """
    if not isinstance(value, str):
        return value
    if value.strip().lower() in {"true", "false"}:
        return value.strip().lower() == "true"
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def _as_number(value: object) -> Any:
    """A finite number that is no bool, or :class:`Refused`."""
    value = literal(value)
    number: Any = value  # numbers.Real, of which type checkers know no comparison
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise Refused
    if not abs(number) < math.inf:  # also false for nan; math.isfinite overflows on huge integers
        raise Refused
    return number


def _is_positive(value: object) -> bool:
    """Whether it is a number above 0, or a word for infinity."""
    try:
        number: Any = literal(value)
        return not isinstance(number, bool) and float(number) > 0
    except (TypeError, ValueError, OverflowError):
        return False


def _as_whole(value: object, least: int, most: int = LARGEST) -> int:
    """A whole number from ``least`` to ``most`` (``1e3`` counts as one), or :class:`Refused`."""
    number = _as_number(value)
    whole = int(number)
    if number != whole or not least <= whole <= most:
        raise Refused
    return whole


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of :data:`SETTINGS`.

    ``parse`` turns a value into its typed form or raises :class:`Refused`; ``allowed`` finishes the
    sentence "allowed is …"; ``text``: the value is never a Python literal (a name or a path).
    """

    parse: Callable[[Any], Any]
    allowed: str
    text: bool = False


def _optional(setting: Setting, meaning: str) -> Setting:
    """The same setting, which may also be None."""

    def parse(value: object) -> object:
        return None if literal(value) is None else setting.parse(value)

    return Setting(parse, f"{setting.allowed}, or None for {meaning}", setting.text)


def number_setting(accepts: Callable[[float], bool], allowed: str) -> Setting:
    """A finite number for which ``accepts`` holds."""

    def parse(value: object) -> float:
        number = _as_number(value)
        if abs(number) > LARGEST:
            raise Refused(f" of at most {LARGEST}")
        if not accepts(float(number)):
            raise Refused
        return float(number)

    return Setting(parse, allowed)


def whole_setting(least: int, most: int = LARGEST) -> Setting:
    """A whole number, at least ``least`` and at most ``most``."""
    allowed = f"a whole number of at least {least}"
    if most < LARGEST:
        allowed = f"a whole number from {least} to {most}"
    return Setting(lambda value: _as_whole(value, least, most), allowed)


def mapping_setting(allowed: str, needed: Set[str], known: Set[str], positive: Set[str]) -> Setting:
    """A mapping of ``known`` words, the ``needed`` ones among them, to values.

    ``positive``: those whose values are numbers above 0, infinity among them.
    """

    def parse(value: object) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not needed <= value.keys() <= known:
            raise Refused
        if not all(_is_positive(value[word]) for word in positive & value.keys()):
            raise Refused
        return dict(value)

    return Setting(parse, allowed)


def word_setting(words: tuple[str, ...], any_case: bool = False) -> Setting:
    """One of ``words``; ``any_case``: which are in small letters, and may be given in others."""

    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise Refused
        word = value.lower() if any_case else value
        if word not in words:
            raise Refused(nearest(word, words))
        return value

    return Setting(parse, "one of " + ", ".join(words), text=True)


def flag_setting() -> Setting:
    """True or False."""

    def parse(value: object) -> bool:
        flag = literal(value)
        if not isinstance(flag, bool):
            raise Refused
        return flag

    return Setting(parse, "True or False")


def _memory() -> Setting:
    def parse(value: object) -> int:
        value = literal(value)
        return parse_bytes(value) if isinstance(value, str) else _as_whole(value, 1)

    return Setting(parse, f"a whole number of bytes of at least 1, or {BYTES_ALLOWED}")


def _budget() -> Setting:
    def parse(value: object) -> Budget:
        if isinstance(value, Budget):
            return value
        value = literal(value)
        if isinstance(value, str):
            return Budget(parse_bytes(value), "bytes")
        return Budget(_as_whole(value, 1), "weights")

    return Setting(parse, f"a whole number of live weights of at least 1, or {BYTES_ALLOWED}")


def _span(units: tuple[SpanUnit, ...], minimum: int, allowed: str) -> Setting:
    """A span in one of ``units``, longer than nothing if ``minimum`` > 0; numbers are steps."""

    def parse(value: object) -> Span:
        value = literal(value)
        if isinstance(value, Span):
            span = Span(value.amount, value.unit, minimum)
        elif isinstance(value, str):
            span = parse_span(value, minimum)
        else:
            span = Span(float(_as_whole(value, 0)), "steps", minimum)
        if span.unit not in units or (minimum and not span.amount):
            raise Refused
        return span

    return Setting(parse, allowed)


def _as_patterns(value: object) -> tuple[str, ...]:
    """Non-empty patterns from a list or from text with commas, or :class:`Refused`."""
    value = literal(value)
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise Refused
    if not all(isinstance(part, str) and part.strip() for part in parts):
        raise Refused
    return tuple(part.strip() for part in parts)


def _patterns(least: int) -> Setting:
    def parse(value: object) -> tuple[str, ...]:
        patterns = _as_patterns(value)
        if len(patterns) < least:
            raise Refused
        return patterns

    some = "a non-empty list" if least else "a list"
    return Setting(parse, f"{some} of shell-style patterns such as 'user_embedding.weight'")


def _groups() -> Setting:
    words = ("joint", "per_tensor")

    def parse(value: object) -> str | dict[str, tuple[str, ...]]:
        value = literal(value)
        if isinstance(value, str):
            if value not in words:
                raise Refused(nearest(value, words))
            return value
        if not isinstance(value, Mapping) or not value:
            raise Refused
        groups = {name: _as_patterns(patterns) for name, patterns in value.items()}
        if not all(isinstance(name, str) and name and part for name, part in groups.items()):
            raise Refused
        return groups

    return Setting(parse, "joint, per_tensor, or a mapping of group names to lists of patterns")


def path_setting(allowed: str = "the path of a file") -> Setting:
    """A path that is not blank, with the user's folder in place of ``~``."""

    def parse(value: object) -> str:
        if not isinstance(value, str | os.PathLike) or not str(value).strip():
            raise Refused
        return os.path.expanduser(os.fspath(value))

    return Setting(parse, allowed, text=True)


def _pace() -> Setting:
    def parse(value: object) -> Pace:
        if not isinstance(value, str):
            raise Refused
        return parse_pace(value)

    return Setting(parse, PACES_ALLOWED, text=True)


def _resume() -> Setting:
    def parse(value: object) -> bool | str:
        if value is None or isinstance(value, bool):
            return bool(value)
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        if not isinstance(value, str | os.PathLike) or not os.fspath(value):
            raise Refused
        return os.path.expanduser(os.fspath(value))

    return Setting(parse, "True (the newest checkpoint of this run), False, or the path of one", text=True)


AUTO: Final = "auto"
"""Of ``dsl_width`` and ``dsl_init_norm``: chosen by the interactions; of ``dsl_growth_rows``: by the dense
model's size."""


def _or_auto(setting: Setting, means: str = "the interactions decide") -> Setting:
    """The same setting, which may also be ``auto``."""

    def parse(value: object) -> Any:
        return AUTO if isinstance(value, str) and value.lower() == AUTO else setting.parse(value)

    return Setting(parse, f"{setting.allowed}, 'auto' ({means})", setting.text)


def _width() -> Setting:
    columns = _or_auto(whole_setting(1))

    def parse(value: object) -> Any:
        text = value.strip().lower() if isinstance(value, str) else ""
        return f"{_as_whole(text[:-1], 1)}x" if text.endswith("x") else columns.parse(value)

    return Setting(parse, f"{columns.allowed}, '2x' or the like (so many times the model's own)", text=True)


def times(width: int | str | None) -> int | None:
    """How many times the model's own ``embedding_size`` a ``dsl_width`` such as ``'2x'`` is; None of others."""
    return int(width[:-1]) if isinstance(width, str) and width.endswith("x") else None


def _method() -> Setting:
    def parse(value: object) -> str:
        if not isinstance(value, str):
            raise Refused
        return property_files.method_name(value)

    known = "the name of a method file, or the path of one's own ending in .yaml"
    return Setting(parse, known, text=True)


# --- the table ------------------------------------------------------------------------------------

_SHARE: Final = number_setting(lambda x: 0 <= x <= 1, "a number from 0 to 1")

SETTINGS: Final[dict[str, Setting]] = {
    "method": _method(),
    "density": number_setting(lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
    "budget": _optional(_budget(), "the budget that dsl_density gives"),
    "split": _optional(word_setting(SPLIT_NAMES), "as dsl_init says ('er', 'erk'), else by size"),
    "width": _optional(_width(), "the model's own embedding_size"),
    "width_max": whole_setting(1),
    "update_interval": _span(
        ("steps", "epochs"), 1, "a whole number of steps of at least 1, or text such as '2 epochs'"
    ),
    "end": _span(
        ("steps", "epochs", "percent"),
        0,
        "text such as '30%' (at most 100%), '60 epochs' or '4000 steps'",
    ),
    "update_ratio": _SHARE,
    "update_ratio_min": _SHARE,
    "schedule": word_setting(SCHEDULE_NAMES),
    "drop": word_setting(DROP_NAMES),
    "drop_threshold": _optional(
        number_setting(lambda x: x > 0, "a number above 0"), "no threshold (not with dsl_drop=threshold)"
    ),
    "grow": word_setting(GROWTH_NAMES),
    "grow_window": _optional(whole_setting(1), "the whole update interval"),
    "grow_momentum": number_setting(lambda x: 0 <= x < 1, "a number of at least 0 and below 1"),
    "grow_row_power": _SHARE,
    "grow_column_power": _SHARE,
    "grow_moment": _SHARE,
    "growth_memory": _optional(_memory(), "no bound"),
    "growth_rows": _or_auto(
        number_setting(lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
        "as many positions as the dense model has weights",
    ),
    "init": word_setting(TOPOLOGY_NAMES),
    "init_values": word_setting(("model", "fan_in", "topology")),
    "init_norm": _or_auto(number_setting(lambda x: x > 0, "a number above 0")),
    "init_linear_norm": _optional(
        number_setting(lambda x: x > 0, "a number above 0"), "positions only, not values"
    ),
    "init_power": _SHARE,
    "init_popularity": number_setting(lambda x: -1 <= x <= 1, "a number from -1 to 1"),
    "init_tables": word_setting(INIT_TABLES_NAMES),
    "seed": _optional(whole_setting(0), "RecBole's seed"),
    "learning_rate_power": _SHARE,
    "groups": _groups(),
    "include": _optional(_patterns(1), "all embedding tables and Linear matrices"),
    "exclude": _patterns(0),
    "min_weights": whole_setting(0),
    "storage": word_setting(STORAGE_NAMES),
    "kernels": word_setting(KERNEL_NAMES),
    "graph": word_setting(GRAPH_NAMES),
    "data_path": word_setting(DATA_PATH_NAMES),
    "start_from": _optional(path_setting(), "the model's own initial values"),
    "save_every": _optional(_pace(), "only the start, the end and a stop"),
    "resume": _resume(),
    "result": _optional(path_setting(), "no result file"),
    "exploration_record": flag_setting(),
}

KEYS: Final = frozenset(PREFIX + name for name in SETTINGS)
"""Every ``dsl_`` key there is."""


def parse_setting(name: str, value: object) -> Any:
    """Read the value of field ``name`` of :class:`DSLConfig`.

    Raises:
        ConfigError: the value is not allowed; the message names key, value and what is allowed.
    """
    setting = SETTINGS[name]
    try:
        return setting.parse(value)
    except (Refused, ConfigError) as error:
        # A ConfigError comes from a reader that is public itself and does not know the key.
        if isinstance(error, ConfigError) and name == "method":
            raise
        hint = error.hint if isinstance(error, Refused) else ""
        raise ConfigError(f"{PREFIX}{name}={value!r} is refused: allowed is {setting.allowed}{hint}.") from None


def check_values(settings: Mapping[str, object]) -> None:
    """Refuse keys of ours, all of them known, with a value that is not allowed; None counts as not given.

    Raises:
        ConfigError: names key, value and what is allowed.
    """
    for key, value in settings.items():
        if key in KEYS and literal(value) is not None:
            parse_setting(key.removeprefix(PREFIX), value)


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Make sure that nothing is lost if a result is written to ``path``: an older one may be there, or nothing.

    Raises:
        ConfigError: a file is there that is neither empty nor a result.
    """
    try:
        text = Path(path).read_bytes()
        if not text:
            return
        values = json.loads(text)
    except FileNotFoundError:
        return
    except (ValueError, OSError, RecursionError):
        values = None
    if not isinstance(values, dict) or not {"schema", "epochs_run"} <= values.keys():
        raise ConfigError(
            f"dsl_result={os.fspath(path)!r} is refused, because that file is no result of a run and would be "
            "lost; allowed is a file that does not exist, or an older result."
        )


def check_writable(path: str | os.PathLike[str], key: str = "dsl_result") -> None:
    """Make sure that a file can be written at ``path`` later, without leaving a trace now.

    Missing folders are fine if they can be created; an existing file is not touched. ``key``: the
    setting to name.

    Raises:
        ConfigError: ``path`` is a folder or a device, or cannot be written or created.
    """

    def refuse(reason: str) -> ConfigError:
        return ConfigError(
            f"{key}={os.fspath(path)!r} is refused, because {reason}; "
            "allowed is a path where a file can be written."
        )

    try:
        target = Path(path).resolve()
        if target.is_dir():
            raise refuse("it is a folder")
        if target.is_file():
            os.close(os.open(target, os.O_WRONLY | os.O_APPEND))
        elif target.exists():
            raise refuse("it is a device or a pipe")
        # A file that is there is replaced by one that is written beside it.
        parent = next(folder for folder in target.parents if folder.exists())
        # A nameless file: the only test that also sees read-only file systems.
        with tempfile.TemporaryFile(dir=parent):
            pass
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise refuse(f"it cannot be written ({reason})") from None


# --- the settings of a run ------------------------------------------------------------------------


class _Keyed(Protocol):
    """What both a dict and RecBole's Config offer."""

    def __contains__(self, key: Any, /) -> bool: ...
    def __getitem__(self, key: Any, /) -> Any: ...


def default_ratio_min(least: float, ratio: object) -> float:
    """``dsl_update_ratio_min`` of a property file beside a ratio of the user's, which it must not contradict.

    A ratio of 0, which switches updates off, may have any.
    """
    return min(least, ratio) if isinstance(ratio, int | float) and ratio > 0 else least


def values_for(init: str, init_values: str) -> str:
    """``init_values`` of a default, or ``fan_in`` where it asks for values that the topology does not have."""
    lacks = init_values == "topology" and init not in TOPOLOGIES_WITH_VALUES
    return "fan_in" if lacks else init_values


@dataclass(frozen=True, slots=True)
class DSLConfig:
    """All settings of one sparse training; see :data:`SETTINGS` for what each may be.

    ``budget``, when there is one, takes the place of ``density``. ``include`` and ``exclude`` hold
    shell-style patterns on tensor names; ``groups`` is ``"joint"``, ``"per_tensor"`` or maps names
    of groups to such patterns.
    """

    method: str
    density: float
    budget: Budget | None
    split: str | None
    width: int | str | None
    width_max: int
    update_interval: Span
    end: Span
    update_ratio: float
    update_ratio_min: float
    schedule: str
    drop: str
    drop_threshold: float | None
    grow: str
    grow_window: int | None
    grow_momentum: float
    grow_row_power: float
    grow_column_power: float
    grow_moment: float
    growth_memory: int | None
    growth_rows: float | str
    init: str
    init_values: str
    init_norm: float | str
    init_linear_norm: float | None
    init_power: float
    init_popularity: float
    init_tables: str
    seed: int | None
    learning_rate_power: float
    groups: str | Mapping[str, tuple[str, ...]]
    include: tuple[str, ...] | None
    exclude: tuple[str, ...]
    min_weights: int
    storage: str
    kernels: str
    graph: str
    data_path: str
    start_from: str | None
    save_every: Pace | None
    resume: bool | str
    result: str | None
    exploration_record: bool

    @classmethod
    def from_config(cls, config: _Keyed) -> DSLConfig:
        """Read the ``dsl_`` keys of a RecBole configuration or of any mapping.

        Keys that ``config`` lacks have the value of the method's property file, so ``{}`` gives the
        default method.

        Raises:
            ConfigError: an unknown ``dsl_`` key (of a mapping), a value that is not allowed, or
                values that contradict each other.
        """
        if isinstance(config, Mapping):
            property_files.check_keys(config, KEYS, "the settings")
        given = {key: config[key] for key in KEYS if key in config}
        if given.get(METHOD_KEY) is None:
            given.pop(METHOD_KEY, None)
        if len(given) < len(KEYS):
            given = property_files.method_settings(given.get(METHOD_KEY)) | given
            if "dsl_init_values" not in config:
                given["dsl_init_values"] = values_for(given["dsl_init"], given["dsl_init_values"])
        settings = cls(**{name: parse_setting(name, given[PREFIX + name]) for name in SETTINGS})
        if "dsl_update_ratio_min" not in config:
            least = default_ratio_min(settings.update_ratio_min, settings.update_ratio)
            settings = replace(settings, update_ratio_min=least)
        settings._check_contradictions()
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON-able values, which :meth:`from_config` reads back once prefixed."""
        return {field.name: _jsonable(getattr(self, field.name)) for field in fields(self)}

    def _check_contradictions(self) -> None:
        # A ratio of 0 switches updates off, whatever the minimum of the method is.
        if self.update_ratio_min > self.update_ratio > 0:
            raise ConfigError(
                f"dsl_update_ratio_min={self.update_ratio_min} contradicts "
                f"dsl_update_ratio={self.update_ratio}: allowed is at most that much."
            )
        if self.start_from is not None and self.init_values != "model":
            raise ConfigError(
                f"dsl_start_from={self.start_from!r} contradicts dsl_init_values={self.init_values!r}: "
                "allowed with it is only 'model', as the values come from the file."
            )
        if self.drop == "threshold" and self.drop_threshold is None:
            raise ConfigError(
                "dsl_drop='threshold' needs dsl_drop_threshold, which is None: allowed is a number above 0."
            )
        if self.grow == "random_never_live" and not self.exploration_record:
            raise ConfigError(
                "dsl_grow='random_never_live' contradicts dsl_exploration_record=False: allowed "
                "with it is only True."
            )
        if self.kernels in COMPILERS and importlib.util.find_spec(self.kernels) is None:
            raise ConfigError(
                f"dsl_kernels={self.kernels!r} needs the package {self.kernels}, which is not installed: "
                f"allowed without it are 'auto' and 'torch' ({COMPILERS[self.kernels]})."
            )
        if self.init_values == "topology" and self.init not in TOPOLOGIES_WITH_VALUES:
            raise ConfigError(
                f"dsl_init_values='topology' contradicts dsl_init={self.init!r}, which has no "
                f"values: allowed with it is dsl_init={' or '.join(TOPOLOGIES_WITH_VALUES)}."
            )
        if self.method == "dense" and (self.density != 1 or self.budget is not None):
            wrong = f"dsl_density={self.density}" if self.budget is None else "dsl_budget"
            raise ConfigError(
                f"{wrong} contradicts dsl_method='dense': allowed with it is only dsl_density=1.0 "
                "without a dsl_budget."
            )


def _jsonable(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: list(patterns) for key, patterns in value.items()}
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Budget) and value.unit == "weights":
        return value.count
    return str(value) if isinstance(value, Budget | Pace | Span) else value
