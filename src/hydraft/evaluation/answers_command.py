"""``hydraft answers RUN [RUN2] [--before] [--differ]``: the answers of a run, or of two runs side by side. No torch."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydraft.errors import EXIT_REFUSED, ConfigError
from hydraft.evaluation import answers
from hydraft.evaluation.answers import AnswerLine
from hydraft.runs import run_folder
from hydraft.system.escaping import escaped

OPTIONS = ("--before", "--differ")
USAGE = "takes one or two folders of runs, or last: hydraft answers RUN [RUN2] [--before] [--differ]"


def main(arguments: list[str]) -> int:
    """Print the answers of the last evaluation, or with ``--before`` of the one before training.

    ``--differ`` leaves out the records for which two runs have the same answer. ``last`` is the newest run.

    Returns:
        0, or 2 if there are no such answers.
    """
    options = [argument for argument in arguments if argument.startswith("-")]
    named = [argument for argument in arguments if not argument.startswith("-")]
    try:
        runs = [run_folder.find(name, "RUN") if name == "last" else Path(name) for name in named]
        if not set(options) <= set(OPTIONS) or not 1 <= len(runs) <= 2:
            raise ConfigError(USAGE)
        if "--differ" in options and len(runs) == 1:
            raise ConfigError("--differ compares two runs: hydraft answers RUN RUN2 --differ")
        evaluations = [_evaluation(run, "--before" in options) for run in runs]
        found = list(_rows(evaluations))
        if not found:
            raise ConfigError(f"{runs[0]} and {runs[1]}: evaluated no record in common")
    except ConfigError as error:
        print(f"hydraft answers: {error}", file=sys.stderr)
        return EXIT_REFUSED
    for row in found:
        if "--differ" not in options or len({line.answer.strip() for line in row}) > 1:
            print("\n".join(_shown(row, runs)), end="\n\n")
    print("\n".join(_summary(found, runs)))
    return 0


def _evaluation(run: Path, before: bool) -> list[AnswerLine]:
    """The answers of a run's last evaluation, or of the one before training.

    Raises:
        ConfigError: there are none.
    """
    if not run.is_dir():
        raise ConfigError(f"{escaped(str(run))}: no such folder")
    try:
        by_step = answers.read(run)
    except OSError as error:
        raise ConfigError(f"{escaped(str(run / answers.FILE))}: {error.strerror}") from error
    if not by_step:
        raise ConfigError(
            f"{escaped(str(run))}: has no answers: {answers.FILE} is written by runs with data.eval, of records with a question"
        )
    if before and 0 not in by_step:
        raise ConfigError(f"{escaped(str(run))}: has no answers from before training; leave out --before")
    return by_step[0] if before else by_step[max(by_step)]


def _rows(evaluations: Sequence[Sequence[AnswerLine]]) -> Iterator[list[AnswerLine]]:
    """For each record that all evaluations have, the answer in each."""
    if len(evaluations) == 1:
        yield from ([line] for line in evaluations[0])
    else:
        yield from ([pair.first, pair.second] for pair in answers.paired(*evaluations))


def _shown(row: Sequence[AnswerLine], runs: Sequence[Path]) -> Iterator[str]:
    first = row[0]
    yield f"record {first.record}" + (f" ({escaped(first.task)})" if first.task else "")
    yield f"    prompt     {escaped(first.prompt)}"
    yield f"    reference  {escaped(first.reference)}"
    for line, run in zip(row, runs, strict=True):
        name = f"answer of {escaped(str(run))}" if len(runs) > 1 else "answer"
        yield f"  {'✓' if line.is_right else '✗'} {name:10} {escaped(line.answer)}"


def _summary(rows: Sequence[Sequence[AnswerLine]], runs: Sequence[Path]) -> Iterator[str]:
    for index, run in enumerate(runs):
        right = sum(row[index].is_right for row in rows)
        yield f"{escaped(str(run))} at step {rows[0][index].step:,}: {right} of {len(rows)} right"
    if len(runs) > 1:
        differ = sum(row[0].answer.strip() != row[1].answer.strip() for row in rows)
        yield f"{differ} of {len(rows)} answers differ"
