"""The keeper by itself: a command's exit code is its own, and standard input's end is the command's."""

import subprocess
import sys

from tunesmith.serve.external.keeper import CANNOT_START
from tunesmith.serve.external.process import KEEPER


def kept(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-I", str(KEEPER), "1", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_the_exit_code_is_the_commands() -> None:
    with kept(sys.executable, "-c", "raise SystemExit(5)") as keeper:
        assert keeper.wait(30) == 5


def test_a_command_that_is_not_there() -> None:
    with kept("no-such-program") as keeper:
        assert keeper.wait(30) == CANNOT_START and keeper.stdout is not None and "no-such-program" in keeper.stdout.read()


def test_the_command_ends_with_standard_input() -> None:
    with kept(sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)") as keeper:
        assert keeper.stdin is not None and keeper.stdout is not None
        assert keeper.stdout.readline() == "up\n"
        keeper.stdin.close()
        assert keeper.wait(30) != 0


def test_a_signal_to_the_keeper_ends_the_command() -> None:
    with kept(sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)") as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        keeper.terminate()
        assert keeper.wait(30) != 0
