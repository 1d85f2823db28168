"""A rank: reads the run's config.yaml, trains, and (rank 0) writes what came of it."""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import peft
import torch
import torch.distributed as dist
import transformers

from hydraft.checkpoint import training_state, weights
from hydraft.config.choices import LoraMethod
from hydraft.config.schema import Config, load_config
from hydraft.data import cache, mixture
from hydraft.data.batch import Examples, fill, pack
from hydraft.evaluation.evaluator import HeldOut
from hydraft.models import prepare
from hydraft.models.load import load_tokenizer, load_trainable, trainable
from hydraft.plan import plan
from hydraft.runs import consistency, loss_plot
from hydraft.system import files, heartbeat, signals
from hydraft.system.console import Screen
from hydraft.tracking.factory import make_tracker
from hydraft.training import deepspeed_ops
from hydraft.training.callbacks.checkpoint import Keeper, find_start
from hydraft.training.callbacks.divergence import Health
from hydraft.training.callbacks.early_stop import Stopper
from hydraft.training.callbacks.evaluation import Scorer
from hydraft.training.callbacks.logging import Reporter
from hydraft.training.memory_peaks import Peaks
from hydraft.training.oom import Watch
from hydraft.training.trainer import RunTrainer, training_arguments

SUMMARY = ("train_loss", "tokens", "train_seconds", "peak_memory_bytes", "trained_parameters")
"""Of result.json, what a dashboard's table has too."""


