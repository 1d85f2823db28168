"""torch's elastic agent, with a look at its ranks that takes any early end for a failure. Imports torch.

torch's own takes no notice of a process that ends with code 0 before its function has returned, and then waits for ever; and of
several that have failed it names one.
"""

from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.launcher import api


class RankAgent(LocalElasticAgent):
    """The agent of the ranks on this machine.

    Ranks wait until all of them have returned before they end, so one that ends before that has failed, whatever its exit code.
    """

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        failures = self._ended(worker_group)
        if failures:
            return RunResult(WorkerState.FAILED, failures=failures)
        healthy: RunResult = super()._monitor_workers(worker_group)
        return healthy

    def _ended(self, worker_group: WorkerGroup) -> dict[int, ProcessFailure]:
        """The ranks whose processes have ended, by rank."""
        context: Any = self._pcontext
        if context is None:
            return {}
        return {
            worker.global_rank: ProcessFailure(
                worker.local_rank, process.pid, process.exitcode, context.error_files[worker.local_rank]
            )
            for worker, process in zip(worker_group.workers, context._pc.processes, strict=True)
            if process.exitcode is not None
        }


def register() -> None:
    """Have torch's ``elastic_launch`` use it: it has no setting for the class of its agent."""
    vars(api)["LocalElasticAgent"] = RankAgent
