"""``hydraft <command>`` or ``python -m hydraft <command>``: training, inference, and the commands beside them, imported when called."""

import os
import re
import runpy
import sys
from importlib import import_module
from importlib.util import find_spec

from hydraft.errors import EXIT_REFUSED
from hydraft.system import program, streams
from hydraft.system.source_tree import ROOT

SCRIPTS = {
    "train": ((), "fine-tune a model: what python train.py does"),
    "infer": ((), "use a trained model: what python infer.py does"),
    "plan": (("mode=plan",), "what a run would cost, without starting it: train mode=plan"),
    "sweep": (("-m",), "many runs, of every combination of the values: train -m key=a,b …"),
}
"""By command: arguments that it adds to those typed, and a line of help. The script is that of its name, or train.py."""

COMMANDS = {
    "report": ("hydraft.sweep.results.report", "table, summary.csv and report.html of a sweep: [multirun/…]"),
    "answers": (
        "hydraft.evaluation.answers_command",
        "answers to held-out records, of one run or two: RUN [RUN2] [--before] [--differ]",
    ),
    "trace": ("hydraft.runs.trace_command", "open the trace of train.profile in a browser: RUN"),
    "convert": (
        "hydraft.models.convert.convert",
        "convert a published checkpoint that needs remote code to a native one: SRC DST",
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
    "ops": ("hydraft.training.deepspeed_ops", "build the DeepSpeed ops that this machine can use: [nvme]"),
}
"""By name: the module whose ``main`` takes the arguments and returns the exit code, and a line of help."""

WANDB = "--wandb"
"""Of ``sweep``: prints a search space as a sweep of wandb."""

WRITING = (["convert"], ["report"], ["ops"])
"""Commands whose result is files, not what they print."""

NEEDED = ("hydra", "omegaconf", "rich", "torch", "transformers", "peft")
"""Packages without which neither script answers."""

RANK = re.compile(r"--local[-_]rank=\d+")
"""What deepspeed puts before the other arguments."""


def main(arguments: list[str]) -> int:
    """Run a command.

    Returns:
        Its exit code; 2 for an unknown one.
    """
    if arguments and RANK.fullmatch(arguments[0]):
        arguments = [*arguments[1:2], arguments[0], *arguments[2:]]
    name = arguments[0] if arguments else "--help"
    if name == "sweep" and WANDB in arguments:
        code = import_module("hydraft.sweep.wandb_sweep").main([one for one in arguments[1:] if one != WANDB])
        return int(code)
    if name == "sweep" and not _is_sweep(arguments[1:]):
        print("hydraft sweep: without key=a,b this is hydraft report", file=sys.stderr)
        name = "report"
    if name in SCRIPTS:
        return _script(name, arguments[1:])
    if name in COMMANDS:
        code = import_module(COMMANDS[name][0]).main(arguments[1:])
        return int(code)
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    there = ", ".join([*SCRIPTS, *COMMANDS])
    if "=" in name:
        print(f"hydraft: {name}: is a setting; type hydraft train {name}", file=sys.stderr)
    else:
        print(f"hydraft: no command {name!r} (there are: {there})", file=sys.stderr)
    return EXIT_REFUSED


def _usage() -> str:
    helps = {name: text for commands in (SCRIPTS, COMMANDS) for name, (_, text) in commands.items()}
    lines = [f"  {command:10} {text}" for command, text in helps.items()]
    return "\n".join(["usage: hydraft <command> [arguments]", *lines, "More on a run: hydraft train --help."])


def _is_sweep(arguments: list[str]) -> bool:
    """Whether the arguments of ``hydraft sweep`` are settings or flags, and not the folder of a sweep."""
    return any("=" in argument or argument.startswith(("-", "~")) for argument in arguments)


def _script(name: str, arguments: list[str]) -> int:
    """Run train.py or infer.py as ``python`` does: in its own ``__main__``, which a sweep's jobs and ranks find again."""
    added = SCRIPTS[name][0]
    if name == "plan" and any(argument.startswith("mode=") for argument in arguments):
        print("hydraft plan: is mode=plan: leave mode= out, or type hydraft train", file=sys.stderr)
        return EXIT_REFUSED
    if missing := next((one for one in NEEDED if find_spec(one) is None), None):
        print(f"hydraft: {missing} is not installed here: {program.with_packages()}", file=sys.stderr)
        return EXIT_REFUSED
    helped = {"-h", "--help"} & set(arguments)
    kept = [argument for argument in arguments if argument not in ("-m", "--multirun")] if "-m" in added else arguments
    script = ROOT / ("infer.py" if name == "infer" else "train.py")
    sys.argv = [str(script), *(() if helped else added), *kept]
    runpy.run_path(str(script), run_name="__main__")
    return 0  # not reached: the script exits


def command(as_module: bool = False) -> None:
    """The console script."""
    program.begin(as_module)
    streams.guard()
    if sys.argv[1:2] in WRITING:
        streams.go_on()
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # noqa: PTH109
        del sys.path[0]  # python -m looks for modules in the working directory first, whoever put them there
    command(as_module=True)
