"""A rank: reads the run's config.yaml, trains, and (rank 0) writes what came of it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
import transformers
from transformers import TrainerCallback

from hydraft import checkpoint, metrics, plan, report, rundir
from hydraft.config import Config, Save, load_config
from hydraft.data.batch import Examples
from hydraft.data.encode import Example, encode
from hydraft.data.formats import Record, load_records
from hydraft.models.load import load_tokenizer, load_trainable, trainable
from hydraft.progress import Screen
from hydraft.reporter import Reporter
from hydraft.track import make_tracker
from hydraft.trainer import RunTrainer, training_arguments


def main(folder: Path, terminal: int) -> None:
    """Run this rank of the run in ``folder``. ``terminal`` is the file descriptor a person looks at."""
    config = load_config(folder / "config.yaml")
    rank, local_ranks = int(os.environ["RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_ranks))
    transformers.logging.disable_progress_bar()
    with Screen(terminal, visible=rank == 0) as screen:
        _train(config, folder, screen)
    dist.destroy_process_group()


class _ScoreFirst(TrainerCallback):
    """Scores the untouched model once the engine is there (under ZeRO-3 nothing can run before)."""

    def __init__(self, score: Callable[[str, int], metrics.Scores]) -> None:
        self.score = score
        self.scores: metrics.Scores = {}

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.scores = self.score("before training", 0)


def _train(config: Config, folder: Path, screen: Screen) -> None:
    started = time.perf_counter()
    screen.phase("starting")
    arguments = training_arguments(config, folder)  # before the model: ZeRO-3 shards it as it loads
    rank = dist.get_rank()
    tokenizer = load_tokenizer(config.model)
    examples, cut = encode(load_records(config.data.train, "data.train"), tokenizer, config.data)
    if cut.records:
        screen.say(f"data.max_length={config.data.max_length}: {cut}")
    screen.phase("loading the model")
    model = load_trainable(config)
    trained = trainable(model)
    first = checkpoint.gather(model, trained) if config.lora.method.value == "pissa" else None
    tracker = make_tracker(config, folder, rank)

    held_out = (
        metrics.spread(load_records(config.data.eval, "data.eval"), config.data.eval_limit) if config.data.eval else []
    )
    held_out_examples, _ = encode(held_out, tokenizer, config.data)

    def save(target: Path, step: int) -> None:
        moved = step > 1 or config.train.warmup_ratio == 0
        checkpoint.save(model, tokenizer, target, moved, first)

    def save_epoch(step: int) -> None:
        save(folder / "checkpoints" / f"step-{step:06d}", step)

    reporter = Reporter(folder, rank, screen, tracker, save_epoch if config.train.save is Save.epoch else None)

    def score(when: str, step: int) -> metrics.Scores:
        scores = _score(model, tokenizer, held_out, held_out_examples, config, screen, f"scoring {when}")
        if scores:
            reporter.write(step, {f"eval_{name}": value for name, value in scores.items()})
        return scores

    before = _ScoreFirst(score)
    trainer = RunTrainer(
        config, model, Examples(examples, int(tokenizer.pad_token_id)), tokenizer, args=arguments,
        callbacks=[before, reporter],
    )  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    output = trainer.train()
    seconds = time.perf_counter() - started
    after = score("after training", trainer.state.global_step)
    screen.phase("saving")
    adapted = config.lora.method.value != "none"
    target = folder / ("adapter" if adapted else "model")
    save(target, trainer.state.global_step)
    checkpoint.write_probe(model, tokenizer, examples[0]["input_ids"][:64], target)
    tokens = trainer.all_tokens()
    peak = torch.tensor([_peak_memory()], device=arguments.device)
    dist.all_reduce(peak, op=dist.ReduceOp.MAX)
    if rank != 0:
        return
    result = {
        "objective": after.get("loss", output.training_loss),
        "train_loss": output.training_loss,
        "before": before.scores,
        "after": after,
        "steps": trainer.state.global_step,
        "tokens": tokens,
        "train_seconds": reporter.seconds,
        "peak_memory_bytes": int(peak),
        "trained_parameters": sum(getattr(p, "ds_numel", p.numel()) for p in trained.values()),
        "truncated": {"records": cut.records, "prompt_tokens": cut.prompt_tokens, "answer_tokens": cut.answer_tokens},
    }
    rundir.write_json(folder / "result.json", result)
    report.draw_loss(folder, plan.headline(config))
    tracker.finish({"objective": result["objective"], **{f"after/{k}": v for k, v in after.items()}})
    _close(screen, folder, result, seconds)


def _score(
    model: Any,
    tokenizer: Any,
    records: list[Record],
    examples: list[Example],
    config: Config,
    screen: Screen,
    name: str,
) -> metrics.Scores:
    """Held-out loss of all records, and scores of the answers to those that ask something."""
    if not records:
        return {}
    model.eval()
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    asked = [record for record in records if "text" not in record]
    screen.phase(name, len(asked))
    size = config.train.micro_batch_size
    scores = {"loss": metrics.held_out_loss(model, examples, tokenizer.pad_token_id, device, size)}
    if asked:
        predictions = metrics.answers(model, tokenizer, asked, config.data, device, screen.advance)
        scores |= metrics.score(asked, predictions)
    model.train()
    return scores


def _peak_memory() -> int:
    """Bytes: the card's peak with CUDA, otherwise this process's resident peak."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return int(psutil.Process().memory_info().rss)


def _close(screen: Screen, folder: Path, result: dict[str, Any], seconds: float) -> None:
    """The closing table, and what to type next."""
    before, after = result["before"], result["after"]
    rows = [
        [f"held-out {name.replace('_', ' ')}", _shown(name, before[name]), _shown(name, after[name])] for name in after
    ]
    speed = result["tokens"] / result["train_seconds"]
    rows += [
        ["training loss", "", f"{result['train_loss']:.3f}"],
        ["steps", "", f"{result['steps']:,}"],
        ["tokens/s", "", f"{speed:,.0f}"],
        ["peak memory a rank", "", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB"],
        ["trained parameters", "", f"{result['trained_parameters']:,}"],
        ["time", "", f"{seconds:.0f} s"],
    ]
    screen.progress.stop()
    screen.table(str(folder), ["", "before", "after"], rows)
    screen.say(f'try it: python infer.py run={_short(folder)} prompt="…"')


def _shown(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "loss" else f"{value:.1%}"


def _short(folder: Path) -> str:
    try:
        return str(folder.relative_to(Path.cwd()))
    except ValueError:
        return str(folder)
