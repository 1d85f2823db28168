"""The plan's operations are those that torch counts in a forward and a backward pass."""

import pytest
import torch
from test_parameters import counted, real
from torch.utils.flop_counter import FlopCounterMode

from hydraft.plan.flops import Tokens, operations
from hydraft.plan.parameters import trained_in

ROWS, LENGTH = 3, 20

LORA = {
    "all-linear": ["lora=default"],
    "queries only": ["lora.target_modules=[q_proj]"],
    "values only": ["lora.target_modules=[v_proj]"],
    "from the output projection on": ["lora.target_modules=[o_proj,down_proj]"],
    "the last layer's feed-forward block": ["lora.target_modules=[model.layers.1.mlp.up_proj]"],
    "other ranks": ["lora.rank_pattern={down_proj:8}", "lora.layers=[1]"],
    "lora_fa": ["lora=lora_fa"],
    "vera": ["lora=vera", "lora.r=8"],
    "olora": ["lora=olora"],
    "full": ["lora=none"],
}


@pytest.mark.parametrize("family", ["llama3", "qwen", "internlm2", "qwen model.size=3-30b-a3b"])
@pytest.mark.parametrize("case", LORA)
def test_operations_are_those_of_torch(case: str, family: str) -> None:
    config, model = real(*f"model={family}".split(), "quant=none", "train.precision=fp32", "lora.r=4", *LORA[case])
    inner = getattr(model, "get_base_model", lambda: model)()
    inner.set_attn_implementation("eager")
    ids = torch.randint(0, 30, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    known = counted(config)
    tokens = Tokens(ROWS * LENGTH, ROWS * LENGTH, ROWS * LENGTH**2)
    rotary = known.query // known.heads * LENGTH  # positions times frequencies, of which the plan knows nothing
    planned = operations(config, known, trained_in(known, config), tokens)
    assert planned + rotary == counter.get_total_flops()
