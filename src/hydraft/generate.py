"""Use of a run: its model with what it learned, answering one prompt."""

import json
import sys
from pathlib import Path
from typing import TextIO

import peft
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer, logging, set_seed

from hydraft import prepare
from hydraft.choices import Init
from hydraft.config import Config, ConfigError, InferConfig, load_config
from hydraft.data.encode import prompt_ids
from hydraft.data.formats import ask
from hydraft.models.load import adapter_in_fp32, load_base, load_tokenizer


def load_run(folder: Path) -> tuple[PreTrainedModel | peft.PeftModel, PreTrainedTokenizerBase, Config]:
    """The trained model of the run in ``folder``, its tokenizer and its config, ready to generate.

    Raises:
        ConfigError: the run saved nothing, or its base is not there any more.
    """
    config = load_config(folder / "config.yaml")
    section = config.model
    fp32 = adapter_in_fp32(config)
    whole, adapter = folder / "model", folder / "adapter"
    if whole.is_dir():
        section.path, section.init = str(whole), Init.pretrained
    elif not (adapter / "adapter_config.json").is_file():
        raise ConfigError(f"run={folder}: it saved no adapter ({_status(folder)})")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    section = prepare.native(section, config.seed)
    base = load_base(section, config.quant, config.train.precision)
    if config.quant.kind.value == "none" and torch.cuda.is_available():
        base.to("cuda")  # type: ignore[arg-type]
    model: PreTrainedModel | peft.PeftModel = base
    if not whole.is_dir():
        model = peft.PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=fp32)
        section.path = str(adapter)  # the tokenizer and template were saved with it
    return model.eval(), load_tokenizer(section), config


def _status(folder: Path) -> str:
    file = folder / "result.json"
    if not file.exists():
        return "it has not ended"
    result = json.loads(file.read_text())
    return f"status {result.get('status')}" + (f", {result['error']['cause']}" if result.get("error") else "")


def generate(folder: Path, options: InferConfig, out: TextIO = sys.stdout) -> str:
    """Answer ``options.prompt``, streaming to ``out`` as tokens come. Greedy unless ``temperature`` is above 0."""
    model, tokenizer, config = load_run(folder)
    question = ask(options.prompt, options.system)
    ids = torch.tensor([prompt_ids(question, tokenizer, config.data)], device=model.device)  # (1, T)
    sampled = options.temperature > 0
    settings = GenerationConfig(
        max_new_tokens=options.max_new_tokens,
        do_sample=sampled,
        temperature=options.temperature if sampled else None,
        top_p=options.top_p if sampled else None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )
    set_seed(options.seed)
    streamer = _Stream(tokenizer, out)
    with torch.inference_mode():
        answer = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=streamer
        )
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))


class _Stream(TextStreamer):
    """transformers' streamer, to a stream of our choice; it holds back half characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out = out

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece as soon as it is certain."""
        self.out.write(text + ("\n" if stream_end else ""))
        self.out.flush()
