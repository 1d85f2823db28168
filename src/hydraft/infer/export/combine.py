"""Makes one adapter of several, by peft's ``add_weighted_adapter``, which is then exported as any other adapter is.

The weights of the base are not read: its layers have zeros that take no memory, in fp32, in which peft creates the new matrices.
"""

import dataclasses
import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import peft
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, logging

from hydraft.config.choices import Combine
from hydraft.config.infer import InferConfig
from hydraft.config.model import ModelConfig
from hydraft.data.records import ask
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import ConfigError
from hydraft.infer.load import check_fit, tokenizer_and_data, tokenizer_of
from hydraft.infer.resolve import check_base
from hydraft.infer.source import Combined, Source
from hydraft.models import base_identity, prepare
from hydraft.models.load import load_tokenizer
from hydraft.system import files
from hydraft.system.plain_console import PlainConsole

DENSITY = 0.5
"""The share of numbers that is kept if ``export.density`` is null."""


@contextmanager
def combined(sources: list[Source], options: InferConfig, target: Path) -> Iterator[Source]:
    """The combined adapter, in a temporary folder beside ``target`` within the context.

    Raises:
        ConfigError: the adapters do not fit the base or each other.
    """
    folder = target.with_name(f".{target.name}.{files.STAGING}{secrets.token_hex(4)}")
    folder.mkdir()
    try:
        yield write(sources, options, folder, target.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(sources: list[Source], options: InferConfig, folder: Path, name: str) -> Source:
    """Write the combined adapter to the existing ``folder``, with the tokenizer and the record of the base of the first.

    Returns:
        The source ``name`` for it.
    """
    method = options.export.combine
    assert method is not None
    weights = options.export.weights or [1 / len(sources)] * len(sources)
    density = (options.export.density or DENSITY) if method.prunes else None
    first = sources[0]
    section = prepare.native(first.model, first.seed, PlainConsole(stderr=True))
    for source in sources:
        check_base(source, options.other_base)  # a model of the hub may have been downloaded only now
        check_fit(source, section)
    _check_prompts(sources, method)
    logging.set_verbosity_error()
    model, names = adapted(_without_weights(section), sources)
    torch.manual_seed(options.seed)  # of what is drawn by dare
    add(model, names, weights, method, density)
    model.save_pretrained(str(folder), selected_adapters=["default"], save_embedding_layers=False)
    if (first.folder / "tokenizer_config.json").is_file():
        load_tokenizer(tokenizer_of(first, section)).save_pretrained(folder)
    longest = max((source.max_length for source in sources if source.max_length is not None), default=None)
    if (first.folder / base_identity.NAME).is_file():
        known = json.loads((first.folder / base_identity.NAME).read_text(encoding="utf-8"))
        files.write_json(folder / base_identity.NAME, known | {"max_length": longest})
    seed = options.seed if method.value.startswith("dare") else None
    about = Combined(method.value, weights, density, seed, sources)
    return dataclasses.replace(
        first, folder=folder, name=name, run=None, max_length=longest, notices=[], combined=about
    )


def _check_prompts(sources: list[Source], method: Combine) -> None:
    """Refuse adapters that are prompted in different ways: the new one has one chat template, and thinks or does not.

    Raises:
        ConfigError: names the first two.
    """
    prompts = [prompt_ids(ask("?"), *tokenizer_and_data(source, PlainConsole(stderr=True))) for source in sources]
    for source, prompt in zip(sources, prompts, strict=True):
        if prompt != prompts[0]:
            raise ConfigError(
                f"export.combine={method.value}: {sources[0].name} and {source.name} are prompted in different ways, by their chat templates "
                f"or by thinking ({sources[0].thinking.value}, {source.thinking.value}): choose one with thinking=… or template=…"
            )


def _without_weights(section: ModelConfig) -> PreTrainedModel:
    """A prepared model of the base's shapes, whose weights are one zero each."""
    code = section.trust_remote_code
    config = AutoConfig.from_pretrained(section.path, revision=section.revision, trust_remote_code=code)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=code)
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            zeros = torch.nn.Parameter(torch.zeros(()).expand(weight.shape), requires_grad=False)
            module.register_parameter(name, zeros)
    return model


def adapted(base: torch.nn.Module, sources: list[Source]) -> tuple[peft.PeftModel, list[str]]:
    """``base`` with the adapters of ``sources`` in fp32, and their names in it."""
    # No numbers: peft leaves other adapters out as it saves one, by their names between dots, as in "layers.0.".
    names = [f"adapter_{number}" for number in range(len(sources))]
    model: peft.PeftModel | None = None
    for name, source in zip(names, sources, strict=True):
        folder = str(source.folder)
        try:
            if model is None:
                model = peft.PeftModel.from_pretrained(base, folder, adapter_name=name, autocast_adapter_dtype=True)
            else:
                model.load_adapter(folder, adapter_name=name, autocast_adapter_dtype=True)
        except (ValueError, RuntimeError, KeyError, TypeError) as error:
            raise ConfigError(
                f"run={folder}: does not fit {source.model.path}: {str(error).splitlines()[0]}"
            ) from error
    assert isinstance(model, peft.PeftModel)
    return model, names


def add(model: peft.PeftModel, names: list[str], weights: list[float], method: Combine, density: float | None) -> None:
    """Add the adapter ``default``, the combination of ``names``.

    Raises:
        ConfigError: peft cannot combine them.
    """
    try:
        model.add_weighted_adapter(
            names, weights, "default", combination_type=method.peft, density=density, svd_full_matrices=False
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(f"export.combine={method.value}: {str(error).splitlines()[0]}") from error
    # The combined matrices have the scaling of each adapter in them, and alpha is the rank: a scaling of 1, which rsLoRA's would not be.
    model.peft_config["default"].use_rslora = False
