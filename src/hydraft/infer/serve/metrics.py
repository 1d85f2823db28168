"""Prometheus metrics of the server."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters, histograms and gauges of one server."""

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float], cache: Callable[[], float]) -> None:
        """The functions give the current values of the gauges."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "hydraft_requests", "Requests by route and HTTP status", ["route", "status"], registry=self.registry
        )
        self.left = Counter("hydraft_left", "Requests whose client disconnected before the end", registry=self.registry)
        self.prompt = Counter("hydraft_prompt_tokens", "Prompt tokens", ["model"], registry=self.registry)
        self.written = Counter("hydraft_completion_tokens", "Generated tokens", ["model"], registry=self.registry)
        self.first = Histogram(
            "hydraft_first_token_seconds", "From request to first token", buckets=SECONDS, registry=self.registry
        )
        self.duration = Histogram(
            "hydraft_answer_seconds", "From request to last token", buckets=SECONDS, registry=self.registry
        )
        for name, description, value in (
            ("hydraft_running", "Answers being generated", running),
            ("hydraft_waiting", "Answers in the queue", waiting),
            ("hydraft_cache_used_ratio", "Share of the cache that is reserved for running answers", cache),
        ):
            Gauge(name, description, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)
