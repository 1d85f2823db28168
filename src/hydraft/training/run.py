"""One run on this rank: from its config, through the Trainer and its callbacks, to its results."""

import dataclasses
import functools
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers
from transformers import TrainerCallback, TrainingArguments

from hydraft.checkpoint import optimizer_state, starting_adapter, weights
from hydraft.config.lora import LoraMethod, start_name
from hydraft.config.schema import Config
from hydraft.data.records import Record
from hydraft.data.template_default import with_default
from hydraft.evaluation.batches import BatchSizes
from hydraft.evaluation.evaluator import Evaluated, Evaluator
from hydraft.models import base_identity, lora_init
from hydraft.models.load import check_vocabulary, has_chunked_loss, load_tokenizer, settle_batching, trainable
from hydraft.plan import plan
from hydraft.system.console import Screen
from hydraft.system.heartbeat import Heartbeat
from hydraft.system.signals import EarlyExit, SignalListener
from hydraft.tracking.factory import make_tracker
from hydraft.training import debugging, eva, flop_rate, native_model, report, targets
from hydraft.training.benchmarks import Benchmarks
from hydraft.training.callbacks import best
from hydraft.training.callbacks.checkpoint import CheckpointCallback, find_start
from hydraft.training.callbacks.divergence import DivergenceCallback
from hydraft.training.callbacks.early_stop import EarlyStopCallback
from hydraft.training.callbacks.evaluation import EvaluationCallback
from hydraft.training.callbacks.logging import LoggingCallback
from hydraft.training.callbacks.pause import PauseCallback
from hydraft.training.callbacks.reference import referring_callbacks
from hydraft.training.dataset import TrainingData, load_held_out, load_training_data
from hydraft.training.memory_peaks import MemoryPeaks
from hydraft.training.objectives.base import Objective
from hydraft.training.objectives.registry import make_objective
from hydraft.training.oom import OutOfMemoryHandler
from hydraft.training.trainer import RunTrainer, Start

PROBE_TOKENS = 64
"""Tokens of the prompt in probe.json."""


@dataclass(frozen=True)
class Rank:
    """Where a run is trained: what this process gives it."""

    folder: Path
    """The run's folder."""
    arguments: TrainingArguments
    screen: Screen
    memory: OutOfMemoryHandler
    listener: SignalListener
    load: Callable[[Config], Any]
    """Loads the model to train."""
    trainer: type[RunTrainer]
    evaluations: MutableMapping[str, Evaluated] | None = None
    """Of the base without an adapter, which other runs of this process share (``EvaluationCallback.known``)."""


def train(rank: Rank, config: Config) -> EarlyExit | None:
    """Train the run with this config, and write its results; the step and the signal if one has ended it early.

    Raises:
        ConfigError, Diverged, OutOfMemory: it cannot be trained.
    """
    folder, screen = rank.folder, rank.screen
    parts = _load(config, rank)
    early_stop = EarlyStopCallback(config.train.grace, rank.arguments.device, rank.listener)
    run = _make_run(parts, rank, early_stop)
    rank.memory.trainer = run.trainer
    began = time.perf_counter()
    output = run.trainer.run()
    run.peaks.end("training")
    stopped = run.early_stop.number != 0  # and a checkpoint was saved
    after = {} if stopped else run.evaluation.evaluate_all("after training", run.trainer.state.global_step)
    if run.early_stop.number:
        return _end_early(run, save=not stopped)
    seconds = time.perf_counter() - began
    screen.phase("saving")
    result, trained = _save(run, parts, folder, {"after": after, "train_loss": output.training_loss})
    screen.heartbeat.stop()  # a dashboard may be slow
    if dist.get_rank() == 0:
        if run.evaluation.best_so_far.kept is None:  # otherwise they are those of the kept weights
            run.evaluation.write_records(folder)
        report.write_result(parts.config, folder, result, trained, run.logging.tracker)
        report.show_result(screen, folder, result, seconds, run.logging.tracker)
        report.show_answers(screen, folder, parts.config.train.show_answers)
        debugging.show(run.debugging, screen, result)
    return None


@dataclass(frozen=True)
class _Parts:
    """What a run is made of."""

    config: Config
    """With the model section of the native model."""
    objective: Objective
    tokenizer: Any
    data: TrainingData
    held_out: list[Record]
    model: Any
    origin: weights.Origin


