"""Keys, models and limits: to the second with a given clock, and every misfit of the file at once."""

import hashlib
import threading
from pathlib import Path

import pytest

from tunesmith.errors import UserError
from tunesmith.serve.customers import Customers, Refused, no_such_model
from tunesmith.serve.customers_file import ANYONE, OPERATOR


class Clock:
    """Stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, text: str) -> Path:
    path = folder / "customers.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(customers: Customers, header: str | None, model: str = "m") -> Refused:
    with pytest.raises(Refused) as caught:
        customers.admit(header, model)
    return caught.value


LIMITED = """\
customers:
  - name: acme
    key: acme-key
    models: [acme-*, small]
    requests_per_minute: 3
    tokens_per_minute: 100
    concurrent: 2
  - name: ops
    key_sha256: {digest}
    key_env: OPS_KEY
    admin: true
"""


@pytest.fixture
def limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Customers, Clock]:
    monkeypatch.setenv("OPS_KEY", "ops-new")
    clock = Clock()
    digest = hashlib.sha256(b"ops-old").hexdigest()
    return Customers(write(tmp_path, LIMITED.format(digest=digest)), clock=clock), clock


def test_without_keys_everybody_may_do_all_but_manage() -> None:
    customers = Customers()
    assert customers.is_open
    with customers.admit(None, "m") as admitted:
        assert admitted.customer.name == ANYONE
    assert customers.sees("Bearer whatever")("m")
    with pytest.raises(Refused) as caught:
        customers.administers(None)
    assert caught.value.status == 403


def test_one_key_opens_everything() -> None:
    customers = Customers(api_keys=["sesame", "open"])
    assert not customers.is_open
    assert customers.administers("Bearer sesame").name == OPERATOR == customers.identify("bearer  open ").name
    for header in (None, "", "Bearer", "Bearer ", "Basic sesame", "sesame", "Bearer Sesame", "Bearer sesame open", "Bearer sésame"):
        assert refused(customers, header).status == 401
    with pytest.raises(UserError, match="--api-key is empty"):
        Customers(api_keys=["ok", " "])


def test_keys_may_be_written_in_any_script(tmp_path: Path) -> None:
    customers = Customers(write(tmp_path, "customers:\n  - {name: a, key: schlüssel}\n"))
    sent = "Bearer schlüssel".encode().decode("latin-1")  # as a server reads a client's UTF-8
    assert customers.identify(sent).name == "a" == customers.identify("Bearer schlüssel").name


def test_every_key_of_a_customer_is_his_and_none_is_kept_or_shown(limited: tuple[Customers, Clock]) -> None:
    customers, _ = limited
    assert [customers.identify(f"Bearer {key}").name for key in ("acme-key", "ops-old", "ops-new")] == ["acme", "ops", "ops"]
    held = repr(vars(customers)) + repr(customers.identify("Bearer acme-key"))
    assert "acme-key" not in held and "ops-new" not in held
    assert customers.administers("Bearer ops-old").name == "ops"
    with pytest.raises(Refused) as caught:
        customers.administers("Bearer acme-key")
    assert (caught.value.status, caught.value.code) == (403, "not_allowed")


def test_another_customers_model_looks_like_one_that_there_is_not(limited: tuple[Customers, Clock]) -> None:
    customers, _ = limited
    sees = customers.sees("Bearer acme-key")
    assert [sees(model) for model in ("acme-support", "small", "small@3", "acme-x@12", "Small", "small@x", "other")] == [True] * 4 + [
        False
    ] * 3
    found = refused(customers, "Bearer acme-key", "other")
    unknown = no_such_model("other")
    assert (
        (found.status, found.message, found.code)
        == (unknown.status, unknown.message, unknown.code)
        == (404, found.message, "model_not_found")
    )
    assert customers.sees("Bearer ops-new")("other")


def test_requests_a_minute_are_exact(limited: tuple[Customers, Clock]) -> None:
    customers, clock = limited
    for second in (0, 10, 20):
        clock.now = 1000 + second
        customers.admit("Bearer acme-key", "small").finish()
    clock.now = 1030.5
    late = refused(customers, "Bearer acme-key", "small")
    assert (late.status, late.code, late.retry_after) == (429, "rate_limit_exceeded", 30)
    assert "3 requests a minute" in late.message
    clock.now = 1059.999
    assert refused(customers, "Bearer acme-key", "small").retry_after == 1
    clock.now = 1060  # the first one is a minute ago; those that were refused did not count
    customers.admit("Bearer acme-key", "small").finish()
    assert refused(customers, "Bearer acme-key", "small").retry_after == 10
    customers.admit("Bearer ops-new", "small").finish()  # somebody else's limits


def test_tokens_a_minute_count_from_when_they_are_known(limited: tuple[Customers, Clock]) -> None:
    customers, clock = limited
    customers.admit("Bearer acme-key", "small").finish(60)
    clock.now += 10
    customers.admit("Bearer acme-key", "small").finish(70)
    late = refused(customers, "Bearer acme-key", "small")
    assert late.retry_after == 50 and "100 tokens a minute" in late.message  # without the first there are 70
    clock.now += 50
    customers.admit("Bearer acme-key", "small").finish(30)
    assert refused(customers, "Bearer acme-key", "small").retry_after == 10  # 70 and 30 reach 100 again


def test_answers_at_the_same_time(limited: tuple[Customers, Clock]) -> None:
    customers, _ = limited
    first = customers.admit("Bearer acme-key", "small")
    second = customers.admit("Bearer acme-key", "small")
    late = refused(customers, "Bearer acme-key", "small")
    assert (late.status, late.retry_after) == (429, 1) and "2 answers at the same time" in late.message
    first.finish(5)
    first.finish(5)  # frees one place, not two
    third = customers.admit("Bearer acme-key", "small")
    assert refused(customers, "Bearer acme-key", "small").status == 429
    with pytest.raises(RuntimeError, match="inside"), second:
        raise RuntimeError("inside")
    third.finish()


def test_places_are_exact_between_threads(tmp_path: Path) -> None:
    customers = Customers(write(tmp_path, "customers:\n  - {name: a, key: k, concurrent: 5}\n"))
    most, running, lock = 0, 0, threading.Lock()

    def ask() -> None:
        nonlocal most, running
        for _ in range(200):
            try:
                admitted = customers.admit("Bearer k", "m")
            except Refused:
                continue
            with lock:
                running += 1
                most = max(most, running)
            with lock:
                running -= 1
            admitted.finish(1)

    threads = [threading.Thread(target=ask) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert 1 <= most <= 5
    assert [customers.admit("Bearer k", "m") for _ in range(5)] and refused(customers, "Bearer k").status == 429


def test_a_changed_file_is_read_again_and_a_broken_one_changes_nothing(limited: tuple[Customers, Clock]) -> None:
    customers, _ = limited
    assert customers.path is not None
    for _ in range(3):
        customers.admit("Bearer acme-key", "small").finish()
    running = customers.admit("Bearer ops-new", "small")
    customers.path.write_text("customers:\n  - {name: acme, key: second-key, requests_per_minute: 4}\n", encoding="utf-8")
    customers.reload()
    assert refused(customers, "Bearer acme-key").status == refused(customers, "Bearer ops-new").status == 401
    customers.admit("Bearer second-key", "anything").finish()
    assert refused(customers, "Bearer second-key").status == 429, "what acme used before still counts"
    running.finish(7)
    customers.path.write_text("customers:\n  - {name: acme}\n", encoding="utf-8")
    with pytest.raises(UserError, match="has no key"):
        customers.reload()
    assert customers.identify("Bearer second-key").name == "acme"
