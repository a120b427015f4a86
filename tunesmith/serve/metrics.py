"""What a server did, as Prometheus reads it at /metrics: by model and by customer, and the engine's own gauges.

    ours                                    vLLM's
    tunesmith_requests_total                vllm:request_success_total, by status here
    tunesmith_prompt_tokens_total           vllm:prompt_tokens_total
    tunesmith_generation_tokens_total       vllm:generation_tokens_total
    tunesmith_time_to_first_token_seconds   vllm:time_to_first_token_seconds
    tunesmith_inter_token_latency_seconds   vllm:inter_token_latency_seconds
    tunesmith_e2e_request_latency_seconds   vllm:e2e_request_latency_seconds
    tunesmith_requests_in_flight            running and waiting together
    tunesmith_engine_running, _waiting      vllm:num_requests_running, vllm:num_requests_waiting

Times are in seconds, from a request's arrival. A model that is not served makes no series of its own: it counts as `unknown`.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tunesmith.errors import UserError

UNKNOWN, OTHER = "unknown", "other"
MOST = 1000  # values of a label that have series of their own; the rest is counted together
FIRST_TOKEN = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2)
WHOLE = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics:
    """Counters, histograms and gauges in a registry of their own. Safe from any thread."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(
        self,
        figures: Callable[[], Mapping[str, float]] = dict,
        is_served: Callable[[str], bool] = lambda model: True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """`figures` is asked at each scrape: an engine's `figures`. `is_served` says which models may be a label. Raises UserError
        where prometheus-client is not installed."""
        try:
            from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
        except ImportError:
            raise UserError("serving needs prometheus-client: pip install 'tunesmith[serve]'") from None
        disable_created_metrics()  # when each series began: as many lines again, which nobody draws
        self._registry = CollectorRegistry()
        self._is_served, self._clock, self._lock = is_served, clock, threading.Lock()
        self._models: set[str] = set()
        self._customers: set[str] = set()
        whose: Any = {"labelnames": ("model", "customer"), "registry": self._registry}
        by_status = {**whose, "labelnames": ("model", "customer", "status")}
        self._requests = Counter("tunesmith_requests", "Requests that were answered or refused, by HTTP status", **by_status)
        self._prompt = Counter("tunesmith_prompt_tokens", "Tokens of prompts", **whose)
        self._answer = Counter("tunesmith_generation_tokens", "Tokens of answers", **whose)
        self._running = Gauge("tunesmith_requests_in_flight", "Requests that are waiting or being answered", **whose)
        self._first = Histogram("tunesmith_time_to_first_token_seconds", "From arrival to the first token", buckets=FIRST_TOKEN, **whose)
        self._between = Histogram("tunesmith_inter_token_latency_seconds", "Between two tokens", buckets=BETWEEN_TOKENS, **whose)
        self._whole = Histogram("tunesmith_e2e_request_latency_seconds", "From arrival to the last token", buckets=WHOLE, **whose)
        self._registry.register(_Figures(figures))

    def begin(self, model: str, customer: str = "") -> "Request":
        """A request has arrived. The model need not be one that is served, the customer is "" where the key was not known."""
        with self._lock:
            named = _bounded(model if self._is_served(model) else UNKNOWN, self._models)
            labels = (named, _bounded(customer or UNKNOWN, self._customers))
        return Request(self, labels, self._clock())

    def text(self) -> str:
        """The page, in Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self._registry).decode()


class Request:
    """One request on its way. `token` may come from the engine's thread; `end` counts once."""

    def __init__(self, metrics: Metrics, labels: tuple[str, str], arrived: float):
        self._metrics, self._labels, self._arrived = metrics, labels, arrived
        self._last: float | None = None  # when the last token came
        self._ended = False
        self._lock = threading.Lock()
        metrics._running.labels(*labels).inc()

    def token(self) -> None:
        """A token of its answer came."""
        metrics, now = self._metrics, self._metrics._clock()
        if self._last is None:
            metrics._first.labels(*self._labels).observe(now - self._arrived)
        else:
            metrics._between.labels(*self._labels).observe(now - self._last)
        self._last = now

    def end(self, status: int, prompt_tokens: int = 0, answer_tokens: int = 0) -> None:
        """It is over, with this HTTP status; 499 for a client that left."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        metrics, labels = self._metrics, self._labels
        metrics._running.labels(*labels).dec()
        metrics._requests.labels(*labels, str(status)).inc()
        if prompt_tokens:
            metrics._prompt.labels(*labels).inc(prompt_tokens)
        if answer_tokens:
            metrics._answer.labels(*labels).inc(answer_tokens)
            metrics._whole.labels(*labels).observe(metrics._clock() - self._arrived)


class _Figures:
    """An engine's figures, read when Prometheus asks."""

    def __init__(self, figures: Callable[[], Mapping[str, float]]):
        self._figures = figures

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, value in sorted(self._figures().items()):
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family("tunesmith_engine_" + re.sub(r"\W", "_", name), f"The engine's {name.replace('_', ' ')}", value=value)

    def describe(self) -> list[Any]:
        """Nothing is asked of the engine before the first scrape."""
        return []


def _bounded(label: str, known: set[str]) -> str:
    if label in known or len(known) < MOST:
        known.add(label)
        return label
    return OTHER
