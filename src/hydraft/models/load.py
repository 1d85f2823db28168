"""Loads the tokenizer and the model of a model section.

Under ZeRO-3 the TrainingArguments must exist before a model is loaded here: transformers reads from them that weights are to
be sharded while loading.
"""

from pathlib import Path

import peft
import torch
from bitsandbytes.nn import Linear4bit
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hydraft.config.choices import Kernels, Precision
from hydraft.config.schema import Config, ModelConfig, QuantConfig
from hydraft.errors import ConfigError
from hydraft.models import attention, liger, unsloth
from hydraft.models.architectures.register import register
from hydraft.models.families.registry import native_targets
from hydraft.models.linear_4bit import make_weights_releasable
from hydraft.models.lora import adapter
from hydraft.models.loss import chunked
from hydraft.models.loss_chunked import use_chunked_loss
from hydraft.models.quant import DTYPES, bits_and_bytes

register()


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
    model: ModelConfig, quant: QuantConfig, precision: Precision, device: torch.device | None = None
) -> PreTrainedModel:
    """The prepared model without an adapter, with weights in ``model.dtype``, on ``device`` if given.

    Only safetensors are read: a pickle may contain code.
    """
    kept = model.kept_in(precision)
    placed = {} if device is None or (device.type == "cpu" and not torch.cuda.is_available()) else {"": device}
    loaded = _read(
        AutoModelForCausalLM.from_pretrained,
        model,
        dtype=DTYPES[kept],
        quantization_config=bits_and_bytes(quant, kept),
        use_safetensors=True,
        device_map=placed or None,
    )
    assert isinstance(loaded, PreTrainedModel)
    _keep_gradients(loaded)
    attention.register()
    loaded.set_attn_implementation(attention.NAME)
    loaded.config.use_cache = False  # not needed in training; generation enables it
    return loaded


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
    base = load_base(config.model, config.quant, config.train.precision)
    if config.zero.stage == 3:
        make_weights_releasable(base)
    if config.kernels.kind is Kernels.liger:
        liger.patch(base)
    elif chunked(config, base.config.model_type, getattr(base.config, "vocab_size", 0)):
        use_chunked_loss(base)
    if config.train.recomputes:
        base.enable_input_require_grads()  # otherwise the inputs need no gradient, and recomputed layers get none
    lora = adapter(config.lora, native_targets(config.lora.target_modules, dict(base.named_modules())))
    if lora is None:
        return base
    set_seed(config.seed)  # the same initial adapter on every rank, whatever random numbers loading used
    try:
        adapted = peft.get_peft_model(base, lora, autocast_adapter_dtype=adapter_in_fp32(config))
    except ValueError as error:
        raise ConfigError(f"lora.target_modules={config.lora.target_modules}: {error}") from error
    assert isinstance(adapted, peft.PeftModel)
    return adapted


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The trainable parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _read(method, model: ModelConfig, **options):  # type: ignore[no-untyped-def]
    """Call a ``from_pretrained`` with the section's path, revision and trust_remote_code; its errors become a ConfigError."""
    path = str(Path(model.path).expanduser()) if Path(model.path).expanduser().exists() else model.path
    try:
        return method(path, revision=model.revision, trust_remote_code=model.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ConfigError(f"model.path={model.path}: {reason}") from error
