"""Which tests pytest-xdist gives to one worker together, and in which order, so that both workers finish at the same time."""

from pathlib import PurePath

import pytest
from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    "test_faults.py": "ssh", "test_ssh.py": "ssh",
    "test_slurm.py": "slurm", "test_slurm_sweep.py": "slurm",
    "test_serve.py": "server", "test_serve_load.py": "server", "test_serve_page.py": "server", "test_verify_server.py": "server",
}  # fmt: skip
"""Files that share a session's fixture: two hosts, a Slurm cluster, a server. Any other file is a group of its own."""

LONGEST = (
    "test_external.py", "ssh", "test_resume.py", "test_run.py", "test_equivalence.py", "slurm", "test_pretended_cuda.py",
    "test_gpu_collect.py", "test_experiments.py", "test_families.py", "test_loss_scored.py", "server",
    "test_external_ranks.py", "test_checkpoint_faults.py", "test_signals.py", "test_local.py", "test_kill_storm.py", "test_sweep.py",
    "test_export.py", "test_optimizer_states.py", "test_kernels.py", "test_linear_4bit.py", "test_cli.py", "test_batching.py",
    "test_html.py", "test_rules.py", "test_compile_layers.py", "test_cache.py", "test_evaluator.py", "test_plain_torch.py",
    "test_killed_session.py", "test_ports.py", "test_server.py", "test_many_hosts.py", "test_scoring.py",
)  # fmt: skip
"""The groups that take longest, in the order in which they start."""


def group(nodeid: str) -> str:
    """The group of a test."""
    name = PurePath(nodeid.partition("::")[0]).name
    return TOGETHER.get(name, name)


def in_order(items: list[pytest.Item]) -> None:
    """Sort ``items`` by their group's place in LONGEST; the others follow as they were."""
    place = {name: index for index, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(group(item.nodeid), len(place)))


class ByGroup(LoadScopeScheduling):
    """Gives each worker a group at a time, in the order of the collected tests."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        config.option.loadscopereorder = False  # by number of tests
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
