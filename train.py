"""Train: python train.py [group=option …] [key=value …]. See python train.py --help, and conf/."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from omegaconf import DictConfig

    from hydraft import checks, cli, hardware, launch, plan, prepare, resume, rundir
    from hydraft.choices import Mode
    from hydraft.config import Config
    from hydraft.data import sources
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed here: run make setup, then .venv/bin/python train.py")


def train(composed: DictConfig) -> float | None:
    """One job: check it, price it, give it ranks. Returns the objective that a sweep compares."""
    machine = hardware.detect()
    changes: list[str] = []
    if composed.resume is None:
        config, folder = plan.resolve(cli.typed(composed, Config), machine), cli.output_folder()
    else:
        config, folder, changes = resume.continued(composed, cli.overrides(), machine)
    checks.check(config, machine)
    prepare.check(config.model)
    records = len(sources.training(config.data, config.seed))
    sources.held_out(config.data)
    priced = plan.make_plan(config, records)
    if config.mode is Mode.plan:
        plan.show(config, priced)
        return None
    if config.mode is Mode.preview:
        importlib.import_module("hydraft.preview").show(config)  # torch, only here
        return None
    begun = composed.resume is not None or resume.same(config, folder)
    if begun and rundir.status(folder) == "completed" and not changes:
        print(f"{folder}: has run to its end; nothing is left to do")
        return rundir.objective(folder)
    prepare.native(config.model, config.seed)  # the ranks find it done
    (rundir.describe if begun else rundir.create)(folder, config, priced, machine)
    plan.show(config, priced)
    for change in changes:
        print(f"changed: {change}")
    return launch.run(config, folder)


if __name__ == "__main__":
    cli.exit_with(cli.run(train, "train"))
