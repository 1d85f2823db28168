"""Checks of the adapters that ``export.combine`` makes one of, from their files. No torch."""

from hydraft.config.choices import Combine
from hydraft.config.infer import InferConfig
from hydraft.errors import ConfigError
from hydraft.infer.resolve import ADAPTER_CONFIG
from hydraft.infer.source import Source
from hydraft.models.adapter_files import IN_ANY_RUN, OVER_THE_BASE
from hydraft.system import files

COMBINED = IN_ANY_RUN - {"bias", "use_dora"} | {"rank_pattern", "alpha_pattern", "eva_config"}
"""Keys of adapter_config.json that are part of the matrices A and B or of training only. Another one that is set changes what the
adapter computes, in a way that peft's ``add_weighted_adapter`` does not combine."""


def check(sources: list[Source], options: InferConfig) -> None:
    """Refuse adapters that cannot be combined, and weights that do not fit them.

    Raises:
        ConfigError: names what to change.
    """
    method, weights = options.export.combine, options.export.weights
    assert method is not None
    if len(sources) < 2:
        raise ConfigError(f"export.combine={method.value}: is for several adapters, and run is one: give run=[a,b]")
    if weights and len(weights) != len(sources):
        raise ConfigError(
            f"export.weights={_listed(weights)}: must be one number for each of the {len(sources)} adapters of run"
        )
    settings = [files.read_object(source.folder / ADAPTER_CONFIG) for source in sources]
    for source, each in zip(sources, settings, strict=True):
        if each.get("peft_type") != "LORA":
            raise ConfigError(
                f"export.combine={method.value}: the adapter {source.name} has peft_type={each.get('peft_type')}, and no A and B of its "
                "own: leave it out of run, or merge it alone"
            )
        for name, value in each.items():
            if name not in COMBINED and value and value != "none":
                raise ConfigError(
                    f"export.combine={method.value}: the adapter {source.name} has {name}={value}, which is not part of its matrices A "
                    "and B: leave it out of run, or merge it alone"
                )
        if (start := each.get("init_lora_weights")) not in (None, *OVER_THE_BASE):
            raise ConfigError(
                f"export.combine={method.value}: the adapter {source.name} has init_lora_weights={start}, which changes the base: leave it "
                "out of run, or save it as plain LoRA (peft, path_initial_model_for_weight_conversion)"
            )
    _check_ranks(sources, settings, method)
    if len({isinstance(each.get("target_modules"), str) for each in settings}) > 1:
        raise ConfigError(
            f"export.combine={method.value}: target_modules is a pattern in some adapters and a list in others, which peft cannot combine"
        )
    _check_prompts(sources, method)


def _check_ranks(sources: list[Source], settings: list[dict[str, object]], method: Combine) -> None:
    if not method.same_rank:
        return
    ranks = [each.get("r") for each in settings]
    if len(set(ranks)) > 1 or any(each.get("rank_pattern") for each in settings):
        found = ", ".join(f"{source.name}: {rank}" for source, rank in zip(sources, ranks, strict=True))
        other = "cat" if method is Combine.linear else f"{method.value}_svd"
        raise ConfigError(
            f"export.combine={method.value}: needs adapters of one rank ({found}): use export.combine={other}"
        )


def _check_prompts(sources: list[Source], method: Combine) -> None:
    """Refuse adapters that were trained on other tokens, or with another ``data.template``."""
    first = sources[0]
    tokens = [_tokens(source) for source in sources]
    for source, other in zip(sources[1:], tokens[1:], strict=True):
        if source.template != first.template:
            raise ConfigError(
                f"export.combine={method.value}: {first.name} was trained with data.template={first.template!r} and {source.name} with "
                f"{source.template!r}: choose one with template=…"
            )
        if tokens[0] and other and tokens[0] != other:
            raise ConfigError(
                f"export.combine={method.value}: {first.name} and {source.name} have different tokenizers: they cannot be one model"
            )


def _tokens(source: Source) -> dict[str, object]:
    """What turns text into tokens; empty if only the base has it."""
    found = files.read_object(source.folder / "tokenizer.json")
    return {name: found.get(name) for name in ("model", "added_tokens", "normalizer", "pre_tokenizer") if found}


def _listed(weights: list[float]) -> str:
    return f"[{','.join(f'{weight:g}' for weight in weights)}]"
