"""The prompts of ``mode=verify``: the run's held-out records, or those of ``input``. No torch."""

from typing import Any

from hydraft.config.infer import InferConfig
from hydraft.config.schema import load_config
from hydraft.data import mixture
from hydraft.data.named import RecordSettings
from hydraft.data.records import Conversation, Record, Turn
from hydraft.errors import ConfigError
from hydraft.infer.batch import records as batch_records
from hydraft.infer.source import Source
from hydraft.training.objectives.registry import make_objective


def prompts(source: Source, options: InferConfig) -> tuple[list[Conversation], list[str]]:
    """At most ``verify.records`` conversations to answer, spread evenly over the records, and lines about those left out.

    Raises:
        ConfigError: there are none.
    """
    if options.input is not None:
        settings = RecordSettings(options.columns, template=source.template)
        found, notes = batch_records.read(options.input, options.format, options.system, settings)
        asked, named = [record.conversation for record in found], f"input={options.input}"
    else:
        asked, notes, named = [record.conversations[0] for record in _held_out(source)], [], f"run={options.run}"
    usable = [conversation for conversation in asked if _can_be_asked(conversation)]
    if not usable:
        raise ConfigError(f"{named}: has no prompts that a server can be asked: give input=prompts.jsonl")
    if len(usable) < len(asked):
        notes = [*notes, f"{len(asked) - len(usable):,} records are plain text or use tools, and are not compared"]
    count = min(options.verify.records, len(usable))
    return [usable[index * len(usable) // count] for index in range(count)], notes


def _held_out(source: Source) -> list[Record]:
    if source.run is None:
        raise ConfigError(
            f"run={source.folder}: is not in a run's folder, so it has no held-out records: give input=prompts.jsonl"
        )
    config = load_config(source.run / "config.yaml")
    if config.data.eval is None:
        raise ConfigError(
            f"run={source.run}: was trained without held-out records (data.eval=null): give input=prompts.jsonl"
        )
    return mixture.held_out(config.data, config.seed, make_objective(config.objective).read)


def _can_be_asked(conversation: Conversation) -> bool:
    return (
        conversation.plain is None
        and not conversation.tools
        and all(turn.role in ("system", "user", "assistant") and not turn.tool_calls for turn in conversation.prompt)
    )


def messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The prompt as the messages of a chat request."""
    return [_message(turn) for turn in conversation.prompt]


def _message(turn: Turn) -> dict[str, Any]:
    return {"role": turn.role, "content": turn.text}
