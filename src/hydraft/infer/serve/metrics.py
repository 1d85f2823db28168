"""What the server tells Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Counters of one server."""

    def __init__(self, running: Callable[[], float], waiting: Callable[[], float], cache: Callable[[], float]) -> None:
        """The functions are asked whenever someone reads."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "hydraft_requests", "Requests by route and HTTP status", ["route", "status"], registry=self.registry
        )
        self.left = Counter("hydraft_left", "Requests whose client left before the end", registry=self.registry)
        self.prompt = Counter("hydraft_prompt_tokens", "Tokens read", ["model"], registry=self.registry)
        self.written = Counter("hydraft_completion_tokens", "Tokens written", ["model"], registry=self.registry)
        self.first = Histogram(
            "hydraft_first_token_seconds", "From request to first token", buckets=SECONDS, registry=self.registry
        )
        self.whole = Histogram(
            "hydraft_answer_seconds", "From request to last token", buckets=SECONDS, registry=self.registry
        )
        for name, told, ask in (
            ("hydraft_running", "Answers being written", running),
            ("hydraft_waiting", "Answers that wait for their turn", waiting),
            ("hydraft_cache_used_ratio", "Share of the cache that is promised to running answers", cache),
        ):
            Gauge(name, told, registry=self.registry).set_function(ask)

    def text(self) -> bytes:
        """All of it, in Prometheus' text form."""
        return generate_latest(self.registry)
