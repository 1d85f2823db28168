"""One answer, shown as it comes.

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
from hydraft.data.formats import ask
from hydraft.data.tokenize import prompt_ids
from hydraft.infer import sampling
from hydraft.infer.load import Loaded, Speaker, load
from hydraft.infer.source import Source
from hydraft.models import generation


def run(sources: list[Source], options: InferConfig) -> None:
    """mode=generate."""
    generate(load(sources, options), options, sys.stdout)


def generate(loaded: Loaded, options: InferConfig, out: TextIO) -> str:
    """Answer ``options.prompt``, streaming to ``out`` as tokens come. Greedy unless ``temperature`` is above 0."""
    speaker = loaded.use(options.adapter)
    set_seed(options.seed)
    question = ask(options.prompt or "", options.system)
    ids = prompt_ids(question, speaker.tokenizer, speaker.data)
    return decoded(speaker.tokenizer, answer(loaded, speaker, ids, options, Stream(speaker.tokenizer, out)))


def answer(
    loaded: Loaded,
    speaker: Speaker,
    prompt: list[int],
    options: InferConfig,
    streamer: TextStreamer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[int]:
    """The tokens that follow ``prompt``, with the one that ends them; ``stop`` is asked after each."""
    return answers(loaded, speaker, [prompt], options, streamer, stop)[0]


def answers(
    loaded: Loaded,
    speaker: Speaker,
    prompts: list[list[int]],
    options: InferConfig,
    streamer: TextStreamer | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[list[int]]:
    """The same for several prompts at once, filled up on their left."""
    length = max(map(len, prompts))
    pad = int(speaker.tokenizer.pad_token_id)
    gaps = [length - len(prompt) for prompt in prompts]
    ids = [[pad] * gap + prompt for gap, prompt in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * len(prompt) for gap, prompt in zip(gaps, prompts, strict=True)]
    settings = drawn(loaded, speaker, options)
    with torch.inference_mode():
        made = loaded.model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(ids, device=loaded.device),  # (B, T)
            attention_mask=torch.tensor(mask, device=loaded.device),  # (B, T)
            generation_config=settings,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_Stop(stop)]),
        )
    ends = set(settings.eos_token_id)
    return [_ended(row, ends) for row in made[:, length:].tolist()]


def _ended(row: list[int], ends: set[int]) -> list[int]:
    """A row up to and with its first end: what follows fills the batch."""
    end = next((index for index, token in enumerate(row) if token in ends), len(row))
    return row[: end + 1]


def drawn(loaded: Loaded, speaker: Speaker, options: InferConfig) -> GenerationConfig:
    """The GenerationConfig of the command line."""
    return sampling.settings(
        speaker.tokenizer,
        generation.end_ids(speaker.tokenizer, loaded.model),
        options.max_new_tokens,
        options.temperature,
        options.top_p,
        options.top_k,
        options.repetition_penalty,
    )


def decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """Text of an answer's tokens."""
    return str(tokenizer.decode(ids, skip_special_tokens=True))


class _Stop(StoppingCriteria):
    def __init__(self, asked: Callable[[], bool]) -> None:
        self.asked = asked

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **rest: object) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self.asked(), device=input_ids.device)


class Stream(TextStreamer):
    """transformers' streamer, to a stream of our choice; it holds back half characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, out: TextIO) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.out = out

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece as soon as it is certain."""
        self.out.write(text + ("\n" if stream_end else ""))
        self.out.flush()
