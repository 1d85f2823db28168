"""A plan on the screen: bars and one table of memory, and a line for everything else. No torch."""

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hydraft.config.choices import QuantKind
from hydraft.config.schema import Config
from hydraft.plan.memory_parts import Parts, size
from hydraft.plan.plan import Cost, Plan, headline

LOOKS = {  # a glyph for where there is no colour
    "weights": ("█", "blue", "frozen weights"),
    "adapter": ("▓", "cyan", "adapter"),
    "gradients": ("▒", "magenta", "gradients"),
    "optimizer": ("▚", "yellow", "optimizer"),
    "activations": ("▤", "green", "activations"),
    "logits": ("▥", "bright_green", "logits"),
    "cache": ("◫", "bright_cyan", "cache of answers"),
    "buffers": ("░", "red", "buffers"),
    "overhead": ("·", "bright_black", "driver and libraries"),
}
WIDTH = 48
"""Columns of a bar."""


def announce(config: Config, plan: Plan, console: Console | None = None) -> None:
    """What stands above a run: its line, the batch arithmetic, and its memory in short."""
    console = console or _console()
    _say(console, headline(config))
    _say(console, batch(config, plan))
    if plan.cost is not None:
        _say(console, f"{parameters(plan.cost)} · about {_peak(config, plan)}")
    if plan.without is not None:
        _say(console, recomputation(plan))
    if matters(plan):
        _say(console, taken(plan))
    if plan.fits is False:
        _say(console, verdict(plan), style="red")


def report(config: Config, plan: Plan, refused: list[str], console: Console | None = None) -> None:
    """All of it, for ``mode=plan``."""
    console = console or _console()
    _say(console, headline(config), style="bold")
    _say(console, batch(config, plan))
    if plan.cost is None:
        _say(
            console,
            f"memory is not planned: nothing here says what shape {config.model.path} has, or its architecture is not known",
        )
    else:
        where = f" (r {config.lora.r} on {', '.join(plan.cost.targets)})" if plan.cost.targets else ""
        _say(console, parameters(plan.cost) + where)
        console.print()
        console.print(_bars(config, plan, plan.cost))
        console.print(_table(config, plan, plan.cost))
        if config.zero.stage == 3 and config.quant.kind is not QuantKind.none:
            _say(console, "loading: quantised weights are whole on every rank until ZeRO-3 has sharded them")
        _say(console, _network(config, plan.cost))
        _say(console, _disk(plan.cost))
        if plan.without is not None:
            _say(console, recomputation(plan))
        if matters(plan):
            _say(console, taken(plan))
        _say(console, verdict(plan), style="bold red" if plan.fits is False else "bold green")
    for message in refused:
        _say(console, f"refused here: {message}", style="yellow")


def batch(config: Config, plan: Plan) -> str:
    """The batch arithmetic in a line."""
    train = config.train
    ranks = f"{config.world_size} rank{'s' if config.world_size > 1 else ''}"
    line = (
        f"{plan.records:,} records · batch {train.micro_batch_size} x {train.gradient_accumulation_steps} "
        f"accumulated x {ranks} = {plan.global_batch_size} · {plan.steps:,} steps, {plan.epochs:.3g} epochs"
    )
    return line if plan.tokens is None else f"{line} of about {_rounded(plan.tokens)} tokens"


def parameters(cost: Cost) -> str:
    """How many parameters there are, and how many learn."""
    return f"{cost.trained:,} of {cost.parameters:,} parameters trained, {cost.trained / cost.parameters:.2%}"


def verdict(plan: Plan) -> str:
    """Whether it fits, and what to change."""
    if plan.fits is None:
        return "nothing known to hold it against: cluster.gpu_memory=24GiB, say, plans for such cards"
    if plan.fits:
        return "fits"
    if plan.change is None:
        return "does not fit, and no change of batch, recomputation, quant, zero, cards or length that was tried makes it fit"
    change, cards = plan.change, plan.gpu_memory is not None
    held = f"{size(change.peak)} a card, " if cards else ""
    held += f"{size(change.host_peak)} of main memory a rank"
    slower = f"; a step takes some {change.slowdown:.1f} times as long" if change.slowdown > 1 else ""
    return f"does not fit; the cheapest change: {' '.join(change.overrides)} ({held}{slower})"


def recomputation(plan: Plan) -> str:
    """What a run that recomputes activations would take if it did not."""
    assert plan.without is not None
    there = plan.host_memory if plan.gpu_memory is None else plan.gpu_memory
    what = "of main memory" if plan.gpu_memory is None else "a card"
    return f"recomputes activations: {size(plan.without)} {what} without" + (f", of {size(there)}" if there else "")


