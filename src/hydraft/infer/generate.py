"""``mode=generate``: one answer, streamed to the terminal.

Shapes: B prompts, T tokens of the longest.
"""

import sys
from collections.abc import Callable
from typing import TextIO

import torch
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
    set_seed,
)

from hydraft.config.infer import InferConfig
from hydraft.data import special_tokens
from hydraft.data.records import ask
from hydraft.data.tokenize import prompt_ids
from hydraft.infer import sampling
from hydraft.infer.load import LoadedModel, LoadedSource, load
from hydraft.infer.source import Source
from hydraft.models import generation


def run(sources: list[Source], options: InferConfig) -> None:
    """Answer ``prompt`` and print it."""
    generate(load(sources, options), options, sys.stdout)


def generate(loaded: LoadedModel, options: InferConfig, out: TextIO) -> str:
    """Answer ``options.prompt``, streaming the text to ``out``. Greedy unless ``temperature`` is above 0."""
    selected = loaded.select(options.adapter)
    set_seed(options.seed)
    question = ask(options.prompt or "", options.system)
    ids = prompt_ids(question, selected.tokenizer, selected.data)
    return decode(selected.tokenizer, answer(loaded, selected, ids, options, Stream(selected.tokenizer, out)))


def answer(
    loaded: LoadedModel,
    selected: LoadedSource,
    prompt: list[int],
    options: InferConfig,
    streamer: TextStreamer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[int]:
    """The tokens that follow ``prompt``, the end token included; generation ends when ``stop`` returns True."""
    return answers(loaded, selected, [prompt], options, streamer, stop)[0]


def answers(
    loaded: LoadedModel,
    selected: LoadedSource,
    prompts: list[list[int]],
    options: InferConfig,
    streamer: TextStreamer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """The same for a batch of prompts, padded on the left."""
    length = max(map(len, prompts))
    pad = int(selected.tokenizer.pad_token_id)
    gaps = [length - len(prompt) for prompt in prompts]
    ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * len(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    config = generation_config(loaded, selected, options)
    with torch.inference_mode():
        made = loaded.model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(ids, device=loaded.device),  # (B, T)
            attention_mask=torch.tensor(mask, device=loaded.device),  # (B, T)
            generation_config=config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
        )
    ends = set(config.eos_token_id)
    return [_up_to_end(row, ends) for row in made[:, length:].tolist()]


def _up_to_end(row: list[int], ends: set[int]) -> list[int]:
    """A row up to its first end token, that included; padding follows it."""
    end = next((index for index, token in enumerate(row) if token in ends), len(row))
    return row[: end + 1]


def generation_config(loaded: LoadedModel, selected: LoadedSource, options: InferConfig) -> GenerationConfig:
    """The GenerationConfig of the sampling settings."""
    return sampling.settings(
        selected.tokenizer,
        generation.end_ids(selected.tokenizer, loaded.model),
        options,
    )


def decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer's tokens."""
    return str(tokenizer.decode(special_tokens.of(tokenizer).answer(ids), skip_special_tokens=True))


class _Stop(StoppingCriteria):
    def __init__(self, stop: Callable[[], bool]) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **rest: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.stop(), device=input_ids.device)


class Stream(TextStreamer):
    """transformers' TextStreamer for any text stream; incomplete characters are held back."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out = out

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Write the text that is complete."""
        self.out.write(text + ("\n" if stream_end else ""))
        self.out.flush()
