"""Imported by the fork server (``fork_server.py``): imports the modules that forks need. An import error does not end the server.

multiprocessing's own preloading ignores an ImportError, and ends the server upon any other exception.
"""

import json
import os

from hydraft.launch.local import fork_server
from hydraft.system.parent_death import die_with_parent

die_with_parent()
PRELOADED = fork_server.PRELOADED
PRELOADED.modules = json.loads(os.environ.pop(fork_server.PRELOAD, "[]"))
PRELOADED.errors = []  # those of the server that this one was forked from, if any, do not apply
PRELOADED.touching = ""
for name in PRELOADED.modules:
    try:
        PRELOADED.add(name)
    except BaseException as error:  # SystemExit too
        PRELOADED.errors.append(f"{name}: {' '.join(f'{type(error).__name__}: {error}'.split())}")
