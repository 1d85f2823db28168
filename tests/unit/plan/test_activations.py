"""The formula for activations, compared with what autograd saves in a decoder layer and with the peak of the loss."""

import dataclasses
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoTokenizer

from conftest import ROOT, config_of
from families import FAMILIES, MIXTURE, WITH_ALIBI
from hydraft.config.schema import Config
from hydraft.data.batch import Padded, PaddingFree
from hydraft.models import log_probs, loss_chunked, prepare
from hydraft.models.load import load_trainable
from hydraft.models.quant import DTYPES
from hydraft.models.shapes import planned_config
from hydraft.plan.activations import activations
from hydraft.plan.parameters import layout, trained
from hydraft.plan.weights import WIDTH

LENGTHS = (96, 160)
"""Tokens of two documents."""

CASES = {
    "fp32": ["quant=none"],
    "bf16": ["quant=none", "train.precision=bf16"],
    "nf4": ["quant=nf4", "train.precision=bf16"],
    "attention alone": ["quant=nf4", "lora.target_modules=[q_proj,k_proj,v_proj]"],
    "dropout": ["quant=none", "lora.dropout=0.1"],
    "dora": ["quant=none", "lora=dora"],
    "lora_fa": ["quant=nf4", "lora=lora_fa", "lora.dropout=0.1"],
    "vera": ["quant=nf4", "lora=vera", "lora.r=16"],
    "pissa": ["quant=nf4", "lora=pissa", "train.precision=bf16"],
    "padded": ["quant=none", "data.batching=padded", f"data.max_length={max(LENGTHS)}"],
    "full": ["quant=none", "lora=none"],
}


@dataclass(eq=False)
class Kept:
    """A tensor that autograd saves."""

    tensor: torch.Tensor


class Saved:
    """Storages that autograd saves during a module's forward pass, except those of the model itself."""

    def __init__(self, model: torch.nn.Module, module: torch.nn.Module) -> None:
        self.kept: WeakSet[Kept] = WeakSet()
        self.own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        self.stack = ExitStack()
        module.register_forward_pre_hook(self.enter)
        module.register_forward_hook(self.leave)

    def enter(self, *_: Any) -> None:
        self.stack.enter_context(torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor))

    def leave(self, *_: Any) -> None:
        self.stack.close()

    def pack(self, tensor: torch.Tensor) -> Kept:
        kept = Kept(tensor)
        self.kept.add(kept)
        return kept

    def bytes(self) -> int:
        """Bytes of the storages that still exist: some are saved and released within the pass."""
        storages = {
            kept.tensor.untyped_storage().data_ptr(): kept.tensor.untyped_storage().nbytes() for kept in self.kept
        }
        return sum(size for address, size in storages.items() if address not in self.own)


def saved_by_a_layer(config: Config, layer: int = 1) -> int:
    model = load_trainable(dataclasses.replace(config, model=prepare.native(config.model, config.seed)))
    dtype = DTYPES[config.train.precision]
    for parameter in model.parameters():  # as DeepSpeed does
        if parameter.is_floating_point() and parameter.dtype is not dtype:
            parameter.data = parameter.data.to(dtype)
    generator = torch.Generator().manual_seed(0)
    items = [
        [{"input_ids": ids, "labels": ids}]
        for ids in (torch.randint(9, 99, (n,), generator=generator).tolist() for n in LENGTHS)
    ]
    batch = (Padded(0) if config.data.batching.value == "padded" else PaddingFree())(items)
    layers = next(module for name, module in model.named_modules() if name.endswith("layers"))
    saved = Saved(model, layers[layer])
    model.train()
    output = model(**batch)
    assert output.loss.requires_grad  # keeps the graph in memory until here
    return saved.bytes()


@pytest.mark.parametrize(
    ("family", "case"),
    [
        *product(FAMILIES, CASES),
        *product(["alibi"], ["fp32", "bf16", "padded"]),
        *product(["mixture"], ["fp32", "bf16", "nf4", "full"]),
    ],
)
def test_a_layer_saves_what_the_formula_gives(family: str, case: str) -> None:
    config = config_of(
        *(WITH_ALIBI | {"mixture": MIXTURE})[family].split(), "model.init=random", "model.scale=tiny", *CASES[case]
    )
    native = planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    config.train.gradient_checkpointing = True  # so that one layer is counted separately
    tokens = 2 * max(LENGTHS) if case == "padded" else sum(LENGTHS)
    made = activations(config, known, trained(known, config.lora), WIDTH[config.train.precision], tokens, 0)
    config.train.gradient_checkpointing = False
    ours = made.at_layer - made.at_loss
    # The layers share ALiBi's bias: it is in both, and the layer saves it.
    ours += tokens * known.bias(WIDTH[config.train.precision], max(LENGTHS) if case == "padded" else tokens)
    if config.lora.dropout:  # a CPU stores the mask as numbers instead of bytes
        ours += tokens * 3 * sum(columns for _, columns in known.linears().values())
    assert ours == pytest.approx(saved_by_a_layer(config), rel=0.05)


