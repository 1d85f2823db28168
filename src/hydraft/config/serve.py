"""Schema of the ``serve`` section of infer.py: address, limits and memory of the server. No torch."""

from dataclasses import dataclass

from hydraft.config.bounds import setting


@dataclass
class ServeConfig:
    """The server of ``mode=serve``: address, API key, limits and memory."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than the loopback address needs an API key."""
    port: int = setting(8000, at_least=0, at_most=65535, hint="; 0 for any free port")
    """Port to listen on. 0: any free port."""
    api_key_file: str | None = None
    """A file that contains the API key. null: the environment variable ``HYDRAFT_API_KEY``, or no key if that is not set."""
    max_context: int | None = setting(None, at_least=2, unit="tokens", hint=", or null for what the model allows")
    """Most tokens of a prompt and its answer together. null: what the model and ``cache_tokens`` allow."""
    max_tokens: int = setting(1024, at_least=1, unit="tokens")
    """Most tokens of an answer, also for a request that sets no limit."""
    max_running: int = setting(16, at_least=1, unit="answers")
    """Answers that are generated at the same time."""
    max_waiting: int = setting(64, at_least=0, unit="answers")
    """Answers in the queue; further requests get status 429 (retry later)."""
    max_body: int = setting(1_000_000, at_least=1000, unit="bytes")
    """Largest body of a request."""
    cache_tokens: int = setting(16384, at_least=256, unit="tokens")
    """Size of the key-value cache that all running answers share. Rounded up to whole blocks: of 32 tokens, with flash-attn of 256
    and at least three."""
    batch_tokens: int = setting(512, at_least=1, unit="tokens")
    """Most tokens of a forward pass; longer prompts are processed in several. At least ``max_running``."""
    client_timeout: float = setting(30.0, above=0, at_most=86_400, unit="seconds")
    """Time that a client has to send the head of a request, its body, and to take each part of an answer."""
    drain: float = setting(30.0, at_least=0, at_most=86_400, unit="seconds")
    """Time that running requests have to finish after SIGTERM or Ctrl-C."""
