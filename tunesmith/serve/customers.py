"""Who may ask for what, and how often: each request is let in or refused, by its key, its model and its customer's limits.

A model that a customer may not use is answered as one that there is not (404, in the same words): who else is served here, and
under which names, is no customer's business.
"""

import hmac
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from tunesmith.serve.customers_file import ANYONE, Customer, digest_of, read, sent

WINDOW = 60.0  # seconds that the two rates look back


class Refused(Exception):
    """A request that is turned away. `code` and `status` are OpenAI's; `retry_after` is in whole seconds."""

    def __init__(self, status: int, message: str, code: str, retry_after: int | None = None):
        self.status, self.message, self.code, self.retry_after = status, message, code, retry_after
        super().__init__(message)


def no_such_model(model: str) -> Refused:
    """What is said of a model that is not served, and of one that this customer may not use."""
    return Refused(404, f"The model {model!r} does not exist or you do not have access to it.", "model_not_found")


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
        self._customers = read(path, self._given)
        self._usage: dict[str, _Usage] = {}

    @property
    def is_open(self) -> bool:
        """No key is asked for."""
        return self.path is None and not self._given

    def reload(self) -> None:
        """Read the file again. What is running goes on, and what was used is kept by name. Raises UserError, and then nothing changes."""
        customers = read(self.path, self._given)
        with self._lock:
            self._customers = customers

    def identify(self, header: str | None) -> Customer:
        """The owner of the key in an `Authorization: Bearer KEY` header. Raises Refused (401)."""
        if self.is_open:
            return Customer(ANYONE)
        scheme, _, key = (header or "").strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Refused(401, "No API key was given: send it as 'Authorization: Bearer KEY'.", "invalid_api_key")
        digest, found = digest_of(sent(key.strip())), None
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
