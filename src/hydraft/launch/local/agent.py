"""torch's elastic agent, with a look at its ranks that takes any early end for a failure. Imports torch.

torch's own takes no notice of a process that ends with code 0 before its function has returned, and then waits for ever; and of
several that have failed it names one, and ends the others before their exit codes can be read.
"""

import threading
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.launcher import api

from hydraft.system.processes import ProcessId

EXIT_SECONDS = 1.0
"""Longest wait for the exit code of a process that has ended: its first thread ends before its others."""


class RankAgent(LocalElasticAgent):
    """The agent of the ranks on this machine.

    Ranks wait until all of them have returned before they end, so one that ends before that has failed, whatever its exit code.
    """

    noticed = threading.Event()
    """Set when it has seen a failure, and ends the other ranks."""

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        ranks: Any = self._pcontext._pc  # type: ignore[union-attr]
        wait = ranks.join

        def join(timeout: float | None = None, *more: Any) -> bool:
            """Without torch's own look for failures, a ``join(-1)``: an end that it sees first would be all that is known."""
            return timeout != -1 and wait(timeout, *more)

        ranks.join = join
        return started

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        failures = self._ended(worker_group)
        if failures:
            self.noticed.set()
            return RunResult(WorkerState.FAILED, failures=failures)
        healthy: RunResult = super()._monitor_workers(worker_group)
        return healthy

    def _ended(self, worker_group: WorkerGroup) -> dict[int, ProcessFailure]:
        """The ranks whose processes have ended, by rank."""
        context: Any = self._pcontext
        processes = [] if context is None else context._pc.processes
        if any(process.exitcode is not None for process in processes):
            for process in processes:
                if process.exitcode is None and not ProcessId.of(process.pid).runs:
                    process.join(EXIT_SECONDS)
        return {
            worker.global_rank: ProcessFailure(
                worker.local_rank, process.pid, process.exitcode, context.error_files[worker.local_rank]
            )
            for worker, process in zip(worker_group.workers, processes, strict=False)
            if process.exitcode is not None
        }


def register() -> None:
    """Have torch's ``elastic_launch`` use it: it has no setting for the class of its agent."""
    vars(api)["LocalElasticAgent"] = RankAgent
