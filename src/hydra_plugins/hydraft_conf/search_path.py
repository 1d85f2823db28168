"""Puts ``conf/`` of the current folder before the shipped options in Hydra's search path."""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from hydraft.config import own_options

MAIN = "main"
"""Hydra's name for the folder of the program's own options."""


class OwnOptions(SearchPathPlugin):  # type: ignore[misc]
    """Hydra calls every plugin of an environment for every program; this one is for this program alone."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folder, if the program is this one."""
        mine = own_options.own()
        paths = {one.path.removeprefix("file://") for one in search_path.get_path() if one.provider == MAIN}
        if mine is not None and str(own_options.CONF) in paths:
            search_path.prepend("conf/ of the current folder", f"file://{mine}", MAIN)
