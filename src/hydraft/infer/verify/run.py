"""``mode=verify``: asks an OpenAI-compatible server the held-out prompts, and compares its greedy answers with the model's own."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from hydraft.config.choices import Precision
from hydraft.config.infer import InferConfig
from hydraft.config.serve import ServeConfig
from hydraft.data.records import Conversation
from hydraft.data.tokenize import prompt_ids
from hydraft.errors import RunFailed
from hydraft.infer import generate
from hydraft.infer.load import LoadedModel, LoadedSource, load, own_precision
from hydraft.infer.serve.listen import api_key
from hydraft.infer.serve.text import printable
from hydraft.infer.source import Source
from hydraft.infer.verify import compare, prompts
from hydraft.infer.verify.client import Client, Reply
from hydraft.infer.verify.compare import Difference, Own
from hydraft.models import generation
from hydraft.system.console import Screen

SHOWN = 48
"""Characters of a continuation that are printed."""
LISTED = 10
"""Differences that are printed."""


@dataclass(frozen=True)
class Compared:
    """One prompt."""

    own: Own
    reply: Reply
    difference: Difference | None
    logprobs: list[float]
    """Absolute differences of the log-probabilities of the tokens that both answers begin with."""


def run(sources: list[Source], options: InferConfig) -> None:
    """Compare the answers, print the differences and the verdict.

    Raises:
        ConfigError: there are no prompts, the server cannot be asked, or it has no such model.
        RunFailed: an answer differs by more than rounding explains.
    """
    source = next(s for s in sources if options.adapter in (None, s.name))
    asked, notes = prompts.prompts(source, options)
    key = api_key(ServeConfig(api_key_file=options.verify.api_key_file))
    client = Client(str(options.against), key, options.verify.timeout)
    name = client.model(options.verify.model, source.name)
    with Screen(os.dup(1), visible=True) as screen:
        for note in notes:
            screen.say(note)
        screen.phase("loading the model")
        loaded = load(sources, options, screen.console)
        selected = loaded.select(options.adapter)
        screen.phase(f"comparing with {printable(name)} at {options.against}", len(asked))
        found = []
        for conversation in asked:
            found.append(_compared(loaded, selected, conversation, client, replace_limit(options), name))
            screen.advance(1, "differs" if found[-1].difference else "equal")
        screen.progress.stop()
        wrong = _report(screen, found, _precision(source), source.template == "chat")
    if wrong:
        raise RunFailed(f"{options.against}: {wrong}")


def replace_limit(options: InferConfig) -> InferConfig:
    """``options`` without sampling: both answers are greedy."""
    return replace(options, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=1.0)


def _precision(source: Source) -> Precision:
    return source.precision if source.precision is not Precision.auto else own_precision(source.model)


def _compared(
    loaded: LoadedModel,
    selected: LoadedSource,
    conversation: Conversation,
    client: Client,
    options: InferConfig,
    name: str,
) -> Compared:
    own = answer(loaded, selected, prompt_ids(conversation, selected.tokenizer, selected.data), options)
    body: dict[str, Any] = {
        "model": name, "max_tokens": options.max_new_tokens, "temperature": 0, "seed": options.seed, "repetition_penalty": 1.0,
    }  # fmt: skip
    if selected.data.template == "chat":
        body |= {"messages": prompts.messages(conversation), "logprobs": True, "top_logprobs": 1}
        reply = client.ask("/chat/completions", body)
    else:  # a prompt of training that no chat template renders
        reply = client.ask("/completions", {**body, "prompt": own.prompt, "logprobs": 1})
    ends = set(generation.end_ids(selected.tokenizer, loaded.model))
    different = compare.difference(own, reply, selected.tokenizer, ends, options.max_new_tokens)
    until = None if different is None else different.position
    return Compared(own, reply, different, compare.logprob_differences(own, reply, selected.tokenizer, until))


def answer(loaded: LoadedModel, selected: LoadedSource, prompt: list[int], options: InferConfig) -> Own:
    """The model's own greedy answer, and the log-probabilities of all tokens at each of its positions."""
    ids = generate.answer(loaded, selected, prompt, options)
    row = torch.tensor([prompt + ids], device=loaded.device)  # (1, prompt + T)
    with torch.inference_mode():
        logits = loaded.model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1]  # (T, V)
    return Own(prompt, ids, logits.float().log_softmax(-1).cpu())


def _report(screen: Screen, found: list[Compared], precision: Precision, has_template: bool) -> str:
    """Print the table, the differences and the verdict. Returns what is wrong; empty if nothing is."""
    near = [
        each for each in found if each.difference and not each.difference.cut and each.difference.is_near(precision)
    ]
    cut = [each for each in found if each.difference and each.difference.cut]
    real = [each for each in found if each.difference and each not in near and each not in cut]
    bound = compare.NEAR[precision]
    apart = compare.mean([value for each in found for value in each.logprobs])
    rows = [
        ["prompts", f"{len(found):,}"],
        ["identical answers", f"{sum(each.difference is None for each in found):,}"],
        [f"near ties (gap at most {bound:g}, the rounding of {precision.value})", f"{len(near):,}"],
        ["cut by a limit of the server, equal so far", f"{len(cut):,}"],
        ["real differences", f"{len(real):,}"],
        ["log-probabilities, mean difference", "not returned" if apart is None else f"{apart:.1e}"],
    ]
    screen.table("", ["", "found"], rows)
    for number, each in enumerate(found, 1):
        if (
            each.difference is not None
            and (each in real or each in near)
            and number <= LISTED + found.index(real[0] if real else each)
        ):
            screen.say(_line(number, each.difference, each in near))
    counts = [each for each in found if each.reply.prompt_tokens not in (None, len(each.own.prompt))]
    if counts:
        first = counts[0]
        screen.say(
            f"the server counts other prompt tokens for {len(counts):,} of {len(found):,} prompts, such as {first.reply.prompt_tokens} in "
            f"place of {len(first.own.prompt)}: its chat template, or its system message, is another one"
        )
    if not has_template:
        screen.say(
            "data.template of the run is a text: prompts were sent as tokens, so the server's own template was not compared"
        )
    wrong = _wrong(real, counts, apart, bound)
    screen.say(wrong or f"the server answers as the trained model does, within the rounding of {precision.value}")
    return wrong


def _wrong(real: list[Compared], counts: list[Compared], apart: float | None, bound: float) -> str:
    """What is wrong, and the likely cause; empty if nothing is."""
    if real and any(each in counts for each in real):
        return f"{len(real):,} answers differ, and so do prompts: the chat template is a wrong one"
    if real:
        return f"{len(real):,} answers differ by more than rounding: another adapter, other base weights, or another quantisation"
    if apart is not None and apart > bound:
        return f"the log-probabilities differ by {apart:.1e} on average, more than {bound:g}: other weights, or another quantisation"
    return ""


def _line(number: int, different: Difference, near: bool) -> str:
    """One difference: prompt, position, both continuations, and the gap."""
    gap = f"more than that of the {compare.CANDIDATES:,} likeliest" if different.gap is None else f"{different.gap:.2g}"
    why = "a near tie" if near else "a real difference"
    return (
        f"prompt {number}, token {different.position + 1}: ours {_shown(different.ours)}, the server's {_shown(different.theirs)}; "
        f"gap {gap}: {why}"
    )


def _shown(text: str) -> str:
    return f'"{printable(text[:SHOWN])}{"…" if len(text) > SHOWN else ""}"' if text else "the end"
