"""Settings of the server."""

from __future__ import annotations

from pydantic import Field

from colakit.config.section import Section


class ServeSettings(Section):
    """Serving over HTTP."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8000, ge=0, lt=2**16, description="Port to listen on; 0: a free one.")
    max_batch_tokens: int = Field(
        2048, ge=1, le=2**20, description="Tokens that are computed together; a longer sentence runs alone."
    )
    max_wait_ms: float = Field(
        2.0, ge=0, le=10_000, description="Longest wait of a sentence for others to share its batch."
    )
    max_queue_tokens: int = Field(
        2**17,
        ge=1,
        le=2**30,
        description="Tokens that may wait; further requests are refused with status 429.",
    )
    max_body_bytes: int = Field(2**20, ge=2**10, le=2**27, description="Size of a request.")
    max_sentences: int = Field(
        1024, ge=1, le=2**20, description="Sentences of a request, times the models that label them."
    )
    max_request_tokens: int = Field(2**15, ge=1, le=2**27, description="Tokens of a request, likewise.")
    max_connections: int = Field(1000, ge=1, le=2**20, description="Open connections; others get 503.")
    receive_seconds: float = Field(
        10.0,
        gt=0,
        le=3600,
        description="Longest time that a client may take to send a request's head or body.",
    )
    answer_seconds: float = Field(
        60.0, gt=0, le=86_400, description="Longest time from a received request to its answer."
    )
    drain_seconds: float = Field(
        1.0, ge=0, le=3600, description="Time between SIGTERM and the end of listening; /ready is 503 in it."
    )
