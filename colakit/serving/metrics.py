"""Metrics of a server, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SENTENCES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "colakit_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "colakit_request_seconds",
            "Time from the head of a request to its answer.",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.sentences = Counter(
            "colakit_sentences", "Sentences labelled, by model.", ["model"], registry=self.registry
        )
        self.batch_sentences = Histogram(
            "colakit_batch_sentences", "Sentences in a batch.", buckets=SENTENCES, registry=self.registry
        )
        self.batch_tokens = Counter("colakit_batch_tokens", "Tokens computed.", registry=self.registry)
        self.batch_seconds = Counter("colakit_batch_seconds", "Time in batches.", registry=self.registry)

    def on_batch(self, sentences: int, tokens: int, seconds: float) -> None:
        """Count a batch."""
        self.batch_sentences.observe(sentences)
        self.batch_tokens.inc(tokens)
        self.batch_seconds.inc(seconds)

    def watch(self, waiting: Callable[[], int], models: Callable[[], int]) -> None:
        """Report the length of the queue and the number of models when the metrics are read."""
        gauges = (
            ("colakit_queue_tokens", "Tokens that wait for a batch.", waiting),
            ("colakit_models", "Models served.", models),
        )
        for name, text, value in gauges:
            Gauge(name, text, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self.registry)
