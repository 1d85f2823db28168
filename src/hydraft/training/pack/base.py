"""What the members of a pack share: the frozen base, which is loaded once, and the passes over it."""

import math
import os
import re
import traceback
from collections import deque
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel

from hydraft.config.choices import Precision
from hydraft.config.schema import Config
from hydraft.evaluation.evaluator import Evaluated
from hydraft.models import row_documents
from hydraft.models.load import load_base, trainable, trainable_over
from hydraft.models.shared_weights import over_same_weights
from hydraft.training.oom import is_out_of_memory
from hydraft.training.pack import pass_size
from hydraft.training.pack.allocator import keep_freed_memory
from hydraft.training.pack.linear import Pass, install
from hydraft.training.pack.passes import Answer, Request, Separate, compute
from hydraft.training.pack.scheduler import Member

ROUTED = re.compile(r"Experts|MoE|Moe|Router")
"""Classes of layers that take some tokens of a row only."""

LINEAR = (torch.nn.Linear, Linear4bit)
"""Layers of the base that compute each token by itself, so that a pass may have the tokens of several members."""


class Pack:
    """A base and the passes of its members."""

    def __init__(self) -> None:
        self._base: PreTrainedModel | None = None
        """Without adapters, and never called itself: members' models and that of passes are copies over its weights."""
        self._model: PreTrainedModel | None = None
        """Of passes with several members."""
        self._current = Pass()
        self.evaluations: dict[str, Evaluated] = {}
        """Of members before training, when all have the base's own outputs, by ``Evaluator.key``."""
        self._tokens = 0
        """Tokens from which on a pass is no faster, for each token, with more of them; 0 before that is known."""
        self._sizes: deque[int] = deque(maxlen=64)
        """Tokens of the last micro-batches."""
        self.apart: str | None = None
        """Why the passes of this base cannot be shared; members then compute their own, in turn."""
        os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        keep_freed_memory()

    def model(self, config: Config) -> PreTrainedModel | peft.PeftModel:
        """The model of a new member: its own adapter over the base, which the first member loads."""
        if self._base is None:
            self._load(config)
        assert self._base is not None
        made = trainable_over(config, over_same_weights(self._base))
        if config.train.precision is Precision.bf16:
            for parameter in trainable(made).values():
                parameter.data = parameter.data.bfloat16()
        return made

    def _load(self, config: Config) -> None:
        base = load_base(config.model, config.quant, config.train.precision)
        for parameter in base.parameters():
            if config.train.precision is Precision.bf16 and parameter.is_floating_point():
                parameter.data = parameter.data.bfloat16()  # as DeepSpeed's engine does
        if torch.cuda.is_available():
            base.to(torch.device("cuda"))  # type: ignore[arg-type]
        model = self.adopt(base, config.train.recomputes)
        if self.apart is None:
            self._tokens = pass_size.tokens(model, config.quant.kind.value)

    def adopt(self, base: PreTrainedModel, recomputes: bool) -> PreTrainedModel:
        """Use this base, which is frozen, for all members; returns the model of passes."""
        base.requires_grad_(False)
        self.apart = reason_apart(base)
        model = over_same_weights(base)
        if recomputes:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        for name, layer in model.named_modules():
            if isinstance(layer, LINEAR):
                install(name, layer, self._current)
        model.train()
        self._base, self._model, self._current.recomputes = base, model, recomputes
        return model

    def answers(self, requests: list[Request]) -> list[Answer]:
        """The answers to ``requests``, from one pass."""
        assert self._model is not None
        return compute(self._model, self._current, requests)

    def joins(self, layers: dict[str, LoraLayer], batch: dict[str, Any]) -> bool:
        """Whether a micro-batch of a member with this adapter can be computed together with others."""
        return (
            self.apart is None
            and "cu_seq_lens_q" in batch
            and all(isinstance(layer.get_base_layer(), LINEAR) for layer in layers.values())
        )

    def places(self, default: int) -> int:
        """How many members fill a pass, at most ``default``, which is also the answer before there was one."""
        if not self._sizes or not self._tokens:
            return default
        return max(1, min(default, math.ceil(self._tokens * len(self._sizes) / sum(self._sizes))))

    def compute(self, members: list[Member]) -> None:
        """Answer what these members have submitted."""
        self._sizes.extend(member.request.tokens for member in members)
        self._compute(members)

    def _compute(self, members: list[Member]) -> None:
        requests: list[Request] = [member.request for member in members]
        try:
            answers = self.answers(requests)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # frees the tensors of the pass
            if is_out_of_memory(error) and torch.cuda.is_available():
                torch.cuda.empty_cache()
            if len(members) == 1:  # fails by itself, where its own run reports it
                members[0].answer(Separate())
                return
            middle = len(members) // 2
            self._compute(members[:middle])
            self._compute(members[middle:])
            return
        for member, answer in zip(members, answers, strict=True):
            member.answer(answer)


def reason_apart(base: PreTrainedModel) -> str | None:
    """Why the micro-batches of several members cannot share a pass over this base; None if they can."""
    if (found := row_documents.reason(base)) is not None:
        return found
    for name, module in base.named_modules():
        if ROUTED.search(type(module).__name__):
            return f"{name} takes some tokens only"
        if isinstance(module, torch.nn.Dropout) and module.p:
            return f"{name} drops features of all members alike"
        if isinstance(module, torch.nn.Linear) and not isinstance(module, LINEAR):
            return f"{name} computes tokens together"
    rates = {
        name: value for name, value in base.config.to_dict().items() if re.search(r"dropout|pdrop", name) and value
    }
    if rates:
        return f"its config.json has {', '.join(f'{name}={value}' for name, value in sorted(rates.items()))}"
    return None
