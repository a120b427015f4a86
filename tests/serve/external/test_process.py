"""Children are waited for, watched and ended; an error tells their last words."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.serve.external.process import Process, free_port


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


def gone(pid: int, seconds: float = 15.0) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        if Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return True  # ended, and waits for whoever has inherited it
        time.sleep(0.05)
    return False


def pid_in(child: Process, seconds: float = 15.0) -> int:
    child.wait(lambda: bool(child.lines), seconds)
    return int(child.lines[0])


def test_a_port_that_nobody_holds() -> None:
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", free_port()))


def test_it_is_ended_with_all_that_it_started() -> None:
    grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    child = Process("a child", python(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"))
    pid = pid_in(child)
    assert child.alive
    child.stop()
    child.stop()
    assert not child.alive and gone(pid)


def test_what_does_not_listen_to_a_signal_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunesmith.serve.external.process.PATIENCE", 0.2)
    stubborn = "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(600)"
    child = Process("a child", python(stubborn))
    pid = pid_in(child)
    child.stop()
    assert gone(pid)


def test_it_ends_when_we_are_killed() -> None:
    """Nothing of ours runs any more when SIGKILL comes: the keeper sees its pipe close."""
    inner = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    program = (
        "import sys, time\nfrom tunesmith.serve.external.process import Process\n"
        f"child = Process('x', [sys.executable, '-c', {inner!r}], tell=lambda line: print(line, flush=True))\ntime.sleep(600)"
    )
    us = subprocess.Popen(python(program), stdout=subprocess.PIPE, text=True)
    try:
        assert us.stdout is not None
        pid = int(us.stdout.readline())
        us.send_signal(signal.SIGKILL)
        assert gone(pid)
    finally:
        us.kill()
        us.wait()
        if us.stdout:
            us.stdout.close()


def test_an_end_before_it_answers_is_told_with_its_last_lines() -> None:
    child = Process("the engine", python("print('first'); print('no memory'); raise SystemExit(7)"))
    with pytest.raises(UserError, match=r"(?s)the engine ended while it started \(exit code 7\).*first\n  no memory"):
        child.wait(lambda: False, 30)


def test_who_never_answers_is_ended() -> None:
    child = Process("the engine", python("import time; time.sleep(600)"))
    with pytest.raises(UserError, match="did not answer within 0 seconds; it printed nothing"):
        child.wait(lambda: False, 0.2)
    assert not child.alive


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"(?s)exit code 127.*no-such-program: No such file"):
        Process("x", ["no-such-program"]).wait(lambda: False, 30)


def test_what_it_prints_is_handed_on_and_its_environment_is_ours_and_more() -> None:
    heard: list[str] = []
    child = Process("x", python("import os; print(os.environ['MORE'], 'PATH' in os.environ)"), {"MORE": "yes"}, heard.append)
    child.wait(lambda: bool(heard), 30)
    child.stop()
    assert heard == ["yes True"] and "has ended" in child.explain(OSError())
