"""``recbole-dsl train``, which is also what runs without a command: RecBole's flags, checked."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from . import __version__
from .command_line import RECBOLE_OPTIONS, check_command_line
from .errors import ConfigError
from .launching import Processes, run_all
from .property_files import method_names, read_mapping


def parser() -> argparse.ArgumentParser:
    """The options of RecBole's ``run_recbole.py``; every other flag is a configuration key."""
    result = argparse.ArgumentParser(
        description="Train a RecBole model sparse from scratch.",
        epilog="'recbole-dsl models' lists which models can be trained, and what is sparse in them; "
        "'recbole-dsl compare' runs a grid of methods, densities and seeds, 'tune' chooses settings for it on "
        "validation, 'report' draws its figures; "
        "'recbole-dsl plan' says what bytes a training of any size would hold (plan --help); "
        "'recbole-dsl export' makes an artifact of a checkpoint, which 'inspect', 'recommend', 'serve' and "
        "'vectors' read; 'recbole-dsl to-recbole' writes it for RecBole's own tools. Every "
        "RecBole setting and every dsl_ setting is a flag: --learning_rate=0.01 --dsl_density=0.1 (with '='). "
        f"The most used: --dsl_method ({', '.join(method_names())}, or a YAML file), "
        "--dsl_density, --dsl_budget, "
        "--dsl_width, --dsl_update_interval, --dsl_end, --dsl_result=FILE. All are in docs/configuration.md.",
        allow_abbrev=False,
    )
    result.add_argument(
        "--model",
        "-m",
        help="name of the model, or package.module:Class (default: of the config files, or BPR)",
    )
    result.add_argument(
        "--dataset", "-d", help="name of the dataset (default: of the config files, or ml-100k)"
    )
    result.add_argument("--config_files", default=None, help="YAML files, separated by spaces")
    result.add_argument(
        "--resume",
        nargs="?",
        const=True,
        metavar="FILE",
        help="go on from the newest checkpoint of this run (--resume), or from a file (--resume=FILE)",
    )
    result.add_argument("--nproc", default="1", help="number of processes on this machine")
    result.add_argument("--ip", default="localhost", help="address of the machine of rank 0")
    result.add_argument("--port", default="5678", help="a free port there")
    result.add_argument(
        "--world_size", default="-1", help="number of processes on all machines (default: nproc)"
    )
    result.add_argument("--group_offset", default="0", help="rank of the first process of this machine")
    return result


def run(argv: Sequence[str]) -> None:
    """Run one experiment with the flags ``argv``."""
    if {"-h", "--help"} & set(argv):
        parser().print_help()
        return
    if "--version" in argv:
        print(f"recbole-dsl {__version__}")
        return
    argv = _with_resume_as_key(argv)
    check_command_line(argv, RECBOLE_OPTIONS)
    options, flags = parser().parse_known_args(list(argv))
    processes = Processes.of(options)
    # RecBole's Config reads sys.argv itself and warns about every option it does not know.
    sys.argv = [sys.argv[0], *flags]
    for name in ("model", "dataset", "config_files"):
        if getattr(options, name) == "":
            raise ConfigError(f"--{name} has no value: allowed is --{name}=value, or none of it.")
    files = options.config_files.split() if options.config_files else []
    contents = [read_mapping(Path(file), loader=yaml.FullLoader) for file in files]  # as RecBole reads them
    model = options.model or last_set("model", contents) or "BPR"
    dataset = options.dataset or last_set("dataset", contents) or "ml-100k"
    run_all(processes, model, dataset, files)


def _with_resume_as_key(argv: Sequence[str]) -> list[str]:
    """The arguments with ``--resume`` and ``--resume=FILE`` as the setting they stand for."""
    result = []
    for argument, following in zip(argv, [*argv[1:], "-"], strict=False):
        if argument == "--resume" and not following.startswith("-"):
            raise ConfigError(f"Argument '--resume {following}' is refused: allowed is --resume={following}.")
        key, equals, file = argument.partition("=")
        result.append(f"--dsl_resume={file if equals else True}" if key == "--resume" else argument)
    return result


def last_set(key: str, contents: Sequence[dict[str, Any]]) -> Any:
    """What the last of the config files' contents that sets ``key`` says, None if none does."""
    return next((content[key] for content in reversed(contents) if content.get(key) is not None), None)
