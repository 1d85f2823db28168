"""Train: python train.py [group=option …] [key=value …]. See python train.py --help, and conf/."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "src"))

try:
    from hydraft.system import streams

    streams.guard()

    from hydraft.sweep import imports

    if __name__ == "__main__":
        imports.start_early(sys.argv[1:])  # those of a sweep's jobs take seconds

    from omegaconf import DictConfig

    from hydraft.config import cli, rules
    from hydraft.config.choices import Mode
    from hydraft.config.schema import Config
    from hydraft.evaluation.benchmarks import tasks
    from hydraft.launch import run as launch
    from hydraft.launch.external import environment
    from hydraft.launch.external.coordinator import enter
    from hydraft.launch.external.store import RendezvousStore
    from hydraft.launch.verify import run as verification
    from hydraft.models import prepare, quantised_copy, stored_quant
    from hydraft.plan import preflight, render
    from hydraft.runs import claim, resume, run_folder, start
    from hydraft.sweep import packs
    from hydraft.sweep.job_status import Recorded
    from hydraft.system import wrapping
    from hydraft.system.imports import import_large
    from hydraft.training.objectives.registry import make_objective
except ModuleNotFoundError as error:
    sys.exit(f"train.py: {error.name} is not installed here: run make setup, then .venv/bin/python train.py")


def train(composed: DictConfig, store: RendezvousStore | None = None) -> float | None:
    """Check a job, plan it, and start its ranks (those of ``store`` under another launcher).

    Returns:
        The objective that a sweep compares.
    """
    requested, saved, folder = cli.typed(composed, Config), None, cli.output_folder()
    started: list[str] = []
    if requested.mode is Mode.train:
        streams.go_on()
    if requested.resume is None:
        requested, started = start.settled(requested, cli.overrides(), folder)
        started += cli.local_settings()
    if requested.mode is Mode.verify:
        for note in started:
            wrapping.say(note)
        verification.verify(requested, folder)
        return None
    if requested.resume is not None:
        requested, saved, folder = resume.merged(composed, cli.overrides())
    requested = environment.apply(requested, environment.detect(), cli.names("cluster"))
    machine = launch.machine(requested)
    if saved is None and requested.mode is Mode.train:
        requested = resume.adopted(requested, folder)
    resolved = preflight.resolve(requested, machine)
    if saved is not None:
        resume.changes(saved, resolved.config, folder)  # refused before any records are read
    objective = make_objective(requested.objective)
    objective.check(requested)
    if requested.data.benchmark and requested.mode is Mode.train:
        tasks.load(tasks.of_run(requested))  # refused before any records are read
    admitted = preflight.admit(resolved, objective.read, packs.measured())
    config = admitted.config
    changes = [] if saved is None else resume.changes(saved, config, folder)  # now with the records
    if config.mode is Mode.plan:
        render.report(config, admitted.plan, rules.refused_here(config, machine) + launch.refused_here(config.cluster))
        for note in (*packs.planned(admitted), *started, *admitted.notes):
            wrapping.say(note)
        return None
    if config.mode is Mode.preview:
        import_large("hydraft.training.preview").show(config)  # imports torch
        return None
    exists = saved is not None or resume.same(config, folder)
    if exists and run_folder.status(folder) == "completed" and not changes:
        wrapping.say(f"{folder}: the run is complete: nothing is left to do")
        return run_folder.objective(folder)
    if config.cluster.on_hosts:
        config = launch.placed(config)
    else:
        # Of a Slurm job that has no machine yet, the quantised copy is made there.
        storage = None if machine is None else quantised_copy.of_run(config)
        prepare.native(config.model, config.seed, storage=storage)  # converted once, before the ranks start
        stored_quant.check(config.model, config.quant)  # a hub model's config.json may have come only now
    with launch.hold(config.cluster, folder):
        (run_folder.describe if exists else run_folder.create)(folder, config, admitted.plan, machine)
        run_folder.keep_private(folder)
        render.announce(config, admitted.plan)
        for note in (*started, *admitted.notes, *(f"changed: {change}" for change in changes)):
            wrapping.say(note)
        return launch.run(config, folder, store=store)


def check_folder(composed: DictConfig, folder: Path, typed: str) -> None:
    """Refuse the folder of a new run if it is not for one, before anything is written there."""
    if composed.mode in (Mode.train, Mode.verify) and composed.resume is None:
        claim.check(folder, typed, hydra_folder=composed.hydra.output_subdir)


if __name__ == "__main__":
    cli.exit_with(enter(lambda store: cli.run(Recorded(functools.partial(train, store=store)), "train", check_folder)))
