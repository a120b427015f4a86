"""The socket and the HTTP server: bound before a model is loaded, so that a port that is taken costs no waiting."""

import errno
import socket
from typing import Any

from tunesmith.errors import UserError


def needed() -> None:
    """Raises UserError where what serves HTTP is not installed."""
    missing = []
    for name in ("starlette", "uvicorn", "prometheus_client"):
        try:
            __import__(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: pip install 'tunesmith[serve]'")


def bound(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet: a client is refused, and waits for nothing. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except (OSError, OverflowError) as error:
        found.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: another program listens there; take another, or 0 for a free one") from None
        raise UserError(f"--host {host} --port {port}: {error}") from None
    return found


def spelled(found: socket.socket) -> str:
    """HOST:PORT."""
    host, port = found.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def serve(app: Any, found: socket.socket, patience: float = 30.0) -> None:
    """Answer until Ctrl-C or SIGTERM; then nothing new is taken, and answers in flight may end for so many seconds."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=max(1, int(patience)))
    )
    stop = server.handle_exit

    def leaving(number: int, frame: Any) -> None:
        app.state.service.draining = True  # who is connected already hears of it (503) in place of waiting
        stop(number, frame)

    server.handle_exit = leaving  # type: ignore[assignment,method-assign]
    server.run(sockets=[found])
