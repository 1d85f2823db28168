"""Loads the tokenizer and the model of a model section.

Under ZeRO-3 the TrainingArguments must exist before a model is loaded here: transformers reads from them that weights are to
be sharded while loading.
"""

import functools
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from hydraft.config.choices import Batching, Kernels, Precision, QuantKind
from hydraft.config.lora import LoraMethod
from hydraft.config.model import ModelConfig
from hydraft.config.schema import Config, QuantConfig
from hydraft.errors import ConfigError
from hydraft.models import (
    attention,
    batching,
    expert_targets,
    experts,
    liger,
    lora_init,
    quantised_copy,
    rope,
    row_documents,
    stored_quant,
    unsloth,
    vector_math,
    vocabulary,
)
from hydraft.models.architectures.register import register
from hydraft.models.lora import copied, targets
from hydraft.models.loss import chunked
from hydraft.models.loss_chunked import use_chunked_loss
from hydraft.models.quant import DTYPES, adopt, bits_and_bytes
from hydraft.models.sharded_load import Sharding
from hydraft.models.streaming import each_parameter

register()


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: ModelConfig, folder: Path | None = None) -> None:
    """Refuse a loaded tokenizer, of another ``folder`` if given, with more tokens than the prepared model's embedding has rows.

    Raises:
        ConfigError: the message has both numbers.
    """
    known = tokenizer.get_vocab()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    used = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)
    if backend is not None and getattr(backend.model, "unk_token", None) is None and tokenizer.unk_token not in used:
        known.pop(str(tokenizer.unk_token), None)  # added by its class, but in no text
    vocabulary.compare(known, vocabulary.rows(config_of(model).to_dict()), model, folder)


def load_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a padding token.

    Raises:
        ConfigError: there is none, or it has no token to pad with.
    """
    tokenizer = _read(AutoTokenizer.from_pretrained, model)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"model.path={model.path}: its tokenizer has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token  # padding is masked and never a label, so any id will do
    return tokenizer


def load_base(
    model: ModelConfig,
    quant: QuantConfig,
    precision: Precision,
    device: torch.device | None = None,
    error_rank: int = 0,
) -> PreTrainedModel:
    """The prepared model without an adapter, with weights in ``model.dtype``, on ``device`` if given.

    With ``error_rank``, 4-bit layers keep what NF4 loses, for an adapter of that rank (``lora_init.py``).

    Only safetensors are read: a pickle may contain code. The weights of a checkpoint that is stored quantised stay as they are.

    Raises:
        ConfigError: it cannot be read, is stored in another quantisation than ``quant``, or tensors are missing, which transformers
            would draw at random.
    """
    vector_math.resolve()
    kept = model.kept_in(precision)
    config = config_of(model)
    known = config.to_dict()
    stored = stored_quant.recorded(known)
    stored_quant.agree(model, quant, stored)
    # Given as None, it would replace that of the checkpoint: stored 8-bit codes would be read as the weights themselves.
    wanted = bits_and_bytes(quant, kept)
    storing = {} if stored or wanted is None else {"quantization_config": wanted}
    placed = {} if device is None or (device.type == "cpu" and not torch.cuda.is_available()) else {"": device}
    lora_init.refuse_stored(bool(stored and stored.quant), error_rank)
    sharding, reading = _reading(model, quant, kept, error_rank)
    with reading:
        loaded, info = _read(
            AutoModelForCausalLM.from_pretrained,
            model,
            config=config,
            dtype=DTYPES[kept],
            use_safetensors=True,
            device_map=placed or None,
            output_loading_info=True,
            **storing,
        )
    assert isinstance(loaded, PreTrainedModel)
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"model.path={model.path}: {missing[0]} is in none of its weight files ({len(missing)} tensors are missing), and would be "
            "random: download the checkpoint again, or check its config.json"
        )
    if sharding is not None:
        sharding.finish(loaded)
    elif stored:
        adopt(loaded, kept)
    _keep_gradients(loaded)
    experts.use(loaded)
    if row_documents.reason(loaded) is None:  # otherwise the attention stays the model's own
        attention.use(loaded)
    if (source := quantised_copy.made_from(known)) is not None:  # peft records it as the base of an adapter
        loaded.name_or_path = loaded.config.name_or_path = source
    loaded.config.use_cache = False  # not needed in training; generation enables it
    return loaded


def _reading(
    model: ModelConfig, quant: QuantConfig, kept: Precision, error_rank: int
) -> tuple[Sharding | None, AbstractContextManager[None]]:
    """How tensors are placed while they are read: 4-bit ones sharded, and experts in 4 bits."""
    after = functools.partial(lora_init.remember_error, r=error_rank) if error_rank else None
    if quant.kind is not QuantKind.nf4:
        return None, each_parameter(None, None, after)
    folder = Path(model.path).expanduser()
    if is_deepspeed_zero3_enabled():  # transformers itself shards only unquantised weights while it reads them
        sharding = Sharding(DTYPES[kept], quant.double_quant, folder)
        return sharding, each_parameter(sharding.visit, sharding.quantise, after)
    return None, each_parameter(experts.quantise_read(folder, quant.double_quant, DTYPES[kept]), None, after)


def settle_batching(config: Config) -> tuple[Config, list[str]]:
    """The config with padded batches if the model needs them, by its code, and a line about that; its weights are not read.

    Raises:
        ConfigError: the run packs documents into rows, and the model does not keep them apart.
    """
    if (
        config.kernels.kind is Kernels.unsloth or config.data.batching is Batching.padded
    ):  # Unsloth has its own attention
        return config, []
    return batching.settle(config, _row_reason(config.model))


def _row_reason(model: ModelConfig) -> str | None:
    """Why a model does not keep the documents of a row apart; None if it does."""
    config = config_of(model)
    key = type(config), config.to_json_string(use_diff=False)
    if key not in _row_reasons:
        empty = _without_weights(config)
        foreign = f"the code of {type(config).__name__} is not that of transformers"
        _row_reasons[key] = foreign if empty is None else row_documents.reason(empty)
    return _row_reasons[key]


_row_reasons: dict[tuple[type, str], str | None] = {}
"""By a model's config: the members of a pack have the same one."""


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel | None:
    """The model of a config on the meta device; None for code that is not that of transformers."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if kind.config_class is config.sub_configs.get("text_config"):  # the language model of one that also sees
        config = config.get_text_config()
    with torch.device("meta"):
        made: PreTrainedModel = kind(config)  # not from_config, which would shard it under ZeRO-3
    return made


def adapter_in_fp32(config: Config) -> bool:
    """Whether the adapter is in fp32 while the base has fewer bits."""
    return config.train.precision is Precision.fp32 and config.model.dtype not in (Precision.auto, Precision.fp32)


def _keep_gradients(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights for inference on CPUs with AVX512-BF16.

    One forward pass in eval mode, such as the evaluation before training, repacks them permanently: their scales are rounded to
    bf16, and no gradient passes through them any more, so adapters below the last layer would get none.
    """
    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_trainable(config: Config) -> PreTrainedModel | peft.PeftModel:
    """The model to train: the base with a new adapter, or without one for full fine-tuning."""
    if config.kernels.kind is Kernels.unsloth:
        return unsloth.load(config)
    _check_targets(config)
    rank = config.lora.r if config.lora.variant.reads_error else 0
    return trainable_over(config, load_base(config.model, config.quant, config.train.precision, error_rank=rank))


