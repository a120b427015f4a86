"""The socket and the HTTP server: bound before a model is loaded, so that a port that is taken costs no waiting."""

import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

from tunesmith.errors import UserError

LAST_WORDS = 10  # seconds in which answers that were cancelled say so to their clients, a step of a large model included


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


def serve(app: Any, found: socket.socket, patience: float = 30.0, cancel: Callable[[], Any] = lambda: None) -> None:
    """Answer until Ctrl-C or SIGTERM; then nothing new is taken, and answers in flight may end for so many seconds.

    Behind them `cancel` is called, in a thread: it ends what is still being answered, so that clients hear why (503), which they would not
    of a server that drops them.
    """
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=int(patience) + LAST_WORDS
        )
    )
    stop, over = server.handle_exit, threading.Timer(patience, cancel)
    over.daemon = True

    def leaving(number: int, frame: Any) -> None:
        if not app.state.service.draining:
            over.start()
        app.state.service.draining = True  # who is connected already hears of it (503) in place of waiting
        stop(number, frame)

    server.handle_exit = leaving  # type: ignore[assignment,method-assign]
    try:
        server.run(sockets=[found])
    finally:
        over.cancel()