class Live(TorchDispatchMode):
    """Peak bytes of the tensors that operations create."""

    def __init__(self) -> None:
        super().__init__()
        self.users: dict[int, int] = {}  # number of tensors by address of their storage
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, function: Any, types: Any, inputs: Any = (), named: Any = None) -> Any:
        known = {id(value) for value in inputs if isinstance(value, torch.Tensor)}
        made = function(*inputs, **(named or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and id(tensor) not in known:
                address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
                self.users[address] = self.users.get(address, 0) + 1
                self.sizes[address] = size
                weakref.finalize(tensor, self.release, address)
        self.most = max(self.most, sum(self.sizes.values()))
        return made

    def release(self, address: int) -> None:
        self.users[address] -= 1
        if not self.users[address]:
            del self.users[address], self.sizes[address]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_peak_of_a_chunked_loss_is_that_of_the_formula(
    precision: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few hundred tokens in chunks of 64, with a vocabulary that is much larger than the hidden size."""
    monkeypatch.setattr("hydraft.models.loss.ROWS", 64)
    monkeypatch.setattr("hydraft.plan.activations.ROWS", 64)
    config = config_of(
        "model=tiny", "quant=none", f"train.precision={precision}", "kernels.loss=chunked", f"objective={objective}"
    )
    native = planned_config(config.model)
    assert native is not None
    known = layout(native | {"vocab_size": 4096, "hidden_size": 64})
    assert known is not None
    compute: Any = loss_chunked.summed_loss if objective == "sft" else log_probs.of_hidden
    weight = torch.zeros(4096, 64, dtype=DTYPES[config.train.precision])
    states = torch.ones(1, 512, 64, dtype=weight.dtype).requires_grad_()
    with Live() as live:
        kept = states[:, torch.arange(320)].flatten(0, 1)
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
            compute(kept, weight, torch.zeros(320, dtype=torch.long))
    made = activations(config, known, trained(known, config.lora), weight.itemsize, 512, 320)
    assert saved == [320 * 64 * weight.itemsize]
    assert made.logits == pytest.approx(live.most, rel=0.05)
    config.kernels.loss = type(config.kernels.loss).whole
    assert activations(config, known, trained(known, config.lora), weight.itemsize, 512, 320).logits > 4 * live.most


@pytest.mark.parametrize("model_type", ["phi3", "glm4"])
def test_a_layer_of_a_brought_model_saves_what_the_formula_gives(model_type: str, tmp_path: Path) -> None:
    """One matrix for query, key and value; four norms."""
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    AutoConfig.for_model(model_type, **shape).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ROOT / "src/hydraft/models/tiny").save_pretrained(tmp_path)
    size = ["model=auto", f"model.path={tmp_path}", "model.init=random", "model.scale=tiny", "quant=none"]
    config = config_of(*size, "train.gradient_checkpointing=true")
    native = planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    made = activations(config, known, trained(known, config.lora), 4, sum(LENGTHS), 0)
    config.train.gradient_checkpointing = False
    assert made.at_layer - made.at_loss == pytest.approx(saved_by_a_layer(config), rel=0.05)


@pytest.mark.parametrize("case", ["fp32", "bf16", "full"])
def test_a_gated_delta_net_saves_about_what_the_formula_gives(case: str) -> None:
    """Qwen3.5's other layers; the formula is fitted, not derived."""
    size = ["model=qwen", "model.size=3.5-4b", "model.init=random", "model.scale=tiny", "data.batching=padded"]
    config = config_of(*size, *CASES[case])
    config.train.gradient_checkpointing = True
    native = planned_config(config.model)
    assert native is not None
    known = layout(native)
    assert known is not None
    tokens = 2 * max(LENGTHS)
    made = activations(config, known, trained(known, config.lora), WIDTH[config.train.precision], tokens, 0)
    config.train.gradient_checkpointing = False
    assert made.at_layer - made.at_loss == pytest.approx(saved_by_a_layer(config, 0), rel=0.2)