@dataclass(frozen=True)
class _Run:
    """A run that is ready to be trained."""

    trainer: RunTrainer
    logging: LoggingCallback
    evaluation: EvaluationCallback
    checkpoint: CheckpointCallback
    early_stop: EarlyStopCallback
    peaks: MemoryPeaks
    debugging: list[TrainerCallback]


def _load(requested: Config, rank: Rank) -> _Parts:
    """The data set and the model. ``requested``: with the model section of the user, which may be a published checkpoint."""
    screen = rank.screen
    native = native_model.find(requested, screen)
    config, notes = settle_batching(dataclasses.replace(requested, model=native))
    for note in notes:
        screen.say(note)
    objective, tokenizer = make_objective(config.objective), load_tokenizer(config.model)
    check_vocabulary(tokenizer, config.model)
    with screen.heartbeat.while_working():
        data = load_training_data(config, tokenizer, objective.encoding, screen)
        held_out = load_held_out(config, objective.read, data.entry)
    best.check(config, held_out, objective.measures)
    if config.data.template == "chat":
        tokenizer.chat_template = with_default(tokenizer, data.encoded.thinking)  # saved with the adapter
    screen.phase("loading the model")
    with screen.heartbeat.while_working():
        model = rank.load(config)
    rank.memory.model = model
    objective.prepare(model, has_chunked_loss(config, model))
    _beat_in_forward(model, screen.heartbeat)
    targets.report(model, config, screen)
    folds = config.lora.variant.changes_base and lora_init.first(model) is None
    initial = weights.gather(model, trainable(model)) if folds else None
    known = dataclasses.replace(requested, data=dataclasses.replace(requested.data, thinking=data.encoded.thinking))
    origin = weights.Origin(initial, base_identity.of(known) if dist.get_rank() == 0 else None)
    return _Parts(config, objective, tokenizer, data, held_out, model, origin)


def _make_run(parts: _Parts, rank: Rank, early_stop: EarlyStopCallback) -> _Run:
    """The Trainer and its callbacks, with the state of the checkpoint that the run resumes from."""
    config, model, device = parts.config, parts.model, rank.arguments.device
    folder, screen = rank.folder, rank.screen
    start = find_start(folder, screen)
    if start is not None:
        optimizer_state.load_weights(trainable(model), start.folder)
        starting_adapter.load_frozen(model, start.folder)
    elif config.lora.variant.reads_records:
        screen.phase("reading records for the adapter's first weights")
        with screen.heartbeat.while_working():
            eva.initialise(model, parts.data.encoded, config, device)
    elif config.lora.start is not None:
        known = (parts.origin.base or {}).get("base", {})
        starting_adapter.load(model, config.lora.start, known.get("sha256"))
    known = (None, None) if start is None else (start.state.tracker, start.state.tracker_name)
    tracker = make_tracker(config, folder, dist.get_rank(), *known)
    logging = LoggingCallback(folder, dist.get_rank(), screen, tracker)
    if start is None:
        logging.begin()
    peaks = MemoryPeaks(device)
    with screen.heartbeat.while_working():  # a share of many records takes long to find
        evaluator = _evaluator(parts, device)
    evaluation = EvaluationCallback(model, evaluator, config.train, logging, early_stop, peaks)
    if config.data.benchmark:
        evaluation.benchmarks = Benchmarks(config, model, parts.tokenizer, device, evaluator.sizes)
    if start is None:
        evaluation.begin()
    evaluation.known = rank.evaluations if config.lora.starts_as_base else None
    evaluation.best_so_far.more = functools.partial(_beside_best, parts, evaluation)
    checkpoint = CheckpointCallback(config, folder, parts.data.encoded.key, logging, evaluation, parts.origin)
    compiling = _compile_callbacks(config, model, logging, device)
    referring = referring_callbacks(config, parts.objective, model, parts.data, evaluator, (folder, screen))
    looking = debugging.callbacks(config, folder)
    trainer = _trainer(
        parts, rank, start, [*compiling, *referring, early_stop, evaluation, logging, checkpoint, *looking]
    )
    logging.count_tokens = trainer.all_tokens
    logging.flops = flop_rate.of(config, parts.data.encoded, device)
    debugging.attach(looking, trainer)
    for callback in compiling:
        callback.trainer = trainer
    divergence = DivergenceCallback(config, folder, logging, trainer, early_stop)
    evaluation.before = divergence.settle
    trainer.add_callback(divergence)
    if (step := config.sweep.stop_at) is not None:
        trainer.add_callback(PauseCallback(step, early_stop))
    checkpoint.attach(trainer, divergence)
    return _Run(trainer, logging, evaluation, checkpoint, early_stop, peaks, looking)


