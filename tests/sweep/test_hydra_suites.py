"""Hydra's own tests of a launcher, on ours."""

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import IntegrationTestSuite, LauncherTestSuite

from hydra_plugins.hydraft_pool.launcher import PoolLauncher

pytestmark = pytest.mark.filterwarnings("ignore")


def test_hydra_finds_the_launcher() -> None:
    found = {plugin.__name__ for plugin in Plugins.instance().discover(Launcher)}
    assert PoolLauncher.__name__ in found


@pytest.mark.parametrize("launcher_name, overrides", [("pool", ["hydra.launcher.preload=[]"])])
class TestPoolLauncher(LauncherTestSuite):
    """Tasks in this process, jobs in others."""


@pytest.mark.parametrize(
    "task_launcher_cfg, extra_flags", [({}, ["-m", "hydra/launcher=pool", "hydra.launcher.preload=[]"])]
)
class TestPoolLauncherIntegration(IntegrationTestSuite):
    """Whole programs that sweep."""
