"""``mode=serve``: an OpenAI-compatible server that batches requests for the base and its adapters together. No torch at module level."""

from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.serve.listen import api_key, listen, raise_file_limit
from hydraft.infer.source import Source
from hydraft.models.families.registry import native_family
from hydraft.models.shapes import planned_config


def run(sources: list[Source], options: InferConfig) -> None:
    """Serve until SIGTERM or Ctrl-C. The port is bound before anything is loaded.

    Raises:
        ConfigError: continuous batching cannot compute the model's attention, or too few files may be open.
    """
    files = raise_file_limit()
    key, model = api_key(options.serve), sources[0].model
    refuse_alibi(model.path, (planned_config(model) or {}).get("model_type"))
    with listen(options.serve, key) as listener:
        from hydraft.infer.load import load
        from hydraft.infer.serve.server import serve

        loaded = load(sources, options)
        refuse_alibi(model.path, loaded.model.config.model_type)  # of a hub model it may be known only now
        serve(loaded, options.serve, listener, key, files)


def refuse_alibi(path: str, model_type: str | None) -> None:
    """Refuse a model with ALiBi: the paged cache of continuous batching has no place for it, and answers would be wrong.

    Raises:
        ConfigError: the model has ALiBi.
    """
    family = native_family(str(model_type))
    if family is not None and family.alibi:
        raise ConfigError(
            f"mode=serve: {path} has ALiBi positions, which the paged cache of continuous batching does not support: "
            "use mode=batch, mode=generate or mode=chat"
        )
