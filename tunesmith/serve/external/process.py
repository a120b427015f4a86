"""A child process that serves HTTP on this machine: started, waited for, watched, and ended always."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tunesmith.errors import UserError

KEEPER = Path(__file__).with_name("keeper.py")
LINES = 40  # of the child's last words that are kept
SHOWN = 15  # and of them, what stands in an error
PATIENCE = 10.0  # seconds between SIGTERM and SIGKILL
Tell = Callable[[str], None]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody holds now. Somebody may take it before the child does; the child then ends, and says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One running command. What it prints goes to `tell` line by line; its last lines are kept for errors."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None, tell: Tell | None = None):
        self.name = name
        self.lines: deque[str] = deque(maxlen=LINES)
        self._tell = tell
        self._keeper = subprocess.Popen(
            [sys.executable, "-I", str(KEEPER), str(PATIENCE), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._ending = threading.Lock()
        self._reader = threading.Thread(target=self._read, name=f"{name} output", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._keeper.poll() is None

    def wait(self, ready: Callable[[], bool], seconds: float, pause: float = 0.1) -> None:
        """Until `ready` says so. Raises UserError with the child's last lines where it ends before, or takes longer; it is ended then."""
        until = time.monotonic() + seconds
        try:
            while not ready():
                if not self.alive:
                    raise UserError(f"{self.name} ended while it started (exit code {self._keeper.wait()}); {self.last_words()}")
                if time.monotonic() > until:
                    raise UserError(f"{self.name} did not answer within {seconds:.0f} seconds; {self.last_words()}")
                time.sleep(pause)
        except BaseException:
            self.stop()
            raise

    def last_words(self) -> str:
        """What it printed last, for an error."""
        if not self.alive:
            self._reader.join(1)
        shown = [f"  {line}" for line in list(self.lines)[-SHOWN:]]
        return "\n".join(["its last lines:", *shown]) if shown else "it printed nothing"

    def explain(self, error: Exception) -> str:
        """What a connection to it that broke means, for whoever waited for the answer."""
        if self.alive:
            return f"{self.name} broke the answer off ({type(error).__name__}: {error})"
        return f"{self.name} has ended; {self.last_words()}"

    def stop(self) -> None:
        """End it and all that it started. May be called more than once, from any thread."""
        with self._ending:
            if self._keeper.stdin and not self._keeper.stdin.closed:
                self._keeper.stdin.close()
            try:
                self._keeper.wait(PATIENCE + 5)
            except subprocess.TimeoutExpired:  # stopped by a debugger, say
                self._keeper.kill()
                self._keeper.wait()
        self._reader.join(1)

    def _read(self) -> None:
        assert self._keeper.stdout is not None
        with self._keeper.stdout as output:
            for line in output:
                self.lines.append(line.rstrip())
                if self._tell:
                    self._tell(line.rstrip())
