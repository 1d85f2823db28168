"""``mode=serve``: an OpenAI-compatible server that batches requests for the base and its adapters together. No torch at module level."""

from hydraft.config.infer import InferConfig
from hydraft.infer.serve.listen import api_key, listen
from hydraft.infer.source import Source


def run(sources: list[Source], options: InferConfig) -> None:
    """Serve until SIGTERM or Ctrl-C. The port is bound before anything is loaded."""
    key = api_key(options.serve)
    with listen(options.serve, key) as listener:
        from hydraft.infer.load import load
        from hydraft.infer.serve.server import serve

        serve(load(sources, options), options.serve, listener, key)
