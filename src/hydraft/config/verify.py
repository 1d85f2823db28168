"""Schema of the ``verify`` section of infer.py: the server to compare with. No torch."""

from dataclasses import dataclass

from hydraft.config.bounds import setting


@dataclass
class VerifyConfig:
    """The server that ``mode=verify`` compares with: its model, API key and patience."""

    model: str | None = None
    """Name of the model on the server. null: that of the run, or the only one that the server has."""
    records: int = setting(16, at_least=1, unit="records")
    """Prompts to compare, spread evenly over the held-out records."""
    api_key_file: str | None = None
    """A file that contains the server's API key. null: the environment variable ``HYDRAFT_API_KEY``, or no key if that is not set."""
    timeout: float = setting(300.0, above=0, at_most=86_400, unit="seconds")
    """Time that the server has for each answer."""