def main(folder: Path, terminal: int) -> None:
    """Run this rank of the run in ``folder``. ``terminal`` is the file descriptor a person looks at."""
    config = load_config(folder / "config.yaml")
    deepspeed_ops.ready_device()
    rank, local_ranks = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    cores = int(os.environ.get("HYDRAFT_CORES", 0)) or len(os.sched_getaffinity(0))  # a sweep's job has a share of them
    torch.set_num_threads(max(1, cores // local_ranks))
    transformers.logging.disable_progress_bar()
    with Watch(config, folder) as memory, Screen(terminal, visible=rank == 0) as screen:
        _train(config, folder, screen, memory)
    dist.destroy_process_group()


def _train(config: Config, folder: Path, screen: Screen, memory: Watch) -> None:
    screen.phase("starting")
    arguments = training_arguments(config, folder)  # before the model: ZeRO-3 shards it as it loads
    rank = dist.get_rank()
    _compare_hosts(config)
    asked, config = config, dataclasses.replace(config, model=prepare.native(config.model, config.seed, screen.console))
    tokenizer = load_tokenizer(config.model)
    with heartbeat.while_working():
        examples, lengths, encoded = _examples(config, tokenizer, screen)
    screen.phase("loading the model")
    with heartbeat.while_working():
        model = load_trainable(config)
    memory.model = model
    _beat_at_each_pass(model)
    _say_targets(model, config, screen)
    first = weights.gather(model, trainable(model)) if config.lora.method is LoraMethod.pissa else None
    start, numbers = find_start(folder, screen)
    if start is not None:
        training_state.load_weights(trainable(model), start.folder)
    tracker = make_tracker(config, folder, rank, numbers.get("tracker"))
    held_out = HeldOut(
        mixture.held_out(config.data), tokenizer, config.data, arguments.device, config.train.micro_batch_size,
        plan.generation_memory(config),
    )  # fmt: skip
    reporter = Reporter(folder, rank, screen, tracker)
    if start is None:
        reporter.begin()
    stopper = Stopper(config.train.grace, arguments.device)
    peaks = Peaks(arguments.device)
    scorer = Scorer(model, held_out, config.train, reporter, screen, stopper, peaks)
    keeper = Keeper(config, asked, folder, encoded.key, reporter, scorer, first)
    compiled = []
    if config.train.compile:
        from hydraft.training.callbacks.compile_layers import (
            Compiled,  # with it torch's compiler, which all other runs start sooner without
        )

        compiled.append(Compiled(model, reporter, arguments.device))
    callbacks = [*compiled, stopper, scorer, reporter, keeper]
    trainer = RunTrainer(config, model, examples, lengths, tokenizer, start, args=arguments, callbacks=callbacks)
    trainer.remove_callback(transformers.PrinterCallback)
    memory.trainer = trainer
    for callback in compiled:
        callback.trainer = trainer
    health = Health(config, folder, reporter, trainer, stopper)
    scorer.before = health.settle
    trainer.add_callback(health)
    keeper.attach(trainer, numbers, health)
    started = time.perf_counter()
    output = trainer.run()
    peaks.end("training")
    saved = stopper.number != 0
    after = {} if saved else scorer.at_an_end("after training", trainer.state.global_step)
    if stopper.number:
        if not saved:
            keeper.save(trainer)
        signals.leave(trainer.state.global_step, stopper.number)
        heartbeat.stop()
        tracker.finish({})
        return
    seconds = time.perf_counter() - started
    screen.phase("saving")
    target = folder / ("model" if config.lora.method is LoraMethod.none else "adapter")
    keeper.write(trainer, target)
    keeper.save(trainer)  # where more epochs would go on
    weights.write_probe(model, tokenizer, encoded[0]["input_ids"][:64], target)
    result: dict[str, Any] = {
        "objective": after.get("loss", output.training_loss),
        "train_loss": output.training_loss,
        "before": scorer.scores.get(0, {}),
        "best": scorer.best(),
        "after": after,
        "steps": trainer.state.global_step,
        "tokens": trainer.all_tokens(),
        "train_seconds": reporter.seconds,
        **peaks.result(),
        "trained_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trainable(model).values()),
        "truncated": vars(encoded.truncation),
    }
    heartbeat.stop()  # a dashboard takes its time
    if rank == 0:
        files.write_json(folder / "result.json", result)
        loss_plot.draw_loss(folder, plan.headline(config))
        if config.tracker.upload:
            tracker.upload(target)
        scores = {
            f"{when}/{name}": value for when in ("before", "best", "after") for name, value in result[when].items()
        }
        tracker.finish({"objective": result["objective"], **scores, **{name: result[name] for name in SUMMARY}})
        _close(screen, folder, result, seconds)


def _examples(config: Config, tokenizer: Any, screen: Screen) -> tuple[Examples, list[int], cache.Encoded]:
    """The run's training items, the tokens of each, and the encoded records behind them."""

    def encoding(done: int, total: int) -> None:
        if screen.name != "encoding":
            screen.phase("encoding", total)
        screen.advance(done - screen.completed)

    first_here = int(os.environ["LOCAL_RANK"]) == 0
    encoded = cache.training(config.data, config.seed, tokenizer, first_here, encoding)
    for note in encoded.notes:
        screen.say(note)
    if encoded.truncation.records:
        screen.say(f"data.max_length={config.data.max_length}: {encoded.truncation}")
    pad = int(tokenizer.pad_token_id)
    if not config.data.packing:
        return Examples(encoded, pad), encoded.lengths, encoded
    bins = pack(encoded.lengths, config.data.max_length)
    screen.say(fill(encoded.lengths, bins, config.data.max_length))
    return Examples(encoded, pad, bins), [sum(encoded.lengths[i] for i in members) for members in bins], encoded


def _compare_hosts(config: Config) -> None:
    """Refuse to train where a rank has another config, or other code, than rank 0."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (f"rank {dist.get_rank()} ({consistency.host()})", consistency.of_run(config)))
    consistency.check(found)


def _beat_at_each_pass(model: torch.nn.Module) -> None:
    """Every pass through the model is a sign of life, in training and in scoring."""
    inner = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    inner.register_forward_pre_hook(lambda *_: heartbeat.beat())


def _say_targets(model: Any, config: Config, screen: Screen) -> None:
    """Say which layers were meant, where ``lora.target_modules`` has the names of the published layout."""
    if not isinstance(model, peft.PeftModel) or config.lora.target_modules == ["all-linear"]:
        return
    native, asked = set(model.peft_config["default"].target_modules), set(config.lora.target_modules)
    if native != asked:
        renamed, found = ", ".join(sorted(asked - native)), ", ".join(sorted(native - asked))
        screen.say(f"lora.target_modules: {renamed} of the published layout is {found} here")


def _close(screen: Screen, folder: Path, result: dict[str, Any], seconds: float) -> None:
    """The closing table, and what to type next."""
    before, after = result["before"], result["after"]
    rows = [
        [f"held-out {name.replace('_', ' ')}", _shown(name, before[name]), _shown(name, after[name])] for name in after
    ]
    best = result["best"]
    if best.get("step") not in (None, 0, result["steps"]):
        rows.insert(1, [f"lowest, at step {best['step']:,}", "", f"{best['loss']:.3f}"])
    speed = result["tokens"] / result["train_seconds"]
    rows += [
        ["training loss", "", f"{result['train_loss']:.3f}"],
        ["steps", "", f"{result['steps']:,}"],
        ["tokens/s", "", f"{speed:,.0f}"],
        *_peaks(result),
        ["trained parameters", "", f"{result['trained_parameters']:,}"],
        ["time", "", f"{seconds:.0f} s"],
    ]
    screen.progress.stop()
    screen.table(str(folder), ["", "before", "after"], rows)
    screen.say(f'try it: python infer.py run={_short(folder)} prompt="…"')


def _peaks(result: dict[str, Any]) -> list[list[str]]:
    """Rows of memory: of training and of scoring where a card tells them apart."""
    training, scoring = result["peak_memory_bytes"], result["peak_memory_scoring_bytes"]
    if result["peak_memory_loading_bytes"] is None:
        return [["resident memory a rank", "", f"{training / 2**30:.2f} GiB"]]
    rows = [["peak memory a rank", "", f"{training / 2**30:.2f} GiB"]]
    return rows + ([["… while scored", "", f"{scoring / 2**30:.2f} GiB"]] if scoring else [])


def _shown(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "loss" else f"{value:.1%}"


def _short(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
