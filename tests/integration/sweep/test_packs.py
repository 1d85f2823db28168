"""Jobs that share a process in the pool: spread, places, failures, signals, and the death of the process."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.callbacks import Callbacks  # type: ignore[attr-defined]
