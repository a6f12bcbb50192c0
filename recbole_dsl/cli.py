"""The command line: one sentence for every mistake, and a module for every command."""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from .errors import INTERRUPTED, ConfigError, DSLError, nearest

COMMANDS: Final = {
    "train": "train_command",
    "models": "models_command",
    "plan": "plan_command",
    "compare": "compare_command",
    "tune": "tune_command",
    "report": "report_command",
    "to-recbole": "to_recbole",
    "export": "export_command",
    "inspect": "inspect_command",
    "recommend": "recommend_command",
    "serve": "serve_command",
    "vectors": "vectors_command",
}
"""The module whose ``run`` is given the arguments after the first word; without such a word it is ``train``.

Modules are imported when they are asked for: what serves needs neither torch nor RecBole.
"""


SPINS: Final = "1000"
"""Rounds that a thread spins while it waits for others before it sleeps (``GOMP_SPINCOUNT``).

That is what GNU OpenMP takes where it knows of more threads than cores. It knows nothing of other processes,
beside which its 300,000 make every step wait for a core (``benchmarks/busy_machine.py``).
"""


_NO_PLACE: Final = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR),
}
"""Errors of the system that tell of its disks and its rights, not of a mistake in this package."""


def spin_briefly() -> None:
    """Set :data:`SPINS`, but where the user has said how threads wait. It is read when torch is loaded."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = SPINS


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 2 after one sentence about what was wrong, or 130."""
    if not sys.warnoptions:
        # RecBole's code uses what torch and pandas have deprecated; its users can do nothing about it.
        warnings.filterwarnings("ignore", module=r"recbole\.")
    spin_briefly()
    if isinstance(sys.stdout, io.TextIOWrapper):  # tokens may have letters that a terminal does not know
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    if len(arguments) > 1 and arguments[0] in ("-h", "--help") and arguments[1] in COMMANDS:
        arguments[:2] = reversed(arguments[:2])  # as users of git ask for help about a command
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "train"
    with _noted_interrupts() as noted:
        try:
            _refuse_unknown(command, arguments)
            _module(command).run(arguments)
        except DSLError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except BrokenPipeError:  # whoever reads the output, such as head, has what it wants
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + 13
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise
            print(f"error: {_what_it_lacks(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as stop:
            print(f"error: {str(stop) or INTERRUPTED}", file=sys.stderr)
            return int(getattr(stop, "exit_status", 130))
        except Exception:
            if not noted:
                raise
            print(f"error: {INTERRUPTED}", file=sys.stderr)
            return 130
    return 0


def _what_it_lacks(error: OSError) -> str:
    file = "a file" if error.filename is None else repr(str(error.filename))
    return (
        f"{file} cannot be read or written ({error.strerror}); allowed is a place that has room and that "
        "this user may read and write, and a name of usual length."
    )


def _refuse_unknown(command: str, arguments: Sequence[str]) -> None:
    """Raise ConfigError for a first word that looks like a command, instead of one about an argument."""
    word = arguments[0] if command == "train" and arguments else ""
    if not word.startswith("-") and (near := nearest(word, COMMANDS)):
        raise ConfigError(f"{word!r} is no command{near}: allowed are {', '.join(COMMANDS)}.")


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C as ever, and noted: libraries may make errors of their own of it while they are imported."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)
        signal.default_int_handler(number, frame)

    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _module(command: str) -> Any:
    try:
        return importlib.import_module(f".{COMMANDS[command]}", __package__)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == __package__:
            raise
        raise ConfigError(
            f"'recbole-dsl {command}' needs the package {missing}, which is not installed; allowed after it "
            "has been installed (README, Install)."
        ) from None
