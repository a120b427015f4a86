"""Runs one command and never outlives whoever started it: where standard input ends, the command and all that it started end too.

    python -I keeper.py PATIENCE COMMAND ...

A server that is killed outright can end nothing itself, but its side of the pipe closes; an engine left behind would hold the
memory and the port. The command stands in a session of its own, so that Ctrl-C in the terminal reaches the server alone, which lets
answers in flight end first. Only the standard library is imported: this is run as a script.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

CANNOT_START = 127  # exit code, as a shell has it


def main(patience: float, command: list[str]) -> int:
    """The command's exit code. It gets SIGTERM, and SIGKILL after so many seconds more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        return CANNOT_START

    def end() -> None:
        _to_all(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(patience)
        _to_all(child.pid, signal.SIGKILL)

    def watch() -> None:
        os.read(0, 1)  # nothing is ever written: it returns when the other side is gone
        end()

    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=end, daemon=True).start())
    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    _to_all(child.pid, signal.SIGKILL)  # processes that it started and left
    return code


def _to_all(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
