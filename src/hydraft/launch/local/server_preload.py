"""Imported by a server of forks (``launch.server``): it imports what the server is to have. No error of an import ends the server.

multiprocessing's own preloading takes an ImportError for nothing, and dies of all others.
"""

import importlib
import json
import os

from hydraft.launch.local import fork_server
from hydraft.system.parent_death import die_with_parent

die_with_parent()
fork_server.imported[:] = json.loads(os.environ.pop(fork_server.PRELOAD, "[]"))
fork_server.trouble.clear()  # of another server, that this one was forked from
for name in fork_server.imported:
    try:
        importlib.import_module(name)
    except BaseException as error:  # sys.exit too
        fork_server.trouble.append(f"{name}: {' '.join(f'{type(error).__name__}: {error}'.split())}")
