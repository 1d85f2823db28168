"""Prints a plan: bars and a table of memory, and one line for each other figure. No torch."""

import sys
from collections.abc import Callable
from contextvars import ContextVar

from rich.table import Table
from rich.text import Text

from hydraft.config.schema import Config
from hydraft.plan.memory_parts import Parts, size
from hydraft.plan.plan import Cost, Plan, headline
from hydraft.system.plain_console import PlainConsole

STYLES = {  # a glyph, for terminals without colour
    "weights": ("█", "blue", "frozen weights"),
    "adapter": ("▓", "cyan", "adapter"),
    "gradients": ("▒", "magenta", "gradients"),
    "optimizer": ("▚", "yellow", "optimizer"),
    "activations": ("▤", "green", "activations"),
    "logits": ("▥", "bright_green", "logits"),
    "cache": ("◫", "bright_cyan", "KV cache"),
    "buffers": ("░", "red", "buffers"),
    "overhead": ("·", "bright_black", "driver and libraries"),
}
WIDTH, BESIDE = 48, 32
"""Columns of a bar, on a terminal that has them, and of what stands beside it."""

listener: ContextVar[Callable[[Config, Plan, list[str]], None] | None] = ContextVar("listener", default=None)
"""Gets what ``report`` prints, in a process that shows plans in another way too."""


def announce(config: Config, plan: Plan, console: PlainConsole | None = None) -> None:
    """Print the summary of a run before it starts: its headline, the batch arithmetic and its memory."""
    console = console or _console()
    _say(console, headline(config))
    _say(console, batch(config, plan))
    if plan.cost is not None:
        _say(console, f"{parameters(plan.cost)} · about {_peak(config, plan)}")
    if plan.without is not None:
        _say(console, recomputation(plan))
    if shows_other_processes(plan):
        _say(console, other_processes(plan))
    if plan.fits is False:
        _say(console, verdict(plan), style="red")


def report(config: Config, plan: Plan, refused: list[str], console: PlainConsole | None = None) -> None:
    """Print the whole plan, for ``mode=plan``."""
    console = console or _console()
    if (hears := listener.get()) is not None:
        hears(config, plan, refused)
    _say(console, headline(config), style="bold")
    _say(console, batch(config, plan))
    if plan.cost is None:
        _say(
            console,
            f"memory is not planned: the shape of {config.model.path} is unknown, or its architecture is not supported",
        )
    else:
        where = f" (r {config.lora.r} on {', '.join(plan.cost.targets)})" if plan.cost.targets else ""
        _say(console, parameters(plan.cost) + where)
        console.print()
        console.print(_bars(config, plan, plan.cost, max(10, min(WIDTH, console.width - BESIDE))))
        console.print(_table(config, plan, plan.cost))
        _say(console, _startup(plan.cost))
        if plan.flops is not None:
            _say(console, f"computation: at most about {plan.flops / 1e12:,.2g} TFLOP per step")
        _say(console, _network(config, plan.cost))
        _say(console, _disk(plan.cost))
        if config.zero.swaps:
            _say(console, _swap(config, plan.cost))
        if plan.without is not None:
            _say(console, recomputation(plan))
        if shows_other_processes(plan):
            _say(console, other_processes(plan))
        _say(console, verdict(plan), style="bold red" if plan.fits is False else "bold green")
    for message in refused:
        _say(console, f"refused here: {message}", style="yellow")


def batch(config: Config, plan: Plan) -> str:
    """The batch arithmetic as a line."""
    train = config.train
    ranks = f"{config.world_size} rank{'s' if config.world_size > 1 else ''}"
    line = (
        f"{plan.records:,} records · batch {train.micro_batch_size} x {train.gradient_accumulation_steps} "
        f"accumulated x {ranks} = {plan.global_batch_size} · {plan.steps:,} steps, {plan.epochs:.3g} epochs"
    )
    return line if plan.tokens is None else f"{line} of about {_rounded(plan.tokens)} tokens"


