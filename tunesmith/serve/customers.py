"""Who may ask for what, and how often: keys with the models each may use.

    customers:
      - name: acme
        key_env: ACME_KEY          # or key_sha256, or key; a list of two while one is exchanged
        models: [acme-*, smollm2]  # names or globs; all where it is left out
        requests_per_minute: 60
        tokens_per_minute: 20000   # of prompts and answers
        concurrent: 4              # answers at the same time
        admin: false               # may load and unload adapters

A model that a customer may not use is answered as one that there is not (404, in the same words): who else is served here, and
under which names, is no customer's business.
"""

import difflib
import hashlib
import hmac
import math
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tunesmith.errors import UserError
from tunesmith.run_yaml import read_yaml

WINDOW = 60.0  # seconds that the two rates look back
ANYONE, OPERATOR = "anyone", "operator"  # the customers of a server without keys, and of --api-key


class Refused(Exception):
    """A request that is turned away. `code` and `status` are OpenAI's; `retry_after` is in whole seconds."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None):
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after
        super().__init__(message)


def no_such_model(model: str) -> Refused:
    """What is said of a model that is not served, and of one that this customer may not use."""
    return Refused(404, f"The model {model!r} does not exist or you do not have access to it.", "model_not_found")


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


class _Usage:
    """What one customer did in the last minute and is doing now."""

    def __init__(self) -> None:
        self.requests: deque[float] = deque()  # when each was admitted
        self.tokens: deque[tuple[float, int]] = deque()  # when an answer ended, and its tokens with the prompt's
        self.spent = 0  # the sum of `tokens`
        self.running = 0

    def forget(self, now: float) -> None:
        while self.requests and self.requests[0] <= now - WINDOW:
            self.requests.popleft()
        while self.tokens and self.tokens[0][0] <= now - WINDOW:
            self.spent -= self.tokens.popleft()[1]


class Admitted:
    """A request that was let in. `finish` frees its place; leaving the `with` block does too."""

    def __init__(self, customer: Customer, end: Callable[[int], None]):
        self.customer = customer
        self._end: Callable[[int], None] | None = end
        self._lock = threading.Lock()

    def finish(self, tokens: int = 0) -> None:
        """It is over and took so many tokens, those of the prompt included. Only the first call counts."""
        with self._lock:
            end, self._end = self._end, None
        if end is not None:
            end(tokens)

    def __enter__(self) -> "Admitted":
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()


class Customers:
    """All of them, safe to ask from any thread."""

    def __init__(self, path: Path | None = None, api_keys: Sequence[str] = (), clock: Callable[[], float] = time.monotonic):
        """`path` is of a file as above; each of `api_keys` opens everything. With neither, no key is asked for.
        Raises UserError with every misfit of the file."""
        self.path = path
        self._given = tuple(api_keys)
        self._clock = clock
        # reentrant: a signal's handler may call `reload` while its own thread is in `admit`
        self._lock = threading.RLock()
        self._customers = _read(path, self._given)
        self._usage: dict[str, _Usage] = {}

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return self.path is None and not self._given

    def reload(self) -> None:
        """Read the file again. What is running goes on, and what was used is kept by name. Raises UserError, and then nothing changes."""
        read = _read(self.path, self._given)
        with self._lock:
            self._customers = read

    def identify(self, header: str | None) -> Customer:
        """The owner of the key in an `Authorization: Bearer KEY` header. Raises Refused (401)."""
        if self.is_open:
            return Customer(ANYONE)
        scheme, _, key = (header or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refused(401, "No API key was given: send it as 'Authorization: Bearer KEY'.", "invalid_api_key")
        digest, found = _digest(_sent(key.strip())), None
        for customer in self._customers:  # to the end, whoever it is: time tells nothing about keys
            for known in customer.digests:
                if hmac.compare_digest(digest, known):
                    found = customer
        if found is None:
            raise Refused(401, "The API key is not known here.", "invalid_api_key")
        return found

    def sees(self, header: str | None) -> Callable[[str], bool]:
        """Which models the owner of a key may use. Raises Refused (401)."""
        return self.identify(header).may_use

    def administers(self, header: str | None) -> Customer:
        """The owner of a key that may load and unload. Raises Refused (401, 403)."""
        customer = self.identify(header)
        if not customer.admin:
            raise Refused(403, "This API key may not manage the server; `admin: true` in the customers' file allows it.", "not_allowed")
        return customer

    def admit(self, header: str | None, model: str) -> Admitted:
        """Let a request in. Raises Refused: 401 for its key, 404 for its model, 429 beyond a limit, which counts nothing.

        Rates are exact over the last 60 seconds. Tokens are known when an answer ends, so what runs at the same time may pass the limit
        by as much as it writes; `concurrent` bounds that.
        """
        customer = self.identify(header)
        if not customer.may_use(model):
            raise no_such_model(model)
        with self._lock:
            now, usage = self._clock(), self._usage.setdefault(customer.name, _Usage())
            usage.forget(now)
            _check(customer, usage, now)
            if customer.requests_per_minute is not None:
                usage.requests.append(now)
            usage.running += 1
        return Admitted(customer, lambda tokens: self._finish(customer, usage, tokens))

    def _finish(self, customer: Customer, usage: _Usage, tokens: int) -> None:
        with self._lock:
            usage.running -= 1
            if customer.tokens_per_minute is not None and tokens > 0:
                usage.tokens.append((self._clock(), tokens))
                usage.spent += tokens


def _check(customer: Customer, usage: _Usage, now: float) -> None:
    """Raises Refused for the first limit that is reached, with the seconds until a place is free."""
    if customer.requests_per_minute is not None and len(usage.requests) >= customer.requests_per_minute:
        first = usage.requests[len(usage.requests) - customer.requests_per_minute]
        raise _later(f"{customer.requests_per_minute} requests a minute", first + WINDOW - now)
    if customer.tokens_per_minute is not None and usage.spent >= customer.tokens_per_minute:
        raise _later(f"{customer.tokens_per_minute} tokens a minute", _until_below(usage, customer.tokens_per_minute) + WINDOW - now)
    if customer.concurrent is not None and usage.running >= customer.concurrent:
        raise _later(f"{customer.concurrent} answers at the same time", 1)  # when one ends is not known


def _until_below(usage: _Usage, limit: int) -> float:
    """When that answer ended without which the sum is below the limit."""
    spent = usage.spent
    for ended, tokens in usage.tokens:
        spent -= tokens
        if spent < limit:
            return ended
    raise AssertionError("an empty window is below every limit")


def _later(limit: str, seconds: float) -> Refused:
    wait = max(1, math.ceil(seconds))
    return Refused(429, f"Rate limit reached: {limit}. Try again in {wait} s.", "rate_limit_exceeded", wait)


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


def _read(path: Path | None, api_keys: Sequence[str]) -> list[Customer]:
    """Raises UserError with every misfit at once."""
    problems = ["--api-key is empty; give it a text that is hard to guess" for key in api_keys if not key.strip()]
    operators = [Customer(OPERATOR, tuple(_digest(key.strip()) for key in api_keys), admin=True)] if api_keys else []
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
        read = _Entry.model_validate(entry)
    except ValidationError as error:
        problems += dict.fromkeys(_misfit(str(each["loc"][0]), each["type"], where) for each in error.errors())
        return None
    before = len(problems)
    digests = _digests(read, where, problems)
    if not digests and len(problems) == before:
        problems.append(f"{where.of('name')}: {read.name} has no key; give it key_env, key_sha256 or key")
    if read.name in (ANYONE, OPERATOR):
        problems.append(f"{where.of('name')}: {read.name} is a name of our own; take another")
    if len(problems) > before:
        return None
    limits = (read.requests_per_minute, read.tokens_per_minute, read.concurrent)
    return Customer(read.name, tuple(dict.fromkeys(digests)), tuple(read.models), *limits, read.admin)


def _misfit(key: str, kind: str, where: _Where) -> str:
    """No value is shown: it may be a key that was written at the wrong place."""
    if kind == "missing":
        return f"{where.of(key)}: a customer needs a {key}"
    if kind == "extra_forbidden":
        close = difflib.get_close_matches(key, _TAKES, n=1)
        meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(_TAKES)}"
        return f"{where.of(key)}: {key}: no such setting; {meant}"
    return f"{where.of(key)}: {key} takes {_TAKES[key]}"


def _digests(read: _Entry, where: _Where, problems: list[str]) -> list[bytes]:
    digests = []
    for key in _list(read.key):
        if key.strip():
            digests.append(_digest(key.strip()))
        else:
            problems.append(f"{where.of('key')}: an empty key")
    for variable in _list(read.key_env):
        if value := os.environ.get(variable, "").strip():
            digests.append(_digest(value))
        else:
            problems.append(f"{where.of('key_env')}: the environment variable {variable} is not set; set it where the server is started")
    for text in _list(read.key_sha256):
        if re.fullmatch(r"[0-9a-fA-F]{64}", text):
            digests.append(bytes.fromhex(text))
        else:
            problems.append(f"{where.of('key_sha256')}: not a SHA-256 in 64 hexadecimal digits; make one with: printf %s KEY | sha256sum")
    return digests


def _list(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


def _sent(text: str) -> str:
    """Servers read headers as Latin-1, clients write UTF-8."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
