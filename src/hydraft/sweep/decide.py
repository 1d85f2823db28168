"""Further seeds of the points that cannot be told apart from the best, after a sweep (``sweep.decide=true``). No torch.

Whether to add seeds depends on the results so far. So they are added once, and p of the comparison after that is doubled (Bonferroni,
over two looks at the results). What is to be added is saved before it is run, so that a resumed sweep adds the same.
"""

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher

from hydraft.sweep import replicas
from hydraft.sweep.results import ledger, reading
from hydraft.sweep.results.ledger import OVER
from hydraft.sweep.session import Session
from hydraft.system import files

ADDED = "decide"
"""Key of sweep.json: the first job of each point that gets further seeds, and how many seeds these have in all."""


def run(session: Session, launcher: Launcher) -> list[JobReturn]:
    """Run the further seeds, and return the results of their jobs; none if there is nothing to decide, or no number of seeds would."""
    from hydraft.sweep.results import verdict  # numpy, only where there is something to compare

    about = ledger.read_about(session.folder)
    if ADDED not in about:
        if any(job.state not in OVER for job in session.here.values()):
            return []
        found = reading.read(session.folder)
        plan = verdict.plan(found, session.config.sweep.max_replicas)
        print("\n".join(["sweep.decide:", *found.findings, plan.reason]))
        if not plan.points:
            return []
        added = {"points": [one.job.key for one in plan.points], "seeds": plan.seeds}
        about |= {ADDED: added, "looks": about.get("looks", 1) + 1}
        files.write_json(session.folder / ledger.ABOUT, about)
    chosen, first, loader = about[ADDED], session.config.sweep.replicas, session.context.config_loader
    known = session.ledger.jobs()  # a search does not compose the jobs of earlier commands again
    jobs = [
        run
        for key in chosen["points"]
        for run in replicas.runs(
            loader, session.config, session.overrides.get(key) or known[key].overrides, range(first, chosen["seeds"])
        )
    ]
    return session.run(launcher, jobs) if jobs else []
