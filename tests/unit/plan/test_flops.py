"""The plan's operations are those that torch counts in a forward and a backward pass."""

import itertools

import pytest
import torch
from test_parameters import counted, real
from torch.utils.flop_counter import FlopCounterMode

from families import MIXTURE
from hydraft.models import experts
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


CASES = [
    *itertools.product(["llama3", "qwen", "internlm2"], LORA),
    *itertools.product([MIXTURE], ["queries only", "full"]),
]


@pytest.mark.parametrize(("family", "case"), CASES)
def test_operations_are_those_of_torch(family: str, case: str) -> None:
    config, model = real(
        *(family if "=" in family else f"model={family}").split(),
        "quant=none",
        "train.precision=fp32",
        "lora.r=4",
        *LORA[case],
    )
    inner = getattr(model, "get_base_model", lambda: model)()
    inner.set_attn_implementation("eager")
    for module in inner.modules():  # torch does not count grouped products
        if experts.is_experts(module):
            module.config._experts_implementation = "eager"
    ids = torch.randint(0, 30, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    known = counted(config)
    tokens = Tokens(ROWS * LENGTH, ROWS * LENGTH, ROWS * LENGTH**2)
    rotary = known.query // known.heads * LENGTH  # positions times frequencies, of which the plan knows nothing
    planned = operations(config, known, trained_in(known, config), tokens)
    assert planned + rotary == counter.get_total_flops()
