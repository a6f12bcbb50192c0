"""``recbole-dsl serve``: an artifact over HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

from .command_line import Parser, a_path
from .errors import ConfigError
from .serving.recommender import SparseRecommender

_PATIENCE: Final = 5
"""Seconds that requests have to end when the server is stopped, of clients that send theirs slowly, too."""


def parser() -> Parser:
    """The options."""
    result = Parser(
        "serve",
        "Answer HTTP requests from an artifact: /recommend, /similar, /health; a page to try it at /, "
        "and all requests at /docs. Needs 'pip install recbole-dsl[serve]'.",
    )
    result.add_argument("artifact", type=a_path, help="the artifact's folder")
    result.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    result.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine only)"
    )
    result.add_argument("--max-k", type=int, default=1000, help="the most items of an answer (default: 1000)")
    result.add_argument(
        "--max-batch", type=int, default=1000, help="the most users of a request (default: 1000)"
    )
    result.add_argument(
        "--device", help="a device of torch's to search on, such as cuda (default: numpy on the CPU)"
    )
    return result


def run(argv: Sequence[str]) -> None:
    """The command; returns when the server has been stopped."""
    options = parser().read(argv)
    if options is None:
        return
    if not 0 <= options.port < 65536:
        raise ConfigError(f"--port={options.port} is refused: allowed is a number from 0 to 65535.")
    for name in ("max_k", "max_batch"):
        if getattr(options, name) < 1:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option}={getattr(options, name)} is refused: allowed is a number of at least 1."
            )
    try:
        import uvicorn

        from .serving.web import LOOPBACK, Limits, application
    except ImportError as error:
        raise ConfigError(
            f"'recbole-dsl serve' needs the package {error.name}, which is not installed; allowed after "
            "'pip install recbole-dsl[serve]'."
        ) from None
    recommender = SparseRecommender.load(options.artifact, options.device)
    limits = Limits(k=options.max_k, batch=options.max_batch)
    listening = _listen(options.host, options.port)
    address, port = listening.getsockname()[:2]
    host = f"[{address}]" if ":" in address else address
    hosts = [*LOOPBACK, host, address] if ipaddress.ip_address(address.partition("%")[0]).is_loopback else ["*"]
    app = application(recommender, limits, hosts)
    print(f"{recommender.manifest.model} on http://{host}:{port}/", flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE)
    # The server ends by itself at Ctrl-C, and tells it on to whoever has started it.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens at an address, or ConfigError."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        return socket.create_server(address[:2], family=family, reuse_port=False)
    except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be one of a host
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"--host={host} --port={port} cannot be listened at ({reason}); allowed are an "
            "address of this machine and a free port."
        ) from None