def _trainer(parts: _Parts, rank: Rank, start: Start | None, callbacks: list[TrainerCallback]) -> RunTrainer:
    config, data, pad_id = parts.config, parts.data, int(parts.tokenizer.pad_token_id)
    trainer = rank.trainer(
        config, parts.model, parts.objective, data.lengths, start,
        args=rank.arguments,
        train_dataset=data.examples,
        processing_class=parts.tokenizer,
        data_collator=parts.objective.collator(config.data, config.kernels, pad_id),
        callbacks=callbacks,
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _evaluator(parts: _Parts, device: torch.device) -> Evaluator:
    config, objective = parts.config, parts.objective
    sizes = BatchSizes.of(config.data, config.train.micro_batch_size, plan.generation_memory(config))
    data = dataclasses.replace(config.data, thinking=parts.data.encoded.thinking)
    return Evaluator(parts.held_out, parts.tokenizer, data, device, sizes, objective)


def _compile_callbacks(config: Config, model: Any, logging: LoggingCallback, device: torch.device) -> list[Any]:
    if not config.train.compile:
        return []
    from hydraft.training.callbacks.compile_layers import CompileCallback  # imports torch's compiler, which is slow

    return [CompileCallback(model, logging, device)]


def _end_early(run: _Run, save: bool) -> EarlyExit:
    """End this rank after a signal. ``save``: the signal arrived after the last step, and no checkpoint was saved for it."""
    if save:
        run.checkpoint.save(run.trainer)
    ended = EarlyExit(run.trainer.state.global_step, run.early_stop.number)
    run.early_stop.listener.report_early_exit(*ended)
    run.logging.screen.heartbeat.stop()
    run.logging.tracker.finish({})
    report.show_upload(run.logging.screen, run.logging.tracker)
    return ended


def _save(run: _Run, parts: _Parts, folder: Path, ended: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Save the adapter or model and a checkpoint; returns the values of result.json and the folder that was saved."""
    trained = folder / ("model" if parts.config.lora.method is LoraMethod.none else "adapter")
    leader, state, tokens = run.evaluation.best_so_far, run.trainer.state, run.trainer.all_tokens()
    after, kept = ended["after"], leader.kept
    if kept is None:
        run.checkpoint.write(run.trainer, trained)
    else:
        after = run.evaluation.scores[kept]
        leader.install(trained)
    run.checkpoint.save(run.trainer)  # so that the run can be resumed with more epochs
    if kept is None:
        _write_probe(parts, trained)
    result = {
        **({"start": start_name(parts.config.lora.start)} if parts.config.lora.start else {}),
        "objective": after.get("loss", ended["train_loss"]),
        "train_loss": ended["train_loss"],
        "before": run.evaluation.scores.get(0, {}),
        "best": run.evaluation.best(),
        "after": after,
        **({} if kept in (None, state.global_step) else {"last": ended["after"]}),
        **leader.result(state.global_step, state.max_steps),
        "steps": state.global_step,
        **debugging.result(run.debugging, state.global_step),
        "tokens": tokens,
        "train_seconds": run.logging.seconds,
        **run.logging.flops.result(tokens / max(run.logging.seconds, 1e-9)),
        **run.peaks.result(),
        "trained_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainable(parts.model).values()),
        "truncated": vars(parts.data.encoded.truncation),
    }
    return result, trained


def _write_probe(parts: _Parts, folder: Path | None) -> None:
    weights.write_probe(parts.model, parts.tokenizer, parts.data.encoded[0]["input_ids"][:PROBE_TOKENS], folder)


def _beside_best(parts: _Parts, evaluation: EvaluationCallback, staging: Path | None) -> dict[str, str]:
    """Write what is kept beside the weights of the best evaluation: the probe, and the scores of each record."""
    _write_probe(parts, staging)
    if staging is not None:
        evaluation.write_records(staging)
    return {}


def _beat_in_forward(model: torch.nn.Module, heartbeat: Heartbeat) -> None:
    """Send a heartbeat in every forward pass, in training and in evaluation."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inner.register_forward_pre_hook(lambda *_: heartbeat.beat())
