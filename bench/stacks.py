"""The same QLoRA run under ZeRO-3 in two stacks: this project's, and its libraries as their own documents combine them.

Both have the same model, adapter, optimizer, DeepSpeed config and recomputation (non-reentrant checkpointing).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hydraft.config.schema import Config

KEPT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0, "stage3_prefetch_bucket_size": 0, "stage3_param_persistence_threshold": 0}  # fmt: skip
"""By default DeepSpeed keeps up to 1e9 gathered elements for their next use, fetches 5e7 ahead, and does not shard parameters of fewer
than 1e5: a small model would be whole on every rank."""
LORA_R = 1
"""Of the adapter, on q and v only."""


def write_model(folder: Path, tied: bool, layers: int = 24, hidden: int = 256) -> None:
    """Save a Llama of random weights in bf16: 590,000 weights a layer with the default size, and a vocabulary of 512 tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(0)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        vocab_size=512,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def settings(folder: Path, ranks: int) -> Config:
    """The run of both stacks."""
    from bench.equivalence import compose_run

    fixed = "model=auto quant=nf4 zero=stage3 train.precision=bf16 train.micro_batch_size=1 train.gradient_checkpointing=true lora.dropout=0"
    small = f"lora.r={LORA_R} lora.target_modules=[q_proj,v_proj]"  # beside a model this small, an adapter of all layers is not
    return compose_run([*fixed.split(), *small.split(), f"model.path={folder}", f"cluster=1x{ranks}"])


def deepspeed_settings(config: Config) -> dict[str, Any]:
    """DeepSpeed's config of both stacks, with ``KEPT``."""
    from hydraft.training.zero import deepspeed_config

    found = {**deepspeed_config(config), "train_batch_size": config.global_batch_size}
    found["zero_optimization"] |= {**KEPT, "reduce_bucket_size": 4096}
    return found


def ours(config: Config) -> Any:
    """This project's model with its adapter."""
    from hydraft.models.load import load_trainable

    return load_trainable(config)


def plain(config: Config) -> Any:
    """transformers' model, quantised by bitsandbytes, with peft's adapter."""
    import peft
    from transformers import AutoModelForCausalLM, set_seed

    from hydraft.models.load import adapter_in_fp32
    from hydraft.models.lora import adapter, targets
    from hydraft.models.quant import DTYPES, bits_and_bytes

    dtype = config.model.kept_in(config.train.precision)
    quant = bits_and_bytes(config.quant, dtype)
    base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=DTYPES[dtype], quantization_config=quant)
    base.config.use_cache = False
    for module in (
        base.modules()
    ):  # bitsandbytes' kernel for inference on some CPUs, which training does not have, rounds elsewhere
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False
    base.enable_input_require_grads()
    set_seed(config.seed)
    lora = adapter(config.lora, targets(config.lora, base))
    return peft.get_peft_model(base, lora, autocast_adapter_dtype=adapter_in_fp32(config))


STACKS: dict[str, Callable[[Config], Any]] = {"ours": ours, "plain": plain}


@torch.no_grad()
def evaluate(stack: str, model: Any, ids: torch.Tensor) -> float:
    """The mean loss of ``ids`` (B, T), as each stack scores held-out records."""
    if stack == "plain":
        return float(model(input_ids=ids, labels=ids).loss)
    from hydraft.models.loss_scored import summed_loss

    loss, tokens = summed_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}, 1)
    return float(loss) / tokens


@torch.no_grad()
def generate(model: Any, ids: torch.Tensor, tokens: int) -> None:
    """Greedy decoding of ``tokens`` tokens after ``ids`` (B, T)."""
    several = torch.distributed.get_world_size() > 1
    model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0, synced_gpus=several)  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """Bytes of a model whose linear layers are in NF4 with double quantisation, and all else in bf16."""

    model: int
    """Codes, constants and unquantised weights."""
    weight: int
    """Numbers of the largest quantised weight."""
    layer: int
    """Numbers of the quantised weights of a decoder layer."""
    unquantised: int
    """Of the largest unquantised weight."""
    trained: int
    """Numbers of the adapter."""

    @classmethod
    def of(cls, folder: Path) -> "Sizes":
        """The sizes of a saved checkpoint, by its config."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            base: Any = AutoModelForCausalLM.from_config(config)
        head = base.get_output_embeddings()
        layers = {id(one.weight) for one in base.modules() if isinstance(one, torch.nn.Linear) and one is not head}
        quantised = [one.numel() for one in base.parameters() if id(one) in layers]
        others = [2 * one.numel() for one in base.parameters() if id(one) not in layers]
        adapted = [one for name, one in base.named_modules() if name.endswith(("q_proj", "v_proj"))]
        return cls(
            sum(map(packed, quantised)) + sum(others),
            max(quantised),
            sum(quantised) // config.num_hidden_layers,
            max(others),
            LORA_R * sum(one.in_features + one.out_features for one in adapted),
        )

    def bound(self, phase: str, ranks: int) -> float:
        """Bytes of a rank: its share of the model and of what is trained (bf16, fp32, a gradient, two moments), and of weights:

        * while loading, one: whole in 4 bits, the rank's share in bf16 and in 4 bits, and its scales in fp32, twice
        * in a pass, those of a decoder layer in 4 bits, and one of them dequantised; or one that is not quantised
        """
        share = (self.model + 20 * self.trained) / ranks
        if phase == "loading":
            return share + packed(self.weight) + 2.5 * self.weight / ranks + 2 * 4 * self.weight / 64
        passes = phase in ("forward", "backward", "evaluation", "generation")
        return share + passes * max(packed(self.layer) + 2 * self.weight, self.unquantised)


def packed(weights: int) -> int:
    """Bytes of weights in NF4: half a byte for each, one for 64, 4 for 256 of these, and 4."""
    return weights // 2 + weights // 64 + 4 * -(-weights // (64 * 256)) + 4
