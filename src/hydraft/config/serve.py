"""The serve section of infer.py's schema. No torch here."""

from dataclasses import dataclass


@dataclass
class ServeConfig:
    host: str = "127.0.0.1"
    """The address to listen at. Any but this machine's own needs an API key."""
    port: int = 8000
    """The port to listen at; 0 for any that is free."""
    api_key_file: str | None = None
    """A file with the API key in it; null for ``$HYDRAFT_API_KEY``, and for none where that is not set."""
    max_context: int | None = None
    """Tokens that a prompt and its answer may have together; null for what the model and ``cache_tokens`` allow."""
    max_tokens: int = 1024
    """Tokens an answer may have, and has at most where a request names no limit."""
    max_running: int = 16
    """Answers that are written at a time."""
    max_waiting: int = 64
    """Answers that may wait for their turn; what comes then is told to come again later (429)."""
    max_body: int = 1_000_000
    """Bytes of a request."""
    cache_tokens: int = 16384
    """Tokens whose keys and values are kept, over all answers that are being written; rounded up to whole blocks of 32, with
    flash-attn of 256, and three of those at least."""
    batch_tokens: int = 512
    """Tokens a forward pass takes at most; longer prompts are read in several."""
    drain: float = 30.0
    """Seconds that requests may go on for when the server is told to end (SIGTERM, Ctrl-C)."""
