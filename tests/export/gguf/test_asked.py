import ast
import sys
from pathlib import Path

import pytest

from tunesmith.export.gguf import asked


def test_it_imports_nothing_of_the_project() -> None:
    """It runs as a file of its own, in a process that may be ended by what it opens."""
    tree = ast.parse(Path(asked.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) == {"xllamacpp"}


def test_a_template_that_is_refused_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import io
    import urllib.error
    from email.message import Message

    def refuse(*arguments: object, **named: object) -> None:
        raise urllib.error.HTTPError("x", 400, "Bad Request", Message(), io.BytesIO(b"roles must alternate"))

    monkeypatch.setattr(asked.urllib.request, "urlopen", refuse)
    assert asked._Ask("http://127.0.0.1:1", 5).talk([]) == {"refused": "roles must alternate"}
