"""A converted 13B is loaded by plain transformers, in a process that cannot import this project."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from baichuan import SECOND_13B, batch, reference
from hydraft.models.convert.convert import convert
from published import RESERVED, baichuan_tensors, save, sentencepiece_model

ALONE = """
import sys

class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "hydraft":
            raise ImportError(name)

sys.meta_path.insert(0, Absent())
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, inputs, output = sys.argv[1:]
batch = load_file(inputs)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
answered = model.generate(**batch, max_new_tokens=4, do_sample=False)
with torch.no_grad():
    logits = model(**batch).logits
save_file({"logits": logits, "answered": answered, "typed": torch.tensor(tokenizer("你好")["input_ids"])}, output)
assert "hydraft" not in sys.modules
"""


def test_plain_transformers_computes_the_published_logits(tmp_path: Path) -> None:
    tensors = baichuan_tensors(**SECOND_13B)
    convert(
        save(tmp_path / "published", SECOND_13B, tensors, sentencepiece_model(False, RESERVED)), tmp_path / "native"
    )
    ids, mask = batch(padded=True)
    inputs = tmp_path / "batch.safetensors"
    save_file({"input_ids": ids, "attention_mask": mask}, inputs)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tmp_path / "native"), str(inputs), str(tmp_path / "out.safetensors")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = load_file(tmp_path / "out.safetensors")
    weights = {name: tensor.float() for name, tensor in tensors.items()}
    expected = reference(weights, SECOND_13B, ids, mask)
    assert (found["logits"] - expected)[mask.bool()].abs().max() <= 1e-5
    for _ in range(4):
        token = reference(weights, SECOND_13B, ids, mask)[:, -1:].argmax(-1)
        ids, mask = torch.cat([ids, token], 1), torch.cat([mask, torch.ones_like(token)], 1)
    assert torch.equal(found["answered"], ids) and len(found["typed"]) > 0
