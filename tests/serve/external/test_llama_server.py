"""The script that runs llama.cpp: what it cannot open is told by its last lines. What it computes: test_llamacpp.py."""

import json
import sys
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.serve.external import llama_server
from tunesmith.serve.external.process import Process, free_port

pytest.importorskip("xllamacpp")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no model")
    given = {"model": str(tmp_path / "x.gguf"), "adapters": [], "port": free_port(), "key": "k", "answers": 1, "context": 64}
    told = {llama_server.SETTINGS: json.dumps(given | {"threads": 1, "settings": {}})}
    child = Process("llama.cpp", [sys.executable, str(llama_server.__file__)], told)
    with pytest.raises(UserError, match=r"(?s)llama.cpp ended while it started.*x.gguf"):
        child.wait(lambda: False, 60)
