"""The customers' file: keys, and what each may do.

    customers:
      - name: acme
        key_env: ACME_KEY          # or key_sha256, or key; a list of two while one is exchanged
        models: [acme-*, smollm2]  # names or globs; all where it is left out
        requests_per_minute: 60
        tokens_per_minute: 20000   # of prompts and answers
        concurrent: 4              # answers at the same time
        admin: false               # may load and unload adapters

Everything that is wrong in it is said at once, with its line; values are not shown, since one may be a key at the wrong place.
"""

import difflib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import UserError
from tunesmith.run_yaml import read_yaml

ANYONE, OPERATOR = "anyone", "operator"  # the customers of a server without keys, and of --api-key


@dataclass(frozen=True, slots=True)
class Customer:
    """One who asks. Keys are kept as SHA-256 only, and not shown."""

    name: str
    digests: tuple[bytes, ...] = field(default=(), repr=False)
    models: tuple[str, ...] = ("*",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent: int | None = None
    admin: bool = False

    def may_use(self, model: str) -> bool:
        """Whoever may use NAME may use its versions, NAME@3."""
        names = {model, re.sub(r"@\d+$", "", model)}
        return any(fnmatchcase(name, pattern) for name in names for pattern in self.models)


_Texts = str | list[str]
_Count = Annotated[int, Field(ge=1)]


class _Entry(BaseModel):
    """One customer as written in the file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(pattern=r"^[\w.@-]{1,64}$")]
    key: _Texts = Field(default_factory=list)
    key_env: _Texts = Field(default_factory=list)
    key_sha256: _Texts = Field(default_factory=list)
    models: list[str] = Field(default_factory=lambda: ["*"])
    requests_per_minute: _Count | None = None
    tokens_per_minute: _Count | None = None
    concurrent: _Count | None = None
    admin: bool = False


_TAKES = {
    "name": "a text of letters, digits, . _ @ -",
    "key": "a text or a list of texts",
    "key_env": "the name of an environment variable, or a list of names",
    "key_sha256": "a text or a list of texts",
    "models": "a list of names or globs",
    "requests_per_minute": "a whole number from 1",
    "tokens_per_minute": "a whole number from 1",
    "concurrent": "a whole number from 1",
    "admin": "true or false",
}


def read(path: Path | None, api_keys: Sequence[str]) -> list[Customer]:
    """Raises UserError with every misfit at once."""
    problems = ["--api-key is empty; give it a text that is hard to guess" for key in api_keys if not key.strip()]
    operators = [Customer(OPERATOR, tuple(digest_of(key.strip()) for key in api_keys), admin=True)] if api_keys else []
    if path is None:
        if problems:
            raise UserError(*problems)
        return operators
    values, lines = read_yaml(path)
    problems += [f"{path}:{line}: {key}: no such setting; the file has one list, customers" for key, line in _strangers(values, lines)]
    entries = values.get("customers")
    if not isinstance(entries, list) or not entries:
        raise UserError(*problems, f"{path}:{lines.get('customers', 1)}: customers is a list of customers, each with a name and a key")
    found = list(operators)
    places: dict[str, str] = {}  # of each name, and of each key's digest
    for index, entry in enumerate(entries):
        where = _Where(path, lines, f"customers.{index}")
        customer = _customer(entry, where, problems)
        if customer is None:
            continue
        for mark, what in [(customer.name, f"the name {customer.name}"), *((digest.hex(), "this key") for digest in customer.digests)]:
            if mark in places:
                problems.append(f"{where.of('name')}: {what} is taken by the customer in {places[mark]}")
            places.setdefault(mark, where.of("name"))
        if any(digest in operator.digests for operator in operators for digest in customer.digests):
            problems.append(f"{where.of('name')}: its key is that of --api-key, which may do everything; take another")
        found.append(customer)
    if problems:
        raise UserError(*problems)
    return found


@dataclass(frozen=True, slots=True)
class _Where:
    """file:line of an entry's settings."""

    path: Path
    lines: dict[str, int]
    prefix: str

    def of(self, key: str) -> str:
        inside = [line for dotted, line in self.lines.items() if dotted.startswith(self.prefix + ".")]
        line = self.lines.get(f"{self.prefix}.{key}") or min(inside, default=self.lines.get("customers", 1))
        return f"{self.path}:{line}"


def _strangers(values: dict[str, Any], lines: dict[str, int]) -> Iterator[tuple[str, int]]:
    return ((key, lines.get(key, 1)) for key in values if key != "customers")


def _customer(entry: Any, where: _Where, problems: list[str]) -> Customer | None:
    """None, and more `problems`, where an entry cannot be used."""
    if not isinstance(entry, dict):
        problems.append(f"{where.of('')}: a customer is made of `key: value` lines")
        return None
    try:
        said = _Entry.model_validate(entry)
    except ValidationError as error:
        problems += dict.fromkeys(_misfit(str(each["loc"][0]), each["type"], where) for each in error.errors())
        return None
    before = len(problems)
    digests = _digests(said, where, problems)
    if not digests and len(problems) == before:
        problems.append(f"{where.of('name')}: {said.name} has no key; give it key_env, key_sha256 or key")
    if said.name in (ANYONE, OPERATOR):
        problems.append(f"{where.of('name')}: {said.name} is a name of our own; take another")
    if len(problems) > before:
        return None
    limits = (said.requests_per_minute, said.tokens_per_minute, said.concurrent)
    return Customer(said.name, tuple(dict.fromkeys(digests)), tuple(said.models), *limits, said.admin)


def _misfit(key: str, kind: str, where: _Where) -> str:
    """No value is shown: it may be a key that was written at the wrong place."""
    if kind == "missing":
        return f"{where.of(key)}: a customer needs a {key}"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key, _TAKES, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_TAKES)}"
        return f"{where.of(key)}: {key}: no such setting; {meant}"
    return f"{where.of(key)}: {key} takes {_TAKES[key]}"


def _digests(said: _Entry, where: _Where, problems: list[str]) -> list[bytes]:
    digests = []
    for key in _list(said.key):
        if key.strip():
            digests.append(digest_of(key.strip()))
        else:
            problems.append(f"{where.of('key')}: an empty key")
    for variable in _list(said.key_env):
        if value := os.environ.get(variable, "").strip():
            digests.append(digest_of(value))
        else:
            problems.append(f"{where.of('key_env')}: the environment variable {variable} is not set; set it where the server is started")
    for text in _list(said.key_sha256):
        if re.fullmatch(r"[0-9a-fA-F]{64}", text):
            digests.append(bytes.fromhex(text))
        else:
            problems.append(f"{where.of('key_sha256')}: not a SHA-256 in 64 hexadecimal digits; make one with: printf %s KEY | sha256sum")
    return digests


def _list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def sent(text: str) -> str:
    """Servers read headers as Latin-1, clients write UTF-8."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def digest_of(key: str) -> bytes:
    """All that is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
