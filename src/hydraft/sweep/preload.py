"""Imported once by the fork server of a sweep's jobs: the modules that a job needs before its ranks start. No torch.

Further modules are named by the launcher's setting ``preload``, by default ``hydraft.launch.local.preload``.
"""

import gc

import cloudpickle  # noqa: F401
import hydra.core.utils  # noqa: F401
from hydra.core.plugins import Plugins

import hydraft.launch.run
import hydraft.models.prepare
import hydraft.sweep.pool_job  # noqa: F401
from hydraft.system.parent_death import die_with_parent

die_with_parent()
Plugins.instance()  # found once, not in every job
gc.freeze()  # see launch/local/preload.py
