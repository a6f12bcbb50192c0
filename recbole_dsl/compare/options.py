"""What the options of a comparison mean: those that ``compare`` and ``tune`` share are here."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import property_files
from ..command_line import Parser, check_command_line
from ..errors import ConfigError
from ..settings import KEYS
from .grid import FIRST_SEED, Cell, cells_of
from .methods import Method, read_method

SET_BY_CELLS = (
    *("model", "dataset", "seed", "dsl_method", "dsl_density", "dsl_budget", "dsl_result", "dsl_resume"),
    *("dsl_start_from", "checkpoint_dir", "nproc", "world_size", "ip", "port", "group_offset"),
)
"""Settings that a comparison decides itself."""

SEEDS: Final = 2**32
"""How many there are: numpy's generators take no others."""

HOW: Final = frozenset({"space", "trials", "density", "seed", "metric"})
"""What a file of tuned settings says of how they were found, if it does not in words."""


def add_options(parser: Parser, default_name: str) -> None:
    """The options that both commands have; ``default_name``: of the folder, for the help."""
    parser.add_argument("--models", "--model", default="BPR", metavar="A,B", help="(default: BPR)")
    parser.add_argument("--datasets", "--dataset", default="ml-100k", metavar="A,B", help="(default: ml-100k)")
    parser.add_argument(
        "--methods", default="dense,narrow,dsl_plus", metavar="A,B", help="(default: dense,narrow,dsl_plus)"
    )
    parser.add_argument("--config_files", default="", metavar="'A B'", help="YAML files, separated by spaces")
    parser.add_argument("--tuned", metavar="FILE", help="YAML: settings by model, dataset and method")
    parser.add_argument("--name", metavar="NAME", help=f"of its folder (default: {default_name})")
    parser.add_argument("--results", default="results", metavar="DIR", help="where it is (results)")
    parser.add_argument("--jobs", default="1", metavar="N", help="processes that run at once (1)")


@dataclass(frozen=True)
class Request:
    """What is asked for by those options.

    ``methods``: by name, the word it was asked for by (a name or a path) and the method; ``settings``: the
    other flags, which all cells have; ``files``: the contents of the config files; ``jobs``: at once.
    """

    models: list[str]
    datasets: list[str]
    methods: dict[str, tuple[str, Method]]
    settings: dict[str, str]
    files: dict[str, Any]
    tuned: dict[str, Any]
    folder: Path
    jobs: int

    @classmethod
    def read(cls, parser: Parser, argv: Sequence[str], ending: str = "") -> tuple[argparse.Namespace, Request]:
        """All options, and those that both commands have; ``ending``: of the folder's default name.

        Raises:
            ConfigError: an argument is not ``--key=value``, or a value is not allowed.
        """
        check_command_line(argv, parser.words)
        _refuse_both(parser, argv)
        options, flags = parser.parse_known_args(list(argv))
        settings = dict(flag[2:].split("=", 1) for flag in flags)
        files = contents(options.config_files.split())
        for source in (settings, files):
            refuse_own(source)
        models, datasets = words(options.models, "models"), words(options.datasets, "datasets")
        methods: dict[str, tuple[str, Method]] = {}
        for word in words(options.methods, "methods"):
            method = read_method(word)
            if method.name in methods:
                raise ConfigError(
                    f"methods {methods[method.name][0]} and {word} are both named {method.name!r}; allowed are "
                    "files with different names."
                )
            if word != method.name:
                _refuse_in_file(word)
            methods[method.name] = (word, method)
        if options.name is not None and not options.name.strip():
            raise ConfigError("--name is empty; allowed is the name of a folder, or no --name.")
        name = options.name or re.sub(r"\W+", "-", f"{'-'.join(models)}-{'-'.join(datasets)}{ending}")
        if Path(name).name != name or name == "..":
            raise ConfigError(f"--name={name} is refused: allowed is the name of a folder.")
        folder, jobs = Path(options.results) / name, whole(options.jobs, "jobs")
        tuned = read_tuned(options.tuned)
        return options, cls(models, datasets, methods, settings, files, tuned, folder, jobs)

    def cells(self, densities: Sequence[float], seeds: Sequence[int]) -> list[Cell]:
        """All cells; see :func:`~recbole_dsl.compare.grid.cells_of`."""
        return cells_of(self.models, self.datasets, [m for _, m in self.methods.values()], densities, seeds)

    def grid(self, densities: Sequence[float], seeds: Sequence[int], **settings: Any) -> dict[str, Any]:
        """What the folder's ``grid.json`` tells of it, with ``settings`` besides those of the flags."""
        return {
            "models": self.models,
            "datasets": self.datasets,
            "methods": [word for word, _ in self.methods.values()],
            "method_files": {
                word: property_files.read_mapping(Path(word).expanduser())
                for name, (word, _) in self.methods.items()
                if word != name
            },
            "densities": list(densities),
            "seeds": list(seeds),
            "settings": {**self.settings, **settings},
            "tuned": self.tuned,
        }


