"""What stands on the page after known requests, with a given clock."""

import re
import sys

import pytest

from tunesmith.errors import UserError
from tunesmith.serve.metrics import MOST, Metrics

pytest.importorskip("prometheus_client")


class Clock:
    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> float:
        return self.now


def value(text: str, name: str, **labels: str) -> float | None:
    """Of one series."""
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")) == labels:
            return float(found[2])
    return None


def test_a_request_counts_by_model_customer_and_status() -> None:
    clock = Clock()
    metrics = Metrics(clock=clock)
    request = metrics.begin("support", "acme")
    whose = {"model": "support", "customer": "acme"}
    assert value(metrics.text(), "tunesmith_requests_in_flight", **whose) == 1
    for step in (0.3, 0.04, 0.06):
        clock.now += step
        request.token()
    clock.now += 0.5
    request.end(200, prompt_tokens=7, answer_tokens=3)
    request.end(500, prompt_tokens=7, answer_tokens=3)  # counts once
    text = metrics.text()
    assert value(text, "tunesmith_requests_in_flight", **whose) == 0
    assert value(text, "tunesmith_requests_total", **whose, status="200") == 1
    assert value(text, "tunesmith_requests_total", **whose, status="500") is None
    assert value(text, "tunesmith_prompt_tokens_total", **whose) == 7
    assert value(text, "tunesmith_generation_tokens_total", **whose) == 3
    assert value(text, "tunesmith_time_to_first_token_seconds_sum", **whose) == pytest.approx(0.3)
    assert value(text, "tunesmith_time_to_first_token_seconds_bucket", **whose, le="0.2") == 0
    assert value(text, "tunesmith_time_to_first_token_seconds_bucket", **whose, le="0.5") == 1
    assert value(text, "tunesmith_inter_token_latency_seconds_count", **whose) == 2
    assert value(text, "tunesmith_inter_token_latency_seconds_sum", **whose) == pytest.approx(0.1)
    assert value(text, "tunesmith_e2e_request_latency_seconds_sum", **whose) == pytest.approx(0.9)
    assert not re.search(r"_created", text)
    assert metrics.content_type.startswith("text/plain; version=0.0.4")


def test_names_that_clients_invent_make_no_series() -> None:
    metrics = Metrics(is_served=lambda model: model == "real")
    for number in range(50):
        metrics.begin(f"invented-{number}", "acme").end(404)
    metrics.begin("real").end(401)
    text = metrics.text()
    assert "invented" not in text
    assert value(text, "tunesmith_requests_total", model="unknown", customer="acme", status="404") == 50
    assert value(text, "tunesmith_requests_total", model="real", customer="unknown", status="401") == 1


def test_models_that_come_and_go_for_ever_are_counted_together_in_the_end() -> None:
    metrics = Metrics()
    for number in range(MOST + 5):
        metrics.begin(f"m{number}", "acme").end(200)
    text = metrics.text()
    assert value(text, "tunesmith_requests_total", model="other", customer="acme", status="200") == 5
    assert len(re.findall(r"^tunesmith_requests_total\{", text, re.M)) == MOST + 1


def test_a_label_cannot_break_the_page() -> None:
    metrics = Metrics()
    metrics.begin('a"b\nc\\', "x").end(200)
    lines = [line for line in metrics.text().splitlines() if line.startswith("tunesmith_requests_total")]
    assert lines == ['tunesmith_requests_total{customer="x",model="a\\"b\\nc\\\\",status="200"} 1.0']


def test_the_engines_figures_are_read_at_each_scrape() -> None:
    figures = {"running": 2.0, "cache_tokens": 512.0, "preempted_total": 3.0, "odd name": 1.0}
    metrics = Metrics(figures=lambda: figures)
    text = metrics.text()
    assert value(text, "tunesmith_engine_running") == 2
    assert value(text, "tunesmith_engine_cache_tokens") == 512
    assert value(text, "tunesmith_engine_odd_name") == 1
    assert "# TYPE tunesmith_engine_preempted_total counter" in text and value(text, "tunesmith_engine_preempted_total") == 3
    assert "# TYPE tunesmith_engine_running gauge" in text
    figures["running"] = 5
    assert value(metrics.text(), "tunesmith_engine_running") == 5


def test_two_servers_in_one_process_do_not_share() -> None:
    one, other = Metrics(), Metrics()
    one.begin("m", "a").end(200)
    assert value(other.text(), "tunesmith_requests_total", model="m", customer="a", status="200") is None


def test_a_missing_library_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(UserError, match="pip install 'tunesmith\\[serve\\]'"):
        Metrics()
