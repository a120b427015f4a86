"""The customers' file: what it may say, and every misfit at once with its line and without its value."""

import hashlib
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.serve.customers_file import OPERATOR, Customer, read


def write(folder: Path, text: str) -> Path:
    path = folder / "customers.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_a_customer_may_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEW_KEY", " new ")
    text = """\
customers:
  - name: a
    key: [one, two]
    key_env: NEW_KEY
    models: [a-*]
    requests_per_minute: 5
    tokens_per_minute: 6
    concurrent: 7
    admin: true
  - {name: b, key_sha256: %s}
"""
    digests = {word: hashlib.sha256(word.encode()).digest() for word in ("one", "two", "new", "other", "given")}
    found = read(write(tmp_path, text % digests["other"].hex().upper()), ["given"])
    assert found == [
        Customer(OPERATOR, (digests["given"],), admin=True),
        Customer("a", (digests["one"], digests["two"], digests["new"]), ("a-*",), 5, 6, 7, True),
        Customer("b", (digests["other"],)),
    ]
    assert read(None, []) == []


def test_the_file_that_the_page_shows_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("ACME_KEY", "OPERATIONS_KEY"):
        monkeypatch.setenv(variable, variable)
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve" / "customers.md").read_text(encoding="utf-8")
    (shown,) = [block for block in page.split("```") if block.startswith("\ncustomers:")]
    acme, legal, operations = read(write(tmp_path, shown), [])
    assert (acme.models, acme.requests_per_minute, acme.tokens_per_minute, acme.concurrent) == (("acme-*", "smollm2"), 60, 20000, 4)
    assert legal.digests == (hashlib.sha256(b"test").digest(),) and not legal.admin
    assert operations.admin and operations.models == ("*",)


def test_every_misfit_is_said_at_once_with_its_line_and_without_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_SET", raising=False)
    path = write(
        tmp_path,
        """\
costumers: []
customers:
  - name: a
    key: secret-1
    requests_per_minut: 3
    concurrent: 0
  - key: secret-2
    models: secret-3
  - name: b
    key_env: NOT_SET
    key_sha256: secret-4
  - name: c
    key: secret-5
  - name: c
    key: secret-5
  - name: d
  - secret-6
  - name: "e f"
    key: 12345
""",
    )
    with pytest.raises(UserError) as caught:
        read(path, [])
    said = "\n".join(caught.value.problems)
    assert "secret" not in said and "12345" not in said
    for line, words in [
        (1, "costumers: no such setting"),
        (5, "requests_per_minut: no such setting; did you mean 'requests_per_minute'?"),
        (6, "concurrent takes a whole number from 1"),
        (7, "a customer needs a name"),
        (8, "models takes a list of names or globs"),
        (10, "the environment variable NOT_SET is not set"),
        (11, "not a SHA-256"),
        (14, f"the name c is taken by the customer in {path}:12"),
        (14, f"this key is taken by the customer in {path}:12"),
        (16, "d has no key"),
        (18, "name takes a text of letters"),
        (19, "key takes a text"),
    ]:
        assert any(problem.startswith(f"{path}:{line}: ") and words in problem for problem in caught.value.problems), (line, words, said)
    assert any("a customer is made of `key: value` lines" in problem for problem in caught.value.problems)


def test_files_that_hold_no_customers(tmp_path: Path) -> None:
    for text in ("", "customers:\n", "customers: []\n", "customers: {a: b}\n", "- a\n"):
        with pytest.raises(UserError):
            read(write(tmp_path, text), [])
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "none.yaml", [])
    with pytest.raises(UserError, match="which may do everything"):
        read(write(tmp_path, "customers:\n  - {name: a, key: k}\n"), ["k"])