def parameters(cost: Cost) -> str:
    """The numbers of all and of trained parameters."""
    routed = f" ({cost.active:,} compute a token)" if cost.active < cost.parameters else ""
    return f"{cost.trained:,} of {cost.parameters:,} parameters{routed} trained, {cost.trained / cost.parameters:.2%}"


def verdict(plan: Plan) -> str:
    """Whether the run fits, and what to change if not."""
    if plan.fits is None:
        return "unknown whether it fits: cluster.gpu_memory=24GiB, for example, plans for GPUs of that size"
    if plan.fits:
        return "fits"
    if plan.change is None:
        return (
            "does not fit, not even with the changes that were tried (batch, recomputation, quant, zero, GPUs, length)"
        )
    change, on_gpu = plan.change, plan.gpu_memory is not None
    held = f"{size(change.peak)} per GPU, " if on_gpu else ""
    held += f"{size(change.host_peak)} of main memory per rank"
    slower = f"; a step takes about {change.slowdown:.1f} times as long" if change.slowdown > 1 else ""
    return f"does not fit; the cheapest change: {' '.join(change.overrides)} ({held}{slower})"


def recomputation(plan: Plan) -> str:
    """The memory of a run that recomputes activations if it did not."""
    assert plan.without is not None
    available = plan.host_memory if plan.gpu_memory is None else plan.gpu_memory
    what = "of main memory" if plan.gpu_memory is None else "per GPU"
    return f"recomputes activations: {size(plan.without)} {what} without" + (
        f", of {size(available)}" if available else ""
    )


def shows_other_processes(plan: Plan) -> bool:
    """Whether to show the memory that other processes use: if the run does not fit, or they use a twentieth of a GPU."""
    whole = (plan.gpu_memory or 0) + plan.gpu_taken
    return plan.gpu_taken > 0 and (plan.fits is False or 20 * plan.gpu_taken >= whole)


def other_processes(plan: Plan) -> str:
    """The memory that other processes use on the GPU with the least available memory."""
    whole = (plan.gpu_memory or 0) + plan.gpu_taken
    return f"other processes use {size(plan.gpu_taken)} of {size(whole)} of a GPU (nvidia-smi lists them)"


def _peak(config: Config, plan: Plan) -> str:
    assert plan.cost is not None
    memory, ranks = plan.cost.memory, config.cluster.ranks_here
    if plan.gpu_memory is None:
        return f"{size(memory.host_peak * ranks)} of {size(plan.host_memory)} of main memory"
    of = f" of {size(plan.gpu_memory)}" if plan.gpu_memory else ""
    return f"{size(memory.peak)}{of} per GPU, {size(memory.host_peak * ranks)} of main memory per machine"


def phases(config: Config, plan: Plan, cost: Cost) -> dict[str, Parts]:
    """The columns: per GPU, or per machine on CPUs; scoring is one if there are held-out records."""
    memory, ranks = cost.memory, config.cluster.ranks_here
    if plan.gpu_memory is not None:
        found = {"loading": memory.loading, "training": memory.training, "scoring": memory.scoring}
    else:
        host = {"loading": memory.host_loading, "training": memory.host_training, "scoring": memory.host_scoring}
        found = {name: parts.times(ranks) for name, parts in host.items()}
    return {name: parts for name, parts in found.items() if name != "scoring" or parts.total}


def _bars(config: Config, plan: Plan, cost: Cost, width: int) -> Table:
    """A stacked bar per phase, with a mark at the available memory."""
    available = plan.host_memory if plan.gpu_memory is None else plan.gpu_memory
    bars = phases(config, plan, cost)
    scale = max(available, *(parts.total for parts in bars.values())) / width
    grid = Table.grid(padding=(0, 1))
    for name, parts in bars.items():
        bar = Text()
        done = 0.0
        for part, count in parts.to_dict().items():
            glyph, colour, _ = STYLES[part]
            columns = round((done + count) / scale) - round(done / scale)
            bar.append(glyph * columns, style=colour)
            done += count
        bar.append(" " * (width - len(bar)))
        if 0 < available < done:
            edge = round(available / scale)
            bar = bar[:edge] + Text("│", style="bold red") + bar[edge + 1 :]
        of = f" of {size(available)}" if available else ""
        grid.add_row(f"{name}", Text("▕") + bar + Text("▏"), f"{size(parts.total)}{of}")
    return grid


