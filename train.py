"""Train: python train.py [group=option …] [key=value …]. See python train.py --help, and conf/."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from omegaconf import DictConfig

    from hydraft import checks, cli, launch, plan, prepare, rundir
    from hydraft.choices import Mode
    from hydraft.config import Config
    from hydraft.data import sources
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed here: run make setup, then .venv/bin/python train.py")


def train(composed: DictConfig) -> float | None:
    """One job: check it, price it, give it ranks. Returns the objective that a sweep compares."""
    config = cli.typed(composed, Config)
    machine = launch.machine(config)
    config = plan.resolve(config, machine)
    checks.check(config, machine)
    if not config.cluster.on_hosts:  # an agent asks this of its own host
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
    folder = cli.output_folder()
    rundir.check_free(folder)
    if config.cluster.on_hosts:
        config = launch.placed(config)
    else:
        prepare.native(config.model, config.seed)  # the ranks find it done
    rundir.create(folder, config, priced, machine)
    plan.show(config, priced)
    return launch.run(config, folder)


if __name__ == "__main__":
    cli.exit_with(cli.run(train, "train"))
