"""Write a model folder with random weights of a published shape: python -m bench.gpu.weights MODEL FOLDER [--tiny].

``model.init=random`` generates its weights on the CPU from the run's seed and flushes them to the disk, which takes
minutes for 8 B parameters. The values do not affect time and memory, so here transformers generates them on the GPU and
saves them as usual. A run uses the folder with ``model=auto model.path=FOLDER``. Shape and tokenizer are those of
``model.init=random``.
"""

import argparse
import os
import shutil
import time
from pathlib import Path


def write(model: str, tiny: bool, target: Path) -> int:
    """Write the folder unless it exists; return the bytes of its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from bench.equivalence import compose_run
    from hydraft.models import shapes
    from hydraft.system.source_tree import TINY

    if not target.exists():
        section = compose_run([f"model={model}", "model.init=random", "mode=plan"]).model
        assert section.shape is not None, f"model={model} has no sizes"
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        shape = shapes.native_config(section.shape)
        if tiny:
            shape = shapes.tiny(shape, len(tokenizer))
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = AutoConfig.for_model(**shape | ids | {"dtype": "bfloat16"})
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            made = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        staging = target.with_name(f"{target.name}.partial-{os.getpid()}")
        made.save_pretrained(staging, max_shard_size="2GB")
        GenerationConfig(**ids).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        shutil.rmtree(target, ignore_errors=True)
        staging.rename(target)
    return sum(file.stat().st_size for file in target.glob("*.safetensors"))


def main() -> None:
    """Write the folder and print how long it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a name in conf/model, such as llama3")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tiny", action="store_true", help="the same architecture with two small layers")
    options = parser.parse_args()
    began = time.perf_counter()
    size = write(options.model, options.tiny, options.folder)
    print(f"{options.folder}: {size / 2**30:.2f} GiB in {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()
