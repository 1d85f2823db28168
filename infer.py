"""Inference with a trained model: python infer.py run=outputs/… prompt="…". See python infer.py --help."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from hydraft.system import streams

    streams.guard()

    from omegaconf import DictConfig

    from hydraft.config import cli, infer_rules
    from hydraft.config.choices import InferMode
    from hydraft.config.infer import InferConfig
    from hydraft.infer.resolve import find
    from hydraft.system import deferred_compile, hardware, wrapping
    from hydraft.system.imports import import_large
    from hydraft.training import deepspeed_ops
except ModuleNotFoundError as error:
    sys.exit(f"infer.py: {error.name} is not installed here: run make setup, then .venv/bin/python infer.py")

MODULES = {
    InferMode.generate: "hydraft.infer.generate",
    InferMode.chat: "hydraft.infer.chat",
    InferMode.batch: "hydraft.infer.batch.run",
    InferMode.serve: "hydraft.infer.serve.run",
    InferMode.export: "hydraft.infer.export.run",
    InferMode.verify: "hydraft.infer.verify.run",
    InferMode.evaluate: "hydraft.infer.evaluate.run",
}
"""The module of each mode; its ``run`` gets the sources and the options."""

GO_ON = (InferMode.batch, InferMode.serve, InferMode.export, InferMode.evaluate)
"""Modes whose result is not what they print."""


def infer(composed: DictConfig) -> None:
    """Check the options, find the models, and run the module of the mode."""
    options = cli.typed(composed, InferConfig)
    infer_rules.check(options)
    if options.mode in GO_ON:
        streams.go_on()
    machine = hardware.detect()
    infer_rules.usable(options, machine)
    sources = find(options)
    for line in (*cli.local_settings(), *(line for source in sources for line in source.chosen)):
        wrapping.say(f"notice: {line}", sys.stderr)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads must not spin
    os.environ.update(deepspeed_ops.environment(machine))
    deferred_compile.prepare()
    import_large(MODULES[options.mode]).run(sources, options)  # imports torch


if __name__ == "__main__":
    cli.exit_with(cli.run(infer, "infer"))