def trainable_over(config: Config, base: PreTrainedModel) -> PreTrainedModel | peft.PeftModel:
    """``base`` itself, which is changed, with a new adapter and the loss of the config.

    Raises:
        ConfigError: the adapter's targets are not in the model.
    """
    if config.kernels.kind is Kernels.liger:
        liger.patch(base)
    elif has_chunked_loss(config, base):
        use_chunked_loss(base)
    if config.train.recomputes:
        base.enable_input_require_grads()  # otherwise the inputs need no gradient, and recomputed layers get none
    if config.lora.method is LoraMethod.none:
        return base
    set_seed(config.seed)  # the same initial adapter on every rank, whatever random numbers loading used
    return lora_init.adapted(base, config.lora, config.quant.kind is not QuantKind.none, adapter_in_fp32(config))


def has_chunked_loss(config: Config, model: torch.nn.Module) -> bool:
    """Whether the loss of ``model``, with or without an adapter, is computed in chunks of trained tokens."""
    known: Any = model.config
    return chunked(config, known.model_type, getattr(known, "vocab_size", 0))


def _check_targets(config: Config) -> None:
    """Refuse targets that the model does not have before its weights are read; with remote code, after that.

    Raises:
        ConfigError: the message has the names.
    """
    model = config.model
    if config.lora.method is LoraMethod.none or model.trust_remote_code:
        return
    empty = _without_weights(config_of(model))
    if empty is not None:
        expert_targets.check(empty, config.quant.kind)
        copied(config.lora, empty, targets(config.lora, empty))


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def config_of(model: ModelConfig) -> PreTrainedConfig:
    """The config of the prepared model, with ``model.rope``, without its weights.

    Raises:
        ConfigError: it cannot be read, or its rotary positions cannot be scaled so.
    """
    config = _read(AutoConfig.from_pretrained, model)
    assert isinstance(config, PreTrainedConfig)
    for key, value in rope.changes(model, config.get_text_config().to_dict()).items():
        setattr(config.get_text_config(), key, value)
    return config


def _read(method, model: ModelConfig, **options):  # type: ignore[no-untyped-def]
    """Call a ``from_pretrained`` with the section's path, revision and trust_remote_code; its errors become a ConfigError."""
    path = str(Path(model.path).expanduser()) if Path(model.path).expanduser().exists() else model.path
    try:
        return method(path, revision=model.revision, trust_remote_code=model.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"model.path={model.path}: {reason}") from error
