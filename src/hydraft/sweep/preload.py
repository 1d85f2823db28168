"""Imported once by the server that a sweep's jobs are forked from: what a job needs before its ranks, and no torch.

What else it imports (by default the stack, ``hydraft.launch.local.preload``) is the launcher's ``preload``.
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
Plugins.instance()  # looked for once, not in every job
gc.freeze()  # see launch/local/preload.py
