"""One step of small models with other kernels, in a separate process, since the kernels patch transformers globally.

    python tests/support/one_step.py liger cpu FOLDER lora/llama full/glm …

FOLDER has a model for each family. The results are written to ``<kernels>.pt`` in it: for each case the loss, gradients
by name, and logits.
"""

import sys
from pathlib import Path
from typing import Any

import tokenizers
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast, set_seed

sys.path.insert(0, str(Path(__file__).parents[2]))

from bench.equivalence import compose_run
from hydraft.data.batch import collator
from hydraft.models import load, shapes

MODELS = {
    "llama": "model=llama3",
    "qwen2": "model=qwen model.size=2.5-7b",
    "qwen3": "model=qwen model.size=3-8b",
    "glm": "model=chatglm2",
}
METHODS = {
    "lora": "lora=default lora.dropout=0",
    "full": "lora=none",
    "head": "lora=default lora.dropout=0 lora.target_modules=[q_proj,lm_head]",
}
VOCABULARY = 384
LENGTHS = (12, 7, 9)

Step = tuple[float, dict[str, torch.Tensor], torch.Tensor]
"""Loss, gradients by name, and logits of a second call."""


def build(folder: Path) -> None:
    """Write a model of each family, with random values even in weights that are normally initialized to constants."""
    for family, override in MODELS.items():
        config = compose_run([*override.split(), "model.init=random", "model.scale=tiny", "quant=none", "mode=plan"])
        native = shapes.planned_config(config.model)
        assert native is not None and native["model_type"] == family
        ends = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        set_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**native | ends))
        for parameter in model.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape)
        model.save_pretrained(folder / family)
        tokenizer().save_pretrained(folder / family)


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with names for the rest of the vocabulary. Unsloth reads it from the model's folder."""
    named = ["<pad>", "</s>", "<s>", "<|endoftext|>", *(f"<{i}>" for i in range(4, VOCABULARY - 256))]
    words = [*named, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
    assert len(words) == VOCABULARY
    made = tokenizers.Tokenizer(tokenizers.models.BPE({word: index for index, word in enumerate(words)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", bos_token="<s>", unk_token="<|endoftext|>"
    )


def examples() -> list[list[dict[str, list[int]]]]:
    """Documents of different lengths, whose first tokens are not trained."""
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in LENGTHS]
    return [[{"input_ids": row, "labels": [-100] * 5 + row[5:]}] for row in rows]


def step(kernels: str, method: str, folder: Path, device: str) -> Step:
    """One step of the model in ``folder``, loaded and fed as in a run."""
    precision = "fp32" if device == "cpu" else "bf16"
    config = compose_run(
        [
            "model=auto", f"model.path={folder}", f"kernels={kernels}", *METHODS[method].split(),
            "quant=none", f"train.precision={precision}", "mode=plan",
        ]
    )  # fmt: skip
    model: Any = load.load_trainable(config).to(device)
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # the same values, whatever each library initializes
            parameter.data = (0.1 * torch.randn(parameter.shape, generator=generator)).to(parameter)
    model.train()
    batch = collator(config.data, 0, config.kernels.kind)(examples())
    batch = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
    loss = model(**batch, num_items_in_batch=torch.tensor(100, device=device)).loss
    loss.backward()
    gradients = {name: p.grad.float().cpu() for name, p in load.trainable(model).items() if p.grad is not None}
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"][:, : LENGTHS[0]]).logits
    return loss.item(), gradients, logits.float().cpu()


if __name__ == "__main__":
    kind, device, place, *cases = sys.argv[1:]
    found = {case: step(kind, case.split("/")[0], Path(place, case.split("/")[1]), device) for case in cases}
    torch.save(found, Path(place, f"{kind}.pt"))
