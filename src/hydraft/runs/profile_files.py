"""The files of ``train.profile`` in a run's folder. No torch."""

FOLDER = "profile"
"""The folder."""

TRACE = "trace.json.gz"
"""The trace of torch.profiler, in Chrome's format."""

TABLE = "operators.txt"
"""All operators, with calls, times and memory."""

MEMORY = "memory.pickle"
"""With a GPU: torch's snapshot of its memory."""
