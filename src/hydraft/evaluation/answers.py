"""The answers to held-out records: ``answers.jsonl`` in a run's folder, a line for each record and evaluation. No torch.

A line has at most ``LONGEST`` characters of the question, of the answer and of the reference, so a run writes at most
``data.eval_limit`` * evaluations * 3 * ``LONGEST`` characters; the answers to the 50 reviews that are shipped are 16 kB.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hydraft.config.choices import Task
from hydraft.data.records import Record
from hydraft.evaluation.record_scores import RecordScores
from hydraft.system import line_file

FILE = "answers.jsonl"

LONGEST = 2_000
"""Characters of a text; what is beyond them is left out, with an ellipsis."""


@dataclass(frozen=True)
class AnswerLine:
    """The answer to a held-out record in one evaluation."""

    step: int
    """Optimizer steps before it; 0 is before training."""
    record: int
    """The position of the record among the held-out records, as ``index`` in ``scores.jsonl``."""
    digest: str
    """A hash of the record's content."""
    task: str | None
    prompt: str
    """The last question."""
    answer: str
    """Without thoughts."""
    reference: str
    scores: dict[str, float] = field(default_factory=dict)
    """Those of this answer, by name."""

    @property
    def is_right(self) -> bool:
        """Whether the answer is the reference, or names its class."""
        for name in ("accuracy", f"{self.task}_accuracy", "exact_match"):
            if name in self.scores:
                return self.scores[name] == 1
        return False


@dataclass(frozen=True)
class Pair:
    """The answers to one record in two evaluations."""

    first: AnswerLine
    second: AnswerLine


def lines(
    step: int, records: Sequence[Record], by_record: Sequence[RecordScores], texts: Mapping[int, str], task: Task
) -> list[AnswerLine]:
    """The lines of an evaluation; ``texts`` has the answers by the index of the record, ``task`` is ``data.task``."""
    found = []
    for index in sorted(texts):
        conversation, scores = records[index].conversations[0], by_record[index]
        name = conversation.task if task is Task.auto else task.value
        prompt = conversation.prompt[-1].text if conversation.prompt else ""
        answer = (_short(prompt), _short(texts[index]), _short(conversation.reference))
        found.append(AnswerLine(step, index, scores.digest, name, *answer, dict(scores.scores)))
    return found


def append(folder: Path, found: Sequence[AnswerLine]) -> None:
    """Append the lines of an evaluation, all of them or none.

    Raises:
        OSError: they could not be written.
    """
    if found:
        line_file.append(folder / FILE, *map(asdict, found))


def keep(folder: Path, steps: Sequence[int]) -> None:
    """Keep only the lines of the evaluations at ``steps``: those that the checkpoint knows from which a run is resumed."""
    if (folder / FILE).exists():
        line_file.rewrite(
            folder / FILE, [one for one in line_file.read(folder / FILE).values if one.get("step") in steps]
        )


def read(folder: Path) -> dict[int, list[AnswerLine]]:
    """The answers in a run's folder, by step; of each step by record. Lines of another form are left out.

    Raises:
        OSError: the file cannot be read.
    """
    found: dict[int, dict[int, AnswerLine]] = {}
    for value in line_file.read(folder / FILE).values:
        if (line := _line(value)) is not None:
            found.setdefault(line.step, {})[line.record] = line
    return {step: [by_record[index] for index in sorted(by_record)] for step, by_record in sorted(found.items())}


def before_and_after(folder: Path, most: int | None = None) -> list[Pair]:
    """The answers of the first and of the last evaluation in a run's folder, of the first ``most`` records.

    None if there are not two.

    Raises:
        OSError: the file cannot be read.
    """
    by_step = [] if most == 0 else list(read(folder).values())
    return paired(by_step[0], by_step[-1])[:most] if len(by_step) > 1 else []


def paired(first: Sequence[AnswerLine], second: Sequence[AnswerLine]) -> list[Pair]:
    """The answers to the records that both evaluations have: equal records, in the order of the first."""
    others: dict[str, list[AnswerLine]] = {}
    for line in second:
        others.setdefault(line.digest, []).append(line)
    return [Pair(line, others[line.digest].pop(0)) for line in first if others.get(line.digest)]


def _line(value: Mapping[str, Any]) -> AnswerLine | None:
    texts = [value.get(name) for name in ("digest", "prompt", "answer", "reference")]
    scores, task = value.get("scores"), value.get("task")
    numbers = [value.get(name) for name in ("step", "record")]
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        return None
    if not isinstance(scores, dict) or not isinstance(task, str | None):
        return None
    return AnswerLine(**{name: value[name] for name in AnswerLine.__dataclass_fields__})


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
