"""Train: python train.py [group=option …] [key=value …]. See python train.py --help, and conf/."""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from omegaconf import DictConfig

    from hydraft import checks, cli, launch, plan, prepare, resume, rundir
    from hydraft.choices import Mode
    from hydraft.config import Config
    from hydraft.data import sources
    from hydraft.launch.join import enter
    from hydraft.launch.world import find, place
    from hydraft.plan import tokens
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed here: run make setup, then .venv/bin/python train.py")


def train(composed: DictConfig) -> float | None:
    """One job: check it, price it, give it ranks. Returns the objective that a sweep compares."""
    asked, saved, folder = cli.typed(composed, Config), None, cli.output_folder()
    if asked.resume is not None:
        asked, saved, folder = resume.merged(composed, cli.overrides())
    asked = place(asked, find(), cli.names("cluster"))
    machine = launch.machine(asked)
    planned_for = plan.planned_for(asked, machine)
    config = plan.resolve(asked, planned_for if asked.mode is Mode.plan else machine)
    config = resume.adopted(config, folder) if saved is None and config.mode is Mode.train else config
    changes = [] if saved is None else resume.changes(saved, config, folder)
    checks.check(config, machine)
    if not config.cluster.on_hosts:  # an agent asks this of its own host
        prepare.check(config.model)
    records = sources.training(config.data, config.seed)
    sources.held_out(config.data)
    whole = plan.resolve(config, planned_for)  # also where the machine of the run is not known yet
    priced = plan.make_plan(whole, len(records), planned_for, tokens.measure(records, config.data))
    if config.mode is Mode.plan:
        plan.report(config, priced, checks.refused_here(config, machine) + launch.refused_here(config))
        return None
    if config.mode is Mode.preview:
        importlib.import_module("hydraft.preview").show(config)  # torch, only here
        return None
    begun = saved is not None or resume.same(config, folder)
    if begun and rundir.status(folder) == "completed" and not changes:
        print(f"{folder}: has run to its end; nothing is left to do")
        return rundir.objective(folder)
    if config.cluster.on_hosts:
        config = launch.placed(config)
    else:
        prepare.native(config.model, config.seed)  # the ranks find it done
    with launch.hold(config, folder):
        (rundir.describe if begun else rundir.create)(folder, config, priced, machine)
        plan.show(config, priced)
        for change in changes:
            print(f"changed: {change}")
        return launch.run(config, folder)


if __name__ == "__main__":
    cli.exit_with(enter(lambda: cli.run(train, "train")))
