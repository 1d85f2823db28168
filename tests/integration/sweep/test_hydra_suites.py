"""Hydra's own test suites for launchers, run with the pool launcher."""

import os
from pathlib import Path
from typing import Any

import pytest
from hydra import version
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

from hydra_plugins.hydraft_pool.launcher import PoolLauncher

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def without_version_base(hydra_restore_singletons: Any) -> None:
    """The suites are for programs without a version_base; other tests in this process have set one."""
    version.setbase("1.1")


def test_hydra_finds_the_launcher() -> None:
    found = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    assert PoolLauncher.__name__ in found


@pytest.mark.parametrize("launcher_name, overrides", [("pool", [])])
class TestPoolLauncher(LauncherTestSuite):
    """Tasks in this process, jobs in others."""

    def test_concurrent_jobs_share_the_cores(
        self, hydra_sweep_runner: Any, launcher_name: str, overrides: list[str], tmpdir: Path
    ) -> None:
        sweep = hydra_sweep_runner(
            calling_file=None,
            calling_module="hydra.test_utils.a_module",
            task_function=lambda _: os.environ["HYDRAFT_CORES"],
            config_path="configs",
            config_name="compose.yaml",
            overrides=[f"hydra/launcher={launcher_name}", "hydra.launcher.jobs=2", "+a=0,1", *overrides],
            temp_dir=tmpdir,
        )
        with sweep:
            share = max(1, len(os.sched_getaffinity(0)) // 2)
            assert [job.return_value for job in sweep.returns[0]] == [str(share)] * 2


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/launcher=pool", "hydra.launcher.preload=[]"])]
)
class TestPoolLauncherIntegration(IntegrationTestSuite):
    """Complete programs that sweep."""
