"""Rules about the debug section and ``train.profile``. No torch."""

from hydraft.config.choices import Launcher
from hydraft.config.debug import DebugConfig, DebugKind
from hydraft.config.rule import value

DEBUG = [
    value(
        lambda c: c.debug.learned_loss != DebugConfig().learned_loss and c.debug.kind is not DebugKind.overfit,
        "debug.learned_loss={c.debug.learned_loss:g} is read by debug=overfit: leave it out, or use debug=overfit",
    ),
    value(
        lambda c: (
            c.train.profile is not None and c.train.max_steps is not None and c.train.profile[1] > c.train.max_steps
        ),
        "train.profile={c.train.profile}: the run has train.max_steps={c.train.max_steps} steps",
    ),
    value(
        lambda c: c.debug.cpu and c.cluster.launcher is Launcher.slurm,
        "debug.cpu=true: cluster.launcher=slurm requests GPUs of Slurm: use cluster=1x{c.cluster.ranks_per_node}, or debug.cpu=false",
    ),
    value(
        lambda c: c.debug.cpu and c.cluster.launcher is Launcher.joined,
        "debug.cpu=true: an external launcher (cluster.launcher=joined) has started the ranks already: give CUDA_VISIBLE_DEVICES= to its command, and leave debug out",
    ),
]
