"""Checks of a RecBole-style command line, whose parser drops what it does not understand.

RecBole reads ``--key=value`` with exactly one ``=`` and ignores everything else with a warning, so
``--dsl_density 0.1`` would train at the default density. Here such an argument is an error.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from recbole_dsl.errors import ConfigError, nearest

RECBOLE_OPTIONS: Final = (
    "--model",
    "-m",
    "--dataset",
    "-d",
    "--config_files",
    "--nproc",
    "--ip",
    "--port",
    "--world_size",
    "--group_offset",
)
"""Options of RecBole's own entry point, which may be given with a space or with ``=``."""


def check_command_line(argv: Sequence[str], known_options: Collection[str] = RECBOLE_OPTIONS) -> None:
    """Refuse every argument that RecBole would drop, and flags given twice with different values.

    Args:
        argv: the arguments without the program's name.
        known_options: options with one value each that the entry point reads itself, with their
            dashes (``--model``, ``-m``); they may be given as ``--model X`` or ``--model=X``. A
            short one stands for the long one that starts with its letter.

    Raises:
        ConfigError: names the argument and how it should be written.
    """
    seen: dict[str, str] = {}
    for key, value in _arguments(argv, known_options):
        if seen.setdefault(key, value) != value:
            raise ConfigError(
                f"Argument {key}={value} contradicts {key}={seen[key]} before it: allowed is one "
                "value for each argument."
            )


def _arguments(argv: Sequence[str], known_options: Collection[str]) -> Iterator[tuple[str, str]]:
    """Every argument as (``--key``, value), or :class:`ConfigError`."""
    words = iter(range(len(argv)))
    for position in words:
        argument = argv[position]
        key, equals, value = argument.partition("=")
        if key in known_options:
            if not equals:
                if position + 1 == len(argv):
                    raise ConfigError(f"Argument {key} has no value: allowed is {key}=value.")
                value = argv[next(words)]
            yield _long_form(key, known_options), value
        elif argument.startswith("--") and len(key) > 2 and equals and "=" not in value:
            yield key, value
        else:
            following = argv[position + 1] if position + 1 < len(argv) else ""
            raise ConfigError(_refusal(argument, following, known_options))


def _long_form(option: str, known_options: Collection[str]) -> str:
    """``--model`` for ``-m``."""
    if option.startswith("--"):
        return option
    return next((name for name in known_options if name.startswith("-" + option)), option)


def _refusal(argument: str, following: str, known_options: Collection[str]) -> str:
    """Why RecBole would drop ``argument``, and how it should be written."""
    key, equals, _ = argument.partition("=")
    if not argument.startswith("-"):
        return (
            f"Argument '{argument}' belongs to no key: allowed is --key=value, with quotes around "
            "a value that has spaces."
        )
    if not argument.startswith("--"):
        options = ", ".join(known_options)
        return (
            f"Argument '{argument}' is refused: allowed is --key=value, and with a space only "
            f"{options}{nearest(key, known_options)}."
        )
    if equals:
        return (
            f"Argument '{argument}' is refused: allowed is --key=value with exactly one '='; "
            "a value with '=' in it can be set in a config file."
        )
    if following and not following.startswith("-"):
        return f"Argument '{argument} {following}' is refused: allowed is {argument}={following}."
    return f"Argument '{argument}' has no value: allowed is {argument}=value{nearest(argument, known_options)}."


def warn_unknown_flags(keys: Collection[str], known: Collection[str], options: Collection[str] = ()) -> None:
    """Log one warning for each of ``keys`` not in ``known``, which RecBole stores all the same.

    Raises:
        ConfigError: one of them looks like one of ``options``, the command's own, which would go without it.
    """
    for key in keys:
        if key not in known:
            if hint := nearest(f"--{key}", options, cutoff=0.8):
                raise ConfigError(
                    f"Argument '--{key}' is neither an option nor a known setting{hint}; allowed "
                    f"are {', '.join(options)}, and settings."
                )
            _warn_unknown(f"--{key}", nearest(key, sorted(known)))


def warn_misspelt_keys(keys: Collection[str], known: Collection[str]) -> None:
    """The same of keys in config files and dicts, which may be a user's own, if they look like a known one."""
    for key in sorted(set(keys) - set(known)):
        if hint := nearest(key, sorted(known), cutoff=0.85):
            _warn_unknown(f"Key {key!r}", hint)


def _warn_unknown(name: str, hint: str) -> None:
    logging.getLogger(__name__).warning(
        "%s is known neither to RecBole nor to the model's settings%s; it is kept.", name, hint
    )


class Parser(argparse.ArgumentParser):
    """A command's options; mistakes are told as all of this package tells them."""

    def __init__(self, command: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=f"recbole-dsl {command}", description=description, epilog=epilog, allow_abbrev=False
        )

    @property
    def words(self) -> list[str]:
        """All options as they are written, those of the help left out."""
        written = [word for action in self._actions for word in action.option_strings]
        return [word for word in written if word not in ("-h", "--help")]

    def error(self, message: str) -> NoReturn:
        """Raise ConfigError."""
        raise ConfigError(f"{self.prog}: {message}; see '{self.prog} --help'.")

    def read(self, argv: Sequence[str]) -> argparse.Namespace | None:
        """The options given, or None after the help has been printed.

        Raises:
            ConfigError: an option is unknown, lacks its value, or has one that is not allowed.
        """
        if {"-h", "--help"} & set(argv):
            self.print_help()
            return None
        options, unknown = self.parse_known_args(list(argv))
        if unknown:
            near = nearest(unknown[0].partition("=")[0], self.words)
            self.error(f"argument {unknown[0]!r} is unknown{near}")
        return options


def a_path(text: str) -> Path:
    """The ``type`` of an option that is a path: an empty one, which would be the current folder, is refused."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty; allowed is a path")
    return Path(text)


def refuse_existing(path: Path, option: str, force: bool) -> None:
    """Raise ConfigError if a file exists and may not be replaced, or its folder does not exist."""
    if path.is_dir() or (path.exists() and not force):
        raise ConfigError(f"{option}={path} exists; allowed is another name, or --force to replace a file.")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}={path} is in a folder that does not exist; allowed is one that does.")
