"""Several adapters in one batch: their updates are equal to peft's, and index tensors are created once per batch."""

import asyncio
import itertools
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from peft.tuners.lora import LoraLayer
from test_serve_engine import END, adapted, prompts, tokens
from torch.overrides import TorchFunctionMode
from transformers import AutoModelForCausalLM

from conftest import SCALE
from hydraft.config.choices import Precision, QuantKind
from hydraft.config.schema import QuantConfig
from hydraft.config.serve import ServeConfig
from hydraft.errors import ConfigError
from hydraft.infer.serve import attention, multi_lora
from hydraft.infer.serve.engine import Answer, Engine
from hydraft.infer.serve.sampler import BatchSampler, RequestSampler, Sampling
from hydraft.models.quant import bits_and_bytes
from hydraft.system.source_tree import TINY

ROWS = ["red", multi_lora.BASE, "blue", "blue", "red", multi_lora.BASE, "red", "blue", "red"]
ORDERS = [ROWS, sorted(ROWS), ROWS[::-1], ["red"] * 4, [multi_lora.BASE, "blue"], [multi_lora.BASE] * 3, ["blue"]]


def model_of(kind: QuantKind, precision: Precision, *targets: str, **blue: Any) -> peft.PeftModel:
    """The embedded model with two adapters of random weights; ``blue`` has the given settings."""
    stored = bits_and_bytes(QuantConfig(kind=kind), precision)
    dtype = torch.bfloat16 if precision is Precision.bf16 else torch.float32
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=dtype, quantization_config=stored)
    settings: dict[str, Any] = {
        "r": 4,
        "lora_dropout": 0.1,
        "init_lora_weights": False,
        "target_modules": list(targets),
    }
    torch.manual_seed(0)
    model = peft.get_peft_model(base, peft.LoraConfig(**settings), adapter_name="red", autocast_adapter_dtype=False)
    model.add_adapter("blue", peft.LoraConfig(**{**settings, **blue}), autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:  # its initial value has no effect
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
    return model.eval()


def batch_of(rows: list[str]) -> BatchSampler:
    """A batch whose rows are tokens of requests to these adapters."""
    batch = BatchSampler(50, drop=lambda state: None)
    batch.prepare_tensor_args([request(RequestSampler(Sampling(), name, END)) for name in rows], torch.empty(0))
    return batch


def request(sampler: RequestSampler) -> Any:
    state = SimpleNamespace(logit_processor_kwargs={"sampler": sampler})
    return SimpleNamespace(state=state, query_length=1, has_new_token=True)


LINEAR = ("q_proj", "v_proj", "down_proj", "lm_head")
CASES: dict[str, tuple[QuantKind, Precision, tuple[str, ...], dict[str, Any]]] = {
    "fp32": (QuantKind.none, Precision.fp32, LINEAR, {}),
    "bf16": (QuantKind.none, Precision.bf16, LINEAR, {"use_rslora": True, "lora_bias": True}),
    "nf4": (QuantKind.nf4, Precision.fp32, LINEAR[:3], {}),
    "nf4 in bf16": (QuantKind.nf4, Precision.bf16, LINEAR[:3], {}),
    "int8": (QuantKind.int8, Precision.bf16, LINEAR[:3], {}),
    "dora": (QuantKind.none, Precision.fp32, LINEAR, {"use_dora": True}),
    "nf4 dora": (QuantKind.nf4, Precision.fp32, LINEAR[:3], {"use_dora": True}),
    "embedding": (QuantKind.none, Precision.bf16, ("embed_tokens",), {"r": 8}),
    "on other layers": (QuantKind.none, Precision.fp32, ("q_proj",), {"target_modules": ["v_proj", "q_proj"]}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rows_are_bit_equal_to_peft(case: str) -> None:
    kind, precision, targets, blue = CASES[case]
    model = model_of(kind, precision, *targets, **blue)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert len(layers) >= len(targets)
    generator = torch.Generator().manual_seed(1)
    changed = 0
    for layer, rows in itertools.product(layers.values(), ORDERS):
        if isinstance(layer, peft.tuners.lora.Embedding):
            x = torch.randint(0, 3000, (1, len(rows)), generator=generator)
        else:
            x = torch.randn(1, len(rows), layer.in_features, generator=generator).to(model.dtype)
        # one token per sequence: for a view of x, torch would multiply the tokens separately and round differently
        sequences = x[0].unsqueeze(1).clone(memory_format=torch.contiguous_format)
        expected = layer._mixed_batch_forward(sequences, adapter_names=rows).transpose(0, 1)
        found = multi_lora._by_row(layer, batch_of(rows))(x)
        assert found.dtype == expected.dtype and torch.equal(found, expected), (case, rows)
        changed += not torch.equal(found, layer.base_layer(x))
    assert changed >= len(ORDERS) - 1  # with adapters that do nothing, the test would prove nothing


@torch.no_grad()
def test_dora_on_an_embedding_equals_that_of_a_single_adapter() -> None:
    """peft's mixed forward treats it as plain LoRA."""
    model = model_of(QuantKind.none, Precision.fp32, "embed_tokens", use_dora=True)
    layer = next(layer for layer in model.modules() if isinstance(layer, LoraLayer))
    rows = ["red", "blue", "red", "blue"]
    ids = torch.tensor([[5, 5, 700, 700]])
    found = multi_lora._by_row(layer, batch_of(rows))(ids)
    for index, name in enumerate(rows):
        model.set_adapter(name)
        assert torch.allclose(found[:, index], layer(ids)[:, index], atol=1e-6), name


class Watch(TorchFunctionMode):
    """Counts operations that make the host wait for a GPU: lists as indices, values read, tensors made of lists."""

    READS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.seen["lists as indices"] += any(isinstance(part, list) for part in index)
            self.seen["masks as indices"] += any(isinstance(p, torch.Tensor) and p.dtype == torch.bool for p in index)
        elif name in self.READS:
            self.seen["reads"] += 1
        elif name in ("tensor", "new_tensor", "as_tensor"):
            self.seen["tensors of lists"] += 1
        self.seen["calls"] += 1
        return func(*args, **kwargs or {})


def watched(engine: Engine, steps: list[Counter[str]]) -> None:
    """Let each batch of the engine append to ``steps`` its operations until its tokens are read."""
    processor: Any = engine.manager.batch_processor
    compute = processor.model_runner.compute_batch

    def step(*args: Any) -> None:
        steps.append(Counter())
        with Watch(steps[-1]):
            compute(*args)

    processor.model_runner.compute_batch = step


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "choose", lambda model: "paged|sdpa")


SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(seed="1"),
    Sampling(seed="2", top_p=0.5),
    Sampling(seed="3", presence_penalty=0.5, frequency_penalty=0.2, logit_bias=((300, 2.0), (END, -100.0))),
]


def batches(engine: Engine, answers: list[Answer]) -> list[list[int]]:
    """Generate all answers in shared batches."""

    async def all_at_once() -> list[list[int]]:
        engine.start()
        engine.submit(answers)
        return await asyncio.gather(*map(tokens, answers))

    try:
        return asyncio.run(asyncio.wait_for(all_at_once(), 120 * SCALE))
    finally:
        engine.stop()


def test_a_batch_does_not_synchronise_before_its_tokens(adapters: list[Path], as_on_a_gpu: None) -> None:
    steps: list[Counter[str]] = []
    engine = Engine(adapted(adapters), 3072, ServeConfig(max_running=12, cache_tokens=4096))
    watched(engine, steps)
    names = (multi_lora.BASE, "red", "blue")
    answers = [Answer(prompts()[i], 8, [END], name, SAMPLINGS[i]) for i in range(4) for name in names]
    found = batches(engine, answers)
    assert all(found) and len(steps) >= 8
    assert min(step["calls"] for step in steps) > 100, "nothing was watched"
    for kind in ("lists as indices", "masks as indices", "reads"):
        assert not any(step[kind] for step in steps), (kind, steps)
    highest = max(step["tensors of lists"] for step in steps)
    assert highest <= 2 + 2 + 3, (
        f"{highest} copies to the device: rows, last rows, two kinds of sampling, and each request's biases once"
    )
    assert max(step["tensors of lists"] for step in steps[-4:]) <= 4, "copies in each layer"


def test_logprobs_are_copied_once_per_batch(adapters: list[Path], as_on_a_gpu: None) -> None:
    steps: list[Counter[str]] = []
    engine = Engine(adapted(adapters), 3072, ServeConfig(max_running=12, cache_tokens=4096))
    watched(engine, steps)
    samplings = [Sampling(temperature=0, top_logprobs=count) for count in (0, 3, 5)]
    answers = [Answer(prompts()[0], 6, [END], "red", sampling) for sampling in samplings]
    batches(engine, answers)
    assert {step["reads"] for step in steps if step["calls"]} == {1}
    assert [{len(logprob.top) for logprob in answer.sampler.logprobs} for answer in answers] == [{0}, {3}, {5}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alora_invocation_tokens": [5, 6]}, "alora_invocation_tokens"), ({"target_parameters": ["mlp.down_proj.weight"]}, "ParamWrapper")],
)  # fmt: skip
def test_adapters_whose_rows_are_not_tokens_are_refused(settings: dict[str, Any], message: str) -> None:
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **settings)
    with pytest.raises(ConfigError, match=message):
        Engine(peft.get_peft_model(base, lora), 3072, ServeConfig())
