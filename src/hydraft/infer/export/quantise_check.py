"""Checks of ``export.quant`` before anything is loaded. No torch."""

from importlib.util import find_spec

from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.source import Source
from hydraft.system import program


def check(sources: list[Source], options: InferConfig) -> None:
    """Refuse a quantisation without its package, or without records.

    Args:
        sources: what is exported: one, or all that are combined.
        options: those of the export.

    Raises:
        ConfigError: names what to install, or to give.
    """
    quant = options.export.quant
    assert quant is not None
    if find_spec("llmcompressor") is None:
        raise ConfigError(f"export.quant={quant.value}: needs llm-compressor: {program.install('llmcompressor')}")
    if all(source.run is None for source in sources):
        raise ConfigError(
            f"export.quant={quant.value}: {sources[0].folder} is not in a run's folder, so it has no records to calibrate on and to "
            "measure the loss with: give run=<a run's folder>"
        )