def _table(config: Config, plan: Plan, cost: Cost) -> Table:
    """A table of memory by purpose."""
    on_gpu, ranks = plan.gpu_memory is not None, config.cluster.ranks_here
    table = Table(title="memory per GPU" if on_gpu else "main memory", title_justify="left", show_footer=True)
    columns = dict(phases(config, plan, cost))
    if on_gpu:
        larger = max(cost.memory.host_loading, cost.memory.host_training, key=lambda parts: parts.total)
        columns["main memory per machine"] = larger.times(ranks)
    table.add_column("", footer="total")
    for name, parts in columns.items():
        table.add_column(name, justify="right", footer=size(parts.total))
    for part, (glyph, colour, label) in STYLES.items():
        if part == "weights" and not cost.targets:
            label = "weights"
        values = [parts.to_dict()[part] for parts in columns.values()]
        if any(values):
            table.add_row(Text(f"{glyph} ", style=colour) + Text(label, style="default"), *map(size, values))
    return table


def _startup(cost: Cost) -> str:
    start = cost.startup
    later = start.read_later < start.read
    read = f"{size(start.read)}" + (f" ({size(start.read_later)} from the second start on)" if later else "")
    sent = f", each rank sends {size(start.sent)}" if start.sent else ""
    seconds = f"about {duration(start.seconds)}" + (f" ({duration(start.seconds_later)})" if later else "")
    return f"start: each machine reads {read} of weights{sent}; {seconds}"


def duration(seconds: float) -> str:
    """Seconds rounded, with a unit."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min"


def _network(config: Config, cost: Cost) -> str:
    if config.world_size == 1:
        return "network: a single rank sends nothing"
    parts = f"gradients {size(cost.network.gradients)}, weights {size(cost.network.weights)}"
    line = f"network: each rank sends {size(cost.network.total)} per step ({parts})"
    if config.cluster.nodes == 1:
        return line
    between = f"gradients {size(cost.network.between_gradients)}, weights {size(cost.network.between_weights)}"
    return f"{line}; each machine sends {size(cost.network.between)} to others ({between})"


def _disk(cost: Cost) -> str:
    disk = cost.disk
    many = f"{disk.checkpoints} checkpoints" if disk.checkpoints > 1 else "a checkpoint"
    many += f" of {size(disk.checkpoint)}"
    many += f", at most {size(disk.best)} of the best evaluations' weights" if disk.best else ""
    base = f"; the base in the cache, once, {size(disk.base)}" if disk.base else ""
    base += f"; its quantised copy, once, {size(disk.quantised)}" if disk.quantised else ""
    return f"disk: {size(disk.weights)} of weights, {many}{base}"


def _swap(config: Config, cost: Cost) -> str:
    found, ranks = cost.disk.swap, config.cluster.ranks_here
    parts = f"weights {size(found.weights * ranks)}, optimizer {size(found.optimizer * ranks)}"
    return (
        f"swap files: {size(found.total * ranks)} in {config.zero.nvme_path} of each machine ({parts}), {size(found.total)} for each of its "
        f"{ranks} ranks, with buffers of {size(found.buffers)} in main memory"
    )


def _rounded(count: int) -> str:
    """Rounded to two digits, since it is an estimate."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"


def _console() -> PlainConsole:
    return PlainConsole(file=sys.stdout, highlight=False)


def _say(console: PlainConsole, line: str, style: str | None = None) -> None:
    console.say(line, style)
