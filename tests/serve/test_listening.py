"""The socket is had before anything is loaded."""

import socket

import pytest

from tunesmith.errors import UserError
from tunesmith.serve import listening


def test_a_free_port_is_taken_and_a_taken_one_refused() -> None:
    found = listening.bound("127.0.0.1", 0)
    try:
        host, _, port = listening.spelled(found).rpartition(":")
        assert host == "127.0.0.1" and int(port) > 0
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(port)), timeout=2):
            pass
        found.listen()
        with pytest.raises(UserError, match="another program listens there"):
            listening.bound("127.0.0.1", int(port))
    finally:
        found.close()


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(UserError, match=r"--host 203\.0\.113\.7"):
        listening.bound("203.0.113.7", 0)
    with pytest.raises(UserError, match="--port 99999"):
        listening.bound("127.0.0.1", 99999)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    listening.needed()
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"serving needs uvicorn: pip install 'tunesmith\[serve\]'"):
        listening.needed()
