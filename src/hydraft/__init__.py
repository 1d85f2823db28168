"""hydraft: a Hydra-composed experiment framework for fine-tuning language models."""

import logging

__version__ = "0.1.0"

# bitsandbytes announces at import, before any rank has a log, that an optional kernel is not there.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