def _refuse_both(parser: Parser, argv: Sequence[str]) -> None:
    """Raise ConfigError for two spellings of one option, of which the last would win."""
    given = {argument.partition("=")[0] for argument in argv}
    for action in parser._actions:
        both = [word for word in action.option_strings if word in given]
        if len(both) > 1:
            raise ConfigError(f"{' and '.join(both)} are one option: allowed is one of them.")


def words(text: str, option: str) -> list[str]:
    """Different names, separated by commas."""
    found = [word.strip() for word in text.split(",")]
    if not all(found) or len(set(found)) < len(found):
        raise ConfigError(f"--{option}={text} is refused: allowed are different names, separated by commas.")
    return found


def numbers(text: str) -> list[float]:
    """Densities, separated by commas."""
    try:
        return [float(word) for word in words(text, "densities")]
    except ValueError:
        raise ConfigError(f"--densities={text} is refused: allowed are numbers, separated by commas.") from None


def number(text: str, option: str) -> float:
    """One number."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"--{option}={text} is refused: allowed is a number.") from None


def seed(text: str) -> int:
    """A whole number that every generator takes."""
    if not text.isdecimal() or int(text) >= SEEDS:
        raise ConfigError(f"--seed={text} is refused: allowed is a whole number below {SEEDS}.")
    return int(text)


def whole(text: str, option: str, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    if not text.isdecimal() or int(text) < least:
        raise ConfigError(f"--{option}={text} is refused: allowed is a whole number of at least {least}.")
    return int(text)


def seeds(text: str) -> list[int]:
    """``3``: three seeds; ``5,9``: these; ``5,``: this one."""
    if "," not in text:
        return [FIRST_SEED + number for number in range(whole(text, "seeds"))]
    found = [word for word in text.split(",") if word]
    if not found or not all(word.isdecimal() and int(word) < SEEDS for word in found):
        raise ConfigError(
            f"--seeds={text} is refused: allowed is how many, or a list of whole numbers below {SEEDS} such as "
            "1,7."
        )
    return [int(word) for word in found]


def contents(paths: Sequence[str]) -> dict[str, Any]:
    """The contents of config files, merged."""
    merged: dict[str, Any] = {}
    for path in paths:
        content = property_files.read_mapping(Path(path))
        property_files.check_keys(content, KEYS, f"'{path}'")
        merged |= content
    return merged


def refuse_own(settings: Mapping[str, Any], place: str = "") -> None:
    """Raise ConfigError for a setting that every cell has of its own; ``place``: words for where it is set."""
    for key in SET_BY_CELLS:
        if key in settings:
            raise ConfigError(
                f"{key}={settings[key]!r}{place} is refused, because every cell of a comparison has its own; "
                "allowed are --models, --datasets, --methods, --densities and --seeds, and all other settings."
            )


def _refuse_in_file(path: str) -> None:
    """Raise ConfigError for what a method file sets and no cell would have; its density is that of training."""
    content = property_files.read_mapping(Path(path).expanduser())
    given = {key: value for key, value in content.items() if value not in (None, "None")}
    given.pop("dsl_density", None)
    refuse_own(given, f" in '{path}'")


def read_tuned(path: str | None) -> dict[str, Any]:
    """A file as ``recbole-dsl tune`` writes it: ``chosen`` settings by model, dataset and method, and ``how``.

    Raises:
        ConfigError: it cannot be read, or is not of that form.
    """
    if path is None:
        return {}
    content = property_files.read_mapping(Path(path))
    chosen = content.get("chosen")
    of_models = chosen.values() if isinstance(chosen, dict) else [None]
    of_datasets = [d for model in of_models for d in (model.values() if isinstance(model, dict) else [None])]
    of_methods = [m for data in of_datasets for m in (data.values() if isinstance(data, dict) else [None])]
    how = content.get("how", "")
    told = isinstance(how, str) or (
        isinstance(how, dict)
        and set(how) >= HOW
        and isinstance(how["space"], dict)
        and isinstance(how["density"], int | float)
    )
    if not of_methods or not told or set(content) - {"chosen", "how"}:
        of_methods = [None]
    for found in of_methods:
        if not isinstance(found, dict):
            raise ConfigError(
                f"--tuned={path} is refused; allowed is a file with 'chosen', below it models, below each "
                "datasets, below each methods, and below each method settings such as learning_rate; 'how' may "
                "say in words how they were found."
            )
        property_files.check_keys(found, KEYS, f"'{path}'")
        refuse_own(found)
    return content


def settings_of(tuned: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """The tuned settings of a cell."""
    of_model = (tuned.get("chosen") or {}).get(cell.model) or {}
    return dict((of_model.get(cell.dataset) or {}).get(cell.method) or {})
