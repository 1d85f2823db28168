"""The data section of the schema. No torch."""

from dataclasses import dataclass, field

from omegaconf import MISSING

from hydraft.config.bounds import LARGEST_SEED, Effect, setting
from hydraft.config.choices import Batching, Format, OnBadRecord, Task, Thinking, TrainOn
from hydraft.config.columns import ALLOWED as COLUMNS_ALLOWED
from hydraft.config.columns import are_columns
from hydraft.config.template import TEMPLATE, is_template


@dataclass
class DataConfig:
    """Training and held-out records, and how they become batches."""

    name: str = MISSING
    """Short name, used in tables and on dashboards."""
    train: str = setting(MISSING, effect=Effect.reads)
    """Training records: a file (JSON, JSON lines, CSV, TSV, plain text, Parquet or Arrow, also compressed), a folder of files, a pattern
    (``data/*.jsonl``), a list (``[a.json,b.csv]``), or a dataset on the hub (``owner/name``, ``owner/name:split`` or
    ``owner/name:config:split``)."""
    mix: list[str] = setting(factory=list, effect=Effect.reads)
    """Further sources, each as ``source*weight``: 0.5 uses half of its records in each epoch, 2 uses each record twice."""
    only: list[str] = field(default_factory=list)
    """Train and evaluate only records whose ``task`` key is in this list. ``[]``: all records."""
    format: Format = Format.auto
    """Format of the records. ``auto``: recognised by their keys."""
    train_on: TrainOn = TrainOn.all
    """Which of the assistant's turns are trained: all, or only the last."""
    eval: str | None = setting(None, effect=Effect.reads)
    """Held-out records, evaluated before and after training: a source such as ``data.train``, or a share of the training records to hold
    out (``0.05`` or ``5%``). null: none."""
    benchmark: list[str] = setting(factory=list, effect=Effect.reads)
    """Benchmarks that are run before and after training, to see what the model forgets: tasks of lm-evaluation-harness by name, YAML
    files of tasks, or folders of them. Their scores are ``benchmark/<task>``. ``[]``: none."""
    benchmark_shots: int | None = setting(None, at_least=0, unit="examples")
    """Solved examples before each question of a benchmark. null: as each task has it."""
    benchmark_limit: int | None = setting(None, at_least=1, unit="questions")
    """Ask only the first questions of each task of a benchmark, so many. null: all."""
    benchmark_chat: bool = False
    """Format the prompts of benchmarks with the model's chat template."""
    template: str = setting("chat", valid=is_template, allowed=TEMPLATE)
    """``chat`` for the model's chat template, or a prompt with {instruction} and {input} in it."""
    max_length: int = setting(512, at_least=16, unit="tokens")
    """Most tokens of a record. Longer prompts are cut in the middle, longer answers at the end, and longer plain texts are split."""
    batching: Batching = Batching.padding_free
    """``padding_free``: the records of a micro-batch are concatenated. ``padded``: each is padded to the longest.
    Models that do not keep the records of a row apart get padded batches."""
    packing: bool = False
    """Fill bins of ``max_length`` tokens with whole records. ``train.micro_batch_size`` then counts bins."""
    group_by_length: bool = False
    """Put records of similar length into the same batch: less padding, and ranks wait less for each other."""
    shuffle: bool = True
    """Shuffle the records anew in each epoch, from ``seed``. false: keep the order of the file."""
    eval_limit: int | None = setting(
        None, at_least=1, unit="records", hint="; to evaluate no records use data.eval=null"
    )
    """Evaluate only this many held-out records, spread evenly over the file. null: all."""
    eval_seed: int | None = setting(None, at_least=0, at_most=LARGEST_SEED)
    """With a share as ``data.eval``: chooses the records that are held out, so that runs with different seeds hold out the same. null:
    ``seed``."""
    task: Task = Task.auto
    """Which scores are computed for the answers. ``auto``: chosen by the ``task`` key of each record."""
    eval_max_new_tokens: int = setting(64, at_least=1, unit="tokens")
    """Most tokens of an answer that is generated for a held-out record."""
    thinking: Thinking = Thinking.auto
    """Whether answers have thoughts (``reasoning_content``, or ``<think>`` in the text), which are then trained and generated. ``auto``:
    ``on`` if a training record has any. With ``off`` they are left out, and prompts have the empty thoughts of the chat template."""
    columns: dict[str, str] = setting(factory=dict, valid=are_columns, allowed=COLUMNS_ALLOWED)
    """Names of the records' keys for those of a format, such as ``{instruction: question, output: answer}``. ``{}``: common names are
    recognised."""
    labels: list[str] = field(default_factory=list)
    """Answers that the numbers 0, 1, … in a record's ``label`` stand for, such as ``[negative, positive]``. Held-out records with one of
    them as the answer are scored by the likelihood of each, and no answer is generated."""
    on_bad_record: OnBadRecord = OnBadRecord.refuse
    """What is done with a record that cannot be read: ``refuse`` the run, or ``skip`` it and report how many were skipped."""
