"""Train: python train.py [group=option …] [key=value …]. See python train.py --help, and conf/."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from omegaconf import DictConfig

    from hydraft import checks, cli, hardware, launch, plan, prepare, rundir
    from hydraft.choices import Mode
    from hydraft.config import Config
    from hydraft.data import sources
    from hydraft.plan import tokens
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed here: run make setup, then .venv/bin/python train.py")


def train(composed: DictConfig) -> float | None:
    """One job: check it, price it, give it ranks. Returns the objective that a sweep compares."""
    machine, asked = hardware.detect(), cli.typed(composed, Config)
    planned_for = plan.planned_for(asked, machine)
    config = plan.resolve(asked, planned_for)
    checks.check(config, machine)
    prepare.check(config.model)
    records = sources.training(config.data, config.seed)
    sources.held_out(config.data)
    priced = plan.make_plan(config, len(records), planned_for, tokens.measure(records, config.data))
    if config.mode is Mode.plan:
        plan.report(config, priced, checks.refused_here(config, machine))
        return None
    if config.mode is Mode.preview:
        importlib.import_module("hydraft.preview").show(config)  # torch, only here
        return None
    folder = cli.output_folder()
    rundir.check_free(folder)
    prepare.native(config.model, config.seed)  # the ranks find it done
    rundir.create(folder, config, priced, machine)
    plan.show(config, priced)
    return launch.run(config, folder)


if __name__ == "__main__":
    cli.exit_with(cli.run(train, "train"))
