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
    "test_run.py", "test_experiments.py", "ssh", "slurm", "test_external.py", "test_resume.py", "test_equivalence.py",
    "test_sweep.py", "test_quickstart.py", "test_families.py", "test_local.py", "test_pretended_cuda.py", "test_checkpoint_faults.py",
    "test_starting_adapter.py", "test_best_runs.py", "test_preference_runs.py", "test_against_trl.py",
    "test_kernels.py", "server", "test_loss_scored.py", "test_quantised_copy.py", "test_compile_layers.py",
    "test_optimizer_states.py", "test_signals.py", "test_rungs.py", "test_gpu_collect.py", "test_kill_storm.py",
    "test_evaluation_callback.py", "test_pack.py", "test_hydra_suites.py", "test_html.py", "test_batching.py",
    "test_export.py", "test_external_ranks.py", "test_divergence.py", "test_linear_4bit.py", "test_pool_packs.py",
    "test_killed_session.py", "test_plain_torch.py", "test_parameters.py", "test_divergence_deferred.py",
    "test_convert_cut_off.py", "test_oom.py", "test_verify_training.py", "test_loss_chunked.py", "test_serve_engine.py",
    "test_search_loop.py", "test_streaming.py", "test_unusable_gpu.py", "test_serve_tools.py", "test_cli.py",
    "test_ports.py", "test_track.py", "test_cache.py", "test_live_bytes.py", "test_replicas.py", "test_written_before.py",
    "test_scoring.py", "test_merge.py", "test_evaluator.py", "test_many_hosts.py", "test_server.py", "test_rules.py",
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
