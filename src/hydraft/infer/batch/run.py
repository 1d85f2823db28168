"""``mode=batch``: a file of prompts to a file of answers, in batches of similar length, on one or several GPUs; can be resumed.

The unit is a bucket of prompts. Its prompts, its seed and its number depend on neither earlier runs nor the number of processes,
so the answers do not either. No torch at module level.
"""

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from hydraft.config.choices import Thinking
from hydraft.config.infer import InferConfig
from hydraft.data.named import RecordSettings
from hydraft.errors import ConfigError
from hydraft.infer.batch.journal import Bucket, Journal
from hydraft.infer.batch.records import Record, read
from hydraft.infer.source import Source
from hydraft.models import base_identity
from hydraft.system import files
from hydraft.system.console import Screen

MATTERS = (
    "system", "batch_size", "dtype", "template", "max_new_tokens", "temperature", "top_p", "top_k",
    "repetition_penalty",
    "seed",
)  # fmt: skip
"""The settings that the answers depend on."""


def run(sources: list[Source], options: InferConfig) -> None:
    """Answer ``input`` and write ``output``."""
    output = Path(str(options.output)).expanduser()
    source = next(s for s in sources if options.adapter in (None, s.name))
    settings = RecordSettings(options.columns, template=source.template)
    records, notes = read(str(options.input), options.format, options.system, settings)
    for note in notes:
        print(note)
    try:
        journal = Journal(output, _key(records, source, options))
        if journal.finished:
            print(f"{output}: is complete; nothing is left to do")
            return
        try:
            with Screen(os.dup(1), visible=True) as screen:
                _run(source, options, records, journal, screen, options.cluster.ranks_per_node)
        except ConfigError:
            journal.discard()
            raise
    except OSError as error:
        again = "; free space and give the same command again: what is done is kept" if files.is_full(error) else ""
        raise ConfigError(
            f"output={output}: {error.strerror or error} ({error.filename or output.parent}){again}"
        ) from error


def _run(
    source: Source, options: InferConfig, records: list[Record], journal: Journal, screen: Screen, count: int
) -> None:
    screen.phase("loading the model")
    loaded = None
    if count == 1:
        from hydraft.infer.load import load

        loaded = load([source], options, screen.console)
        tokenizer, data = loaded.select().tokenizer, loaded.select().data
    else:
        from hydraft.infer.load import tokenizer_and_data

        tokenizer, data = tokenizer_and_data(source, screen.console, options)
    from hydraft.data.tokenize import prompt_ids

    prompts = [prompt_ids(record.conversation, tokenizer, data) for record in records]
    made = buckets(prompts, options.batch_size)
    left = [bucket for bucket in made if bucket[0] not in journal.done]
    started, tokens = time.perf_counter(), 0
    screen.phase("generating", len(records))
    if journal.done:
        done = sum(map(len, journal.done.values()))
        screen.say(f"resuming: {done:,} of {len(records):,} records are done")
        screen.advance(done)
    if journal.dropped:
        screen.say(f"{journal.path}: what was cut off in writing is made again (lines: {journal.dropped:,})")
    from hydraft.infer.batch.workers import work

    for number, answers in work(left, loaded, source, options, count):
        journal.add(number, answers)
        tokens += sum(answer["tokens"] for answer in answers)
        speed = tokens / (time.perf_counter() - started)
        screen.advance(len(answers), f"{speed:,.0f} tokens/s", line=True)
    _finish(source, options, records, journal, screen)


def buckets(prompts: list[list[int]], size: int) -> list[Bucket]:
    """Batches of prompts of similar length, the longest first, so that running out of memory shows at once."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    return [(number, chunk, [prompts[index] for index in chunk]) for number, chunk in enumerate(chunks)]


def _finish(source: Source, options: InferConfig, records: list[Record], journal: Journal, screen: Screen) -> None:
    """Write the output in the order of the input, score the records that have a reference, and print a summary."""
    from hydraft.evaluation.metrics import score

    found = {answer["index"]: answer for answers in journal.done.values() for answer in answers}
    assert sorted(found) == list(range(len(records)))
    lines = [_line(record, found[index]) for index, record in enumerate(records)]
    scored = [
        (record.conversation, line["answer"]) for record, line in zip(records, lines, strict=True) if record.answered
    ]
    scores = score([asked for asked, _ in scored], [text for _, text in scored], options.task) if scored else {}
    summary = {
        "key": _key(records, source, options),
        "run": str(source.folder),
        "input": str(options.input),
        "records": len(lines),
        "tokens": sum(line["tokens"] for line in lines),
        "cut": sum(line["finish"] == "length" for line in lines),
        "scored": len(scored),
        "scores": scores,
    }
    journal.close(lines, summary)
    rows = [["answers", f"{len(lines):,}"], ["tokens", f"{summary['tokens']:,}"]]
    rows.append(["cut at max_new_tokens", f"{summary['cut']:,}"])
    rows += [[name.replace("_", " "), f"{value:.1%}"] for name, value in scores.items()]
    screen.table(str(options.output), ["", f"{len(scored):,} scored" if scored else ""], rows)


def _line(record: Record, answer: dict[str, Any]) -> dict[str, Any]:
    """One line of the output."""
    asked = record.conversation
    line: dict[str, Any] = {"index": answer["index"]}
    if record.id is not None:
        line["id"] = record.id
    if asked.task is not None:
        line["task"] = asked.task
    line |= {"prompt": asked.turns[-2].text, "answer": answer["answer"]}
    if "reasoning_content" in answer:
        line["reasoning_content"] = answer["reasoning_content"]
    if record.answered:
        line["reference"] = asked.reference
    return line | {"tokens": answer["tokens"], "finish": answer["finish"]}


def _key(records: list[Record], source: Source, options: InferConfig) -> str:
    """A hash of everything that the answers depend on."""
    weights = sorted(source.folder.glob("*.safetensors"))
    parts = [
        [(str(record.id), str(record.conversation)) for record in records],
        [base_identity.sample(file) for file in weights],
        [source.model.path, str(source.quant), source.precision.value, source.template],
        {name: str(getattr(options, name)) for name in MATTERS},
    ]
    if source.thinking is not Thinking.auto:
        parts.append([source.thinking.value])
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
