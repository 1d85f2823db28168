"""``hydraft <command>`` or ``python -m hydraft <command>``: commands beside training and inference, each imported when it is called."""

import os
import sys
from importlib import import_module

from hydraft.errors import EXIT_REFUSED
from hydraft.system import streams

COMMANDS = {
    "convert": (
        "hydraft.models.convert.convert",
        "convert a published checkpoint that needs remote code to a native one: SRC DST",
    ),
    "sweep": (
        "hydraft.sweep.results.report",
        "table, summary.csv and report.html of a sweep: [multirun/…]; a search space as a sweep of wandb: --wandb sweep=…",
    ),
    "answers": (
        "hydraft.evaluation.answers_command",
        "answers to held-out records, of one run or two: RUN [RUN2] [--before] [--differ]",
    ),
    "workspace": ("hydraft.sweep.results.wandb_workspace", "wandb's own page for a sweep: multirun/… [entity]"),
    "settings": (
        "hydraft.config.markdown",
        "every setting with default, unit, bounds and meaning, as a Markdown page: [zh]",
    ),
    "kernels": ("hydraft.models.kernel_support", "which kernels work with which settings, as a Markdown table"),
    "board": (
        "hydraft.board.command",
        "a local page of all runs and sweeps, live: [FOLDER…] [--port N] [--api-key-file FILE]",
    ),
    "hardware": ("hydraft.system.hardware", "GPUs, cores and memory of this machine, as JSON"),
    "ops": ("hydraft.training.deepspeed_ops", "build the DeepSpeed ops that this machine can use"),
}
"""By name: the module whose ``main`` takes the arguments and returns the exit code, and a line of help."""

WANDB = "--wandb"
"""Of ``sweep``: prints a search space as a sweep of wandb."""

WRITING = (["convert"], ["sweep"], ["ops"])
"""Commands whose result is files, not what they print."""


def main(arguments: list[str]) -> int:
    """Run a command.

    Returns:
        Its exit code; 2 for an unknown one.
    """
    name = arguments[0] if arguments else "--help"
    if name == "sweep" and WANDB in arguments:
        code = import_module("hydraft.sweep.wandb_sweep").main([one for one in arguments[1:] if one != WANDB])
        return int(code)
    if name in COMMANDS:
        code = import_module(COMMANDS[name][0]).main(arguments[1:])
        return int(code)
    lines = [f"  {command:10} {help}" for command, (_, help) in COMMANDS.items()]
    usage = "\n".join(["usage: hydraft <command> [arguments]", *lines, "Training is train.py, inference is infer.py."])
    if name in ("-h", "--help"):
        print(usage)
        return 0
    print(f"hydraft: no command {name!r} (there are: {', '.join(COMMANDS)})", file=sys.stderr)
    return EXIT_REFUSED


def command() -> None:
    """The console script."""
    streams.guard()
    if sys.argv[1:2] in WRITING:
        streams.go_on()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # noqa: PTH109
        del sys.path[0]  # python -m looks for modules in the working directory first, whoever put them there
    command()