def matters(plan: Plan) -> bool:
    """Whether what other processes have of a card is worth a line: where the run does not fit, or they have a twentieth."""
    whole = (plan.gpu_memory or 0) + plan.gpu_taken
    return plan.gpu_taken > 0 and (plan.fits is False or 20 * plan.gpu_taken >= whole)


def taken(plan: Plan) -> str:
    """What other processes have of the card that a run is held against."""
    whole = (plan.gpu_memory or 0) + plan.gpu_taken
    return f"{size(plan.gpu_taken)} of {size(whole)} of a card are in use by other processes (nvidia-smi names them)"


def _peak(config: Config, plan: Plan) -> str:
    assert plan.cost is not None
    memory, ranks = plan.cost.memory, config.cluster.ranks_per_node
    if plan.gpu_memory is None:
        return f"{size(memory.host_peak * ranks)} of {size(plan.host_memory)} of main memory"
    of = f" of {size(plan.gpu_memory)}" if plan.gpu_memory else ""
    return f"{size(memory.peak)}{of} a card, {size(memory.host_peak * ranks)} of main memory a machine"


def _moments(config: Config, plan: Plan, cost: Cost) -> dict[str, Parts]:
    """The columns: a card's, or on a CPU a machine's; scoring is one where there are held-out records."""
    memory, ranks = cost.memory, config.cluster.ranks_per_node
    if plan.gpu_memory is not None:
        found = {"loading": memory.loading, "training": memory.training, "scoring": memory.scoring}
    else:
        host = {"loading": memory.host_loading, "training": memory.host_training, "scoring": memory.host_scoring}
        found = {name: parts.times(ranks) for name, parts in host.items()}
    return {name: parts for name, parts in found.items() if name != "scoring" or parts.total}


def _bars(config: Config, plan: Plan, cost: Cost) -> Table:
    """A stacked bar a moment, beside what there is."""
    there = plan.host_memory if plan.gpu_memory is None else plan.gpu_memory
    moments = _moments(config, plan, cost)
    scale = max(there, *(parts.total for parts in moments.values())) / WIDTH
    grid = Table.grid(padding=(0, 1))
    for name, parts in moments.items():
        bar = Text()
        done = 0.0
        for part, count in parts.to_dict().items():
            glyph, colour, _ = LOOKS[part]
            columns = round((done + count) / scale) - round(done / scale)
            bar.append(glyph * columns, style=colour)
            done += count
        bar.append(" " * (WIDTH - len(bar)))
        if 0 < there < done:
            edge = round(there / scale)
            bar = bar[:edge] + Text("│", style="bold red") + bar[edge + 1 :]
        of = f" of {size(there)}" if there else ""
        grid.add_row(f"{name}", Text("▕") + bar + Text("▏"), f"{size(parts.total)}{of}")
    return grid


def _table(config: Config, plan: Plan, cost: Cost) -> Table:
    """Memory by what it is for."""
    on_gpu, ranks = plan.gpu_memory is not None, config.cluster.ranks_per_node
    table = Table(title="memory of a card" if on_gpu else "main memory", title_justify="left", show_footer=True)
    columns = dict(_moments(config, plan, cost))
    if on_gpu:
        larger = max(cost.memory.host_loading, cost.memory.host_training, key=lambda parts: parts.total)
        columns["main memory a machine"] = larger.times(ranks)
    table.add_column("", footer="total")
    for name, parts in columns.items():
        table.add_column(name, justify="right", footer=size(parts.total))
    for part, (glyph, colour, label) in LOOKS.items():
        if part == "weights" and not cost.targets:
            label = "weights"
        values = [parts.to_dict()[part] for parts in columns.values()]
        if any(values):
            table.add_row(Text(f"{glyph} ", style=colour) + Text(label, style="default"), *map(size, values))
    return table


def _network(config: Config, cost: Cost) -> str:
    if config.world_size == 1:
        return "network: one rank sends nothing"
    parts = f"gradients {size(cost.network.gradients)}, weights {size(cost.network.weights)}"
    return f"network: each rank sends {size(cost.network.total)} a step ({parts})"


def _disk(cost: Cost) -> str:
    disk = cost.disk
    many = f"{disk.checkpoints} checkpoints" if disk.checkpoints > 1 else "a checkpoint"
    base = f"; the base in the cache, once, {size(disk.base)}" if disk.base else ""
    return f"disk: {size(disk.weights)} of weights, {many} of {size(disk.checkpoint)}{base}"


def _rounded(count: int) -> str:
    """Two figures: an estimate has no more."""
    digits = max(0, len(str(count)) - 2)
    return f"{round(count, -digits):,}"


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False)


def _say(console: Console, line: str, style: str | None = None) -> None:
    console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
